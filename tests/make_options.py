"""Write docs/options.md: what --help says of every command, as tables.

python tests/make_options.py
"""

import argparse
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = "gpt2", "batch", "explain", "evaluate", "train"


HEAD = """# Every option of every command

Written by `python tests/make_options.py`.

With `--json`, a completion is an object in one line: `prompt`; `text`, in which U+FFFD stands for
what is not UTF-8, and `valid_utf8` is then false; `ids`, without those of an end of text or a stop
(nor of the token in which the stop begins); `log_probabilities`, the natural logarithm of each id's
probability by the model's own logits, before any option changes them; `ended`, which is "end of
text", "stop" or "length"; `seed`, null where nothing is drawn; `seconds`, without loading.

`batch.py` reads one prompt per line, and passes over blank lines. If the first line is a JSON
object, every line has to be one. It has the text `prompt`, and may have `id`, any value, which is
copied to the output, and these options, which replace the command's for this line: `n_tokens`,
`stop` (a text or a list of texts), `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`,
`seed`. null stands for an option that is not given; any other key is an error. The objects that are
printed begin with `line`, the number of the line, and `id`, and have `sample`, from 0 on. A line
that is not a prompt, or is longer than 16 MB, gets an object of `line`, `id` if it has one, and
`error`; the others are completed, and the exit status is 1.
"""


def describe(parser):
    """A command's description and its options, each with its help, as Markdown."""
    lines = [f"## {parser.prog}", "", parser.description, "", "| | |", "| --- | --- |"]
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            name = " ".join([action.option_strings[-1]] if action.option_strings else [])
            value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
            if not name:  # the text itself
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
