"""Test a training step, and whole runs of train.py."""

import contextlib
import itertools
import math
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import (
    EPS,
    NOISY,
    ROOT,
    SMALL,
    TINY,
    TRAINED,
    curve,
    leaves,
    random_params,
    run,
    run_train,
    some_ids,
    train_command,
)
from odd_models import Odd, build

import gpt2
import gpt2_pico
import train
from encoder import get_encoder
from evaluate import evaluate, measure, windows, worker_threads
from model_files.directory import load_model
from training import backward, corpus, optimizer
from training.optimizer import Optimizer
from training.run import Record, init_params
from utils import load_encoder_hparams_and_params

# A step

HPARAMS = {"n_vocab": 50, "n_ctx": 12, "n_embd": 24, "n_layer": 2, "n_head": 3}
HPARAMS["layer_norm_epsilon"] = 1e-5


def new_optimizer(n_threads, by_muon=True):
    params = init_params(HPARAMS, np.random.default_rng(0))
    return Optimizer(params, n_threads, decay=0.1, by_muon=by_muon)


@pytest.mark.parametrize("by_muon", [False, True], ids=["adamw", "muon"])
def test_threads_and_pieces_do_not_change_a_step(by_muon, monkeypatch):
    ids, results = np.random.default_rng(1).integers(50, size=(7, 13)), []
    for n_threads, tokens, piece in (
        (1, 10**6, 2**16),
        (2, 10**6, 2**16),
        (3, 12, 1000),
        (16, 24, 1000),
    ):
        monkeypatch.setattr(train, "MAX_TOKENS", tokens)
        monkeypatch.setattr(optimizer, "PIECE", piece)
        state = new_optimizer(n_threads, by_muon)
        with ThreadPoolExecutor(n_threads) as pool:
            for step in 1, 2, 3:
                loss = train.batch_gradient(pool, state, ids, HPARAMS, 0.0, (0, step))
                norm = train.sum_gradients(pool, state.g)
                state.update(optimizer.clip(norm), 1e-2, step, pool)
        results.append((loss, norm, state.w.copy()))
    for loss, norm, w in results[1:]:
        assert abs(loss - results[0][0]) < 1e-4 and abs(norm - results[0][1]) < 1e-4
        assert np.abs(w - results[0][2]).max() < 1e-3
    assert all(x.dtype == np.float32 for x in (w, state.m, state.v, state.g))


def test_all_threads_together_give_the_gradient_of_the_mean_loss(monkeypatch):
    monkeypatch.setattr(train, "MAX_TOKENS", 60)  # of 200, so each thread has several pieces
    params, ids = random_params(), some_ids(5, 41)
    state = Optimizer(params, 2, decay=0.1, by_muon=True)
    state.g[...] = 7  # left from the step before
    pieces, forward = [], train.gpt2_forward

    def watched(inputs, **model):
        pieces.append(inputs.size)
        return forward(inputs, **model)

    monkeypatch.setattr(train, "gpt2_forward", watched)
    with ThreadPoolExecutor(2) as pool:
        loss = train.batch_gradient(pool, state, ids, TINY, 0.0, (0, 1))
        norm = train.sum_gradients(pool, state.g)
    assert sum(pieces) == 200 and max(pieces) < 60 + 40  # less than a sequence above the limit
    expected, gradient = train.loss_and_gradient(ids, 200, params, TINY)
    assert loss == pytest.approx(expected, rel=1e-5)
    logits = [gpt2_pico.gpt2(row[:-1], **params, n_head=TINY["n_head"], eps=EPS) for row in ids]
    losses = [-gpt2.log_probabilities(x, row[1:]) for x, row in zip(logits, ids)]
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    total = dict(leaves(state.gradients[0]))
    for name, x in leaves(gradient):
        np.testing.assert_allclose(total[name], x, rtol=1e-3, atol=1e-5 * abs(x).max())
    assert norm == pytest.approx(np.sqrt(sum((x**2).sum() for _, x in leaves(gradient))), rel=1e-4)


