"""Test the files of a run: how it begins, is saved, is resumed after a kill, and ends."""

import json
import math
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import NOISY, SMALL, TRAINED, curve, run, run_train, train_command

import train
import training.run
from encoder import learn_bpe
from evaluate import window_losses
from model_files.directory import flatten, load_model
from model_files.safetensors import write_safetensors
from training.options import parser, resolve_options
from training.run import checkpoint_path, init_params, lock_run, read_checkpoint


def open_run(*args):
    """Return the Run that train.py opens with these arguments."""
    given = vars(parser().parse_args([*map(str, args)]))
    return training.run.open_run(
        given["out"], *resolve_options(given), "resume" in given, "overwrite" in given
    )


def whole(directory):
    """Return {name: content} of a directory, without the lock and half-written files."""
    paths = [path for path in directory.iterdir() if path.name != "lock"]
    return {path.name: path.read_bytes() for path in paths if path.suffix != ".tmp"}


def everything(directory):
    """Return {path: content} of all files below a directory."""
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# How a run begins


def test_initial_parameters_are_as_in_gpt2():
    hparams = {"n_vocab": 300, "n_ctx": 64, "n_embd": 48, "n_layer": 3, "n_head": 4}
    params = init_params(hparams, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    for name, x in flatten(params).items():  # the order matters: a seed must give the same model
        assert x.dtype == np.float32
        if x.ndim == 2:
            std = 0.02 / math.sqrt(6) if "c_proj" in name else 0.02
            assert np.array_equal(x, rng.standard_normal(x.shape, np.float32) * np.float32(std))
            assert x.std() == pytest.approx(std, rel=0.1), name
        else:
            assert (x == (".ln_" in f".{name}" and name.endswith("weight"))).all(), name
    assert [*params] == ["wte", "wpe", "blocks", "ln_f"] and len(params["blocks"]) == 3


def test_a_run_begins_with_the_text_as_ids(text, tmp_path):
    run = open_run(text, "--out", tmp_path / "out", *NOISY)
    record, encoder = run.record, run.encoder
    assert sorted(whole(tmp_path / "out" / "training")) == [
        "checkpoint.safetensors",
        "merges.txt",
        "tokens.bin",
        "vocab.json",
    ]
    train_ids, val_ids = run.read_ids()
    assert (len(train_ids), len(val_ids)) == (record.n_noisy + record.n_train, record.n_val)
    content, n_train = text.read_bytes(), record.n_train
    cut = int(len(content) * 0.9)
    assert val_ids.tolist() == encoder.encode_bytes(content[cut:])
    assert train_ids[-n_train:].tolist() == encoder.encode_bytes(content[:cut])
    assert encoder.decode_bytes(train_ids.tolist()) == content[:cut] * 16
    assert run.hparams == {
        "n_vocab": encoder.n_vocab,
        "n_ctx": 16,
        "n_embd": 16,
        "n_head": 2,
        "n_layer": 1,
        "layer_norm_epsilon": 1e-5,
        "eos_token_ids": [encoder.eot],
    }
    assert (record.step, record.seconds, record.best, record.log) == (0, 0, math.inf, [])
    initial = flatten(init_params(run.hparams, np.random.default_rng(0)))
    for name, x in flatten(run.optimizer.params).items():
        assert np.array_equal(x, initial[name])
    assert len(run.optimizer.g) == 2 and run.optimizer.by_muon and run.optimizer.decay == 0.1


def test_a_run_may_start_from_another_model(unbroken, text, tmp_path):
    args = text, "--out", tmp_path / "out", "--init_from", unbroken[0], "--n_ctx"
    run = open_run(*args, "8")
    vocabulary, hparams, params = load_model(unbroken[0])
    assert run.encoder.vocabulary == vocabulary and run.hparams == hparams
    expected = flatten(params)
    assert all(np.array_equal(x, expected[n]) for n, x in flatten(run.optimizer.params).items())
    assert sorted(whole(tmp_path / "out" / "training")) == ["checkpoint.safetensors", "tokens.bin"]
    assert open_run(*args, "16", "--overwrite").hparams["n_ctx"] == 16


def test_a_text_that_is_too_short_leaves_nothing(tmp_path):
    (tmp_path / "short").write_text("to be or not to be" * 2)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="short: too short: .* a sequence takes 17"):
        open_run(tmp_path / "short", "--out", out, *SMALL, "--vocab_size", "270")
    assert whole(out / "training") == {}
    (tmp_path / "bytes").write_text("to be or not to be, to")  # 22 bytes, each a token
    args = tmp_path / "bytes", "--out", out, *SMALL, "--vocab_size", "257", "--val_fraction"
    with pytest.raises(ValueError, match="bytes: too short: 16 tokens to train on, 6 to validate"):
        open_run(*args, "0.25")
    assert open_run(*args, "0.2").record.n_train == 17
    with pytest.raises(ValueError, match="bytes: too short: 21 tokens to train on, 1 to validate"):
        open_run(*args, "0.04", "--overwrite")


