"""What the commands share: options, streams, exit statuses, Ctrl-C, the text of a completion.

INTERRUPTS in the environment sets how many random moments are tried for Ctrl-C.
"""

import argparse
import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT, command, default_handler, model_options, run

import batch
import cli
import gpt2
from encoder import learn_bpe
from model_files.directory import save_model
from model_files.files import CONTROL, printable
from utils import UnknownModel

# Options


def test_a_number_is_of_its_kind_and_in_its_range():
    probability, whole = cli.number(float, 0, 1), cli.number(int, 1)
    assert probability("0") == 0 and probability("1") == 1 and probability("1e-3") == 0.001
    assert whole("1") == 1 and whole("10") == 10
    for parse, text in (
        (probability, "1.1"),
        (probability, "-0.1"),
        (probability, "nan"),
        (cli.number(float, 0), "inf"),
        (whole, "0"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=f"^{text} is not "):
            parse(text)
    for parse, text in (probability, "one"), (whole, "1.5"), (whole, ""):
        with pytest.raises(ValueError):
            parse(text)


def test_options_of_sampling_reach_the_sampler():
    parser = cli.new_parser("it.py", "")
    cli.add_completion_options(parser)
    for options, temperature in ("", 0), ("--seed 0", 1), ("--top_p 0", 1), ("--temperature 0", 0):
        args = parser.parse_args(options.split())
        assert gpt2.Sampler(**cli.sampling_options(args)).temperature == temperature
    options = "--temperature 0.5 --top_k 3 --top_p 0.2 --min_p 0.3 --repetition_penalty 2 --seed 6"
    assert cli.sampling_options(parser.parse_args(options.split())) == {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.2,
        "min_p": 0.3,
        "repetition_penalty": 2,
        "seed": 6,
    }
    for option in "--top_k 3", "--top_p 0.2", "--min_p 0.3":
        with pytest.raises(cli.UsageError, match=option.split()[0]):
            cli.sampling_options(parser.parse_args(f"--temperature 0 {option}".split()))


@pytest.mark.parametrize("parser", [gpt2.parser(), batch.parser()], ids=lambda parser: parser.prog)
def test_help_states_the_default_of_each_option(parser):
    stated = {}
    for action in parser._actions:
        if match := re.search(r"\(([^()]*)\)$", action.help or ""):
            stated[action.dest] = match[1]
            assert action.default is None or str(action.default) == match[1], action.dest
    found = vars(parser.parse_args(["x"]))
    numbers = {name for name, x in found.items() if isinstance(x, int) and x is not False}
    assert {"model_size", "models_dir", *numbers} <= stated.keys()
    assert stated["repetition_penalty"] == "1" and gpt2.Sampler().penalty == 1


@pytest.mark.parametrize("script", ["gpt2.py", "batch.py"])
@pytest.mark.parametrize("given, found", [(None, "20"), ("26", "26")])
def test_a_command_lets_idle_threads_of_openblas_sleep_before_numpy_starts_them(
    script, given, found
):
    code = (
        "import os, runpy, sys\n"
        "class Watch:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'numpy':\n"
        "            sys.exit(os.environ.get('OPENBLAS_THREAD_TIMEOUT', 'none'))\n"
        "sys.meta_path.insert(0, Watch)\n"
        f"runpy.run_path({script!r}, run_name='__main__')"
    )
    env = {name: x for name, x in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    env |= {"OPENBLAS_THREAD_TIMEOUT": given} if given else {}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, env=env)
    assert done.stderr.decode().strip() == found


# Streams and exit statuses


def run_work(*errors):
    def work(args):
        print("done")
        for error in errors:
            raise error

    return cli.run(argparse.ArgumentParser(prog="it.py"), work, [])


def test_the_exit_status_tells_what_went_wrong(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)  # closed
    assert run_work() == 0
    assert capsys.readouterr() == ("done\n", "")
    for error, status, message in (
        (ValueError("odd"), 1, "it.py: error: odd\n"),
        (OSError("gone"), 1, "it.py: error: gone\n"),
        (KeyboardInterrupt(), 130, "\n"),
        (KeyboardInterrupt("stopped at step 3"), 130, "stopped at step 3\n"),
        (BrokenPipeError(), 0, ""),
    ):
        assert run_work(error) == status
        assert capsys.readouterr() == ("done\n", message)
    assert run_work(MemoryError("14 TiB")) == 1
    assert capsys.readouterr().err.startswith("it.py: error: not enough memory (14 TiB): ")
    for error in cli.UsageError("wrong"), UnknownModel("wrong"):
        with pytest.raises(SystemExit, match="2"):
            run_work(error)
        assert capsys.readouterr().err.endswith("it.py: error: wrong\n")


class Raw(io.RawIOBase):
    """A stream that keeps what each write to it was given."""

    def __init__(self):
        self.writes = []

    def writable(self):
        return True

    def write(self, data):
        self.writes.append(bytes(data))
        return len(data)


@pytest.mark.parametrize("n", [1, 100, 100_000])
def test_a_line_is_a_single_write_and_comes_after_earlier_text(n, monkeypatch):
    raw = Raw()
    stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    print("before", end="")
    cli.print_line("é" * n + "\ud800")
    assert raw.writes == [b"before", "é".encode() * n + b"?\n"]


def test_streams_are_utf8_with_plain_line_breaks_on_every_system(monkeypatch):
    out = io.BytesIO()
    stdout = io.TextIOWrapper(out, encoding="ascii", newline="\r\n")
    monkeypatch.setattr(sys, "stdout", stdout)
    stdin = io.TextIOWrapper(io.BytesIO("é\r\n".encode() + b"\xff\n"), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", stdin)
    err = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding="ascii"))
    cli.open_streams()
    assert [cli.ask("日 "), cli.ask("\ud800")] == ["é", "\ufffd"]
    print("日\udcff")
    stdout.flush()
    assert (out.getvalue(), err.getvalue()) == ("日?\n".encode(), "日 ?".encode())
    cli.open_streams()  # in a session that has read from standard input, which cannot change now


