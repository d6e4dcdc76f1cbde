"""Define the options of train.py, and find the values of those that are not given."""

import argparse
import os
import re
from pathlib import Path

import cli
from training.corpus import COPIES, TEXT_HELP, forget_credentials, is_address, read_stopwords
from training.run import checkpoint_path, read_checkpoint
from utils import load_encoder_hparams_and_params as load
from utils import name_of

number = cli.number  # number(kind, low, high) returns a function that reads and checks a value.
positive, fraction = number(int, 1, 2**31), number(float, 0, 1)
TUNING_RATE = 4e-4  # A model that has been trained before needs a smaller learning rate.

# name: (default, kind, help). kind is a function that reads the value, a list of choices, or bool
# for a flag. If any text is valid, kind is its name in --help. {} in the help is the default.
MODEL = {
    "n_layer": (6, number(int, 1, 1000), "layers ({})"),
    "n_head": (4, positive, "heads, a divisor of n_embd ({})"),
    "n_embd": (256, positive, "numbers per token ({})"),
    "n_ctx": (256, positive, "tokens of context ({}; with --init_from: the model's, or fewer)"),
    "vocab_size": (2048, number(int, 257), "size of the vocabulary to learn; 257: bytes only ({})"),
    "tokenizer": (None, "MODEL", "take this model's vocabulary instead of learning one"),
    "init_from": (
        None,
        "MODEL",
        "start from this model's weights, shape and vocabulary; if train.py made it, also use its "
        "text and its options, except those of the schedule, unless they are given",
    ),
    "models_dir": ("models", "DIR", "where models are kept ({})"),
    "dtype": ("float32", ["float32", "float16"], "of saved weights; float16 halves the file ({})"),
}
TRAINING = {
    "batch_size": (12, positive, "sequences per step ({})"),
    "iterations": (600, positive, "steps of the run ({})"),
    "minutes": (None, number(float, 0.01), "length of the run, instead of iterations"),
    "learning_rate": (4e-3, number(float, 0), f"peak rate ({{}}; {TUNING_RATE} with --init_from)"),
    "warmup": (0.05, number(float, 1e-6, 1), "part of the run in which the rate rises ({})"),
    "dropout": (0.1, number(float, 0, 0.99), "part of a layer's output, set to 0 at random ({})"),
    "weight_decay": (0.1, number(float, 0), "weight decay of the matrices ({})"),
    "optimizer": ("muon", ["muon", "adamw"], "for the matrices in blocks; adamw for the rest ({})"),
    "eval_interval": (100, positive, "steps between evaluations and checkpoints ({})"),
    "seed": (0, number(int, 0), "the same seed, threads and iterations give the same run ({})"),
    "threads": (None, number(int, 1, 1000), "number of threads (one per core)"),
}
TEXT = {
    "val_fraction": (
        0.1,
        fraction,
        "part of the text, its end, held out to find the best model; 0: none, keep the last ({})",
    ),
    "text_column": (
        None,
        "NAME",
        "the column of a CSV file that has the texts, by default its only one",
    ),
    "text_key": ("text", "KEY", "the key of the texts in a .jsonl file ({})"),
    "lowercase": (False, bool, "train on the text in lower case"),
    "stopwords": ([], "FILE", "drop the words in this file from the text"),
    "literal_endoftext": (False, bool, "read <|endoftext|> as ordinary text"),
    "merge_dropout": (
        0.0,
        fraction,
        f"train on {COPIES} copies of the text, each split into tokens differently: the first "
        "without this part of the merges, each later one with more of them; this keeps a long run "
        "from learning a small text by heart ({:g})",
    ),
}
ROWS = {**MODEL, **TRAINING, **TEXT}
DEFAULTS = {"text": [], **{name: default for name, (default, _, _) in ROWS.items()}}

SHAPE = ("vocab_size", "n_layer", "n_head", "n_embd")
# --init_from takes these from the model's training.json.
INHERITED = ("text", *TEXT, "n_ctx", "batch_size", "dropout", "weight_decay", "optimizer", "dtype")
# --resume must not change these.
FIXED = ("text", *TEXT, *SHAPE, "n_ctx", "init_from", "tokenizer", "dtype", "seed", "optimizer")


def parser():
    """Return the parser of the command's options. Its result has only those that the user gave."""
    parser = cli.new_parser(
        "train.py",
        "Train a GPT from text files, into a Hugging Face model directory that gpt2.py opens.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "text", nargs="*", help=f"{TEXT_HELP}; the last part is held out for validation"
    )
    add = parser.add_argument
    add("--out", type=cli.not_empty, metavar="DIR", help="the model directory to write")
    add("--plot", metavar="DIR", help="draw the loss of a run into DIR/loss.png instead")
    add = parser.add_mutually_exclusive_group().add_argument
    resume_help = "continue from the last checkpoint in --out, with its options unless given again"
    add("--resume", action="store_true", help=resume_help)
    add("--overwrite", action="store_true", help="replace the model or run in --out")
    for title, rows in (("model", MODEL), ("training", TRAINING), ("text", TEXT)):
        group = parser.add_argument_group(title)
        for name, (default, kind, text) in rows.items():
            keywords = {"type": kind}
            if kind is bool:
                keywords = {"action": "store_true"}
            elif isinstance(kind, list):
                keywords = {"choices": kind}
            elif isinstance(kind, str):
                keywords = {"metavar": kind}
            group.add_argument(f"--{name}", help=text.format(default), **keywords)
    return parser


