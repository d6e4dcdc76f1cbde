"""How well a model predicts a text: perplexity, and what train.py validates by.

    python evaluate.py shakespeare.txt --model_size shakespeare
    python evaluate.py candidates.txt --model_size shakespeare --lines

From what stands before it, a model gives the token that comes a probability p. Its loss is -log p,
in nats: 0 if p is 1, log 2 = 0.69 if p is 1/2, as of a coin.
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

import json
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

import command
import startup
from corpus import (
    encode_parts,
    encode_text,
    read_lines,
    read_pieces,
    read_stopwords,
    split_files,
    split_texts,
)
from gpt2 import N_QUERIES, gpt2, new_cache
from texts import find_texts
from utils import read_training, text_changes

EVAL_TOKENS = 2**17  # of a long held-out text, predicted when train.py evaluates


# ================================================================================================
# A text
# ================================================================================================


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
        targets = ids[max(first, i + 1) : j + 1]  # ids[i] predicts ids[i + 1]; there may be none
        n_logits = len(targets)
        logits = gpt2(ids[i:j], **model, cache=cache, n_past=i - start, n_logits=n_logits)
        losses.append(-log_probabilities(logits, targets))
    return np.concatenate(losses)


def log_probabilities(logits, ids):  # [n, n_vocab], [n] -> [n]; overwrites the logits
    """log softmax(logits)[id], a row for each id."""
    logits -= logits.max(-1, keepdims=True)
    return logits[np.arange(len(ids)), ids] - np.log(np.exp(logits).sum(-1))


def evaluate(ids, todo, params, hparams, map=map):
    """-> the sum of the losses of all targets in some windows, in nats, and how many targets.

    map: may be that of a pool of threads.
    """
    todo, nats, n_targets = iter(todo), 0.0, 0
    while some := list(islice(todo, 1024)):  # not all at once: a text may have millions
        for losses in map(lambda window: window_losses(ids, window, params, hparams), some):
            nats += float(losses.sum(dtype=np.float64))
            n_targets += len(losses)
    return nats, n_targets


def spread(windows, n_ids, n_targets):
    """Of the windows of a text as many, evenly spread, as predict about n_targets of its ids."""
    return islice(windows, 0, None, max(1, n_ids // n_targets))


def measure(ids, encoder, hparams, params, stride=None, n_targets=math.inf, map=map):
    """-> {name: figure} of a text, with a bar. Windows start stride apart (half of n_ctx); of a
    long text they may be fewer, evenly spread: those that predict about n_targets of its ids."""
    if len(ids) < 2:
        raise ValueError(f"{len(ids)} tokens of text; there have to be two to predict one")
    n_ctx, stride = hparams["n_ctx"], stride_of(stride, hparams)
    todo = list(spread(windows(len(ids), n_ctx, stride), len(ids), n_targets))
    with tqdm(todo, unit="window", leave=False, disable=None) as bar:
        nats, n_targets = evaluate(ids, bar, params, hparams, map)
    must_be_finite(nats)
    data = b"".join(encoder.decode_bytes(ids[first:stop].tolist()) for _, first, stop in todo)
    n_chars = sum(byte >> 6 != 2 for byte in data)  # 10xxxxxx continues a character
    return {
        "stride": stride,
        "tokens": n_targets,
        "nats per token": nats / n_targets,
        "perplexity": perplexity(nats, n_targets),
        "bits per byte": nats / math.log(2) / len(data),
        "nats per character": nats / n_chars,
    }


def stride_of(given, hparams):
    """How far apart windows start: as given, though not more than their length, else half of it."""
    n_ctx = hparams["n_ctx"]
    if n_ctx < 2:
        raise ValueError("a context of one token predicts nothing: perplexity needs two")
    return min(given or n_ctx // 2, n_ctx)


def must_be_finite(nats):
    if not math.isfinite(nats):
        raise ValueError("the model's logits are not finite: its weights are damaged")


def perplexity(nats, n_targets):
    return math.exp(min(nats / n_targets, 700))  # more has no float


def table(figures):
    """A line each: "perplexity          24.31"."""
    digits = {"stride": 0, "tokens": 0, "perplexity": 2}
    return "\n".join(f"{name:20}{x:.{digits.get(name, 4)}f}" for name, x in figures.items())


# ================================================================================================
# Line by line
# ================================================================================================


def score(text, encoder, hparams, params, stride=None, **text_options):
    """-> [(id, its loss), ...] of a text by itself.

    The end of text, where the model has one, predicts the first token, else nothing does.
    """
    ids = hparams["eos_token_ids"][:1]
    for part in split_texts(text, **text_options):
        ids = ids + encode_text(part, encoder)
    scores = []
    for window in windows(len(ids), hparams["n_ctx"], stride_of(stride, hparams)):
        _, first, stop = window
        losses = window_losses(ids, window, params, hparams)
        must_be_finite(losses.sum())
        scores += zip(ids[first:stop], losses.tolist())
    return scores


def numbered_lines(paths):
    """Yield (number of a line in its file, its text) of all lines in files."""
    for path in paths:
        for part in split_files([path], 1.0)[1]:
            for number, (_, text) in enumerate(read_pieces(*part, cut=read_lines), 1):
                yield number, text.rstrip("\r\n")


def row(number, text, scores, encoder, verbose):
    """A line's figures: what --json prints of it."""
    nats = sum(loss for _, loss in scores)
    figures = {"line": number, "text": text, "tokens": len(scores), "nats": nats}
    figures["perplexity"] = perplexity(nats, len(scores)) if scores else None
    if verbose:
        figures["probabilities"] = [
            {"id": id_, "text": encoder.decode([id_]), "probability": math.exp(-loss)}
            for id_, loss in scores
        ]
    return figures


