"""evaluate.py against gpt2_pico.py, in process and as a command."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import EPS, LONG, N_HEAD, TINY, float64, model_options, random_params, run, some_ids

import evaluate
import gpt2_pico
from encoder import learn_bpe
from gpt2 import N_QUERIES
from model_files.directory import save_model


def losses(ids, params, n_head=N_HEAD, eps=EPS):
    """-log p of each id but the first, by the formula in double precision."""
    logits = gpt2_pico.gpt2(ids[:-1], **float64(params), n_head=n_head, eps=eps)
    return -np.log(gpt2_pico.softmax(logits)[np.arange(len(ids) - 1), ids[1:]])


@pytest.mark.parametrize(
    "n, length, stride",
    [(10, 6, 3), (10, 6, 6), (5, 6, 3), (6, 6, 1), (100, 7, 4), (7, 6, 6), (2, 9, 9)],
)
def test_windows_predict_each_token_once(n, length, stride):
    targets = []
    for start, first, stop in evaluate.windows(n, length, stride):
        assert start < first < stop <= min(n, start + length)
        targets += range(first, stop)
    missing = set(range(1, n)) - set(targets)
    assert len(set(targets)) == len(targets)  # a window's first token has no context there
    assert missing == (set(range(length, n, length)) if stride == length else set())


def test_worked_windows():
    assert list(evaluate.windows(10, 6, 3)) == [(0, 1, 6), (3, 6, 9), (6, 9, 10)]


@pytest.mark.parametrize(
    "window",
    [
        (0, 1, 2),
        (0, 1, LONG),
        (7, 8, 150),
        (5, 100, 178),  # pieces without a target come first
        (0, N_QUERIES, N_QUERIES + 1),
        (0, N_QUERIES + 1, N_QUERIES + 2),
        (3, 3 + N_QUERIES, 3 + 2 * N_QUERIES),
        (170, 177, 178),
    ],
)
def test_the_losses_of_a_window_are_those_of_the_formula(window):
    params, ids = random_params(seed=4, n_ctx=LONG), some_ids(LONG)
    start, first, stop = window
    found = evaluate.window_losses(ids, window, params, TINY)
    expected = losses(ids[start:stop], params)[first - start - 1 :]
    assert found.shape == (stop - first,)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_log_probabilities_of_large_logits_are_finite():
    logits = np.array([[1e4, 0, -1e4], [5, 5, 5], [-300, -300, -300]], np.float32)
    found = evaluate.log_probabilities(logits, np.array([0, 1, 2]))
    np.testing.assert_allclose(found, [0, -math.log(3), -math.log(3)], rtol=1e-6)


def test_the_sum_is_over_all_windows_also_on_threads():
    params, ids = random_params(seed=4), some_ids(300)
    todo = list(evaluate.windows(300, 48, 20))
    expected = sum(losses(ids[i:k], params)[j - i - 1 :].sum() for i, j, k in todo)
    nats, n = evaluate.evaluate(ids, iter(todo), params, TINY)
    assert nats == pytest.approx(expected, rel=1e-5) and n == 299
    with ThreadPoolExecutor(2) as pool:
        assert evaluate.evaluate(ids, todo, params, TINY, pool.map) == (nats, n)
    many = iter([(0, 1, 2)] * 2500)  # more than are taken at a time
    nats, n = evaluate.evaluate(ids, many, params, TINY)
    assert nats == pytest.approx(2500 * losses(ids[:2], params)[0], rel=1e-4) and n == 2500


def figures(text, tiny, stride):
    """The lines that evaluate.py prints, by the formula."""
    encoder, hparams, params = tiny
    ids, n_ctx, counted, nats, last = encoder.encode(text), hparams["n_ctx"], [], 0.0, 1
    for start in range(0, len(ids), stride):
        stop = min(start + n_ctx, len(ids))
        rows = losses(ids[start:stop], params, hparams["n_head"], hparams["layer_norm_epsilon"])
        for t in range(max(last, start + 1), stop):
            nats += rows[t - 1 - start]
            counted.append(ids[t])
        last = stop
        if stop == len(ids):
            break
    n, data = len(counted), encoder.decode_bytes(counted)
    n_chars = sum(byte & 0b11000000 != 0b10000000 for byte in data)  # those whose first byte counts
    return [
        f"tokens              {n}",
        f"nats per token      {nats / n:.4f}",
        f"perplexity          {math.exp(nats / n):.2f}",
        f"bits per byte       {nats / math.log(2) / len(data):.4f}",
        f"nats per character  {nats / n_chars:.4f}",
        "",
    ]


TEXT = "slow low lower, éà lowest\n" * 5


@pytest.fixture
def measured(models_dir, tmp_path):
    """-> the lines that evaluate.py prints about a text"""

    def measured(text, *options):
        (tmp_path / "text").write_text(text, encoding="utf-8", newline="")
        done = run("evaluate.py", tmp_path / "text", *model_options(models_dir), *options)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode().split("\n")

    return measured


def test_perplexity_is_that_of_the_formula(measured, tiny):
    n = len(tiny[0].encode(TEXT))
    found = measured(TEXT, "--stride", "8")
    assert found == figures(TEXT, tiny, 8) and found[0].split()[1] == str(n - 1)
    assert measured(TEXT) == figures(TEXT, tiny, 16)  # half of n_ctx
    # A stride beyond the context would leave more out than the first token of each window.
    most = measured(TEXT, "--stride", "32")
    assert most == measured(TEXT, "--stride", "1000") == figures(TEXT, tiny, 32)
    assert most[0].split()[1] == str(n - math.ceil(n / 32))


def test_part_of_a_text_in_lower_case_without_stopwords(measured, tiny, tmp_path):
    (tmp_path / "words").write_text("slow and")
    tail = "Slow LOWER and lowest, low slower\n" * 4
    found = measured(
        TEXT * 8 + tail, "--val_fraction", str(len(tail) / len((TEXT * 8 + tail).encode()))
    )
    assert found == figures(tail, tiny, 16)
    found = measured(tail, "--lowercase", "--stopwords", str(tmp_path / "words"))
    assert found == figures("lower lowest, low slower\n" * 4, tiny, 16)


def test_several_files_are_set_apart(models_dir, tiny, tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("slow lower lowest")
    done = run("evaluate.py", tmp_path / "a", tmp_path / "b", *model_options(models_dir))
    n = len(tiny[0].encode("slow lower lowest"))
    assert done.stdout.decode().split("\n")[0].split() == ["tokens", str(2 * n)]


@pytest.mark.parametrize(
    "args, word",
    [
        ([], "text"),
        (["x", "--stride", "0"], "stride"),
        (["x", "--val_fraction", "2"], "val_fraction"),
    ],
)
def test_wrong_usage_is_2(args, word):
    done = run("evaluate.py", *args)
    assert (done.returncode, done.stdout) == (2, b"")
    last = done.stderr.decode().strip().split("\n")[-1]
    assert last.startswith("evaluate.py: error: ") and word in last


def test_what_goes_wrong_is_1_and_one_line(models_dir, tiny, tmp_path):
    encoder, hparams, params = tiny

    def fails(path, model="tiny", models=models_dir, options=()):
        done = run("evaluate.py", path, *model_options(models, model), *options)
        lines = done.stderr.decode().split("\n")
        assert (done.returncode, done.stdout, len(lines)) == (1, b"", 2), done
        assert lines[0].startswith("evaluate.py: error: ")
        return lines[0]

    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    assert "missing.txt" in fails("missing.txt")
    assert "No such file" in fails("")
    (tmp_path / "bytes").write_bytes(b"\xff" * 9)
    assert "bytes: byte 0 is not UTF-8" in fails(tmp_path / "bytes")
    (tmp_path / "one").write_bytes(b"x")
    assert "one: 1 tokens of text" in fails(tmp_path / "one")
    (tmp_path / "empty").touch()
    assert "empty: the file is empty" in fails(tmp_path / "empty")
    assert "text: 0 tokens" in fails(tmp_path / "text", options=["--val_fraction", "0"])
    damaged = {**params, "ln_f": {**params["ln_f"], "b": np.full(16, np.nan, np.float32)}}
    save_model(tmp_path / "nan", hparams, damaged, encoder.vocabulary)
    assert "text: the model's logits are not finite" in fails(tmp_path / "text", "nan", tmp_path)
    narrow = {**hparams, "n_ctx": 1}
    save_model(tmp_path / "narrow", narrow, random_params(7, **narrow), encoder.vocabulary)
    assert "needs two" in fails(tmp_path / "text", "narrow", tmp_path)


def test_figures_of_a_text_whose_characters_are_cut():
    """A character counts where its first byte does."""
    encoder = learn_bpe([], 257)
    hparams = {**TINY, "n_vocab": 257, "n_ctx": 5}
    params = random_params(1, **hparams)
    ids = np.array(encoder.encode("é日😀z"))  # 2 + 3 + 4 + 1 bytes, a token each
    found = evaluate.measure(ids, encoder, hparams, params, stride=3)
    nats = found["nats per token"] * 9
    assert found["tokens"] == 9
    assert found["bits per byte"] == pytest.approx(nats / 9 / math.log(2))
    assert found["nats per character"] == pytest.approx(nats / 3)  # é begins in the first token


def test_the_worst_of_models_has_a_perplexity(tiny, monkeypatch):
    encoder, hparams, params = tiny
    monkeypatch.setattr(evaluate, "evaluate", lambda *args: (1e6, 9))
    found = evaluate.measure(np.arange(10), encoder, hparams, params)
    assert found["perplexity"] == math.exp(700) and found["nats per token"] == 1e6 / 9
