"""Test the options of train.py: the defaults, and options from a model or an unfinished run."""

import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SMALL, run, run_train

import training.corpus
import training.options
from cli import UsageError
from model_files.safetensors import write_safetensors
from training.options import DEFAULTS, parser, resolve_options
from training.run import Record, Run, checkpoint_path, open_run, read_checkpoint


def given(*args):
    return vars(parser().parse_args([*map(str, args)]))


def settings(*args):
    """Return the options of a run that has these arguments."""
    options, _ = resolve_options(given(*args))
    return vars(options)


# The defaults

EXPECTED = {
    "n_layer": 6,
    "n_head": 4,
    "n_embd": 256,
    "n_ctx": 256,
    "vocab_size": 2048,
    "tokenizer": None,
    "init_from": None,
    "models_dir": "models",
    "dtype": "float32",
    "batch_size": 12,
    "iterations": 600,
    "minutes": None,
    "learning_rate": 0.004,
    "warmup": 0.05,
    "dropout": 0.1,
    "weight_decay": 0.1,
    "optimizer": "muon",
    "eval_interval": 100,
    "seed": 0,
    "threads": os.cpu_count(),
    "val_fraction": 0.1,
    "text_column": None,
    "text_key": "text",
    "lowercase": False,
    "stopwords": [],
    "literal_endoftext": False,
    "merge_dropout": 0,
}


def test_a_run_has_the_defaults_that_the_help_shows(tmp_path):
    options = settings("text.txt", "--out", tmp_path)
    expected = {**EXPECTED, "models_dir": os.path.abspath("models")}
    assert options == {"text": [os.path.abspath("text.txt")], **expected}
    help_of = {action.dest: action.help for action in parser()._actions}
    for name, value in EXPECTED.items():
        if value is None or value is False or value == []:
            assert "(" not in help_of[name], name
        elif name == "threads":
            assert help_of[name] == "number of threads (one per core)"
        else:
            assert re.findall(r"\(([^ ;)]*)", help_of[name])[0] == str(value), name
    assert "; 0.0004 with --init_from" in help_of["learning_rate"]
    assert DEFAULTS.keys() == options.keys()


def test_the_parser_returns_only_options_that_are_given():
    assert given() == {}
    assert given("a", "b", "--lowercase", "--minutes", "2") == {
        "text": ["a", "b"],
        "lowercase": True,
        "minutes": 2.0,
    }


# Paths


def test_paths_become_absolute(unbroken, tmp_path, monkeypatch):
    (tmp_path / "words").write_text("the and")
    shutil.copytree(unbroken[0], tmp_path / "mine" / "model")
    monkeypatch.chdir(tmp_path)
    args = "text.txt", "-", "HTTP://host/text", "--out", "out", "--models_dir", "mine"
    options = settings(*args, "--tokenizer", "mine/model", "--stopwords", "words")
    assert options["text"] == [str(tmp_path / "text.txt"), "-", "HTTP://host/text"]
    assert options["models_dir"] == str(tmp_path / "mine")
    assert options["tokenizer"] == str(tmp_path / "mine" / "model")
    assert options["stopwords"] == ["the", "and"]  # the file is not needed any more
    assert settings(*args, "--tokenizer", "model")["tokenizer"] == "model"  # a name
    options = settings(*args, "--init_from", "./mine/model")
    assert options["init_from"] == str(tmp_path / "mine" / "model")
    monkeypatch.chdir(tmp_path / "mine" / "model")
    options = settings("text.txt", "--out", "out", "--tokenizer", ".")
    assert options["tokenizer"] == str(tmp_path / "mine" / "model")


# Wrong usage


