"""Find, download and load a model by its name: its encoder, hyperparameters and parameters.

These are the kinds of names, with the places where each is looked for, in this order:

    ./mine, ../mine, /models/mine, ~/mine   this directory
    shakespeare                             models_dir; the directory models next to this file
    124M, 355M, 774M, 1558M                 the same; Hugging Face's cache; the hub; OpenAI's store
    gpt2, gpt2-medium, gpt2-large, gpt2-xl  the same four; distilgpt2 is distilbert/distilgpt2
    owner/name, owner/name@revision         this directory; owner--name in models_dir and models;
                                            Hugging Face's cache; the hub
    https://huggingface.co/owner/name       the same; you can copy the address from a browser

Downloaded models are kept in models_dir.
"""

import contextlib
import os
import re
from pathlib import Path
from urllib.parse import unquote

from encoder import Encoder
from model_files import SIZES
from model_files.directory import holds_model, is_complete, load_model
from model_files.files import read_bytes, remove, without_credentials
from model_files.hub import fetch, hugging_face_path
from model_files.vocabulary import holds_vocabulary, read_vocabulary

MODELS = Path(__file__).resolve().parent / "models"
ALIASES = {  # the names of tutorials; the hub still redirects from them
    "gpt2": "124M",
    "gpt2-medium": "355M",
    "gpt2-large": "774M",
    "gpt2-xl": "1558M",
    "distilgpt2": "distilbert/distilgpt2",
}
WORD = r"[A-Za-z0-9][\w.-]*"
REPO = f"({WORD}/{WORD})(?:@({WORD}(?:/{WORD})*))?"  # owner/name@revision, such as a/b@refs/pr/1
PAGE = rf"""
    (?:https?://)?(?P<host>[^/]+)
    /(?!api/|datasets/|spaces/)(?P<repo>(?:{"|".join(ALIASES)})(?=[/?#]|$)|[^/?#]+/[^/?#]+)
    (?:/(?:tree|blob|resolve|commit)/(?P<revision>refs/[^/?#]+/[^/?#]+|[^/?#]+))?
    (?:[/?#].*)?  # a file in it, a tab of the page
"""


class UnknownModel(ValueError):
    """The name is not a released size, a model directory or a repository."""

    exit_status = 2  # A command exits with it: wrong usage.


def load_encoder_hparams_and_params(model_size, models_dir, tokenizer=None, only_plain=False):
    """Return the encoder, the hyperparameters and the parameters of a model.

    hparams is a dict of everything except the arrays (n_vocab, n_ctx, n_embd, n_head, n_layer,
    n_inner, layer_norm_epsilon, eos_token_ids, training); params is a tree of float32 arrays whose
    keys are the arguments of the functions in gpt2.py. tokenizer: the name of another model, whose
    vocabulary is taken; only_plain: refuse a model that gpt2_pico.py could not run. ValueError if
    the name is unknown or a file is damaged, OSError if it cannot be read or downloaded.
    """
    model_size = resolve_alias(model_size, Path(models_dir))
    directory = find_model(model_size, Path(models_dir))
    if tokenizer is not None and holds_vocabulary(directory):
        raise ValueError(f"{directory} has a vocabulary of its own: leave out --tokenizer")
    other = None if tokenizer is None else load_encoder(tokenizer, models_dir).vocabulary
    is_released = model_size in SIZES
    vocabulary, hparams, params = load_model(directory, is_released, other, only_plain)
    return Encoder(vocabulary, hparams["n_vocab"]), hparams, params


def load_encoder(model_size, models_dir):
    """Return the Encoder of a model. Only its vocabulary is downloaded, if necessary."""
    model_size = resolve_alias(model_size, Path(models_dir))
    directory = find_model(model_size, Path(models_dir), only_vocabulary=True)
    return Encoder(read_vocabulary(directory, is_released=model_size in SIZES))


def resolve_alias(name, models_dir):
    """Return 124M for gpt2, and so on, unless there is a model directory with that name."""
    name = name_of(text_of(name))
    base, _, revision = name.partition("@")
    if base not in ALIASES or any((models / base).is_dir() for models in (models_dir, MODELS)):
        return name
    alias = ALIASES[base]
    if revision:
        return f"{SIZES[alias][0] if alias in SIZES else alias}@{revision}"
    return alias


