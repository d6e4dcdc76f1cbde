"""What the commands share: numbers of options, sampling, and the threads of the BLAS."""

import argparse
import os
import subprocess
import sys

import pytest
from conftest import ROOT

import command
import gpt2


def test_a_number_is_of_its_kind_and_in_its_range():
    share, whole = command.number(float, 0, 1), command.number(int, 1)
    assert share("0") == 0 and share("1") == 1 and share("1e-3") == 0.001
    assert whole("1") == 1 and whole("10") == 10
    for parse, text in (
        (share, "1.1"),
        (share, "-0.1"),
        (share, "nan"),
        (share, "inf"),
        (whole, "0"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=f"^{text} is not "):
            parse(text)
    for parse, text in (share, "one"), (whole, "1.5"), (whole, ""):
        with pytest.raises(ValueError):
            parse(text)


def test_options_of_sampling_are_those_of_the_sampler():
    parser = argparse.ArgumentParser()
    command.sampling_options(parser)
    for options, temperature in ("", 0), ("--seed 0", 1), ("--top_p 0", 1), ("--temperature 0", 0):
        args = parser.parse_args(options.split())
        assert gpt2.Sampler(**command.sampling(args)).temperature == temperature


def test_a_blas_gets_one_thread_unless_the_environment_says_otherwise():
    names = "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"
    code = "import startup, os; startup.begin(one_thread=True)"
    code += f"; print(*(os.environ[n] for n in {names}))"
    environment = {name: x for name, x in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**environment, "MKL_NUM_THREADS": "3"},
    )
    assert (done.stdout, done.stderr) == ("1 3 1 1\n", "")


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_what_computes_on_threads_sets_that_before_numpy_comes(script):
    """Run as a command, up to the first import of numpy, each says how many threads there are."""
    code = (
        "import os, runpy, sys\n"
        "class Watch:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'numpy':\n"
        "            sys.exit(os.environ.get('OPENBLAS_NUM_THREADS', 'none'))\n"
        "sys.meta_path.insert(0, Watch)\n"
        f"runpy.run_path({script!r}, run_name='__main__')"
    )
    environment = {name: x for name, x in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.stderr == "1\n"


def test_what_goes_wrong_is_told_by_the_status(monkeypatch, capsys):
    def run(*errors):
        def work(args):
            for error in errors:
                raise error

        return command.run(argparse.ArgumentParser(prog="it.py"), work, [])

    monkeypatch.setattr(sys, "stdin", None)  # closed
    assert run() == 0
    for error, status, said in (
        (ValueError("odd"), 1, "it.py: error: odd\n"),
        (OSError("gone"), 1, "it.py: error: gone\n"),
        (KeyboardInterrupt("stopped"), 130, "\nstopped\n"),
    ):
        assert run(error) == status
        assert capsys.readouterr() == ("", said)
    assert run(MemoryError("14 TiB")) == 1
    assert capsys.readouterr().err.startswith("it.py: error: not enough memory (14 TiB): ")
    with pytest.raises(SystemExit, match="2"):
        run(command.WrongUsage("what"))
    assert capsys.readouterr().err.endswith("it.py: error: what\n")
