"""The lesson: its outputs, quotes, pictures and notebook, and its arrays beside transformers'."""

import ast
import json
import os
import pickle
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
from conftest import GOLDEN, ROOT

sys.path.insert(0, str(ROOT / "lesson"))

import notebook
import run
from notebook import notebook_of

from gpt2 import generate
from utils import load_encoder_hparams_and_params

LESSON = ROOT / "lesson" / "README.md"
TEXT = LESSON.read_text(encoding="utf-8")
PARTS = [*run.PART.finditer(TEXT)]
PICTURES = ROOT / "lesson" / "pictures"
GOLDEN_ARRAYS = np.load(GOLDEN / "lesson.npz")
RUN = """
import pickle, sys
from pathlib import Path
out, lesson, *names = sys.argv[1:]
sys.path.insert(0, lesson)
import run
text, variables = run.read_text(run.LESSON), {}
results = [result for _, result in run.run(text, "README.md", variables)]
arrays = {name: variables[name] for name in names}
Path(out).write_bytes(pickle.dumps((results, arrays)))
"""


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """Return [(part, result), ...] and the final arrays. They are computed in another process,
    because it takes one thread, and that has to be set before NumPy is imported. The directory is
    an empty one: the lesson works in any."""
    empty = tmp_path_factory.mktemp("lesson")
    out = empty / "results"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    for name in "GPT2_MODEL", "GPT2_PROMPT":
        environment.pop(name, None)
    args = [sys.executable, "-c", RUN, str(out), str(LESSON.parent), *GOLDEN_ARRAYS]
    subprocess.run(args, cwd=empty, env=environment, check=True, timeout=600)
    results, arrays = pickle.loads(out.read_bytes())
    return list(zip(PARTS, results, strict=True)), arrays


def test_all_outputs_quotes_and_pictures_are_up_to_date(lesson):
    assert "\n".join(run.faults(LESSON, lesson[0])) == ""