def text_of(name):
    """Return a name or a pathlib.Path as text. The Path of a directory becomes absolute, because a
    Path drops the "./" that distinguishes a path from a name."""
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"the name of a model is {name!r}: it must be text or a path")
    if isinstance(name, os.PathLike) and os.path.isdir(name):
        return os.path.abspath(name)
    return os.fspath(name)


def find_model(name, models_dir, only_vocabulary=False):
    """Return the directory of a model, or of its vocabulary, which is downloaded if necessary."""
    name = resolve_alias(name, models_dir)
    on_hub = re.fullmatch(REPO, name)
    if name in (".", "..") or re.search(r"[/\\~]", name):  # a path, or owner/name
        path = Path(os.path.expanduser(name))
        if path.is_dir():
            return path
        if path.is_file():
            raise FileNotFoundError(f"{name} is a file: name its directory, {path.parent}")
        if not on_hub or path.parent.is_dir():  # "owner" is a directory here: this is a path
            raise FileNotFoundError(f"{name}: no such directory")
    elif not re.fullmatch(r"\w[\w.@ +-]*", name):
        raise ValueError(f"{name!r} is not the name of a model")
    can_be_fetched = on_hub or name in SIZES
    for models in (models_dir, MODELS):
        directory = models / name.replace("/", "--")
        # If the weights are missing and cannot be downloaded, the loader will say what is missing.
        if holds_model(directory) or (directory.is_dir() and not can_be_fetched):
            if (directory / "fetch.lock").is_file():
                # The weights are installed last. So the download was killed before it tidied up.
                remove(directory / "incomplete")
                remove(directory / "fetch.lock")
            return directory
        if only_vocabulary and holds_vocabulary(directory):
            return directory
    if not can_be_fetched:
        raise UnknownModel(describe_models(name, models_dir))
    repo, revision = SIZES[name] if name in SIZES else on_hub.groups(default="main")
    # A released size has one content, although the hub's main may have had another commit.
    cached = find_cached(repo, revision) or (name in SIZES and find_cached(repo, "main"))
    if cached:
        return cached
    directory = models_dir / name.replace("/", "--")
    fetch(name, repo, revision, directory, only_vocabulary)
    return directory


def find_cached(repo, revision):
    """Return the directory in Hugging Face's cache that has all of a repository, or None."""
    variable = "HF_HUB_CACHE" if os.environ.get("HF_HUB_CACHE") else "HUGGINGFACE_HUB_CACHE"
    cache = hugging_face_path(variable, "hub")
    aliases = (x for x, name in ALIASES.items() if repo in (name, SIZES.get(name, [""])[0]))
    for name in (*aliases, repo):  # from_pretrained("gpt2") keeps it as models--gpt2
        found = find_snapshot(cache / f"models--{name.replace('/', '--')}", revision)
        if found:
            return found
    return None


def find_snapshot(cache, revision):
    """Return the directory of a revision in a repository's cache if it is complete, or None."""
    with contextlib.suppress(OSError, ValueError):  # A commit is not in refs.
        revision = read_bytes(cache / "refs" / revision).decode("ascii").strip()
    directory = cache / "snapshots" / revision
    return directory if is_complete(directory) else None


def name_of(address):
    """Return a/b@v1 for https://huggingface.co/a/b/tree/v1. Return other names unchanged."""
    address = without_credentials(address)
    page = re.fullmatch(PAGE, address.strip(), re.VERBOSE)
    # This is the host of a mirror, without scheme, password and path.
    mirror = re.sub("^https?://([^/]*@)?|/.*", "", os.environ.get("HF_ENDPOINT", "").strip())
    if not page or page["host"] not in ("huggingface.co", "www.huggingface.co", "hf.co", mirror):
        return address
    revision = unquote(page["revision"] or "main")
    return page["repo"] if revision == "main" else f"{page['repo']}@{revision}"


def describe_models(name, models_dir):
    """Return a line that says which names of models are possible."""
    if os.path.exists(name):
        return f"unknown model {name!r}: did you mean ./{name}?"
    paths = [path for models in (models_dir, MODELS) for path in models.glob("*")]
    here = sorted({path.name for path in paths if holds_model(path)})
    return (
        f"unknown model {name!r}: give a size ({', '.join(SIZES)}), a model in {models_dir} "
        f"or beside this program ({', '.join(here) or 'there is none'}), the path of a directory, "
        "or owner/name on the Hugging Face hub"
    )
