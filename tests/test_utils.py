"""From a model's name to the model: where it is looked for, and what is not even imported."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import OPENAI, ROOT, random_params

import utils
from encoder import Encoder
from model_files.directory import load_model, save_model
from model_files.parameters import flatten


def test_a_name_leads_to_an_encoder_hparams_and_params(directory, tmp_path):
    encoder, hparams, params = utils.load_encoder_hparams_and_params("model", tmp_path)
    vocabulary, original_hparams, original = load_model(OPENAI)
    assert isinstance(encoder, Encoder) and encoder.vocabulary == vocabulary
    assert hparams == original_hparams
    params, original = flatten(params), flatten(original)
    assert list(params) == list(original)
    assert all(np.array_equal(x, original[name]) for name, x in params.items())


def test_the_ids_are_those_that_the_model_has(tmp_path):
    """It may have more than the vocabulary, to be of a round size, or less than the tokens."""
    vocabulary, hparams, _ = load_model(OPENAI)
    for n_vocab in 257, 260:
        hparams["n_vocab"], directory = n_vocab, tmp_path / str(n_vocab)
        save_model(directory, hparams, random_params(**hparams), vocabulary)
        (directory / "added_tokens.json").write_text('{"<x>": 257}')
        encoder, *_ = utils.load_encoder_hparams_and_params(str(directory), "")
        if n_vocab == 257:
            with pytest.raises(ValueError, match="'<x>' is id 257: the model has 257 ids"):
                encoder.encode("<x>")
        else:
            assert encoder.encode("<x>") == [257] and encoder.decode([257, 259]) == "<x>"
            with pytest.raises(ValueError, match="id 260 is not in the vocabulary"):
                encoder.decode([260])


def test_nothing_slow_is_imported(directory):
    """requests and tqdm cost more than a warm start may take; they come in only to fetch."""
    slow = "requests", "tqdm", "model_files.tensor_bundle", "model_files.fetch"
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import utils; "
        f"utils.load_encoder_hparams_and_params({str(directory)!r}, 'models'); "
        f"print({{*{slow}}} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_names_and_paths(directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(directory, tmp_path / "models" / "124M")
    for name in ("model", "./model", "model/", str(directory), "../" + tmp_path.name + "/model"):
        where = tmp_path if name == "model" else tmp_path / "nowhere"
        assert utils.find_model(name, where).resolve() == directory
    assert utils.find_model("124M", tmp_path / "models") == tmp_path / "models" / "124M"
    assert utils.find_model("shakespeare", tmp_path) == utils.MODELS / "shakespeare"
    shutil.copytree(directory, tmp_path / "shakespeare")  # the user's own comes before it
    assert utils.find_model("shakespeare", tmp_path) == tmp_path / "shakespeare"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert utils.find_model("~/model", tmp_path / "nowhere") == directory
    with pytest.raises(FileNotFoundError, match="models/nosuch: no such directory"):
        utils.find_model("models/nosuch", tmp_path / "models")
    for name in "", "C:x", "-x", "a\nb", "x*":
        with pytest.raises(ValueError, match="is no name of a model"):
            utils.find_model(name, Path("models"))
    with pytest.raises(
        utils.UnknownModel,
        match="in models and beside the program there is 124M, shakespeare; a path",
    ):
        utils.find_model("nosuch", Path("models"))


def test_a_directory_without_a_model_is_found_only_by_a_name_of_its_own(tmp_path, monkeypatch):
    """What is wrong with it is then said by whoever reads it; a size would be fetched into it."""
    fetched = []
    monkeypatch.setattr("model_files.fetch.fetch", lambda *args: fetched.append(args[:4]))
    monkeypatch.setattr(utils, "find_cached", lambda repo, revision: None)
    for name in "mine", "124M", "owner--name":
        (tmp_path / name).mkdir()
    assert utils.find_model("mine", tmp_path) == tmp_path / "mine" and not fetched
    for name, *source in (
        ("124M", *utils.SIZES["124M"]),
        ("owner/name", "owner/name", "main"),
        ("owner/name@v1", "owner/name", "v1"),
    ):
        directory = tmp_path / name.replace("/", "--")
        assert utils.find_model(name, tmp_path) == directory
        assert fetched.pop() == (name, *source, directory)


def test_what_a_killed_fetch_has_left_beside_a_whole_model_goes(directory):
    before = {path.name for path in directory.iterdir()}
    (directory / "incomplete").mkdir()
    (directory / "incomplete" / "vocab.json").touch()
    (directory / "fetch.lock").touch()
    assert utils.find_model("model", directory.parent) == directory
    assert {path.name for path in directory.iterdir()} == before
