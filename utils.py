"""From a model's name to its encoder, hparams and params: find it, fetch what is missing, load it.

    name                                            where it is looked for, one after another
    ./mine, ../mine, /models/mine, ~/mine (a path)  there
    shakespeare                                     in models_dir, in models beside this file
    124M, 355M, 774M, 1558M                         there, in the cache of Hugging Face's tools, on
                                                    the hub, in OpenAI's own store
    owner/name, owner/name@revision, or its page's  there as owner--name, in that cache, on the hub
    address (https://huggingface.co/owner/name)

What is fetched is kept in models_dir. The files are read in model_files/, which is plumbing.
"""

import os
import re
from pathlib import Path

from encoder import Encoder
from model_files.directory import holds_model, load_model
from model_files.files import read_json
from model_files.hub_cache import find_cached, hub_name, is_released
from model_files.released import SIZES
from model_files.vocabulary import read_vocabulary

MODELS = Path(__file__).resolve().parent / "models"  # beside the program
REPO = r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)*))?"


class UnknownModel(ValueError):
    """A name that is neither a size nor a model directory: wrong usage, in one line."""


def load_encoder_hparams_and_params(model_size, models_dir):
    """-> a model, by its name: an Encoder; hparams, a dict of what is no array (n_vocab, n_ctx,
    n_embd, n_head, n_layer, n_inner, layer_norm_epsilon, eos_token_ids); params, the arrays, a tree
    of float32 whose keys are the arguments of the functions in gpt2.py.

    ValueError (bad content, unknown name) or OSError (not to be read or fetched), in one line.
    """
    directory = find_model(model_size, Path(models_dir))
    vocabulary, hparams, params = load_model(directory, is_released=model_size in SIZES)
    return Encoder(vocabulary, hparams["n_vocab"]), hparams, params


def load_encoder(model_size, models_dir):
    """-> the Encoder of a model, by its name; of one that is not here, its vocabulary is all that
    is fetched."""
    directory = find_model(model_size, Path(models_dir), only_vocabulary=True)
    return Encoder(read_vocabulary(directory, is_released=model_size in SIZES))


def training_path(directory):
    return Path(directory) / "training.json"


def read_training(model_size, models_dir):
    """-> what train.py was told when it made a model: its options by their names, the stop words
    themselves; {} for a model from elsewhere."""
    path = training_path(find_model(model_size, Path(models_dir)))
    told = read_json(path) if path.is_file() else {}
    words, lowercase = told.get("stopwords", []), told.get("lowercase", False)
    if not isinstance(words, list) or {type(lowercase)} | {*map(type, words)} - {str} != {bool}:
        raise ValueError(f"{path}: lowercase is not true or false, or stopwords no list of words")
    return told


def text_changes(training):
    """How the text was changed that a model has learned from: "in lower case", or ""."""
    words = training.get("stopwords", [])
    without = f"without {', '.join(words[:5])}{' ...' * (len(words) > 5)}" if words else ""
    return " and ".join(filter(None, ["in lower case" * bool(training.get("lowercase")), without]))


def find_model(name, models_dir, only_vocabulary=False):
    """-> the directory of a model, which is fetched if neither models_dir nor a cache holds it, or
    only its vocabulary, if no more is asked for."""
    name = hub_name(name)
    repo = re.fullmatch(REPO, name)
    if name in (".", "..") or re.search(r"[/\\~]", name):  # a path, or owner/name
        path = Path(os.path.expanduser(name))
        if path.is_dir():
            return path
        if not repo or path.parent.is_dir():
            raise FileNotFoundError(f"{name}: no such directory")
    elif not re.fullmatch(r"\w[\w.@ +-]*", name):
        raise ValueError(f"{name!r} is no name of a model")
    can_be_fetched = repo or name in SIZES
    for models in models_dir, MODELS:
        directory = models / name.replace("/", "--")
        if holds_model(directory) or (directory.is_dir() and not can_be_fetched):
            if (directory / "incomplete").is_dir():  # fetching was killed just before its end
                from model_files.fetch import clean

                clean(directory)
            return directory
    if not can_be_fetched:
        raise UnknownModel(describe_models(name, models_dir))
    repo, revision = SIZES.get(name) or repo.groups(default="main")
    cached = find_cached(repo, revision)
    if cached and (name not in SIZES or is_released(name, cached, models_dir)):
        return cached
    from model_files.fetch import fetch  # imports requests, which takes longer than all the rest

    directory = models_dir / name.replace("/", "--")
    fetch(name, repo, revision, directory, only_vocabulary)
    return directory


def describe_models(name, models_dir):
    """One line that says which models there are, in place of an unknown one."""
    found = {path.name for path in [*models_dir.glob("*"), *MODELS.glob("*")] if holds_model(path)}
    return (
        f"unknown model {name!r}: known sizes are {', '.join(SIZES)}; in {models_dir} and beside "
        f"the program there is {', '.join(sorted(found)) or 'none'}; a path or a repository "
        "owner/name of the Hugging Face hub will do as well"
    )
