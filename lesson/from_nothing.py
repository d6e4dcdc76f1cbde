"""Train a small GPT from nothing, on 300 kB of Shakespeare. It takes about a minute on two cores.

    python lesson/from_nothing.py
    python lesson/from_nothing.py --steps 300 --seed 1

Here a token is one character. The first model only counts pairs of characters. The second one is a
GPT of one block that starts with random weights. Every hundred steps it writes a few lines, so you
can watch random letters turn into words. Lesson: step 20.
"""

import math
import os
import sys
import textwrap
import time
from pathlib import Path

# The matrices are so small that threads would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np  # noqa: E402

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import cli  # noqa: E402
from gpt2_pico import gpt2, softmax  # noqa: E402
from model_files.directory import flatten, nest, parameter_shapes  # noqa: E402
from training.backward import cross_entropy, gpt2_backward, gpt2_forward  # noqa: E402

N_CTX, N_EMBD, N_HEAD, EPS = 64, 64, 4, 1e-5
HPARAMS = {"n_head": N_HEAD, "layer_norm_epsilon": EPS}
BATCH, STEPS, RATE, WARMUP = 32, 1200, 0.02, 50

TEXT = (HERE / "shakespeare.txt").read_text(encoding="utf-8")
CHARS, IDS = np.unique(list(TEXT), return_inverse=True)  # the vocabulary; the text as ids
N_VOCAB, END = len(CHARS), len(IDS) * 9 // 10
LEARNED, HELD_OUT = IDS[:END], IDS[END:]  # no model learns from the last tenth


def bigram_loss():
    """Count which character follows which, and return the loss of this table on held-out text."""
    counts = np.ones((N_VOCAB, N_VOCAB))  # from 1: a pair that never occurs here is not impossible
    np.add.at(counts, (LEARNED[:-1], LEARNED[1:]), 1)  # one more for each pair of neighbours
    p = counts / counts.sum(1, keepdims=True)  # row i: the probabilities of what follows i
    return -np.log(p[HELD_OUT[:-1], HELD_OUT[1:]]).mean()


def random_weights(rng):
    """Return new parameters in a flat dict, {name: array}.

    If the weights of a matrix were all equal, they would all have the same gradient and stay equal.
    Random numbers make them different.
    """
    weights = {}
    for name, shape in parameter_shapes(N_VOCAB, N_CTX, N_EMBD, n_layer=1).items():
        if len(shape) == 2:
            weights[name] = rng.normal(0, 0.05, shape).astype(np.float32)
        elif name.endswith("bias"):
            weights[name] = np.zeros(shape, np.float32)
        else:  # the gain of a layer norm
            weights[name] = np.ones(shape, np.float32)
    return weights


def batch(rng):  # -> [BATCH, N_CTX + 1]
    """Return pieces of the text from random places."""
    starts = rng.integers(len(LEARNED) - N_CTX, size=(BATCH, 1))
    return LEARNED[starts + np.arange(N_CTX + 1)]  # [BATCH, 1] + [N_CTX + 1]


def loss_and_gradient(weights, ids):  # ids: [B, n + 1]
    """Return the mean loss of a batch, and its gradient, which is a dict like weights."""
    params = nest(weights)
    logits, kept = gpt2_forward(ids[:, :-1], **params, hparams=HPARAMS)
    loss, dlogits = cross_entropy(logits, ids[:, 1:].ravel())  # a sum over all tokens
    n_tokens = len(dlogits)
    dlogits /= n_tokens  # A mean does not grow with the batch, so one learning rate fits any size.
    return loss / n_tokens, flatten(gpt2_backward(dlogits, kept, **params, hparams=HPARAMS))