def test_streams_that_cannot_be_configured_are_used_as_they_are(monkeypatch):
    for name in "stdin", "stdout", "stderr":
        monkeypatch.setattr(sys, name, io.StringIO("slow\n" if name == "stdin" else ""))
    cli.open_streams()
    assert cli.read_prompt("-") == "slow" and cli.read_prompt("low\n") == "low\n"
    cli.print_line("é")
    assert sys.stdout.getvalue() == "é\n"


@pytest.fixture(scope="module")
def rude(tiny, tmp_path_factory):
    """A directory with the model rude, whose text consists of control characters, and with texts
    of such characters. Half of \x9b is a token."""
    encoder, hparams, params = tiny
    bold = [encoder.encode_bytes(bytes([byte]))[0] for byte in b"\x1b\x07\x7f\xc2\x9b\r\n\t"]
    wte = np.full_like(params["wte"], -1)
    wte[bold] = 1
    wte[bold[0]] = 1.01  # the most likely one
    ln_f = {"g": np.zeros(16, np.float32), "b": np.ones(16, np.float32)}
    directory = tmp_path_factory.mktemp("rude")
    save_model(
        directory / "rude", hparams, {**params, "wte": wte, "ln_f": ln_f}, encoder.vocabulary
    )
    (directory / "text").write_bytes("\x1b[31m\x9b0m\x07\x7f\n".encode() * 40)
    return directory


def on_terminal(command):
    """Return what a command, run in ROOT, writes to a terminal, with plain line breaks."""
    pty = pytest.importorskip("pty")
    terminal, end = pty.openpty()
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, stdout=end, **quiet) as process:
        os.close(end)
        data = b""
        with contextlib.suppress(OSError):  # on Linux, that is how a terminal ends
            while piece := os.read(terminal, 1000):
                data += piece
        os.close(terminal)
    assert process.returncode == 0
    return data.decode().replace("\r\n", "\n")


