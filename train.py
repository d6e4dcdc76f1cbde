"""Train a GPT from text files.

    python train.py shakespeare.txt --out models/mine
    python gpt2.py "ROMEO:" --model_size mine

The function train is the whole loop: a batch of text, its loss and the loss's gradient, the
gradient clipped, the weights updated, now and then the loss of held-out text. What it calls stands
above it; the gradient is in backward.py, the update in optimizer.py, the text in corpus.py.

A step's batch is cut into pieces, and each core works through its share of them on a thread with
a single-threaded BLAS: so NumPy's elementwise passes use all cores, as the products do.
Lesson: step 20.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26", "regex>=2024.11.6", "requests", "tqdm"]
# ///

if __name__ == "__main__":
    import startup

    startup.begin(one_thread=True)

import contextlib
import csv
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

import command
import startup
from backward import cross_entropy, gpt2_backward, gpt2_forward
from corpus import COPIES
from evaluate import EVAL_TOKENS, evaluate, measure, spread, table, windows
from gpt2 import generate
from model_files.checkpoint import checkpoint_path
from model_files.parameters import flatten
from optimizer import clip, schedule, slices
from settings import RATE, TUNING_RATE, settle
from training_run import claim, held_out, open_run
from utils import load_encoder_hparams_and_params

MAX_TOKENS = 2048  # of a piece of the batch: its activations are what memory has to hold
LOG_INTERVAL = 10  # steps between two rows of log.csv, but for those of the evaluations

# ================================================================================================
# A step
# ================================================================================================


def batch(tokens, n_ctx, size, seed, step):  # -> [size, n_ctx + 1] ids
    """Sequences from random places: the same for the same seed and step."""
    rng = np.random.default_rng([seed, step])
    starts = rng.integers(len(tokens) - n_ctx, size=size)
    return tokens[starts[:, None] + np.arange(n_ctx + 1)].astype(np.int64)


def loss_and_gradient(pool, optimizer, ids, hparams, dropout, seed):
    """The mean loss of a batch [size, n_ctx + 1], in nats a token; its gradient goes to each
    thread's optimizer.g, which sum_gradients adds up.

    Each thread adds up the gradients of pieces of about MAX_TOKENS: so memory depends on the
    piece, and not on the batch.
    """
    n_threads, n_targets = len(optimizer.g), ids[:, 1:].size
    rounds = math.ceil(n_targets / n_threads / MAX_TOKENS)
    pieces = [piece for piece in np.array_split(ids, n_threads * rounds) if len(piece)]

    def share(thread):
        optimizer.g[thread], loss = 0, 0.0
        for i in range(thread, len(pieces), n_threads):
            rng = np.random.default_rng([*seed, i])
            gradient = optimizer.gradients[thread]
            loss += add_gradient(
                gradient, pieces[i], n_targets, optimizer.params, hparams, dropout, rng
            )
        return loss

    return sum(pool.map(share, range(n_threads)))


def add_gradient(gradient, ids, n_targets, params, hparams, dropout, rng):
    """Add what some sequences have in the gradient of the mean loss; -> what they have in it."""
    model = {"n_head": hparams["n_head"], "eps": hparams["layer_norm_epsilon"]}
    logits, kept = gpt2_forward(ids[:, :-1], **params, **model, rate=dropout, rng=rng)
    loss, dlogits = cross_entropy(logits, ids[:, 1:].ravel())
    dlogits *= 1 / n_targets
    added = flatten(gpt2_backward(dlogits, kept, **params, eps=model["eps"]))
    for name, total in flatten(gradient).items():
        total += added[name]
    return loss / n_targets


def sum_gradients(pool, g):
    """Add all threads' gradients [n_threads, size] to the first; -> its length."""

    def add_up(piece):
        total = g[0, piece]
        for other in g[1:, piece]:
            total += other
        return float(total @ total)

    return math.sqrt(sum(pool.map(add_up, slices(0, g.shape[1]))))


# ================================================================================================
# A run
# ================================================================================================


def train(args):
    """From a text, or from the last checkpoint, to a model directory; -> how many ids of the text
    were held out."""
    run = open_run(args)
    optimizer, hparams, record, losses = run.optimizer, run.hparams, run.record, []
    n_ctx, (train_ids, val_ids) = args.n_ctx or hparams["n_ctx"], run.read_ids()
    print(run.describe())
    with worker_threads(args.threads) as pool, Progress(record, args) as progress:
        while (done := progress.done()) < 1:
            left = train_ids[int(done * record["n_noisy"]) :]  # in the end the text as it is
            ids = batch(left, n_ctx, args.batch_size, args.seed, record["step"])
            record["step"] += 1
            seed = args.seed, record["step"]
            loss = loss_and_gradient(pool, optimizer, ids, hparams, args.dropout, seed)
            must_be_finite(loss, record["step"])
            scale = clip(sum_gradients(pool, optimizer.g))
            lr = args.learning_rate * schedule(done, args.warmup)
            optimizer.update(scale, lr, record["step"], pool)
            losses.append(loss)
            progress.show(loss, n_tokens=ids[:, 1:].size)
            if record["step"] % args.eval_interval == 0 or progress.done() >= 1:
                val_loss = validate(pool, val_ids, n_ctx, optimizer.params, hparams)
                must_be_finite(val_loss, record["step"])
                run.log(float(np.mean(losses)), val_loss if len(val_ids) else None)
                losses = []
                show(run, val_ids if len(val_ids) else train_ids)
                run.save(args.dtype)
            elif record["step"] % LOG_INTERVAL == 0:
                run.log(float(np.mean(losses)))
                losses = []
    return record["n_val"]


