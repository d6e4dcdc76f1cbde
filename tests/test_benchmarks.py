"""The benchmarks: they import what exists, and README.md and docs/speed.md show their results."""

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
OTHERS = {  # the modules of other programs, and one that older checkouts of this project have
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
    """Yield (module, name) for everything that a script imports from the project's modules."""
    scripts = {script.stem for script in BENCHMARKS.glob("*.py")} - {"encoder"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if node.module.split(".")[0] not in OTHERS | scripts | sys.stdlib_module_names:
                yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_imports_what_exists(path):
    pytest.importorskip("fast")
    for module, name in imports(path):
        found = importlib.import_module(module)
        assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), name


@pytest.mark.parametrize(
    "script", ["peers", "many_texts", "train_step", "before_after", "tricks", "published"]
)
def test_a_benchmark_has_a_help_text(script):
    if script == "tricks":
        pytest.importorskip("fast")
    command = [sys.executable, BENCHMARKS / f"{script}.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script}.py")


def test_the_tables_of_the_speed_page_are_the_results():
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
    columns = "prompt of 512 tokens, ms", "whole process, s", "peak memory, MiB"
    for name, cells in shown.items():
        row = dict(zip(head, repeats[name]))
        last = [row[column] for column in columns]
        assert cells == [row["tokens/s (200 tokens)"], other[name][1], *last]


def numbers(text):
    """Return {first cell: [number or None, ...]} for the rows of a table."""

    def number(cell):
        found = re.match(r"[\d.,]+", cell)
        return float(found[0].replace(",", "")) if found else None

    return {name: [*map(number, cells)] for name, cells in rows(text).items()}


def test_the_prose_of_the_speed_page_follows_from_the_tables():
    prose = " ".join(re.sub("<!-- .*?<!-- end -->", "", SPEED, flags=re.DOTALL).split())
    repeats, other = (numbers(table) for table in RESULTS["peers"].split("\n\n")[:2])
    ours, plain, reading = (
        "this project",
        "this project, without drafts",
        "reading all weights once",
    )
    ratios = [table[plain][i] / table[reading][i] for table in (repeats, other) for i in (0, 1)]
    assert f"{100 * min(ratios):.0f} to {100 * max(ratios):.0f} percent of the speed" in prose
    faster = [table[ours][i] / table[plain][i] for table in (repeats, other) for i in (0, 1)]
    phrase = "{:.1f} times as fast (40 tokens) or {:.1f} times as fast (200 tokens)"
    assert phrase.format(*faster[:2]) in prose
    assert f"{faster[2]:.2f} and {faster[3]:.2f} times" in prose

    passes = numbers(RESULTS["passes"])
    start, end = passes["token at position 1"], passes["token at position 990"]
    assert f"{100 * start[1] - 100:.0f} percent longer than reading" in prose
    assert f"which adds {end[0] - start[0]:.1f} ms at position 990" in prose
    assert f"take {passes['8'][1]:.1f} times as long" in prose

    many = numbers(RESULTS["many_texts"])
    assert f"64 texts at once are {many['64'][0] / many['one by one'][0]:.0f} times" in prose
    more = [100 * many[n][2] / many[n][0] - 100 for n in ("1", "2", "4")]
    assert f"F32 is {min(more):.0f} to {max(more):.0f} percent faster" in prose

    steps = [row for name, row in numbers(RESULTS["train_step"]).items() if name[:1].isdigit()]
    for column, whose in (0, "our step"), (1, "PyTorch's"):
        one, two, three = (f"{100 * row[3] / row[column]:.0f}" for row in steps)
        assert f"{one}, {two} and {three} percent of {whose}" in prose
    ratios = [row[0] / row[1] for row in steps]
    assert f"is {min(ratios):.1f} to {max(ratios):.1f} times as fast" in prose

    for name, phrase in ("transformers", "of our time"), ("CTranslate2 float32", "One reason"):
        less = [repeats[name][i] / repeats[ours][i] for i in (3, 4, 5)]
        assert re.search(rf"{min(less):.2f} to {max(less):.2f}\.? {phrase}", prose), name
    tricks = numbers(RESULTS["tricks"])
    ms = tricks["attention of 1000 tokens, heads on all cores"][1]
    ms += tricks["gelu of 1000 tokens, a few rows at a time"][1]
    part = 12 * ms / repeats[ours][5]
    assert "take a fifth of the time of a prompt" in prose and 0.18 < part < 0.22
    bits = [other[name][1] / other[ours][1] for name in ("llama.cpp F16", "llama.cpp Q8_0")]
    bits.append(other["CTranslate2 int8"][1] / other[ours][1])
    assert "are {:.1f}, {:.1f} and {:.1f} times as fast".format(*bits) in prose
