"""Train a GPT from text files.

    python train.py shakespeare.txt --out models/mine
    python gpt2.py "ROMEO:" --model_size mine

The function train is the training loop. Each step takes a batch of text, computes the loss and its
gradient, clips the gradient, and updates the weights. Now and then, the loop measures the loss of
the held-out text and saves the model. The gradients come from training/backward.py, the updates
from training/optimizer.py, and training/run.py keeps the files. Lesson: step 20.
"""

import csv
import math
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import cli
from evaluate import evaluate, measure, sample_windows, table, worker_threads
from gpt2 import generate
from model_files.directory import flatten
from model_files.files import open_regular, write_atomic
from training.backward import cross_entropy, gpt2_backward, gpt2_forward
from training.optimizer import clip, ranges, schedule
from training.options import parser, resolve_options
from training.run import checkpoint_path, lock_run, open_run
from utils import load_encoder_hparams_and_params

MAX_TOKENS = 2048  # A thread takes about this many at once: the forward pass keeps all its results.
EVAL_TOKENS = 2**17  # An evaluation samples a longer text: this many tokens, or up to twice that.
LOG_INTERVAL = 10  # log.csv gets a row every LOG_INTERVAL steps, and one at each evaluation.
NEEDS = """\
train.py needs a text to learn from and a directory for the model. To try it for half a minute:
    python train.py README.md docs --out models/first --iterations 30
TEXT may be files, directories, http(s) addresses or - (standard input); --help has the rest."""


def batch(tokens, n_ctx, size, seed, step):  # -> [size, n_ctx + 1] ids
    """Return sequences from random places in a text. They depend on seed and step alone.

    With n_ctx 2 and the starts 5 and 0, these are the tokens 5 6 7 and 0 1 2: in the first one,
    token 5 has to predict token 6, and 5 and 6 together have to predict 7.
    """
    rng = np.random.default_rng([seed, step])
    starts = rng.integers(len(tokens) - n_ctx, size=size)
    index = starts[:, None] + np.arange(n_ctx + 1)  # [size, 1] + [n_ctx + 1]
    return tokens[index].astype(np.int64)


def loss_and_gradient(ids, n_targets, params, hparams, dropout=0.0, rng=None):
    """Return what some sequences [B, n + 1] of a batch add to its loss, and to the gradient.

    The gradient is a tree like params. n_targets: how many tokens the whole batch predicts. The
    loss is the mean over these tokens, not the sum. A sum and its gradient would grow with the size
    of the batch, and each size would need another learning rate.
    """
    logits, kept = gpt2_forward(ids[:, :-1], **params, hparams=hparams, rate=dropout, rng=rng)
    loss, dlogits = cross_entropy(logits, ids[:, 1:].ravel())
    dlogits *= 1 / n_targets
    return loss / n_targets, gpt2_backward(dlogits, kept, **params, hparams=hparams)


def batch_gradient(pool, optimizer, ids, hparams, dropout, seed):
    """Return the mean loss of a batch, and write its gradient into optimizer.g. In short, this is

        loss, gradient = loss_and_gradient(ids, ids[:, 1:].size, params, hparams, dropout, rng)

    but it uses all cores: each thread takes some of the sequences, in pieces of about MAX_TOKENS,
    and adds up their gradients in its own row of g. sum_gradients then adds up the rows.
    """
    n_threads, n_targets = len(optimizer.g), ids[:, 1:].size
    n_rounds = math.ceil(n_targets / n_threads / MAX_TOKENS)
    parts = [part for part in np.array_split(ids, n_threads * n_rounds) if len(part) > 0]

    def add_up(thread):
        optimizer.g[thread] = 0
        totals = flatten(optimizer.gradients[thread])  # {name: view of optimizer.g[thread]}
        sum_of_losses = 0.0
        for i in range(thread, len(parts), n_threads):
            rng = np.random.default_rng([*seed, i])
            loss, gradient = loss_and_gradient(
                parts[i], n_targets, optimizer.params, hparams, dropout, rng
            )
            sum_of_losses += loss
            for name, x in flatten(gradient).items():
                totals[name] += x
        return sum_of_losses

    return sum(pool.map(add_up, range(n_threads)))


