"""Training: the data, a step, the optimisers, and runs as a process, killed and resumed."""

import math
import os
import random
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

import train
from encoder import get_encoder, learn_bpe
from utils import flatten, load_encoder_hparams_and_params

WORDS = "the king and queen of york will not come to london, said richard;\n\nyes my lord\n".split(
    " "
)
SMALL = [
    "--n_layer",
    "1",
    "--n_head",
    "2",
    "--n_embd",
    "16",
    "--n_ctx",
    "16",
    "--batch_size",
    "6",
    "--vocab_size",
    "300",
    "--iterations",
    "44",
    "--eval_interval",
    "10",
    "--threads",
    "2",
]
NOISY = [*SMALL, "--dropout", "0.2", "--merge_dropout", "0.1"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    rng = random.Random(0)
    path.write_text(" ".join(rng.choice(WORDS) for _ in range(4000)), encoding="utf-8")
    return path


def command(*args):
    return [sys.executable, str(ROOT / "train.py"), *map(str, args)]


def run(*args):
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=120)


def curve(path):
    """The rows of log.csv without the seconds, which no two runs share."""
    rows = [line.split(",") for line in (path / "log.csv").read_text().splitlines()]
    return [[row[0], *row[2:]] for row in rows]


@pytest.fixture(scope="module")
def unbroken(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "unbroken"
    done = run(text, "--out", out, *NOISY)
    assert done.returncode == 0, done.stderr
    return out, done


# Data


def test_text_comes_in_pieces_that_encode_as_the_whole(tmp_path):
    rng = random.Random(1)
    words = ["\n", "\n\n", "a", " the", "é", " 字字", "  ", "'s", " 12", "!?", "\t", "word "]
    whole = "".join(rng.choice(words) for _ in range(900_000))
    path = tmp_path / "text"
    path.write_bytes(whole.encode())
    pieces = list(train.read_text(path, 0, path.stat().st_size))
    assert len(pieces) > 1 and "".join(pieces) == whole
    encoder = learn_bpe([whole[:20_000]], 300)
    assert [i for piece in pieces for i in encoder.encode(piece)] == encoder.encode(whole)


def test_the_tail_is_held_out_and_no_character_is_cut(tmp_path):
    for name, content in ("a", "é" * 50), ("b", "字" * 11), ("c", "x" * 40):
        (tmp_path / name).write_text(content, encoding="utf-8")
    paths = [tmp_path / name for name in "abc"]
    for share in 0.1, 0.25, 0.27, 0.4, 0.9, 1.0:
        parts = train.split_files(paths, share)
        texts = ["".join("".join(train.read_text(*part)) for part in half) for half in parts]
        assert texts[0] + texts[1] == "é" * 50 + "字" * 11 + "x" * 40
        assert abs(len(texts[1].encode()) - share * 173) <= 3


def test_files_are_set_apart_and_counted(tmp_path):
    (tmp_path / "a").write_text("low low", encoding="utf-8")
    (tmp_path / "b").write_text("lower é", encoding="utf-8")
    encoder = learn_bpe(["low lower"], 260)
    with open(tmp_path / "ids", "wb") as file:
        parts = train.split_files([tmp_path / "a", tmp_path / "b"], 1.0)[1]
        n_ids, n_chars = train.encode_files(parts, encoder, file)
    ids = np.fromfile(tmp_path / "ids", train.id_type(encoder)).tolist()
    assert ids == encoder.encode("low low") + [encoder.eot] + encoder.encode("lower é")
    assert (n_ids, n_chars) == (len(ids), 14)


def test_segmentations_spell_one_text_in_several_ways(text):
    text = text.read_text(encoding="utf-8")
    encoder = learn_bpe([text], 300)
    found = list(train.segmentations(encoder, 0.5, np.random.default_rng(0)))
    ids = [tuple(part.encode(text)) for part in found]
    assert len(set(ids)) == len(found) == train.COPIES
    assert found[-1] is encoder
    assert len(ids[0]) > len(ids[-1]) == min(map(len, ids))
    assert {encoder.decode(each) for each in ids} == {text}
    assert list(train.segmentations(encoder, 0, np.random.default_rng(0))) == [encoder]


def test_lowercase_and_stopwords(tmp_path):
    path = tmp_path / "text"
    path.write_text("The King and THE queen, theory of the.", encoding="utf-8")
    pieces = train.read_text(path, 0, path.stat().st_size, True, ["the", "of"])
    assert "".join(pieces) == "king and queen, theory ."


# A step


def random_state(n_threads, n_layer=2):
    params = train.init_params(50, 12, 24, n_layer, np.random.default_rng(0))
    return params, train.new_state(params, n_threads)


def settings(**changed):
    return SimpleNamespace(
        **{"dropout": 0.0, "seed": 0, "optimizer": "adamw", "weight_decay": 0.1, **changed}
    )


HPARAMS = {"n_head": 3, "layer_norm_epsilon": 1e-5}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_threads_and_pieces_do_not_change_a_step(optimizer, monkeypatch):
    ids, results = np.random.default_rng(1).integers(50, size=(7, 13)), []
    for n_threads, tokens in (1, 10**6), (2, 10**6), (3, 12), (16, 24):
        monkeypatch.setattr(train, "MAX_TOKENS", tokens)
        _, state = random_state(n_threads)
        with ThreadPoolExecutor(n_threads) as pool:
            for step in 1, 2, 3:
                loss = train.train_step(
                    pool, state, ids, step, 1e-2, HPARAMS, settings(optimizer=optimizer)
                )
        results.append((loss, state["w"].copy()))
    for loss, w in results[1:]:
        assert abs(loss - results[0][0]) < 1e-4 and np.abs(w - results[0][1]).max() < 1e-3
    assert all(array.dtype == np.float32 for array in (w, state["m"], state["v"], state["g"]))


def test_a_flat_vector_holds_each_parameter_once():
    params, state = random_state(1)
    views = flatten(state["params"])
    assert {name: view.shape for name, view in views.items()} == {
        name: array.shape for name, array in flatten(params).items()
    }
    state["w"][...] = np.arange(state["w"].size)
    seen = np.concatenate([view.ravel() for view in views.values()])
    assert sorted(seen.tolist()) == list(range(state["w"].size))


def test_adamw_is_the_published_algorithm():
    rng = np.random.default_rng(0)
    w, g, m, v = (rng.standard_normal(5).astype(np.float32) for _ in range(4))
    v = abs(v)
    ours = [x.copy() for x in (w, m, v)]
    train.adamw(ours[0], g, *ours[1:], scale=0.5, lr=0.1, decay=0.3, step=3)
    for i in range(5):
        gradient = 0.5 * float(g[i])
        first = 0.9 * float(m[i]) + 0.1 * gradient
        second = 0.99 * float(v[i]) + 0.01 * gradient**2
        step = (first / (1 - 0.9**3)) / (math.sqrt(second / (1 - 0.99**3)) + 1e-8)
        expected = float(w[i]) - 0.1 * 0.3 * float(w[i]) - 0.1 * step
        assert [x[i] for x in ours] == pytest.approx([expected, first, second], rel=1e-5)


@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16)])
def test_orthogonalize_brings_singular_values_near_one(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    y = train.orthogonalize(x)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    values = np.diag(u.T @ y @ vt.T)
    assert y.dtype == np.float32 and 0.5 < values.min() and values.max() < 1.35
    assert np.abs(u.T @ y @ vt.T - np.diag(values)).max() < 1e-4  # the same singular vectors


def test_schedule_warms_up_and_ends_at_zero():
    assert train.schedule(0.0, 0.1) == 0 and train.schedule(1.0, 0.1) == pytest.approx(0)
    assert train.schedule(0.05, 0.1) == pytest.approx(0.5, abs=0.01)
    assert train.schedule(0.55, 0.1) == pytest.approx(0.5 + 0.5 * math.cos(math.pi * 0.55))


# A run


def test_a_run_learns_and_leaves_a_model(unbroken, text):
    out, done = unbroken
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "log.csv",
        "merges.txt",
        "model.safetensors",
        "vocab.json",
    ]
    losses = [float(row[-1]) for row in curve(out)[1:]]
    assert len(losses) == 5 and losses[-1] < losses[0] - 0.3 and losses[0] < math.log(300)
    encoder, hparams, params = load_encoder_hparams_and_params(str(out), "")
    assert hparams["n_vocab"] == len(encoder.encoder) and hparams["n_ctx"] == 16
    completed = subprocess.run(
        [sys.executable, str(ROOT / "gpt2.py"), "the", "--model_size", str(out)],
        capture_output=True,
        timeout=60,
    )
    assert completed.returncode == 0 and len(completed.stdout) > 20