def print_row(tokens, nats, perplexity, text, probabilities=(), **others):
    """The same to be read by people: a line, and one for each of its tokens."""
    perplexity = "-" if perplexity is None else f"{perplexity:.2f}"
    print(f"{tokens:6} {nats:10.4f} {perplexity:>12}  {text}")
    for token in probabilities:
        shown = json.dumps(token["text"], ensure_ascii=False)  # in quotes: spaces can be seen
        print(f"{token['probability']:31.6f} {shown}")


# ================================================================================================
# The command line
# ================================================================================================


def parser():
    options = command.new_parser(
        "evaluate.py",
        "Measure how well a model predicts a text. The figures go to standard output.",
    )
    add = options.add_argument
    add(
        "text",
        nargs="+",
        help='UTF-8 files, directories (each .txt and .md below), .jsonl files with a "text" a '
        "line, http(s) addresses, - for standard input",
    )
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
        metavar="SHARE",
        help="measure the last part of the text only, such as the 0.1 that train.py holds out (1)",
    )
    add(
        "--lines",
        action="store_true",
        help="each line by itself: its tokens, their loss together in nats, its perplexity",
    )
    add("--verbose", action="store_true", help="with --lines: the probability of each token, too")
    add("--json", action="store_true", help="print JSON: an object, or with --lines one a line")
    add("--lowercase", action="store_true", help="measure the text in lower case")
    add("--stopwords", metavar="FILE", help="drop the words in this file from the text")
    add(
        "--literal_endoftext",
        action="store_true",
        help="<|endoftext|> in the text is a text like any other, and ends none",
    )
    return options


def text_options(args):
    """-> the options of split_texts: those given, and what a model made by train.py has learned
    from, which is said."""
    told = read_training(args.model_size, args.models_dir)
    if changes := text_changes(told):
        command.say(f"evaluate.py: the text is measured {changes}, as the model has learned it")
    words = read_stopwords(args.stopwords) if args.stopwords else told.get("stopwords", [])
    flags = "lowercase", "literal_endoftext"
    flags = {name: getattr(args, name) or bool(told.get(name)) for name in flags}
    return {**flags, "stopwords": words}


def work(args):
    """Load the model, and print the figures of the text or of its lines."""
    if args.lines and args.val_fraction is not None:
        raise command.WrongUsage("--val_fraction is of a whole text: not with --lines")
    if args.verbose and not args.lines:
        raise command.WrongUsage("--verbose shows the tokens of a line: it takes --lines")
    model, options = command.load(args), text_options(args)
    with (
        startup.interruptible(),  # so that nothing is left of what it keeps
        TemporaryDirectory() as keep,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        paths = find_texts(args.text, args.models_dir, keep)
        try:
            (print_lines if args.lines else print_figures)(paths, args, model, options, pool.map)
        except ValueError as error:
            is_named = any(str(path) in str(error) for path in paths)
            raise ValueError(f"{error}" if is_named else f"{args.text[0]}: {error}") from None


def print_figures(paths, args, model, text_options, map):
    """Of the held-out part of a text, or the whole."""
    encoder, hparams, params = model
    _, tail = split_files(paths, 1.0 if args.val_fraction is None else args.val_fraction)
    ids = [np.empty(0, np.uint16), *encode_parts(tail, encoder, **text_options)]
    figures = measure(np.concatenate(ids), encoder, hparams, params, args.stride, map=map)
    named = {name.replace(" ", "_"): x for name, x in figures.items()}
    print(json.dumps(named) if args.json else table(figures))


def print_lines(paths, args, model, text_options, map):
    """A row, or an object, for each line of the files."""
    encoder, hparams, params = model
    if not args.json:
        print("tokens       nats   perplexity  line")

    def score_line(line):
        return score(line[-1], encoder, hparams, params, args.stride, **text_options)

    lines = numbered_lines(paths)
    while some := list(islice(lines, 1024)):  # not all at once: there may be millions
        for line, scores in zip(some, map(score_line, some)):
            found = row(*line, scores, encoder, args.verbose)
            print(json.dumps(found)) if args.json else print_row(**found)


def main(argv=None):
    return command.run(parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
