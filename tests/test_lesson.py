"""The lesson: what it prints, quotes and draws; its arrays beside transformers'; its notebook."""

import ast
import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import GOLDEN, ROOT

sys.path.insert(0, str(ROOT / "lesson"))

import run
from notebook import notebook_of

LESSON = ROOT / "lesson" / "README.md"
TEXT = LESSON.read_text(encoding="utf-8")
PARTS = [*run.PART.finditer(TEXT)]
PICTURES = ROOT / "lesson" / "pictures"
GOLDEN_ARRAYS = np.load(GOLDEN / "lesson.npz")
RUN = """
import pickle, sys
from pathlib import Path
sys.path[:0] = ["lesson", "."]
import run
text, variables = Path("lesson/README.md").read_text(encoding="utf-8"), {}
results = [result for _, result in run.run(text, "README.md", variables)]
arrays = {name: variables[name] for name in sys.argv[2:]}
Path(sys.argv[1]).write_bytes(pickle.dumps((results, arrays)))
"""


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """What belongs to each part, and the arrays in the end. On one thread, which has to be said
    before NumPy is imported: hence a process of its own."""
    out = tmp_path_factory.mktemp("lesson") / "results"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("GPT2_MODEL", None)
    args = [sys.executable, "-c", RUN, str(out), *GOLDEN_ARRAYS]
    subprocess.run(args, cwd=ROOT, env=environment, check=True, timeout=600)
    results, arrays = pickle.loads(out.read_bytes())
    return list(zip(PARTS, results, strict=True)), arrays


def test_all_that_is_printed_quoted_and_drawn_holds(lesson):
    assert "\n".join(run.faults(LESSON, lesson[0])) == ""


def test_steps_are_twenty_and_each_shows_runs_breaks_and_asks():
    steps = re.split(r"^## (?=\d)", TEXT, flags=re.MULTILINE)[1:]
    assert [int(step.split()[0]) for step in steps] == [*range(1, 21)]
    for step in steps:
        for part in "The problem", "The code", "Run it", "Break it", "Try it":
            assert f"**{part}" in step, (part, step[:40])
        assert "<details><summary>Answer</summary>\n\n" in step, step[:40]
        assert "```python" in step.split("<details>")[1].split("</details>")[0], step[:40]


def test_files_name_the_steps_that_quote_them_or_lead_to_them():
    steps = re.split(r"^## \d+ ", TEXT, flags=re.MULTILINE)
    named = {}
    folders = "model_files", "training"
    for path in [*ROOT.glob("*.py"), *(x for name in folders for x in ROOT.glob(f"{name}/*.py"))]:
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if found := re.search(r"Lesson: steps? (\d+)(?: to (\d+))?(?: and (\d+))?\.", doc):
            first, last, other = (int(number or 0) for number in found.groups())
            named[path.stem] = {*range(first, max(first, last) + 1), other}
            for step in {first, last, other} - {0}:
                assert re.search(rf"\b{path.stem}\b", steps[step]), (path, step)
    for step, text in enumerate(steps):
        pattern = rf"^<!-- quote (?:(?:{'|'.join(folders)})\.)?(\w+)"
        for quoted in re.findall(pattern, text, re.MULTILINE):
            assert step in named[quoted], (quoted, step)
    assert {"gpt2_pico", "gpt2", "encoder", "backward", "train", "fast"} <= set(named)


