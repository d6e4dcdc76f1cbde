"""Where the time goes: start-up, a token by its position, a pass by its rows, tricks on and off.

    python benchmarks/breakdown.py MODEL_DIRECTORY

Medians of --rounds. Start-up is measured in fresh interpreters, with the files in the file cache;
the rest in this one. "Floor" is one row times every matrix of the model, and nothing else; "calls"
is a token of a model with as many layers and heads, but one number a head: what remains of a token
when there is nothing to compute.
Writes results/breakdown.md.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402

import gpt2  # noqa: E402
from utils import load_encoder_hparams_and_params  # noqa: E402

STARTUP = """
import time; t = [time.perf_counter()]
def lap(): t.append(time.perf_counter())
import sys, json; sys.path.insert(0, sys.argv[1])
import numpy; lap()
import gpt2; lap()
import utils, encoder; lap()
from pathlib import Path
e = encoder.get_encoder(Path(sys.argv[2])); lap()
model = utils.load_model(Path(sys.argv[2])); lap()
_, h, p = model
list(gpt2.generate([464, 3290][: h["n_vocab"]], p, h["n_head"], 1)); lap()
list(gpt2.generate([464, 3290][: h["n_vocab"]], p, h["n_head"], 1)); lap()
print(json.dumps([b - a for a, b in zip(t, t[1:])]))
"""
LAPS = [
    "import numpy",
    "import gpt2",
    "import utils, encoder (regex)",
    "vocabulary",
    "vocabulary again, and weights mapped",
    "first token: weights touched",
    "the same, warm",
]


def timed(function, n=1):
    """Seconds of a call, the mean of n."""
    start = time.perf_counter()
    for _ in range(n):
        function()
    return (time.perf_counter() - start) / n


def startup(directory, rounds):
    laps = []
    for _ in range(rounds):
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", STARTUP, str(ROOT), str(directory)],
            capture_output=True,
            check=True,
        )
        seconds = json.loads(done.stdout)
        laps.append([time.perf_counter() - begin - sum(seconds), *seconds])
    columns = map(median, zip(*laps))
    return [("start of the interpreter, and its end", next(columns)), *zip(LAPS, columns)]


def decoding(params, n_head, rounds, positions):
    """Seconds of a token at each position, beside those of its products alone."""
    matrices = [
        x[k]
        for block in params["blocks"]
        for x, k in (
            (block["attn"]["c_attn"], "w"),
            (block["attn"]["c_proj"], "w"),
            (block["mlp"]["c_fc"], "w"),
            (block["mlp"]["c_proj"], "w"),
        )
    ]
    matrices.append(params["wte"].T)
    rows = [np.ones((1, len(w)), np.float32) for w in matrices]

    def products():
        for x, w in zip(rows, matrices):
            x @ w

    cache = gpt2.new_cache(params, n_head, max(positions) + 32)
    cache[...] = 0.1
    from train import init_params  # after NumPy: it asks for a BLAS of one thread

    n_layer = len(params["blocks"])
    narrow = init_params(64, len(params["wpe"]), n_head, n_layer, np.random.default_rng(0))
    narrow_cache = gpt2.new_cache(narrow, n_head, 8)

    def calls():
        gpt2.gpt2([5], **narrow, n_head=n_head, cache=narrow_cache, n_past=1, n_logits=1)

    times = {position: [] for position in ("calls", "floor", *positions)}
    for _ in range(rounds):
        times["calls"].append(timed(calls, 30))
        times["floor"].append(timed(products, 3))
        for n in positions:
            times[n].append(
                timed(
                    lambda n=n: gpt2.gpt2(
                        [5], **params, n_head=n_head, cache=cache, n_past=n, n_logits=1
                    ),
                    3,
                )
            )
    return [(key, median(column)) for key, column in times.items()]


def passes(params, n_head, rounds, widths):
    """Seconds of a pass that checks a draft, by its number of rows."""
    cache = gpt2.new_cache(params, n_head, 160)
    cache[...] = 0.1
    times = {n: [] for n in widths}
    for _ in range(rounds):
        for n in widths:
            times[n].append(
                timed(
                    lambda n=n: gpt2.gpt2(
                        [5] * n, **params, n_head=n_head, cache=cache, n_past=100, n_logits=n
                    )
                )
            )
    return [(n, median(column)) for n, column in times.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    lines = ["### Start-up", "", "| step | ms |", "| --- | --- |"]
    lines += [f"| {name} | {s * 1e3:.0f} |" for name, s in startup(args.model, args.rounds)]
    _, hparams, params = load_encoder_hparams_and_params(str(args.model), "")
    n_ctx = hparams["n_ctx"]
    positions = [n for n in (1, 50, 200, 500, 990) if n + 32 <= n_ctx]
    found = decoding(params, hparams["n_head"], args.rounds, positions)
    floor = dict(found)["floor"]
    lines += [
        "",
        "### A token by its position",
        "",
        "| position | ms | of the floor |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {n} | {s * 1e3:.2f} | {s / floor:.2f} |" for n, s in found]
    found = passes(params, hparams["n_head"], args.rounds, (1, 2, 3, 4, 6, 8, 12, 16, 24, 32))
    one = found[0][1]
    lines += [
        "",
        "### A pass by its rows",
        "",
        "| rows | ms | of one row | per row |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {n} | {s * 1e3:.1f} | {s / one:.2f} | {s / one / n:.2f} |" for n, s in found]
    print("\n".join(lines))
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / "breakdown.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