def resolve_options(given):
    """Return the options of a run as a Namespace, and the model that --init_from names, or None.

    given: {name: value} as the parser returns it. These values override those of the unfinished run
    (with --resume) or those in the model's training.json (with --init_from), which override the
    defaults. UsageError if the options contradict each other.
    """
    given = dict(given)
    out = given.pop("out")
    resume = given.pop("resume", False)
    given.pop("overwrite", None)
    unfinished = {}
    if resume and checkpoint_path(out).exists():
        settings = read_checkpoint(out)[1].settings
        unfinished = {name: settings.get(name) for name in DEFAULTS}
        has_model = bool(unfinished.get("init_from"))
        check_options(unfinished, has_model, checkpoint_path(out), "--overwrite starts over")
    elif resume and (Path(out) / "training.json").is_file():
        advice = f"to train the model further, give --init_from {out} and another --out"
        raise ValueError(f"{out}: its run is finished; {advice}")
    for name in {"init_from", "tokenizer"} & given.keys():
        given[name] = name_of(given[name])  # without a password
    options = {**DEFAULTS, **unfinished, **given}
    decided_by = {"init_from": ("tokenizer", *SHAPE), "tokenizer": ("vocab_size",)}
    for source, names in decided_by.items():
        for name in names:
            if options[source] and name in given:
                raise cli.UsageError(f"--{name} comes from the model that --{source} names")
    model = None
    if options["init_from"]:
        model = load(options["init_from"], options["models_dir"], only_plain=True)
        if not unfinished:
            defaults = {**DEFAULTS, "learning_rate": TUNING_RATE, "n_ctx": None}
            recorded = inherited(model)
            path = f"{options['init_from']}: training.json"
            check_options(recorded, True, path, "repair or remove that file")
            options = {**defaults, **recorded, **given}
        options |= dict.fromkeys(SHAPE)  # None means that the model decides
    if options["tokenizer"]:
        options["vocab_size"] = None
    n_embd, n_head, n_ctx = options["n_embd"], options["n_head"], options["n_ctx"]
    if not options["text"]:
        reason = f"; {out} holds no unfinished run" if resume else ""
        raise cli.UsageError(f"which text? give one or more files{reason}")
    if model is None and n_embd % n_head != 0:
        raise cli.UsageError(f"--n_embd {n_embd} is not divisible by --n_head {n_head}")
    if model and n_ctx and n_ctx > model[1]["n_ctx"]:
        limit = f"{options['init_from']} has a context of {model[1]['n_ctx']} tokens"
        raise ValueError(f"{limit}: --n_ctx {n_ctx} is more")
    options = absolute(options)
    changed = [name for name in FIXED if unfinished and options[name] != unfinished.get(name)]
    if changed:
        raise ValueError(f"{out}: --resume needs the same {', '.join(changed)} as before")
    return argparse.Namespace(**options), model


def inherited(model):
    """Return the options in a model's training.json that a new run takes from it."""
    _, hparams, _ = model
    options = {name: x for name, x in hparams["training"].items() if name in INHERITED}
    if options.get("text") == ["-"]:  # standard input cannot be read again
        del options["text"]
    return options


def check_options(options, has_model, path, advice):
    """Raise ValueError naming the file if an option has a value that the parser would refuse."""
    for name, value in options.items():
        if not is_valid(name, value, options, has_model):
            raise ValueError(
                f"{path}: {name} is {value!r:.40}, which train.py does not accept: {advice}"
            )


def is_valid(name, value, options, has_model):
    if name in ("text", "stopwords"):
        is_list = isinstance(value, list) and all(isinstance(x, str) for x in value)
        return is_list and (name == "stopwords" or len(value) > 0)
    default, kind, _ = ROWS[name]
    if value is None:  # the model or the vocabulary decides
        has_vocabulary = name == "vocab_size" and options.get("tokenizer")
        return default is None or has_vocabulary or (has_model and name in (*SHAPE, "n_ctx"))
    if kind is bool:
        return isinstance(value, bool)
    if isinstance(kind, list):
        return value in kind
    if isinstance(kind, str):
        return isinstance(value, str)
    try:
        return type(value) in (int, float) and kind(str(value)) == value
    except (ValueError, argparse.ArgumentTypeError):
        return False


def absolute(options):
    """Return the options with absolute paths, since a run may be resumed from another directory.

    stopwords becomes the list of words in the file, and threads the number of cores if not given.
    """
    options = dict(options)
    for name in ("init_from", "tokenizer"):
        model = options[name] or ""
        path = os.path.abspath(os.path.expanduser(model))
        if (model in (".", "..") or re.search(r"[/\\~]", model)) and os.path.isdir(path):
            options[name] = path
    models_dir = options["models_dir"] = os.path.abspath(options["models_dir"])
    texts = []
    for name in options["text"]:
        if is_address(name):
            texts.append(forget_credentials(name, models_dir))
        else:
            texts.append(name if name == "-" else os.path.abspath(name))
    options["text"] = texts
    if isinstance(options["stopwords"], str):
        options["stopwords"] = read_stopwords(options["stopwords"])
    options["threads"] = options["threads"] or os.cpu_count() or 1
    return options
