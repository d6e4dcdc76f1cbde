"""Compare batch.py with gpt2.py and one text at a time: logits, tokens, the command."""

import contextlib
import copy
import io
import json
import math
import os
import queue
import random
import re
import struct
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY, command, model_options, random_params, run, some_ids

import batch
import cli
import gpt2
from batch import Text, generate_many
from fast import Drafts
from model_files.directory import load_model, save_model

N_CTX = TINY["n_ctx"]
PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6] * 5, [7] * N_CTX, [2, 7, 1, 8], [9] * 30, [4, 4]]


def one_by_one(prompts, params, hparams, n, **options):
    return [list(gpt2.generate(ids, params, hparams, n, **options)) for ids in prompts]


def together(prompts, params, hparams, n, **options):
    found = [[] for _ in prompts]
    for i, id_ in generate_many(iter(prompts), params, hparams, n, **options):
        found[i].append(id_)
    return found


# The model


def test_logits_are_those_of_each_text_alone():
    params, rng = random_params(seed=1), random.Random(2)
    for _ in range(20):
        texts, expected = [], []
        for i in range(rng.randint(1, 7)):
            ids = some_ids(rng.randint(1, N_CTX), seed=i).tolist()
            text = Text(ids, 0, None, TINY, i)
            text.cache = gpt2.new_cache(N_CTX, TINY)
            text.n_past = rng.randrange(len(ids))
            text.new = ids[text.n_past :]
            text.n_logits = rng.randint(0, len(text.new))
            model = {**params, "hparams": TINY}
            if text.n_past:
                gpt2.gpt2(ids[: text.n_past], **model, cache=text.cache)
            logits = gpt2.gpt2(text.new, **model, cache=text.cache.copy(), n_past=text.n_past)
            expected.append(logits[len(text.new) - text.n_logits :])
            texts.append(text)
        found = batch.gpt2_many(texts, **params, hparams=TINY)
        np.testing.assert_allclose(found, np.concatenate(expected), atol=2e-5)
        assert found.dtype == np.float32


# Tokens


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.2, "top_k": 30, "seed": 3}])
def test_each_text_gets_the_tokens_that_it_would_get_alone(sampling):
    """Prompts of one token and of the whole context, and texts that grow beyond it."""
    for seed in range(3):
        params = random_params(seed)
        expected = one_by_one(PROMPTS, params, TINY, 60, **sampling)
        assert {len(ids) for ids in expected} == {60}
        for batch_size in 1, 2, 3, 5, 32:
            options = {**sampling, "batch_size": batch_size}
            assert together(PROMPTS, params, TINY, 60, **options) == expected


def test_penalty_and_ends_of_text_apply_to_each_text_by_itself():
    params, hparams = random_params(seed=4), {**TINY, "eos_token_ids": [3, 11, 40]}
    options = {"temperature": 1.5, "seed": 5, "repetition_penalty": 1.2}
    expected = one_by_one(PROMPTS, params, hparams, 60, **options)
    assert together(PROMPTS, params, hparams, 60, batch_size=3, **options) == expected
    assert len({len(ids) for ids in expected}) > 2  # some have ended sooner


def watch_passes(monkeypatch):
    """Return a list that gets, for each pass, the (name, number of rows) of its texts."""
    passes, inner = [], batch.gpt2_many

    def watched(texts, **model):
        passes.append([(text.name, len(text.new)) for text in texts])
        return inner(texts, **model)

    monkeypatch.setattr(batch, "gpt2_many", watched)
    return passes


def test_the_next_text_takes_the_place_of_a_finished_one_at_once(monkeypatch):
    passes, params = watch_passes(monkeypatch), random_params(seed=6)
    prompts = [[i + 1] for i in range(7)]
    together(prompts, params, TINY, 10, batch_size=3, temperature=1, seed=0)
    assert max(map(len, passes)) == 3
    assert all(len(texts) == 3 for texts in passes[:-10])
    assert {name for texts in passes for name, _ in texts} == set(range(7))


def test_a_long_prompt_does_not_stop_the_others(monkeypatch):
    monkeypatch.setattr(batch, "PROMPT_ROWS", 8)
    passes, params = watch_passes(monkeypatch), random_params(seed=6)
    prompts = [[1], [5] * 47, [2], [6] * 20]
    expected = one_by_one(prompts, params, TINY, 12)
    assert together(prompts, params, TINY, 12) == expected
    assert all(sum(n for _, n in texts if n > 1) <= 8 + 2 * 31 for texts in passes)
    for name in 0, 2:
        assert all(name in dict(texts) for texts in passes[:4])
    assert dict(passes[0])[1] == 8 and 3 not in dict(passes[0])


