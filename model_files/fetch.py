"""Fetch a model: from the Hugging Face hub, or from OpenAI's own store where the hub fails.

What arrives is kept in the model's directory under incomplete/, each file as a .part until it is
verified, so that a later run goes on from there. The model itself is written in the end, aligned.
"""

import contextlib
import os
import re
import shutil
import time

from model_files.directory import holds_model, read_model, write_config, write_weights
from model_files.download import Fault, Missing, announce, check_space, download
from model_files.files import try_lock, write_atomic
from model_files.released import SHA256, SIZES
from model_files.sources import from_hub, from_store, hub_token

LOCK_WAIT = 0.5  # seconds between two looks at what another process does
WITHOUT = 'without a download there is: python gpt2.py "ROMEO:" --model_size shakespeare'


def fetch(name, repo, revision, directory):
    """Put a whole model into directory; ValueError (no such model) or OSError, in one line."""
    stage, faults, began = directory / "incomplete", [], time.monotonic()
    if not re.fullmatch("[!-~]*", hub_token()):
        raise ValueError(
            "HF_TOKEN holds more than the plain letters and signs of a token: set it "
            "again, or unset it"
        )
    sources = [("HF_ENDPOINT", "https://huggingface.co", from_hub)]
    if name in SIZES:
        sources.append(
            (
                "GPT2_OPENAI_URL",
                "https://openaipublic.blob.core.windows.net/gpt-2/models",
                from_store,
            )
        )
    with lock(directory):
        if holds_model(directory):  # another process has just fetched it
            return
        for variable, base, source in sources:
            base = (os.environ.get(variable) or base).rstrip("/")
            announce(f"fetching {name} from {base} to {directory}")
            stage.mkdir(exist_ok=True)
            try:
                source(base, name, repo, revision, stage)
                install(stage, directory)
                clean(directory)
                return announce(f"fetched {name} in {time.monotonic() - began:.0f} s")
            except Fault as fault:
                faults.append(f"{base}: {fault}")
            except ValueError as error:  # genuine, but no GPT-2 that is understood here
                shutil.rmtree(stage)
                if name not in SIZES:
                    raise
                faults.append(f"{base}: {error}")
            except OSError as error:  # the disk, not the network
                raise OSError(f"{directory}: {error}") from None
            announce(f"no luck at {faults[-1]}")
        kept = sum(path.stat().st_size for path in stage.glob("*"))
    raise OSError(
        f"{name} could not be fetched: {'; '.join(faults)}"
        + f"; {kept / 1e6:.1f} MB are kept in {stage}, and the same command goes on from "
        "there" * (kept > 0) + f"; {WITHOUT}" * (name in SIZES)
    )


def fetch_vocabulary(name, repo, revision, directory):
    """Put the files of a vocabulary into directory, without a model; OSError, in one line."""
    base = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")

    def get(file):
        url, pinned = f"{base}/{repo}/resolve/{revision}/{file}", SHA256.get(f"{name}/{file}")
        download(url, directory / file, pinned, hub_token())

    with lock(directory):
        announce(f"fetching the vocabulary of {name} from {base} to {directory}")
        try:
            try:
                get("vocab.json")
                get("merges.txt")
            except Missing:
                get("tokenizer.json")
            with contextlib.suppress(Missing):
                get("added_tokens.json") if name not in SIZES else None
        except Fault as fault:
            raise OSError(f"the vocabulary of {name} could not be fetched: {fault}") from None


def clean(directory):
    """Remove what fetching leaves in a directory that holds a whole model, if that is possible."""
    with contextlib.suppress(OSError):
        os.remove(directory / "fetch.lock")
    shutil.rmtree(directory / "incomplete", ignore_errors=True)  # last: it is what later runs see


@contextlib.contextmanager
def lock(directory):
    """One process at a time fetches into a directory; the system unlocks it even after kill -9."""
    path, told = directory / "fetch.lock", False
    while not (file := try_lock(path)):
        if not told:
            announce(f"another process is fetching into {directory}: waiting for it")
        told = True
        time.sleep(LOCK_WAIT)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # on Windows, where an open file stays
            os.remove(path)
        file.close()
        for emptied in directory / "incomplete", directory:
            with contextlib.suppress(OSError):  # where anything has been kept, they stay
                emptied.rmdir()


def install(stage, directory):
    """Verified files -> a model: float32, aligned, without what nobody reads; the weights last."""
    _, hparams, tensors = read_model(stage)
    check_space(directory, 4 * sum(x.size for x in tensors.values()))
    for old, new in (
        ("encoder.json", "vocab.json"),
        ("vocab.bpe", "merges.txt"),
        ("vocab.json", "vocab.json"),
        ("merges.txt", "merges.txt"),
        ("added_tokens.json", "added_tokens.json"),
        ("tokenizer.json", "tokenizer.json"),
        ("source.json", "source.json"),
    ):
        if (stage / old).exists():
            with write_atomic(directory / new) as file:
                file.write((stage / old).read_bytes())
    write_config(directory, hparams)
    write_weights(directory / "model.safetensors", tensors)  # float32 from here on
