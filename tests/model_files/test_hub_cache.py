"""The cache of Hugging Face's tools is used where it lies, as huggingface_hub lays it out."""

import json
import shutil

import numpy as np
import pytest
from conftest import check_fetched

import utils
from model_files import fetch, hub_cache, proof
from model_files.directory import load_model
from model_files.hub_cache import find_cached
from model_files.parameters import flatten
from model_files.proof import digest
from model_files.released import SIZES
from model_files.safetensors import write_safetensors


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


@pytest.fixture
def pinned(directory, monkeypatch):
    """124M is the model in directory."""
    pins = {f"124M/{path.name}": digest(path, "sha256") for path in directory.iterdir()}
    monkeypatch.setattr(hub_cache, "SHA256", pins)


def test_a_model_is_found_by_commit_or_by_branch(
    snapshot, directory, pinned, tmp_path, monkeypatch
):
    monkeypatch.setattr(fetch, "fetch", lambda *args: pytest.fail("there is nothing to fetch"))
    snapshot(*SIZES["124M"])
    latest = snapshot("owner/name", "d" * 40)
    expected = flatten(load_model(directory)[2])
    for name in ("124M", "owner/name", "owner/name@" + "d" * 40):
        _, _, params = utils.load_encoder_hparams_and_params(name, tmp_path / "models")
        found = flatten(params)
        assert all(np.array_equal(x, found[n]) for n, x in expected.items())
    assert find_cached("owner/name", "main") == find_cached("owner/name", "d" * 40) == latest
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["124M.checked"]
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
    expected = (home / "huggingface" / "hub").joinpath(*place)
    monkeypatch.setenv("HF_HUB_CACHE", "~/.cache/huggingface/hub")
    assert find_cached("owner/name", "main") == expected
    monkeypatch.delenv("HF_HUB_CACHE")
    for name, value in (
        ("HF_HOME", "$HOME/.cache/huggingface"),
        ("HUGGINGFACE_HUB_CACHE", "${HOME}/.cache/huggingface/hub"),
    ):
        monkeypatch.setenv("HF_HOME", str(tmp_path / "nowhere"))
        monkeypatch.setenv(name, value)
        assert find_cached("owner/name", "main") == expected


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "config.json", "model.safetensors"])
def test_half_a_snapshot_is_none(name, snapshot, tmp_path, monkeypatch):
    latest, fetched = snapshot("owner/name", "d" * 40), []
    monkeypatch.setattr(fetch, "fetch", lambda *args: fetched.append(args[:4]))
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


@pytest.mark.parametrize("file", ["config.json", "vocab.json", "merges.txt", "model.safetensors"])
def test_what_is_pinned_is_checked_the_first_time(
    file, snapshot, pinned, tmp_path, monkeypatch, capfd
):
    cached, fetched, proven = snapshot(*SIZES["124M"]), [], []
    monkeypatch.setattr(fetch, "fetch", lambda *args: fetched.append(args[:4]))
    prove = proof.prove
    monkeypatch.setattr(proof, "prove", lambda *args: (proven.append(args), prove(*args)))
    models = tmp_path / "models"
    for _ in range(2):
        assert utils.find_model("124M", models) == cached
    assert len(proven) == 4  # four files, once
    assert capfd.readouterr().err == f"checking 124M in {cached}, this once\n"
    genuine = (cached / file).read_bytes()
    (cached / file).write_bytes(genuine[:-1] + b" " if genuine[-1:] != b" " else genuine + b" ")
    assert utils.find_model("124M", models) == models / "124M" and len(fetched) == 1
    (cached / file).write_bytes(genuine)
    assert utils.find_model("124M", models) == cached


def test_what_was_checked_is_not_remembered_where_nothing_can_be_written(
    snapshot, pinned, tmp_path
):
    cached = snapshot(*SIZES["124M"])
    (tmp_path / "models").write_text("a file in the directory's place")
    assert utils.is_released("124M", cached, tmp_path / "models")


def test_a_missing_shard_is_fetched_and_the_others_are_not(
    servers, place, model, snapshot, tmp_path, monkeypatch
):
    files, params = model
    tensors, weight_map = list(flatten(params).items()), {}
    latest = snapshot("owner/name", servers.commit)
    for path in latest.iterdir():
        path.unlink()
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for shard, part in zip(shards, (tensors[::2], tensors[1::2])):
        write_safetensors(latest / shard, dict(part))
        weight_map |= dict.fromkeys(dict(part), shard)
    (latest / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in "config.json", "vocab.json", "merges.txt":
        (latest / name).write_bytes(files[name])
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    assert find_cached("owner/name", "main") == latest
    servers.files = {f"owner/name/{path.name}": path.read_bytes() for path in latest.iterdir()}
    (latest / shards[1]).unlink()
    before = {path: path.read_bytes() for path in latest.iterdir()}
    assert find_cached("owner/name", "main") is None
    found = utils.load_encoder_hparams_and_params("owner/name", place)[2]
    check_fetched(found, model, place / "owner--name")
    assert before == {path: path.read_bytes() for path in latest.iterdir()}
    sent = {path: sent for path, _, sent, _ in servers.log if path.startswith("content/")}
    assert sent[f"content/owner/name/{shards[1]}"] == len(servers.files[f"owner/name/{shards[1]}"])
    (latest / "model.safetensors.index.json").write_text("{}")
    assert find_cached("owner/name", "main") is None


def test_a_cache_that_cannot_be_read_is_none(snapshot, monkeypatch):
    def locked(path):
        raise PermissionError(13, "Permission denied", str(path))

    snapshot("owner/name", "d" * 40)
    assert find_cached("owner/name", "main")
    monkeypatch.setattr(hub_cache.Path, "is_file", locked)
    assert find_cached("owner/name", "main") is None
