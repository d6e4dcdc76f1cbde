"""Compare evaluate.py with gpt2_pico.py, in process and as a command."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import (
    EPS,
    LETTERS,
    LONG,
    N_HEAD,
    TINY,
    command,
    float64,
    model_options,
    random_params,
    run,
    some_ids,
)
from test_batch import on_screen, on_terminal

import evaluate
import fast
import gpt2_pico
from encoder import learn_bpe
from gpt2 import QUERY_BLOCK
from model_files.directory import save_model


def losses(ids, params, n_head=N_HEAD, eps=EPS):
    """Return -log p of each id except the first, by the formula in double precision."""
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
    assert len(set(targets)) == len(targets)
    # A window cannot predict its first token: only windows that overlap predict all tokens.
    assert missing == (set(range(length, n, length)) if stride == length else set())


def test_worked_windows():
    assert list(evaluate.windows(10, 6, 3)) == [(0, 1, 6), (3, 6, 9), (6, 9, 10)]


@pytest.mark.parametrize(
    "window",
    [
        (0, 1, 2),
        (0, 1, LONG),
        (7, 8, 150),
        (5, 100, 178),  # The first pieces have no targets.
        (0, QUERY_BLOCK, QUERY_BLOCK + 1),
        (0, QUERY_BLOCK + 1, QUERY_BLOCK + 2),
        (3, 3 + QUERY_BLOCK, 3 + 2 * QUERY_BLOCK),
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


@pytest.fixture
def pool():
    with evaluate.worker_threads(2) as pool:
        yield pool


def test_the_sum_is_over_all_windows(pool):
    params, ids = random_params(seed=4), some_ids(300)
    todo = list(evaluate.windows(300, 48, 20))
    expected = sum(losses(ids[i:k], params)[j - i - 1 :].sum() for i, j, k in todo)
    counts = []
    nats, n = evaluate.evaluate(ids, iter(todo), params, TINY, pool, counts.append)
    assert nats == pytest.approx(expected, rel=1e-5) and n == 299
    assert counts == [stop - first for _, first, stop in todo]
    many = iter([(0, 1, 2)] * 2500)  # more than are queued at a time
    nats, n = evaluate.evaluate(ids, many, params, TINY, pool)
    assert nats == pytest.approx(2500 * losses(ids[:2], params)[0], rel=1e-4) and n == 2500


def test_items_are_taken_as_they_are_needed_and_results_come_in_order(pool):
    taken = []

    def items():
        for i in range(5000):
            taken.append(i)
            yield i

    results = evaluate.map_lazily(pool, lambda i: 2 * i, items())
    assert next(results) == 0 and len(taken) < 2000
    assert [0, *results] == [2 * i for i in range(5000)]


def test_worker_threads_wait_less_for_each_other_and_share_no_product():
    interval, n_blas = sys.getswitchinterval(), fast.get_blas_threads and fast.get_blas_threads()
    with pytest.raises(ZeroDivisionError), evaluate.worker_threads(2) as pool:
        assert sys.getswitchinterval() < interval
        if fast.get_blas_threads:
            assert pool.submit(fast.get_blas_threads).result() == fast.get_blas_threads() == 1
        raise ZeroDivisionError
    assert sys.getswitchinterval() == interval
    assert not fast.get_blas_threads or fast.get_blas_threads() == n_blas


def test_an_interrupt_does_not_wait_for_queued_work():
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), evaluate.worker_threads(2) as pool:
        for _ in range(1000):
            pool.submit(time.sleep, 0.05)
        raise KeyboardInterrupt
    assert time.monotonic() - start < 5  # All of the work takes 25 seconds.


def figures(text, tiny, stride):
    """Return the lines that evaluate.py prints, computed by the formula."""
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
    n_chars = sum(byte & 0b11000000 != 0b10000000 for byte in data)  # by their first bytes
    return [
        f"stride              {stride}",
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
    """Return a function that returns the lines that evaluate.py prints about a text."""

    def measured(text, *options):
        (tmp_path / "text").write_text(text, encoding="utf-8", newline="")
        done = run("evaluate.py", tmp_path / "text", *model_options(models_dir), *options)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode().split("\n")

    return measured


def test_perplexity_is_that_of_the_formula(measured, tiny):
    n = len(tiny[0].encode(TEXT))
    found = measured(TEXT, "--stride", "8")
    assert found == figures(TEXT, tiny, 8) and found[1].split()[1] == str(n - 1)
    assert measured(TEXT) == figures(TEXT, tiny, 16)  # half of n_ctx
    # No window predicts its own first token, so the windows overlap by at least one token.
    most = measured(TEXT, "--stride", "32")
    assert most == measured(TEXT, "--stride", "1000") == figures(TEXT, tiny, 31)
    assert most[1].split()[1] == str(n - 1)


@pytest.mark.parametrize("n_ctx", [2, 3, 9])
def test_every_stride_counts_each_token_once(n_ctx):
    for stride in (None, *range(1, n_ctx + 3)):
        todo = evaluate.windows(40, n_ctx, evaluate.window_stride(stride, n_ctx))
        counted = [i for _, first, stop in todo for i in range(first, stop)]
        assert counted == [*range(1, 40)], stride


def test_the_end_of_text_keeps_the_line_break_after_it_on_request(models_dir, tiny, tmp_path):
    encoder, (eos, *_) = tiny[0], tiny[1]["eos_token_ids"]
    (tmp_path / "text").write_text("low<|endoftext|>\nlower", newline="")
    shown = {}
    for flag in ("--special_tokens", "--literal_endoftext", None):
        options = "--json", *model_options(models_dir), *filter(None, [flag])
        done = run("evaluate.py", tmp_path / "text", *options)
        shown[flag] = json.loads(done.stdout)["tokens"] + 1
    assert shown == {
        "--special_tokens": len([*encoder.encode("low"), eos, *encoder.encode("\nlower")]),
        "--literal_endoftext": len(encoder.encode("low<|endoftext|>\nlower")),
        None: len([*encoder.encode("low"), eos, *encoder.encode("lower")]),
    }
    both = run("evaluate.py", tmp_path / "text", "--special_tokens", "--literal_endoftext")
    assert both.returncode == 2 and b"contradicts" in both.stderr


def test_part_of_a_text_in_lower_case_without_stopwords(measured, tiny, tmp_path):
    (tmp_path / "words").write_text("slow and")
    tail = "Slow LOWER and lowest, low slower\n" * 4
    found = measured(
        TEXT * 8 + tail, "--val_fraction", str(len(tail) / len((TEXT * 8 + tail).encode()))
    )
    assert found == figures(tail, tiny, 16)
    found = measured(tail, "--lowercase", "--stopwords", str(tmp_path / "words"))
    assert found == figures("lower lowest, low slower\n" * 4, tiny, 16)


def test_several_files_are_separate_texts(models_dir, tiny, tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("slow lower lowest")
    done = run("evaluate.py", tmp_path / "a", tmp_path / "b", *model_options(models_dir))
    n = len(tiny[0].encode("slow lower lowest"))
    assert done.stdout.decode().split("\n")[1].split() == ["tokens", str(2 * n)]


@pytest.mark.parametrize(
    "args, word",
    [
        ([], "text"),
        (["x", "--stride", "0"], "stride"),
        (["x", "--val_fraction", "2"], "val_fraction"),
        (["x", "--val_fraction", "0.1", "--lines"], "no effect with --lines"),
        (["x", "--verbose"], "--lines"),
    ],
)
def test_wrong_usage_is_2(args, word):
    done = run("evaluate.py", *args)
    assert (done.returncode, done.stdout) == (2, b"")
    last = done.stderr.decode().strip().split("\n")[-1]
    assert last.startswith("evaluate.py: error: ") and word in last


def test_an_error_is_one_line_and_status_1(models_dir, tiny, tmp_path):
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
    assert "the text is too short: 1 tokens" in fails(tmp_path / "one")
    (tmp_path / "empty").touch()
    assert "empty: the file is empty" in fails(tmp_path / "empty")
    assert "short: 0 tokens" in fails(tmp_path / "text", options=["--val_fraction", "0"])
    damaged = {**params, "ln_f": {**params["ln_f"], "b": np.full(16, np.nan, np.float32)}}
    save_model(tmp_path / "nan", hparams, damaged, encoder.vocabulary)
    for options in (), ("--lines", "--json"):
        line = fails(tmp_path / "text", "nan", tmp_path, options)
        assert "tensor ln_f.bias has numbers that are not finite" in line
    with pytest.raises(ValueError, match="the model's logits are not finite"):
        evaluate.perplexity(math.nan, 9)
    narrow = {**hparams, "n_ctx": 1}
    save_model(tmp_path / "narrow", narrow, random_params(7, **narrow), encoder.vocabulary)
    assert "perplexity needs two" in fails(tmp_path / "text", "narrow", tmp_path)


def test_figures_of_a_text_whose_characters_are_cut(pool):
    """A character is counted if its first byte is."""
    encoder = learn_bpe([], 257)
    hparams = {**TINY, "n_vocab": 257, "n_ctx": 5}
    params = random_params(1, **hparams)
    ids = np.array(encoder.encode("é日😀z"))  # 2 + 3 + 4 + 1 bytes, a token each
    found = evaluate.measure(ids, encoder, hparams, params, pool, stride=3)
    nats = found["nats per token"] * 9
    assert found["tokens"] == 9
    assert found["bits per byte"] == pytest.approx(nats / 9 / math.log(2))
    assert found["nats per character"] == pytest.approx(nats / 3)  # é begins in the first token


def test_even_the_worst_model_has_a_finite_perplexity(tiny, pool, monkeypatch):
    encoder, hparams, params = tiny
    monkeypatch.setattr(evaluate, "evaluate", lambda *args: (1e6, 9))
    found = evaluate.measure(np.arange(10), encoder, hparams, params, pool)
    assert found["perplexity"] == math.exp(700) and found["nats per token"] == 1e6 / 9


# Line by line


def expected_scores(text, tiny):
    """Return [(id, loss), ...] for the ids of a line that follows <|endoftext|>, by the formula."""
    encoder, hparams, params = tiny
    ids = [encoder.eot, *encoder.encode(text)]
    if len(ids) < 2:
        return []
    return [*zip(ids[1:], losses(ids, params, hparams["n_head"], hparams["layer_norm_epsilon"]))]


LINES = ["slow lower lowest", "", "low", "  é à\t ", "slow"]


def lines_of(models_dir, *args, stdin=None, options=()):
    stdin = "\n".join(LINES).encode() if stdin is None else stdin
    done = run("evaluate.py", *args, "--lines", *model_options(models_dir), *options, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    return done.stdout.decode().split("\n")[:-1]


def test_each_line_has_its_figures(models_dir, tiny, tmp_path):
    (tmp_path / "a").write_bytes("\ufeff{}\r\n{}\n{}".format(*LINES).encode())
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": x}) for x in LINES[3:]))
    rows = [json.loads(x) for x in lines_of(models_dir, "-", "--json", "--verbose")]
    assert [(row["line"], row["text"]) for row in rows] == [*enumerate(LINES, 1)]
    for row, text in zip(rows, LINES):
        scores = expected_scores(text, tiny)
        nats = sum(loss for _, loss in scores)
        assert row["tokens"] == len(scores) and row["nats"] == pytest.approx(nats, rel=1e-5)
        assert [token["id"] for token in row["probabilities"]] == [id_ for id_, _ in scores]
        found = [token["probability"] for token in row["probabilities"]]
        assert found == pytest.approx([math.exp(-loss) for _, loss in scores], rel=1e-4)
        pieces = [tiny[0].decode([id_]) for id_, _ in scores]
        assert [token["text"] for token in row["probabilities"]] == pieces
        if scores:
            assert row["perplexity"] == pytest.approx(math.exp(nats / len(scores)), rel=1e-4)
    assert rows[1]["perplexity"] is None and rows[1]["nats"] == 0
    plain = [{**row} for row in rows]
    for row in plain:
        del row["probabilities"]
    assert [json.loads(x) for x in lines_of(models_dir, "-", "--json")] == plain
    several = lines_of(models_dir, tmp_path / "a", tmp_path / "b.jsonl", "--json")
    lines = [1, 2, 3, 1, 2]
    assert [json.loads(x) for x in several] == [{**x, "line": n} for x, n in zip(plain, lines)]


def test_the_lines_as_a_table(models_dir, tiny):
    head, *rows = lines_of(models_dir, "-")
    assert head.split() == ["tokens", "nats", "perplexity", "line"]
    for row, text in zip(rows, LINES, strict=True):
        n, nats, perplexity, *_ = row.split()
        scores = expected_scores(text, tiny)
        total = sum(loss for _, loss in scores)
        assert row.endswith(f"  {text}") and int(n) == len(scores)
        assert float(nats) == pytest.approx(total, abs=2e-4)
        assert perplexity == "-" if not scores else float(perplexity) > 1
    verbose = lines_of(models_dir, "-", "--verbose")
    assert [x for x in verbose if x in (head, *rows)] == [head, *rows]
    shown = [x.split(maxsplit=1) for x in verbose if x not in (head, *rows)]
    scores = [score for text in LINES for score in expected_scores(text, tiny)]
    assert [json.loads(text) for _, text in shown] == [tiny[0].decode([i]) for i, _ in scores]
    expected = [math.exp(-loss) for _, loss in scores]
    assert [float(p) for p, _ in shown] == pytest.approx(expected, rel=1e-3)


def test_a_small_probability_is_shown_with_its_digits(tiny, tmp_path):
    encoder, hparams, params = tiny
    sharp = encoder, hparams, {**params, "wte": params["wte"] * 8}
    save_model(tmp_path / "sharp", hparams, sharp[2], encoder.vocabulary)
    options = ["--verbose", "--model_size", "sharp"]
    lines = lines_of(tmp_path, "-", options=options, stdin=b"slow lower")
    found = [float(line.split()[0]) for line in lines[2:]]
    expected = [math.exp(-loss) for _, loss in expected_scores("slow lower", sharp)]
    assert found == pytest.approx(expected, rel=2e-3) and 0 < min(found) < 1e-9


BAR = r" *(\d+)%\|.{10,}\| [\d.]+k?/[\d.]+k \[[\d:]+<[\d:?]+, [\d.?]+k?"


def test_a_terminal_shows_how_much_of_a_text_has_been_measured(models_dir, tmp_path):
    (tmp_path / "text").write_text(TEXT * 300, encoding="utf-8")
    args = command("evaluate.py", tmp_path / "text", *model_options(models_dir))
    first, *others = on_terminal(args)
    shown = [state for state in first if "tokens/s" in state]
    parts = [int(re.fullmatch(f"{BAR} tokens/s\\]", state)[1]) for state in shown]
    assert max(map(len, first)) < 80 and parts == sorted(parts) and len({*parts}) > 2
    assert on_screen(first).startswith("stride ") and len(others) == 6  # the bar has gone


def test_a_bar_shows_the_progress_of_lines_that_do_not_go_to_the_terminal(models_dir, tmp_path):
    (tmp_path / "text").write_text(TEXT * 300, encoding="utf-8")
    args = command("evaluate.py", tmp_path / "text", "--lines", *model_options(models_dir))
    with open(tmp_path / "out", "wb") as out:
        (states,) = on_terminal(args, stdout=out)
    shown = [state for state in states if state.strip()]
    parts = [int(re.fullmatch(f"{BAR}B/s\\]", state)[1]) for state in shown]
    assert max(map(len, states)) < 80 and parts == sorted(parts) and len({*parts}) > 2
    assert on_screen(states) == ""
    lines = on_terminal(args)
    assert len(lines) == 1502 and all(len(line) == 1 for line in lines)  # no bar between them


def test_a_long_line_is_measured_in_windows(models_dir, tiny):
    text = TEXT.replace("\n", " ")
    n = len(tiny[0].encode(text))
    assert n > LETTERS["n_ctx"]
    for options, stride in ((), 16), (("--stride", "8"), 8):
        (row,) = lines_of(models_dir, "-", "--json", *options, stdin=text.encode())
        row = json.loads(row)
        ids, nats = [tiny[0].eot, *tiny[0].encode(text)], 0.0
        for start, first, stop in evaluate.windows(n + 1, LETTERS["n_ctx"], stride):
            rows = losses(ids[start:stop], tiny[2], 2, 1e-5)
            nats += rows[first - start - 1 :].sum()
        assert row["tokens"] == n and row["nats"] == pytest.approx(nats, rel=1e-5)


def test_a_line_is_changed_as_a_text_is(models_dir, tiny, tmp_path):
    (tmp_path / "words").write_text("and")
    options = "--lowercase", "--stopwords", tmp_path / "words", "--json"
    (row,) = lines_of(models_dir, "-", *options, stdin=b"SLOW and low")
    (same,) = lines_of(models_dir, "-", "--json", stdin=b"slow low")
    assert json.loads(row) == {**json.loads(same), "text": "SLOW and low"}
    args = "-", "--json", "--verbose"
    (row,) = lines_of(models_dir, *args, stdin=b"low<|endoftext|>low")
    ids = [token["id"] for token in json.loads(row)["probabilities"]]
    low = tiny[0].encode("low")
    assert ids == [*low, tiny[0].eot, *low]
    (row,) = lines_of(models_dir, *args, "--literal_endoftext", stdin=b"low<|endoftext|>low")
    ids = [token["id"] for token in json.loads(row)["probabilities"]]
    assert ids == tiny[0].encode("low<|endoftext|>low")


def test_without_an_end_of_text_nothing_predicts_the_first_token(tiny, tmp_path):
    encoder, hparams, params = tiny
    save_model(tmp_path / "endless", {**hparams, "eos_token_ids": []}, params, encoder.vocabulary)
    rows = [
        json.loads(row)
        for row in lines_of(tmp_path, "-", "--json", options=["--model_size", "endless"])
    ]
    assert [row["tokens"] for row in rows] == [max(0, len(encoder.encode(x)) - 1) for x in LINES]


# Input


def test_json_has_the_figures_of_the_table(measured, tiny):
    (line, end) = measured(TEXT, "--json")
    found = json.loads(line)
    names = "stride", "tokens", "nats_per_token", "perplexity", "bits_per_byte"
    assert [*found] == [*names, "nats_per_character"] and end == ""
    named = {name.replace("_", " "): x for name, x in found.items()}
    assert [*evaluate.table(named).split("\n"), ""] == figures(TEXT, tiny, 16)


def test_endoftext_in_a_text_is_one_token(measured, tiny):
    encoder = tiny[0]
    n = len(encoder.encode("low lower")) + 1 + len(encoder.encode("slow"))
    text = "low lower<|endoftext|>\nslow"
    assert measured(text)[1].split() == ["tokens", str(n - 1)]
    n = len(encoder.encode(text))
    assert measured(text, "--literal_endoftext")[1].split() == ["tokens", str(n - 1)]


def test_standard_input_is_a_text(measured, models_dir):
    done = run("evaluate.py", "-", *model_options(models_dir), stdin=TEXT.encode())
    assert done.stdout.decode().split("\n") == measured(TEXT)
    for stdin, words in (b"", ["standard input is empty"]), (b"low\xff", ["byte 3 is not UTF-8"]):
        for more in [], ["--lines"]:
            done = run("evaluate.py", "-", *more, *model_options(models_dir), stdin=stdin)
            assert done.returncode == 1 and done.stderr.count(b"\n") == 1
            assert all(word in done.stderr.decode() for word in words)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupt_leaves_nothing_of_what_was_read(models_dir, tmp_path):
    (tmp_path / "text").write_text(TEXT * 20_000)
    (tmp_path / "temporary").mkdir()
    args = command("evaluate.py", "-", *model_options(models_dir))
    options = {"env": {**os.environ, "TMPDIR": str(tmp_path / "temporary")}}
    with open(tmp_path / "text", "rb") as text:
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        hear = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 (under nohup)
        process = subprocess.Popen(args, stdin=text, preexec_fn=hear, **pipes, **options)
        until = time.monotonic() + 60
        while time.monotonic() < until and not list((tmp_path / "temporary").rglob("piped*")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, b"\n")
    assert list((tmp_path / "temporary").iterdir()) == []