def test_dropout_differs_between_pieces_and_between_steps(monkeypatch):
    monkeypatch.setattr(train, "MAX_TOKENS", 12)
    ids = np.tile(np.random.default_rng(1).integers(50, size=13), (4, 1))  # one text, four times
    draws, dropout = [], backward.dropout

    def watched(x, rate, rng):
        x, mask = dropout(x, rate, rng)
        draws.append((rate, mask.tobytes()))
        return x, mask

    monkeypatch.setattr(backward, "dropout", watched)
    state = new_optimizer(1)
    with ThreadPoolExecutor(1) as pool:
        losses = [
            train.batch_gradient(pool, state, ids, HPARAMS, 0.5, seed)
            for seed in ((0, 1), (0, 2), (1, 1), (0, 1))
        ]
    assert len(set(losses[:3])) == 3 and losses[3] == losses[0]
    assert {rate for rate, _ in draws} == {0.5}
    assert len(set(draws)) == len(draws) * 3 / 4  # the last of the four steps repeats the first


def test_a_batch_depends_only_on_seed_and_step():
    tokens = np.arange(1000, 1100, dtype=np.uint16)
    ids = train.batch(tokens, 9, 200, seed=3, step=5)
    assert ids.shape == (200, 10) and ids.dtype == np.int64
    assert (np.diff(ids) == 1).all() and ids.min() == 1000 and ids.max() == 1099
    assert len(set(ids[:, 0])) > 60
    assert np.array_equal(ids, train.batch(tokens, 9, 200, 3, 5))
    for other in (3, 6), (4, 5), (4, 4):
        assert not np.array_equal(ids, train.batch(tokens, 9, 200, *other))
    shortest = train.batch(tokens[:10], 9, 4, 0, 0)
    assert np.array_equal(shortest, np.tile(tokens[:10], (4, 1)))


def test_validation_is_the_mean_over_evenly_spaced_windows(monkeypatch):
    params, ids = random_params(), some_ids(500)
    state = Optimizer(params, 1, decay=0, by_muon=False)
    with worker_threads(2) as pool:
        loss = train.validate(pool, ids, 40, state, TINY, step=1)
        monkeypatch.setattr(train, "EVAL_TOKENS", 125)  # every fourth window
        sampled_loss = train.validate(pool, ids, 40, state, TINY, step=1)
        spans = [(i, i + 1, min(i + 40, 500)) for i in range(0, 500, 40)]
        losses = [evaluate(ids, [span], params, TINY, pool) for span in spans]
        assert train.validate(pool, ids[:0], 40, state, TINY, step=1) is None
    for mean, counted in (loss, losses), (sampled_loss, losses[::4]):
        assert mean == pytest.approx(
            sum(nats for nats, _ in counted) / sum(n for _, n in counted), rel=1e-6
        )


def test_the_length_of_a_run_is_in_steps_or_in_minutes():
    record = Record({}, step=30, seconds=50.0)
    for minutes, done in (None, 0.25), (2, 50 / 120):
        options = SimpleNamespace(iterations=120, minutes=minutes)
        assert train.part_done(record, options) == done


# A run


def test_a_run_learns_and_leaves_a_model(unbroken, text):
    out, done = unbroken
    assert sorted(path.name for path in out.iterdir()) == TRAINED
    assert done.stderr == ""  # no bar, as this is not a terminal
    losses = [float(row[-1]) for row in curve(out)[1:]]
    assert len(losses) == 5 and losses[-1] < losses[0] - 0.3 and losses[0] < math.log(300)
    encoder, hparams, params = load_encoder_hparams_and_params(str(out), "")
    assert hparams["n_vocab"] == len(encoder.vocabulary.ids) and hparams["n_ctx"] == 16
    content = text.read_text(encoding="utf-8")
    assert encoder.decode(encoder.encode(content)) == content
    completed = run("gpt2.py", "the", "--model_size", out)
    assert completed.returncode == 0 and len(completed.stdout) > 20


