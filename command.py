"""What the commands share: options, streams, errors and exit statuses. Plumbing.

Standard output carries the result and nothing else; the rest goes to standard error. What goes
wrong ends in one line there and an exit status: 1 if something is wrong, 2 for wrong usage, 130
after Ctrl-C.
"""

import argparse
import io
import math
import os
import sys


class WrongUsage(ValueError):
    """What argparse cannot know is wrong: answered as argparse answers."""


def new_parser(prog, description, epilog=None):
    """A parser without abbreviations; argparse's own keeps quiet where --help cannot be written."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, epilog=epilog, allow_abbrev=False
    )
    parser.print_help = lambda file=None: print(parser.format_help(), end="", file=file)
    return parser


def model_options(parser):
    """--model_size and --models_dir, which load takes."""
    parser.add_argument(
        "--model_size",
        default="124M",
        metavar="MODEL",
        help="124M, 355M, 774M or 1558M; a directory in models_dir, such as shakespeare; a path; "
        "or owner/name[@revision] on the Hugging Face hub (124M)",
    )
    parser.add_argument(
        "--models_dir", default="models", metavar="DIR", help="where models are kept (models)"
    )


def completion_options(parser):
    """How far a completion goes, by which model, and how its tokens are chosen."""
    parser.add_argument(
        "--n_tokens_to_generate",
        type=number(int, -1),
        default=40,
        metavar="N",
        help="at most so many tokens, about 3/4 of an English word each; -1: until the end of the "
        "text, or Ctrl-C (40)",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        type=stop_text,
        metavar="TEXT",
        help="end before this text; may be given several times",
    )
    model_options(parser)
    sampling_options(parser)


def stop_text(text):
    if not text:
        raise argparse.ArgumentTypeError("an empty text is everywhere")
    return text


def sampling_options(parser):
    """How a token is chosen, which sampling takes."""
    add = parser.add_argument
    add(
        "--temperature",
        type=number(float, 0),
        metavar="T",
        help="0 takes the most likely token each time; 1 draws from the model's own distribution; "
        "between them it is bolder than 0 and safer than 1, often best at 0.7 to 0.9 (0; 1 with "
        "top_k, top_p, min_p or seed)",
    )
    add(
        "--top_k",
        type=number(int, 1),
        metavar="K",
        help="draw from the K most likely tokens only, such as 40",
    )
    add(
        "--top_p",
        type=number(float, 0, 1),
        metavar="P",
        help="draw from the fewest tokens that together have probability P, such as 0.9",
    )
    add(
        "--min_p",
        type=number(float, 0, 1),
        metavar="P",
        help="draw from the tokens that are at least P times as likely as the first, such as 0.05",
    )
    add(
        "--repetition_penalty",
        type=number(float, 1e-6),
        metavar="R",
        help="divide the logits of tokens that are there already by R (negative ones are "
        "multiplied), such as 1.2; 1 changes nothing (1)",
    )
    add("--seed", type=number(int, 0), help="the same seed draws the same text again")


def sampling(args):
    """-> the options of gpt2.Sampler."""
    names = "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"
    options = {name: getattr(args, name) for name in names}
    idle = [name for name in ("top_k", "top_p", "min_p") if options[name] is not None]
    if options["temperature"] == 0 and idle:
        raise WrongUsage(f"--{idle[0]} is for a draw, and --temperature 0 makes none")
    return options


def number(kind, low, high=math.inf):
    """Parser of an option's value: a number of this kind from low to high."""

    def parse(text):
        value = kind(text)
        if value == math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not finite")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{text} is not {'at least' if high == math.inf else 'between'} {low}"
                + (f" and {high}" if high < math.inf else "")
            )
        return value

    parse.__name__ = "number" if kind is float else "whole number"  # as argparse names it
    return parse


def load(args):
    """-> encoder, hparams, params of the model that the options name."""
    from utils import UnknownModel, load_encoder_hparams_and_params  # --help does without

    try:
        return load_encoder_hparams_and_params(args.model_size, args.models_dir)
    except UnknownModel as error:
        raise WrongUsage(str(error)) from None


def load_and_warn(args):
    """The same, for a model that continues prompts: what its text was like is said."""
    from utils import read_training, text_changes

    model = load(args)
    if changes := text_changes(read_training(args.model_size, args.models_dir)):
        say(f"{args.model_size} has learned from text {changes}")
    return model


def say(text):
    print(text, file=sys.stderr, flush=True)


def print_line(text):
    """A line of standard output in one write: a reader, or a kill, finds whole ones."""
    sys.stdout.flush()
    stream = getattr(sys.stdout, "buffer", None)  # a StringIO has none
    stream.write(f"{text}\n".encode("utf-8", "replace")) if stream else print(text)
    sys.stdout.flush()


def read_stdin():
    """All of standard input: UTF-8, with or without a byte order mark."""
    try:
        return open_bytes("-").read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8: {error}") from None


def open_bytes(path):
    """A file, or standard input for -"""
    if path != "-":
        return open(path, "rb")
    return getattr(sys.stdin, "buffer", None) or io.BytesIO(sys.stdin.read().encode())


def typed_lines():
    """Yield the lines typed after >>, until 'quit' or the end of file, Ctrl-D. They can be edited
    and recalled where both ends are terminals and the system has readline."""
    try:
        import readline  # noqa: F401 (input then uses it)

        edited = sys.stdout.isatty()
    except ImportError:
        edited = False
    while True:
        try:
            line = input(">> ") if edited else ask()
        except EOFError:
            return say("")
        if line.strip().lower() == "quit":
            return
        yield line


def ask():
    """A line from standard input, asked for on standard error."""
    print(">> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def open_streams():
    """UTF-8 and plain line breaks on every system; a stream that was closed leads nowhere."""
    for name in "stdin", "stdout", "stderr":
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
        if hasattr(getattr(sys, name), "reconfigure"):  # not a StringIO, nor a notebook's stream
            getattr(sys, name).reconfigure(encoding="utf-8", errors="replace")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(newline="\n")


def drop_output():
    """What is left in the buffer of a broken stream must not break it again at the exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(parser, work, argv=None):
    """Parse the arguments and work(args); -> exit status."""
    try:
        open_streams()
        try:
            work(parser.parse_args(argv))
        finally:  # also after --help, which leaves by SystemExit
            sys.stdout.flush()
        return 0
    except KeyboardInterrupt as interrupt:
        say("\n".join(["", *interrupt.args]))
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        drop_output()
        return 0
    except WrongUsage as error:
        parser.error(str(error))
    except MemoryError as error:
        say(
            f"{parser.prog}: error: not enough memory ({error}): a smaller model or text needs less"
        )
        return 1
    except (ValueError, OSError) as error:
        drop_output()  # to a full disk
        say(f"{parser.prog}: error: {error}")
        return 1