def test_drafts_are_verified_in_a_batch(monkeypatch):
    params = random_params(0, n_ctx=200)
    params, hparams = {**params, "wpe": params["wpe"] * 0}, {**TINY, "n_ctx": 200}  # it repeats
    passes, prompts = watch_passes(monkeypatch), [[7] * 20, [8] * 10]
    expected = one_by_one(prompts, params, hparams, 150)
    assert together(prompts, params, hparams, 150) == expected
    assert len(passes) < 75
    assert max(sum(n for _, n in texts) for texts in passes[1:]) <= batch.DRAFT_ROWS


def test_memory_of_the_caches_is_bounded(monkeypatch):
    one = gpt2.new_cache(13, TINY).nbytes
    params, prompts = random_params(seed=6), [[1, 2, 3], [4, 5, 6], [7, 8, 9], [1] * 40, [2, 3, 4]]
    expected = one_by_one(prompts, params, TINY, 10)
    passes = watch_passes(monkeypatch)
    for n_bytes, n_texts in (2 * one, 2), (2 * one - 1, 1):
        passes.clear()
        monkeypatch.setattr(batch, "CACHE_BYTES", n_bytes)
        assert together(prompts, params, TINY, 10) == expected
        assert max(map(len, passes)) == n_texts
        assert any([name for name, _ in texts] == [3] for texts in passes)  # larger than the limit


def test_the_caller_can_end_a_text():
    params, texts = random_params(seed=8), []
    waiting = [Text(ids, 20, gpt2.Sampler(), TINY, i) for i, ids in enumerate(PROMPTS)]
    counts = [0] * len(PROMPTS)
    for text, id_, logits in batch.continuations(
        lambda wait: waiting.pop(0) if waiting else None, params, TINY, 3
    ):
        if id_ is None:
            texts.append(text.name)
            continue
        assert logits.argmax() == id_
        counts[text.name] += 1
        text.over = counts[text.name] == 2 + text.name
    assert counts == [2, 3, 4, 5, 6, 7, 8] and sorted(texts) == list(range(7))


def test_no_prompts_and_no_tokens_are_allowed():
    params = random_params(seed=8)
    assert list(generate_many([], params, TINY, 5)) == []
    assert list(generate_many([[1], [2]], params, TINY, 0)) == []


def test_wrong_options_are_refused_when_generate_many_is_called():
    params = random_params(seed=8)
    for options in (
        *({"n_tokens": x} for x in (-1, 2.0, True, "5", math.inf)),
        *({"batch_size": x} for x in (0, -1, None, True, "5", 1.5)),
        *({"temperature": -1}, {"temperature": True}, {"seed": 0.5}, {"top_k": 0}, {"top_k": True}),
    ):
        with pytest.raises(ValueError, match=f"{[*options][0]} is .*: it must be"):
            generate_many([[1]], params, TINY, **options)
    for prompts in "low", ["low"], [[1], b"low"], [3, 1, 4], np.array([3, 1, 4]):
        with pytest.raises(ValueError, match="a prompt is .*: it must be a list of ids"):
            generate_many(prompts, params, TINY)
    with pytest.raises(ValueError, match="prompts is 5: it must be a list of lists of ids"):
        generate_many(5, params, TINY)
    with pytest.raises(ValueError, match="an id is 101: it must be"):
        generate_many([[1], [101]], params, TINY)
    with pytest.raises(ValueError, match="params must be the dict with 'wte'"):
        generate_many([], TINY, params)
    options = {"n_tokens": np.int64(3), "batch_size": np.int32(2)}
    found = list(generate_many(np.array([[3, 1], [4, 1]]), params, TINY, **options))
    assert found == list(generate_many([[3, 1], [4, 1]], params, TINY, 3, 2)) and len(found) == 6
    steps = generate_many(iter([[1], [-1]]), params, TINY, 5, batch_size=1)
    assert iter(steps) is steps and [name for name, _ in zip("12345", steps)] == list("12345")
    with pytest.raises(ValueError, match="an id is -1"):  # prompts are read as they are needed
        next(steps)


def test_without_a_number_of_tokens_texts_do_not_end():
    params, prompts = random_params(seed=8), [[1], [2, 3]]
    steps = generate_many(prompts, params, TINY, None)
    found = [[], []]
    while min(map(len, found)) < 100:
        name, id_ = next(steps)
        found[name].append(id_)
    expected = one_by_one(prompts, params, TINY, 150)
    assert all(ids[:100] == more[:100] for ids, more in zip(found, expected))


