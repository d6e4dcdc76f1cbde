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
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

N_VOCAB, EPS, LR, DECAY = 65, 1e-5, 1e-3, 0.1  # 65: the characters of tiny Shakespeare
SHAPES = {  # n_layer, n_head, n_embd, n_ctx, batch, steps in a group
    "0.8M": (4, 4, 128, 64, 12, 21),
    "4.8M": (6, 8, 256, 256, 16, 3),
    "10.8M": (6, 6, 384, 256, 16, 3),
}


def start_side(shape):
    """-> weights and the batch of a step, ids [batch, n_ctx + 1]; the same on both sides."""
    import numpy as np

    from train import init_params

    n_layer, _, n_embd, n_ctx, batch, _ = shape
    params = init_params(N_VOCAB, n_ctx, n_embd, n_layer, np.random.default_rng(0))

    def ids(step):
        return np.random.default_rng(step).integers(N_VOCAB, size=(batch, n_ctx + 1))

    return params, ids


def numpy_side(shape, threads):
    """-> function of a step's number that takes the step and returns the loss."""
    from concurrent.futures import ThreadPoolExecutor

    import train

    params, ids = start_side(shape)
    state, pool = train.new_state(params, threads), ThreadPoolExecutor(threads)
    hparams = {"n_head": shape[1], "layer_norm_epsilon": EPS}
    args = SimpleNamespace(optimizer="adamw", weight_decay=DECAY, dropout=0, seed=0)
    return lambda step: train.train_step(pool, state, ids(step), step, LR, hparams, args)


def products_side(shape, threads):
    """A step's products of matrices alone, a share of the batch on each thread."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    import train

    params, _ = start_side(shape)
    _, _, n_embd, n_ctx, batch, _ = shape
    weights = [w for name, w in train.flatten(params).items() if train.kind(name, w) == 0]
    weights.append(params["wte"].T)
    x = np.ones((batch * n_ctx // threads, 4 * n_embd), np.float32)
    pool = ThreadPoolExecutor(threads)

    def work(_):
        for w in weights:
            x_in, dy = x[:, : w.shape[0]], x[:, : w.shape[1]]
            x_in @ w, dy @ w.T, x_in.T @ dy
        return 0.0

    return lambda step: sum(pool.map(work, range(threads)))


def torch_side(shape, threads):
    """The same model as modules, as nanoGPT writes it: one fused projection, tied embeddings."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(threads)
    n_layer, n_head, e, n_ctx, _, _ = shape

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(e, EPS), nn.LayerNorm(e, EPS)
            self.c_attn, self.attn_c_proj = nn.Linear(e, 3 * e), nn.Linear(e, e)
            self.c_fc, self.mlp_c_proj = nn.Linear(e, 4 * e), nn.Linear(4 * e, e)

        def forward(self, x):
            b, n, _ = x.shape
            q, k, v = (
                y.view(b, n, n_head, e // n_head).transpose(1, 2)
                for y in self.c_attn(self.ln_1(x)).split(e, dim=2)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.attn_c_proj(y.transpose(1, 2).reshape(b, n, e))
            y = F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh")
            return x + self.mlp_c_proj(y)

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(N_VOCAB, e), nn.Embedding(n_ctx, e)
            self.blocks = nn.ModuleList(Block() for _ in range(n_layer))
            self.ln_f = nn.LayerNorm(e, EPS)

        def forward(self, ids):
            x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
            for block in self.blocks:
                x = block(x)
            return F.linear(self.ln_f(x), self.wte.weight)

    params, ids = start_side(shape)
    model = GPT()
    with torch.no_grad():
        model.wte.weight.copy_(torch.from_numpy(params["wte"]))
        model.wpe.weight.copy_(torch.from_numpy(params["wpe"]))
        for block, p in zip(model.blocks, params["blocks"]):
            for linear, w in (
                (block.c_attn, p["attn"]["c_attn"]["w"]),
                (block.attn_c_proj, p["attn"]["c_proj"]["w"]),
                (block.c_fc, p["mlp"]["c_fc"]["w"]),
                (block.mlp_c_proj, p["mlp"]["c_proj"]["w"]),
            ):
                linear.weight.copy_(torch.from_numpy(w.T))
                linear.bias.zero_()
    parts = [
        {"params": [p for p in model.parameters() if p.ndim == n], "weight_decay": decay}
        for n, decay in ((2, DECAY), (1, 0.0))
    ]
    optimizer = torch.optim.AdamW(parts, lr=LR, betas=(0.9, 0.99), eps=1e-8, fused=True)

    def take(step):
        batch = torch.from_numpy(ids(step))
        logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.reshape(-1, N_VOCAB), batch[:, 1:].reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return take


SIDES = {"numpy": numpy_side, "torch": torch_side, "products": products_side}


def serve(side, shape, threads):
    """Worker: for each number n on stdin, take n steps; answer with [seconds, loss] of each."""
    take, step = SIDES[side](shape, threads), 0
    for line in sys.stdin:
        result = []
        for _ in range(int(line)):
            step += 1
            start = time.perf_counter()
            loss = take(step)
            result.append((time.perf_counter() - start, loss))
        print(json.dumps(result), flush=True)


def start_worker(side, name, threads):
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--worker", side, "--shapes", name]
    return subprocess.Popen(
        [*command, "--threads", str(threads)],
        env=env,
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
    _, _, _, n_ctx, batch, group = SHAPES[name]
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
    ours, theirs = median(seconds["numpy"]), median(seconds["torch"])
    print(
        f"{name}: {ours * 1e3:.1f} ms, PyTorch {theirs * 1e3:.1f} ms, ratio of the speeds "
        f"{theirs / ours:.2f}; losses at most {apart:.1e} apart",
        flush=True,
    )
    n_layer, n_head, n_embd, *_ = SHAPES[name]
    return (
        f"| {name} ({n_layer}, {n_head}, {n_embd}, {n_ctx}, {batch}) | {ours * 1e3:.1f} "
        f"| {theirs * 1e3:.1f} | {theirs / ours:.2f} "
        f"| {median(seconds['products']) * 1e3:.1f} | {batch * n_ctx / ours:,.0f} "
        f"| {apart:.1e} in {len(losses['numpy'])} steps |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", default=",".join(SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=10, help="groups of steps of each side (10)")
    parser.add_argument("--quick", action="store_true", help="two rounds; writes no file")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return serve(args.worker, SHAPES[args.shapes], args.threads)
    from peers import machine

    head = [
        "| parameters (n_layer, n_head, n_embd, n_ctx, batch) | NumPy ms | PyTorch ms "
        "| speed of NumPy / PyTorch | products alone ms | tokens/s | losses apart |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = [
        compare(name, args.threads, 2 if args.quick else args.rounds)
        for name in args.shapes.split(",")
    ]
    text = "\n".join(
        [
            "One training step, median; see benchmarks/train_step.py for the method.",
            "",
            *head,
            *rows,
            "",
            machine(args.threads, ("numpy", "torch")),
            "",
        ]
    )
    print(text)
    if not args.quick:
        (ROOT / "benchmarks" / "results" / "train_step.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
