"""Write docs/options.md: the help texts of all commands as tables.

python tests/make_options.py
"""

import argparse
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = "gpt2", "batch", "explain", "evaluate", "train"


HEAD = """# The options of every command

`python tests/make_options.py` writes this page from the commands' own help texts. The short model,
`gpt2_pico.py`, has only a prompt, `--n_tokens_to_generate`, `--model_size` and `--models_dir`.

With `--json`, `gpt2.py` prints the completion as a JSON object on one line. `batch.py` always
prints such lines. The keys are:

- `line`: the number of the prompt's line, counted from 1 (only `batch.py`).
- `prompt`: the prompt.
- `sample`: the number of the completion among those of its prompt, counted from 0 (only
  `batch.py`).
- `seed`: the seed; null if tokens are not sampled.
- `seconds`: the time the completion took, without loading the model.
- `text`: the completion. U+FFFD replaces bytes that are not UTF-8.
- `ids`: the token ids of the completion, without an end-of-text token. If a stop text ended the
  completion, they end before the token in which the stop text begins.
- `log_probabilities`: the natural logarithm of each id's probability. It is computed from the
  model's own logits, before any option changes them.
- `ended`: why the completion ended: "end of text", "stop" or "length".
- `valid_utf8`: false if bytes of `text` had to be replaced.

## JSON lines as input

If the first line that `batch.py` reads is a JSON object, each line must be a JSON object with these
keys. null means that an option is not given. Any other key is an error in that line.

- `prompt`: the prompt, a text.
- `id`: any value. It is copied to the output.
- `n_tokens`, `stop` (a text or a list of texts), `temperature`, `top_k`, `top_p`, `min_p`,
  `repetition_penalty`, `seed`: these replace the options of the command for this line.

Blank lines are skipped. If a line is not a prompt, or is longer than 16 MB, the output is an object
with `line`, `error`, and `id` if the line has one. All other lines are completed, but the exit
status is 1.
"""


def describe(parser):
    """Return a command's description and a table of its options, as Markdown."""
    lines = [
        f"## {parser.prog}",
        "",
        parser.description,
        "",
        "| option | meaning |",
        "| --- | --- |",
    ]
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            name = action.option_strings[-1] if action.option_strings else ""
            value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
            if not name:  # This is a positional argument, such as the prompt.
                value = action.dest
            choices = f" ({', '.join(action.choices)})" if action.choices else ""
            text = (action.help or "") % {"default": action.default} + choices
            lines.append(f"| `{f'{name} {value}'.strip()}` | {text.replace('|', chr(92) + '|')} |")
    return "\n".join([*lines, *(["", parser.epilog] if parser.epilog else []), ""])


def document():
    parsers = [importlib.import_module(name).parser() for name in COMMANDS]
    return "\n".join([HEAD, *map(describe, parsers)])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    (ROOT / "docs" / "options.md").write_text(document(), encoding="utf-8", newline="\n")