N_TOKENS = "--n_tokens_to_generate", "30"
SAMPLED = *N_TOKENS, "--seed", "3"
TRAINED = "--out", "out", "--iterations", "1", "--n_ctx", "8", "--learning_rate", "0"


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals of POSIX")
@pytest.mark.parametrize(
    "script, args",
    [
        ("gpt2.py", ["a", *SAMPLED]),
        ("gpt2.py", ["\x1b\x9b", *SAMPLED, "--json"]),
        ("gpt2_pico.py", ["a", *N_TOKENS]),
        ("batch.py", ["text", *SAMPLED]),
        ("explain.py", ["\x1b\x9b\x7f"]),
        ("evaluate.py", ["text", "--lines", "--verbose"]),
        ("evaluate.py", ["text", "--lines", "--json"]),
        ("train.py", ["text", "--init_from", "rude", *TRAINED]),
    ],
    ids=lambda x: x if isinstance(x, str) else " ".join(x[1:])[-20:],
)
def test_a_terminal_gets_control_characters_as_their_names(script, args, rude, tmp_path):
    known = {"text": rude / "text", "out": tmp_path / "out"}
    line = command(script, *(known.get(arg, arg) for arg in args), "--models_dir", rude)
    line += ["--model_size", "rude"] if script != "train.py" else []
    text = on_terminal(line)
    assert CONTROL.sub("", text.replace("\n", "").replace("\t", "")) == text.replace(
        "\n", ""
    ).replace("\t", "")
    assert re.search(r"\\x1b|\\u001b|\\x07", text)
    if args[-1] == "--json" or script == "batch.py":
        assert all(json.loads(line) for line in text.splitlines())
        assert "\\u009b" in text and "\\u007f" in text


def test_a_pipe_gets_control_characters_as_they_are(rude, tiny):
    """On a terminal they are spelled; \x9b is recognised although its bytes are two tokens."""
    args = "a", *SAMPLED, "--models_dir", rude, "--model_size", "rude"
    text = run("gpt2.py", *args).stdout.decode()
    assert {"\x1b", "\x9b", "\x7f", "\r", "\t"} <= {*text} and "\n" in text[:-1]
    spelled = re.sub(r"[^\n\t]", lambda c: printable(c[0]), text)
    if os.name != "nt":
        assert on_terminal(command("gpt2.py", *args)).expandtabs(8) == spelled.expandtabs(8)


@pytest.mark.parametrize("args", [["--\x1b[31m"], ["x", "\x1b[31m\n\udc9b"]])
def test_arguments_are_quoted_without_their_control_characters(args, capsys):
    with pytest.raises(SystemExit, match="2"):
        gpt2.main(args)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("gpt2.py: error: unrecognized arguments: ") and "\\x1b[31m" in last
    assert not CONTROL.search(last)