def test_generate_many_changes_none_of_its_arguments():
    params, hparams, prompts = random_params(seed=8), {**TINY, "eos_token_ids": [99]}, [[5, 6], [7]]
    before = copy.deepcopy((params, hparams, prompts))
    list(generate_many(prompts, params, hparams, 60))
    assert (hparams, prompts) == before[1:]
    assert np.array_equal(params["wte"], before[0]["wte"])


# Lines of input and output


def test_lines_are_read_ahead_but_not_too_many(monkeypatch):
    monkeypatch.setattr(batch, "MAX_WAITING", 5)
    file, lines = read_ahead(monkeypatch, [b"low\n"] * 40)
    wait_for(lambda: file.n_read >= 6)
    assert file.n_read == 6 and lines.qsize() == 5
    assert [lines.get(timeout=10)[0] for _ in range(41)] == [*range(1, 41), 0]


def read_ahead(monkeypatch, lines):
    """Return a file of lines that counts how many have been read, and the queue of batch.py."""
    file = SimpleNamespace(n_read=0)

    def readline(size):
        file.n_read += 1
        return lines[file.n_read - 1] if file.n_read <= len(lines) else b""

    file.readline = readline
    monkeypatch.setattr(cli, "open_bytes", lambda path: file)
    return file, batch.read_lines("-")


def wait_for(condition):
    """Wait until a condition holds, and a little longer: a thread may do more than it should."""
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)


def test_only_one_long_line_is_read_ahead(monkeypatch):
    monkeypatch.setattr(batch, "LONG_LINE", 9)
    texts = [b"short\n", b"long" * 9, b"short\n", b"long" * 9, b"long" * 9]
    file, lines = read_ahead(monkeypatch, texts)
    for n_read, size in (2, 1), (4, 2), (4, 1), (5, 1), (6, 2):
        expected = n_read, size
        wait_for(lambda expected=expected: (file.n_read, lines.qsize()) == expected)
        assert (file.n_read, lines.qsize()) == expected
        lines.get(timeout=10)
        lines.task_done()
    assert lines.get(timeout=10) == (0, None)


def test_only_the_beginning_of_a_line_that_is_too_long_is_kept(monkeypatch):
    monkeypatch.setattr(batch, "MAX_LINE", 8)
    text = b"12345678\n1234567\n" + b"long" * 99 + b"\nlow\n\n123456789\n" + b"long" * 99
    found = list(batch.bounded_lines(io.BytesIO(text)))
    long = b"longlongl"
    assert found == [b"12345678\n", b"1234567\n", long, b"low\n", b"\n", b"123456789", long]


def jobs_of(tiny, lines, **options):
    """Return Jobs for a queue of lines, as work makes them."""
    encoder, hparams, _ = tiny
    args = {"n_tokens_to_generate": 3, "n_samples": 1, "stop": []}
    args |= dict.fromkeys(batch.KEYS[4:])
    waiting = queue.Queue()
    for number, line in enumerate(lines, 1):
        waiting.put((number, line))
    return batch.Jobs(
        waiting, SimpleNamespace(**{"special_tokens": False, **args, **options}), encoder, hparams
    )


def test_only_a_limited_number_of_lines_is_completed_ahead_of_a_slow_one(tiny, monkeypatch, capsys):
    monkeypatch.setattr(batch, "MAX_WAITING", 3)
    jobs = jobs_of(tiny, [b"low\n"] * 9)
    texts = [jobs.next_text(wait=False) for _ in range(6)]
    assert [text is None for text in texts] == [False] * 4 + [True] * 2
    for i in 1, 2, 3:
        jobs.finish(i, f"line {i}")
    assert jobs.next_text(wait=False) is None and capsys.readouterr().out == ""
    assert jobs.next_text(wait=True).name.number == 4  # nothing else is left to do
    jobs.finish(0, "line 0")
    assert capsys.readouterr().out == "line 0\nline 1\nline 2\nline 3\n"
    assert jobs.next_text(wait=False).name.number == 5 and jobs.done == {}


def test_no_line_is_started_while_the_lines_in_progress_have_too_many_bytes(
    tiny, monkeypatch, capsys
):
    monkeypatch.setattr(batch, "MAX_BYTES", 20)
    jobs = jobs_of(tiny, [b"slow slow\n"] * 5 + [b"low\n"] * 9)
    assert [jobs.next_text(wait=False) is None for _ in range(4)] == [False] * 3 + [True]
    jobs.finish(1, "line 1")  # waits for line 0
    assert jobs.next_text(wait=False) is None
    jobs.finish(0, "line 0")
    assert [jobs.next_text(wait=False) is None for _ in range(3)] == [False] * 2 + [True]
    assert jobs.next_text(wait=True) is not None  # nothing else is left to do


