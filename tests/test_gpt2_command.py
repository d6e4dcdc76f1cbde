"""gpt2.py as a process: its output, its exit status, its messages, and the loop on a terminal."""

import io
import json
import os
import random
import select
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import command, default_handler, greedy, model_options, run, run_train

import cli
import gpt2
import gpt2_pico
import utils
from model_files.directory import save_model
from model_files.files import printable


@pytest.fixture
def complete(models_dir):
    """Run gpt2.py with these arguments and the model tiny, or another one, until it ends."""

    def complete(*args, models=models_dir, model="tiny", **options):
        return run("gpt2.py", *args, *model_options(models, model), **options)

    return complete


@pytest.fixture
def start(models_dir):
    """Start gpt2.py as a process that keeps running."""

    def start(*args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **streams):
        args = command("gpt2.py", *args, *model_options(models_dir))
        return subprocess.Popen(args, stdout=stdout, stderr=stderr, **streams)

    return start


def expected(tiny, prompt, n, **sampling):
    encoder, hparams, params = tiny
    ids = gpt2.generate(encoder.encode(prompt), params, hparams, n, **sampling)
    return encoder.decode(list(ids)).encode()


def test_standard_output_is_the_continuation_and_nothing_else(complete, tiny):
    done = complete("low", "--n_tokens_to_generate", "12", "--verbose")
    assert (done.returncode, done.stdout) == (0, expected(tiny, "low", 12) + b"\n")
    none = complete("low", "--n_tokens_to_generate", "0")
    assert (none.returncode, none.stdout, none.stderr) == (0, b"\n", b"")
    ids = tiny[0].encode("low")
    assert b"prompt tokens  " in done.stderr and f"{ids[-1]}\n".encode() in done.stderr
    assert done.stderr.count(b"/s\n") == 2  # the speeds of prompt and generation
    assert b" tokens per pass over the model\n" in done.stderr
    quiet = complete("low", "--n_tokens_to_generate", "12")
    assert (quiet.stdout, quiet.stderr) == (done.stdout, b"")


@pytest.mark.parametrize("args", [(), ("-",)])
def test_a_prompt_from_a_pipe_loses_one_line_break(args, complete, tiny):
    done = complete(*args, "--n_tokens_to_generate", "5", stdin=b"slow\n\n")
    assert done.stdout == expected(tiny, "slow\n", 5) + b"\n"


def test_the_same_seed_samples_the_same_text(complete, tiny):
    args = "low", "--temperature", "1.5", "--top_k", "50", "--top_p", "0.95", "--seed"
    first = complete(*args, "3").stdout
    assert first == complete(*args, "3").stdout != complete(*args, "4").stdout
    assert first == expected(tiny, "low", 40, temperature=1.5, top_k=50, top_p=0.95, seed=3) + b"\n"
    assert (
        complete("low", "--seed", "3").stdout
        == expected(tiny, "low", 40, temperature=1.0, seed=3) + b"\n"
    )


def test_the_most_likely_token_is_always_allowed(complete, tiny):
    for odd in (
        ["--temperature", "1", "--top_p", "0"],
        ["--temperature", "1e-320"],
        ["--temperature", "0", "--seed", "0"],
        ["--top_k", "1"],
    ):
        done = complete("low", "--n_tokens_to_generate", "12", *odd)
        assert (done.stdout, done.stderr) == (expected(tiny, "low", 12) + b"\n", b"")


def test_a_completion_ends_at_an_end_of_text(complete, tiny, tmp_path):
    encoder, hparams, params = tiny
    ids = list(gpt2.generate(encoder.encode("low"), params, {**hparams, "eos_token_ids": []}, 20))
    stop = next(i for n, i in enumerate(ids) if n > 2 and i not in ids[:n])
    until_stop = encoder.decode(ids[: ids.index(stop)]).encode() + b"\n"
    save_model(tmp_path / "ends", {**hparams, "eos_token_ids": [stop]}, params, encoder.vocabulary)

    for n in "20", "-1":
        args = "low", "--n_tokens_to_generate", n
        assert complete(*args, models=tmp_path, model="ends").stdout == until_stop


