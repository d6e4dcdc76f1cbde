"""Run the benchmarks and put their tables into README.md and docs/speed.md.

    python benchmarks/all.py [VOCABULARY] [--only tables]

VOCABULARY: a directory of GPT-2's vocab.json and merges.txt (../shared/gpt2-vocab).
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def part(name, title=None):
    """A table of results/NAME.md: the one under a title, or the whole file."""
    path = RESULTS / f"{name}.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text.split(f"### {title}\n")[-1].split("\n###")[0].strip() if title else text.strip()


def tables():
    places = {
        "README.md": {"peers": part("peers"), "training": part("train_step")},
        "docs/speed.md": {
            "token": part("breakdown", "A token by its position"),
            "rows": part("breakdown", "A pass by its rows"),
            "startup": part("breakdown", "Start-up"),
            "train": part("train_step"),
            "tricks": part("tricks"),
        },
    }
    for name, tables in places.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        for marker, table in tables.items():
            text = re.sub(rf"(<!-- {marker} -->\n).*?(?=<!-- end -->)",
                          lambda found, table=table: f"{found[1]}\n{table}\n\n", text,
                          flags=re.DOTALL)
        (ROOT / name).write_text(text, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("vocabulary", nargs="?", default=ROOT.parent / "shared" / "gpt2-vocab")
    parser.add_argument("--only", choices=["tables"], help="take the results that are there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as models:
        model = Path(models) / "124M-repeats"
        for script in [] if args.only else (
            ["peers.py", str(args.vocabulary), "--models", models], ["breakdown.py", str(model)],
            ["tricks.py"], ["train_step.py"], ["encoder.py", str(args.vocabulary)],
        ):
            command = [sys.executable, str(ROOT / "benchmarks" / script[0]), *script[1:]]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(done.stdout, flush=True)
            if script[0] == "encoder.py":  # the others write their results themselves
                (RESULTS / "encoder.txt").write_text(done.stdout, encoding="utf-8")
    tables()


if __name__ == "__main__":
    main()
