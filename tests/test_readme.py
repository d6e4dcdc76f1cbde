"""What README says is what happens: its commands, its output, its map; the docs' numbers."""

import os
import re
import shlex
import subprocess
import sys

import make_options
import numpy as np
import pytest
from conftest import ROOT

import gpt2
from utils import load_encoder_hparams_and_params

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]


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


def between(marker):
    return re.search(rf"<!-- {marker} -->\n(.*?)<!-- end -->", README, re.DOTALL)[1]


@pytest.fixture(scope="module")
def shipped():
    return load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))


def test_first_command_prints_what_readme_shows():
    first = shlex.split(commands()[0].split("&& python ")[1])
    assert first[:4] == ["gpt2.py", "ROMEO:", "--model_size", "shakespeare"]
    assert f"```\n{run(*first)}```\n" == between("romeo")
    assert len(between("romeo")) > 100


def test_the_numbers_on_the_way_are_those_of_the_model(shipped):
    encoder, hparams, params = shipped
    share = r'"(.+?)" ([\d.]+) %'
    prompt, ids, *likely, best = re.fullmatch(
        r'> "(.+?)" → the ids ([\d ]+) → 6 rows of 256 numbers, through 6 blocks →\n'
        rf'> 2,048 logits → {share}, {share}, {share} … → "(.+?)"\n',
        between("trace"),
    ).groups()
    assert encoder.encode(prompt) == [*map(int, ids.split())] and len(ids.split()) == 6
    assert (hparams["n_embd"], hparams["n_layer"], hparams["n_vocab"]) == (256, 6, 2048)
    logits = gpt2.gpt2(encoder.encode(prompt), **params, hparams=hparams)
    p = gpt2.probabilities(logits[-1])
    found = [(encoder.decode([i]), f"{100 * p[i]:.1f}") for i in np.argsort(-p)[:3].tolist()]
    assert found == list(zip(likely[::2], likely[1::2])) and best == likely[0]


def test_python_example_prints_what_the_command_does():
    def completed(name):
        return run("gpt2.py", name, "--model_size", "shakespeare").removesuffix("\n")

    (example,) = blocks("python")
    texts = "\n\n".join(name + completed(name) for name in ("JULIET:", "Nurse:"))
    assert run("-c", example) == f"{completed('ROMEO:')}\n\n{texts}\n"


def test_pico_command_runs():
    (command,) = [line for line in commands() if "gpt2_pico.py" in line]
    assert run(*shlex.split(command)[1:]).startswith(" be")


@pytest.mark.parametrize(
    "script", ["gpt2.py", "gpt2_pico.py", "batch.py", "evaluate.py", "explain.py", "train.py"]
)
def test_every_option_shown_is_in_help(script):
    known = set(re.findall(r"--\w+", run(script, "--help")))
    used = {
        word
        for line in commands()
        if f"python {script}" in line
        for word in re.findall(r"--\w+", line.split(f"python {script}")[1])
    }
    assert used and used <= known


def test_the_table_of_options_is_that_of_the_commands():
    document = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert document == make_options.document(), "python tests/make_options.py writes it anew"
    for script in "gpt2.py", "batch.py", "evaluate.py", "explain.py", "train.py":
        known = set(re.findall(r"--\w+", run(script, "--help"))) - {"--help"}
        section = document.split(f"\n## {script}\n")[1].split("\n## ")[0]
        assert known == set(re.findall(r"^\| `(--\w+)", section, re.MULTILINE)), script


def test_the_map_names_every_file():
    shown = set(re.findall(r"\]\(([\w./-]+)\)", README))
    assert all((ROOT / name).exists() for name in shown)
    assert {path.name for path in ROOT.glob("*.py")} <= shown


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", x).lower().replace(" ", "-") for x in headings]


def test_readme_is_short():
    assert len(README.splitlines()) < 150


def test_requirements_are_the_four_and_pyproject_names_the_same():
    lines = (ROOT / "requirements.txt").read_text().split()
    names = [re.findall(r"[a-z]+", line)[0] for line in lines]
    assert sorted(names) == ["numpy", "regex", "requests", "tqdm"]
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    named = re.search(r"^dependencies = \[(.*)\]", project, re.MULTILINE)[1]
    assert re.findall(r'"(.+?)"', named) == lines
    assert 'requires-python = ">=3.10"' in project and "Python 3.10 or newer" in README


@pytest.mark.parametrize("page", ["docs/gradients.md"])
def test_python_in_the_docs_prints_what_stands_below_it(page):
    done = subprocess.run(
        [sys.executable, "lesson/run.py", page], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