def test_the_last_figures_are_the_ones_that_evaluate_prints(unbroken, text):
    out, done = unbroken
    args = text, "--val_fraction", "0.1", "--model_size", out
    measured = run("evaluate.py", *args, stdin="", text=True)
    assert measured.returncode == 0 and done.stdout.endswith(f"\n{measured.stdout}")
    nats = float(re.search(r"nats per token +(\S+)\n", done.stdout)[1])
    assert nats == pytest.approx(float(curve(out)[-1][-1]), abs=0.05)  # the log has other windows


def test_the_same_seed_gives_the_same_run(unbroken, text, tmp_path):
    again = run_train(text, "--out", tmp_path / "again", *NOISY)
    assert again.returncode == 0 and curve(tmp_path / "again") == curve(unbroken[0])
    other = run_train(text, "--out", tmp_path / "other", *NOISY, "--seed", "1")
    assert other.returncode == 0 and curve(tmp_path / "other") != curve(unbroken[0])


def test_the_last_batches_come_from_the_text_itself(text, tmp_path, monkeypatch):
    lengths, batch, out = [], train.batch, tmp_path / "out"

    def watched(ids, *rest):
        lengths.append(len(ids))
        return batch(ids, *rest)

    monkeypatch.setattr(train, "batch", watched)
    maps, finish = Path("/proc/self/maps"), train.finish

    def unmapped(*args):  # Windows cannot remove a file that is mapped
        assert not (maps.exists() and "tokens.bin" in maps.read_text())
        finish(*args)

    monkeypatch.setattr(train, "finish", unmapped)
    monkeypatch.setattr(sys, "stdin", None)  # a closed standard input must not matter
    assert train.main([str(text), "--out", str(out), *SMALL, "--merge_dropout", "0.5"]) == 0
    n = 0.9 * len(get_encoder(out).encode(text.read_text(encoding="utf-8")))
    assert lengths[0] > corpus.COPIES * n and lengths == sorted(lengths, reverse=True)
    assert n * 0.99 < lengths[-1] < 2 * n  # the 44th step may still see part of the last copy


def test_the_steps_of_a_run_follow_its_options(text, tmp_path, monkeypatch):
    """Seeds, dropout, learning rates and clipped gradients arrive in each step as they should."""
    steps, losses, updates = [], [], []
    batch_gradient, update = train.batch_gradient, Optimizer.update

    def watched_loss(pool, state, ids, hparams, *rest):
        steps.append((ids.shape, *rest))
        losses.append(batch_gradient(pool, state, ids, hparams, *rest))
        return losses[-1]

    def watched_update(self, scale, lr, step, pool):
        length = math.sqrt(sum((x.astype(float) ** 2).sum() for _, x in leaves(self.gradients[0])))
        updates.append((length, scale * length, lr, step))
        return update(self, scale, lr, step, pool)

    monkeypatch.setattr(train, "batch_gradient", watched_loss)
    monkeypatch.setattr(Optimizer, "update", watched_update)
    monkeypatch.setattr(sys, "stdin", None)
    options = "--iterations", "10", "--learning_rate", "0.01", "--warmup", "0.2", "--dropout", "0.3"
    args = [str(text), "--out", str(tmp_path / "out"), *SMALL, *options, "--seed", "4"]
    assert train.main([*args, "--eval_interval", "4"]) == 0
    assert steps == [((6, 17), 0.3, (4, step)) for step in range(1, 11)]
    rates = [0.01 * optimizer.schedule(i / 10, 0.2) for i in range(10)]
    assert [(lr, step) for *_, lr, step in updates] == list(zip(rates, range(1, 11)))
    lengths, clipped, *_ = zip(*updates)
    assert clipped == pytest.approx([min(length, 1) for length in lengths], rel=1e-4)
    means = [np.mean(losses[i:j]) for i, j in ((0, 4), (4, 8), (8, 10))]  # since the last row
    rows = [[n, f"{mean:.6f}"] for n, mean in zip(["4", "8", "10"], means)]
    assert [row[:2] for row in curve(tmp_path / "out")[1:]] == rows


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_no_weight(loss, text, tmp_path, monkeypatch, capsys):
    steps = []
    monkeypatch.setattr(train, "batch_gradient", lambda *args: steps.append(1) or loss)
    monkeypatch.setattr(Optimizer, "update", lambda *args: pytest.fail("changed"))
    monkeypatch.setattr(sys, "stdin", None)
    assert train.main([str(text), "--out", str(tmp_path / "out"), *SMALL]) == 1
    assert f"the loss is {loss} after 1 steps" in capsys.readouterr().err and len(steps) == 1