@pytest.mark.parametrize(
    "args, words",
    [
        (["--out", "m"], "which text?"),
        (["--out", "m", "--resume"], "m holds no unfinished run"),
        (["t", "--out", "m", "--n_embd", "10", "--n_head", "4"], "--n_embd 10 is not divisible"),
        (["t", "--out", "m", "--init_from", "124M", "--n_layer", "3"], "--n_layer comes from"),
        (["t", "--out", "m", "--init_from", "124M", "--tokenizer", "x"], "--tokenizer comes from"),
        (["t", "--out", "m", "--tokenizer", "x", "--vocab_size", "300"], "--vocab_size comes from"),
    ],
)
def test_options_that_contradict_each_other(args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        resolve_options(given(*args))


def test_a_model_is_loaded_once_and_returned(unbroken, monkeypatch):
    calls, load = [], training.options.load
    monkeypatch.setattr(
        training.options,
        "load",
        lambda *args, **options: calls.append(args) or load(*args, **options),
    )
    args = "--out", "out", "--init_from", unbroken[0]
    options, (encoder, hparams, params) = resolve_options(given(*args))
    assert len(calls) == 1 and hparams["training"]["text"] == options.text
    with pytest.raises(ValueError, match="has a context of 16 tokens: --n_ctx 17 is more"):
        resolve_options(given(*args, "--n_ctx", "17"))


# Options from a model or from an unfinished run


def begin(out, options):
    """Write the checkpoint of an unfinished run."""
    checkpoint_path(out).parent.mkdir(parents=True)
    vectors = SimpleNamespace(**{name: np.zeros(3, np.float32) for name in "wmv"})
    Run(out, None, None, vectors, Record(options)).save_checkpoint()


def test_an_unfinished_run_keeps_its_options(unbroken, text, tmp_path):
    args = text, "--out", tmp_path / "out", *SMALL
    options = settings(*args)
    begin(tmp_path / "out", options)
    assert settings("--out", tmp_path / "out", "--resume") == options
    changed = settings(
        "--out", tmp_path / "out", "--resume", "--iterations", "99", "--dropout", "0"
    )
    assert changed == {**options, "iterations": 99, "dropout": 0}
    for change, word in (
        (["--lowercase"], "lowercase"),
        (["--stopwords", text], "stopwords"),
        (["--literal_endoftext"], "literal_endoftext"),
        (["--val_fraction", "0.2"], "val_fraction"),
        (["--merge_dropout", "0.1"], "merge_dropout"),
        (["--dtype", "float16"], "dtype"),
        (["--seed", "1"], "seed"),
        (["--optimizer", "adamw"], "optimizer"),
        (["--n_layer", "2"], "n_layer"),
        (["--n_head", "4"], "n_head"),
        (["--n_embd", "32"], "n_embd"),
        (["--n_ctx", "8"], "n_ctx"),
        (["--vocab_size", "301"], "vocab_size"),
        (["--tokenizer", unbroken[0]], "vocab_size, tokenizer"),
    ):
        with pytest.raises(ValueError, match=f"--resume needs the same {word} as before"):
            settings("--out", tmp_path / "out", "--resume", *change)
    with pytest.raises(ValueError, match="needs the same text as before"):
        settings("other", "--out", tmp_path / "out", "--resume")


@pytest.mark.parametrize("option", ["--init_from", "--tokenizer"])
def test_a_resumed_run_needs_the_model_that_it_began_with(option, models_dir, text, tmp_path):
    shutil.copytree(models_dir / "tiny", tmp_path / "other")
    out = "--out", tmp_path / "out"
    options = settings(text, *out, option, models_dir / "tiny")
    assert options[option[2:]] == str(models_dir / "tiny") and options["vocab_size"] is None
    begin(tmp_path / "out", options)
    assert read_checkpoint(tmp_path / "out")[1].settings == options
    assert settings(*out, "--resume") == options
    with pytest.raises(ValueError, match=f"--resume needs the same {option[2:]} as before"):
        settings(*out, "--resume", option, tmp_path / "other")


def test_training_json_has_the_options_and_evaluate_follows_them(text, tmp_path):
    (tmp_path / "words").write_text("the and")
    (tmp_path / "Text").write_text(text.read_text(encoding="utf-8").title() + "<|endoftext|>")
    text = tmp_path / "Text"
    args = "--lowercase", "--stopwords", "words", "--literal_endoftext", "--seed", "3", *SMALL
    done = run_train(text, "--out", "out", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = {
        "text": [str(text)],
        "lowercase": True,
        "stopwords": ["the", "and"],
        "literal_endoftext": True,
        "tokenizer": None,
        "seed": 3,
        "n_layer": 1,
        "optimizer": "muon",
        "iterations": 44,
        "learning_rate": 4e-3,
    }
    recorded = json.loads((tmp_path / "out" / "training.json").read_text())
    files = ["config.json", "log.csv", "merges.txt", "model.safetensors", "training.json"]
    assert recorded.pop("files") == [*files, "vocab.json"]
    assert recorded.items() >= expected.items() and recorded.keys() == DEFAULTS.keys()
    # evaluate.py changes the text in the same way, so its figures are those of the run.
    measured = run("evaluate.py", text, "--val_fraction", "0.1", "--model_size", tmp_path / "out")
    assert measured.returncode == 0 and done.stdout.encode().endswith(b"\n" + measured.stdout)
    note = (
        b"the text is measured in lower case and without the, and, like the model's training text"
    )
    assert note in measured.stderr


def test_a_model_is_trained_further_with_its_own_options(text, tmp_path):
    (tmp_path / "words").write_text("the and")
    first = "--lowercase", "--stopwords", "words", "--val_fraction", "0.2", "--dropout", "0.3"
    other = "--optimizer", "adamw", "--weight_decay", "0.2", "--dtype", "float16"
    done = run_train(text, "--out", "one", *first, *other, *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "words").unlink()
    n_tokens = re.search(r"([\d,]+ tokens to train on, [\d,]+) to validate", done.stdout)[1]
    args = "--out", tmp_path / "two", "--init_from", tmp_path / "one"
    options = settings(*args)
    assert options == {
        **DEFAULTS,
        **dict.fromkeys(("n_layer", "n_head", "n_embd", "vocab_size")),
        "text": [str(text)],
        "stopwords": ["the", "and"],
        "lowercase": True,
        "val_fraction": 0.2,
        "batch_size": 6,
        "n_ctx": 16,
        "dropout": 0.3,
        "weight_decay": 0.2,
        "optimizer": "adamw",
        "dtype": "float16",
        "learning_rate": 4e-4,
        "init_from": str(tmp_path / "one"),
        "models_dir": os.path.abspath("models"),
        "threads": os.cpu_count(),
    }
    assert settings(*args, "--dropout", "0") == {**options, "dropout": 0}
    done = run_train("--out", tmp_path / "three", *args[2:], "--iterations", "5", cwd=tmp_path)
    assert done.returncode == 0 and n_tokens in done.stdout, done.stderr
    for words in '"text": ["-"], ', "":  # a pipe cannot be read again
        (tmp_path / "one" / "training.json").write_text("{" + words + '"lowercase": true}')
        with pytest.raises(UsageError, match="which text?"):
            settings(*args)


def test_a_damaged_training_json_is_refused(unbroken, tmp_path, text):
    shutil.copytree(unbroken[0], tmp_path / "model")
    for content in '{"lowercase": 1}', '{"stopwords": "the"}', '{"stopwords": [1]}', "[]", "{":
        (tmp_path / "model" / "training.json").write_text(content)
        with pytest.raises(ValueError, match="training.json: "):
            settings("--out", tmp_path / "out", "--init_from", tmp_path / "model")


def test_a_password_in_the_address_of_a_text_is_not_kept(tmp_path, monkeypatch):
    address, fetched = "http://me:secret@host/a/text.txt?token=hidden&page=2", []

    def fetch(name, directory):
        fetched.append(name)

    monkeypatch.setattr(training.corpus, "fetch_text", fetch)
    options = settings(address, "plain.txt", "--out", tmp_path)
    assert options["text"] == ["http://host/a/text.txt?page=2", os.path.abspath("plain.txt")]
    assert fetched == [address]
    model = "https://me:secret@huggingface.co/owner/name"
    assert (
        settings("plain.txt", "--out", tmp_path, "--tokenizer", model)["tokenizer"] == "owner/name"
    )


# Values in a file that have the wrong type

ODD = [None, True, 0, -1, 2.5, 10**40, "x", "", [], [1], ["x", None], {}, {"x": 1}]


def copy_of_a_run(out, change):
    """Rewrite the checkpoint of a run after change(record, vectors) has changed it."""
    vectors, record = read_checkpoint(out)
    content = vars(record)
    change(content, vectors)
    data = np.frombuffer(json.dumps(content).encode(), np.uint8)
    write_safetensors(checkpoint_path(out), {**vectors, "run": data})


def resumed(out):
    """Return the error, which has to be one line, or None if the run can be resumed."""
    arguments = given("--out", out, "--resume")
    try:
        open_run(out, *resolve_options(arguments), resume=True)
    except (ValueError, OSError) as error:
        assert "\n" not in str(error)
        return str(error)


@pytest.fixture
def begun(text, tmp_path):
    """Return the directory of a run that has begun, and the bytes of its checkpoint."""
    arguments = given(text, "--out", tmp_path / "out", *SMALL)
    open_run(tmp_path / "out", *resolve_options(arguments))
    return tmp_path / "out", checkpoint_path(tmp_path / "out").read_bytes()


@pytest.mark.parametrize("value", ODD, ids=str)
def test_options_of_a_wrong_type_in_a_checkpoint_are_refused(value, begun):
    out, checkpoint = begun
    refused = 0
    for name, default in DEFAULTS.items():
        checkpoint_path(out).write_bytes(checkpoint)
        copy_of_a_run(out, lambda record, _, name=name: record["settings"].update({name: value}))
        error = resumed(out)
        refused += error is not None
        if type(value) in (list, dict, str) and type(default) in (int, float, bool):
            assert f"checkpoint.safetensors: {name} is {value!r}" in error
            assert "--overwrite starts over" in error
    assert refused > len(DEFAULTS) / 3


@pytest.mark.parametrize("value", ODD, ids=str)
def test_a_record_of_a_wrong_type_is_refused(value, begun):
    out, checkpoint = begun
    for name in vars(read_checkpoint(out)[1]):
        checkpoint_path(out).write_bytes(checkpoint)
        copy_of_a_run(out, lambda record, _, name=name: record.update({name: value}))
        error = resumed(out)
        if type(value) in (str, dict) and name != "settings":
            assert "is not a checkpoint of train.py: move it away" in error, name
        if name == "log" and value == [1]:
            assert "is not a checkpoint of train.py" in error
    for log in [[1, 2, 3]], [[1, 2, None, 4]], [[1, 2, 3, "4"]], [[1, 2, 3, 4, 5]], [{}], ["abcd"]:
        checkpoint_path(out).write_bytes(checkpoint)
        copy_of_a_run(out, lambda record, _, log=log: record.update(log=log))
        assert "is not a checkpoint of train.py" in resumed(out)


def test_vectors_of_a_wrong_length_or_type_are_refused(begun):
    out, checkpoint = begun
    for change in (
        lambda x: x[:-1],
        lambda x: x.reshape(1, -1),
        lambda x: x.astype(np.float64),
        lambda x: x.astype(np.float16),
        lambda x: x[:0],
    ):
        for names in ["w"], ["m"], ["v"], ["w", "m", "v"]:
            checkpoint_path(out).write_bytes(checkpoint)
            copy_of_a_run(
                out,
                lambda _, vectors, names=names, change=change: vectors.update(
                    {name: change(vectors[name]) for name in names}
                ),
            )
            assert "checkpoint.safetensors is from another model; use --overwrite" in resumed(out)


@pytest.mark.parametrize("value", ODD, ids=str)
def test_options_of_a_wrong_type_in_training_json_are_refused(value, unbroken, tmp_path):
    shutil.copytree(unbroken[0], tmp_path / "model")
    path = tmp_path / "model" / "training.json"
    content = json.loads(path.read_text())
    for name in training.options.INHERITED:
        path.write_text(json.dumps({**content, name: value}))
        try:
            options = settings("--out", tmp_path / "out", "--init_from", tmp_path / "model")
        except (ValueError, OSError) as error:
            assert "\n" not in str(error), error
            if name not in ("lowercase", "stopwords", "text"):
                assert f"training.json: {name} is {value!r:.40}" in str(error)
        else:
            assert type(options[name]) is not dict
