"""What the commands share: options, streams, errors, exit statuses, and the text of a completion.

The result goes to standard output, everything else to standard error. An error is one line there
and an exit status: 1 if something is wrong, 2 for wrong usage, 130 after Ctrl-C.
"""

import argparse
import codecs
import contextlib
import io
import json
import math
import os
import re
import sys
import warnings

from model_files.files import printable, say, without_credentials

# ==== Options ===================================================================================


class UsageError(ValueError):
    """A usage error that argparse cannot detect, reported as argparse reports its own."""

    exit_status = 2


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors show the control characters of what they quote."""

    def error(self, message):
        with contextlib.suppress(OSError):  # standard error may be a full disk
            self.print_usage(sys.stderr)
        say(f"{self.prog}: error: {message}")
        self.exit(2)


def new_parser(prog, description, **options):
    """Return an argument parser that does not accept abbreviated options."""
    return Parser(prog=prog, description=description, allow_abbrev=False, **options)


def add_model_options(parser):
    """Add --model_size and --models_dir, which name a model."""
    add = parser.add_argument
    add(
        "--model_size",
        default="124M",
        metavar="MODEL",
        help="124M, 355M, 774M or 1558M; a directory in models_dir, such as shakespeare; a path; "
        "or owner/name[@revision] on the Hugging Face hub (124M)",
    )
    add("--models_dir", default="models", metavar="DIR", help="where models are kept (models)")


def add_completion_options(parser):
    """Add the options for the length of a completion, its model, and how tokens are chosen."""
    add, whole, share = parser.add_argument, number(int, 1), number(float, 0, 1)
    add(
        "--n_tokens_to_generate",
        type=number(int, -1),
        default=40,
        metavar="N",
        help="at most N tokens, about 3/4 of an English word each; -1: until the end of the text, "
        "or Ctrl-C (40)",
    )
    stop_help = "end before this text; may be given several times"
    add("--stop", action="append", default=[], type=not_empty, metavar="TEXT", help=stop_help)
    add_model_options(parser)
    add(
        "--temperature",
        type=number(float, 0, 1e6),
        metavar="T",
        help="0: always take the most likely token; 1: sample from the model's own distribution; "
        "values between favour likely tokens, often best at 0.7 to 0.9 (0; 1 with top_k, top_p, "
        "min_p or seed)",
    )
    add("--top_k", type=whole, metavar="K", help="sample from the K likeliest tokens, such as 40")
    add("--top_p", type=share, metavar="P", help="from the fewest with probability P, such as 0.9")
    add("--min_p", type=share, metavar="P", help="from those P times as likely as the likeliest")
    add(
        "--repetition_penalty",
        type=number(float, 1e-6, 1e6),
        metavar="R",
        help="divide the logits of tokens that are already in the text by R (multiply negative "
        "ones), such as 1.2; 1 changes nothing (1)",
    )
    add("--seed", type=number(int, 0), help="the same seed samples the same text again")


def number(kind, low, high=math.inf):
    """Return a parser for an option's value: a number of this kind from low to high."""

    def parse(text):
        value = kind(text)
        if low <= value <= high and value != math.inf:
            return value
        limits = f"at least {low} and finite" if high == math.inf else f"between {low} and {high}"
        raise argparse.ArgumentTypeError(f"{text} is not {limits}")

    parse.__name__ = "number" if kind is float else "whole number"  # as argparse names it
    return parse


def not_empty(text):
    """Return the text of an option, which must not be empty."""
    if not text:
        raise argparse.ArgumentTypeError("it must not be empty")
    return text


def sampling_options(args):
    """Return the options of gpt2.Sampler as a dict."""
    names = "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"
    options = {name: getattr(args, name) for name in names}
    for name in ("top_k", "top_p", "min_p"):
        if options["temperature"] == 0 and options[name] is not None:
            raise UsageError(f"--{name} has no effect at --temperature 0: leave one of them out")
    return options


# ==== Streams ===================================================================================


