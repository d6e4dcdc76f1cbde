"""Run the benchmarks and put their tables into README.md and docs/speed.md.

    python benchmarks/all.py [SHARED] [--only tables]

SHARED: a directory that holds gpt2-vocab/ (GPT-2's vocab.json and merges.txt) and
data/tinyshakespeare.txt (../shared).
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SIZES = "--name sizes --sizes 355M,774M,1558M --variants repeats --rounds 1 --methods"
SIZES = [*SIZES.split(), "NumPy plain,NumPy,transformers,llama.cpp F32"]


def part(name, title=None):
    """A table of results/NAME.md: the one under a title, or the whole file."""
    path = RESULTS / f"{name}.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text.split(f"### {title}\n")[-1].split("\n###")[0].strip() if title else text.strip()


def tables():
    places = {
        "README.md": {
            "peers": part("peers"),
            "sizes": part("sizes"),
            "encoder": part("encoder"),
            "training": part("train_step"),
        },
        "docs/speed.md": {
            "token": part("breakdown", "A token by its position"),
            "rows": part("breakdown", "A pass by its rows"),
            "startup": part("breakdown", "Start-up"),
            "train": part("train_step"),
            "optimisers": part("train_run", "Optimisers"),
            "fine-tuning": part("train_run", "Fine-tuning 124M"),
            "tricks": part("tricks"),
        },
    }
    for name, tables in places.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        for marker, table in tables.items():
            text = re.sub(
                rf"(<!-- {marker} -->\n).*?(?=<!-- end -->)",
                lambda found, table=table: f"{found[1]}\n{table}\n\n",
                text,
                flags=re.DOTALL,
            )
        (ROOT / name).write_text(text, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shared", nargs="?", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--only", choices=["tables"], help="take the results that are there")
    args = parser.parse_args()
    vocabulary, text = args.shared / "gpt2-vocab", args.shared / "data" / "tinyshakespeare.txt"
    with tempfile.TemporaryDirectory() as models:
        model = Path(models) / "124M-repeats"
        for command in (
            []
            if args.only
            else (
                ["peers.py", vocabulary, "--models", models],
                ["peers.py", vocabulary, *SIZES],
                ["breakdown.py", model],
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