# The progress bar


def on_terminal(args, columns=80, stdin=None, stdout=None):
    """Run a command whose standard error is a terminal; return the states of each line there.

    stdout: a file; None means the terminal, too.
    """
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    streams = {"stdin": stdin or subprocess.DEVNULL, "stdout": stdout or end, "stderr": end}
    with subprocess.Popen(args, **streams) as process:
        os.close(end)
        data = b""
        with contextlib.suppress(OSError):  # on Linux, that is how a terminal ends
            while piece := os.read(terminal, 1 << 16):
                data += piece
        os.close(terminal)
    assert process.returncode == 0, data
    return [line.split("\r") for line in data.decode().replace("\r\n", "\n").split("\n")]


def on_screen(states):
    """Return what remains of a line, after each of its states has overwritten the one before."""
    shown = ""
    for state in states:
        shown = state + shown[len(state) :]
    return shown.rstrip()


DONE = r"prompts: (\d+), tokens: ([\d,]+) at (?:\?|\d[\d.]*k?)/s"
BAR = rf" *(\d+)%\|(.+)\| {DONE} \[[\d:]+<[\d:?]+\]"
COUNTS = rf"{DONE} \[[\d:]+\]"


@pytest.fixture
def slow_prompts(models_dir, tmp_path):
    """Return a file of 64 prompts, and options with which each gets exactly 400 tokens."""
    (tmp_path / "p.txt").write_text("low\nslow\n\n" * 32)
    endless = model_options(tmp_path, "endless")
    vocabulary, hparams, params = load_model(models_dir / "tiny")
    save_model(tmp_path / "endless", {**hparams, "eos_token_ids": []}, params, vocabulary)
    return tmp_path / "p.txt", ("--n_tokens_to_generate", "400", *endless)


def test_a_terminal_shows_a_bar_for_the_tokens_of_a_file(slow_prompts, tmp_path):
    path, options = slow_prompts
    with open(tmp_path / "out", "wb") as out:
        states, end = on_terminal(command("batch.py", path, *options), stdout=out)
    shown = [state for state in states if state.strip()]
    assert shown[0] == "prompts: 0, tokens: 0 at ?/s [00:00]" and end == [""]
    first = next(i for i, state in enumerate(shown) if "%" in state)
    bars = [re.fullmatch(BAR, state) for state in shown[first:]]
    assert all(len(bar[0]) < 80 and len(bar[2]) >= 10 for bar in bars)
    assert any(bar[3] == "0" and 0 < int(bar[1]) < 100 for bar in bars)  # before the first prompt
    assert bars[-1][3] == "64" and bars[-1][1] == "100" and bars[-1][4] == "25,600"


