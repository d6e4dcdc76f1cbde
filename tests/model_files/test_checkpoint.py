"""The checkpoint of a run comes back as it was written, or is refused."""

import math

import numpy as np
import pytest

from model_files.checkpoint import checkpoint_path, read_checkpoint, write_checkpoint
from model_files.safetensors import write_safetensors


def test_vectors_and_record_come_back(tmp_path):
    assert read_checkpoint(tmp_path) == ({}, {})
    checkpoint_path(tmp_path).parent.mkdir()
    vectors = {
        name: np.random.default_rng(i).random(99, np.float32) for i, name in enumerate("wmv")
    }
    record = {"step": 3, "best": math.inf, "log": [[1, 0.5, 2.25, 1 / 3]], "settings": {"a": None}}
    write_checkpoint(tmp_path, vectors, record)
    saved, run = read_checkpoint(tmp_path)
    assert run == record and saved.keys() == vectors.keys()
    assert all(np.array_equal(saved[name], x) for name, x in vectors.items())
    assert list(tmp_path.rglob("*.*")) == [tmp_path / "training" / "checkpoint.safetensors"]


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = checkpoint_path(tmp_path)
    path.parent.mkdir()
    write_safetensors(path, {name: np.zeros(3, np.float32) for name in ("w", "m", "run")})
    with pytest.raises(ValueError, match="checkpoint.safetensors: no checkpoint of train.py"):
        read_checkpoint(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="checkpoint.safetensors: cut off"):
        read_checkpoint(tmp_path)
