"""Compare the time of a training step with PyTorch, for the same weights, data and cores.

    pip install torch
    python benchmarks/train_step.py

The two sides take turns, each in its own process. Each turn starts from the same weights, and its
first step is not counted. Both sides clip the gradient to norm 1 and take steps of AdamW, with
weight decay on matrices and without dropout. The losses of all steps are compared, so a fast but
wrong step would be noticed. PyTorch runs eagerly, with its fused attention and fused AdamW.
"Matrix products alone" is the time that NumPy needs for the matrix products of the linear layers,
forward and backward, and nothing else.

Writes results/train_step.md, and the table in docs/speed.md.
"""

import argparse
from itertools import count
from statistics import median

import common
import numpy as np
from common import N_THREADS, run_worker, timed

N_VOCAB, EPS, LEARNING_RATE, DECAY = 65, 1e-5, 1e-3, 0.1  # 65: the characters of tiny Shakespeare
SHAPES = {  # {parameters: (n_layer, n_head, n_embd, n_ctx, batch size)}
    "0.8M": (4, 4, 128, 64, 12),
    "4.8M": (6, 8, 256, 256, 16),
    "10.8M": (6, 6, 384, 256, 16),
}
STEPS = {"0.8M": 100, "4.8M": 8, "10.8M": 5}  # per turn


def hparams_of(shape):
    names = ("n_layer", "n_head", "n_embd", "n_ctx")
    return {**dict(zip(names, shape)), "n_vocab": N_VOCAB, "layer_norm_epsilon": EPS}


def start_params(shape):
    from training.run import init_params

    return init_params(hparams_of(shape), np.random.default_rng(0))


def batch(shape, step):  # -> [batch, n_ctx + 1] ids, the same for both sides
    return np.random.default_rng(step).integers(N_VOCAB, size=(shape[4], shape[3] + 1))


# The sides. Each takes one step after the other, and yields the loss of each.


def numpy_side(shape):
    from evaluate import worker_threads
    from train import batch_gradient, sum_gradients
    from training.optimizer import Optimizer, clip

    hparams = hparams_of(shape)
    optimizer = Optimizer(start_params(shape), N_THREADS, DECAY, by_muon=False)
    with worker_threads(N_THREADS) as pool:
        for step in count(1):
            ids = batch(shape, step)
            loss = batch_gradient(pool, optimizer, ids, hparams, dropout=0, seed=(0, step))
            scale = clip(sum_gradients(pool, optimizer.g))
            optimizer.update(scale, LEARNING_RATE, step, pool)
            yield loss


def products_side(shape):
    """Only compute the matrix products of a step. Each thread takes its part of the batch."""
    from evaluate import worker_threads

    _, _, n_embd, n_ctx, size = shape
    weights = list(common.matrices(start_params(shape)))
    x = np.ones((size * n_ctx // N_THREADS, 4 * n_embd), np.float32)

    def multiply(_):
        for w in weights:
            x_in, dy = x[:, : w.shape[0]], x[:, : w.shape[1]]
            x_in @ w, dy @ w.T, x_in.T @ dy

    with worker_threads(N_THREADS) as pool:
        while True:
            list(pool.map(multiply, range(N_THREADS)))
            yield 0.0


def torch_side(shape):
    """Train the same model in PyTorch, with its fused attention and fused AdamW."""
    import torch
    from torch.nn import functional as F

    from model_files.directory import flatten

    torch.set_num_threads(N_THREADS)
    n_layer, n_head, e, _, _ = shape
    params = {}
    for name, x in flatten(start_params(shape)).items():
        x = x.T if name.startswith("h.") and x.ndim == 2 else x  # F.linear expects [out, in].
        params[name] = torch.from_numpy(x).contiguous().requires_grad_()

    def linear(x, name):
        return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])

    def layer_norm(x, name):
        return F.layer_norm(x, (e,), params[f"{name}.weight"], params[f"{name}.bias"], EPS)

    def heads(x):  # [batch, n, e] -> [batch, h, n, d]
        return x.view(*x.shape[:2], n_head, e // n_head).transpose(1, 2)

    def gpt(ids):
        x = F.embedding(ids, params["wte.weight"]) + params["wpe.weight"]
        for i in range(n_layer):
            qkv = linear(layer_norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
            q, k, v = map(heads, qkv.split(e, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + linear(y.transpose(1, 2).flatten(2), f"h.{i}.attn.c_proj")
            y = linear(layer_norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
            x = x + linear(F.gelu(y, approximate="tanh"), f"h.{i}.mlp.c_proj")
        return F.linear(layer_norm(x, "ln_f"), params["wte.weight"])

    groups = [
        {"params": [x for x in params.values() if x.ndim == n], "weight_decay": decay}
        for n, decay in ((2, DECAY), (1, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True)
    for step in count(1):
        ids = torch.from_numpy(batch(shape, step))
        logits = gpt(ids[:, :-1])
        loss = F.cross_entropy(logits.reshape(-1, N_VOCAB), ids[:, 1:].reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        optimizer.step()
        yield loss.item()


SIDES = {"numpy": numpy_side, "torch": torch_side, "products": products_side}


def steps(side, name, n):
    """Take n steps from the initial weights; return [seconds, loss] of each."""
    losses = SIDES[side](SHAPES[name])
    return [timed(next, losses) for _ in range(n)]


def compare(name, rounds):
    """Return a row of the table."""
    shape, n_steps = SHAPES[name], STEPS[name]
    seconds = {side: [] for side in SIDES}
    losses = {}
    for i in range(rounds):
        sides = list(seconds) if i % 2 else list(seconds)[::-1]  # so that no side is always first
        for side in sides:
            turn = run_worker(__file__, "steps", side, name, n_steps)
            seconds[side] += [second for second, _ in turn[1:]]
            losses[side] = [loss for _, loss in turn]
    difference = max(abs(ours - theirs) for ours, theirs in zip(losses["numpy"], losses["torch"]))
    ours, theirs, products = (median(column) * 1e3 for column in seconds.values())
    n_tokens = shape[3] * shape[4]
    return (
        f"{name} ({', '.join(map(str, shape))})",
        f"{ours:.1f}",
        f"{theirs:.1f}",
        f"{theirs / ours:.2f}",
        f"{products:.1f}",
        f"{n_tokens / ours * 1e3:,.0f}",
        f"{difference:.1e} in {n_steps} steps",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", default=",".join(SHAPES), help=f"any of {', '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=5, help="(5)")
    parser.add_argument("--quick", action="store_true", help="one round, and no file is written")
    args = parser.parse_args()
    head = [
        "parameters (layers, heads, width, context, batch)",
        "this project, ms per step",
        "PyTorch, ms per step",
        "this project's speed relative to PyTorch's",
        "matrix products alone, ms",
        "this project, tokens/s",
        "losses differ by at most",
    ]
    rounds = 1 if args.quick else args.rounds
    rows = [compare(name, rounds) for name in args.shapes.split(",")]
    lines = common.table(head, rows)
    common.report("train_step", lines, ("numpy", "torch"), write=not args.quick)


if __name__ == "__main__":
    common.start(main, steps)