def test_the_table_of_contents_leads_to_every_step():
    """By the names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", TEXT, flags=re.S | re.M), re.M)
    names = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    targets = re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert set(targets) <= set(names) and len(targets) == len(set(targets))
    assert {name for name in names if name[0].isdigit()} <= set(targets)


@pytest.mark.parametrize("name", GOLDEN_ARRAYS)
def test_arrays_are_those_of_transformers(lesson, name):
    np.testing.assert_allclose(lesson[1][name], GOLDEN_ARRAYS[name], rtol=0, atol=1e-4)


def test_any_number_written_otherwise_is_found(lesson):
    n_numbers = 0
    for part, result in lesson[0]:
        for number in re.finditer(r"\d+(\.\d+)?", part["output"] or ""):
            digits = len((number[1] or ".")[1:])
            other = f"{float(number[0]) + 3 * 10.0**-digits:.{digits}f}"
            changed = part["output"][: number.start()] + other + part["output"][number.end() :]
            assert run.differ(changed, result), number[0]
            n_numbers += 1
    assert n_numbers > 500


def test_decimals_in_the_prose_are_among_what_is_printed():
    """So a sentence cannot keep a number that the model has left."""
    printed = " ".join(part["output"] or "" for part in PARTS).replace(",", "")
    found = " ".join(printed.split())
    prose = re.sub(r"^```.*?^```", "", TEXT, flags=re.DOTALL | re.MULTILINE)
    given = {"154,998", "50,257", "2,200", "0.00001", "0.9"}  # facts and settings
    numbers = set(re.findall(r"\d+\.\d+|\d+,\d+", prose)) - given
    assert [x for x in sorted(numbers) if x.replace(",", "") not in found] == []
    assert len(numbers) > 4


def test_the_model_was_not_trained_on_the_passage(shared):
    trained_on = (shared / "data" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    lines = (ROOT / "lesson" / "hamlet.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert len(lines) == 35 and not any(line in trained_on for line in lines)


def test_a_word_written_otherwise_is_found_and_a_last_digit_is_not():
    assert run.differ("True\n", "False\n") and run.differ("", "1\n") and run.differ("1.0\n", "1\n")
    assert run.differ("0.12", "0.123") and run.differ("[1, 2]", "[1, 3]")
    assert run.differ("0.4190", "0.4192") and not run.differ("0.4190", "0.4191")
    assert not run.differ("[-0.0000  1.0000]", "[ 0.0000  1.0000]")


def test_every_line_of_the_model_is_quoted(tmp_path, monkeypatch):
    """From the first function to the command: write any of them otherwise, and a quote differs."""
    lines = (ROOT / "gpt2_pico.py").read_text(encoding="utf-8").split("\n")
    first = next(i for i, line in enumerate(lines) if line.startswith("# Stands between"))
    last = max(i for i, line in enumerate(lines) if line == 'if __name__ == "__main__":')
    quotes = [part for part in PARTS if (part["quote"] or "").startswith("gpt2_pico")]
    monkeypatch.setattr(run, "ROOT", tmp_path)
    for i in range(first, last):
        if lines[i]:
            changed = [*lines[:i], lines[i] + "  # another", *lines[i + 1 :]]
            (tmp_path / "gpt2_pico.py").write_text("\n".join(changed), encoding="utf-8")
            assert any(run.quote(part["quote"]) != part["source"] for part in quotes), lines[i]
    assert last - first > 60


def test_any_plotted_number_written_otherwise_is_found(lesson):
    plotted, drawn = run.read_plotted(PICTURES), 0
    for part, values in lesson[0]:
        if part["picture"]:
            entry = plotted.pop(part["picture"])["values"]
            for path in places(entry)[::29]:
                changed = json.loads(json.dumps(entry))
                place = changed
                for i in path[:-1]:
                    place = place[i]
                x = place[path[-1]]
                place[path[-1]] = (
                    x + "x" if isinstance(x, str) else x + 1e-2 if isinstance(x, float) else x + 1
                )
                assert not run.near(changed, values), (part["picture"], path)
                drawn += 1
    assert plotted == {} and drawn > 200


def places(values):
    """The paths to all numbers and texts in nested lists."""
    if not isinstance(values, list):
        return [[]]
    return [[i, *path] for i, x in enumerate(values) for path in places(x)]


def test_a_picture_that_was_not_drawn_so_is_found(tmp_path):
    for path in PICTURES / "best.svg", PICTURES / "plotted.json":
        (tmp_path / path.name).write_bytes(path.read_bytes())
    values = run.read_plotted(PICTURES)["best"]["values"]
    assert run.picture_fault(tmp_path, "best", values) == ""
    assert "no picture heads" in run.picture_fault(tmp_path, "heads", values)
    assert "best shows" in run.picture_fault(tmp_path, "best", [values[0], values[1][1:]])
    svg = (tmp_path / "best.svg").read_text(encoding="utf-8")
    (tmp_path / "best.svg").write_text(svg.replace("L 1", "L 2", 1), encoding="utf-8")
    assert "not what was drawn" in run.picture_fault(tmp_path, "best", values)


def test_pictures_are_small_readable_on_a_dark_page_and_say_what_they_show():
    names = {part["picture"] for part in PARTS if part["picture"]}
    assert {path.stem for path in PICTURES.glob("*.svg")} == names and len(names) > 10
    for part in PARTS:
        if part["picture"]:
            alt, target = re.fullmatch(r"!\[(.+)\]\((.+)\)", part["image"]).groups()
            assert target == f"pictures/{part['picture']}.svg" and len(alt) > 30
            svg = (LESSON.parent / target).read_text(encoding="utf-8")
            assert len(svg) < 120_000 and "fill: #ffffff" in svg.split("</g>")[0]
            assert not re.search(
                r"<text|<dc:date>|Matplotlib v|https?://(?!www.w3.org|purl|creative)", svg
            )


def test_writing_puts_in_what_is_printed_quoted_and_drawn(tmp_path):
    """A page with nothing below its fences, as someone writes it; then it holds."""
    page = tmp_path / "page.md"
    empty = "<!-- quote gpt2_pico.linear -->\n```python\n```\n"
    page.write_text(
        "# A\n\n```python\nx = [0.5, 2]\nprint(x)\n```\n\n<!-- picture best: ['a', 'b'], x -->\n"
        f"![two bars](pictures/best.svg)\n\n{empty}\n```python\nx.pop()\n```\n\nend\n",
        encoding="utf-8",
    )
    page.write_text(
        page.read_text()
        .replace("['a', 'b'], x", "words, x")
        .replace("x = [", "words = ['a', 'b']\nx = [")
    )
    command = [sys.executable, str(ROOT / "lesson" / "run.py"), str(page)]
    assert subprocess.run(command, capture_output=True).returncode == 1
    subprocess.run([*command, "--write"], check=True, cwd=tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "print(x)\n```\n\n```\n[0.5, 2]\n```\n" in text
    assert "return x @ w + b\n```\n" in text and "x.pop()\n```\n\nend\n" in text
    assert (tmp_path / "pictures" / "best.svg").exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, f"{page}: all holds\n")
    page.write_text(text.replace("[0.5, 2]\n```", "[0.7, 2]\n```"), encoding="utf-8")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and f"{page}:3: written\n[0.7, 2]\nprinted" in done.stderr


def test_any_other_model_can_be_shown(models_dir):
    """A tiny one: other sizes everywhere, a context of 32. Nothing is compared, nothing written."""
    environment = {
        **os.environ,
        "GPT2_MODEL": str(models_dir / "tiny"),
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, str(ROOT / "lesson" / "run.py")]
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    text = done.stdout.decode("utf-8").replace("\r\n", "\n")
    assert "wte.weight             [260, 16] " in text and text.startswith(TEXT[:100])
    assert LESSON.read_text(encoding="utf-8") == TEXT
    done = subprocess.run([*command, "--write"], capture_output=True, env=environment)
    assert done.returncode == 2 and b"unset GPT2_MODEL" in done.stderr


# The notebook


@pytest.fixture(scope="module")
def book(lesson, tmp_path_factory):
    svgs = {name: svg for name, svg, _ in run.drawn(PICTURES, lesson[0])}
    return json.loads(notebook_of(TEXT, lesson[0], svgs, LESSON.parent, ROOT))


def test_the_notebook_has_the_same_code_outputs_and_pictures(lesson, book):
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"][1:]
    parts = [(part, result) for part, result in lesson[0] if not part["quote"]]
    for cell, (part, result) in zip(code, parts, strict=True):
        compile(cell["source"], "cell", "exec")
        if part["picture"]:
            assert cell["source"] == f"SVG(pictures.{part['picture']}({part['values']}))"
            assert cell["outputs"][0]["data"]["image/svg+xml"].startswith("<?xml")
        else:
            assert cell["source"] == part["code"].strip()
            assert "".join(output["text"] for output in cell["outputs"]) == result


def test_the_notebook_has_the_same_prose_with_answers_folded(book):
    prose = "\n".join(cell["source"] for cell in book["cells"] if cell["cell_type"] == "markdown")
    assert "<!--" not in prose and "](pictures/" not in prose
    assert prose.count("<details>") == prose.count("</details>") > 5
    for line in TEXT.split("\n"):
        if line.startswith("**") and "](" not in line:
            assert line in prose
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", prose):
        assert (ROOT / target).exists(), target
    headings = {
        f"#{heading.replace(' ', '-')}" for heading in re.findall(r"^#+ (.+)$", prose, re.M)
    }
    assert set(re.findall(r"\]\((#[^)]+)\)", prose)) <= headings
    folded = [cell for cell in book["cells"] if "jupyter" in cell["metadata"]]
    assert len(folded) >= 20 and all(cell["cell_type"] == "code" for cell in folded)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_its_first_cell_finds_the_checkout_or_clones_it(book, place, tmp_path):
    cell = re.sub("address = .*", f"address = {str(ROOT)!r}", book["cells"][0]["source"])
    (tmp_path / "IPython").mkdir()
    (tmp_path / "IPython" / "display.py").write_text("SVG = str\n")
    where = ROOT / "docs" if place == "inside" else tmp_path / "empty"
    where.mkdir(exist_ok=True)
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{cell}\nimport gpt2_pico\nprint(root)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=where, capture_output=True, text=True, timeout=120
    )
    if place == "outside" and not (ROOT / ".git").exists():
        pytest.skip("no clone without a repository")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(ROOT if place == "inside" else where / "gpt2")