def sum_gradients(pool, g):
    """Add up the threads' gradients, g [n_threads, size], in g[0]. Return the norm of the sum."""

    def add_up(piece):
        total = g[0, piece]
        for other in g[1:, piece]:
            total += other
        return float(total @ total)

    return math.sqrt(sum(pool.map(add_up, ranges(0, g.shape[1]))))


# ==== A run =====================================================================================


def train(run, options):
    """Train the model of a run from its current step to the end."""
    optimizer, hparams, record = run.optimizer, run.hparams, run.record
    train_ids, val_ids = run.read_ids()
    n_ctx = options.n_ctx or hparams["n_ctx"]
    n_ids = f"{record.n_train:,} tokens to train on, {record.n_val:,} to validate"
    print(f"{len(optimizer.w):,} parameters; {n_ids}")
    start = time.perf_counter() - record.seconds
    done = part_done(record, options)
    losses = []  # of the steps since the last row of the log
    with worker_threads(options.threads) as pool, progress_bar(record, options) as bar:
        while done < 1:
            # With merge dropout (corpus.segmentations), train_ids begins with copies of the text
            # that are split into tokens in unusual ways, the most unusual copy first. Training
            # leaves more and more of them behind: the last batches come from the text itself.
            ids = train_ids[int(done * record.n_noisy) :]
            ids = batch(ids, n_ctx, options.batch_size, options.seed, record.step)
            record.step += 1
            seed = options.seed, record.step
            loss = batch_gradient(pool, optimizer, ids, hparams, options.dropout, seed)
            check_finite("loss", loss, record.step)
            scale = clip(sum_gradients(pool, optimizer.g))
            lr = options.learning_rate * schedule(done, options.warmup)
            optimizer.update(scale, lr, record.step, pool)
            losses.append(loss)
            record.seconds = time.perf_counter() - start
            done = part_done(record, options)
            bar.total = round(record.step / min(done, 1))  # with --minutes, this is an estimate
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()
            if record.step % options.eval_interval == 0 or done >= 1:
                val_loss = validate(pool, val_ids, n_ctx, optimizer, hparams, record.step)
                run.log(float(np.mean(losses)), val_loss)
                losses = []
                show(run, val_ids if len(val_ids) > 0 else train_ids)
                run.save(options.dtype)
            elif record.step % LOG_INTERVAL == 0:
                run.log(float(np.mean(losses)))
                losses = []


def progress_bar(record, options):
    """Return a bar that counts steps in a terminal: step 9/60, loss 4.1 |██  | 15 % 00:02<00:11."""
    line = "step {n_fmt}" if options.minutes else "step {n_fmt}/{total_fmt}"
    line += "{postfix} |{bar}| {percentage:.0f} % {elapsed}<{remaining}"
    if shutil.get_terminal_size().columns >= 70:  # there is room for the speed
        line += ", {rate_noinv_fmt}"
    style = {"unit": " steps", "bar_format": line, "dynamic_ncols": True, "disable": None}
    return tqdm(total=options.iterations, initial=record.step, **style)


def part_done(record, options):
    """Return how much of a run is done, from 0 to 1, measured in minutes or in steps."""
    if options.minutes:
        return record.seconds / (60 * options.minutes)
    return record.step / options.iterations


def validate(pool, ids, n_ctx, optimizer, hparams, step):
    """Return the mean loss of the held-out text in nats per token, or None if nothing is held out.

    In a long text, only some windows are measured, evenly spaced.
    """
    check_finite("sum of the weights", float(optimizer.w.sum()), step)
    if len(ids) == 0:
        return None
    sample = sample_windows(len(ids), n_ctx, n_ctx, EVAL_TOKENS)
    nats, n_targets = evaluate(ids, sample, optimizer.params, hparams, pool)
    check_finite("validation loss", nats, step)
    return nats / n_targets


