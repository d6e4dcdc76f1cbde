"""What each trick buys, kept or not: one function against the other, in turn, medians, ratio.

    python benchmarks/tricks.py

Shapes are those of 124M. Writes results/tricks.md; docs/speed.md says what became of each.
"""

if __name__ == "__main__":
    import common  # noqa: F401  # before NumPy: it says how long OpenBLAS's threads spin

import argparse
import math
from unittest.mock import patch

import numpy as np
from common import medians, report, table, timed

import backward
import gpt2

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape, np.float32)


def layers(n_in, n_out, n=40):
    """So many matrices that none is in the cache when its turn comes."""
    return [normal(n_in, n_out) for _ in range(n)]


def plain_layer_norm(x, g, b):
    x = x - x.mean(-1, keepdims=True)
    return g * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) + b


def product_layer_norm(x, g, b, mean):
    x = x - x @ mean
    x /= np.sqrt((x * x) @ mean + 1e-5)
    x *= g
    x += b
    return x


def whole_gelu(x):
    """All of x at a time."""
    with patch.object(gpt2, "PIECE", x.size):
        return gpt2.gelu(x)


def gelu_in_place(x):
    """Over its own input."""
    for i in gpt2.pieces(x):
        x[i] *= gpt2.normal_cdf(x[i])
    return x


def gelu_with_bias(x, b):
    """The layer's bias added on the way."""
    for i in gpt2.pieces(x):
        x[i] += b
        x[i] *= gpt2.normal_cdf(x[i])
    return x


def attention(q, k, v):
    """On one core."""
    with patch.object(gpt2, "SCORES", 2**62):
        return gpt2.attention(q, k, v)


def grouped_attention(q, k, v, n_heads=2, n_queries=128):
    """A few heads at a time, so that scores stay in a core's own cache."""
    future = np.triu(np.full((n_queries, n_queries), -np.inf, np.float32), 1)
    with patch.multiple(gpt2, N_QUERIES=n_queries, FUTURE=future):
        heads = [slice(i, i + n_heads) for i in range(0, len(q), n_heads)]
        return np.concatenate([attention(q[i], k[i], v[i]) for i in heads])


def product_sum_attention(q, k, v):
    """The rows' sums as products with ones."""
    n, d = q.shape[-2:]
    q, y, ones = q * (1 / math.sqrt(d)), np.empty_like(q), np.ones((n, 1), np.float32)
    for i in range(0, n, gpt2.N_QUERIES):
        j = min(i + gpt2.N_QUERIES, n)
        weights = gpt2.exp_scores(q[..., i:j, :], k[..., :j, :])
        np.matmul(weights, v[..., :j, :], out=y[..., i:j, :])
        y[..., i:j, :] /= weights @ ones[:j]
    return y


def full_attention(q, k, v):
    """All the scores at once, the upper triangle too."""
    n = q.shape[1]
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    scores += np.triu(np.full((n, n), -np.inf, np.float32), 1)
    return gpt2.softmax(scores) @ v


def keys_first_attention(q, k, v):
    """Scores as [keys, queries], so that maximum and sum go over rows."""
    n, d = q.shape[-2:]
    q, y = q * (1 / math.sqrt(d)), np.empty_like(q)
    for i in range(0, n, gpt2.N_QUERIES):
        j = min(i + gpt2.N_QUERIES, n)
        weights = k[..., :j, :] @ q[..., i:j, :].swapaxes(-1, -2)
        weights[..., i:, :] += gpt2.FUTURE[: j - i, : j - i].T
        weights -= weights.max(-2, keepdims=True)
        np.exp(weights, out=weights)
        y[..., i:j, :] = weights.swapaxes(-1, -2) @ v[..., :j, :]
        y[..., i:j, :] /= weights.sum(-2)[..., None]
    return y


def gelu_backward_anew(dy, x):
    """The gradient of gelu from x alone, with a second tanh."""
    c, dx = math.sqrt(2 / math.pi), np.empty_like(x)
    for i in gpt2.pieces(x):
        cdf = gpt2.normal_cdf(x[i])
        two_du = x[i] * x[i]
        two_du *= 6 * 0.044715 * c
        two_du += 2 * c
        two_du *= x[i]
        slope = 1 - cdf
        slope *= two_du
        slope += 1
        slope *= cdf  # cdf + x 2 cdf (1 - cdf) du/dx
        np.multiply(slope, dy[i], out=dx[i])
    return dx