def validate(pool, ids, n_ctx, params, hparams):
    """The mean loss of held-out text, nats a token: of windows side by side, as many as hold
    EVAL_TOKENS, evenly spread. Of no text it is 0, and NaN if a weight is no number."""
    if not len(ids):
        return 0.0 * sum(float(x.sum()) for x in flatten(params).values())
    some = spread(windows(len(ids), n_ctx, n_ctx), len(ids), EVAL_TOKENS)
    nats, n_targets = evaluate(ids, some, params, hparams, pool.map)
    return nats / n_targets


def must_be_finite(loss, step):
    if not math.isfinite(loss):
        raise ValueError(
            f"the loss is {loss} after {step} steps; the last good checkpoint is kept: "
            "--resume with a smaller --learning_rate goes on from it"
        )


def show(run, ids, n=60):
    """The last row of the log, and a little of what the model writes by now, after the first of
    these ids."""
    step, seconds, loss, validation = run.record["log"][-1]
    validation = "" if validation is None else f", validation {validation:.4f}"
    tqdm.write(f"step {step}, {seconds:.0f} s: loss {loss:.4f}{validation}")
    ids = [int(ids[0])]
    ids += generate(ids, run.optimizer.params, run.hparams, n, seed=0, temperature=0.8)
    tqdm.write("    " + run.encoder.decode(ids).strip().replace("\n", "\n    "))
    sys.stdout.flush()  # where it is a file, too


@contextlib.contextmanager
def worker_threads(n):
    """A pool whose threads hand over the interpreter's lock sooner than usual: a thread's short
    calls would hold up the others for 5 ms. A loss that is no number ends the run with one line of
    ours, so NumPy need not warn, here or there."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-4)  # seconds
    try:
        pool = ThreadPoolExecutor(n, initializer=np.seterr, initargs=("ignore",))
        with pool, np.errstate(all="ignore"):
            yield pool
    finally:
        sys.setswitchinterval(before)


class Progress:
    """How far a run is, by steps or by time, and the bar that shows it."""

    def __init__(self, record, args):
        self.record, self.iterations, self.minutes = record, args.iterations, args.minutes
        self.first, self.before, self.start = record["step"], record["seconds"], time.perf_counter()
        total = None if args.minutes else args.iterations
        self.bar = tqdm(total=total, initial=self.first, unit="step", disable=None)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def done(self):
        """The share of the run that is done."""
        if self.minutes:
            return self.record["seconds"] / (60 * self.minutes)
        return self.record["step"] / self.iterations

    def show(self, loss, n_tokens):
        """After a step of so many tokens."""
        seconds = time.perf_counter() - self.start
        log = [row for row in self.record["log"] if row[-1] is not None]
        self.record["seconds"] = self.before + seconds
        speed = n_tokens * (self.record["step"] - self.first) / seconds
        last = f", validation {log[-1][-1]:.3f}" if log else ""
        self.bar.set_postfix_str(f"loss {loss:.3f}{last}, {speed:,.0f} tokens/s", refresh=False)
        self.bar.update()


def finish(args, n_val):
    """Measure the model that is kept, if text was held out; then drop what only --resume needs."""
    figures = measure_kept(args, n_val) if n_val else {}
    checkpoint_path(args.out).unlink()
    print(f"{args.out}: done; python gpt2.py 'a prompt' --model_size {args.out}")
    print(table(figures), end="\n" * bool(figures))


def measure_kept(args, n_val):
    """-> the figures of the held-out text, or of EVAL_TOKENS of it, in windows half of the context
    apart."""
    encoder, hparams, params = load_encoder_hparams_and_params(args.out, args.models_dir)
    ids = held_out(args.out, encoder, n_val)
    with worker_threads(args.threads) as pool:
        return measure(ids, encoder, hparams, params, n_targets=EVAL_TOKENS, map=pool.map)


# ================================================================================================
# The command line
# ================================================================================================


def plot(model):
    """Draw the curves of a run's log.csv into loss.png."""
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install -r requirements-dev.txt") from None
    path = Path(model) / "log.csv"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        curves = {
            name: [(float(row["step"]), float(row[name])) for row in rows if row[name]]
            for name in ("loss", "validation_loss")
        }
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: no log of train.py ({error!r})") from None
    for name, label in ("loss", "training"), ("validation_loss", "validation"):
        pyplot.plot(*np.reshape(curves[name], (-1, 2)).T, label=label)
    pyplot.xlabel("step")
    pyplot.ylabel("loss, nats per token")
    pyplot.legend()
    pyplot.savefig(Path(model) / "loss.png", dpi=120)
    print(Path(model) / "loss.png")


