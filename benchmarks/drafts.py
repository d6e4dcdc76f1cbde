"""What drafts save, by their rule: texts are replayed as though a model were writing them.

    python benchmarks/drafts.py [SHARED]

A pass costs what breakdown.py has measured for its rows (results/breakdown.md), so nothing is timed
here, and the same texts give the same figures. A second table is for a BLAS that copies a matrix
before it multiplies more than one row. Each text is cut into pieces of 1,000 tokens, of which 200
are the prompt; the figure is how often as fast the others come with drafts as without, on average
and in the worst piece. Writes results/drafts.md.
"""

import argparse
import sysconfig
from functools import partial
from pathlib import Path

import numpy as np
from common import RESULTS, ROOT, SHARED, report, table

import drafts
from encoder import get_encoder

N_PIECES, N_TOKENS, N_PROMPT = 12, 1000, 200
COPIED = {1: 1, 2: 3.05, 4: 3.09, 8: 3.12, 16: 3.51, 32: 4.28}  # rows: passes of one row


class Drafts(drafts.Drafts):
    """With another first length, and other pauses: after the nth miss in a row."""

    def __init__(self, first, pauses):
        super().__init__()
        self.FIRST = self.length = first
        self.pauses = pauses

    def judge(self, guess, n_right):
        super().judge(guess, n_right)
        if guess and self.n_misses:
            self.pause = self.pauses(self.n_misses)


RULES = {
    "as it is": drafts.Drafts,
    **{
        f"first {first}, pauses {name}": partial(Drafts, first, pauses)
        for first in (3, 7, 15)
        for name, pauses in {
            "0": lambda n: 0,
            "0, 1, 3 … 63": lambda n: 2 ** min(n - 1, 6) - 1,
            "3, 7 … 63": lambda n: 2 ** min(n + 1, 6) - 1,
        }.items()
    },
}


def measured():
    """-> {rows: passes of one row}, of this machine."""
    text = (RESULTS / "breakdown.md").read_text(encoding="utf-8").split("A pass by its rows")[1]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {int(row[0]): float(row[2]) for row in rows[2:]}


def pieces(paths, encoder):
    """-> lists of ids from all over the files."""
    ids = encoder.encode("".join(path.read_text(encoding="utf-8") for path in paths))
    starts = np.linspace(0, len(ids) - N_TOKENS, N_PIECES).astype(int)
    return [ids[start : start + N_TOKENS] for start in starts]


def speed(ids, rule, costs):
    """-> how often as fast the ids come as one a pass."""
    found, cost, rows, n = rule(), 0.0, sorted(costs), N_PROMPT  # cost: in passes of one row
    while n < len(ids):
        guess = found.guess(ids[:n], len(ids) - n - 1)
        n_right = sum(np.cumprod([a == b for a, b in zip(guess, ids[n:])], dtype=int))
        cost += np.interp(1 + len(guess), rows, [costs[row] for row in rows])
        n += 1 + int(n_right)
        found.judge(guess, n_right)
    return (len(ids) - N_PROMPT) / cost


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shared", nargs="?", type=Path, default=SHARED)
    shared = parser.parse_args().shared
    encoder, library = get_encoder(shared / "gpt2-vocab"), Path(sysconfig.get_path("stdlib"))
    texts = {
        "Shakespeare": [shared / "data" / "tinyshakespeare.txt"],
        "this project's README": [ROOT / "README.md", ROOT / "docs" / "speed.md"],
        "its source": sorted(ROOT.glob("*.py")),
        "Python's library": sorted(library.glob("[a-d]*.py")),
    }
    texts = {name: pieces(paths, encoder) for name, paths in texts.items()}
    lines = []
    for title, costs in {"Measured costs": measured(), "A BLAS that copies": COPIED}.items():
        rows = []
        for name, rule in RULES.items():
            speeds = [[speed(ids, rule, costs) for ids in text] for text in texts.values()]
            rows.append([name, *(f"{np.mean(each):.2f} ({min(each):.2f})" for each in speeds)])
        lines += [f"### {title}", "", *table(["rule", *texts], rows), ""]
    report("drafts", lines)


if __name__ == "__main__":
    main()
