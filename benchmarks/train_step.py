"""Time of a training step, ours and PyTorch's, on the same weights, data and cores.

    pip install torch matplotlib && python benchmarks/train_step.py

Each side runs in a process of its own, so that its thread settings are its own; they take turns,
a group of steps each, and the first step of a group is not counted. Both do AdamW (weight decay
on matrices) after clipping the gradient to norm 1, without dropout, and start from the same
weights: the losses of the same step are compared, so that a fast wrong step is noticed. PyTorch
is eager, with its fused attention and its fused AdamW. "Products alone" is what NumPy takes for the
matrix products of a step's linear layers, forward and backward, and nothing else.
Writes results/train_step.md.
"""

import argparse
import json
import os
import subprocess
import sys
from itertools import count
from statistics import median

from common import blas_threads, matrices, report, table, timed
from goals import of_step

N_VOCAB, EPS, LR, DECAY = 65, 1e-5, 1e-3, 0.1  # 65: the characters of tiny Shakespeare
SHAPES = {  # n_layer, n_head, n_embd, n_ctx, batch, steps in a group
    "0.8M": (4, 4, 128, 64, 12, 21),
    "4.8M": (6, 8, 256, 256, 16, 3),
    "10.8M": (6, 6, 384, 256, 16, 3),
}


def hparams_of(shape):
    names = ("n_layer", "n_head", "n_embd", "n_ctx")
    return {**dict(zip(names, shape)), "n_vocab": N_VOCAB, "layer_norm_epsilon": EPS}


def start_params(shape):
    import numpy as np

    from training_run import init_params

    return init_params(hparams_of(shape), np.random.default_rng(0))


def batch(shape, step):  # -> [batch, n_ctx + 1] ids, the same on both sides
    import numpy as np

    return np.random.default_rng(step).integers(N_VOCAB, size=(shape[4], shape[3] + 1))


# The sides: each yields the loss of one step after the other.


def numpy_side(shape, threads):
    from optimizer import Optimizer, clip
    from train import loss_and_gradient, sum_gradients, worker_threads

    hparams = hparams_of(shape)
    optimizer = Optimizer(start_params(shape), threads, DECAY, by_muon=False)
    with worker_threads(threads) as pool:
        for step in count(1):
            ids = batch(shape, step)
            loss = loss_and_gradient(pool, optimizer, ids, hparams, dropout=0, seed=(0, step))
            scale = clip(sum_gradients(pool, optimizer.g))
            optimizer.update(scale, LR, step, pool)
            yield loss


