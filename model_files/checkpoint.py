"""The last state of an unfinished run of train.py: OUT/training/checkpoint.safetensors."""

import json
from pathlib import Path

import numpy as np

from model_files.safetensors import read_safetensors, write_safetensors


def checkpoint_path(out):
    return Path(out) / "training" / "checkpoint.safetensors"


def read_checkpoint(out):
    """-> {"w": ..., "m": ..., "v": ...} and run, or two empty dicts where there is no checkpoint.

    run, from JSON: settings, step, seconds, the best loss, the log, numbers of tokens.
    """
    path = checkpoint_path(out)
    if not path.exists():
        return {}, {}
    saved = read_safetensors(path)
    if saved.keys() != {"w", "m", "v", "run"}:
        raise ValueError(f"{path}: no checkpoint of train.py: --overwrite starts anew")
    return saved, json.loads(bytes(saved.pop("run")))


def write_checkpoint(out, vectors, run):
    run = np.frombuffer(json.dumps(run).encode(), np.uint8)
    write_safetensors(checkpoint_path(out), {**vectors, "run": run})