def training_tricks():
    """The same for what a training step does with half a batch of the 10.8M shape in a layer."""
    x, dy = normal(2048, 1536), normal(2048, 1536)

    def with_slope():
        _, slope = backward.gelu_forward(x)
        return backward.gelu_backward(slope, dy)  # overwrites the slope: the next round needs dy

    yield (
        "gelu and its gradient, 2048 x 1536: its slope kept",
        lambda: (gpt2.gelu(x), gelu_backward_anew(dy, x)),
        with_slope,
    )
    qkv, dy_heads = normal(8, 3, 6, 256, 64), normal(8, 6, 256, 64)
    kept, compute = [], gpt2.exp_scores

    def keep(q, k):
        kept.append(compute(q, k))
        return kept[-1]

    def both(forward_scores, backward_scores):
        for sequence, dy in zip(qkv, dy_heads):
            with patch.object(gpt2, "exp_scores", forward_scores):
                y = attention(*sequence)
            with patch.object(backward, "exp_scores", backward_scores):
                backward.attention_backward(dy, y, sequence)

    yield (
        "attention and its gradient, 8 sequences of 256: its weights kept",
        lambda: both(compute, compute),
        lambda: both(keep, lambda q, k: kept.pop(0)),
    )


def tricks():
    """Yield name, function without the trick, function with it."""
    one, g, b = normal(1, 768), normal(768), normal(768)
    mean = np.full((768, 1), 1 / 768, np.float32)
    yield (
        "layer_norm of a token: in place",
        lambda: plain_layer_norm(one, g, b),
        lambda: gpt2.layer_norm(one, g=g, b=b, eps=1e-5),
    )
    yield (
        "layer_norm of a token: means as products, too",
        lambda: gpt2.layer_norm(one, g=g, b=b, eps=1e-5),
        lambda: product_layer_norm(one, g, b, mean),
    )
    many = normal(1000, 3072)
    yield "gelu of 1000 tokens: in pieces", lambda: whole_gelu(many), lambda: gpt2.gelu(many)
    bias = normal(3072)
    yield (
        "bias and gelu of 1000 tokens: gelu in place",
        lambda: gpt2.gelu(many + bias),
        lambda: gelu_in_place(many + bias),
    )
    yield (
        "bias and gelu of 1000 tokens: in the same pieces, too",
        lambda: gpt2.gelu(many + bias),
        lambda: gelu_with_bias(many.copy(), bias),
    )
    few, residual = normal(1000, 768), normal(1000, 768)
    yield (
        "residual of 1000 tokens: added in place",
        lambda: residual + few,
        lambda: np.add(residual, few, out=residual),
    )
    qkv = normal(3, 12, 1000, 64)
    yield (
        "attention of 1000 tokens: lower triangle in pieces",
        lambda: full_attention(*qkv),
        lambda: attention(*qkv),
    )
    yield (
        "attention of 1000 tokens: scores as [keys, queries], too",
        lambda: attention(*qkv),
        lambda: keys_first_attention(*qkv),
    )
    yield (
        "attention of 1000 tokens: two heads and 128 queries at a time",
        lambda: attention(*qkv),
        lambda: grouped_attention(*qkv),
    )
    yield (
        "attention of 1000 tokens: the rows' sums as products",
        lambda: attention(*qkv),
        lambda: product_sum_attention(*qkv),
    )
    yield (
        "attention of 1000 tokens: its heads on all cores",
        lambda: attention(*qkv),
        lambda: gpt2.attention(*qkv),
    )
    for n_in, n_out in (768, 3072), (3072, 768):
        stored = layers(n_in, n_out)
        turned = [np.ascontiguousarray(w.T) for w in stored]
        for rows in 1, 8, 32:
            x = normal(rows, n_in)
            name = f"{rows} x {n_in} x {n_out}"
            yield (
                f"{name}: matrices stored transposed",
                lambda x=x, s=stored: [x @ w for w in s],
                lambda x=x, t=turned: [x @ w.T for w in t],
            )
            if rows > 1:
                yield (
                    f"{name}: as (w.T @ x.T).T",
                    lambda x=x, s=stored: [x @ w for w in s],
                    lambda x=x, s=stored: [(w.T @ x.T).T for w in s],
                )
        for rows in 2, 4, 8, 16:
            x = normal(rows, n_in)
            yield (
                f"{rows} x {n_in} x {n_out}: in small pieces",
                lambda x=x, s=stored: [x @ w for w in s],
                lambda x=x, s=stored: [gpt2.product(x, w) for w in s],
            )
    table = normal(50257, 768).T
    for rows in 2, 8, 32:
        x = normal(rows, 768)
        yield (
            f"{rows} x 768 x 50257, transposed: in small pieces",
            lambda x=x: x @ table,
            lambda x=x: gpt2.product(x, table),
        )
    yield from training_tricks()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    rows = []
    for name, without, trick in tricks():
        n = max(1, int(0.005 / timed(without)[0]))  # the warm-up says how often a turn repeats it
        timed(trick)
        times = medians({"without": (without, n), "with": (trick, n)}, args.rounds)
        a, b = times["without"] * 1e3, times["with"] * 1e3
        rows.append((name, f"{a:.3f}", f"{b:.3f}", f"{a / b:.2f}"))
        print(*rows[-1], flush=True)
    report("tricks", table(["trick", "without, ms", "with, ms", "speed-up"], rows))


if __name__ == "__main__":
    main()