def test_a_text_longer_than_the_context_is_announced_once(complete, tiny):
    prompt = "".join(map(chr, range(ord("A"), ord("A") + 50)))
    done = complete(prompt, "--n_tokens_to_generate", "40")
    assert done.returncode == 0
    assert b"the prompt has 50 tokens; the model sees the last 32" in done.stderr
    assert done.stderr.count(b"the text is longer than the context") == 1
    encoder, hparams, params = tiny
    ids = greedy(encoder.encode(prompt)[-32:], params, hparams, 40)
    assert done.stdout == encoder.decode(ids).encode() + b"\n"
    room = 32 - len(encoder.encode("low"))
    for n, times in (room, 0), (room + 1, 1):  # as much as fits, and one more
        errors = complete("low", "--n_tokens_to_generate", str(n)).stderr
        assert errors.count(b"the text is longer than the context") == errors.count(b"\n") == times


def test_an_empty_prompt_starts_from_the_end_of_text(complete, tiny, tmp_path):
    encoder, hparams, params = tiny
    ids = list(gpt2.generate([0], params, hparams, 40))
    assert complete("", stdin=b"slow").stdout == encoder.decode(ids).encode() + b"\n"
    odd = {**hparams, "eos_token_ids": []}
    save_model(tmp_path / "odd", odd, params, encoder.vocabulary)
    vocabulary = tmp_path / "odd" / "vocab.json"
    vocabulary.write_text(vocabulary.read_text().replace("<|endoftext|>", "<|other|>"))
    done = complete("", models=tmp_path, model="odd")
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert done.stderr.startswith(b"gpt2.py: error: the prompt is empty")


@pytest.mark.parametrize(
    "args, words",
    [
        (["x", "--n_tokens_to_generate", "-2"], ["n_tokens_to_generate", "-2"]),
        (["x", "--temperature", "0", "--min_p", "0.1"], ["min_p", "temperature 0"]),
        (["x", "--min_p", "1.1"], ["min_p", "1.1 is not between 0 and 1"]),
        (["x", "--repetition_penalty", "0"], ["repetition_penalty", "0 is not between"]),
        (["x", "--stop", ""], ["stop", "must not be empty"]),
        (["x", "--verb"], ["--verb"]),
        (["x", "--temperature", "warm"], ["temperature", "invalid number value", "warm"]),
        (["x", "--temperature", "nan"], ["temperature", "nan"]),
        (["x", "--temperature", "inf"], ["temperature", "inf is not"]),
        (["x", "--top_p", "1.5"], ["top_p", "1.5 is not between 0 and 1"]),
        (["x", "--top_k", "0"], ["top_k", "0 is not at least 1"]),
        (["x", "--n_tokens_to_generate", "many"], ["invalid whole number value", "many"]),
        (["x", "--model_size", "999M"], ["999M", "124M, 355M, 774M, 1558M", "tiny"]),
        (["x", "--perplexity", "file"], ["perplexity"]),
    ],
)
def test_wrong_usage_has_status_2(args, words, models_dir):
    done = run("gpt2.py", "--models_dir", models_dir, *args)
    assert (done.returncode, done.stdout) == (2, b"")
    last = done.stderr.decode().strip().split("\n")[-1]
    assert last.startswith("gpt2.py: error: ") and all(word in last for word in words)


def test_an_error_is_one_line_and_status_1(complete, tiny, tmp_path):
    encoder, hparams, params = tiny

    def fails(*args, **options):
        done = complete(*args, **options)
        lines = done.stderr.decode().split("\n")
        assert (done.returncode, done.stdout, len(lines)) == (1, b"", 2), done
        assert lines[0].startswith("gpt2.py: error: ")
        return lines[0]

    assert "nowhere" in fails("x", model=str(tmp_path / "nowhere"))
    assert "standard input" in fails("-", stdin=b"\xff\xfe")
    save_model(tmp_path / "cut", hparams, params, encoder.vocabulary)
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in fails("x", models=tmp_path, model="cut")
    damaged = {**params, "ln_f": {**params["ln_f"], "b": np.full(16, np.nan, np.float32)}}
    save_model(tmp_path / "nan", hparams, damaged, encoder.vocabulary)
    for args in ["x"], ["x", "--seed", "1"]:
        assert "not finite" in fails(*args, models=tmp_path, model="nan")


