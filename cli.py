"""What the commands share: options, streams, errors, exit statuses, and the text of a completion.

The result goes to standard output, everything else to standard error. After an error, standard
error gets one line, and the exit status is 1, or 2 for wrong usage. After Ctrl-C, it is 130.
"""

import argparse
import codecs
import contextlib
import functools
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
    """An argument parser that escapes control characters in its error messages."""

    def error(self, message):
        with contextlib.suppress(OSError):  # Standard error may be a file on a full disk.
            self.print_usage(sys.stderr)
        say(f"{self.prog}: error: {message}")
        self.exit(2)


def new_parser(prog, description, **options):
    """Return an argument parser that accepts only the full names of options."""
    return Parser(prog=prog, description=description, allow_abbrev=False, **options)


def add_model_options(parser):
    """Add --model_size and --models_dir, which choose the model."""
    add = parser.add_argument
    add(
        "--model_size",
        default="124M",
        metavar="MODEL",
        help="124M, 355M, 774M or 1558M; a directory in models_dir, such as shakespeare; a path; "
        "or owner/name[@revision] on the Hugging Face hub (124M)",
    )
    add("--models_dir", default="models", metavar="DIR", help="where models are kept (models)")


def add_vocabulary_options(parser):
    """Add the options for how a text becomes ids."""
    add = parser.add_argument
    special_help = "read <|endoftext|> in a text as the end-of-text token, not as plain text"
    add("--special_tokens", action="store_true", help=special_help)
    tokenizer_help = "take the vocabulary of this model, if its own directory has none"
    add("--tokenizer", metavar="MODEL", type=not_empty, help=tokenizer_help)


def add_completion_options(parser):
    """Add the options for the length of a completion, the model, and the choice of tokens."""
    add, whole, share = parser.add_argument, number(int, 1), number(float, 0, 1)
    add(
        "--n_tokens_to_generate",
        type=number(int, -1),
        default=40,
        metavar="N",
        help="generate at most N tokens, each about 3/4 of an English word; -1: until the text "
        "ends or you press Ctrl-C (40)",
    )
    stop_help = "stop before this text; may be given several times"
    add("--stop", action="append", default=[], type=stop_text, metavar="TEXT", help=stop_help)
    add_model_options(parser)
    add_vocabulary_options(parser)
    add(
        "--temperature",
        type=number(float, 0, 1e6),
        metavar="T",
        help="0: always take the most likely token; 1: sample from the model's own distribution; "
        "values between favour likely tokens, often best at 0.7 to 0.9 (0; 1 with top_k, top_p, "
        "min_p or seed)",
    )
    add("--top_k", type=whole, metavar="K", help="sample from the K likeliest tokens, such as 40")
    top_p_help = "sample from the likeliest tokens that together have probability P, such as 0.9"
    add("--top_p", type=share, metavar="P", help=top_p_help)
    min_p_help = "sample from the tokens at least P times as likely as the likeliest, such as 0.05"
    add("--min_p", type=share, metavar="P", help=min_p_help)
    add(
        "--repetition_penalty",
        type=number(float, 1e-6, 1e6),
        metavar="R",
        help="divide the logits of tokens that are already in the text by R (multiply negative "
        "ones), such as 1.2; 1 changes nothing (1)",
    )
    add("--seed", type=number(int, 0), help="the same seed samples the same text again")


def number(kind, low, high=math.inf):
    """Return a function that parses an option's value: a number of this kind, from low to high."""

    def parse(text):
        value = kind(text)
        if low <= value <= high and value != math.inf:
            return value
        limits = f"at least {low} and finite" if high == math.inf else f"between {low} and {high}"
        raise argparse.ArgumentTypeError(f"{text} is not {limits}")

    parse.__name__ = "number" if kind is float else "whole number"  # as argparse names it
    return parse


def not_empty(text):
    """Return an option's text. It must not be empty."""
    if not text:
        raise argparse.ArgumentTypeError("it must not be empty")
    return text


def stop_text(text):
    """Return a --stop. It must not be empty."""
    if "\\n" in text:
        explain_line_breaks()
    return not_empty(text)


