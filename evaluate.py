"""How well a model predicts a text: perplexity, and what train.py validates by.

    python evaluate.py shakespeare.txt --model_size shakespeare

The loss of a token is -log p, in nats, where p is the probability that the model gave it from what
stands before it: 0 where it was certain, log 2 = 0.69 where it was as unsure as of a coin.
Perplexity is exp of the mean loss: as unsure as of a die with so many sides.

A text is longer than what a model sees at once, so it is measured in windows of n_ctx tokens, which
start a stride apart. Of each window only the tokens count that no window before it has predicted.
With a small stride each has nearly n_ctx tokens before it, and the whole takes longer.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26", "regex>=2024.11.6", "requests", "tqdm"]
# ///

if __name__ == "__main__":
    import startup

    startup.begin(one_thread=True)

import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
from tqdm import tqdm

import command
from corpus import encode_parts, read_stopwords, split_files
from gpt2 import N_QUERIES, gpt2, new_cache


def windows(n, length, stride):
    """Yield (start, first, stop): ids[first:stop] are predicted with the context from start on.

    Each id but the first is a target once: windows(10, 6, 3) -> (0, 1, 6) (3, 6, 9) (6, 9, 10).
    """
    stop = 1
    for start in range(0, max(1, n - length + stride), stride):
        first, stop = max(stop, start + 1), min(start + length, n)
        if first < stop:
            yield start, first, stop


def window_losses(ids, window, params, hparams):  # -> [stop - first], nats
    """The loss of each target of a window. Goes through it in pieces with the cache, so that only
    a piece's logits [N_QUERIES, n_vocab] are in memory."""
    start, first, stop = window
    model = {**params, "n_head": hparams["n_head"], "eps": hparams["layer_norm_epsilon"]}
    cache, losses = new_cache(stop - 1 - start, **hparams), []
    for i in range(start, stop - 1, N_QUERIES):
        j = min(i + N_QUERIES, stop - 1)
        targets = ids[max(first, i + 1) : j + 1]  # id i predicts id i + 1
        n_logits = len(targets)
        logits = gpt2(ids[i:j], **model, cache=cache, n_past=i - start, n_logits=n_logits)
        losses.append(-log_probabilities(logits, targets))
    return np.concatenate(losses)


def log_probabilities(logits, ids):  # [n, n_vocab], [n] -> [n]; overwrites the logits
    """log softmax(logits)[id], a row for each id."""
    logits -= logits.max(-1, keepdims=True)
    return logits[np.arange(len(ids)), ids] - np.log(np.exp(logits).sum(-1))


def evaluate(ids, windows, params, hparams, map=map):
    """-> the sum of the losses of all targets in the windows, in nats, and how many targets.

    map: may be that of a pool of threads.
    """
    windows, nats, n_targets = iter(windows), 0.0, 0
    while some := list(islice(windows, 1024)):  # not all at once: a text may have millions
        for losses in map(lambda window: window_losses(ids, window, params, hparams), some):
            nats += float(losses.sum(dtype=np.float64))
            n_targets += len(losses)
    return nats, n_targets


def measure(ids, encoder, hparams, params, stride=None, map=map):
    """-> {name: figure} of a whole text, with a bar. Windows start stride apart (half of n_ctx)."""
    n_ctx = hparams["n_ctx"]
    if n_ctx < 2:
        raise ValueError("a context of one token predicts nothing: perplexity needs two")
    if len(ids) < 2:
        raise ValueError(f"{len(ids)} tokens of text; there have to be two to predict one")
    todo = list(windows(len(ids), n_ctx, min(stride or n_ctx // 2, n_ctx)))
    bar = tqdm(todo, unit="window", disable=None)
    nats, n_targets = evaluate(ids, bar, params, hparams, map)
    if not math.isfinite(nats):
        raise ValueError("the model's logits are not finite: its weights are damaged")
    data = b"".join(encoder.decode_bytes(ids[first:stop].tolist()) for _, first, stop in todo)
    n_chars = sum(byte >> 6 != 2 for byte in data)  # 10xxxxxx continues a character
    return {
        "tokens": n_targets,
        "nats per token": nats / n_targets,
        "perplexity": math.exp(min(nats / n_targets, 700)),
        "bits per byte": nats / math.log(2) / len(data),
        "nats per character": nats / n_chars,
    }


def table(figures):
    """A line each: "perplexity          24.31"."""
    digits = {"tokens": 0, "perplexity": 2}
    return "\n".join(f"{name:20}{x:.{digits.get(name, 4)}f}" for name, x in figures.items())


def parser():
    options = command.new_parser(
        "evaluate.py",
        "Measure how well a model predicts a text. The figures go to standard output.",
    )
    add = options.add_argument
    add("text", nargs="+", help="UTF-8 files")
    command.model_options(options)
    add(
        "--stride",
        type=command.number(int, 1),
        metavar="N",
        help="windows of the context's length start N tokens apart, and only what a window adds is "
        "counted; less is slower and gives more context (half a window)",
    )
    add(
        "--val_fraction",
        type=command.number(float, 0, 1),
        default=1.0,
        metavar="SHARE",
        help="measure the last part of the text only, such as the 0.1 that train.py holds out (1)",
    )
    add("--lowercase", action="store_true", help="measure the text in lower case")
    add("--stopwords", metavar="FILE", help="drop the words in this file from the text")
    return options


def measure_files(args):
    """Load the model, and print the figures of the text."""
    encoder, hparams, params = command.load(args)
    options = {"lowercase": args.lowercase, "stopwords": read_stopwords(args.stopwords)}
    _, tail = split_files(args.text, args.val_fraction)
    ids = np.concatenate(list(encode_parts(tail, encoder, **options)) or [np.empty(0, np.uint16)])
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            print(table(measure(ids, encoder, hparams, params, args.stride, pool.map)))
    except ValueError as error:
        raise ValueError(f"{args.text[0]}: {error}") from None


def main(argv=None):
    return command.run(parser(), measure_files, argv)


if __name__ == "__main__":
    sys.exit(main())