def test_numpy_warns_in_a_library_and_not_in_a_command():
    def overflow(args):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(np.float32(3e38).__mul__, np.float32(10)).result()

    with pytest.warns(RuntimeWarning):
        overflow(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cli.run(argparse.ArgumentParser(), overflow, []) == 0
    with pytest.warns(RuntimeWarning):
        overflow(None)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_message_that_cannot_be_written_does_not_end_a_command(models_dir):
    prompt, options = "x" * 50, ("--n_tokens_to_generate", "5", *model_options(models_dir))
    read = run("gpt2.py", prompt, *options)
    assert b"the model sees the last 32" in read.stderr
    for args, status in ([prompt], 0), ([prompt, "--model_size", "./nowhere"], 1), (["--no"], 2):
        with open("/dev/full", "wb") as full:
            line = command("gpt2.py", *options, *args)
            done = subprocess.run(line, stdout=subprocess.PIPE, stderr=full)
        assert (done.returncode, done.stdout) == (status, b"" if status else read.stdout)


def test_verbose_reports_speeds_of_their_own_part_and_tokens_per_pass(monkeypatch, capsys):
    resource = pytest.importorskip("resource")
    usage = type("Usage", (), {"ru_maxrss": 3 << 20})
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    times = [100, 102, 102.5, 103, 110]  # 2 s for the prompt, 8 s for three more tokens

    def reported(platform, times):
        monkeypatch.setattr(sys, "platform", platform)
        cli.report(0.25, 9, [7, 8, 9], times, 2)
        return capsys.readouterr().err.splitlines()

    assert reported("linux", times) == [
        "generated ids  [7, 8, 9]",
        "loading        0.250 s",
        "prompt         9 tokens in 2.000 s: 4.5/s",
        "generation     3 more in 8.000 s: 0.4/s",
        "               2.00 tokens per pass over the model",
        "peak memory    3072 MiB",  # Linux counts in KiB, macOS in bytes
    ]
    assert reported("darwin", times[:2])[2:] == [
        "prompt         9 tokens in 2.000 s: 4.5/s",
        "peak memory    3 MiB",
    ]
    assert len(reported("linux", times[:1])) == 3


def test_a_model_of_changed_text_is_announced(capsys):
    for training, text in (
        ({}, None),
        ({"lowercase": False, "stopwords": []}, None),
        ({"lowercase": True}, "in lower case"),
        ({"stopwords": ["the", "of"]}, "without the, of"),
        (
            {"lowercase": True, "stopwords": list("abcdef")},
            "in lower case and without a, b, c, d, e ...",
        ),
    ):
        cli.warn_of_training("mine", {"training": training})
        expected = f"mine was trained on text {text}\n" if text else ""
        assert capsys.readouterr() == ("", expected)
    cli.warn_of_training("mine", {})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "ids, repeats",
    [
        ([1, 2, 3, *[7] * 17], True),
        ([*[7] * 16], False),
        ([*[1, 2, 3] * 7], True),
        ([*[1, 2, 3, 4] * 5], True),
        ([*[1, 2, 3, 4] * 4, 1, 2, 3], False),
        ([9, *range(30), *range(30)], True),
        ([*range(20), *range(20)], True),
        ([9, *range(30), *range(29)], False),
        ([*range(20), 5, *range(20)], False),
        ([*[1, 2] * 20, 3], False),
        ([*range(100)], False),
        ([1, 2, 3, 1, 2, 3], False),
        ([], False),
    ],
    ids=lambda x: str(x)[:20],
)
def test_a_text_repeats_itself_if_it_ends_in_two_long_blocks_or_many_short_ones(
    ids, repeats, capsys
):
    cli.warn_of_repetition(ids)
    out, errors = capsys.readouterr()
    assert (out, errors.count("the text repeats itself"), errors.count("\n")) == (
        "",
        *[repeats] * 2,
    )


# Ctrl-C

