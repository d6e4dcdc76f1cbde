"""Run the benchmarks and put their tables into README.md and docs/speed.md.

    python benchmarks/all.py [SHARED] [--models DIRECTORY] [--only tables]

SHARED: a directory that holds gpt2-vocab/ (GPT-2's vocab.json and merges.txt) and
data/tinyshakespeare.txt (../shared).
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from common import RESULTS, ROOT, SHARED, table

SIZES = "--name sizes --sizes 355M,774M,1558M --variants repeats --rounds 1 --methods"
SIZES = [*SIZES.split(), "NumPy plain,NumPy,transformers,llama.cpp F32"]


def part(name, title=None):
    """A table of results/NAME.md: the one under a title, or the whole file."""
    path = RESULTS / f"{name}.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text.split(f"### {title}\n")[-1].split("\n###")[0].strip() if title else text.strip()


def summary():
    """A few columns of peers.md, without the speeds in brackets, and a few contenders."""
    shown = "NumPy plain", "NumPy", "transformers", "llama.cpp F32", "llama.cpp Q8_0", "floor"
    repeats, wanders = (
        [line.strip("| ").split(" | ") for line in part("peers", title).splitlines() if "|" in line]
        for title in ("124M, repeats", "124M, wanders")
    )
    names = ["tok/s, 200", "prefill ms, 512", "whole s", "peak MiB"]
    speed, prompt, whole, peak = (["", *repeats[0]].index(name) for name in names)
    rows = []
    for row, other in zip(repeats[2:], wanders[2:]):
        if row[0] not in shown:
            continue
        row += [""] * (peak + 1 - len(row))  # the floor has no more than a speed
        cells = row[speed], other[speed], row[prompt], row[whole], row[peak]
        rows.append([row[0], *(cell.split(" (")[0] for cell in cells)])
    head = (
        "124M, tokens/s: text repeats, text wanders, prompt of 512: ms, whole process: s, peak MiB"
    )
    machine = part("peers").splitlines()[-1]
    return "\n".join([*table(head.split(", "), rows), "", machine])


def tables():
    """Each table goes to where README.md or docs/speed.md has its marker."""
    found = {
        "readme": summary(),
        "peers": part("peers"),
        "sizes": part("sizes"),
        "encoder": part("encoder"),
        "token": part("breakdown", "A token by its position"),
        "rows": part("breakdown", "A pass by its rows"),
        "startup": part("breakdown", "Start-up"),
        "train": part("train_step"),
        "optimisers": part("train_run", "Optimisers"),
        "fine-tuning": part("train_run", "Fine-tuning 124M"),
        "tricks": part("tricks"),
        "many texts": part("many_texts"),
        "drafts": part("drafts"),
    }
    for path in ROOT / "README.md", ROOT / "docs" / "speed.md":
        text = path.read_text(encoding="utf-8")
        for marker, lines in found.items():
            before, mark, rest = text.partition(f"<!-- {marker} -->\n")
            if mark:
                _, end, after = rest.partition("<!-- end -->")
                text = f"{before}{mark}\n{lines}\n\n{end}{after}"
        path.write_text(text, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shared", nargs="?", type=Path, default=SHARED)
    parser.add_argument("--models", type=Path, help="keep peers.py's 124M here")
    parser.add_argument("--only", choices=["tables"], help="take the results that are there")
    args = parser.parse_args()
    vocabulary, text = args.shared / "gpt2-vocab", args.shared / "data" / "tinyshakespeare.txt"
    with tempfile.TemporaryDirectory() as temporary:
        models = args.models or Path(temporary)
        model = models / "124M-repeats"
        for command in (
            []
            if args.only
            else (
                ["peers.py", vocabulary, "--models", models],
                ["peers.py", vocabulary, *SIZES],
                ["breakdown.py", model],
                ["drafts.py", args.shared],
                ["tricks.py"],
                ["train_step.py"],
                ["train_run.py", text, "--model", model],
                ["encoder.py", vocabulary, text],
            )
        ):
            command[0] = ROOT / "benchmarks" / command[0]
            subprocess.run([sys.executable, *map(str, command)], check=True)
    tables()


if __name__ == "__main__":
    main()