def test_there_are_twenty_steps_and_each_has_all_its_parts():
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
    folders = "model_files", "training", "lesson"
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
    """The links are the names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", TEXT, flags=re.S | re.M), re.M)
    names = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    targets = re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert set(targets) <= set(names) and len(targets) == len(set(targets))
    assert {name for name in names if name[0].isdigit()} <= set(targets)


@pytest.mark.parametrize("name", GOLDEN_ARRAYS)
def test_arrays_are_those_of_transformers(lesson, name):
    np.testing.assert_allclose(lesson[1][name], GOLDEN_ARRAYS[name], rtol=0, atol=1e-4)


def test_any_wrong_number_is_found(lesson):
    n_numbers = 0
    for part, result in lesson[0]:
        for number in re.finditer(r"\d+(\.\d+)?", part["output"] or ""):
            digits = len((number[1] or ".")[1:])
            other = f"{float(number[0]) + 3 * 10.0**-digits:.{digits}f}"
            changed = part["output"][: number.start()] + other + part["output"][number.end() :]
            assert run.differ(changed, result), number[0]
            n_numbers += 1
    assert n_numbers > 500


def test_every_broken_model_stands_in_the_table_with_what_it_writes():
    """The unchanged model writes what the fast program writes."""
    outputs = [part["output"] or "" for part in PARTS]
    broken = re.findall(r"^ *(\d+\.\d{3}) ([^:\n]+): (['\"].*)$", "".join(outputs), re.M)
    table = re.findall(r"^ *(\d+\.\d{3}) (\S.*?) +(['\"].*)$", outputs[-1], re.M)
    assert len(table) == outputs[-1].count("\n") > 25
    assert {*table} == {*broken, (f"{np.log(2048):.3f}", "blind guessing", "''")}
    costs = [float(cost) for cost, _, _ in table]
    assert costs == sorted(costs, reverse=True)
    encoder, hparams, params = load_encoder_hparams_and_params("shakespeare", ROOT / "models")
    ids = [*generate(encoder.encode("ROMEO:"), params, hparams, 16)]
    assert [text for _, label, text in table if label == "unchanged"] == [repr(encoder.decode(ids))]
    assert max(map(len, outputs[-1].split("\n"))) <= 100


def test_decimals_in_the_prose_occur_in_the_outputs():
    """So no sentence can keep a number that the model does not print any more."""
    printed = " ".join(part["output"] or "" for part in PARTS).replace(",", "")
    found = " ".join(printed.split())
    prose = re.sub(r"^```.*?^```", "", TEXT, flags=re.DOTALL | re.MULTILINE)
    given = {
        "154,998",
        "50,257",
        "8,500",
        "2,200",
        "0.00001",
        "0.9",
    }  # facts and settings, which nothing prints
    numbers = set(re.findall(r"\d+\.\d+|\d+,\d+", prose)) - given
    assert [x for x in sorted(numbers) if x.replace(",", "") not in found] == []
    assert len(numbers) > 4


def test_each_function_of_mine_py_is_written_in_the_step_that_it_names():
    text = (ROOT / "lesson" / "mine.py").read_text(encoding="utf-8")
    to_write = re.findall(r"^# Step (\d+)\.(?:(?!^# Step).)*?^def (\w+)", text, re.M | re.S)
    steps = re.split(r"^## \d+ ", TEXT, flags=re.MULTILINE)
    named = [
        (str(number), name)
        for number, step in enumerate(steps)
        for sentence in re.findall(r"^\*\*Write it\.\*\*(.+?)\n\n", step, re.M | re.S)
        for name in re.findall(r"`(\w+)`", sentence)
    ]
    named.remove(("7", "gpt2"))  # its first line
    assert named == to_write and len(named) == 11


def test_the_lesson_has_at_most_8500_words_and_an_exam():
    prose = re.sub(r"^```.*?^```|<!--.*?-->", "", TEXT, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^\|.*$|\]\([^)]*\)", "", prose, flags=re.MULTILINE)
    assert len(prose.split()) <= 8500
    exam = TEXT.split("\n## Exam\n")[1]
    answered = (
        r"\*\*(\d+)\.\*\* [^<]+\?\n\n<details><summary>Answer</summary>\n\n[^<]+\.\n\n</details>"
    )
    assert re.findall(answered, exam) == [str(i) for i in range(1, 16)]


def test_the_model_was_not_trained_on_the_passage(shared):
    trained_on = (shared / "data" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    lines = (ROOT / "lesson" / "hamlet.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert len(lines) == 35 and not any(line in trained_on for line in lines)


def test_a_wrong_word_is_found_and_a_last_digit_may_differ_by_one():
    assert run.differ("True\n", "False\n") and run.differ("", "1\n") and run.differ("1.0\n", "1\n")
    assert run.differ("0.12", "0.123") and run.differ("[1, 2]", "[1, 3]")
    assert run.differ("0.4190", "0.4192") and not run.differ("0.4190", "0.4191")
    assert not run.differ("[-0.0000  1.0000]", "[ 0.0000  1.0000]")


def test_every_line_of_the_model_is_quoted(tmp_path, monkeypatch):
    """Whichever line is changed, from the first function to the command, a quote differs."""
    lines = (ROOT / "gpt2_pico.py").read_text(encoding="utf-8").split("\n")
    first = next(i for i, line in enumerate(lines) if line.startswith("# A smooth max"))
    last = max(i for i, line in enumerate(lines) if line == 'if __name__ == "__main__":')
    quotes = [part for part in PARTS if (part["quote"] or "").startswith("gpt2_pico")]
    monkeypatch.setattr(run, "ROOT", tmp_path)
    for i in range(first, last):
        if lines[i]:
            changed = [*lines[:i], lines[i] + "  # another", *lines[i + 1 :]]
            (tmp_path / "gpt2_pico.py").write_text("\n".join(changed), encoding="utf-8")
            assert any(run.quote(part["quote"]) != part["source"] for part in quotes), lines[i]
    assert last - first > 60


def test_any_wrong_plotted_number_is_found(lesson):
    plotted, drawn = run.read_plotted(PICTURES), 0
    for part, values in lesson[0]:
        if part["picture"]:
            entry = plotted.pop(part["picture"])["values"]
            for path in paths(entry)[::29]:
                changed = json.loads(json.dumps(entry))
                row = changed
                for i in path[:-1]:
                    row = row[i]
                x = row[path[-1]]
                row[path[-1]] = (
                    x + "x" if isinstance(x, str) else x + 1e-2 if isinstance(x, float) else x + 1
                )
                assert not run.near(changed, values), (part["picture"], path)
                drawn += 1
    assert plotted == {} and drawn > 200


def paths(values):
    """Return the paths to all numbers and texts in nested lists, each a list of indices."""
    if not isinstance(values, list):
        return [[]]
    return [[i, *path] for i, x in enumerate(values) for path in paths(x)]


def test_a_picture_that_is_missing_or_out_of_date_or_was_changed_is_found(tmp_path):
    for path in PICTURES / "context.svg", PICTURES / "plotted.json":
        (tmp_path / path.name).write_bytes(path.read_bytes())
    values = run.read_plotted(PICTURES)["context"]["values"]
    assert run.picture_fault(tmp_path, "context", values) == ""
    assert "the picture heads is missing" in run.picture_fault(tmp_path, "heads", values)
    assert "drawn in context.svg:\n" in run.picture_fault(
        tmp_path, "context", [values[0], values[1][1:]]
    )
    svg = (tmp_path / "context.svg").read_text(encoding="utf-8")
    (tmp_path / "context.svg").write_text(svg.replace("L 1", "L 2", 1), encoding="utf-8")
    assert "context.svg was changed after it was drawn" in run.picture_fault(
        tmp_path, "context", values
    )


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


def test_writing_puts_outputs_quotes_and_pictures_into_the_page(tmp_path):
    """A new page has nothing below its fences. After --write, everything matches."""
    page = tmp_path / "page.md"
    empty = "<!-- quote gpt2_pico.linear -->\n```python\n```\n"
    page.write_text(
        "# A\n\n```python\nx = [0.5, 2]\nprint(x)\n```\n\n<!-- picture context_2: x, x -->\n"
        f"![two points](pictures/context_2.svg)\n\n{empty}\n```python\nx.pop()\n```\n\nend\n",
        encoding="utf-8",
    )
    command = [sys.executable, str(ROOT / "lesson" / "run.py"), str(page)]
    assert subprocess.run(command, capture_output=True).returncode == 1
    subprocess.run([*command, "--write"], check=True, cwd=tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "print(x)\n```\n\n```\n[0.5, 2]\n```\n" in text
    assert "return x @ w + b\n```\n" in text and "x.pop()\n```\n\nend\n" in text
    assert (tmp_path / "pictures" / "context_2.svg").exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, f"{page}: everything matches\n")
    page.write_text(text.replace("[0.5, 2]\n```", "[0.7, 2]\n```"), encoding="utf-8")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and f"{page}:3: in the file:\n[0.7, 2]\nprinted:\n" in done.stderr


def lesson_run(*args):
    command = [sys.executable, str(ROOT / "lesson" / "run.py"), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "args, status, message",
    [
        (["none.md"], 1, "No such file or directory: '{}none.md'"),
        ([""], 1, " is not a regular file"),
        (["bytes"], 1, "{}bytes: not UTF-8"),
        (["good.md", "--notebook", ""], 2, " is not a file in a directory that exists"),
        (["good.md", "--notebook", "none/x"], 2, "none/x is not a file in a directory that exists"),
        (["good.md", "--notebook", "good.md"], 2, "--notebook takes one file and writes another"),
        (["good.md", "good.md", "--notebook", "x"], 2, "--notebook takes one file"),
        (["good.md", "--write", "--notebook", "x"], 2, "--notebook takes one file"),
        (["error.md"], 1, "{}error.md:5: NameError: name 'y' is not defined"),
        (["quote.md"], 1, "{}quote.md:3: ValueError: nothing.here is not in the project"),
        (["part.md"], 1, "{}part.md:3: ValueError: cli.nothing is not in the project"),
        (["picture.md", "--write"], 1, "the picture nothing cannot be drawn"),
    ],
)
def test_an_error_is_one_line(args, status, message, tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff")
    for name, text in {
        "good": "```python\nprint(1)\n```\n",
        "error": "\n\n```python\nx = 1\ny\n```\n",
        "quote": "\n\n<!-- quote nothing.here -->\n```python\n```\n",
        "part": "\n\n<!-- quote cli.nothing -->\n```python\n```\n",
        "picture": "<!-- picture nothing: 1 -->\n![](pictures/nothing.svg)\n",
    }.items():
        (tmp_path / f"{name}.md").write_text(text)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    args = [arg if arg.startswith("--") else tmp_path / arg for arg in args]
    found, printed, said = lesson_run(*args)
    *usage, last = said.splitlines()
    assert (found, printed, bool(usage)) == (status, "", status == 2), said
    assert last.startswith("lesson/run.py: error: ")
    assert message.replace("{}", f"{tmp_path}{os.sep}") in last
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(os.name == "nt", reason="modes and symbolic links")
def test_a_file_is_replaced_as_a_whole_and_keeps_its_mode(tmp_path):
    page, book = tmp_path / "page.md", tmp_path / "book.ipynb"
    page.write_text("```python\nprint(1)\n```\n")
    book.write_text("old")
    book.chmod(0o600)
    (tmp_path / "link").symlink_to(book)
    assert lesson_run(page, "--notebook", tmp_path / "link") == (0, "", "")
    assert json.loads(book.read_text())["nbformat"] == 4
    assert (tmp_path / "link").is_symlink() and book.stat().st_mode & 0o777 == 0o600
    page.chmod(0o600)
    assert lesson_run(page, "--write") == (0, "", "")
    assert "\n```\n1\n```\n" in page.read_text() and page.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"page.md", "book.ipynb", "link"}
    if os.path.exists("/dev/stdout"):
        status, printed, said = lesson_run(page, "--notebook", "/dev/stdout")
        assert (status, said, json.loads(printed)["nbformat"]) == (0, "", 4)


@pytest.mark.parametrize("prompt", ["To be, or not to", "A", '$$ "{x}"\\ \n\té☃😀 東'])
def test_any_other_model_and_prompt_can_be_shown(prompt, models_dir):
    """A tiny model: all sizes differ, and the context is 32. Nothing is compared or written."""
    environment = {
        **os.environ,
        "GPT2_MODEL": "./tiny",  # found from the directory in which the command runs
        "GPT2_PROMPT": prompt,
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONWARNINGS": "error::RuntimeWarning",
    }
    command = [sys.executable, str(ROOT / "lesson" / "run.py")]
    options = {"capture_output": True, "env": environment, "cwd": models_dir}
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("utf-8").replace("\r\n", "\n")
    assert "    wte [260, 16]\n" in text and text.startswith(TEXT[:100])
    assert f"{prompt}\n```\n" in text and done.stderr == b""
    assert LESSON.read_text(encoding="utf-8") == TEXT
    done = subprocess.run([*command, "--write"], **options)
    changed = b"GPT2_MODEL" if prompt == "To be, or not to" else b"GPT2_PROMPT and GPT2_MODEL"
    assert done.returncode == 2 and b": unset " + changed in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("options", [[], ["--write"], ["--notebook", "book.ipynb"]])
def test_a_bar_is_shown_in_a_terminal_only(options, tmp_path):
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    (tmp_path / "page.md").write_text("```python\nx = 1\n```\n")
    command = [sys.executable, str(ROOT / "lesson" / "run.py"), "page.md", *options]
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=end)
    os.close(end)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert (done.returncode, done.stdout) == (0, b"") and "\rpage.md: " in shown
    assert "/1 [" in shown
    done = subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0 and b"\r" not in done.stderr.replace(b"\r\n", b"\n")


# The notebook


@pytest.fixture(scope="module")
def book(lesson, tmp_path_factory):
    svgs = {name: svg for name, svg, _ in run.drawn(PICTURES, lesson[0])}
    return json.loads(notebook_of(TEXT, lesson[0], svgs, LESSON.parent, ROOT))


def test_the_notebook_has_the_same_code_outputs_and_pictures(lesson, book):
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"][2:]
    parts = [(part, result) for part, result in lesson[0] if not part["quote"]]
    for cell, (part, result) in zip(code, parts, strict=True):
        compile(cell["source"], "cell", "exec")
        if part["picture"]:
            function = re.match("[a-z]+", part["picture"])[0]
            assert cell["source"] == f"SVG(pictures.{function}({part['values']}))"
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


def test_its_first_cell_chooses_the_prompt_and_the_model(monkeypatch):
    def first_cell(text):
        book = json.loads(notebook_of(text, [], {}, LESSON.parent, ROOT))
        return book["cells"][0]["source"]

    values = {"GPT2_PROMPT": "To be, or not to", "GPT2_MODEL": "shakespeare"}
    monkeypatch.setattr(os, "environ", {})
    source = first_cell(TEXT)
    assert '# those of "To be, or not to" and "shakespeare".' in source
    exec(source.replace("To be", "\\'é"), {})
    assert os.environ == values | {"GPT2_PROMPT": "'é, or not to"}
    again = first_cell(TEXT)
    monkeypatch.setattr(os, "environ", {})  # The notebook was made with that prompt, so it has it.
    exec(again, {})
    assert os.environ == values | {"GPT2_PROMPT": "'é, or not to"}
    assert first_cell("A page.").startswith("# Find the project")  # There is nothing to choose.


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_its_first_cell_finds_the_checkout_or_clones_it(book, place, tmp_path):
    cell = re.sub("address = .*", f"address = {str(ROOT)!r}", book["cells"][1]["source"])
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


def test_it_clones_from_where_the_project_came_from(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    for args in ["init", "-q"], ["config", "remote.origin.url", "https://example.org/gpt2"]:
        subprocess.run(["git", *args], cwd=tmp_path, check=True)
    assert notebook.origin() == "https://example.org/gpt2"


# What the pictures show


@pytest.fixture
def draw(monkeypatch):
    """Return a function that draws a picture, by default of the lesson's values: axes, values."""
    pytest.importorskip("matplotlib", reason="matplotlib draws the pictures")
    import pictures

    figures = []

    class Watched(pictures.Figure):
        def __init__(self, **options):
            super().__init__(**options)
            figures.append(self)

    def draw(name, *values):
        values = values or run.read_plotted(PICTURES)[name]["values"]
        getattr(pictures, name.partition("_")[0])(*values)
        return figures[-1].axes, values

    monkeypatch.setattr(pictures, "Figure", Watched)
    return draw


