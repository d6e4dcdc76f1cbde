"""Ctrl-C at any moment, from a command's first line on. INTERRUPTS=400 tries as many of them."""

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT

import startup

N = int(os.environ.get("INTERRUPTS", 16))
SHAKESPEARE = "--model_size", "shakespeare"
COMMANDS = [
    ["gpt2.py", "ROMEO:", *SHAKESPEARE, "--n_tokens_to_generate", "-1"],
    ["gpt2.py", "ROMEO:", *SHAKESPEARE, "--n_tokens_to_generate", "-1", "--temperature", "1"],
    ["gpt2_pico.py", "ROMEO:", *SHAKESPEARE, "--n_tokens_to_generate", "100"],
    ["evaluate.py", "models/shakespeare/merges.txt", *SHAKESPEARE],
    ["train.py", "models/shakespeare/merges.txt", "--iterations", "500", "--out"],
]
# Compiles a script, says that it begins, and runs it: as Python does, but for the second.
BEGIN = """
import os, sys
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
code = compile(open(sys.argv[0], encoding="utf-8").read(), sys.argv[0], "exec")
os.write(1, b"begins\\n")
exec(code)
"""
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def hear():
    """The tests may run in the background, where a shell lets nobody hear the signal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt(args, seconds, n_bytes=7):
    """Run a command, and interrupt it so long after so much output; -> status, stderr"""
    script, *args = args
    args = [sys.executable, "-c", BEGIN, str(ROOT / script), *args]
    pipe = subprocess.PIPE
    process = subprocess.Popen(args, cwd=ROOT, stdout=pipe, stderr=pipe, preexec_fn=hear)
    seen = b""
    while len(seen) < n_bytes:
        seen += os.read(process.stdout.fileno(), 1)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    return process.wait(60), process.communicate()[1]


def ended_well(script, status, said):
    """130 and a line at most, beside those of bars."""
    lines = [line for line in said.decode().split("\n") if line.strip()]
    lines = [line for line in lines if "|" not in line and "step " not in line]
    in_time = status == 0 and script == "evaluate.py"  # it was ready sooner
    return in_time or (status == 130 and len(lines) <= 1)


def test_an_interrupt_is_never_a_traceback_nor_lost(tmp_path):
    rng = random.Random()

    def one(i):
        args = COMMANDS[i % len(COMMANDS)]
        args = [*args, str(tmp_path / str(i))] if args[0] == "train.py" else args
        seconds = rng.uniform(0, 1)
        status, said = interrupt(args, seconds)
        ended = ended_well(args[0], status, said) and b"Traceback" not in said
        return None if ended else (args[0], seconds, status, said)

    with ThreadPoolExecutor(2) as pool:
        assert [odd for odd in pool.map(one, range(N)) if odd] == []


def test_an_interrupt_ends_a_completion():
    endless = ["gpt2.py", "ROMEO:", "--n_tokens_to_generate", "-1", *SHAKESPEARE]
    for _ in range(N // 4):
        assert interrupt(endless, random.uniform(0, 0.3), n_bytes=20)[0] == 130


def test_importing_a_command_changes_no_handler():
    code = "import signal, gpt2, evaluate, train; print(signal.getsignal(signal.SIGINT).__name__)"
    args = [sys.executable, "-c", code]
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, preexec_fn=hear)
    assert (done.stdout, done.stderr) == ("default_int_handler\n", "")


def test_a_part_can_be_interrupted():
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        startup.begin()
        assert signal.getsignal(signal.SIGINT) is startup.end_at_once
        with pytest.raises(KeyboardInterrupt), startup.interruptible():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is startup.end_at_once
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # in the background of a shell
        startup.begin()
        with startup.interruptible():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
