"""Measure how long a pass over a model takes, and how much time each trick saves.

    python benchmarks/tricks.py

The shapes are those of the 124M model, and the weights are random. Each row of a pass is a token:
of a prompt, of a draft, or the next token of one of several texts. "Reading all weights once" is
one row times every matrix, and nothing else. "NumPy calls alone" is a pass of one token through a
model with the same number of layers and heads, but only one number per head. There is hardly
anything to compute, so it shows the cost of the calls. Each trick takes turns with the plain way.
Together, the matrices are too large for the processor's cache, as in a pass over a model.

Writes results/passes.md and results/tricks.md, and the tables in docs/speed.md.
"""

import argparse
import math
from functools import partial
from itertools import chain
from unittest.mock import patch

import common  # before NumPy: see its docstring
import numpy as np
from common import timed

import gpt2
from fast import product
from training.run import init_params

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape, np.float32)


def attention_at_once(q, k, v):
    """Compute all scores at once, including those above the diagonal."""
    n = q.shape[1]
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    scores += np.triu(np.full((n, n), -np.inf, np.float32), 1)
    return gpt2.softmax(scores) @ v


def attention_on_one_core(q, k, v):
    with patch.object(gpt2, "in_parallel", lambda work, n, least=1: work(slice(0, n))):
        return gpt2.attention(q, k, v)


def by_blas(x, matrices):
    return [x @ w for w in matrices]


def by_product(x, matrices):
    return [product(x, w) for w in matrices]


# The tricks. Each is a name, a function without the trick, and a function with it.


def prompt_tricks():
    x = normal(1000, 3072)
    yield (
        "gelu of 1000 tokens, a few rows at a time",
        lambda: x * gpt2.normal_cdf(x),
        lambda: gpt2.gelu(x),
    )
    added, stream = normal(1000, 768), normal(1000, 768)
    yield (
        "adding to the residual stream of 1000 tokens in place",
        lambda: stream + added,
        lambda: np.add(stream, added, out=stream),
    )
    qkv = normal(3, 12, 1000, 64)
    yield (
        "attention of 1000 tokens, 64 queries at a time",
        lambda: attention_at_once(*qkv),
        lambda: attention_on_one_core(*qkv),
    )
    yield (
        "attention of 1000 tokens, heads on all cores",
        lambda: attention_on_one_core(*qkv),
        lambda: gpt2.attention(*qkv),
    )


def product_tricks():
    for n_in, n_out in (768, 3072), (3072, 768):
        matrices = [normal(n_in, n_out) for _ in range(40)]
        for n_rows in 2, 8, 16:
            x = normal(n_rows, n_in)
            yield (
                f"product of {n_rows} rows with 40 matrices of {n_in} x {n_out}",
                partial(by_blas, x, matrices),
                partial(by_product, x, matrices),
            )
    embedding = [normal(50257, 768).T]
    for n_rows in 2, 8, 32:
        x = normal(n_rows, 768)
        yield (
            f"product of {n_rows} rows with the transposed embedding",
            partial(by_blas, x, embedding),
            partial(by_product, x, embedding),
        )


def measure_tricks(rounds):
    """Return the lines of the table of tricks."""
    rows = []
    for name, without, trick in chain(prompt_tricks(), product_tricks()):
        n = max(1, int(0.005 / timed(without)[0]))  # calls per turn; the timed one is the warm-up
        timed(trick)
        seconds = common.medians({"without": (without, n), "with": (trick, n)}, rounds)
        a, b = seconds["without"] * 1e3, seconds["with"] * 1e3
        rows.append((name, f"{a:.3f}", f"{b:.3f}", f"{a / b:.2f}"))
    return common.table(["trick", "without, ms", "with, ms", "speed-up"], rows)


def passes(hparams, params):
    """Return a function that runs n_rows through the model after n_past cached positions."""
    cache = gpt2.new_cache(hparams["n_ctx"], hparams)
    cache[...] = 0.1
    return lambda n_rows, n_past: gpt2.gpt2(
        [5] * n_rows, **params, hparams=hparams, cache=cache, n_past=n_past, n_logits=n_rows
    )


def measure_passes(rounds):
    """Return the lines of two tables: one row at several positions, and several rows at once."""
    hparams = common.hparams_of("124M")
    narrow = {**hparams, "n_vocab": 64, "n_embd": hparams["n_head"]}
    params = init_params(hparams, RNG)
    full, calls = passes(hparams, params), passes(narrow, init_params(narrow, RNG))
    functions = {
        common.WEIGHTS: (common.read_weights(params), 3),
        "NumPy calls alone": (partial(calls, 1, 1), 30),
    }
    for n in 1, 200, 500, 990:
        functions[f"token at position {n}"] = partial(full, 1, n), 3
    seconds = common.medians(functions, rounds)
    weights = seconds[common.WEIGHTS]
    rows = [(name, f"{s * 1e3:.2f}", f"{s / weights:.2f}") for name, s in seconds.items()]
    lines = [*common.table(["pass of one row", "ms", "relative to reading the weights"], rows), ""]

    functions = {n: (partial(full, n, 100), 1) for n in (1, 2, 4, 8, 16, 32)}
    seconds = common.medians(functions, rounds)
    rows = []
    for n, s in seconds.items():
        rows.append((n, f"{s * 1e3:.1f}", f"{s / seconds[1]:.2f}", f"{s / seconds[1] / n:.2f}"))
    head = ["rows in a pass", "ms", "relative to one row", "the same, per row"]
    return [*lines, *common.table(head, rows)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="(15)")
    args = parser.parse_args()
    common.report("passes", measure_passes(args.rounds))
    common.report("tricks", measure_tricks(args.rounds))


if __name__ == "__main__":
    main()
