"""Fetch a model: from the Hugging Face hub, or from OpenAI's own store where the hub fails.

What arrives is kept in the model's directory under incomplete/, each file as a .part until it is
verified, so that a later run goes on from there. The model itself is written in the end, aligned.
"""

import contextlib
import json
import os
import re
import shutil
import time

from download import Fault, Missing, check_space, download, say
from tensor_file import read_json, write_atomic
from tf_checkpoint import read_checkpoint
from utils import (
    SIZES,
    flatten,
    holds_model,
    hparams_of,
    nest,
    read_config,
    read_model,
    read_weight_map,
    write_config,
    write_weights,
)

LOCK_WAIT = 0.5  # seconds between two looks at what another process does
WITHOUT = 'without a download there is: python gpt2.py "ROMEO:" --model_size shakespeare'

DATA = "model.ckpt.data-00000-of-00001"  # OpenAI's weights
SHA256 = {
    "124M/model.safetensors": "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    "355M/model.safetensors": "fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd",
    "774M/model.safetensors": "5f47f3e12f91cd33b662ce7e433b6150ad5512b5884a2cee961b50e9c3bbebce",
    "1558M/model.safetensors": "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
    f"124M/{DATA}": "2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118",
    "124M/model.ckpt.index": "71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687",
    "124M/hparams.json": "d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318",
}
for _size in SIZES:  # one vocabulary for all of them, under two names
    SHA256[f"{_size}/vocab.json"] = SHA256[f"{_size}/encoder.json"] = (
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
    )
    SHA256[f"{_size}/merges.txt"] = SHA256[f"{_size}/vocab.bpe"] = (
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
    )


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
            say(f"fetching {name} from {base} to {directory}")
            stage.mkdir(exist_ok=True)
            try:
                source(base, name, repo, revision, stage)
                install(stage, directory)
                clean(directory)
                return say(f"fetched {name} in {time.monotonic() - began:.0f} s")
            except Fault as fault:
                faults.append(f"{base}: {fault}")
            except ValueError as error:  # genuine, but no GPT-2 that is understood here
                shutil.rmtree(stage)
                if name not in SIZES:
                    raise
                faults.append(f"{base}: {error}")
            except OSError as error:  # the disk, not the network
                raise OSError(f"{directory}: {error}") from None
            say(f"no luck at {faults[-1]}")
        kept = sum(path.stat().st_size for path in stage.glob("*"))
    raise OSError(
        f"{name} could not be fetched: {'; '.join(faults)}"
        + f"; {kept / 1e6:.1f} MB are kept in {stage}, and the same command goes on from "
        "there" * (kept > 0) + f"; {WITHOUT}" * (name in SIZES)
    )


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
            say(f"another process is fetching into {directory}: waiting for it")
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


def try_lock(path):
    """-> the locked file, or None if another process has locked it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "wb"))
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return None
        except OSError:  # a network disk without locks
            pass
        # Who held the lock before may have removed the file that has been opened here.
        if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
            stack.pop_all()
            return file
    return None


def hub_token():
    return os.environ.get("HF_TOKEN", "").strip()


def from_hub(base, name, repo, revision, stage):
    """Put config, vocabulary and weights of one commit of a repository into stage.

    A branch is resolved once: source.json keeps the commit, for this run and the ones that go on.
    """

    def get(file):
        return download(
            f"{base}/{repo}/resolve/{commit}/{file}",
            stage / file,
            SHA256.get(f"{name}/{file}"),
            hub_token(),
        )

    commit, source = revision, stage / "source.json"
    known = read_json(source) if source.exists() else {}
    if known.get("asked") == [repo, revision] and isinstance(known.get("commit"), str):
        commit = known["commit"]
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(stage / "config.json")
        named = get("config.json")
        commit = named if re.fullmatch("[0-9a-f]{40}", named) else revision
        with write_atomic(source) as file:
            file.write(json.dumps({"asked": [repo, revision], "commit": commit}).encode())
    read_config(stage / "config.json")  # before gigabytes of another architecture are fetched
    try:
        get("vocab.json")
        get("merges.txt")
        if name not in SIZES:  # whose files are known
            with contextlib.suppress(Missing):
                get("added_tokens.json")
    except Missing:
        get("tokenizer.json")
    try:
        get("model.safetensors")
    except Missing:
        try:
            get("model.safetensors.index.json")
        except Missing:
            raise ValueError(f"{repo} has no model.safetensors; pickles are not opened") from None
        for file in sorted(set(read_weight_map(stage / "model.safetensors.index.json").values())):
            get(file)


def from_store(base, name, repo, revision, stage):
    """Put OpenAI's own files into stage, verified by the index where no hash is published."""
    for file in ("hparams.json", "encoder.json", "vocab.bpe", "model.ckpt.index", DATA):
        download(f"{base}/{name}/{file}", stage / file, SHA256.get(f"{name}/{file}"))
    read_checkpoint(stage / "model.ckpt", verify=f"{name}/{DATA}" not in SHA256)


def install(stage, directory):
    """Verified files -> a model: float32, aligned, without what nobody reads; the weights last."""
    encoder, config, tensors = read_model(stage)
    params = nest(stage, config, tensors, convert=lambda x: x)  # widened while it is written
    check_space(directory, 4 * sum(x.size for x in flatten(params).values()))
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
    write_config(directory, hparams_of(config, encoder), params)
    write_weights(directory / "model.safetensors", params)