@functools.cache  # once is enough
def explain_line_breaks():
    """Say that a backslash and an n are not a line break."""
    say(
        "a prompt or a --stop holds a backslash and an n, which are not a line break: write "
        "$'...\\n...' in bash and zsh, and \"...`n...\" in PowerShell"
    )


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
    """Return a text for standard output. For a terminal, escape its control characters as Python
    does, because they could move the cursor or change colours. Keep line breaks and tabs."""
    if not sys.stdout.isatty():
        return text
    return re.sub(r"[^\n\t]+", lambda part: printable(part[0]), text)


def print_line(text):
    """Print a line of JSON in a single write, so that a killed program never prints half a line.

    JSON allows the control characters 7f to 9f, which a terminal obeys, so they are escaped.
    """
    text = re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text)
    sys.stdout.flush()
    if hasattr(sys.stdout, "buffer"):
        sys.stdout.buffer.write(f"{text}\n".encode("utf-8", "replace"))
    else:  # an io.StringIO, or a notebook's stream
        print(text)
    sys.stdout.flush()


def open_bytes(path):
    """Open a file for reading bytes, or standard input for "-"."""
    if path != "-":
        return open(path, "rb")
    try:  # Python aborts at exit if a thread still reads from sys.stdin.buffer, so avoid that.
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except OSError:  # an io.StringIO, or a notebook's stream
        return io.BytesIO(sys.stdin.read().encode())


def read_prompt(prompt):
    """Return the prompt. For "-", read standard input, and drop its last line break."""
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
        import readline  # noqa: F401 (It lets users edit and recall the lines that input reads.)

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


def converse(answer, conversation=None):
    """Call answer(prompt) for each line that is typed. Ctrl-C ends an answer."""
    for prompt in typed_lines():
        if conversation and prompt.strip() in ("", "/reset"):
            if prompt.strip():
                conversation.turns.clear()
            continue
        try:
            answer(prompt)
        except KeyboardInterrupt:
            print(flush=True)
        except ValueError as error:
            say(f"gpt2.py: error: {error}")


