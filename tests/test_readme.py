"""README's commands print what it shows, and its links, options and tables are right."""

import os
import re
import shlex
import subprocess
import sys

import make_options
import numpy as np
import pytest
from conftest import ROOT

from utils import load_encoder_hparams_and_params

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]


def blocks(language=""):
    matches = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in matches if name == language]


def commands():
    lines = [*"\n".join(blocks()).split("\n"), *re.findall(r"`([^`\n]+)`", README)]
    return [line for line in lines if "python " in line]


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


@pytest.fixture(scope="module")
def shipped():
    return load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))


def test_first_command_prints_what_readme_shows():
    first = shlex.split(commands()[0].split("&& python ")[1])
    assert first[:4] == ["gpt2.py", "ROMEO:", "--model_size", "shakespeare"]
    assert (first[1] + run(*first)).rstrip() + "\n" == blocks()[1]
    assert len(blocks()[1]) > 100


def broken(old, new, shipped):
    """Return the loss on Hamlet and the text after "ROMEO:" if old is replaced in gpt2_pico.py."""
    encoder, hparams, params = shipped
    source = (ROOT / "gpt2_pico.py").read_text(encoding="utf-8")
    assert source.count(old) == 1
    pico = {"__name__": "gpt2_pico"}
    exec(source.replace(old, new), pico)
    ids = encoder.encode((ROOT / "lesson" / "hamlet.txt").read_text(encoding="utf-8"))
    arguments = {**params, "n_head": hparams["n_head"], "eps": hparams["layer_norm_epsilon"]}
    nats = 0
    for start in range(0, len(ids) - 1, 200):
        targets = ids[start + 1 : start + 201]
        p = pico["softmax"](pico["gpt2"](ids[start : start + len(targets)], **arguments))
        nats -= np.log(p[np.arange(len(targets)), targets]).sum()
    written = pico["generate"](encoder.encode("ROMEO:"), params, hparams, 16)
    return nats / (len(ids) - 1), encoder.decode(list(written)).replace("\n", "⏎")


def test_each_break_costs_and_writes_what_readme_shows(shipped):
    table = README.split("| what the changed model writes after")[1].split("\n\n")[0]
    rows = re.findall(
        r"^\| [\w].+?\| `(.+?)` \| `(.+?)` \| (.+?) \| `(.+?)` \|$", table, re.MULTILINE
    )
    assert len(rows) == 4 == table.count("\n") - 1
    for old, new, loss, written in rows:
        nats, text = broken(old, new, shipped)
        assert nats == pytest.approx(float(loss.strip("*")), abs=0.0011), old
        assert text == written, old


def test_the_unbroken_model_has_the_loss_and_writes_what_readme_says(shipped):
    words = README.replace("\n", " ")
    loss, written = re.search(r"The unbroken model has (.+?) and writes `(.+?)`", words).groups()
    nats, text = broken("import numpy as np", "import numpy as np", shipped)
    assert nats == pytest.approx(float(loss), abs=0.0011)
    assert text == written
    assert f"knows nothing has a loss of {np.log(shipped[1]['n_vocab']):.3f}" in words


def test_python_example_prints_what_the_command_does():
    (example,) = blocks("python")
    assert run("-c", example) == run("gpt2.py", "ROMEO:", "--model_size", "shakespeare")


@pytest.mark.parametrize("script", ["gpt2.py", "batch.py", "evaluate.py", "explain.py", "train.py"])
def test_every_option_shown_is_in_help(script):
    known = set(re.findall(r"--\w+", run(script, "--help")))
    used = {
        word
        for line in commands()
        if f"python {script}" in line
        for word in re.findall(r"--\w+", line.split(f"python {script}")[1])
    }
    assert used and used <= known


def test_docs_options_is_up_to_date():
    document = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert document == make_options.document(), "run: python tests/make_options.py"
    for script in "gpt2.py", "batch.py", "evaluate.py", "explain.py", "train.py":
        known = set(re.findall(r"--\w+", run(script, "--help"))) - {"--help"}
        section = document.split(f"\n## {script}\n")[1].split("\n## ")[0]
        assert known == set(re.findall(r"^\| `(--\w+)", section, re.MULTILINE)), script


def test_the_map_names_every_file():
    links = set(re.findall(r"\]\(([\w./-]+)\)", README))
    assert all((ROOT / name).exists() for name in links)
    assert {path.name for path in ROOT.glob("*.py")} <= links


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_targets_of_links_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", x).lower().replace(" ", "-") for x in headings]


def test_readme_is_short():
    assert len(README.splitlines()) < 150


def test_requirements_are_four_packages_and_pyproject_lists_the_same():
    lines = (ROOT / "requirements.txt").read_text().split()
    names = [re.findall(r"[a-z]+", line)[0] for line in lines]
    assert sorted(names) == ["numpy", "regex", "requests", "tqdm"]
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    named = re.search(r"^dependencies = \[(.*)\]", project, re.MULTILINE)[1]
    assert re.findall(r'"(.+?)"', named) == lines
    assert 'requires-python = ">=3.10"' in project and "Python 3.10 or newer" in README


@pytest.mark.parametrize("page", ["docs/gradients.md"])
def test_python_in_the_docs_prints_the_output_below_it(page):
    done = subprocess.run(
        [sys.executable, "lesson/run.py", page], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