def parser():
    options = command.new_parser(
        "train.py",
        "Train a GPT from text files, into a Hugging Face model directory that gpt2.py opens.",
    )
    whole, number = command.number(int, 1), command.number
    add = options.add_argument
    add(
        "text",
        nargs="*",
        help='UTF-8 files, directories (each .txt and .md below), .jsonl files with a "text" a '
        "line, http(s) addresses, - for standard input; the last part is held out for validation",
    )
    add("--out", metavar="DIR", help="the model directory to write")
    add("--plot", metavar="DIR", help="draw the loss of a run into DIR/loss.png instead")
    add = options.add_mutually_exclusive_group().add_argument
    add(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in --out, with its options unless given again",
    )
    add("--overwrite", action="store_true", help="replace what --out holds")
    add = options.add_argument_group("model").add_argument
    add("--n_layer", type=whole, help="layers (6)")
    add("--n_head", type=whole, help="heads, a divisor of n_embd (4)")
    add("--n_embd", type=whole, help="numbers a token (256)")
    add(
        "--n_ctx",
        type=whole,
        help="tokens of context, in training and after (256); with --init_from, in training only "
        "(the model's)",
    )
    add(
        "--vocab_size",
        type=number(int, 257),
        help="tokens to learn from the text; 257: its bytes alone, a character model (2048)",
    )
    add(
        "--tokenizer",
        metavar="MODEL",
        help="take the vocabulary of this model, in place of learning one: a size, a directory, a "
        "hub id",
    )
    add(
        "--init_from",
        metavar="MODEL",
        help="take weights, shape and tokenizer of this model; of one made by train.py also the "
        "text and the other options that are not given, but for the schedule's",
    )
    add("--models_dir", default="models", metavar="DIR", help="where models are kept (models)")
    add(
        "--dtype",
        choices=["float32", "float16"],
        default="float32",
        help="of the written weights; float16 halves the file (float32)",
    )
    add = options.add_argument_group("training").add_argument
    add("--batch_size", type=whole, default=12, help="sequences a step, accumulated in pieces (12)")
    add(
        "--iterations",
        type=whole,
        default=600,
        help="steps of the run (600: ten minutes for the default shape on two cores)",
    )
    add("--minutes", type=number(float, 0.01), help="length of the run, instead of iterations")
    add(
        "--learning_rate",
        type=number(float, 0),
        help=f"at its highest ({RATE:g}; {TUNING_RATE:g} with --init_from)",
    )
    add(
        "--warmup",
        type=number(float, 1e-6, 1),
        default=0.05,
        help="share of the run in which the rate rises (0.05)",
    )
    add(
        "--dropout",
        type=number(float, 0, 0.99),
        default=0.1,
        help="share of the values that each layer adds, left out at random (0.1)",
    )
    add("--weight_decay", type=number(float, 0), default=0.1, help="of matrices (0.1)")
    add(
        "--optimizer",
        choices=["muon", "adamw"],
        default="muon",
        help="for matrices in blocks (muon)",
    )
    add(
        "--eval_interval",
        type=whole,
        default=100,
        help="steps between evaluations and checkpoints (100)",
    )
    add(
        "--seed", type=number(int, 0), default=0, help="the same seed and threads, the same run (0)"
    )
    add("--threads", type=whole, default=os.cpu_count() or 1, help="(one a core)")
    add = options.add_argument_group("text").add_argument
    add(
        "--val_fraction",
        type=number(float, 0, 1),
        default=0.1,
        metavar="SHARE",
        help="held-out tail, which chooses the best model; 0: none, the last one is kept (0.1)",
    )
    add("--lowercase", action="store_true", help="train on the text in lower case")
    add("--stopwords", metavar="FILE", help="drop the words in this file from the text")
    add(
        "--literal_endoftext",
        action="store_true",
        help="<|endoftext|> in the text is a text like any other, and ends none",
    )
    add(
        "--merge_dropout",
        type=number(float, 0, 1),
        default=0.0,
        metavar="SHARE",
        help=f"train on {COPIES} copies of the text, all but the last without some of the "
        "merges, at first this share: keeps a long run from learning a small text by heart (0)",
    )
    return options


def work(args):
    """Draw a curve, or train a model and measure it."""
    if args.plot:
        return plot(args.plot)
    try:
        with startup.interruptible(), claim(args.out):
            n_val = train(args)
            finish(args, n_val)  # not in train, whose mapped files Windows would not let go
    except (KeyboardInterrupt, BrokenPipeError) as error:
        if isinstance(error, BrokenPipeError):
            command.drop_output()
        left = "; --resume goes on from the last checkpoint" * checkpoint_path(args.out).exists()
        raise KeyboardInterrupt(f"train.py: stopped{left}") from None


def main(argv=None):
    """Run the command; -> exit status: 0, 1 if something is wrong, 2 wrong usage, 130 Ctrl-C."""
    options = parser()
    return command.run(options, lambda args: work(settle(options, args, argv)), argv)


if __name__ == "__main__":
    sys.exit(main())