# What a run keeps


@pytest.fixture
def opened(text, tmp_path):
    """Return a run, and the arguments that open it."""
    args = text, "--out", tmp_path / "out", *SMALL
    return open_run(*args), args


def test_a_checkpoint_restores_all_of_a_run(opened):
    run, args = opened
    rng = np.random.default_rng(0)
    for name in "wmv":
        getattr(run.optimizer, name)[...] = rng.standard_normal(run.optimizer.w.shape)
    run.record.step, run.record.seconds, run.record.best = 7, 1.5, 2.5
    run.record.log = [[7, 1.5, 3.0, 2.5]]
    run.save_checkpoint()
    again = open_run(*args, "--resume")
    for name in "wmv":
        assert np.array_equal(getattr(again.optimizer, name), getattr(run.optimizer, name))
    params = flatten(run.optimizer.params)
    assert all(np.array_equal(x, params[n]) for n, x in flatten(again.optimizer.params).items())
    assert again.record == run.record and again.hparams == run.hparams
    assert again.encoder.vocabulary[:2] == run.encoder.vocabulary[:2]
    alone = open_run(
        "--out", args[2], "--resume", "--iterations", "99"
    )  # without the other options
    assert alone.record.settings == {**run.record.settings, "iterations": 99}


def test_a_file_that_is_not_a_checkpoint_is_refused(opened):
    run, args = opened
    path = checkpoint_path(run.out)
    vectors, _ = read_checkpoint(run.out)
    damaged = path.read_bytes()[:-1]
    for record in b"", b"{}", b'{"step": 1}':
        write_safetensors(path, {**vectors, "run": np.frombuffer(record or b"0", np.uint8)})
        if not record:
            write_safetensors(path, vectors)
        with pytest.raises(ValueError, match="checkpoint.safetensors is not a checkpoint of train"):
            open_run(*args, "--resume")
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="checkpoint.safetensors: cut off"):
        open_run(*args, "--resume")


def test_the_best_model_so_far_is_kept_and_every_row_of_the_log(opened):
    run, _ = opened
    for step, val_loss, kept in (1, 5.0, 5.0), (2, 4.0, 4.0), (3, 4.5, 4.0), (4, 3.0, 3.0):
        run.record.step, run.record.seconds = step, step / 4
        run.optimizer.w[...] = val_loss
        run.log(6.0, val_loss)
        run.save("float32")
        vocabulary, hparams, params = load_model(run.out)
        assert (
            vocabulary[:2] == run.encoder.vocabulary[:2] and hparams.items() >= run.hparams.items()
        )
        assert all((x == kept).all() for x in flatten(params).values())
        saved, record = read_checkpoint(run.out)
        assert (saved["w"] == val_loss).all() and record.best == kept
    assert (Path(run.out) / "log.csv").read_text().splitlines() == [
        "step,seconds,loss,validation_loss",
        "1,0.2,6.000000,5.000000",
        "2,0.5,6.000000,4.000000",
        "3,0.8,6.000000,4.500000",
        "4,1.0,6.000000,3.000000",
    ]


def test_a_model_that_cannot_be_written_does_not_become_the_best(opened, monkeypatch):
    def full(*args):
        raise OSError("No space left on device")

    run, args = opened
    for val_loss in 5.0, 4.0:
        run.record.step += 1
        run.log(6.0, val_loss)
        if val_loss == 4.0:
            monkeypatch.setattr(training.run, "save_model", full)
            with pytest.raises(OSError, match="No space left"):
                run.save("float32")
        else:
            run.save("float32")
    again = open_run(*args, "--resume")  # so it will try to write that model again
    assert (again.record.step, again.record.best) == (1, 5.0)


