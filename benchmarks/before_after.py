"""Two checkouts of this project side by side: is the one that holds this script any slower?

    python benchmarks/before_after.py OTHER_CHECKOUT MODEL_DIRECTORY [--rounds N]

The model is of GPT-2's vocabulary and context, such as peers.py --models keeps. In each round the
checkouts take turns at each job, neither always the first, every time in a new process that imports
that checkout's code; the figures are medians over the rounds. Decoding and prefill are as in
peers.py, a step as in train_step.py, and the whole process is a fresh interpreter that completes a
prompt. It says so if tokens or losses are not the same on both sides, and writes no file.
"""

import argparse
import os
import subprocess
import sys
from statistics import median

import peers
import train_step
from common import ROOT, blas_threads, machine, run_worker, table, timed, work

THREADS = os.cpu_count()
JOBS = [
    ("speeds", "NumPy plain", "without", (40,), (128, 512, 1000)),  # tokens decoded, read
    ("speeds", "NumPy", "with", (40, 200), ()),
    ("training", "0.8M"),
    ("training", "4.8M"),
    ("whole",),
]

# Jobs: each returns {figure: seconds} and what has to be the same on both sides


def speeds(checkout, model, method, with_or_without, decode, prefill):
    use(checkout)
    found = peers.speeds(model, method, THREADS, decode, prefill)
    seconds = {f"{n} tokens, {with_or_without} drafts": s for n, s in found["decode"].items()}
    seconds |= {f"prompt of {n} tokens": s for n, s in found["prefill"].items()}
    return seconds, found["tokens"]


def training(checkout, model, name):
    use(checkout)
    shape = train_step.SHAPES[name]
    steps = train_step.numpy_side(shape, THREADS)
    seconds, losses = zip(*[timed(next, steps) for _ in range(shape[-1])])
    return {f"training step, {name}": median(seconds[1:])}, [f"{loss:.4f}" for loss in losses]


def whole(checkout, model):
    command = [sys.executable, f"{checkout}/gpt2.py", peers.PROMPT, "--model_size", model]
    seconds, printed = timed(subprocess.check_output, [*command, "--n_tokens_to_generate", "40"])
    return {"whole process, 40 tokens": seconds}, printed.decode()


def use(checkout):
    """Import from a checkout. One from before gpt2.Drafts needs the two functions below, which can
    go when no such checkout is compared any more."""
    sys.path.insert(0, checkout)
    import gpt2

    if not hasattr(gpt2, "Drafts"):
        peers.numpy_method, train_step.numpy_side = old_method, old_side


def old_method(directory, options):
    import gpt2
    from utils import load_encoder_hparams_and_params

    _, hparams, params = load_encoder_hparams_and_params(directory, "")
    n_head, options = hparams["n_head"], {"max_draft": 0} if "longest" in options else {}
    model, cache = {**params, "n_head": n_head, "n_logits": 1}, gpt2.new_cache
    return (
        lambda ids, n: list(gpt2.generate(ids, params, n_head, n, **options)),
        lambda ids: gpt2.gpt2(ids, **model, cache=cache(params, n_head, len(ids))),
    )


def old_side(shape, threads):
    import train

    (n_layer, _, n_embd, n_ctx, *_), rng = shape, train.np.random.default_rng(0)
    params = train.init_params(train_step.N_VOCAB, n_ctx, n_embd, n_layer, rng)
    args = argparse.Namespace(optimizer="adamw", weight_decay=train_step.DECAY, dropout=0, seed=0)
    state, rest = train.new_state(params, threads), (train_step.hparams_of(shape), args)
    with train.ThreadPoolExecutor(threads) as pool:
        for step in train_step.count(1):
            ids = train_step.batch(shape, step)
            yield train.train_step(pool, state, ids, step, train_step.LR, *rest)


def main():
    if sys.argv[1:2] == ["--worker"]:
        return work(speeds, training, whole)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("other", type=os.path.abspath, metavar="OTHER_CHECKOUT")
    parser.add_argument("model", type=os.path.abspath, metavar="MODEL_DIRECTORY")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    sides, times = {"other": args.other, "this": ROOT}, {}
    for i in range(args.rounds):
        for name, *rest in JOBS:
            env, results = blas_threads(1 if name == "training" else THREADS), []
            for side in list(sides)[:: 1 if i % 2 else -1]:
                job = name, sides[side], args.model, *rest
                seconds, result = run_worker(__file__, *job, env=env)
                results.append(result)
                for figure, s in seconds.items():
                    times.setdefault(figure, {"other": [], "this": []})[side].append(s * 1e3)
            if results[0] != results[1]:
                print(f"the results of {', '.join(seconds)} DIFFER", file=sys.stderr)
    medians = [(figure, *map(median, columns.values())) for figure, columns in times.items()]
    rows = [(figure, f"{a:.1f}", f"{b:.1f}", f"{a / b:.2f}") for figure, a, b in medians]
    head = ["figure, ms", *sides, "other / this"]
    print("\n".join([*table(head, rows), "", machine(THREADS, ("numpy",))]))


if __name__ == "__main__":
    main()
