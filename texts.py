"""Where a text comes from: files, directories, standard input, the network. Plumbing.

shakespeare.txt     a file; a .jsonl holds an object with a "text" on each line
notes               a directory: every .txt and .md below it that is not empty, sorted
https://host/file   fetched once, and kept in models_dir under texts
-                   standard input, kept as long as it is read; so is any other pipe
"""

import contextlib
import hashlib
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import command


def find_texts(names, models_dir, keep):
    """-> the paths of the files that these names stand for, in their order. keep: the directory for
    what can be read only once, as piped-text-0, piped-text-1 ..."""
    paths = []
    for name in map(str, names):
        if is_address(name):
            paths.append(fetch_text(name, Path(models_dir) / "texts"))
        elif is_stream(name):
            paths.append(keep_stream(name, Path(keep) / f"piped-text-{len(paths)}"))
        elif os.path.isdir(name):
            paths += files_below(Path(name))
        else:
            paths.append(name)
    return paths


def is_address(name):
    return re.match("https?://", name, re.I)


def is_stream(name):
    is_kept = os.path.isfile(name) or os.path.isdir(name)
    return name == "-" or (os.path.exists(name) and not is_kept)


def keep_stream(name, path):
    """Copy what comes through a pipe into a file; -> its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        shutil.copyfileobj(command.open_bytes(name), file)
        if not file.tell():
            raise ValueError(f"{'standard input' if name == '-' else name} is empty")
    return path


def files_below(directory):
    found = (path for path in directory.rglob("*") if path.suffix.lower() in (".txt", ".md"))
    if paths := sorted(path for path in found if path.is_file() and path.stat().st_size):
        return paths
    raise ValueError(f"{directory}: no .txt and no .md below it")


def fetch_text(address, directory):
    """-> the file of an address, which is fetched unless it is there."""
    name = re.sub(r"[^\w.-]", "_", unquote(urlsplit(address).path.split("/")[-1]))[-80:] or "text"
    digest = hashlib.sha256(address.encode()).hexdigest()[:8]  # many are called input.txt
    path = directory / f"{digest}-{name}"
    if not path.exists():
        from model_files.download import download  # imports requests, which takes a while
        from model_files.transport import Fault

        directory.mkdir(parents=True, exist_ok=True)
        try:
            download(address, path, plain=True)
        except Fault as fault:
            with contextlib.suppress(OSError):  # what has come stays: a later run goes on from it
                directory.rmdir()
                directory.parent.rmdir()
            raise OSError(f"{address} could not be fetched: {fault}") from None
    return path