def test_a_terminal_shows_counts_for_a_pipe_and_for_texts_without_a_limit(slow_prompts, tmp_path):
    path, options = slow_prompts
    args = command("batch.py", "-", *options)
    copy_file = [sys.executable, "-c", f"print(open({str(path)!r}).read())"]
    with (
        open(tmp_path / "out", "wb") as out,
        subprocess.Popen(copy_file, stdout=subprocess.PIPE) as pipe,
    ):
        states, _ = on_terminal(args, stdin=pipe.stdout, stdout=out)
    shown = [re.fullmatch(COUNTS, state) for state in states if state.strip()]
    assert all(shown) and shown[-1].groups() == ("64", "25,600")
    assert any(state[1] == "0" and state[2] != "0" for state in shown)  # before the first prompt
    lines = (tmp_path / "out").read_text("utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    stop = next(char for char in texts[0] if char.isascii() and all(char in x for x in texts))
    args = command("batch.py", path, *options, "--n_tokens_to_generate", "-1", "--stop", stop)
    with open(tmp_path / "out", "wb") as out:
        states, _ = on_terminal(args, stdout=out)
    assert not any("%" in state for state in states)
    assert re.fullmatch(COUNTS, states[-1])[1] == "64"


def test_output_and_messages_are_not_printed_behind_the_bar(models_dir, tmp_path):
    (tmp_path / "p.txt").write_text("low\n" * 3 + "low " * 50 + "\nslow\n")
    args = command("batch.py", tmp_path / "p.txt", "--batch_size", "2", *model_options(models_dir))
    lines = [on_screen(line) for line in on_terminal(args, columns=60)]
    objects = [json.loads(line) for line in lines if line.startswith("{")]
    assert [one["line"] for one in objects] == [1, 2, 3, 4, 5]
    (message,) = (line for line in lines if line.startswith("line 4 has"))
    assert message.endswith(" tokens; the model sees the last 32") and len(lines) == 8


def test_the_total_of_the_bar_becomes_the_number_of_tokens(models_dir, tmp_path, monkeypatch):
    states = []

    class Bar(batch.tqdm):
        def __init__(self, **options):
            super().__init__(**{**options, "disable": False, "file": io.StringIO()})

        def update(self, n):
            super().update(n)
            states.append((self.desc, self.n, self.total))

    monkeypatch.setattr(batch, "tqdm", Bar)
    (tmp_path / "p.txt").write_bytes(b"low\nslow\n\nlow\n")
    options = "--n_samples", "2", "--n_tokens_to_generate", "30", *model_options(models_dir)
    for stop in [], ["--stop", "e"]:
        states.clear()
        args = tmp_path / "p.txt", "--batch_size", "1", "--seed", "3", *options, *stop
        assert batch.main([*map(str, args)]) == 0
        assert states[0] == ("prompts: 0", 1, 60 * 14 / 4)  # 4 of 14 bytes have been read
        name, n, total = states[-1]
        assert name == "prompts: 3" and n == total <= 180


@pytest.mark.parametrize("error", [OSError("unplugged"), ValueError("closed"), MemoryError()])
def test_an_error_while_reading_is_not_the_end_of_the_input(error, models_dir, monkeypatch, capsys):
    def readline(size, lines=[b"low\n", b"slow\n"] * 2):  # noqa: B006
        if not lines:
            raise error
        return lines.pop()

    monkeypatch.setattr(cli, "open_bytes", lambda path: SimpleNamespace(readline=readline))
    options = "--n_tokens_to_generate", "2", *model_options(models_dir)
    assert batch.main(["-", *map(str, options)]) == 1
    out, errors = capsys.readouterr()
    assert [json.loads(line)["line"] for line in out.splitlines()] == [1, 2, 3, 4]
    assert errors.startswith("batch.py: error: ") and str(error) in errors


# The command


@pytest.fixture
def complete(models_dir):
    def complete(lines, *args, stdin=b"", **options):
        return run("batch.py", lines, *args, *model_options(models_dir), stdin=stdin, **options)

    return complete


def alone(models_dir, prompt, *args):
    options = "--json", "--n_tokens_to_generate", "12", *args, *model_options(models_dir)
    return json.loads(run("gpt2.py", prompt, *options).stdout)


def without_time(found):
    return {name: x for name, x in found.items() if name not in ("seconds", "line", "sample")}


def test_each_prompt_gets_the_object_that_gpt2_would_give(complete, models_dir, tmp_path):
    prompts = ["low", " slower é ", "low low low low low low low low low low low low low"]
    start = "\ufefflow\n\n \t\r\n slower é \r\n"
    (tmp_path / "p.txt").write_bytes(start.encode() + prompts[2].encode() + b"\n \n")
    done = complete(tmp_path / "p.txt", "--n_tokens_to_generate", "12", "--batch_size", "3")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, b"")
    assert [one["line"] for one in found] == [1, 4, 5]  # blank lines are counted, not completed
    for one, prompt in zip(found, prompts):
        expected = alone(models_dir, prompt)
        np.testing.assert_allclose(
            one.pop("log_probabilities"), expected.pop("log_probabilities"), atol=1e-4
        )
        assert without_time(one) == without_time(expected)


def test_samples_are_those_of_their_seeds(complete, models_dir, tiny, tmp_path):
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "low", "seed": 5}\n{"prompt": "slow", "n_tokens": 3}\n{"prompt": "low"}'
    )
    args = tmp_path / "p.jsonl", "--n_samples", "3", "--n_tokens_to_generate", "12"
    done = complete(*args)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["line"], one["sample"]) for one in found] == [
        (line, sample) for line in (1, 2, 3) for sample in (0, 1, 2)
    ]
    encoder, hparams, params = tiny
    for one in found:
        sampler = gpt2.Sampler(seed=one["seed"])
        if one["sample"]:
            sequence = np.random.SeedSequence(one["seed"], spawn_key=(one["sample"],))
            sampler.rng = np.random.default_rng(sequence)
        ids, n = encoder.encode(one["prompt"]), 3 if one["line"] == 2 else 12
        steps = gpt2.continuation(ids, params, hparams, n, sampler, Drafts())
        chosen = [id_ for id_, _ in steps]
        ends = hparams["eos_token_ids"]
        assert one["ids"] == [id_ for id_ in chosen if id_ not in ends]
        assert one["ended"] == ("end of text" if chosen[-1] in ends else "length")
    assert [one["seed"] for one in found[:3]] == [5, 5, 5]
    assert found[0]["ids"] == alone(models_dir, "low", "--seed", "5")["ids"]
    assert len({tuple(one["ids"]) for one in found[:3]}) == 3
    assert found[3]["seed"] == found[5]["seed"] != found[6]["seed"]