def visible(text):
    """Return a text for standard output. On a terminal, its control characters are spelled as in
    Python, except for line breaks and tabs: others could move the cursor or change the colours."""
    if not sys.stdout.isatty():
        return text
    return re.sub(r"[^\n\t]+", lambda part: printable(part[0]), text)


def print_line(text):
    """Print a line of JSON in a single write, so that even after a kill no reader finds half of it.

    JSON may hold the control characters from 7f to 9f; they are escaped, as a terminal obeys them.
    """
    text = re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text)
    sys.stdout.flush()
    if hasattr(sys.stdout, "buffer"):
        sys.stdout.buffer.write(f"{text}\n".encode("utf-8", "replace"))
    else:  # an io.StringIO, or a notebook's stream
        print(text)
    sys.stdout.flush()


def open_bytes(path):
    """Open a file for reading bytes; - is standard input."""
    if path != "-":
        return open(path, "rb")
    try:  # not sys.stdin.buffer: Python aborts at exit if another thread still reads from that
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except OSError:  # an io.StringIO, or a notebook's stream
        return io.BytesIO(sys.stdin.read().encode())


def read_prompt(prompt):
    """Return the prompt; for - it is all of standard input, without its last line break."""
    if prompt != "-":
        return prompt
    try:
        text = open_bytes("-").read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 ({error}): convert it") from None
    return re.sub(r"\r?\n\Z", "", text)


def typed_lines():
    """Yield the lines typed after >>, until 'quit' or the end of file (Ctrl-D)."""
    try:
        import readline  # noqa: F401 (with it, lines that input reads can be edited and recalled)

        has_readline = sys.stdout.isatty()
    except ImportError:
        has_readline = False
    while True:
        try:
            line = input(">> ") if has_readline else ask(">> ")
        except EOFError:
            say("")
            return
        if line.strip().lower() == "quit":
            return
        yield line


