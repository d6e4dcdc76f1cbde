"""What the commands share: options, streams, errors and exit statuses. Plumbing.

Standard output carries the result and nothing else; the rest goes to standard error. What goes
wrong ends in one line there and an exit status: 1 if something is wrong, 2 for wrong usage, 130
after Ctrl-C.
"""

import argparse
import math
import os
import sys


class WrongUsage(ValueError):
    """What argparse cannot know is wrong: answered as argparse answers."""


def start():
    """The first thing a command does that computes on threads of its own, one a core: each takes
    products of matrices with a BLAS of one thread. Has to come before NumPy is imported."""
    for library in "OPENBLAS", "MKL", "OMP", "VECLIB":
        limit = "VECLIB_MAXIMUM_THREADS" if library == "VECLIB" else f"{library}_NUM_THREADS"
        os.environ.setdefault(limit, "1")


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


def sampling_options(parser):
    """--temperature, --top_k, --top_p and --seed, which sampling takes."""
    add = parser.add_argument
    add(
        "--temperature",
        type=number(float, 0),
        metavar="T",
        help="0 takes the most likely token each time; 1 draws from the model's own distribution; "
        "between them it is bolder than 0 and safer than 1, often best at 0.7 to 0.9 (0; 1 with "
        "top_k, top_p or seed)",
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
    add("--seed", type=number(int, 0), help="the same seed draws the same text again")


def sampling(args):
    """-> the options of gpt2.Sampler."""
    return {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "seed")}


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


def say(text):
    print(text, file=sys.stderr, flush=True)


def open_streams():
    """UTF-8 and plain line breaks on every system; a stream that was closed leads nowhere."""
    for name in "stdin", "stdout", "stderr":
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
        getattr(sys, name).reconfigure(encoding="utf-8", errors="replace")
    sys.stdout.reconfigure(newline="\n")


def drop_output():
    """After a broken pipe: what is left in the buffer must not break it again at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(parser, work, argv=None):
    """Parse the arguments and work(args); -> exit status."""
    try:
        open_streams()
        work(parser.parse_args(argv))
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
        say(f"{parser.prog}: error: {error}")
        return 1