def check_finite(name, value, step):
    if not math.isfinite(value):
        advice = "the last checkpoint is still good: --resume it with a smaller --learning_rate"
        raise ValueError(f"the {name} is {value} after {step} steps; {advice}")


def show(run, ids, n=60):
    """Print the last row of the log, and n tokens that the model now writes after ids[0]."""
    step, seconds, loss, val_loss = run.record.log[-1]
    validation = "" if val_loss is None else f", validation {val_loss:.4f}"
    tqdm.write(f"step {step}, {seconds:.0f} s: loss {loss:.4f}{validation}")
    ids = [int(ids[0])]
    ids += generate(ids, run.optimizer.params, run.hparams, n, seed=0, temperature=0.8)
    text = run.encoder.decode(ids).strip().replace("\n", "\n    ")
    tqdm.write(f"    {cli.visible(text)}")
    sys.stdout.flush()  # If the output goes to a file, it shows at once how far the run is.


def finish(run, options):
    """Measure the best model on the held-out text, if there is any, and end the run."""
    figures = {}
    if run.record.n_val > 0:
        model = load_encoder_hparams_and_params(run.out, options.models_dir)
        _, val_ids = run.read_ids()
        with worker_threads(options.threads) as pool:
            figures = measure(val_ids, *model, pool, limit=EVAL_TOKENS)
    checkpoint_path(run.out).unlink()  # Until here, the run can be resumed.
    print(cli.visible(f"{run.out}: done; python gpt2.py 'a prompt' --model_size {run.out}"))
    if figures:
        print(table(figures))


# ==== The command ===============================================================================


def plot(model):
    """Draw the losses in a run's log.csv as curves, in loss.png."""
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install -r requirements-dev.txt") from None
    path = Path(model) / "log.csv"
    with open_regular(path) as file:
        lines = file.read().decode("utf-8", "replace").splitlines()
    try:
        rows = list(csv.DictReader(lines))
        for name, label in (("loss", "training"), ("validation_loss", "validation")):
            measured = [row for row in rows if row[name]]  # most rows have no validation loss
            steps = [int(row["step"]) for row in measured]
            pyplot.plot(steps, [float(row[name]) for row in measured], label=label)
    except (KeyError, TypeError, ValueError, csv.Error):
        rows = []
    if not rows:
        raise ValueError(f"{path} is not a log of train.py, or has no rows yet")
    pyplot.xlabel("step")
    pyplot.ylabel("loss, nats per token")
    pyplot.legend()
    with write_atomic(Path(model) / "loss.png") as file:
        pyplot.savefig(file, dpi=120, format="png")
    print(cli.visible(str(Path(model) / "loss.png")))


def work(args):
    """Draw the curves of a run, or train a model and measure it."""
    given = vars(args)  # has only the options that the user gave
    if "plot" in given:
        plot(args.plot)
        return
    if not given.keys() & {"text", "out", "resume"}:
        for line in NEEDS.splitlines():
            cli.say(line)
        raise SystemExit(2)
    if "out" not in given:
        raise cli.UsageError("where should the model be written? give --out DIR")
    out = args.out
    if not os.path.dirname(out):
        out = os.path.join(os.curdir, out)  # gpt2.py would look for a bare name in --models_dir
    try:
        with lock_run(out):
            options, model = resolve_options(given)
            run = open_run(out, options, model, "resume" in given, "overwrite" in given)
            del model  # frees its memory: the optimizer has a copy
            train(run, options)
            finish(run, options)
    except (KeyboardInterrupt, BrokenPipeError):
        cli.drop_output()
        message = "train.py: stopped"
        if checkpoint_path(out).exists():
            message += "; --resume continues from the last checkpoint"
        raise KeyboardInterrupt(message) from None


def main(argv=None):
    """Run the command and return its exit status."""
    return cli.run(parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
