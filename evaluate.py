"""Measure how well a model predicts a text: its perplexity. train.py uses it for validation.

    python evaluate.py shakespeare.txt --model_size shakespeare
    python evaluate.py candidates.txt --model_size shakespeare --lines

Given the text so far, the model assigns a probability p to the token that actually comes next. The
loss is -log p, in nats: 0 if p is 1, log 2 = 0.69 if p is 1/2. Perplexity is exp of the mean loss.
A perplexity of k means: as uncertain as a choice among k equally likely tokens.

A text is measured in windows of n_ctx tokens, which is all that the model sees at once. They start
a stride apart, and each token is counted once, in the first window that predicts it. A smaller
stride gives the tokens more context, but takes more time. With n_ctx 6 and a stride of 3:

    0 1 2 3 4 5             counts tokens 1 to 5
          3 4 5 6 7 8       counts 6 to 8
                6 7 8 9     counts 9
"""

import contextlib
import json
import math
import os
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from tempfile import TemporaryDirectory, TemporaryFile

import numpy as np
from tqdm import tqdm

import cli
from fast import one_blas_thread
from gpt2 import QUERY_BLOCK, gpt2, log_probabilities, new_cache
from training import corpus
from utils import load_encoder_hparams_and_params

MAX_WAITING = 32  # limit for windows or lines that wait for a thread or for an earlier result


def windows(n, length, stride):
    """Yield (start, first, stop): the window ids[start:stop] predicts ids[first:stop].

    windows(10, 6, 3) -> (0, 1, 6) (3, 6, 9) (6, 9, 10), as above.
    """
    if length < 2:
        raise ValueError("the model sees one token at a time, and perplexity needs two")
    stop = 1  # nothing predicts the first token
    for start in range(0, n, stride):
        first = max(stop, start + 1)  # a window cannot predict its own first token
        stop = min(start + length, n)
        if first < stop:
            yield start, first, stop