@pytest.mark.skipif(os.name == "nt", reason="POSIX can close a stream before the start")
@pytest.mark.parametrize("stream", [0, 1, 2])
def test_a_closed_stream_is_ignored(stream, models_dir, tiny):
    done = subprocess.run(
        command("gpt2.py", "low", "--n_tokens_to_generate", "12", *model_options(models_dir)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        preexec_fn=lambda: os.close(stream),
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (expected(tiny, "low", 12) + b"\n" if stream != 1 else b"")


ENDLESS = "low", "--n_tokens_to_generate", "100000"


def test_a_closed_pipe_ends_the_command_quietly(start):
    process = start(*ENDLESS)
    assert process.stdout.read(1)
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(60) == 0
    assert b"rror" not in errors and b"Traceback" not in errors


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_text_is_streamed_and_ctrl_c_ends_it(start):
    process = start(*ENDLESS, preexec_fn=default_handler)
    assert 0 < len(process.stdout.read1()) < 4000  # it does not wait until a buffer is full
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith(b"\n") and b"Traceback" not in errors


class Terminal:
    """gpt2.py in its loop on a terminal; both: standard output goes there, too."""

    def __init__(self, start, *args, both=False, **streams):
        import pty

        self.terminal, end = pty.openpty()
        streams |= {"stdout": end} if both else {}
        streams |= {"stdin": end, "stderr": end, "preexec_fn": default_handler}
        self.process = start(*args, **streams)
        os.close(end)

    def wait_for(self, text):
        seen, until = b"", time.monotonic() + 30
        while text not in seen and time.monotonic() < until:
            if select.select([self.terminal], [], [], 0.2)[0]:
                seen += os.read(self.terminal, 1000)
        assert text in seen
        return seen

    def type(self, data):
        os.write(self.terminal, data)


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals of POSIX")
@pytest.mark.parametrize("leave", [b"quit\n", b" Quit \n", b"\x04"])
def test_a_loop_on_a_terminal_completes_each_line(leave, start, tiny):
    loop = Terminal(start, "--n_tokens_to_generate", "6")
    for prompt in "low", "slow":
        loop.wait_for(b">> ")
        loop.type(prompt.encode() + b"\n")
        line = expected(tiny, prompt, 6) + b"\n"
        assert loop.process.stdout.read(len(line)) == line
    loop.wait_for(b">> ")
    loop.type(leave)
    assert loop.process.wait(30) == 0
    assert loop.process.stdout.read() == b""


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals of POSIX")
def test_ctrl_c_in_the_loop_ends_the_completion_and_at_the_prompt_the_loop(start):
    loop = Terminal(start, "--n_tokens_to_generate", "-1", stdout=subprocess.DEVNULL)
    for _ in range(3):
        loop.wait_for(b">> ")
        loop.type(b"low\n")
        loop.wait_for(b"the text is longer than the context")  # the completion is running
        loop.process.send_signal(signal.SIGINT)
    loop.wait_for(b">> ")
    loop.process.send_signal(signal.SIGINT)
    assert loop.process.wait(30) == 130


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals of POSIX")
def test_lines_typed_in_the_loop_can_be_edited_and_recalled(start, tiny):
    pytest.importorskip("readline")
    loop = Terminal(start, "--n_tokens_to_generate", "6", both=True)
    loop.wait_for(b">> ")
    loop.type(b"slX\x7fow\n")  # backspace
    text = printable(expected(tiny, "slow", 6).decode()).encode()  # the terminal is shown it so
    assert text in loop.wait_for(b"\n>> ")
    loop.type(b"\x1b[A\n")  # the up arrow
    assert text in loop.wait_for(b"\n>> ")
    loop.type(b"quit\n")
    assert loop.process.wait(30) == 0


def test_a_prompt_that_fails_does_not_end_the_loop(tiny, tmp_path, monkeypatch, capsys):
    encoder, hparams, params = tiny
    save_model(tmp_path / "odd", {**hparams, "eos_token_ids": []}, params, encoder.vocabulary)
    (tmp_path / "odd" / "vocab.json").write_text(
        (tmp_path / "odd" / "vocab.json").read_text().replace("<|endoftext|>", "<|other|>")
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("\nlow\n/reset\nquit\n"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    args = "--n_tokens_to_generate", "6", *model_options(str(tmp_path), "odd")
    assert gpt2.main(args) == 0
    out, errors = capsys.readouterr()
    texts = [expected(tiny, prompt, 6) for prompt in ("low", "/reset")]  # Here /reset is a prompt.
    assert out.encode() == b"".join(text + b"\n" for text in texts)
    assert errors.startswith(">> gpt2.py: error: the prompt is empty")


# JSON, stops, --verbose


def test_json_is_one_object_on_one_line(complete, tiny):
    encoder, hparams, params = tiny
    args = "low", "--n_tokens_to_generate", "12", "--json"
    done = complete(*args)
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.count(b"\n") == 1
    found, seconds = json.loads(done.stdout), json.loads(done.stdout)["seconds"]
    ids = list(gpt2.generate(encoder.encode("low"), params, hparams, 12))
    assert 0 < seconds < 60 and found["ids"] == ids and found["seed"] is None
    assert (found["prompt"], found["text"]) == ("low", encoder.decode(ids))
    assert found["ended"] == "length"
    assert found["log_probabilities"] == pytest.approx(scores("low", ids, tiny), abs=1e-4)
    sampled = json.loads(complete(*args, "--temperature", "2", "--top_k", "9").stdout)
    again = complete(*args, "--temperature", "2", "--top_k", "9", "--seed", sampled["seed"])
    assert json.loads(again.stdout)["ids"] == sampled["ids"]


def scores(prompt, ids, model):
    """Return the log-probabilities of a prompt's continuation."""
    encoder, hparams, params = model
    whole = [*encoder.encode(prompt), *ids]
    logits = gpt2.gpt2(whole, **params, hparams=hparams)[-len(ids) - 1 : -1].astype(np.float64)
    return [row[id_] - np.log(np.exp(row).sum()) for row, id_ in zip(logits, ids)]


@pytest.mark.parametrize(
    "options",
    [
        ["--top_k", "1", "--temperature", "5"],
        ["--repetition_penalty", "3"],
        ["--repetition_penalty", "3", "--seed", "1", "--min_p", "0.1"],
    ],
)
def test_log_probabilities_are_those_of_the_model_whatever_the_options(options, complete, tiny):
    args = "low low low", "--json", "--n_tokens_to_generate", "12", *options
    found = json.loads(complete(*args).stdout)
    expected = scores("low low low", found["ids"], tiny)
    assert found["log_probabilities"] == pytest.approx(expected, abs=1e-4)
    assert len(expected) == 12 and max(expected) < -0.01


def test_a_stop_ends_the_completion(complete, tiny, tmp_path):
    encoder, hparams, params = tiny
    params = {**params, "wte": params["wte"].copy()}
    others = [id_ for id_ in range(260) if not encoder.decode([id_]).isalpha()]
    params["wte"][others] = 0  # the text consists of letters
    save_model(tmp_path / "letters", hparams, params, encoder.vocabulary)
    ids = gpt2.generate(encoder.encode("low"), params, hparams, 40)
    whole = encoder.decode(list(ids))
    stop = whole[10:13]
    for args in ([stop], ["nowhere at all", "--stop", stop]):
        done = complete("low", "--stop", *args, models=tmp_path, model="letters")
        assert done.stdout.decode() == whole[: whole.index(stop)] + "\n"
    done = complete("low", "--stop", stop, "--json", models=tmp_path, model="letters")
    found = json.loads(done.stdout)
    assert found["text"] == whole[: whole.index(stop)] and found["ended"] == "stop"


def test_verbose_shows_the_prompt_before_the_completion_and_the_seed(complete, tiny):
    done = complete("low low", "--verbose", "--seed", "7", "--n_tokens_to_generate", "5")
    ids = tiny[0].encode("low low")
    tokens = ", ".join(f"{tiny[0].decode([id_])!r} {id_}" for id_ in ids)
    assert done.stderr.decode().startswith(f"prompt tokens  {tokens}\nseed           7\n")


def test_verbose_and_json_measure_loading_prompt_and_tokens_by_themselves(
    models_dir, monkeypatch, capsys
):
    """The clock stands still, but for 100 seconds of loading and one second for each pass."""
    clock, reports, load, model = [0], [], utils.load_encoder_hparams_and_params, gpt2.gpt2

    def ticking(function, seconds):
        def call(*args, **keywords):
            clock[0] += seconds
            return function(*args, **keywords)

        return call

    monkeypatch.setattr(utils, "load_encoder_hparams_and_params", ticking(load, 100))
    monkeypatch.setattr(gpt2, "gpt2", ticking(model, 1))
    monkeypatch.setattr(gpt2.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(cli, "report", lambda *args: reports.append(args))
    prompt, options = "low low low low", map(str, model_options(models_dir))
    args = [prompt, "--json", "--verbose", "--n_tokens_to_generate", "30", *options]
    assert gpt2.main(args) == 0
    found = json.loads(capsys.readouterr().out)
    [(loading, n_inputs, ids, times, n_passes)] = reports
    assert (loading, n_passes, found["seconds"]) == (100, clock[0] - 100, clock[0] - 100)
    assert n_inputs == len(load("tiny", models_dir)[0].encode(prompt)) and ids == found["ids"]
    assert times[:2] == [100, 101] and times[-1] == clock[0] and len(times) == 30 + 1
    assert n_passes < 30  # some drafts were right


def test_main_prints_to_the_streams_of_its_caller(monkeypatch, models_dir, tiny):
    """An io.StringIO, or a notebook's stream: it is not a file and has no encoding."""
    for name in "stdout", "stderr", "stdin":
        monkeypatch.setattr(sys, name, io.StringIO("slow\n" if name == "stdin" else ""))
    handler = signal.getsignal(signal.SIGINT)
    options = "--n_tokens_to_generate", "6", *map(str, model_options(models_dir))
    assert gpt2.main(["low", *options]) == 0
    assert gpt2.main(["low", "--json", *options]) == 0
    assert gpt2.main(["-", *options]) == 0
    assert gpt2.main(["low", *options[:-1], "./nosuch"]) == 1
    lines = sys.stdout.getvalue().split("\n")
    assert lines[0].encode() == expected(tiny, "low", 6)
    assert json.loads(lines[1])["text"] == lines[0]
    assert "\n".join(lines[2:]).encode() == expected(tiny, "slow", 6) + b"\n"
    assert sys.stderr.getvalue() == "gpt2.py: error: ./nosuch: no such directory\n"
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_model_of_changed_text_is_announced(complete, tiny, tmp_path):
    encoder, hparams, params = tiny
    save_model(tmp_path / "low", hparams, params, encoder.vocabulary)
    training = {"lowercase": True, "stopwords": ["the", "of"]}
    (tmp_path / "low" / "training.json").write_text(json.dumps(training))
    done = complete("low", "--n_tokens_to_generate", "5", models=tmp_path, model="low")
    assert done.stdout == expected(tiny, "low", 5) + b"\n"
    assert done.stderr == b"low was trained on text in lower case and without the, of\n"


def test_a_piped_prompt_may_begin_with_a_byte_order_mark(complete, tiny):
    done = complete("-", "--n_tokens_to_generate", "5", stdin=b"\xef\xbb\xbfslow")
    assert done.stdout == expected(tiny, "slow", 5) + b"\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(
    "args, unbuffered",
    [(["--help"], ""), (["low"], ""), (["low"], "1"), (["low", "--json"], "")],
    ids=str,
)
def test_a_full_disk_is_an_error(args, unbuffered, models_dir):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("gpt2.py", *args, "--n_tokens_to_generate", "4", *model_options(models_dir)),
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"gpt2.py: error: ") and done.stderr.count(b"\n") == 1


def test_help_names_every_option(complete):
    done = complete("--help")
    assert done.returncode == 0
    for option in (
        "n_tokens_to_generate",
        "model_size",
        "models_dir",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "stop",
        "json",
        "seed",
        "verbose",
    ):
        assert f"--{option}".encode() in done.stdout


# Conversations, and the end-of-text token in a prompt


def test_a_chat_is_the_conversation_with_an_end_of_text_after_each_turn(complete, tiny):
    encoder, hparams, params = tiny
    eos, n = hparams["eos_token_ids"][0], 6
    lines = ["low", "lower ☃", " /reset ", "low", "quit", "never"]
    done = complete(
        "--chat", "--n_tokens_to_generate", str(n), stdin="\n".join(lines).encode(), model="tiny"
    )
    history, answers = [], []
    for line in lines[:4]:
        if line == " /reset ":
            history = []
            continue
        history += [*encoder.encode(line), eos]
        answer = list(gpt2.generate(history, params, hparams, n))
        answers.append(encoder.decode(answer))
        history += [*answer, eos]
    assert (done.returncode, done.stdout.decode()) == (0, "".join(f"{x}\n" for x in answers))
    assert answers[0] == answers[2]


@pytest.mark.parametrize("n_tokens", [0, 10, 1000, -1])
def test_a_chat_forgets_the_oldest_turns_when_the_context_is_full(n_tokens, tiny, capsys):
    """The answer may take half of the context, but not what was said before."""
    encoder, hparams, _ = tiny
    n_ctx = hparams["n_ctx"]
    chat = cli.Conversation(hparams, n_tokens)
    room = n_ctx - {0: 0, 10: 10}.get(n_tokens, n_ctx // 2)
    turns, n_forgotten = [], 0
    for i in range(12):
        ids = encoder.encode(f"low {i}")
        turns.append([*ids, chat.eos])
        n_forgotten += sum(map(len, turns)) > room
        while len(turns) > 1 and sum(map(len, turns)) > room:
            del turns[0]
        assert chat.inputs(ids) == sum(turns, []) == chat.inputs(ids)
        chat.add(ids, [i])
        turns.append([i, chat.eos])
    message = f"the model sees at most {room} tokens of the conversation: the end of it\n"
    assert len(turns) < 24 and capsys.readouterr().err == message * n_forgotten
    long = encoder.encode("low lower " * n_ctx)
    assert chat.inputs(long) == [*long, chat.eos][-room:]
    assert capsys.readouterr().err == message


def test_a_turn_without_an_answer_is_dropped(tiny, monkeypatch, capsys):
    """Otherwise questions and answers would change places for the rest of the conversation."""
    encoder, hparams, params = tiny
    seen, errors = [], iter([None, KeyboardInterrupt(), ValueError("x"), None])

    def complete(prompt, inputs, *model_and_args):
        seen.append(inputs)
        if error := next(errors):
            raise error
        return [5]

    monkeypatch.setattr(gpt2, "complete", complete)
    monkeypatch.setattr(utils, "load_encoder_hparams_and_params", lambda *args: tiny)
    monkeypatch.setattr("sys.stdin", io.StringIO("low\r\nlow\n\n  \nlow\nlower\n"))
    assert gpt2.main(["--chat"]) == 0
    low, lower, eos = encoder.encode("low"), encoder.encode("lower"), hparams["eos_token_ids"][0]
    assert seen == [[*low, eos]] + 2 * [[*low, eos, 5, eos, *low, eos]] + [
        [*low, eos, 5, eos, *lower, eos]
    ]


def test_a_turn_of_a_chat_may_hold_special_tokens_on_request(complete, tiny):
    done = complete(
        *("--chat", "--special_tokens", "--verbose", "--n_tokens_to_generate", "1"),
        stdin=b"low<|endoftext|>low\\n\n",
        model="tiny",
    )
    eos = tiny[1]["eos_token_ids"][0]
    assert done.stderr.count(f"'<|endoftext|>' {eos}".encode()) == 2
    assert done.stderr.count(b"which are not a line break") == 1


@pytest.fixture(scope="module")
def dialogue(tmp_path_factory):
    """A model that is trained on turns and answers, and knows a name while it can see it."""
    rng, lines = random.Random(0), []
    for _ in range(800):
        name, n, turns = "nobody", 8, []
        if rng.random() < 0.4:
            name, n, turns = "ann", 4, [("ann.", "hello")]
        turns += rng.choices([("cold?", "yes"), ("who?", name)], [1, 2], k=n)
        for turn, answer in [*turns, ("bye", "bye")]:
            lines.append(f"{turn}<|endoftext|>{answer}<|endoftext|>\n")
    directory = tmp_path_factory.mktemp("dialogue")
    (directory / "turns.txt").write_text("".join(lines))
    shape = "--n_layer", "1", "--n_head", "2", "--n_embd", "32", "--n_ctx", "32"
    length = "--iterations", "250", "--batch_size", "16", "--eval_interval", "250"
    rates = "--learning_rate", "0.02", "--dropout", "0", "--val_fraction", "0", "--threads", "1"
    options = "--vocab_size", "290", *shape, *length, *rates
    done = run_train(directory / "turns.txt", "--out", directory / "model", *options)
    assert done.returncode == 0, done.stderr
    return directory / "model"


def test_a_dialogue_model_answers_as_it_has_learned_while_it_sees_the_turns(dialogue):
    model, n = ("--model_size", dialogue), 2
    turns = "who? ann. cold? who? /reset who? cold? ann. cold? who?".split()
    turns += ["cold?"] * 5 + ["who?", "bye"]
    stdin = "\n".join([*turns, "quit", "never"]).encode()
    args = "--chat", "--json", "--n_tokens_to_generate", n
    done = run("gpt2.py", *args, *model, stdin=stdin)
    assert done.returncode == 0
    found = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert [answer["text"] for answer in found] == [
        *("nobody", "hello", "yes", "ann"),
        *("nobody", "yes", "hello", "yes", "ann"),  # after /reset
        *("yes", "yes", "yes", "yes", "yes", "nobody", "bye"),  # the oldest turns are forgotten
    ]
    encoder, hparams, params = utils.load_encoder_hparams_and_params(str(dialogue), ".")
    [eos], eps, answers = hparams["eos_token_ids"], hparams["layer_norm_epsilon"], iter(found)
    history = []
    for turn in turns:
        if turn == "/reset":
            history = []
            continue
        history.append([*encoder.encode(turn), eos])
        while sum(map(len, history)) + n > hparams["n_ctx"]:
            history.pop(0)
        inputs, answer = sum(history, []), next(answers)
        assert answer["ids"] == greedy(inputs, params, hparams, n)
        logits = gpt2_pico.gpt2(inputs, **params, n_head=hparams["n_head"], eps=eps)[-1]
        first = logits[answer["ids"][0]] - np.log(np.exp(logits).sum())
        assert answer["log_probabilities"][0] == pytest.approx(first, abs=1e-4)
        history.append([*answer["ids"], eos])
    prompt = "ann. hello cold? yes who? ".replace(" ", "<|endoftext|>")
    done = run("gpt2.py", prompt, "--special_tokens", *model)
    assert done.stdout == b"ann\n"


def test_a_chat_needs_an_end_of_text_and_takes_no_prompt(complete, tiny, tmp_path):
    encoder, hparams, params = tiny
    save_model(tmp_path / "endless", {**hparams, "eos_token_ids": []}, params, encoder.vocabulary)
    done = complete("--chat", stdin=b"low\n", models=tmp_path, model="endless")
    assert done.returncode == 1
    assert done.stderr == b"gpt2.py: error: --chat needs a model with an end-of-text token\n"
    done = complete("--chat", "low")
    assert done.returncode == 2 and b"leave out the prompt" in done.stderr


def test_the_end_of_text_in_a_prompt_is_its_id_on_request(complete, tiny):
    encoder, hparams, params = tiny
    eos = hparams["eos_token_ids"][0]
    prompt = "low<|endoftext|>lower"
    plain = json.loads(complete(prompt, "--json").stdout)["ids"]
    special = json.loads(complete(prompt, "--json", "--special_tokens").stdout)["ids"]
    inputs = [*encoder.encode("low"), eos, *encoder.encode("lower")]
    assert encoder.encode(prompt, special_tokens=True) == inputs
    assert special == list(gpt2.generate(inputs, params, hparams, 40)) != plain


def test_a_backslash_and_an_n_are_explained_once(complete):
    done = complete(r"low\nlow", "--stop", r"\n\n", "--n_tokens_to_generate", "1")
    assert done.returncode == 0 and done.stderr.count(b"\n") == 1
    assert b"a backslash and an n" in done.stderr and rb"$'...\n...'" in done.stderr
    assert complete("low\nlow", "--n_tokens_to_generate", "1").stderr == b""
