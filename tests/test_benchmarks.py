"""The benchmarks: what they import exists, and the pages show the results that lie in the files."""

import ast
import importlib
import re
import subprocess
import sys

import pytest
from conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"
RESULTS = {path.stem: path.read_text(encoding="utf-8") for path in BENCHMARKS.glob("results/*.md")}
README, SPEED = (
    (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/speed.md")
)
OTHERS = {  # programs to compare with, and a module of checkouts from before fast.py
    *("torch", "transformers", "ctranslate2", "llama_cpp", "gguf", "tiktoken", "tokenizers"),
    *("matplotlib", "drafts"),
}


def between_markers(page):
    return dict(re.findall(r"^<!-- (\w+) -->\n(.*?)\n<!-- end -->", page, re.DOTALL | re.MULTILINE))


def rows(text):
    """Return {first cell: the other cells} of a Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: others for name, *others in cells}


def imports(path):
    """Yield (module, name) for everything that a script imports from a module of ours."""
    scripts = {script.stem for script in BENCHMARKS.glob("*.py")} - {"encoder"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if node.module.split(".")[0] not in OTHERS | scripts | sys.stdlib_module_names:
                yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_exists(path):
    pytest.importorskip("fast")
    for module, name in imports(path):
        found = importlib.import_module(module)
        assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), name


@pytest.mark.parametrize(
    "script", ["peers", "many_texts", "train_step", "before_after", "tricks", "published"]
)
def test_a_benchmark_explains_itself(script):
    if script == "tricks":
        pytest.importorskip("fast")
    command = [sys.executable, BENCHMARKS / f"{script}.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script}.py")


def test_the_tables_of_speed_are_the_results():
    shown = between_markers(SPEED)
    assert shown.keys() == RESULTS.keys()
    for name, table in shown.items():
        lines, machine = RESULTS[name].rstrip("\n").rsplit("\n\n", 1)
        assert table == lines
        assert "cores" in machine and "Python 3" in machine


def test_the_table_of_the_readme_is_part_of_the_results():
    repeats, other = (rows(table) for table in RESULTS["peers"].split("\n\n")[:2])
    head = repeats["124M, text that repeats itself"]
    shown = rows(between_markers(README)["readme"])
    shown.pop("---")
    assert shown.pop("GPT-2 124M")[:2] == [
        "tokens/s, text that repeats itself",
        "tokens/s, text that does not",
    ]
    assert {"this project", "transformers", "reading all weights once"} <= shown.keys()
    for name, cells in shown.items():
        row = dict(zip(head, repeats[name]))
        last = [row[column] for column in ("prompt of 512, ms", "whole process, s", "peak MiB")]
        assert cells == [row["200 tokens, tok/s"], other[name][1], *last]
