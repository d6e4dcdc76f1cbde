"""Fetch a model: from the Hugging Face hub, or from OpenAI's own store where the hub fails.

What arrives is kept in the model's directory under incomplete/, each file as a .part until it is
proven whole, so that a later run goes on from there, whatever ended this one: a fault, a full disk,
Ctrl-C, kill -9. The model itself is written in the end, aligned, its weights last.
"""

import contextlib
import os
import shutil
import time

from model_files.directory import holds_model, read_model, write_config, write_weights
from model_files.download import announce, check_space
from model_files.files import try_lock, write_atomic
from model_files.hub_cache import hub_token, offline
from model_files.released import SIZES
from model_files.sources import EXTRA, STORE, TEXT, from_hub, from_store, set_aside
from model_files.transport import FINAL, HUB, Fault, address
from model_files.vocabulary import read_vocabulary

LOCK_WAIT = 0.5  # seconds between two looks at what another process does
CARRIED = {name: (name,) for name in (*EXTRA, "source.json")}  # into the model as they are
CARRIED |= {ours: (ours, theirs) for ours, theirs in zip(TEXT, ("encoder.json", "vocab.bpe"))}
WITHOUT = 'without a download there is: python gpt2.py "ROMEO:" --model_size shakespeare'


def fetch(name, repo, revision, directory, only_vocabulary=False):
    """Put a whole model into directory, or its vocabulary alone; ValueError (no such model) or
    OSError, in one line."""
    if only_vocabulary and holds_vocabulary(directory):
        return
    if variable := offline():
        raise OSError(
            f"{name} is neither in {directory.parent} nor whole in Hugging Face's cache, and "
            f"{variable} is set: unset it to fetch {name}; {WITHOUT}"
        )
    hub_token()  # one that is none is said before anything is made
    faults, began = [], time.monotonic()
    sources = [("hub", "HF_ENDPOINT", HUB, from_hub)]
    sources += [("store", "GPT2_OPENAI_URL", STORE, from_store)] * (name in SIZES)
    with lock(directory):
        if holds_model(directory):  # another process has just fetched it
            return
        for place, variable, usual, source in sources:
            base = os.environ.get(variable, "").strip() or usual
            shown, stage = address(base)[0], directory / "incomplete" / place
            announce(f"fetching {name} from {shown} to {directory}")
            try:
                stage.mkdir(parents=True, exist_ok=True)
                source(base, name, repo, revision, stage, only_vocabulary)
                (install_vocabulary if only_vocabulary else install)(stage, directory)
                clean(directory)
                return announce(f"fetched {name} in {time.monotonic() - began:.0f} s")
            except Fault as fault:
                faults.append((shown, fault, fault.tries != FINAL))
            except ValueError as error:  # genuine, but no GPT-2 that is understood here
                set_aside(stage)
                reason = str(error).replace(f"{stage}{os.sep}", f"{name}: ")
                if name not in SIZES:
                    raise ValueError(reason + kept(directory, False)) from None
                faults.append((shown, reason, False))
            except OSError as error:  # the disk, not the network
                raise OSError(f"{directory}: {error}{kept(directory)}") from None
            if len(faults) < len(sources):
                announce(f"no luck at {shown}: {faults[-1][1]}")
        reasons = "; ".join(f"{shown}: {fault}" for shown, fault, _ in faults)
        reasons += kept(directory, any(passing for *_, passing in faults))
    raise OSError(f"{name} could not be fetched: {reasons}" + f"; {WITHOUT}" * (name in SIZES))


def holds_vocabulary(directory):
    with contextlib.suppress(OSError, ValueError):
        return bool(read_vocabulary(directory))


def kept(directory, goes_on=True):
    """-> what to say of what is kept, if anything is; goes_on: would the same command use it?"""
    stage = directory / "incomplete"
    size = sum(path.stat().st_size for path in stage.rglob("*") if path.is_file())
    line = f"; {size / 1e6:.1f} MB are kept in {stage}"
    return (line + ", and the same command goes on from there" * goes_on) * (size > 0)


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
        stage = directory / "incomplete"
        for emptied in stage / "hub", stage / "store", stage, directory:
            with contextlib.suppress(OSError):  # where anything has been kept, they stay
                emptied.rmdir()


def install(stage, directory):
    """Verified files -> a model: float32, aligned, without what nobody reads; the weights last."""
    _, hparams, tensors = read_model(stage)
    for left in directory.glob("*.tmp"):  # by a run that was killed here
        left.unlink()
    check_space(directory, 4 * sum(x.size for x in tensors.values()))
    install_vocabulary(stage, directory)
    write_config(directory, hparams)
    write_weights(directory / "model.safetensors", tensors)  # float32 from here on


def install_vocabulary(stage, directory):
    read_vocabulary(stage)
    for name, sources in CARRIED.items():
        (directory / name).unlink(missing_ok=True)
        for source in sources:
            if (stage / source).exists():
                with write_atomic(directory / name) as file:
                    file.write((stage / source).read_bytes())