def objects(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_options_in_an_object_replace_those_of_the_command(complete, models_dir, tmp_path):
    command_line = "--seed", "11", "--n_tokens_to_generate", "12"
    text = alone(models_dir, "low", *command_line)["text"]
    first, second, third = sorted({*filter(str.isascii, text)}, key=text.index)[2:5]
    cases = [
        ({"id": 7, "seed": 5, "top_k": 9, "n_tokens": 3}, ["--seed", "5", "--top_k", "9"]),
        ({"id": {"a": [None]}, "temperature": 0}, ["--temperature", "0"]),
        ({"id": None, "temperature": 1.5, "seed": 3}, ["--temperature", "1.5", "--seed", "3"]),
        ({"id": "x", "top_p": 0.5, "min_p": 0.1}, ["--top_p", "0.5", "--min_p", "0.1"]),
        ({"repetition_penalty": 2}, ["--repetition_penalty", "2"]),
        ({"stop": first, "seed": None, "top_k": None}, ["--stop", first]),
        ({"stop": [third, second]}, ["--stop", second, "--stop", third]),
        ({"stop": []}, ["--stop", "nowhere"]),
    ]
    lines = [json.dumps({"prompt": "low", **entry}) for entry, _ in cases]
    (tmp_path / "p.jsonl").write_text("\n" + "\n \n".join(lines), encoding="utf-8")
    found = objects(complete(tmp_path / "p.jsonl", *command_line, "--stop", third))
    assert [one["line"] for one in found] == [*range(2, 17, 2)]
    for one, (entry, args) in zip(found, cases):
        assert ("id" in one) == ("id" in entry) and one.pop("id", None) == entry.get("id")
        stop = [] if "--stop" in args else ["--stop", third]
        length = ["--n_tokens_to_generate", str(entry.get("n_tokens", 12))]
        expected = alone(models_dir, "low", "--seed", "11", *stop, *args, *length)
        assert one["ids"] == expected["ids"] and one["seed"] == expected["seed"]
        assert one["ended"] == expected["ended"]
    assert [one["ended"] for one in found[-3:]] == ["stop", "stop", "length"]
    assert len(found[-3]["ids"]) < len(found[-2]["ids"])


def test_an_option_in_an_object_makes_its_completion_random_as_on_the_command_line(
    complete, tmp_path
):
    lines = '{"prompt": "low"}', '{"prompt": "low", "top_k": 50}', '{"prompt": "low", "min_p": 0}'
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    found = objects(complete(tmp_path / "p.jsonl"))
    assert [one["seed"] is None for one in found] == [True, False, False]


BAD_TEXTS = b'low\n\xff\xfe\nslow\n{"prompt": 3}\n\n[' + b"[" * 3000
BAD_OBJECTS = {
    '{"prompt": "low"}': None,
    "low": "damaged JSON",
    '{"text": "low"}': "unknown key 'text': known are prompt, id, n_tokens, stop, temperature,",
    '{"id": 1}': 'no "prompt" that is a text',
    '["prompt"]': "not an object",
    '{"prompt": 3}': 'no "prompt" that is a text',
    '{"prompt": "a", "prompt": "b"}': "a key occurs twice",
    '{"prompt": "a", "max_tokens": null, "id": "x"}': "unknown key 'max_tokens'",
    '{"prompt": "a", "seed": -1}': "seed is -1",
    '{"prompt": "a", "seed": true}': "seed is True",
    '{"prompt": "a", "n_tokens": "9"}': "n_tokens is '9'",
    '{"prompt": "a", "n_tokens": -2}': "n_tokens is -2",
    '{"prompt": "a", "n_tokens": 2.0}': "n_tokens is 2.0",
    '{"prompt": "a", "n_tokens": false, "id": [1]}': "n_tokens is False",
    '{"prompt": "a", "temperature": 1e999}': "not JSON compliant",
    '{"prompt": "a", "temperature": 1' + 400 * "0" + "}": "temperature is 1",
    '{"prompt": "a", "temperature": NaN}': "NaN",
    '{"prompt": "a", "temperature": [1]}': "temperature is [1]",
    '{"prompt": "a", "top_k": 2, "temperature": 0}': "no effect",
    '{"prompt": "a", "top_p": 1.1}': "top_p is 1.1",
    '{"prompt": "a", "repetition_penalty": 0}': "repetition_penalty is 0",
    '{"prompt": "a", "stop": ""}': "stop must be",
    '{"prompt": "a", "stop": ["a", ""]}': "stop must be",
    '{"prompt": "a", "stop": {"a": 1}}': "stop must be",
    '{"prompt": "a", "stop": [1]}': "stop must be",
    '{"prompt": "a", "id": 1e999}': "not JSON compliant",
    '{"prompt": "a", "id": ' + "[" * 9**5 + "]" * 9**5 + "}": "recursion",
    "[" * 9**5: "recursion",
    '{"prompt": "slow", "seed": null, "n_tokens": null, "stop": null, "temperature": null}': None,
    '{"prompt": "a", "n_tokens": 0, "seed": 0, "stop": [], "id": "last"}': None,
}


def test_a_bad_line_gets_an_error_and_the_others_are_completed(complete, tmp_path):
    for text, errors in (
        (BAD_TEXTS, [None, "utf-8", None, None, None]),
        ("\n".join(BAD_OBJECTS).encode(), [*BAD_OBJECTS.values()]),
    ):
        (tmp_path / "p.txt").write_bytes(text)
        done = complete(tmp_path / "p.txt", "--n_tokens_to_generate", "2")
        found = objects(done)
        assert ["error" in one for one in found] == [error is not None for error in errors]
        assert all(error in one["error"] for one, error in zip(found, errors) if error)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(b"batch.py: error: ")
        assert done.stderr.count(b"\n") == (2 if text == BAD_TEXTS else 1)  # line 6 is long
    assert {one["line"]: one["id"] for one in found if "id" in one} == {
        **{4: 1, 8: "x", 14: [1]},
        **{30: "last"},
    }


def test_an_id_that_can_be_read_can_be_printed(complete, tmp_path):
    """From some depth on, which differs between versions of Python, neither is possible."""
    depths = [*range(960, 1000), *range(9960, 10000)]
    lines = ['{"prompt": "low", "id": ' + "[" * n + "]" * n + "}" for n in depths]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    done = complete(tmp_path / "p.jsonl", "--n_tokens_to_generate", "0")
    errors = ["recursion" in line for line in done.stdout.decode().splitlines()]
    assert len(errors) == len(depths) and errors == sorted(errors), done.stderr
    assert done.stderr.count(b"\n") == 1


def test_several_greedy_samples_of_a_line_are_refused(complete, tmp_path):
    lines = '{"prompt": "low", "temperature": 0}\n{"prompt": "low", "temperature": 0.5}\n'
    (tmp_path / "p.jsonl").write_text(lines)
    found = objects(complete(tmp_path / "p.jsonl", "--n_samples", "2"))
    assert [one["line"] for one in found] == [1, 2, 2] and "all samples" in found[0]["error"]


@pytest.mark.parametrize(
    "start",
    [
        *("[\n", "  [ \n", '[{"prompt": "low"}]\n', '[{"prompt":\n', '["low",\n', "[]\n"),
        *("[1, 2]\n", "{\n", "[[1, 2], [3]]\n", "[" * 3000, "\ufeff\n\n[\n", "[\n{\n"),
        '[["low", 1],\n',
    ],
)
def test_a_json_array_is_refused(start, complete):
    done = complete("-", stdin=start.encode() + b'"prompt": "low"\n')
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == (
        b'batch.py: error: the prompts are JSON, but not one object per line: {"prompt": ...}\n'
    )


def test_a_text_may_begin_with_a_bracket_or_a_brace(complete):
    for start in "[Verse 1] hello", "[1] low", "[[low]]", "{low", '{"low": ', "5", '"low"', "{}{}":
        done = complete("-", "--n_tokens_to_generate", "1", stdin=f"{start}\n[\n".encode())
        assert [one["prompt"] for one in objects(done)] == [start, "["], done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory as on Linux")
def test_a_line_longer_than_memory_gets_an_error(models_dir):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))

    def feed(stdin):
        with stdin:
            stdin.write(b'{"prompt": "low"}\n{"prompt": "')
            megabyte = b"low " * (1 << 18)
            for _ in range(450):
                stdin.write(megabyte)
            stdin.write(b'"}\n{"prompt": "slow", "id": 3}\n')

    args = command("batch.py", "-", "--n_tokens_to_generate", "2", *model_options(models_dir))
    pipe, env = subprocess.PIPE, {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        args, stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=limit, env=env
    )
    stdin, process.stdin = process.stdin, None
    threading.Thread(target=feed, args=(stdin,), daemon=True).start()
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors.count(b"\n") == 1, errors
    first, long, last = map(json.loads, out.splitlines())
    assert (first["line"], first["prompt"]) == (1, "low")
    assert long == {"line": 2, "error": "the line is longer than 16777216 bytes"}
    assert (last["line"], last["prompt"], last["id"]) == (3, "slow", 3)