def curves_of(axes):
    """Return {label: ([x, ...], [y, ...])} of the lines on some axes."""
    return {
        line.get_label(): ([*map(float, line.get_xdata())], [*map(float, line.get_ydata())])
        for line in axes.get_lines()
    }


def map_of(axes):
    (image,) = axes.get_images()
    return image.get_array().tolist()


def texts_of(axes):
    """Return {(x, y): text} of what is written inside some axes."""
    return {text.get_position(): text.get_text() for text in axes.texts}


def names_of(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def spelled(tokens):
    return [token.replace("\n", "\\n").replace(" ", "␣") for token in tokens]


def test_curves_belong_to_the_names_beside_them(draw):
    (axes,), (lengths, added) = draw("stream")
    assert curves_of(axes) == {"stream": ([*range(len(lengths))], lengths)}
    assert [bar.get_height() for bar in axes.patches] == added
    halves = [f"{half} {i}" for i in range(6) for half in ("attention", "MLP")]
    assert names_of(axes.xaxis) == ["embedding", *halves]

    (axes, behind), (at, curve, edges, counts) = draw("switch")
    relu = [x if x > 0 else 0 for x in at]
    assert curves_of(axes) == {"GELU": (at, curve), "ReLU": (at, relu)}
    (steps,) = behind.patches
    assert [x.tolist() for x in steps.get_data()[:2]] == [counts, edges]

    (axes,), (seen, losses) = draw("context")
    assert [*curves_of(axes).values()] == [(seen, losses)]
    assert axes.get_xscale() == "log" and names_of(axes.xaxis) == [*map(str, seen)]

    (axes,), (lengths, plain, cached) = draw("cache")
    assert curves_of(axes) == {
        "without a cache": (lengths, plain),
        "with a cache": (lengths, cached),
    }
    assert plain[-1] > cached[-1]


def test_bars_belong_to_the_names_beside_them(draw):
    panels, (tokens, curves) = draw("temperatures")
    assert len(curves) == 3 and curves[0][0] > curves[1][0] > curves[2][0]  # a low one favours it
    for axes, temperature, percents in zip(panels, (0.5, 1, 2), curves, strict=True):
        assert axes.get_title() == f"temperature {temperature}"
        assert [bar.get_width() for bar in axes.patches] == percents
        assert abs(sum(percents) - 100) < 0.01
        written = {(percent + 3, i): f"{percent:.0f} %" for i, percent in enumerate(percents)}
        assert texts_of(axes) == written
        assert axes.yaxis_inverted() and axes.get_xlim() == panels[0].get_xlim()  # one scale
    assert names_of(panels[0].yaxis) == [*spelled(tokens), "all others"]


def test_maps_have_the_numbers_and_names_of_their_rows_and_columns(draw):
    (axes, *_), (similarity, every) = draw("positions")
    assert map_of(axes) == similarity
    end = every * len(similarity)
    assert [*axes.get_images()[0].get_extent()] == [0, end, end, 0]

    (left, right), (scores, weights, tokens) = draw("shares")
    assert [left.get_title(), right.get_title()] == ["scores", "pattern"]
    for axes, rows in (left, scores), (right, weights):
        assert map_of(axes) == rows and axes.get_xlabel() == "looks at"
        cells = {(j, i): f"{x:.2f}" for i, row in enumerate(rows) for j, x in enumerate(row)}
        assert texts_of(axes) == cells
        assert names_of(axes.xaxis) == names_of(axes.yaxis) == spelled(tokens)
    most = max(abs(x) for row in scores for x in row)
    assert left.get_images()[0].get_clim() == (-most, most)  # 0 is in the middle of the colours
    assert right.get_images()[0].get_clim()[0] == 0

    (*axes, _), (maps, tokens) = draw("heads")
    found = {one.get_title(): map_of(one) for one in axes}
    blocks = enumerate(maps)
    assert found == {f"block {i}, head {j}": x for i, row in blocks for j, x in enumerate(row)}
    (*axes, _), _ = draw("heads", [[[[0.5, 0.5], [0.4, 0.6]]]], ["a", "b"])
    assert axes[0].get_images()[0].get_clim() == (0, 1)  # whatever the values are
    assert names_of(axes[0].yaxis) == names_of(axes[-1].xaxis) == ["a", "b"]

    (axes,), (best, p, tokens) = draw("lens")
    assert map_of(axes) == p and axes.yaxis_inverted()  # the embedding on top
    assert axes.get_images()[0].get_clim() == (0, 1)
    assert axes.xaxis.get_label_position() == axes.xaxis.get_ticks_position() == "top"
    words = {
        (j, i): f"{word}\n{100 * p[i][j]:.0f} %"
        for i, row in enumerate(best)
        for j, word in enumerate(spelled(row))
    }
    assert texts_of(axes) == words
    assert names_of(axes.yaxis) == [str(i) for i in range(len(p))]
    assert names_of(axes.xaxis) == spelled(tokens)


def arrows_of(axes):
    """Return [(points, colour), ...] of all arrows. Each has its head at its last point."""
    heads = [text.xy for text in axes.texts if not text.get_text()]
    lines = axes.get_lines()
    points = [[*map(tuple, line.get_xydata().tolist())] for line in lines]
    assert heads == [line[-1] for line in points]
    return [*zip(points, (line.get_color() for line in lines))]


def marked_in(axes):
    """Return what is blue in a drawing of the model: texts, and "frame" for that of the blocks."""
    texts = [text for text in axes.texts if text.get_text()]
    marked = []
    for box in axes.patches:
        inside = [
            text.get_text() for text in texts if box.get_bbox().contains(*text.get_position())
        ]
        marked.append((inside[0] if len(inside) == 1 else "frame", box))
    marked += [("+", text.get_bbox_patch()) for text in texts if text.get_text() == "+"]
    blue = (0, 0x72 / 255, 0xB2 / 255, 1)
    return sorted(name for name, patch in marked if patch.get_edgecolor() == blue)


def test_the_model_is_drawn_from_top_to_bottom_with_its_shapes(draw):
    (axes,), _ = draw("model")
    texts = sorted((y, x, text) for (x, y), text in texts_of(axes).items() if text)
    (n, n_vocab), (n_blocks, *_) = GOLDEN_ARRAYS["logits"].shape, GOLDEN_ARRAYS["maps"].shape
    rows = [*GOLDEN_ARRAYS["stream"][0].shape]
    expected = ["'To be, or not to'", "text", "397 305 12 530 322 288", f"ids [{n}]"]
    expected += ["embedding + position", f"rows {rows}"]
    expected += ["layer norm", "attention", "+", "layer norm", "MLP", "+", f"{n_blocks} blocks"]
    expected += ["layer norm", f"{rows}", "product with all embeddings", f"logits [{n}, {n_vocab}]"]
    expected += ["' be'", "next token"]
    assert [text for _, _, text in texts] == expected and axes.yaxis_inverted()
    (axes,), _ = draw("model", "Attention", "abc" * 50, [0, 12] * 50, [20, 4], 1, "?")
    cut = [text for text in texts_of(axes).values() if text.endswith("…")]
    assert len(cut) == 2 and all(len(text) == 28 for text in cut)


def test_each_chapter_marks_its_own_parts_of_the_model(draw):
    expected = {
        "model": [],
        "model_1": ["'To be, or not to'", "397 305 12 530 322 288"],
        "model_2": ["embedding + position", "layer norm", "layer norm", "layer norm"],
        "model_3": ["attention"],
        "model_4": ["+", "+", "MLP", "frame", "product with all embeddings"],
        "model_5": ["' be'"],
        "model_6": [],
    }
    forward = arrows_of(draw("model")[0][0])
    for name, marked in expected.items():
        (axes,), (chapter, *_) = draw(name)
        assert marked_in(axes) == marked
        assert name == "model" or f"\n# {chapter}\n\n<!-- picture {name}: " in TEXT
        changed = [(a, b) for a, b in zip(forward, arrows_of(axes)) if a != b]
        if name == "model_5":  # the next token is appended to the ids
            (((points, _), (same, _)),) = changed
            assert points == same and (points[0][1], points[-1][1]) == (9, 1)
        elif name == "model_6":  # the gradient goes back from the logits to the embeddings
            assert all(back == points[::-1] for (points, _), (back, _) in changed)
            turned = [points for points, _ in forward if 2 < points[0][1] < 8]
            assert [points for (points, _), _ in changed] == turned and len(turned) == 10
        else:
            assert changed == []


def test_merges_are_drawn_below_each_other_and_new_tokens_are_black(draw):
    (axes,), (steps,) = draw("merges")
    expected = []
    for level, tokens in enumerate(steps):
        for i, token in enumerate(tokens):
            middle = len("".join(tokens[:i])) + len(token) / 2
            is_new = level == 0 or token not in steps[level - 1]
            expected.append(((middle, level), token, is_new))
    found = [(x.get_position(), x.get_text(), x.get_color() == "black") for x in axes.texts]
    assert found == expected and axes.get_xlim() == (0, len("".join(steps[0])))
    assert axes.yaxis_inverted()  # the bytes on top


def test_dollar_signs_are_no_formula(draw):
    panels, _ = draw("temperatures", ["$$", "$x^$"], 3 * [[60.0, 30.0, 10.0]])
    assert names_of(panels[0].yaxis)[:2] == ["$$", "$x^$"]


def test_the_same_values_give_the_same_picture(draw):
    import pictures

    once, again = (pictures.context([1, 2], [60.0, 40.0]) for _ in range(2))
    assert once == again and once.count("<path") > 4
    assert pictures.context([1, 2], [60.0, 41.0]) != once


# Messages


def test_an_error_names_the_line_of_the_page():
    text = "# A\n\n```python\nx = 1\n```\n\n```python\nx = 2\n\nraise ValueError(x)\n```\n"
    with pytest.raises(ValueError, match="^page.md:10: ValueError: 2$"):
        list(run.run(text, "page.md", {}))


def test_faults_of_all_files_are_printed(tmp_path):
    pages = [tmp_path / f"{name}.md" for name in ("wrong", "right", "other")]
    for page, printed in zip(pages, ("7", "2", "9")):
        page.write_text(f"```python\nprint(1 + 1)\n```\n\n```\n{printed}\n```\n")
    command = [sys.executable, str(ROOT / "lesson" / "run.py"), *map(str, pages)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    for page, printed in (pages[0], "7"), (pages[2], "9"):
        assert done.stderr.count(f"{page}:1: in the file:\n{printed}\n") == 1
    assert f"{pages[1]}: everything matches\n" in done.stderr
    done = subprocess.run(command[:-1], capture_output=True, text=True)
    assert done.returncode == 1  # although the last file matches


def test_writing_leaves_last_digits_as_they_are(tmp_path):
    """Processors round differently. A page does not have to change with each of them."""
    page = tmp_path / "page.md"
    text = "```python\nprint(0.4191, 'a')\n```\n\n```\n0.4190 a\n```\n"
    command = [sys.executable, str(ROOT / "lesson" / "run.py"), str(page), "--write"]
    for written, expected in (text, text), (text.replace("0.4190", "0.4180"), "0.4191 a\n"):
        page.write_text(written)
        subprocess.run(command, check=True)
        assert page.read_text().endswith(expected if expected == text else f"```\n{expected}```\n")