posix = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
# Runs a command, and interrupts it some seconds after its work has begun. NumPy's compiled modules
# may swallow the first interrupt while they are imported, so there is another one 5 seconds later.
INTERRUPT = """
import os, runpy, signal, sys, threading, time
seconds, sys.argv = float(sys.argv[1]), sys.argv[2:]
sys.path[0] = os.path.dirname(sys.argv[0])
import cli
run = cli.run

def press():
    time.sleep(seconds)
    while True:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

def run_and_interrupt(parser, work, argv=None):
    def interrupted(args):
        threading.Thread(target=press, daemon=True).start()
        work(args)

    return run(parser, interrupted, argv)

cli.run = run_and_interrupt
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SHAKESPEARE = "--model_size", "shakespeare", "--n_tokens_to_generate"
LONG_RUNS = [
    ["gpt2.py", "ROMEO:", *SHAKESPEARE, "100000"],
    ["gpt2.py", "ROMEO:", *SHAKESPEARE, "-1", "--temperature", "1"],
    ["gpt2_pico.py", "ROMEO:", *SHAKESPEARE, "200"],
    ["batch.py", "models/shakespeare/merges.txt", *SHAKESPEARE, "200"],
    ["batch.py", "-", *SHAKESPEARE, "5"],  # waits for a line, in vain
]


@posix
def test_ctrl_c_at_any_moment_is_130_and_one_line_at_most():
    rng, n = random.Random(0), int(os.environ.get("INTERRUPTS", len(LONG_RUNS)))

    def one(script, args, seconds):
        pipe = subprocess.PIPE
        args = [sys.executable, "-c", INTERRUPT, str(seconds), str(ROOT / script), *args]
        with subprocess.Popen(
            args, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=default_handler
        ) as process:
            with ThreadPoolExecutor(1) as pool:
                errors = pool.submit(process.stderr.read)
                process.stdout.read()
                status, lines = process.wait(60), errors.result().decode().splitlines()
        lines = [line for line in lines if "longer than the context" not in line]
        return None if status == 130 and lines in ([], [""]) else (script, seconds, status, lines)

    with ThreadPoolExecutor(2) as pool:
        runs = [LONG_RUNS[i % len(LONG_RUNS)] for i in range(n)]
        done = [pool.submit(one, script, args, rng.uniform(0, 0.5)) for script, *args in runs]
        assert [future.result() for future in done if future.result()] == []


SESSIONS = {
    "python -i": [],
    "IPython": ["-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor"],
}


@posix
@pytest.mark.parametrize("session", SESSIONS)
def test_ctrl_c_in_a_session_ends_the_command_and_keeps_the_variables(
    session, models_dir, tmp_path
):
    options = SESSIONS[session]
    python, *run = command("gpt2.py", "low", "--n_tokens_to_generate", -1)
    run += map(str, model_options(models_dir))
    if options:
        pytest.importorskip("IPython")
        args, typed = options, f"answer = 41\n%run {' '.join(run)}\n"
    else:  # the program's own variables are those of the session
        (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.answer = 41")
        args, typed = ["-i", *run], ""
    env = {**os.environ, "IPYTHONDIR": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [python, *args],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=env,
        bufsize=0,
        preexec_fn=default_handler,
    ) as process:
        process.stdin.write(typed.encode())
        n_seen = 0
        while n_seen < 200:  # the completion has begun
            data = os.read(process.stdout.fileno(), 1000)
            assert data
            n_seen += len(data)
        process.send_signal(signal.SIGINT)
        process.stdin.write(b"print('alive', answer + 1, generate.__name__)\nexit()\n")
        out, err = process.communicate(timeout=60)
    assert b"alive 42 generate" in out and process.returncode == 0
    assert b"SystemExit: 130" in out + err and b"KeyboardInterrupt" not in out + err


# A completion

TEXT = "naïve 日本 😀 the end, the\nend. aab aaab 日日本"


@pytest.fixture(scope="module")
def encoder():
    return learn_bpe([TEXT, TEXT, "the end"], 280)


def ids_of_random_pieces(text, encoder, seed):
    """Return ids of pieces of a text's bytes, which may end inside a character."""
    data, rng, ids = text.encode(), random.Random(seed), []
    while data:
        n = rng.randint(1, 6)
        ids += encoder.encode_bytes(data[:n])
        data = data[n:]
    return ids


def follow(ids, encoder, eos_token_ids=(), **options):
    """Return the Completion, and the pieces of text that it gave, one for each id and the rest."""
    completion, shown = cli.Completion(encoder, eos_token_ids, **options), []
    for id_ in ids:
        shown.append(completion.add(id_))
        if completion.ended != "length":
            break
    return completion, [*shown, completion.rest()]


def text_until_stop(text, stops):
    """The definition: the first stop to be complete ends the text, the longest if there are two."""
    for n in range(len(text) + 1):
        found = [stop for stop in stops if text[:n].endswith(stop)]
        if found:
            return text[: n - max(map(len, found))], True
    return text, False


STOPS = [
    [],
    ["the"],
    [" end"],
    ["e"],
    ["本"],
    ["\nend"],
    ["aab", "aaab"],
    ["aaab", "aab"],
    ["the", "h"],
    ["nowhere"],
    ["the end. no", "日本 😀 the", "end"],
    ["naïve"],
    ["日日"],
]