def held_out_loss(weights):
    n_pieces = (len(HELD_OUT) - 1) // N_CTX
    starts = N_CTX * np.arange(n_pieces)[:, None]
    ids = HELD_OUT[starts + np.arange(N_CTX + 1)]  # [n_pieces, N_CTX + 1]
    logits, _ = gpt2_forward(ids[:, :-1], **nest(weights), hparams=HPARAMS)
    return cross_entropy(logits, ids[:, 1:].ravel())[0] / (n_pieces * N_CTX)


def clip(gradient):
    """Shorten the gradient to length 1 if it is longer, so that no single batch changes much."""
    length = math.sqrt(sum(float((g * g).sum()) for g in gradient.values()))
    for g in gradient.values():
        g /= max(1, length)


def adam(w, g, m, v, rate, step):
    """Update an array of weights in place: Kingma and Ba 2015."""
    m += 0.1 * (g - m)  # the mean of about the last 10 gradients
    v += 0.01 * (g * g - v)  # the mean of about the last 100 squared gradients
    # Both start at 0: after one step, m is a tenth of g, and v a hundredth of g's square.
    mean = m / (1 - 0.9**step)
    square = v / (1 - 0.99**step)
    # The root of the square is the usual size of the gradient. So a weight moves by about the rate
    # at most, however large or small its gradients are. 1e-8 keeps us from dividing by 0.
    w -= rate * mean / (np.sqrt(square) + 1e-8)


def train(n_steps, seed=0):
    """Yield the loss and the weights before each step, and after the last one.

    The weights are always the same arrays: each step changes the numbers in them.
    """
    rng = np.random.default_rng(seed)
    weights = random_weights(rng)
    m = {name: np.zeros_like(w) for name, w in weights.items()}
    v = {name: np.zeros_like(w) for name, w in weights.items()}
    for step in range(n_steps + 1):
        loss, gradient = loss_and_gradient(weights, batch(rng))
        yield loss, weights
        clip(gradient)
        warm_up = min((step + 1) / WARMUP, 1)  # rises from nearly 0 to 1
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / n_steps)  # falls from 1 to 0
        for name, g in gradient.items():
            adam(weights[name], g, m[name], v[name], RATE * warm_up * cosine, step + 1)


def write(weights, n=160):
    """Return text that the model writes after a line break."""
    rng = np.random.default_rng(0)
    ids = [int(np.flatnonzero(CHARS == "\n")[0])]
    for _ in range(n):
        logits = gpt2(ids[-N_CTX:], **nest(weights), n_head=N_HEAD, eps=EPS)[-1]
        p = softmax(logits.astype(np.float64) / 0.8)  # temperature 0.8
        ids.append(rng.choice(N_VOCAB, p=p))
    return "".join(CHARS[ids]).strip()


def work(args):
    """Count pairs, train a model, and print what they reach."""
    print(f"{len(LEARNED):,} characters to learn from, {len(HELD_OUT):,} held out")
    print(f"blind guessing, {N_VOCAB} characters: held-out loss {math.log(N_VOCAB):.3f}")
    print(f"counting pairs: held-out loss {bigram_loss():.3f}")
    start = time.perf_counter()
    for step, (loss, weights) in enumerate(train(args.steps, args.seed)):
        if step % 100 == 0 or step == args.steps:
            held_out = held_out_loss(weights)
            print(f"\nstep {step}, {time.perf_counter() - start:.0f} s:", end=" ")
            print(f"loss {loss:.3f}, held-out loss {held_out:.3f}")
            for line in write(weights).splitlines():
                print(textwrap.indent(textwrap.fill(line, 76), "    "), flush=True)


def main():
    parser = cli.new_parser("lesson/from_nothing.py", __doc__.split("\n")[0])
    steps_help = f"how many batches to learn from ({STEPS})"
    parser.add_argument("--steps", type=cli.number(int, 1), default=STEPS, help=steps_help)
    seed_help = "the seed of all random numbers (0)"
    parser.add_argument("--seed", type=cli.number(int, 0), default=0, help=seed_help)
    return cli.run(parser, work)


if __name__ == "__main__":
    sys.exit(main())
