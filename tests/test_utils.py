"""From a model's name to the model: where it is looked for, and that nothing slow is imported."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN, OPENAI, ROOT, model_options, random_params

import gpt2
import utils
from encoder import Encoder, get_encoder
from model_files.directory import flatten, load_model, save_model


def test_a_name_leads_to_an_encoder_hparams_and_params(directory, tmp_path):
    encoder, hparams, params = utils.load_encoder_hparams_and_params("model", tmp_path)
    vocabulary, original_hparams, original = load_model(OPENAI)
    assert isinstance(encoder, Encoder)
    assert encoder.vocabulary == vocabulary._replace(source=encoder.vocabulary.source)
    assert hparams == original_hparams
    params, original = flatten(params), flatten(original)
    assert list(params) == list(original)
    assert all(np.array_equal(x, original[name]) for name, x in params.items())


def test_ids_that_the_model_does_not_have_are_refused(tmp_path):
    """A model may have more ids than its vocabulary, for a round number, or fewer than tokens."""
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


def test_a_released_size_is_read_from_the_files_with_known_hashes(directory, tmp_path):
    """A tokenizer.json beside them, from somewhere else, counts for every other model."""
    shutil.copy(GOLDEN / "encoder_tokenizer.json", directory / "tokenizer.json")
    (directory / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    shutil.copytree(directory, tmp_path / "124M")
    expected = load_model(OPENAI)[0].ids
    encoder, *_ = utils.load_encoder_hparams_and_params("124M", tmp_path)
    for found in encoder, utils.load_encoder("124M", tmp_path):
        assert found.vocabulary.ids == expected and not found.vocabulary.add_prefix_space
    found = utils.load_encoder("model", tmp_path).vocabulary
    assert found.ids != expected and found.add_prefix_space
    with pytest.raises(ValueError, match="the vocabulary has ids up to 299, the model has 257 ids"):
        utils.load_encoder_hparams_and_params("model", tmp_path)


def test_a_command_looks_a_model_up_once(models_dir, monkeypatch, capsys):
    names, find_model = [], utils.find_model
    monkeypatch.setattr(
        utils, "find_model", lambda name, *args: names.append(name) or find_model(name, *args)
    )
    assert (
        gpt2.main(["low", "--n_tokens_to_generate", "2", *map(str, model_options(models_dir))]) == 0
    )
    assert names == ["tiny"]


def test_nothing_slow_is_imported(directory):
    """requests and tqdm cost more than a warm start may take; they come in only to fetch."""
    slow = "requests", "tqdm", "hashlib", "shutil", "model_files.tensor_bundle"
    code = (
        f"import sys, numpy; before = {{*sys.modules}}; sys.path.insert(0, {str(ROOT)!r}); "
        f"import utils; utils.load_encoder_hparams_and_params({str(directory)!r}, 'models'); "
        f"print({{*{slow}}} & {{*sys.modules}} - before)"
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
        with pytest.raises(ValueError, match="is not the name of a model"):
            utils.find_model(name, Path("models"))
    with pytest.raises(
        utils.UnknownModel,
        match=r"a model in models or beside this program \(124M, shakespeare\), the path",
    ):
        utils.find_model("nosuch", Path("models"))


def test_a_path_is_as_good_as_a_name(directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, expected, _ = load_model(directory)
    shutil.copytree(directory, tmp_path / "models" / "124M")
    shutil.copy(GOLDEN / "encoder_tokenizer.json", tmp_path / "models" / "124M" / "tokenizer.json")
    shutil.copytree(directory, tmp_path / "shakespeare")  # Path("./shakespeare") is this one
    for name, models in (
        *((directory, Path("models")), (Path("model"), "nowhere"), (Path("model"), tmp_path)),
        *((Path("124M"), Path("models")), (Path("./shakespeare"), Path("nowhere"))),
    ):
        _, hparams, _ = utils.load_encoder_hparams_and_params(name, models)
        assert hparams == expected
        assert utils.load_encoder(name, models).n_vocab == 257
    for arguments in (directory,), (Path("model"), tmp_path), ("model", tmp_path):
        assert get_encoder(*arguments).n_vocab == 257


def test_a_name_of_another_type_is_refused(directory):
    for load in utils.load_encoder_hparams_and_params, utils.load_encoder:
        for name in None, b"model", 124, ["model"]:
            with pytest.raises(TypeError, match="the name of a model is .*: it must be text or"):
                load(name, "models")
        with pytest.raises(TypeError, match="str"):
            load("model", None)
    for arguments in (None,), (b"model",), (None, "models"), (124, "models"):
        with pytest.raises(TypeError, match="str"):
            get_encoder(*arguments)


def test_a_directory_without_a_model_is_found_only_by_a_name_of_its_own(tmp_path, monkeypatch):
    """What is wrong with it is then said by whoever reads it; a size would be fetched into it."""
    fetched = []
    monkeypatch.setattr(utils, "fetch", lambda *args: fetched.append(args[:4]))
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


@pytest.mark.parametrize(
    "address,name",
    [
        ("https://huggingface.co/owner/name", "owner/name"),
        ("www.huggingface.co/owner/name/", "owner/name"),
        ("https://hf.co/owner/name?library=transformers", "owner/name"),
        ("https://huggingface.co/owner/name/tree/v1", "owner/name@v1"),
        ("https://huggingface.co/owner/name/tree/refs%2Fpr%2F1", "owner/name@refs/pr/1"),
        ("https://huggingface.co/owner/name/tree/refs/pr/1/folder", "owner/name@refs/pr/1"),
        ("https://huggingface.co/owner/name/blob/main/config.json", "owner/name"),
        ("https://huggingface.co/owner/name/resolve/v1/x.bin?download=true", "owner/name@v1"),
        ("https://huggingface.co/owner/name/discussions/1", "owner/name"),
        (" http://mirror.example:81/owner/name#files", "owner/name"),
        ("https://me:pw@huggingface.co/owner/name/tree/v1", "owner/name@v1"),
        ("me:pw@hf.co/owner/name?token=pw", "owner/name"),
        ("https://hf.co/gpt2", "gpt2"),
        ("https://huggingface.co/gpt2/tree/v1", "gpt2@v1"),
        ("https://huggingface.co/gpt2-xl?library=x", "gpt2-xl"),
        ("https://huggingface.co/distilgpt2/blob/main/config.json", "distilgpt2"),
        ("https://huggingface.co/gpt2x", None),
        ("https://huggingface.co/datasets/a/b", None),
        ("https://a.example/b/c", None),
        ("owner/name@v1", None),
    ],
)
def test_the_address_of_a_models_page_is_its_name(address, name, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", " http://me:pw@mirror.example:81/ ")
    assert utils.name_of(address) == (name or address)
    monkeypatch.setattr(utils, "find_cached", lambda *args: args)
    if name and "/" in name:
        repo, _, revision = name.partition("@")
        assert utils.find_model(address, Path("nowhere")) == (repo, revision or "main")


@pytest.mark.parametrize("name", ["https://me:pw@a.example/b/c?key=pw", "me:pw@a.example/b/c"])
def test_a_password_in_a_models_address_is_not_printed(name):
    with pytest.raises(FileNotFoundError, match="^(https://)?a.example/b/c: no such directory$"):
        utils.find_model(name, Path("nowhere"))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("gpt2", "124M"),
        ("gpt2-medium", "355M"),
        ("gpt2-large", "774M"),
        ("gpt2-xl", "1558M"),
        ("distilgpt2", "distilbert/distilgpt2"),
        ("https://huggingface.co/gpt2", "124M"),
        ("https://huggingface.co/gpt2/tree/v1", "openai-community/gpt2@v1"),
        ("distilgpt2@v1", "distilbert/distilgpt2@v1"),
        ("gpt2-small", "gpt2-small"),
        ("124M", "124M"),
    ],
)
def test_the_names_of_tutorials_are_known(name, expected, tmp_path):
    assert utils.resolve_alias(name, tmp_path) == expected


def test_a_directory_of_the_user_comes_before_the_name_of_a_tutorial(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "gpt2")
    assert utils.resolve_alias("gpt2", tmp_path) == "gpt2"
    assert utils.load_encoder("gpt2", tmp_path).n_vocab == utils.load_encoder(directory, "").n_vocab


@pytest.mark.parametrize("name", ["models--gpt2", "models--openai-community--gpt2"])
def test_what_from_pretrained_left_in_the_cache_is_found(name, directory, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match="124M is not on this disk"):
        utils.load_encoder_hparams_and_params("gpt2", tmp_path)
    commit = utils.SIZES["124M"][1]
    snapshot = shutil.copytree(directory, tmp_path / "cache" / name / "snapshots" / commit)
    _, hparams, _ = utils.load_encoder_hparams_and_params("gpt2", tmp_path)
    assert hparams["n_embd"] == 8
    snapshot.rename(snapshot.with_name("f" * 40))  # as from_pretrained left it another day
    (tmp_path / "cache" / name / "refs").mkdir()
    (tmp_path / "cache" / name / "refs" / "main").write_text("f" * 40)
    assert utils.find_model("124M", tmp_path) == snapshot.with_name("f" * 40)


@pytest.mark.parametrize("name", ["models--distilgpt2", "models--distilbert--distilgpt2"])
def test_a_distilgpt2_that_from_pretrained_has_cached_is_found(
    name, directory, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    cache = tmp_path / "cache" / name
    shutil.copytree(directory, cache / "snapshots" / "c0ffee")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("c0ffee\n")
    assert utils.find_cached("distilbert/distilgpt2", "main") == cache / "snapshots" / "c0ffee"
    (cache / "refs" / "main").write_bytes(b"\xff")  # A damaged file is ignored.
    assert utils.find_cached("distilbert/distilgpt2", "main") is None


def test_a_file_of_weights_and_a_directory_right_here_get_advice(directory, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="model.safetensors is a file: name its directory"):
        utils.load_encoder_hparams_and_params(str(directory / "model.safetensors"), tmp_path)
    monkeypatch.chdir(directory.parent)
    with pytest.raises(utils.UnknownModel, match=f"did you mean ./{directory.name}"):
        utils.load_encoder_hparams_and_params(directory.name, tmp_path / "models")


def test_the_vocabulary_of_another_model_is_taken_on_request(directory, tmp_path):
    bare = shutil.copytree(directory, tmp_path / "bare")
    for name in ("vocab.json", "merges.txt"):
        (bare / name).unlink()
    with pytest.raises(FileNotFoundError, match="copy them .* or give --tokenizer MODEL"):
        utils.load_encoder_hparams_and_params(bare, tmp_path)
    encoder, _, _ = utils.load_encoder_hparams_and_params(bare, tmp_path, tokenizer=directory)
    assert encoder.encode("low") == utils.load_encoder(directory, "").encode("low")
    (bare / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(ValueError, match="tokenizer_class 'BertTokenizer' is not GPT-2's"):
        utils.load_encoder_hparams_and_params(bare, tmp_path)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.model", "spiece.model"])
def test_the_vocabulary_of_another_kind_of_tokenizer_is_named(directory, tmp_path, name):
    other = shutil.copytree(directory, tmp_path / "other")
    for ours in ("vocab.json", "merges.txt"):
        (other / ours).unlink()
    (other / name).write_bytes(b"\n")
    with pytest.raises(ValueError, match=f"{name} is not of GPT-2's tokenizer"):
        utils.load_encoder_hparams_and_params(other, tmp_path)
    model = utils.load_encoder_hparams_and_params(other, tmp_path, tokenizer=directory)
    assert model[0].encode("low") == utils.load_encoder(directory, "").encode("low")


def test_another_vocabulary_is_refused_if_the_model_has_one(directory, tmp_path):
    with pytest.raises(ValueError, match="has a vocabulary of its own: leave out --tokenizer"):
        utils.load_encoder_hparams_and_params(directory, tmp_path, tokenizer=directory)
