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
Those of `batch.py` begin with `line`, the number of the prompt's line, and have `sample`, from 0
on; a line that is no prompt has an object of `line` and `error`.
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