@pytest.mark.parametrize(
    "args, status, words",
    [
        (["p.txt", "--n_samples", "2", "--temperature", "0"], 2, ["n_samples", "temperature 0"]),
        (["p.txt", "--batch_size", "0"], 2, ["batch_size"]),
        (["nosuch.txt"], 1, ["nosuch.txt"]),
        ([], 2, ["prompts"]),
    ],
)
def test_wrong_usage_is_refused(args, status, words, models_dir, tmp_path):
    (tmp_path / "p.txt").write_text("low")
    done = run("batch.py", *args, *model_options(models_dir), cwd=tmp_path)
    last = done.stderr.decode().strip().split("\n")[-1]
    assert (done.returncode, done.stdout) == (status, b"")
    assert last.startswith("batch.py: error: ") and all(word in last for word in words)


def test_lines_are_completed_as_they_arrive(models_dir):
    args = command("batch.py", "-", "--n_tokens_to_generate", "2", *model_options(models_dir))
    with subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for line in "low", "slow", "low":
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["prompt"] == line
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


def test_a_stop_ends_its_text_and_the_order_of_lines_stays(complete, models_dir, tmp_path):
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "low", "n_tokens": 200}\n{"prompt": "low", "n_tokens": 0}\n'
    )
    whole, none = map(json.loads, complete(tmp_path / "p.jsonl").stdout.splitlines())
    assert len(whole["ids"]) == 200 and (none["ids"], none["ended"]) == ([], "length")
    stop = next(char for char in whole["text"] if char.isascii())
    lines = complete(tmp_path / "p.jsonl", "--stop", stop).stdout.splitlines()
    found = json.loads(lines[0])
    assert found["text"] == whole["text"][: whole["text"].index(stop)]
    assert found["ended"] == "stop" and len(lines) == 2


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_killed_run_has_printed_whole_lines(models_dir, tmp_path):
    (tmp_path / "p.txt").write_text("low low slow\n" * 1000)
    args = command("batch.py", tmp_path / "p.txt", *model_options(models_dir))
    sizes = []
    for _ in range(int(os.environ.get("BATCH_KILLS", 3))):
        path = tmp_path / "out.jsonl"
        with open(path, "wb") as out:
            process = subprocess.Popen(args, stdout=out)
            while path.stat().st_size == 0 and process.poll() is None:
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.2))
            process.kill()
            process.wait()
        assert path.read_bytes().endswith(b"\n")
        found = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert [one["line"] for one in found] == list(range(1, len(found) + 1))
        sizes.append(len(found))
    assert 0 < min(sizes) < 1000


