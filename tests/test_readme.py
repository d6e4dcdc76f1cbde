"""What README says is what happens: its commands, its output, its map, the model that ships."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

import gpt2_pico
from utils import load_encoder_hparams_and_params

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHIPPED = ROOT / "models" / "shakespeare"


def blocks(language=""):
    found = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def commands():
    joined = "\n".join(blocks()).replace("\\\n", " ")
    return [line for line in joined.split("\n") if "python " in line]


def run(*args):
    done = subprocess.run(
        [sys.executable, *args],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().replace("\r\n", "\n")


def promised_output():
    return re.search(r"<!-- romeo -->\n```\n(.*?)```\n<!-- end -->", README, re.DOTALL)[1]


def test_first_command_prints_what_readme_shows():
    first = shlex.split(commands()[0].split("&& python ")[1])
    assert first == ["gpt2.py", "ROMEO:", "--model_size", "shakespeare"]
    assert run(*first) == promised_output()
    assert len(promised_output()) > 40


def test_the_shipped_model_is_what_the_formula_says():
    encoder, hparams, params = load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))
    ids = gpt2_pico.generate(
        encoder.encode("ROMEO:"), params, hparams["n_head"], 40, eos=hparams["eos_token_id"]
    )
    assert encoder.decode(list(ids)) + "\n" == promised_output()
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 12e6


def test_python_example_runs():
    (example,) = blocks("python")
    assert run("-c", example) + "\n" == promised_output()


@pytest.mark.parametrize("script", ["gpt2.py", "train.py"])
def test_every_option_shown_is_in_help(script):
    known = set(re.findall(r"--\w+", run(script, "--help")))
    used = {
        word
        for line in commands()
        if script in line
        for word in re.findall(r"--\w+", line.split(script)[1])
    }
    assert used and used <= known
    if script == "gpt2.py":
        table = README.split("| option |")[1].split("\n\n")[0]
        assert set(re.findall(r"--\w+", table)) == known - {"--help"}


def test_the_map_names_every_file():
    shown = set(re.findall(r"\]\(([\w./-]+)\)", README))
    assert all((ROOT / name).exists() for name in shown)
    assert {path.name for path in ROOT.glob("*.py")} <= shown


def test_requirements_are_the_four():
    names = re.findall(r"^[a-z]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert sorted(names) == ["numpy", "regex", "requests", "tqdm"]
