"""The cache of Hugging Face's own tools: a model that lies there is used where it lies."""

import contextlib
import os
from pathlib import Path

from model_files.directory import holds_model


def find_cached(repo, revision):
    """-> the directory of the cache that holds this repository whole, or None."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", os.path.join(cache, "huggingface"))
    cache = os.path.expanduser(os.environ.get("HF_HUB_CACHE", os.path.join(home, "hub")))
    cache = Path(cache, f"models--{repo.replace('/', '--')}")
    with contextlib.suppress(OSError, UnicodeDecodeError):
        revision = (cache / "refs" / revision).read_text(encoding="ascii").strip()
    directory = cache / "snapshots" / revision
    with contextlib.suppress(OSError):  # what cannot be read is not there
        pair = all((directory / name).is_file() for name in ("vocab.json", "merges.txt"))
        vocabulary = pair or (directory / "tokenizer.json").is_file()
        config = (directory / "config.json").is_file()
        return directory if vocabulary and config and holds_model(directory) else None