def test_an_error_ends_the_command_while_standard_input_stays_open(models_dir):
    args = command("batch.py", "-", *model_options(models_dir, "nosuch"))
    pipe = subprocess.PIPE
    with subprocess.Popen(args, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        errors = process.stderr.read().decode()  # until the process ends
        assert process.wait(60) == 2
    assert errors.splitlines()[-1].startswith("batch.py: error: unknown model 'nosuch'")


def test_an_end_of_text_ends_a_text_also_of_unlimited_length(tiny, tmp_path):
    encoder, hparams, params = tiny
    ids = list(gpt2.generate(encoder.encode("low"), params, hparams, 20))
    n = next(n for n, id_ in enumerate(ids) if n > 2 and id_ not in ids[:n])
    for eos, expected in (ids[0], []), (ids[n], ids[:n]):
        hparams = {**hparams, "eos_token_ids": [eos]}
        save_model(tmp_path / "ends", hparams, params, encoder.vocabulary)
        lines = '{"prompt": "low", "n_tokens": 20}\n{"prompt": "low", "n_tokens": -1}\n'
        (tmp_path / "p.jsonl").write_text(lines + '{"prompt": "low"}\n')
        args = tmp_path / "p.jsonl", "--n_tokens_to_generate", "-1"
        done = run("batch.py", *args, *model_options(tmp_path, "ends"))
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert [one["ids"] for one in found] == [expected] * 3
        assert {one["ended"] for one in found} == {"end of text"}
        assert {one["text"] for one in found} == {encoder.decode(expected)}


def test_a_prompt_as_long_as_the_context_is_not_reported_as_cut(tiny, capsys):
    encoder, hparams, _ = tiny
    ids = encoder.encode("low slow " * 30)[: hparams["n_ctx"]]
    prompt = encoder.decode(ids)
    assert encoder.encode(prompt) == ids
    assert cli.prompt_ids(prompt, encoder, hparams) == ids
    assert capsys.readouterr() == ("", "")