def test_out_may_be_a_bare_name(text, tmp_path):
    (tmp_path / "shakespeare" / "training").mkdir(parents=True)
    (tmp_path / "shakespeare" / "training" / "notes").write_text("not from train.py")
    done = run_train(text, "--out", "shakespeare", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    nats = float(re.search(r"nats per token +(\S+)\n", done.stdout)[1])
    assert abs(nats - float(curve(tmp_path / "shakespeare")[-1][-1])) < 0.2
    path = re.search("--model_size (.*)", done.stdout)[1]
    assert path == os.path.join(".", "shakespeare")
    files = list((tmp_path / "shakespeare" / "training").iterdir())
    assert [path.name for path in files] == ["notes"]


def test_fine_tuning_starts_from_the_model(unbroken, text, tmp_path):
    out = tmp_path / "tuned"
    options = "--iterations", "10", "--eval_interval", "5", "--learning_rate", "1e-3"
    shorter = "--dtype", "float16", "--minutes", "0.02"
    done = run_train(text, "--out", out, "--init_from", unbroken[0], *options, *shorter)
    assert done.returncode == 0, done.stderr
    last = float(curve(unbroken[0])[-1][-1])
    assert abs(float(curve(out)[1][-1]) - last) < 0.2
    assert (out / "vocab.json").read_bytes() == (unbroken[0] / "vocab.json").read_bytes()
    sizes = [(path / "model.safetensors").stat().st_size for path in (out, unbroken[0])]
    assert sizes[0] < 0.6 * sizes[1]


def test_fine_tuning_keeps_added_tokens_and_ends(text, tmp_path, monkeypatch):
    decoder = {"270": {"content": "<x>", "lstrip": True}}
    files = {
        "tokenizer_config.json": {"added_tokens_decoder": decoder, "add_prefix_space": True},
        "generation_config.json": {"eos_token_id": [7, 12]},
    }
    build(Odd(files=files), tmp_path / "odd")
    monkeypatch.setattr(sys, "stdin", None)
    args = str(text), "--out", str(tmp_path / "out"), "--init_from", str(tmp_path / "odd")
    assert train.main([*args, "--iterations", "2"]) == 0
    start, end = (load_encoder_hparams_and_params(str(tmp_path / x), ".") for x in ("odd", "out"))
    for vocabulary, other in zip(start[0].vocabulary[:5], end[0].vocabulary[:5], strict=True):
        assert vocabulary == other
    assert {**start[1], "training": None} == {**end[1], "training": None}
    assert end[1]["eos_token_ids"] == [7, 12]
    assert end[0].encode("low <x>low") == start[0].encode("low <x>low") == [264, 270, 264]


def test_fine_tuning_may_use_shorter_sequences(unbroken, text, tmp_path, monkeypatch):
    lengths, batch = [], train.batch
    monkeypatch.setattr(train, "batch", lambda *args: lengths.append(args[1]) or batch(*args))
    monkeypatch.setattr(sys, "stdin", None)
    args = str(text), "--out", str(tmp_path / "out"), "--init_from", str(unbroken[0])
    assert train.main([*args, "--iterations", "2", "--n_ctx", "8"]) == 0
    assert train.main([*args, "--iterations", "2", "--overwrite"]) == 0
    assert lengths == [8, 8, 16, 16]


def test_a_new_model_may_use_the_vocabulary_of_another(unbroken, text, tmp_path):
    shape = "--n_layer", "2", "--n_embd", "24", "--n_head", "3", "--n_ctx", "12", "--iterations"
    out = tmp_path / "out"
    done = run_train(text, "--out", out, "--tokenizer", unbroken[0], *shape, "4")
    assert done.returncode == 0, done.stderr
    vocabulary, hparams, _ = load_model(out)
    assert vocabulary[:2] == load_model(unbroken[0])[0][:2]
    assert (hparams["n_layer"], hparams["n_embd"], hparams["n_ctx"]) == (2, 24, 12)
    assert hparams["n_vocab"] == len(vocabulary.ids)


def test_samples_begin_with_the_held_out_text(tmp_path, monkeypatch, capsys):
    (tmp_path / "text").write_text("low lower lowest " * 100 + "XYZ " * 50)
    monkeypatch.setattr(sys, "stdin", None)
    args = [str(tmp_path / "text"), "--out", str(tmp_path / "out"), *SMALL, "--iterations", "2"]
    assert train.main([*args, "--vocab_size", "257", "--val_fraction", str(200 / 1900)]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("    X")
    assert (
        train.main([*args, "--val_fraction", "0", "--overwrite"]) == 0
    )  # then with the training text
    assert capsys.readouterr().out.splitlines()[2].startswith("    low")


def test_output_that_goes_to_a_file_is_flushed(text, tmp_path):
    args = text, "--out", tmp_path / "out", *SMALL, "--iterations", "100000"
    with open(tmp_path / "output", "wb") as output:
        process = subprocess.Popen(train_command(*args), stdout=output)
        until = time.monotonic() + 60
        while time.monotonic() < until and not (tmp_path / "out" / "log.csv").exists():
            time.sleep(0.002)
        shown = (tmp_path / "output").read_text(encoding="utf-8")
        process.kill()
        process.wait()
    assert "tokens to train on" in shown and "\nstep 10, " in shown


def test_a_resumed_run_counts_the_steps_and_seconds_before_but_not_in_its_speed(
    text, tmp_path, monkeypatch
):
    """A clock on which each step takes a second, and a run that is interrupted in its 11th step."""
    clock, bars = itertools.count(100.0), []

    class Bar(train.tqdm):
        def __init__(self, **options):
            super().__init__(**options)
            bars.append({**options, "shown": []})

        def update(self):
            self.n += 1
            bars[-1]["shown"].append((self.n, self.total))

    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(train, "tqdm", Bar)
    monkeypatch.setattr(sys, "stdin", None)
    update = Optimizer.update
    args = ["--out", str(tmp_path / "out")]

    def interrupted(self, scale, lr, step, pool):
        update(self, scale, lr, step, pool)
        if step == 11 and "--resume" not in args:
            raise KeyboardInterrupt

    monkeypatch.setattr(Optimizer, "update", interrupted)
    assert train.main([*args, str(text), *SMALL]) == 130
    args.append("--resume")
    next(clock)
    assert train.main([*args, "--iterations", "13"]) == 0
    assert [bar["initial"] for bar in bars] == [0, 10]
    assert bars[0]["shown"] == [(step, 44) for step in range(1, 11)]
    assert bars[1]["shown"] == [(step, 13) for step in (11, 12, 13)]
    assert (tmp_path / "out" / "log.csv").read_text().splitlines()[-1].startswith("13,13.0,")
    # 0.4 minutes are 24 of these seconds, so every step estimates that there will be 24 steps.
    assert train.main([*args[:2], "--overwrite", str(text), *SMALL, "--minutes", "0.4"]) == 0
    assert bars[2]["shown"] == [(step, 24) for step in range(1, 25)]


def in_terminal(columns, *args):
    """Run a command in a pseudo-terminal, and return what it has written there."""
    import fcntl
    import pty
    import termios

    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: x for name, x in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(args, stdin=end, stdout=end, stderr=end, env=environment)
    os.close(end)
    data = b""
    with contextlib.suppress(OSError):  # on Linux, that is how a terminal ends
        while piece := os.read(terminal, 10_000):
            data += piece
    os.close(terminal)
    assert process.wait(timeout=60) == 0, data
    return data.decode()


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals of POSIX")
@pytest.mark.parametrize("length", [("--iterations", "44"), ("--minutes", "0.01")], ids=str)
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_each_progress_bar_fits_into_the_terminal(columns, length, text, tmp_path):
    """The bars for reading and encoding the text, for training, and for the last evaluation."""
    out = in_terminal(columns, *train_command(text, "--out", tmp_path / "out", *SMALL, *length))
    states = [state.rstrip() for state in re.split("[\r\n]+", out)]  # \r goes back to draw again
    states = [state for state in states if not state.startswith("    ")]  # text by the model
    bars = [state for state in states if "|" in state]
    assert max(map(len, bars)) <= columns
    assert all(len(re.search(r"\|(.*)\|", bar)[1]) >= 10 for bar in bars), bars
    training = [bar for bar in bars if bar.startswith("step")]
    steps = r"step \d+/44" if "--iterations" in length else r"step \d+"
    speed = r", +[\d.?]+ steps/s" if columns >= 70 else ""
    for bar in training:
        line = rf"{steps}(, loss \d\.\d\d\d)? \|.*\| \d+ % [\d:]+<[\d:?]+{speed}"
        assert re.fullmatch(line, bar), bar
    assert re.search(r"\|█+\| 100 % ", training[-1])
    units = {re.search(r"[^\d.? ]*$", bar)[0] for bar in bars if bar not in training}
    assert units == {"B/s]", "tokens/s]"}


def test_an_interrupted_run_says_how_to_resume_it(text, tmp_path, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", None)
    args = [str(text), "--out", str(tmp_path / "out"), *SMALL]
    monkeypatch.setattr(train, "open_run", interrupted)
    assert train.main(args) == 130 and capsys.readouterr().err == "train.py: stopped\n"
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(train, "validate", interrupted)
    assert train.main(args) == 130
    message = "train.py: stopped; --resume continues from the last checkpoint\n"
    assert capsys.readouterr().err.endswith(message)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_prints_one_line_and_leaves_no_half_written_file(text, tmp_path):
    out = tmp_path / "out"
    args = train_command("-", "--out", out, *SMALL, "--iterations", "100000")
    hear = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731 (nohup)
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with open(text, "rb") as stdin:
        process = subprocess.Popen(args, stdin=stdin, preexec_fn=hear, **pipes)
    until = time.monotonic() + 60
    while time.monotonic() < until and not (out / "log.csv").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == b"train.py: stopped; --resume continues from the last checkpoint\n"
    files = {path.name for path in (out / "training").iterdir()}
    assert files == {"checkpoint.safetensors", "merges.txt", "tokens.bin", "vocab.json"}
    assert not [path for path in out.iterdir() if path.suffix in (".tmp", ".new")]


@pytest.mark.skipif(os.name == "nt", reason="a pipe that is closed")
def test_a_closed_pipe_stops_a_run(text, tmp_path):
    args = train_command(text, "--out", tmp_path / "out", *SMALL, "--iterations", "100000")
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert errors == b"train.py: stopped; --resume continues from the last checkpoint\n"


def test_plot_draws_the_curves_of_a_log(unbroken, tmp_path, monkeypatch, capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib draws the curves")
    done = run_train("--plot", unbroken[0])
    assert done.returncode == 0, done.stderr
    picture = unbroken[0] / "loss.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    log, drawn = "step,seconds,loss,validation_loss\n10,1,3.5,\n20,2,3,4\n30,3,2.5,\n", {}
    (tmp_path / "log.csv").write_text(log)
    monkeypatch.setattr(pyplot, "plot", lambda x, y, label: drawn.update({label: [*zip(x, y)]}))
    for name in "savefig", "legend":
        monkeypatch.setattr(pyplot, name, lambda *args, **options: None)
    monkeypatch.setattr(sys, "stdin", None)
    expected = {"training": [(10, 3.5), (20, 3.0), (30, 2.5)], "validation": [(20, 4.0)]}
    for rows in expected["validation"], []:  # without held-out text, the curve is empty
        assert train.main(["--plot", str(tmp_path)]) == 0
        assert drawn == {**expected, "validation": rows}
        (tmp_path / "log.csv").write_text(log.replace(",4", ","))
    header = b"step,seconds,loss,validation_loss\n"
    odd = b"", header, header + b"1,2,a,\n", b"1,2\n3,4", bytes(range(256)) * 9
    for content in (*odd, b"x" * 200_000):
        (tmp_path / "log.csv").write_bytes(content)
        capsys.readouterr()
        assert train.main(["--plot", str(tmp_path)]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "log.csv is not a log of train.py, or has no rows" in error


def test_without_arguments_three_lines_say_what_train_needs(tmp_path):
    done = run_train()
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 3)
    example = shlex.split(done.stderr.splitlines()[1])
    assert example[:2] == ["python", "train.py"]
    texts, out = example[2:-4], ["--out", tmp_path / "out"]
    assert example[-4:-1] == ["--out", "models/first", "--iterations"]
    done = run_train(*texts, *out, *SMALL[:8], "--iterations", "2", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(re.search(r"([\d,]+) tokens to train", done.stdout)[1].replace(",", "")) > 9000


def test_the_log_has_a_row_every_ten_steps(text, tmp_path, monkeypatch):
    losses, batch_gradient = [], train.batch_gradient

    def watched(*args):
        losses.append(batch_gradient(*args))
        return losses[-1]

    monkeypatch.setattr(train, "batch_gradient", watched)
    monkeypatch.setattr(sys, "stdin", None)
    out = tmp_path / "out"
    assert train.main([str(text), "--out", str(out), *SMALL, "--eval_interval", "25"]) == 0
    rows, ends = curve(out)[1:], [0, 10, 20, 25, 30, 40, 44]
    means = [f"{np.mean(losses[i:j]):.6f}" for i, j in zip(ends, ends[1:])]  # since the last row
    assert [row[:2] for row in rows] == [[str(n), mean] for n, mean in zip(ends[1:], means)]
    assert [row[0] for row in rows if row[2]] == ["25", "44"]


def test_the_last_evaluation_measures_windows_spread_over_a_long_text(
    unbroken, text, tmp_path, monkeypatch
):
    model = load_encoder_hparams_and_params(str(unbroken[0]), "")
    ids = np.array(model[0].encode(text.read_text(encoding="utf-8")))[:2005]
    with worker_threads(2) as pool:
        figures = measure(ids, *model, pool)
        assert figures == measure(ids, *model, pool, limit=5000)
        assert figures["tokens"] == 2004 and figures["stride"] == 8
        sampled = measure(ids, *model, pool, limit=500)
        every = [*windows(2005, 16, 8)][::4]  # of 2,005 ids, about 500 have to be predicted
        nats, n = evaluate(ids, every, model[2], model[1], pool)
    assert sampled["tokens"] == n == sum(stop - first for _, first, stop in every)
    assert sampled["nats per token"] == nats / n and every[-1][2] > 1970
    seen = []
    monkeypatch.setattr(train, "measure", lambda *args, **options: seen.append(options) or figures)
    monkeypatch.setattr(sys, "stdin", None)
    assert train.main([str(text), "--out", str(tmp_path / "out"), *SMALL]) == 0
    assert seen[0]["limit"] == train.EVAL_TOKENS == 2**17


def test_wrong_usage_exits_with_2(text, tmp_path):
    for args, word in (
        ([text], "--out"),
        (["--out", tmp_path, "--resume"], "holds no unfinished run"),
        ([text, "--out", tmp_path / "m", "--dropout", "2"], "dropout"),
        ([text, "--out", tmp_path / "m", "--resume", "--overwrite"], "not allowed"),
    ):
        done = run_train(*args)
        assert done.returncode == 2 and word in done.stderr.splitlines()[-1], done.stderr


def test_bad_input_exits_with_1_and_prints_one_line(unbroken, text, tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "log.csv").write_text("step,loss\n1,2\n")
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_text("too short", encoding="utf-8")
    (tmp_path / "binary").write_bytes(b"text " * 100 + b"\xff\xfe" + b"text " * 100)
    out = tmp_path / "out"
    for args, words in (
        ([tmp_path / "empty", "--out", out], ["empty"]),
        ([tmp_path / "short", "--out", out], ["short"]),
        ([tmp_path / "binary", "--out", out], ["binary", "byte 500", "UTF-8"]),
        ([tmp_path / "missing", "--out", out], ["missing"]),
        ([text, "--out", unbroken[0]], ["unbroken", "--overwrite"]),
        ([text, "--out", out, "--stopwords", tmp_path / "none"], ["none"]),
        ([text, "--out", out, "--stopwords", tmp_path / "binary"], ["binary", "UTF-8"]),
        ([text, "--out", out, "--init_from", tmp_path / "nowhere"], ["nowhere"]),
        ([text, "--out", out, "--init_from", unbroken[0], "--n_ctx", "17"], ["--n_ctx 17", "16"]),
        (["--plot", tmp_path / "odd"], ["log.csv", "not a log"]),
        (["--plot", tmp_path], ["log.csv"]),
    ):
        done = run_train(*args, *(SMALL[:-6] if "--init_from" not in args else []))
        lines = done.stderr.strip().splitlines()
        assert done.returncode == 1 and len(lines) == 1, (args, done.stderr)
        assert lines[0].startswith("train.py: error: ") and all(w in lines[0] for w in words)


@pytest.mark.parametrize("rate", ["1e6", "1e38"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_loss_that_is_not_finite_stops_the_run(rate, optimizer, text, tmp_path):
    out = tmp_path / "diverges"
    options = "--learning_rate", rate, "--optimizer", optimizer, "--eval_interval", "1"
    done = run_train(text, "--out", out, *SMALL, *options)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert re.search(r"the .* is -?(nan|inf) after \d+ steps", done.stderr), done.stderr
    assert (out / "training" / "checkpoint.safetensors").exists()


def test_too_little_memory_prints_one_line(text, tmp_path, monkeypatch, capsys):
    def too_large(*args):
        raise MemoryError("Unable to allocate 14.6 TiB")

    monkeypatch.setattr("training.run.init_params", too_large)
    monkeypatch.setattr(sys, "stdin", None)
    assert train.main([str(text), "--out", str(tmp_path / "out"), *SMALL]) == 1
    assert capsys.readouterr().err.startswith("train.py: error: not enough memory (Unable to")


def test_a_vocabulary_with_added_tokens_leaves_no_file_of_the_run(
    unbroken, text, tmp_path, monkeypatch
):
    shutil.copytree(unbroken[0], tmp_path / "tok")
    (tmp_path / "tok" / "added_tokens.json").write_text('{"<x>": 300}')
    monkeypatch.setattr(sys, "stdin", None)
    args = [str(text), "--out", str(tmp_path / "out"), "--tokenizer", str(tmp_path / "tok")]
    assert train.main([*args, *SMALL[:10], "--iterations", "2"]) == 0
    assert (tmp_path / "out" / "added_tokens.json").exists()
    assert not (tmp_path / "out" / "training").exists()
