"""What a run of training is told: the options given, and where the others come from. Plumbing."""

import os
import re

from corpus import read_stopwords
from model_files.checkpoint import read_checkpoint
from texts import is_address
from training_run import SHAPE, TEXT
from utils import read_training

RATE, TUNING_RATE = 4e-3, 4e-4  # the learning rate of a fresh model, and of one that has learned
# What a model that is trained further takes over from its training.json.
TAKEN = (*TEXT, "n_ctx", "batch_size", "dropout", "weight_decay", "optimizer", "dtype")
NEEDS = """\
train.py needs a text to learn from and a directory for the model. In half a minute, from here:
    python train.py README.md docs --out models/first --iterations 30
TEXT may be files, directories, http(s) addresses or - (standard input); --help has the rest.
"""


def settle(options, args, argv):
    """-> the options in full: those given; of the others those of the run that --resume goes on
    with, or of the model that --init_from names; the defaults. Paths become absolute: a run may go
    on from another directory."""
    if not (args.text or args.out or args.plot or args.resume):
        options.exit(2, NEEDS)
    if args.plot:
        return args
    if not args.out:
        options.error("where to? give --out DIR")
    if saved := args.resume and read_checkpoint(args.out)[1].get("settings"):
        options.set_defaults(**saved)
    elif args.init_from:
        must_fit(options, args)
        told = read_training(args.init_from, args.models_dir)
        options.set_defaults(
            **{name: told[name] for name in TAKEN if name in told and told[name] != ["-"]}
        )
    args = options.parse_args(argv)
    if not args.text:
        none = f"; {args.out} holds no unfinished run" * args.resume
        options.error(f"which text? give one or more files{none}")
    must_fit(options, args)
    if args.learning_rate is None:
        args.learning_rate = TUNING_RATE if args.init_from else RATE
    for name, value in {} if args.init_from else SHAPE.items():
        if not (name == "vocab_size" and args.tokenizer):
            setattr(args, name, getattr(args, name) or value)
    if not args.init_from and args.n_embd % args.n_head:
        options.error(f"--n_embd {args.n_embd} is not divisible by --n_head {args.n_head}")
    if not isinstance(args.stopwords, list):
        args.stopwords = read_stopwords(args.stopwords) if args.stopwords else []
    if not os.path.dirname(args.out):
        args.out = os.path.join(os.curdir, args.out)  # a path for gpt2.py, too, and no name
    args.text = [x if x == "-" or is_address(x) else os.path.abspath(x) for x in args.text]
    args.models_dir = os.path.abspath(args.models_dir)
    args.init_from, args.tokenizer = absolute(args.init_from), absolute(args.tokenizer)
    return args


def must_fit(options, args):
    """Wrong usage where one option decides what another one asks for."""
    for name, decides in ("init_from", ("tokenizer", *SHAPE)), ("tokenizer", ("vocab_size",)):
        given = [other for other in decides if other != "n_ctx" and getattr(args, other)]
        if getattr(args, name) and given:
            options.error(f"--{given[0]} comes from the model that --{name} names")


def absolute(model):
    """The name of a model, or the absolute path of its directory if the name is a path."""
    is_path = model and (model in (".", "..") or re.search(r"[/\\~]", model))
    path = os.path.abspath(os.path.expanduser(model or ""))
    return path if is_path and os.path.isdir(path) else model