def products_side(shape, threads):
    """A step's products of matrices alone, a share of the batch on each thread."""
    import numpy as np

    from train import worker_threads

    _, _, n_embd, n_ctx, size, _ = shape
    weights = matrices(start_params(shape))
    x = np.ones((size * n_ctx // threads, 4 * n_embd), np.float32)

    def multiply(_):
        for w in weights:
            x_in, dy = x[:, : w.shape[0]], x[:, : w.shape[1]]
            x_in @ w, dy @ w.T, x_in.T @ dy

    with worker_threads(threads) as pool:
        while True:
            list(pool.map(multiply, range(threads)))
            yield 0.0


def torch_side(shape, threads):
    """The same model as modules, as nanoGPT writes it: one fused projection, tied embeddings."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from model_files.parameters import flatten
    from optimizer import MATRIX, kind

    torch.set_num_threads(threads)
    n_layer, n_head, e, n_ctx, _, _ = shape

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(e, EPS), nn.LayerNorm(e, EPS)
            self.attn = nn.ModuleDict({"c_attn": nn.Linear(e, 3 * e), "c_proj": nn.Linear(e, e)})
            self.mlp = nn.ModuleDict({"c_fc": nn.Linear(e, 4 * e), "c_proj": nn.Linear(4 * e, e)})

        def forward(self, x):
            b, n, _ = x.shape
            q, k, v = (
                y.view(b, n, n_head, e // n_head).transpose(1, 2)
                for y in self.attn.c_attn(self.ln_1(x)).split(e, dim=2)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.attn.c_proj(y.transpose(1, 2).reshape(b, n, e))
            y = F.gelu(self.mlp.c_fc(self.ln_2(x)), approximate="tanh")
            return x + self.mlp.c_proj(y)

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(N_VOCAB, e), nn.Embedding(n_ctx, e)
            self.h = nn.ModuleList(Block() for _ in range(n_layer))
            self.ln_f = nn.LayerNorm(e, EPS)

        def forward(self, ids):
            x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
            for block in self.h:
                x = block(x)
            return F.linear(self.ln_f(x), self.wte.weight)

    model, tensors = GPT(), flatten(start_params(shape))
    model.load_state_dict(
        {
            name: torch.from_numpy(x.T if kind(name, x) == MATRIX else x)
            for name, x in tensors.items()
        }
    )
    parts = [
        {"params": [p for p in model.parameters() if p.ndim == n], "weight_decay": decay}
        for n, decay in ((2, DECAY), (1, 0.0))
    ]
    optimizer = torch.optim.AdamW(parts, lr=LR, betas=(0.9, 0.99), eps=1e-8, fused=True)
    for step in count(1):
        ids = torch.from_numpy(batch(shape, step))
        logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.reshape(-1, N_VOCAB), ids[:, 1:].reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


SIDES = {"numpy": numpy_side, "torch": torch_side, "products": products_side}


def serve(side, name, threads):
    """Worker: for each number n on stdin, take n steps; answer with [seconds, loss] of each."""
    steps = SIDES[side](SHAPES[name], int(threads))
    for line in sys.stdin:
        print(json.dumps([timed(next, steps) for _ in range(int(line))]), flush=True)


def start_worker(side, name, threads):
    return subprocess.Popen(
        [sys.executable, __file__, "--worker", side, name, str(threads)],
        env=blas_threads(threads if side == "torch" else 1),
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def take_steps(worker, n):
    print(n, file=worker.stdin, flush=True)
    answer = worker.stdout.readline()
    if not answer:
        sys.exit(f"a worker ended: {' '.join(worker.args)}")
    return json.loads(answer)


def compare(name, threads, rounds):
    """-> a row of the table: medians of both sides, their ratio, tokens a second."""
    *shape, group = SHAPES[name]
    workers = {side: start_worker(side, name, threads) for side in SIDES}
    seconds, losses = {side: [] for side in SIDES}, {side: [] for side in SIDES}
    for i in range(rounds):
        for side in list(SIDES)[:: 1 if i % 2 else -1]:  # neither is always the first
            answer = take_steps(workers[side], group)
            seconds[side] += [second for second, _ in answer[1:]]
            losses[side] += [loss for _, loss in answer]
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    apart = max(abs(a - b) for a, b in zip(losses["numpy"], losses["torch"]))
    ours, theirs, products = (median(seconds[side]) * 1e3 for side in SIDES)
    print(
        f"{name}: {ours:.1f} ms, PyTorch {theirs:.1f} ms, ratio of the speeds "
        f"{theirs / ours:.2f}; losses at most {apart:.1e} apart",
        flush=True,
    )
    n_tokens = SHAPES[name][3] * SHAPES[name][4]
    return (
        f"{name} ({', '.join(map(str, shape))})",
        f"{ours:.1f}",
        f"{theirs:.1f}",
        f"{theirs / ours:.2f}",
        f"{products:.1f}",
        f"{n_tokens / ours * 1e3:,.0f}",
        f"{apart:.1e} in {len(losses['numpy'])} steps",
    )


def main():
    if sys.argv[1:2] == ["--worker"]:
        return serve(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", default=",".join(SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=10, help="groups of steps of each side (10)")
    parser.add_argument("--quick", action="store_true", help="two rounds; writes no file")
    args = parser.parse_args()
    head = [
        "parameters (n_layer, n_head, n_embd, n_ctx, batch)",
        "NumPy ms",
        "PyTorch ms",
        "speed of NumPy / PyTorch",
        "products alone ms",
        "tokens/s",
        "losses apart",
    ]
    rounds = 2 if args.quick else args.rounds
    rows = [compare(name, args.threads, rounds) for name in args.shapes.split(",")]
    lines = ["One training step, median; see benchmarks/train_step.py for the method.", ""]
    lines += [*table(head, rows), ""]
    lines += [of_step(name, float(row[3])) for name, row in zip(args.shapes.split(","), rows)]
    report("train_step", lines, ("numpy", "torch"), args.threads, write=not args.quick)


if __name__ == "__main__":
    main()