def ask(question):
    """Return a line from standard input, with the question on standard error."""
    print(question, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def open_streams():
    """Use UTF-8 and plain line breaks on every system; replace closed streams by os.devnull."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):  # an io.StringIO and a notebook's stream have none
            with contextlib.suppress(io.UnsupportedOperation):  # IPython has read from it already
                stream.reconfigure(encoding="utf-8", errors="replace")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(newline="\n")


def drop_output():
    """Discard buffered output after a broken pipe, or the flush at exit would fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(parser, work, argv=None):
    """Parse the arguments, call work(args) and return the exit status.

    Only here do errors and Ctrl-C end a command; a notebook and `python -i` keep their session.
    """
    try:
        open_streams()
        try:
            with warnings.catch_warnings():
                # NumPy warns where numbers overflow. We check the results instead.
                warnings.simplefilter("ignore", RuntimeWarning)
                work(parser.parse_args(argv))
        finally:  # also after --help, which raises SystemExit
            sys.stdout.flush()
        return 0
    except KeyboardInterrupt as interrupt:
        say(str(interrupt))  # an empty line ends the one in which the terminal shows ^C
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        drop_output()
        return 0
    except MemoryError as error:
        message = f"not enough memory ({error}): use a smaller model or text"
    except (ValueError, OSError) as error:
        if getattr(error, "exit_status", 1) == 2:
            parser.error(str(error))
        drop_output()  # it may be that the disk is full
        message = str(error)
    say(f"{parser.prog}: error: {message}")
    return 1


# ==== A completion ==============================================================================


def prompt_ids(prompt, encoder, hparams, name="the prompt"):
    """Return the ids of a prompt: at least one, and at most as many as the model sees."""
    n_ctx = hparams["n_ctx"]
    ids = encoder.encode(prompt) or hparams["eos_token_ids"][:1]
    if not ids:
        raise ValueError(f"{name} is empty, and the model has no end-of-text token to start from")
    if len(ids) > n_ctx:
        say(f"{name} has {len(ids)} tokens; the model sees the last {n_ctx}")
    return ids[-n_ctx:]


def text_changes(training):
    """Return how train.py changed a model's training text, such as "in lower case", or ""."""
    changes = []
    if training.get("lowercase"):
        changes.append("in lower case")
    if words := training.get("stopwords"):
        dots = " ..." if len(words) > 5 else ""
        changes.append(f"without {', '.join(words[:5])}{dots}")
    return " and ".join(changes)


def warn_of_training(model_size, hparams):
    """Say so if a model was trained on changed text. A prompt is not changed."""
    if changes := text_changes(hparams.get("training", {})):
        say(f"{without_credentials(str(model_size))} was trained on text {changes}")


class Completion:
    """The text that follows a prompt, id by id, and why it ended: "end of text", "stop", "length".

    A stop is not part of the text, and the token in which it starts is not among the ids.
    """

    def __init__(self, encoder, eos_token_ids, stops=()):
        self.encoder, self.eos_token_ids = encoder, eos_token_ids
        self.stops = [stop.encode("utf-8", "surrogateescape") for stop in stops]
        self.ids, self.log_probabilities = [], []
        self.ended = "length"
        self.data = bytearray()  # the text
        self.ends = []  # where in it each id's bytes end
        self.n_shown = 0  # bytes that add and rest have returned
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, id_, log_probability=None):
        """Add an id and return the text that is certain: whole characters, not part of a stop."""
        if id_ in self.eos_token_ids:
            self.ended = "end of text"
            return ""
        n_before = len(self.data)
        self.ids.append(id_)
        self.log_probabilities.append(log_probability)
        self.data += self.encoder.decode_bytes([id_])
        self.ends.append(len(self.data))
        start = find_stop(self.data, self.stops, n_before)
        if start is not None:
            self.ended = "stop"
            del self.data[start:]
            n_ids = sum(end <= start for end in self.ends)
            del self.ids[n_ids:], self.log_probabilities[n_ids:], self.ends[n_ids:]
        return self.show(len(self.data) - n_held_back(self.data, self.stops))

    def rest(self):
        """Return the text that was held back, after the last id."""
        return self.show(len(self.data), final=True)

    def show(self, end, final=False):
        new = self.data[self.n_shown : end]
        self.n_shown += len(new)
        return self.decoder.decode(new, final)

    def as_json(self, **others):
        """Return a line of JSON, an object of the others and of the completion."""
        text = self.data.decode("utf-8", "replace")
        result = {
            "text": text,
            "ids": self.ids,
            "log_probabilities": self.log_probabilities,
            "ended": self.ended,
            "valid_utf8": text.encode() == self.data,
        }
        return json.dumps({**others, **result}, ensure_ascii=False)


def find_stop(data, stops, n_before):
    """Return where the stop starts that is first complete after n_before bytes, or None.

    The longest, if two are complete at once. So it does not matter how tokens divide the text.
    """
    found = []
    for stop in stops:
        start = data.find(stop, max(0, n_before - len(stop) + 1))
        if start >= 0:
            found.append((start + len(stop), start))
    return min(found)[1] if found else None


def n_held_back(data, stops):
    """Return how many bytes at the end may be the beginning of a stop."""
    lengths = (n for stop in stops for n in range(1, len(stop)) if data.endswith(stop[:n]))
    return max(lengths, default=0)


def report(loading, n_inputs, ids, times, n_passes):
    """Print what --verbose says. times: of the start and of each token, in seconds."""
    say(f"generated ids  {ids}")
    say(f"loading        {loading:.3f} s")
    n = len(times) - 1  # tokens, the end of text or a stop included
    if n > 0:
        seconds = times[1] - times[0]
        say(f"prompt         {n_inputs} tokens in {seconds:.3f} s: {n_inputs / seconds:.1f}/s")
    if n > 1:
        seconds = times[-1] - times[1]
        say(f"generation     {n - 1} more in {seconds:.3f} s: {(n - 1) / seconds:.1f}/s")
        say(f"               {n / n_passes:.2f} tokens per pass over the model")
    try:
        import resource
    except ImportError:  # on Windows
        return
    unit = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss, per MiB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    say(f"peak memory    {peak:.0f} MiB")