def test_the_same_seed_gives_the_same_run(unbroken, text, tmp_path):
    again = run(text, "--out", tmp_path / "again", *NOISY)
    assert again.returncode == 0 and curve(tmp_path / "again") == curve(unbroken[0])
    other = run(text, "--out", tmp_path / "other", *NOISY, "--seed", "1")
    assert other.returncode == 0 and curve(tmp_path / "other") != curve(unbroken[0])


def test_killed_and_resumed_is_the_unbroken_run(unbroken, text, tmp_path):
    rng, out = random.Random(int(os.environ.get("GPT2_SEED", 0))), tmp_path / "killed"
    args = [text, "--out", out, *NOISY]
    resumed_at = []
    for rows in 1, 2, 4:  # evaluations to wait for, and a moment more
        process = subprocess.Popen(command(*args), stdout=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while time.monotonic() < until and not (
            (out / "log.csv").exists() and len(curve(out)) > rows
        ):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.wait()
        resumed_at.append(len(curve(out)) - 1)
        args = ["--out", out, "--resume"]  # the rest comes from the run
    assert 1 <= resumed_at[0] < 5  # there was something to resume, and something left to do
    done = run(*args)
    assert done.returncode == 0 or "no unfinished run" in done.stderr  # killed after its end
    assert curve(out) == curve(unbroken[0])
    weights = "model.safetensors"
    assert (out / weights).read_bytes() == (unbroken[0] / weights).read_bytes()


def test_a_run_ends_on_the_text_as_it_is(text, tmp_path, monkeypatch):
    left, batch, out = [], train.batch, tmp_path / "out"

    def watched(ids, *rest):
        left.append(len(ids))
        return batch(ids, *rest)

    monkeypatch.setattr(train, "batch", watched)
    maps, finish = Path("/proc/self/maps"), train.finish

    def unmapped(args):  # Windows removes no file that is mapped
        assert not (maps.exists() and "tokens.bin" in maps.read_text())
        finish(args)

    monkeypatch.setattr(train, "finish", unmapped)
    monkeypatch.setattr(sys, "stdin", None)  # closed, which is none of training's business
    assert train.main([str(text), "--out", str(out), *SMALL, "--merge_dropout", "0.5"]) == 0
    n = 0.9 * len(get_encoder(out).encode(text.read_text(encoding="utf-8")))
    assert left[0] > train.COPIES * n and left == sorted(left, reverse=True)
    assert n * 0.99 < left[-1] < 2 * n  # after 43 of 44 steps


def test_a_name_is_a_directory_here(text, tmp_path):
    (tmp_path / "shakespeare" / "training").mkdir(parents=True)
    (tmp_path / "shakespeare" / "training" / "notes").write_text("of somebody else")
    done = subprocess.run(
        command(text, "--out", "shakespeare", *SMALL),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = float(re.search(r"loss (\S+) nats per token, ", done.stdout)[1])
    assert abs(found - float(curve(tmp_path / "shakespeare")[-1][-1])) < 0.2
    path = re.search("--model_size (.*)", done.stdout)[1]
    assert path == os.path.join(".", "shakespeare")
    left = list((tmp_path / "shakespeare" / "training").iterdir())
    assert [path.name for path in left] == ["notes"]


def test_an_unfinished_run_is_guarded(text, tmp_path):
    out = tmp_path / "out"
    work = out / "training"
    process = subprocess.Popen(
        command(text, "--out", out, *SMALL, "--iterations", "100000"), stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while time.monotonic() < until and not (out / "log.csv").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    files = {path.name: path.read_bytes() for path in work.iterdir() if path.suffix != ".tmp"}
    for args, word in (
        ([text, "--out", out, *SMALL], "unfinished run"),
        ([text, "--out", out, "--resume", "--optimizer", "adamw"], "optimizer"),
        ([text, "--out", out, "--resume", "--seed", "5"], "seed"),
        ([tmp_path / "missing", "--out", out, *SMALL, "--overwrite"], "missing"),
    ):
        done = run(*args)
        assert done.returncode == 1 and word in done.stderr and done.stderr.count("\n") == 1
        assert files == {
            path.name: path.read_bytes() for path in work.iterdir() if path.suffix != ".tmp"
        }
    for name in "tokens.bin", "checkpoint.safetensors":
        (work / name).write_bytes(files[name][:-8])
        done = run("--out", out, "--resume")
        assert done.returncode == 1 and name in done.stderr and done.stderr.count("\n") == 1
        (work / name).write_bytes(files[name])
    done = run("--out", out, "--resume", "--iterations", "20")  # given again: done by now
    assert done.returncode == 0 and not work.exists()


def test_evaluate_agrees_with_gpt2(unbroken, text, tmp_path):
    part = tmp_path / "part"
    part.write_text(text.read_text(encoding="utf-8")[-2000:], encoding="utf-8")
    done = run(part, "--evaluate", unbroken[0], "--stride", "8")
    words = done.stdout.split()
    n = len(get_encoder(unbroken[0]).encode(part.read_text(encoding="utf-8")))
    assert words[0] == str(n - 1) and words[2] == "2000"
    per_token, per_char = float(words[5]), float(words[-4])
    assert per_char == pytest.approx(per_token * (n - 1) / 2000, abs=1e-4)
    plain = subprocess.run(
        [
            sys.executable,
            str(ROOT / "gpt2.py"),
            "--perplexity",
            str(part),
            "--stride",
            "8",
            "--model_size",
            str(unbroken[0]),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = float(plain.stdout.split("\n")[1].split()[-1])
    assert found == pytest.approx(per_token, abs=0.05)  # windows there are one token shorter
    # A stride beyond the context would leave tokens out.
    most, same = (run(part, "--evaluate", unbroken[0], "--stride", n) for n in ("16", "1000"))
    assert most.stdout == same.stdout and most.stdout.startswith(f"{n - 1} tokens")


def test_fine_tuning_starts_from_the_model(unbroken, text, tmp_path):
    out = tmp_path / "tuned"
    done = run(
        text,
        "--out",
        out,
        "--init_from",
        unbroken[0],
        "--iterations",
        "10",
        "--eval_interval",
        "5",
        "--learning_rate",
        "1e-3",
        "--dtype",
        "float16",
        "--minutes",
        "0.02",
    )
    assert done.returncode == 0, done.stderr
    last = float(curve(unbroken[0])[-1][-1])
    assert abs(float(curve(out)[1][-1]) - last) < 0.2
    assert (out / "vocab.json").read_bytes() == (unbroken[0] / "vocab.json").read_bytes()
    assert (out / "model.safetensors").stat().st_size < 0.6 * (
        unbroken[0] / "model.safetensors"
    ).stat().st_size


def test_plot(unbroken, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib draws the curves")
    done = run("--plot", unbroken[0])
    assert done.returncode == 0, done.stderr
    picture = unbroken[0] / "loss.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()


def test_wrong_usage_is_2(text, tmp_path):
    for args, word in (
        ([text], "--out"),
        (["--out", tmp_path], "text"),
        ([text, "--out", tmp_path / "m", "--n_embd", "10", "--n_head", "4"], "--n_embd 10"),
        ([text, "--out", tmp_path / "m", "--dropout", "2"], "dropout"),
        ([text, "--out", tmp_path / "m", "--vocab_size", "100"], "257"),
        ([text, "--out", tmp_path / "m", "--init_from", "124M", "--n_layer", "3"], "--n_layer"),
    ):
        done = run(*args)
        assert done.returncode == 2 and word in done.stderr.splitlines()[-1], done.stderr


def test_bad_input_is_1_and_one_line(unbroken, text, tmp_path):
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
        ([text, "--out", out, "--val_fraction", "0"], ["--val_fraction"]),
        (["--plot", tmp_path / "odd"], ["log.csv", "no log"]),
        ([text, "--evaluate", tmp_path / "nowhere"], ["nowhere"]),
        (["--plot", tmp_path], ["log.csv"]),
    ):
        done = run(*args, *(SMALL[:-6] if "--init_from" not in args else []))
        lines = done.stderr.strip().splitlines()
        assert done.returncode == 1 and len(lines) == 1, (args, done.stderr)
        assert lines[0].startswith("train.py: error: ") and all(w in lines[0] for w in words)


def test_a_loss_that_is_no_number_stops_the_run(text, tmp_path):
    out = tmp_path / "diverges"
    done = run(
        text,
        "--out",
        out,
        *SMALL,
        "--learning_rate",
        "1e38",
        "--optimizer",
        "adamw",
        "--eval_interval",
        "1",
    )
    assert done.returncode == 1 and "the loss is" in done.stderr and done.stderr.count("\n") == 1
    assert (out / "training" / "checkpoint.safetensors").exists()


def test_too_little_memory_is_one_line(text, tmp_path, monkeypatch, capsys):
    def too_large(*args):
        raise MemoryError("Unable to allocate 14.6 TiB")

    monkeypatch.setattr(train, "init_params", too_large)
    monkeypatch.setattr(sys, "stdin", None)
    assert train.main([str(text), "--out", str(tmp_path / "out"), *SMALL]) == 1
    assert capsys.readouterr().err.startswith("train.py: error: not enough memory (Unable to")


def test_stopwords_after_a_byte_order_mark(tmp_path):
    (tmp_path / "words").write_bytes("\ufeffthe of".encode())
    assert train.read_stopwords(tmp_path / "words") == ["the", "of"]