def test_files_are_replaced_only_with_overwrite(opened, unbroken, text, tmp_path, monkeypatch):
    run, args = opened
    with pytest.raises(ValueError, match="holds an unfinished run: --resume it or --overwrite it"):
        open_run(*args)
    run.record.step = 7
    run.save_checkpoint()
    assert open_run(*args, "--overwrite").record.step == 0
    with pytest.raises(ValueError, match="config.json is there already: give another --out, or"):
        open_run(text, "--out", unbroken[0], *SMALL)
    assert open_run(text, "--out", tmp_path / "new", *SMALL, "--resume")  # no run to resume
    monkeypatch.setattr(training.run, "init_params", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # the text is replaced, so its checkpoint goes, too
        open_run(*args, "--overwrite")
    assert "checkpoint.safetensors" not in whole(Path(run.out) / "training")


def test_the_held_out_text_is_the_end_of_the_ids_and_all_ids_are_mapped(opened):
    run, _ = opened
    train_ids, val_ids = run.read_ids()
    ids = np.fromfile(training.run.ids_path(run.out), np.uint16)
    n_val = run.record.n_val
    assert n_val > 100 and len(ids) == run.record.n_train + n_val
    assert val_ids.tolist() == ids[-n_val:].tolist()
    assert train_ids.tolist() == ids[:-n_val].tolist()
    assert isinstance(train_ids, np.memmap) and isinstance(val_ids, np.memmap)


def test_each_file_is_replaced_atomically(opened):
    """The new file gets the old name, so a reader finds one or the other."""
    run, _ = opened
    names = "log.csv", "training.json", "config.json", "model.safetensors"
    numbers = []
    for val_loss in 5.0, 4.0:
        run.log(6.0, val_loss)
        run.save("float32")
        numbers.append([(Path(run.out) / name).stat().st_ino for name in names])
    assert all(first != second for first, second in zip(*numbers))


def test_a_finished_run_leaves_nothing_but_its_model(opened):
    run, _ = opened
    work = Path(run.out) / "training"
    (work / "notes").write_text("not from train.py")
    (work / "piped-text-0").write_text("from a pipe")
    with lock_run(run.out):
        assert (work / "lock").exists()
    assert sorted(whole(work)) == [
        "checkpoint.safetensors",
        "merges.txt",
        "notes",
        "tokens.bin",
        "vocab.json",
    ]
    with lock_run(run.out):
        (work / "checkpoint.safetensors").unlink()
    assert [*whole(work)] == ["notes"]
    with lock_run(run.out):
        pass
    assert [*whole(work)] == ["notes"] and list(Path(run.out).iterdir()) == [work]


def save_tokenizer(directory):
    """Write a vocabulary with tokenizer.json and two more files, and return it."""
    vocabulary = learn_bpe(["low lower lowest " * 9], 280).vocabulary
    merges = [list(pair) for pair in vocabulary.merges]
    tokenizer = {
        "model": {"type": "BPE", "vocab": vocabulary.ids, "merges": merges},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "decoder": {"type": "ByteLevel"},
        "added_tokens": [],
    }
    directory.mkdir()
    for name, content in (
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("special_tokens_map.json", {}),
    ):
        (directory / name).write_text(json.dumps(content))
    return vocabulary


def test_no_file_of_a_vocabulary_stays_in_the_training_directory(text, tmp_path):
    """The files are tokenizer.json, tokenizer_config.json, special_tokens_map.json, and one that a
    kill has left half written."""
    vocabulary = save_tokenizer(tmp_path / "tok")
    out = tmp_path / "out"
    with lock_run(out):
        run = open_run(text, "--out", out, "--tokenizer", tmp_path / "tok", *SMALL[:8])
        assert {*whole(out / "training")} > {path.name for path in (tmp_path / "tok").iterdir()}
        (out / "training" / ".gpt2-0123456789abcdef.tmp").touch()
        checkpoint_path(out).unlink()
    assert not out.exists() and run.encoder.vocabulary.merges == vocabulary.merges


def test_only_one_process_at_a_time_trains_in_a_directory(tmp_path):
    out = tmp_path / "a" / "b" / "out"
    with lock_run(out):
        refused = pytest.raises(ValueError, match="out: another training is writing there")
        with refused, lock_run(out):
            pytest.fail("two processes train at once")
        assert (out / "training" / "lock").exists()
        with lock_run(tmp_path / "other"):
            pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(ZeroDivisionError), lock_run(out):
        raise ZeroDivisionError
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_a_wrong_number_of_ids_is_refused(opened):
    run, _ = opened
    path = training.run.ids_path(run.out)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match="tokens.bin is not the text of this run; use --overwrite"):
        run.read_ids()
    path.unlink()
    os.mkdir(path)
    with pytest.raises(ValueError, match="tokens.bin is not the text of this run; use --overwrite"):
        run.read_ids()


