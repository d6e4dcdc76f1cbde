"""Where the time goes: start-up, a token by its position, a pass by its rows.

    python benchmarks/breakdown.py MODEL_DIRECTORY

Medians of --rounds. Start-up is measured in fresh interpreters, with the files in the file cache;
the rest in this one. "Floor" is one row times every matrix of the model, and nothing else; "calls"
is a token of a model with as many layers and heads, but one number a head: what remains of a token
when there is nothing to compute.
Writes results/breakdown.md.
"""

if __name__ == "__main__":
    import common  # noqa: F401  # before NumPy: it says how long OpenBLAS's threads spin

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
from common import ROOT, medians, one_row, report, table, timed

import gpt2
from training_run import init_params
from utils import load_encoder_hparams_and_params

STARTUP = """
import time; t = [time.perf_counter()]
def lap(): t.append(time.perf_counter())
import sys, json; sys.path.insert(0, sys.argv[1])
import numpy; lap()
import gpt2; lap()
import utils, encoder; lap()
encoder.get_encoder(sys.argv[2]); lap()
_, h, p = utils.load_encoder_hparams_and_params(sys.argv[2], ""); lap()
list(gpt2.generate([464, 3290][: h["n_vocab"]], p, h, 1)); lap()
list(gpt2.generate([464, 3290][: h["n_vocab"]], p, h, 1)); lap()
print(json.dumps([b - a for a, b in zip(t, t[1:])]))
"""
LAPS = [
    "start of the interpreter, and its end",
    "import numpy",
    "import gpt2",
    "import utils, encoder (regex)",
    "vocabulary",
    "vocabulary again, and weights mapped",
    "first token: weights touched",
    "the same, warm",
]


def startup(directory, rounds):
    laps, command = [], [sys.executable, "-c", STARTUP, str(ROOT), str(directory)]
    for _ in range(rounds):
        all_of_it, done = timed(lambda: subprocess.run(command, capture_output=True, check=True))
        seconds = json.loads(done.stdout)
        laps.append([all_of_it - sum(seconds), *seconds])
    return dict(zip(LAPS, map(median, zip(*laps))))


def passes(params, hparams, n):
    """-> function that takes so many rows through a model whose cache holds n_past positions."""
    model = {**params, "n_head": hparams["n_head"], "eps": hparams["layer_norm_epsilon"]}
    cache = gpt2.new_cache(n, **hparams)
    cache[...] = 0.1
    return lambda rows, n_past: gpt2.gpt2(
        [5] * rows, **model, cache=cache, n_past=n_past, n_logits=rows
    )


def decoding(params, hparams, rounds, positions):
    """Seconds of a token at each position, beside those of its products alone."""
    narrow = {**hparams, "n_vocab": 64, "n_embd": hparams["n_head"], "n_inner": None}
    calls = passes(init_params(narrow, np.random.default_rng(0)), narrow, 8)
    token = passes(params, hparams, max(positions) + 32)
    functions = {"calls": (lambda: calls(1, 1), 30), "floor": (one_row(params), 3)}
    return medians(functions | {n: (lambda n=n: token(1, n), 3) for n in positions}, rounds)


def drafts(params, hparams, rounds, widths):
    """Seconds of a pass that checks a draft, by its number of rows."""
    check = passes(params, hparams, 160)
    return medians({n: (lambda n=n: check(n, 100), 1) for n in widths}, rounds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    laps = startup(args.model.resolve(), args.rounds)
    _, hparams, params = load_encoder_hparams_and_params(str(args.model.resolve()), "")
    positions = [n for n in (1, 50, 200, 500, 990) if n + 32 <= hparams["n_ctx"]]
    tokens = decoding(params, hparams, args.rounds, positions)
    rows = drafts(params, hparams, args.rounds, (1, 2, 3, 4, 6, 8, 12, 16, 24, 32))
    floor, one = tokens["floor"], rows[1]
    lines = [
        "### Start-up",
        "",
        *table(["step", "ms"], [(name, f"{s * 1e3:.0f}") for name, s in laps.items()]),
        "",
        "### A token by its position",
        "",
        *table(
            ["position", "ms", "of the floor"],
            [(n, f"{s * 1e3:.2f}", f"{s / floor:.2f}") for n, s in tokens.items()],
        ),
        "",
        "### A pass by its rows",
        "",
        *table(
            ["rows", "ms", "of one row", "per row"],
            [
                (n, f"{s * 1e3:.1f}", f"{s / one:.2f}", f"{s / one / n:.2f}")
                for n, s in rows.items()
            ],
        ),
    ]
    report("breakdown", lines)


if __name__ == "__main__":
    main()
