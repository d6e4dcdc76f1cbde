"""What Hugging Face's own tools have set up here: their variables, their token, their cache.

A model that lies in the cache whole is used where it lies; what is whole of another is not fetched.
"""

import contextlib
import json
import os
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from model_files.directory import holds_model, read_weight_map
from model_files.files import write_atomic
from model_files.released import SHA256, check_config


def offline():
    """-> the variable by which the user forbids every request, or ""."""
    for name in "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE":
        if os.environ.get(name, "").strip().upper() in ("1", "ON", "YES", "TRUE"):
            return name
    return ""


def place(variable, default):
    """-> the path that a variable holds, where $HOME and ~ may stand in it."""
    return Path(os.path.expandvars(os.path.expanduser(os.environ.get(variable) or str(default))))


def home():
    return place("HF_HOME", place("XDG_CACHE_HOME", "~/.cache") / "huggingface")


def hub_token():
    """-> the user's token, "" if there is none; where it comes from. ValueError if it is none."""
    token, source = os.environ.get("HF_TOKEN", "").strip(), "HF_TOKEN"
    if not token:
        path = place("HF_TOKEN_PATH", home() / "token")
        with contextlib.suppress(OSError, UnicodeDecodeError):
            token, source = path.read_text(encoding="utf-8").strip(), str(path)
    if not re.fullmatch("[!-~]*", token):
        raise ValueError(
            f"{source} holds more than the plain letters and signs of a token: set it again, or "
            "do without it"
        )
    return token, source


def hub_name(name):
    """-> owner/name[@revision] of an address that was copied from a browser, else the name."""
    hosts = ["huggingface.co", "hf.co"]
    with contextlib.suppress(ValueError):  # what is no address is said by whoever asks there
        hosts.append(urlsplit(os.environ.get("HF_ENDPOINT", "").strip()).hostname)
    found = re.fullmatch(r"(?:https?://)?(?:www\.)?([^/:@]+)(?::\d+)?/([^?#]*)[^ ]*", name.strip())
    if not found or found[1] not in hosts:
        return name
    owner, repo, kind, *rest = [*found[2].strip("/").split("/"), "", "", ""][:7]
    if not repo or owner in ("api", "datasets", "spaces"):
        return name
    revision = ""
    if kind in ("tree", "blob", "resolve", "commit"):
        revision = unquote("/".join(rest[:3] if rest[0] == "refs" else rest[:1]))
    return f"{owner}/{repo}@{revision}" if revision not in ("", "main") else f"{owner}/{repo}"


def snapshot(repo, revision):
    """-> where the cache has the files of this commit, tag or branch; there may be none."""
    cache = place("HF_HUB_CACHE", place("HUGGINGFACE_HUB_CACHE", home() / "hub"))
    cache = cache / f"models--{repo.replace('/', '--')}"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        revision = (cache / "refs" / revision).read_text(encoding="ascii").strip()
    return cache / "snapshots" / revision


def find_cached(repo, revision):
    """-> the directory of the cache that holds this repository whole, or None."""
    directory = snapshot(repo, revision)
    with contextlib.suppress(OSError, ValueError):  # what cannot be read is not there
        pair = all((directory / name).is_file() for name in ("vocab.json", "merges.txt"))
        vocabulary = pair or (directory / "tokenizer.json").is_file()
        config = (directory / "config.json").is_file()
        if vocabulary and config and holds_model(directory) and has_shards(directory):
            return directory
    return None


def has_shards(directory):
    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").is_file() or not index.is_file():
        return True
    return all((directory / file).is_file() for file in read_weight_map(index).values())


def is_released(name, directory, models_dir):
    """Are these files of the cache the ones that were released? All bytes are read the first time;
    models_dir/name.checked remembers which files, how long and how old, were found good."""
    note = models_dir / f"{name}.checked"
    pins = {file: SHA256.get(f"{name}/{file}") for file in ("config.json", "vocab.json")}
    pins |= {file: SHA256.get(f"{name}/{file}") for file in ("merges.txt", "model.safetensors")}
    try:
        stats = {file: os.stat(directory / file) for file in pins}
        seen = {file: [stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()}
        seen = {"directory": str(directory), **seen}
        with contextlib.suppress(OSError, ValueError):
            if json.loads(note.read_bytes()) == seen:
                return True
        check_config(name, directory / "config.json")
        from model_files.proof import Promise, prove  # needed once

        print(f"checking {name} in {directory}, this once", file=sys.stderr)
        for file, sha256 in pins.items():
            if sha256:
                prove(directory / file, file, Promise("sha256", sha256))
    except (OSError, ValueError):
        return False
    with contextlib.suppress(OSError):  # a directory that is only to be read
        models_dir.mkdir(parents=True, exist_ok=True)
        with write_atomic(note) as file:
            file.write(json.dumps(seen).encode())
    return True