@pytest.mark.parametrize("stops", STOPS)
def test_a_stop_ends_the_text_however_tokens_divide_it(stops, encoder):
    expected, ends = text_until_stop(TEXT, stops)
    for seed in range(30):
        ids = ids_of_random_pieces(TEXT, encoder, seed)
        completion, shown = follow(ids, encoder, stops=stops)
        assert "".join(shown) == expected
        assert completion.ended == ("stop" if ends else "length")
        assert completion.ids == ids[: len(completion.ids)]
        kept = encoder.decode_bytes(completion.ids)
        assert expected.encode().startswith(kept)  # without the token in which the stop starts
        if ends:
            following = encoder.decode_bytes(ids[: len(completion.ids) + 1])
            assert len(following) > len(expected.encode())


def test_text_is_shown_as_soon_as_it_is_certain(encoder):
    ids = [encoder.encode_bytes(bytes([byte]))[0] for byte in "a日the thx".encode()]
    _, shown = follow(ids, encoder, stops=["the end"])
    assert shown == ["a", "", "", "日", "", "", "", "", "the ", "", "thx", ""]
    _, shown = follow(ids[:-1], encoder, stops=["the end"])
    assert shown[-1] == "th" and "".join(shown) == "a日the th"


def test_an_end_of_text_is_neither_text_nor_id(encoder):
    ids = encoder.encode("the end")
    completion, shown = follow(
        [*ids, encoder.eot, *ids], encoder, [5, encoder.eot], stops=["end, "]
    )
    assert ("".join(shown), completion.ids) == ("the end", ids)
    assert completion.ended == "end of text"


def test_a_stop_removes_its_log_probabilities(encoder):
    completion = cli.Completion(encoder, [], ["!!"])
    ids = [*encoder.encode("the"), *encoder.encode("!"), *encoder.encode("!")]
    for i, id_ in enumerate(ids):
        completion.add(id_, -i)
    assert completion.ended == "stop" and completion.ids == ids[:-2]
    assert completion.log_probabilities == [-i for i in range(len(ids) - 2)]


def test_json_tells_whether_the_bytes_are_valid_utf8(encoder):
    completion, _ = follow(ids_of_random_pieces("日\n", encoder, 0), encoder)
    line = completion.as_json(prompt="the", seed=None)
    assert "\n" not in line and "日" in line
    assert json.loads(line) == {
        "prompt": "the",
        "seed": None,
        "text": "日\n",
        "ids": completion.ids,
        "log_probabilities": [None] * len(completion.ids),
        "ended": "length",
        "valid_utf8": True,
    }
    half, _ = follow(encoder.encode_bytes("日".encode()[:2]), encoder)
    found = json.loads(half.as_json())
    assert found["text"] == "\ufffd" and found["valid_utf8"] is False
    spelled, _ = follow(encoder.encode("\ufffd"), encoder)  # as a character it is valid
    assert json.loads(spelled.as_json())["valid_utf8"] is True


def test_a_long_prompt_loses_its_beginning_and_an_empty_one_is_an_end_of_text(encoder, capsys):
    hparams = {"n_ctx": 4, "eos_token_ids": [3, 5]}
    ids = encoder.encode("the end, the end.")
    assert cli.prompt_ids("the end, the end.", encoder, hparams) == ids[-4:] != ids[:4]
    assert f"the prompt has {len(ids)} tokens; the model sees the last 4" in capsys.readouterr().err
    assert cli.prompt_ids("", encoder, hparams) == [3]
    with pytest.raises(ValueError, match="line 7 is empty"):
        cli.prompt_ids("", encoder, {**hparams, "eos_token_ids": []}, name="line 7")
    assert capsys.readouterr() == ("", "")


def test_a_stop_that_is_not_utf8_is_its_bytes(small):
    """Python reads the byte ff of a command line as the surrogate dcff."""
    completion = cli.Completion(small, (), ["\udcff"])
    assert completion.stops == [b"\xff"]
    with pytest.raises(ValueError, match="surrogates"):
        cli.Completion(small, (), ["\ud800"])