def ask(question):
    """Print a question to standard error, and return a line from standard input."""
    print(question, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def open_streams():
    """Use UTF-8 and plain line breaks on every system. Replace closed streams with os.devnull."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):  # an io.StringIO and a notebook's stream have none
            with contextlib.suppress(io.UnsupportedOperation):  # IPython has already read from it.
                stream.reconfigure(encoding="utf-8", errors="replace")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(newline="\n")


def drop_output():
    """Discard buffered output after a broken pipe. Otherwise the flush at exit would fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(parser, work, argv=None):
    """Parse the arguments, call work(args) and return the exit status.

    Errors and Ctrl-C are caught only here. Nothing exits, so a notebook keeps its session.
    """
    try:
        open_streams()
        try:
            with warnings.catch_warnings():
                # NumPy would warn of overflows. We check the results instead.
                warnings.simplefilter("ignore", RuntimeWarning)
                work(parser.parse_args(argv))
        finally:  # also after --help, which raises SystemExit
            sys.stdout.flush()
        return 0
    except KeyboardInterrupt as interrupt:
        say(str(interrupt))  # This ends the line in which the terminal shows ^C.
        return 130
    except BrokenPipeError:  # The reader, such as head, has stopped reading.
        drop_output()
        return 0
    except MemoryError as error:
        message = f"not enough memory ({error}): use a smaller model or text"
    except (ValueError, OSError) as error:
        if getattr(error, "exit_status", 1) == 2:
            parser.error(str(error))
        drop_output()  # The disk may be full.
        message = str(error)
    say(f"{parser.prog}: error: {message}")
    return 1


# ==== A completion ==============================================================================


def prompt_ids(prompt, encoder, hparams, special_tokens=False, name="the prompt"):
    """Return the ids of a prompt: at least one, and at most the n_ctx that the model can see."""
    if "\\n" in prompt:
        explain_line_breaks()
    n_ctx = hparams["n_ctx"]
    ids = encoder.encode(prompt, special_tokens) or hparams["eos_token_ids"][:1]
    if not ids:
        raise ValueError(f"{name} is empty, and the model has no end-of-text token to start from")
    if len(ids) > n_ctx:
        say(f"{name} has {len(ids)} tokens; the model sees the last {n_ctx}")
    return ids[-n_ctx:]


def text_changes(training):
    """Return how train.py changed a model's training text, such as "in lower case". If not, ""."""
    changes = []
    if training.get("lowercase"):
        changes.append("in lower case")
    if words := training.get("stopwords"):
        dots = " ..." if len(words) > 5 else ""
        changes.append(f"without {', '.join(words[:5])}{dots}")
    return " and ".join(changes)


def warn_of_training(model_size, hparams):
    """Tell the user if a model was trained on changed text, because prompts are not changed."""
    if changes := text_changes(hparams.get("training", {})):
        say(f"{without_credentials(str(model_size))} was trained on text {changes}")


def warn_of_repetition(ids):
    """Warn if a greedy text ends in a loop of n ids: each of the last n ids, or of the last 16 if n
    is smaller, is the same as the id n positions before it."""
    for n in range(1, len(ids) // 2 + 1):
        repeated = ids[-max(n, 16) :]
        if repeated == ids[-len(repeated) - n : -n]:
            reason = "each token is the most likely one"
            say(f"the text repeats itself because {reason}: try gpt2.py with --temperature 0.8")
            return


class Conversation:
    """The ids of a conversation. Each turn and each answer ends with an end-of-text token, as when
    DialoGPT was trained (Zhang et al. 2020). n_tokens: the length of an answer, -1 without limit.
    """

    def __init__(self, hparams, n_tokens):
        if not hparams["eos_token_ids"]:
            raise ValueError("--chat needs a model with an end-of-text token")
        self.eos, n_ctx = hparams["eos_token_ids"][0], hparams["n_ctx"]
        self.turns = []
        self.room = n_ctx - (n_tokens if 0 <= n_tokens < n_ctx // 2 else n_ctx // 2)

    def inputs(self, ids):
        """Return the ids of the conversation with a new turn. If the context has no room for them
        and an answer, the oldest turns are forgotten."""
        n_left, turn = self.room - len(ids) - 1, [*ids, self.eos]
        if sum(map(len, self.turns)) > n_left:
            say(f"the model sees at most {self.room} tokens of the conversation: the end of it")
        while self.turns and sum(map(len, self.turns)) > n_left:
            del self.turns[0]
        return [*(id_ for earlier in self.turns for id_ in earlier), *turn][-self.room :]

    def add(self, ids, answer):
        """Add a turn and its answer."""
        self.turns += [*ids, self.eos], [*answer, self.eos]


class Completion:
    """The continuation of a prompt, and why it ended: "end of text", "stop" or "length".

    The text ends before a stop, and the ids end before the token in which the stop starts.
    """

    def __init__(self, encoder, eos_token_ids, stops=()):
        self.encoder, self.eos_token_ids = encoder, eos_token_ids
        self.stops = [stop.encode("utf-8", "surrogateescape") for stop in stops]
        self.ids, self.log_probabilities = [], []
        self.ended = "length"
        self.data = bytearray()  # the text in UTF-8
        self.ends = []  # the offset in data at which each id's bytes end
        self.n_shown = 0  # the number of bytes that add and rest have returned
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, id_, log_probability=None):
        """Add an id. Return the new text that is certain: whole characters, no part of a stop."""
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
        """Return the text that add has held back. Call this after the last id."""
        return self.show(len(self.data), final=True)

    def show(self, end, final=False):
        new = self.data[self.n_shown : end]
        self.n_shown += len(new)
        return self.decoder.decode(new, final)

    def as_json(self, **others):
        """Return a JSON object, as one line: the others, then the completion."""
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
    """Return the offset of the stop that is completed first after n_before bytes, or None.

    If two are completed by the same byte, the longer one counts. So the result does not depend on
    how the text is divided into tokens.
    """
    matches = []
    for stop in stops:
        start = data.find(stop, max(0, n_before - len(stop) + 1))
        if start >= 0:
            matches.append((start + len(stop), start))
    return min(matches)[1] if matches else None


def n_held_back(data, stops):
    """Return how many bytes at the end may be the beginning of a stop."""
    lengths = (n for stop in stops for n in range(1, len(stop)) if data.endswith(stop[:n]))
    return max(lengths, default=0)


def report_prompt(inputs, encoder, seed):
    """Print what --verbose says before the completion."""
    say(f"prompt tokens  {', '.join(f'{encoder.decode([id_])!r} {id_}' for id_ in inputs)}")
    say(f"seed           {seed}")


def report(loading, n_inputs, ids, times, n_passes):
    """Print the figures of --verbose. times: of the start and of each token, in seconds."""
    say(f"generated ids  {ids}")
    say(f"loading        {loading:.3f} s")
    n = len(times) - 1  # the number of tokens, including a stop or an end-of-text token
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
