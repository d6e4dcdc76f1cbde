"""Run the Python in a Markdown file, and hold what it prints against what stands below it.

    python lesson/run.py docs/gradients.md            compare
    python lesson/run.py docs/gradients.md --write    put in what was printed

A fence ```python is run; the fence without a language right below it, if there is one, is what it
prints. All fences of a file share their variables. Numbers with a decimal point are equal within
one unit of the last digit written, since processors round differently; all else is compared as it
stands.
"""

import argparse
import contextlib
import io
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
DECIMAL = re.compile(r"-?\d+\.\d+")


def run(text, name):
    """-> [(place of the output, what stands there or None, what was printed)] of all fences."""
    variables, results = {"__name__": name}, []
    for fence in FENCE.finditer(text):
        line = text.count("\n", 0, fence.start(1))  # so that a traceback names the file's lines
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + fence[1], name, "exec"), variables)
        results.append((fence, printed.getvalue()))
    return results


def differ(written, printed):
    """Is anything but a last digit another?"""
    if DECIMAL.sub("#", written) != DECIMAL.sub("#", printed):
        return True
    pairs = zip(DECIMAL.findall(written), DECIMAL.findall(printed))
    return any(
        len(a.partition(".")[2]) != len(b.partition(".")[2])
        or abs(float(a) - float(b)) > 1.01 * 10.0 ** -len(a.partition(".")[2])
        for a, b in pairs
    )


def check(path):
    """-> the faults of a file, each in a line or more."""
    text, faults = path.read_text(encoding="utf-8"), []
    for fence, printed in run(text, str(path)):
        written = fence[2] or ""
        if differ(written, printed):
            line = text.count("\n", 0, fence.start()) + 1
            faults.append(f"{path}:{line}: written\n{written}printed\n{printed}")
    return faults


def write(path):
    """Put what the fences print below them."""
    text = path.read_text(encoding="utf-8")
    for fence, printed in reversed(run(text, str(path))):
        if differ(fence[2] or "", printed):
            output = f"\n```\n{printed}```\n" if printed else ""
            text = f"{text[: fence.start()]}```python\n{fence[1]}```\n{output}{text[fence.end() :]}"
    path.write_text(text, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="put in what was printed")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    for path in args.files:
        if args.write:
            write(path)
    faults = [fault for path in args.files for fault in check(path)]
    print("\n".join(faults) or f"{len(args.files)} files hold", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
