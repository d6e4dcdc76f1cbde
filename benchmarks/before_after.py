"""Compare two checkouts of this project: has anything become slower, larger or different?

    python benchmarks/before_after.py OTHER_CHECKOUT MODEL_DIRECTORY

The model must have GPT-2's vocabulary and context, like benchmarks/weights/124M-repeats, which
peers.py makes. In each round, each job runs once with the code of either checkout, in new
processes. The table shows medians over the rounds. The ratio is the median of the rounds' ratios,
and the last column says in how many rounds the figure of this checkout was the larger one. If
tokens, printed text or losses differ, standard error says so. No file is written.
"""

import argparse
import csv
import os
import random
import sys
import tempfile
from pathlib import Path
from statistics import median

import common
from common import ROOT, timed
from peers import PROMPT, PROMPT_IDS

TRAINING = {  # name: (options of train.py, the steps at which the measured time starts and ends)
    "0.8M": ("--n_layer 4 --n_embd 128 --n_ctx 64 --batch_size 12", 10, 310),
    "4.8M": ("--n_layer 6 --n_head 8 --n_embd 256 --n_ctx 256 --batch_size 16", 10, 20),
}

# Jobs in a worker process: each returns {figure: value} and results, equal for both checkouts


def load(checkout, model):
    """Return generate, generate_many and Drafts of a checkout, and a model's (params, hparams)."""
    sys.path.remove(str(ROOT))  # If the other checkout lacks a module, ours must not replace it.
    sys.path.insert(0, checkout)
    from batch import generate_many
    from gpt2 import generate
    from utils import load_encoder_hparams_and_params

    try:
        from fast import Drafts
    except ImportError:  # checkouts from before fast.py
        from drafts import Drafts
    _, hparams, params = load_encoder_hparams_and_params(model, "models")
    return generate, generate_many, Drafts, (params, {**hparams, "eos_token_ids": []})


def one_text(checkout, model):
    generate, _, Drafts, model = load(checkout, model)
    figures, tokens = {}, []
    for n in 128, 512, 1000:
        ids = [i * 7919 % 50000 for i in range(n)]
        list(generate(ids, *model, 1))  # the first call also allocates memory
        seconds, new = timed(list, generate(ids, *model, 1))
        figures[f"prompt of {n}, ms"] = seconds * 1e3
        tokens.append(new)
    for n in 40, 200:
        for name, options in {"without drafts": [0], "with drafts": []}.items():
            text = generate(PROMPT_IDS, *model, n, drafts=Drafts(*options))
            seconds, new = timed(list, text)  # Making the list computes the tokens.
            figures[f"{n} tokens {name}, ms"] = seconds * 1e3
            tokens.append(new)
    return figures, tokens


def many_texts(checkout, model):
    _, generate_many, _, model = load(checkout, model)
    rng, figures, tokens = random.Random(0), {}, []
    texts = [rng.choices(range(50_000), k=rng.randrange(5, 31)) for _ in range(32)]
    for size, n in (1, 8), (8, 16), (32, 32):
        seconds, pairs = timed(list, generate_many(texts[:n], *model, 20, batch_size=size))
        figures[f"{n} texts of 20 tokens, {size} at once, ms"] = seconds * 1e3
        tokens.append([[id_ for j, id_ in pairs if j == i] for i in range(n)])
    return figures, tokens


# Jobs that run a command of the checkout


def whole_process(checkout, model):
    command = [sys.executable, f"{checkout}/gpt2.py", PROMPT, "--model_size", model]
    seconds, peak, printed = common.run_program([*command, "--n_tokens_to_generate", "40"])
    name = "whole process, 40 tokens"
    return {f"{name}, ms": seconds * 1e3, f"{name}, peak memory, MiB": peak}, printed


def training(checkout, model, name):
    options, first, last = TRAINING[name]
    options += f" --iterations {last} --eval_interval {last} --vocab_size 257 --val_fraction 0"
    with tempfile.TemporaryDirectory() as temporary:
        text = Path(temporary, "text.txt")
        text.write_text("".join(random.Random(0).choices("abcdefgh \n", k=200_000)))
        command = [sys.executable, f"{checkout}/train.py", str(text), "--out", f"{temporary}/out"]
        _, peak, _ = common.run_program([*command, *options.split()])
        with open(f"{temporary}/out/log.csv", newline="") as file:
            rows = {int(row["step"]): row for row in csv.DictReader(file)}
    seconds = float(rows[last]["seconds"]) - float(rows[first]["seconds"])
    figures = {
        f"training step, {name}, ms": seconds / (last - first) * 1e3,
        f"training, {name}, peak memory, MiB": peak,
    }
    return figures, [row["loss"] for row in rows.values()]


def do(job, checkout, model):
    if job in WORKER_JOBS:
        return common.run_worker(__file__, job, checkout, model)
    if job in TRAINING:
        return training(checkout, model, job)
    return whole_process(checkout, model)


WORKER_JOBS = {function.__name__: function for function in (one_text, many_texts)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("other", type=os.path.abspath, metavar="OTHER_CHECKOUT")
    parser.add_argument("model", type=os.path.abspath, metavar="MODEL_DIRECTORY")
    parser.add_argument("--rounds", type=int, default=10, help="(10)")
    args = parser.parse_args()
    sides = {"other": args.other, "this": str(ROOT)}
    figures = {}  # {name: [(value of the other checkout, value of this one) in each round]}
    for i in range(args.rounds):
        order = list(sides) if i % 2 else list(sides)[::-1]  # so that neither always runs first
        for job in [*WORKER_JOBS, "whole process", *TRAINING]:
            outcomes = {side: do(job, sides[side], args.model) for side in order}
            other, other_results = outcomes["other"]
            this, this_results = outcomes["this"]
            if other_results != this_results:
                print(f"round {i + 1}: the results of {job} DIFFER", file=sys.stderr)
            for name in this:
                figures.setdefault(name, []).append((other[name], this[name]))
    rows = []
    for name, pairs in figures.items():
        other, this = (f"{median(column):.1f}" for column in zip(*pairs))
        ratio = median(b / a for a, b in pairs)
        n_larger = sum(b > a for a, b in pairs)
        rows.append((name, other, this, f"{ratio:.3f}", f"{n_larger} of {len(pairs)} rounds"))
    head = ["figure", "other checkout", "this checkout", "ratio, this / other", "this is larger in"]
    print("\n".join([*common.table(head, rows), "", common.machine(["numpy"])]))


if __name__ == "__main__":
    common.start(main, *WORKER_JOBS.values())
