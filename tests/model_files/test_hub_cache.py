"""The cache of Hugging Face's tools is used where it lies, as huggingface_hub lays it out."""

import shutil

import numpy as np
import pytest

import utils
from model_files import fetch, hub_cache
from model_files.directory import load_model
from model_files.hub_cache import find_cached
from model_files.parameters import flatten
from model_files.released import SIZES


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def snapshot(cache, directory):
    """Puts a model into the cache, as one commit of a repository that main is at."""

    def snapshot(repo, commit):
        there = cache / f"models--{repo.replace('/', '--')}"
        (there / "refs").mkdir(parents=True)
        (there / "refs" / "main").write_text(commit)
        return shutil.copytree(directory, there / "snapshots" / commit)

    return snapshot


def test_a_model_is_found_by_commit_or_by_branch(snapshot, directory, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "fetch", lambda *args: pytest.fail("there is nothing to fetch"))
    snapshot(*SIZES["124M"])
    latest = snapshot("owner/name", "d" * 40)
    expected = flatten(load_model(directory)[2])
    for name in ("124M", "owner/name", "owner/name@" + "d" * 40):
        _, _, params = utils.load_encoder_hparams_and_params(name, tmp_path / "models")
        found = flatten(params)
        assert all(np.array_equal(x, found[n]) for n, x in expected.items())
    assert find_cached("owner/name", "main") == find_cached("owner/name", "d" * 40) == latest
    assert not (tmp_path / "models").exists()
    for repo, revision in ("owner/other", "main"), ("owner/name", "v1"), ("owner/name", "e" * 40):
        assert find_cached(repo, revision) is None


def test_the_environment_says_where_the_cache_lies(snapshot, cache, tmp_path, monkeypatch):
    snapshot("owner/name", "d" * 40)
    place = "models--owner--name", "snapshots", "d" * 40
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    assert find_cached("owner/name", "main") is None
    shutil.copytree(cache, tmp_path / "hf_home" / "hub")
    assert find_cached("owner/name", "main") == (tmp_path / "hf_home" / "hub").joinpath(*place)
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    home = shutil.move(tmp_path / "hf_home", tmp_path / "xdg" / "huggingface")
    assert find_cached("owner/name", "main") == (home / "hub").joinpath(*place)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    home = shutil.move(tmp_path / "xdg", tmp_path / "home" / ".cache")
    assert find_cached("owner/name", "main") == (home / "huggingface" / "hub").joinpath(*place)
    monkeypatch.setenv("HF_HUB_CACHE", "~/.cache/huggingface/hub")
    assert find_cached("owner/name", "main") == (home / "huggingface" / "hub").joinpath(*place)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "config.json", "model.safetensors"])
def test_half_a_snapshot_is_none(name, snapshot, tmp_path, monkeypatch):
    latest, fetched = snapshot("owner/name", "d" * 40), []
    monkeypatch.setattr(fetch, "fetch", lambda *args: fetched.append(args))
    content = (latest / name).read_bytes()
    (latest / name).unlink()
    assert find_cached("owner/name", "main") is None
    utils.find_model("owner/name", tmp_path / "models")
    assert fetched == [("owner/name", "owner/name", "main", tmp_path / "models" / "owner--name")]
    (latest / name).write_bytes(content)
    assert find_cached("owner/name", "main") == latest


def test_a_tokenizer_json_will_do(snapshot):
    latest = snapshot("owner/name", "d" * 40)
    (latest / "vocab.json").unlink()
    (latest / "tokenizer.json").touch()
    assert find_cached("owner/name", "main") == latest


def test_a_cache_that_cannot_be_read_is_none(snapshot, monkeypatch):
    def locked(path):
        raise PermissionError(13, "Permission denied", str(path))

    snapshot("owner/name", "d" * 40)
    assert find_cached("owner/name", "main")
    monkeypatch.setattr(hub_cache.Path, "is_file", locked)
    assert find_cached("owner/name", "main") is None