def window_stride(stride, n_ctx):
    """Return a stride that counts every token. A window cannot predict its own first token,
    so the window before it has to reach that far."""
    return min(stride or n_ctx // 2, max(1, n_ctx - 1))


def sample_windows(n, length, stride, n_targets):
    """Return evenly spaced windows of n ids. They predict n_targets ids, or up to twice as many; if
    the text is shorter, all windows are returned."""
    interval = max(1, n // n_targets)  # n // math.inf is 0
    return islice(windows(n, length, stride), 0, None, interval)


def window_losses(ids, window, params, hparams):  # -> [stop - first], in nats
    """Return the loss of each token that a window predicts:

        logits = gpt2(ids[start : stop - 1], **params, hparams=hparams, n_logits=stop - first)
        return -log_probabilities(logits, ids[first:stop])

    It works in pieces, with a cache, because the logits of 1,024 tokens of 124M take 200 MB.
    """
    start, first, stop = window
    model = {**params, "hparams": hparams, "cache": new_cache(stop - 1 - start, hparams)}
    losses = []
    for i in range(start, stop - 1, QUERY_BLOCK):
        j = min(i + QUERY_BLOCK, stop - 1)
        targets = ids[max(first, i + 1) : j + 1]  # ids[i] predicts ids[i + 1]
        logits = gpt2(ids[i:j], **model, n_past=i - start, n_logits=len(targets))
        losses.append(-log_probabilities(logits, targets))
    return np.concatenate(losses)


def evaluate(ids, todo, params, hparams, pool, count=lambda n: None):
    """Return the sum of the losses of the windows in todo, in nats, and how many tokens they
    predict. count: is called with the number of tokens of each window when it is finished."""
    nats, n_targets = 0.0, 0
    losses_of = partial(window_losses, ids, params=params, hparams=hparams)
    for losses in map_lazily(pool, losses_of, todo):
        nats += float(losses.sum(dtype=np.float64))
        n_targets += len(losses)
        count(len(losses))
    return nats, n_targets


def map_lazily(pool, function, items):
    """Yield function(item) for each item, in order, computed by the threads of a pool.

    pool.map would queue all items at once, and there may be millions.
    """
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > MAX_WAITING:
            yield waiting.popleft().result()
    for future in waiting:
        yield future.result()


@contextlib.contextmanager
def worker_threads(n):
    """Provide a pool of n threads, and let each matrix product use a single thread meanwhile.

    This way NumPy's elementwise operations use all cores, too. After an exception such as Ctrl-C,
    queued work is discarded.
    """
    before = sys.getswitchinterval()
    # A thread that returns from NumPy has to wait for Python's lock: now 0.5 ms, by default 5 ms.
    sys.setswitchinterval(5e-4)
    pool = ThreadPoolExecutor(n)
    try:
        with one_blas_thread():
            yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        sys.setswitchinterval(before)


def measure(ids, encoder, hparams, params, pool, stride=None, limit=math.inf):
    """Return {name: figure} for a text, and show a progress bar.

    stride: by default half of n_ctx. limit: if the text is longer, only measure evenly spaced
    windows that together predict this many tokens, or up to twice as many.
    """
    if len(ids) < 2:
        raise ValueError(f"the text is too short: {len(ids)} tokens, and it needs at least two")
    n_ctx = hparams["n_ctx"]
    stride = window_stride(stride, n_ctx)
    sample = partial(sample_windows, len(ids), n_ctx, stride, limit)
    n_bytes = n_chars = n_tokens = 0
    for _, first, stop in sample():
        data = encoder.decode_bytes(ids[first:stop].tolist())
        n_bytes += len(data)
        n_chars += sum(byte >> 6 != 0b10 for byte in data)  # 10xxxxxx continues a character
        n_tokens += stop - first
    with tqdm(total=n_tokens, unit=" tokens", unit_scale=True, leave=False, disable=None) as bar:
        nats, _ = evaluate(ids, sample(), params, hparams, pool, bar.update)
    return {
        "stride": stride,
        "tokens": n_tokens,
        "nats per token": nats / n_tokens,
        "perplexity": perplexity(nats, n_tokens),
        "bits per byte": nats / math.log(2) / n_bytes,
        "nats per character": nats / max(n_chars, 1),  # The text may be half a character.
    }


def perplexity(nats, n_targets):
    """Return exp of the mean loss. ValueError if it is not finite."""
    if not math.isfinite(nats):
        raise ValueError("the model's logits are not finite: its weights are damaged")
    return math.exp(min(nats / n_targets, 700))  # exp(710) is too large for a float


def table(figures):
    """Return the figures as lines such as "perplexity          24.31"."""
    digits = {"stride": 0, "tokens": 0, "perplexity": 2}
    return "\n".join(f"{name:20}{x:.{digits.get(name, 4)}f}" for name, x in figures.items())


# ==== Line by line ==============================================================================


def numbered_lines(parts):
    """Yield ((number of a line in its file, its text), its size in bytes) for parts of files."""
    for part in parts:
        for number, (_, text, size) in enumerate(corpus.read_pieces(*part, by_line=True), 1):
            yield (number, text.rstrip("\r\n")), size


def measure_line(line, encoder, hparams, params, stride, verbose, changes):
    """Return the figures of a line (number, text), as --json prints them.

    changes: keyword arguments of corpus.split_texts that change the line as the model's training
    text was changed. If the model has an end-of-text token, it predicts the first token.
    """
    number, text = line
    ids = hparams["eos_token_ids"][:1]
    for part in corpus.split_texts(text, **changes):
        ids += corpus.encode_text(part, encoder)
    n_ctx = hparams["n_ctx"]
    targets, losses = [], []
    for window in windows(len(ids), n_ctx, window_stride(stride, n_ctx)):
        _, first, stop = window
        targets += ids[first:stop]
        losses += window_losses(ids, window, params, hparams).tolist()
    nats = sum(losses)
    figures = {"line": number, "text": text, "tokens": len(losses), "nats": nats}
    figures["perplexity"] = perplexity(nats, len(losses)) if losses else None
    if verbose:
        figures["probabilities"] = [
            {"id": id_, "text": encoder.decode([id_]), "probability": math.exp(-loss)}
            for id_, loss in zip(targets, losses)
        ]
    return figures


# ==== The command ===============================================================================


def parser():
    """Return the parser of the command's options."""
    parser = cli.new_parser(
        "evaluate.py",
        "Measure how well a model predicts a text. The figures go to standard output.",
    )
    add, share = parser.add_argument, cli.number(float, 0, 1)
    add("text", nargs="+", help=corpus.TEXT_HELP)
    cli.add_model_options(parser)
    cli.add_vocabulary_options(parser)
    stride_help = (
        "windows start N tokens apart, at most one less than their length; less is slower, "
    )
    stride_help += "with more context (half a window)"
    add("--stride", type=cli.number(int, 1), metavar="N", help=stride_help)
    tail_help = "measure the last part only, such as the 0.1 that train.py holds out (1)"
    add("--val_fraction", type=share, default=1.0, metavar="SHARE", help=tail_help)
    add("--lines", action="store_true", help="each line by itself: tokens, nats, perplexity")
    add("--verbose", action="store_true", help="with --lines: the probability of each token, too")
    add("--json", action="store_true", help="print a JSON object, with --lines one per line")
    add("--text_column", metavar="NAME", help="the column of a CSV file that has the texts")
    add("--text_key", default="text", metavar="KEY", help="the key in a .jsonl file (text)")
    add("--lowercase", action="store_true", help="measure the text in lower case")
    add("--stopwords", metavar="FILE", help="drop the words in this file from the text")
    add("--literal_endoftext", action="store_true", help="read <|endoftext|> as ordinary text")
    return parser


def work(args):
    """Load the model, and print the figures of the text or of its lines."""
    if args.lines and args.val_fraction < 1:
        raise cli.UsageError("--val_fraction has no effect with --lines: leave one of them out")
    if args.special_tokens and args.literal_endoftext:
        raise cli.UsageError("--special_tokens contradicts --literal_endoftext: leave one out")
    if args.verbose and not args.lines:
        raise cli.UsageError("--verbose shows the tokens of a line: it needs --lines")
    model = load_encoder_hparams_and_params(args.model_size, args.models_dir, args.tokenizer)
    training = model[1]["training"]
    if described := cli.text_changes(training):
        cli.say(f"evaluate.py: the text is measured {described}, like the model's training text")
    changes = {name: training[name] for name in corpus.CHANGES if training.get(name)}
    flags = "lowercase", "literal_endoftext", "special_tokens"
    changes |= {name: True for name in flags if getattr(args, name)}
    if args.stopwords:
        changes["stopwords"] = corpus.read_stopwords(args.stopwords)
    with TemporaryDirectory() as keep, worker_threads(os.cpu_count() or 1) as pool:
        paths = corpus.find_texts(args.text, args.models_dir, keep, args.text_column, args.text_key)
        if args.lines:
            print_lines(paths, args, model, changes, pool)
        else:
            print_figures(paths, args, model, changes, pool)


def print_figures(paths, args, model, changes, pool):
    """Print the figures of a text, or of its last part. Its ids may exceed memory."""
    encoder, hparams, params = model
    _, parts = corpus.split_files(paths, args.val_fraction)
    with TemporaryFile() as file:
        n_ids = corpus.write_ids(file, parts, encoder, **changes)
        ids = np.memmap(file, corpus.id_type(encoder), "r") if n_ids else []
        figures = measure(ids, encoder, hparams, params, pool, args.stride)
    if args.json:
        print(json.dumps({name.replace(" ", "_"): x for name, x in figures.items()}))
    else:
        print(table(figures))


def print_lines(paths, args, model, changes, pool):
    """Print the figures of each line of the files."""
    _, parts = corpus.split_files(paths, val_fraction=1.0)  # all of each file
    n_bytes = sum(stop - start for _, start, stop in parts)
    if not args.json:
        print("tokens       nats   perplexity  line")

    def measured(item):
        line, size = item
        return measure_line(line, *model, args.stride, args.verbose, changes), size

    no_bar = sys.stdout.isatty() or None  # On a terminal, the lines themselves show the progress.
    with tqdm(total=n_bytes, unit="B", unit_scale=True, leave=False, disable=no_bar) as bar:
        for figures, size in map_lazily(pool, measured, numbered_lines(parts)):
            bar.update(size)
            if args.json:
                print(json.dumps(figures))
                continue
            shown = "-" if figures["perplexity"] is None else f"{figures['perplexity']:.2f}"
            text = cli.visible(figures["text"])
            print(f"{figures['tokens']:6} {figures['nats']:10.4f} {shown:>12}  {text}")
            for token in figures.get("probabilities", []):
                shown = json.dumps(token["text"], ensure_ascii=False)  # quotes make spaces visible
                print(f"{token['probability']:31.4g} {cli.visible(shown)}")


def main(argv=None):
    """Run the command and return its exit status."""
    return cli.run(parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