def test_ids_of_another_vocabulary_are_refused(opened):
    run, _ = opened
    path = training.run.ids_path(run.out)
    path.write_bytes(path.read_bytes()[:-2] + run.encoder.n_vocab.to_bytes(2, "little"))
    with pytest.raises(ValueError, match="tokens.bin has ids of another vocabulary"):
        run.read_ids()


# Files of the user

MINE = b"mine"  # the content of a file of the user


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "model.safetensors", "generation_config.json", "training.json", "log.csv"),
        *("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"),
        *("special_tokens_map.json", "added_tokens.json", "model.safetensors.index.json"),
        *("model-00001-of-00002.safetensors", "pytorch_model.bin", "hparams.json", "encoder.json"),
        *("vocab.bpe", "checkpoint", "model.ckpt.index", "model.ckpt-9.data-00000-of-00001"),
        *("training/tokens.bin", "training/vocab.json", "training/checkpoint.safetensors"),
        *("training/tokenizer.json", "training/piped-text-0", "training/lock"),
    ],
)
def test_a_file_of_the_user_stops_a_run(name, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(MINE)
    before = everything(tmp_path)
    assert train.main([str(text), "--out", str(tmp_path / "out"), *SMALL]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(path) in error, error
    assert everything(tmp_path) == before


def test_other_files_of_the_user_survive_a_run(text, tmp_path):
    names = "notes", "loss.png", "training/notes", "training/model.safetensors", "x.tmp"
    for name in (*names, "model.safetensors.new", "config.json.tmp", "training/tokens.bin.tmp"):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(MINE)
    before = everything(tmp_path)
    (tmp_path / "short").write_text("too short")
    assert run_train(tmp_path / "short", "--out", tmp_path / "out", *SMALL).returncode == 1
    (tmp_path / "short").unlink()
    assert everything(tmp_path) == before
    done = run_train(text, "--out", tmp_path / "out", *SMALL, "--iterations", "2")
    assert done.returncode == 0, done.stderr
    after = everything(tmp_path)
    assert {path: after[path] for path in before} == before
    new = {path.name for path in after.keys() - before.keys()}
    assert new == {*TRAINED}


def test_overwrite_removes_only_files_that_a_run_has_made(text, tmp_path):
    """The first model has a tokenizer.json, the second one a learned vocabulary."""
    tok, out = tmp_path / "tok", tmp_path / "out"
    save_tokenizer(tok)
    few = *SMALL[:10], "--iterations", "2"
    done = run_train(text, "--out", out, "--tokenizer", tok, *few)
    assert done.returncode == 0 and (out / "tokenizer.json").exists(), done.stderr
    (out / "notes").write_bytes(MINE)
    for name in "generation_config.json", "added_tokens.json":
        (out / name).write_bytes(MINE)
        before = everything(tmp_path)
        done = run_train(text, "--out", out, *few, "--overwrite")
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert f"{out / name} would change the meaning of the new model: move" in done.stderr
        assert everything(tmp_path) == before
        (out / name).unlink()
    done = run_train(text, "--out", out, *few, "--overwrite")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in out.iterdir()}
    assert names == {"notes", *TRAINED} and load_model(out)
    (out / "tokenizer.json").write_bytes(MINE)  # now this file belongs to the user
    done = run_train(text, "--out", out, *few, "--overwrite")
    assert done.returncode == 1 and "tokenizer.json would change the meaning" in done.stderr
    assert (out / "tokenizer.json").read_bytes() == MINE


def test_a_checkpoint_that_cannot_be_read_is_not_removed(opened):
    """It may belong to the user."""
    run, args = opened
    before = everything(Path(run.out))
    with lock_run(run.out):  # a run was killed here
        pass
    assert everything(Path(run.out)) == before
    checkpoint_path(run.out).write_bytes(MINE)
    before = everything(Path(run.out))
    with pytest.raises(ValueError, match="checkpoint.safetensors"), lock_run(run.out):
        pytest.fail("files of the user were taken for files of a run")
    assert everything(Path(run.out)) == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(text, tmp_path):
    out = tmp_path / "out"
    args = text, "--out", out, *SMALL, "--iterations", "2"
    process = subprocess.Popen(train_command(*args, "--merge_dropout", "0.5"))
    wait_until((out / "training" / "lock").exists)
    process.kill()
    process.wait()
    work = out / "training"
    assert (work / "lock").read_bytes() in (b"", training.run.MARK)
    (work / "lock").write_bytes(training.run.MARK)
    for name in "tokens.bin", "vocab.json", ".gpt2-0123456789abcdef.tmp":
        (work / name).write_bytes(b"half")
    done = run_train(*args)
    assert done.returncode == 0, done.stderr
    assert {path.suffix for path in everything(out)} == {".json", ".txt", ".csv", ".safetensors"}
    assert not work.exists()


def test_a_finished_run_cannot_be_resumed(unbroken, text, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(unbroken[0], out)
    (out / "training").mkdir()  # killed at the very end, when the checkpoint is gone
    (out / "training" / "lock").write_bytes(training.run.MARK)
    (out / "training" / "tokens.bin").write_bytes(b"rest")
    for args in ["--resume"], [text, "--resume", "--iterations", "99"]:
        done = run_train(*args, "--out", out)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert f"{out}: its run is finished; to train the model further, give" in done.stderr
        assert f"--init_from {out} and another --out" in done.stderr
        assert everything(out).keys() == {out / path.name for path in unbroken[0].iterdir()}


# A run that is killed


def wait_until(seen):
    until = time.monotonic() + 60
    while time.monotonic() < until and not seen():
        time.sleep(0.002)


def test_a_killed_and_resumed_run_gives_the_same_model(unbroken, text, tmp_path):
    rng, out = random.Random(int(os.environ.get("GPT2_SEED", 0))), tmp_path / "killed"
    args = [text, "--out", out, *NOISY]
    resumed_at = []
    for rows in 1, 2, 4:  # kill it a moment after this many evaluations
        process = subprocess.Popen(train_command(*args), stdout=subprocess.DEVNULL)
        wait_until(lambda rows=rows: (out / "log.csv").exists() and len(curve(out)) > rows)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.wait()
        resumed_at.append(len(curve(out)) - 1)
        args = ["--out", out, "--resume"]  # the checkpoint has the other options
    assert 1 <= resumed_at[0] < 5  # it had begun, and was not finished
    done = run_train(*args)
    assert done.returncode == 0 or "its run is finished" in done.stderr  # killed after its end
    assert curve(out) == curve(unbroken[0])
    weights = "model.safetensors"
    assert (out / weights).read_bytes() == (unbroken[0] / weights).read_bytes()


def test_an_unfinished_run_is_protected(text, tmp_path):
    out = tmp_path / "out"
    work = out / "training"
    process = subprocess.Popen(
        train_command(text, "--out", out, *SMALL, "--iterations", "100000"),
        stdout=subprocess.DEVNULL,
    )
    wait_until((out / "log.csv").exists)
    process.kill()
    process.wait()
    files = whole(work)
    for args, word in (
        ([text, "--out", out, *SMALL], "unfinished run"),
        ([text, "--out", out, "--resume", "--optimizer", "adamw"], "optimizer"),
        ([text, "--out", out, "--resume", "--seed", "5"], "seed"),
        ([tmp_path / "missing", "--out", out, *SMALL, "--overwrite"], "missing"),
    ):
        done = run_train(*args)
        assert done.returncode == 1 and word in done.stderr and done.stderr.count("\n") == 1
        assert files == whole(work)
    for name in "tokens.bin", "checkpoint.safetensors":
        (work / name).write_bytes(files[name][:-8])
        done = run_train("--out", out, "--resume")
        assert done.returncode == 1 and name in done.stderr and done.stderr.count("\n") == 1
        (work / name).write_bytes(files[name])
    done = run_train("--out", out, "--resume", "--iterations", "20")  # it has done more
    assert done.returncode == 0 and not work.exists()


def test_a_run_can_be_resumed_from_another_directory(unbroken, text, tmp_path):
    """All paths are given relative to the first directory."""
    start = tmp_path / "start"
    start.mkdir()
    (start / "text.txt").write_bytes(text.read_bytes())
    (start / "words").write_text("the and")
    shutil.copytree(unbroken[0], start / "mine" / "model")
    args = ["text.txt", "--out", "a/out", "--init_from", "model", "--models_dir", "mine"]
    args += ["--stopwords", "words", "--iterations", "100000", "--eval_interval", "5"]
    process = subprocess.Popen(train_command(*args), cwd=start, stdout=subprocess.DEVNULL)
    out = start / "a" / "out"
    wait_until((out / "log.csv").exists)
    process.kill()
    process.wait()
    (start / "words").unlink()
    args = "--out", "start/a/out", "--resume", "--iterations", "6"
    done = run_train(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nats per token" in done.stdout and not (out / "training").exists()
    assert list(tmp_path.iterdir()) == [start]


def test_a_second_process_cannot_train_in_the_same_directory(text, tmp_path):
    out = tmp_path / "out"
    args = train_command(text, "--out", out, *SMALL, "--iterations", "100000")
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL)
    wait_until((out / "log.csv").exists)
    for more in [], ["--overwrite"], ["--resume"]:
        done = run_train(text, "--out", out, *SMALL, *more)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert "out: another training is writing there" in done.stderr
        assert process.poll() is None
    process.kill()
    process.wait()
    done = run_train("--out", out, "--resume", "--iterations", "10")  # the lock has gone, too
    assert done.returncode == 0, done.stderr
    assert not (out / "training").exists()


def test_a_run_that_cannot_begin_leaves_nothing(unbroken, text, tmp_path):
    (tmp_path / "short").write_text("too short")
    (tmp_path / "binary").write_bytes(b"text " * 1000 + b"\xff")
    (tmp_path / "bad.jsonl").write_text('{"text": "low"}\n{}')
    before = sorted(tmp_path.rglob("*"))
    for args, stdin in (
        (["missing"], ""),
        (["short"], ""),
        (["binary"], ""),
        (["bad.jsonl"], ""),
        (["-"], "too short"),
        (["-", text, "missing"], "text"),
        ([text, "--init_from", "./nowhere"], ""),
        ([text, "--tokenizer", "./nowhere"], ""),
        ([text, "--init_from", unbroken[0], "--n_ctx", "99"], ""),
        ([text, "--n_embd", "100000000"], ""),  # too large for the memory
    ):
        out = "--out", "new/models/out"
        done = run("train.py", *args, *out, cwd=tmp_path, stdin=stdin, text=True)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert sorted(tmp_path.rglob("*")) == before, args


def test_an_interrupted_last_evaluation_is_repeated(text, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.setattr(train, "measure", interrupted)
    assert train.main([str(text), "--out", str(out), *SMALL]) == 130
    assert "--resume continues from the last checkpoint" in capsys.readouterr().err
    rows = curve(out)
    done = run_train("--out", out, "--resume")
    assert done.returncode == 0 and "nats per token" in done.stdout, done.stderr
    assert curve(out) == rows and not (out / "training").exists()


# Without a held-out text


def test_without_a_held_out_text_the_last_model_is_kept(text, tmp_path):
    out = tmp_path / "out"
    args = str(text), "--out", str(out), *SMALL, "--val_fraction", "0"
    run = open_run(*args)
    train_ids, val_ids = run.read_ids()
    assert len(val_ids) == 0 and len(train_ids) == run.record.n_train
    for step in 1, 2:
        run.record.step = step
        run.optimizer.w[...] = step
        run.log(5.0 + step)
        run.save("float32")
        assert all((x == step).all() for x in flatten(load_model(out)[2]).values())
    assert (out / "log.csv").read_text().splitlines()[1:] == ["1,0.0,6.000000,", "2,0.0,7.000000,"]
    done = run_train(*args, "--overwrite", "--eval_interval", "25")
    assert done.returncode == 0, done.stderr
    assert [row[0] for row in curve(out)[1:]] == ["10", "20", "25", "30", "40", "44"]
    assert {row[-1] for row in curve(out)[1:]} == {""} and "nats" not in done.stdout
    rate = "--iterations", "2", "--learning_rate", "1e38", "--optimizer", "adamw"
    done = run_train(*args, "--overwrite", *rate)
    assert done.returncode == 1 and "weights is nan after 2 steps" in done.stderr


def test_the_vocabulary_is_not_learned_from_the_held_out_text(tmp_path):
    """The held-out text has other letters, more often than any pair in the rest."""
    path = tmp_path / "text"
    path.write_text("low lower lowest " * 100 + "XYZ XYZ " * 200)
    share = str(1600 / 3300)
    args = path, "--out", tmp_path / "out", *SMALL, "--val_fraction", share
    run = open_run(*args)
    assert not any("X" in a + b for a, b in run.encoder.vocabulary.merges)
    train_ids, val_ids = run.read_ids()
    assert run.encoder.decode(train_ids.tolist()) == "low lower lowest " * 100
    assert run.encoder.decode(val_ids.tolist()) == "XYZ XYZ " * 200


def test_the_vocabulary_is_learned_from_the_changed_text(tmp_path):
    (tmp_path / "text").write_text("LOW the Lower " * 300)
    (tmp_path / "words").write_text("the")
    changed = "--lowercase", "--stopwords", tmp_path / "words"
    run = open_run(tmp_path / "text", "--out", tmp_path / "out", *SMALL, *changed)
    tokens = [a + b for a, b in run.encoder.vocabulary.merges]
    assert "low" in tokens and not any("L" in token or "th" in token for token in tokens)


def test_the_vocabulary_is_not_learned_from_end_of_text_tokens(tmp_path):
    stories = ["low lower", "lowest low"] * 200
    (tmp_path / "marked").write_text("<|endoftext|>\n".join(stories), newline="")
    lines = "\n".join(json.dumps({"text": story}) for story in stories)
    (tmp_path / "lines.jsonl").write_text(lines)
    args = "--out", tmp_path / "out", *SMALL, "--overwrite", "--val_fraction", "0"
    runs = [open_run(tmp_path / name, *args) for name in ("marked", "lines.jsonl")]
    assert runs[0].encoder.vocabulary == runs[1].encoder.vocabulary
    tokens = " ".join(runs[0].encoder.vocabulary.ids)
    assert tokens.count("endoftext") == 1 and "<|e" not in tokens.replace("<|endoftext|>", "")
    ids = runs[1].read_ids()[0].tolist()
    assert ids.count(runs[1].encoder.eot) == 399 and "endoftext" not in "".join(stories)
    literal = open_run(tmp_path / "marked", *args, "--literal_endoftext")
    assert any("endo" in a + b for a, b in literal.encoder.vocabulary.merges)
    assert literal.encoder.eot not in literal.read_ids()[0]


def test_a_model_that_is_trained_further_keeps_its_epsilon(text, tmp_path, monkeypatch):
    run = open_run(text, "--out", tmp_path / "one", *SMALL, "--val_fraction", "0")
    run.hparams["layer_norm_epsilon"] = 0.25
    run.log(5.0)
    run.save("float32")
    (tmp_path / "one" / "training" / "checkpoint.safetensors").unlink()
    ids, batch = [], train.batch
    monkeypatch.setattr(train, "batch", lambda *args: ids.append(batch(*args)) or ids[-1])
    monkeypatch.setattr("sys.stdin", None)
    args = "--out", tmp_path / "two", "--init_from", tmp_path / "one", "--iterations", 1
    options = "--dropout", 0, "--learning_rate", 0
    assert train.main([*map(str, (*args, *options))]) == 0
    _, hparams, params = load_model(tmp_path / "two")
    assert hparams["layer_norm_epsilon"] == 0.25
    nats = [window_losses(row, (0, 1, 17), params, hparams).sum() for row in ids[0]]
    assert float(curve(tmp_path / "two")[1][1]) == pytest.approx(sum(nats) / 96, rel=1e-4)
