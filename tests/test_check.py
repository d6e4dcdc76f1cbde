"""lesson/check.py: right, unwritten and wrong functions in a copy of lesson/mine.py."""

import ast
import inspect
import re
import sys

import pytest
from conftest import ROOT, run
from written import MISTAKES, OTHERS

sys.path.insert(0, str(ROOT / "lesson"))
import check  # noqa: E402

PICO = (ROOT / "gpt2_pico.py").read_text(encoding="utf-8")
MINE = (ROOT / "lesson" / "mine.py").read_text(encoding="utf-8")
NAMES = [node.name for node in ast.parse(MINE).body if isinstance(node, ast.FunctionDef)]
START = "import numpy as np\n\n"
SOLVED = {
    node.name: ast.get_source_segment(PICO, node)
    for node in ast.parse(PICO).body
    if isinstance(node, ast.FunctionDef)
}


def planted(name, edits):
    """Return the function after edits: a piece, what replaces it, the next piece, ..."""
    source = OTHERS[name]
    for before, after in zip(edits[::2], edits[1::2]):
        assert before in source, before
        source = source.replace(before, after)
    return source


@pytest.fixture
def checked(tmp_path, monkeypatch, capsys):
    """Return a function: a file's text -> exit status, {function: its line}, the rest, errors."""

    def checked(text):
        path = tmp_path / "my_gpt2.py"
        path.write_text(text, encoding="utf-8")
        try:
            status = check.main([str(path)])
        except SystemExit as exit_:
            status = exit_.code
        out, said = capsys.readouterr()
        lines, _, rest = out.partition("\n\n")
        return status, dict(line.split(maxsplit=1) for line in lines.splitlines()), rest, said

    for name in "all_arguments", "truth_of":
        monkeypatch.setattr(check, name, remembered(getattr(check, name)))
    return checked


known = {}


def remembered(function):
    """Return the function, but with its results kept, since they are always the same."""

    def call(first, *args):
        key = function.__name__, str(first)
        if key not in known:
            known[key] = function(first, *args)
        return known[key]

    return call


# ==== Right and unwritten =======================================================================


def test_a_finished_file_is_right_and_continues_a_text_in_any_directory(tmp_path):
    functions = {**OTHERS, **SOLVED}
    text = START + "\n\n".join(functions[name] for name in NAMES)
    (tmp_path / "my_gpt2.py").write_text(text, encoding="utf-8")
    done = run("lesson/check.py", "my_gpt2.py", cwd=tmp_path, text=True, stdin="")
    assert (done.returncode, done.stderr) == (0, "")
    lines, _, speech = done.stdout.partition("\n\nTogether they write the same 40 tokens")
    assert lines.splitlines() == [f"{name:17} right" for name in NAMES]
    options = "--model_size", "shakespeare", "--models_dir", ROOT / "models"
    pico = run("gpt2_pico.py", "ROMEO:", *options, cwd=tmp_path, text=True, stdin="").stdout
    assert speech == f" as gpt2_pico.py:\n\nROMEO:{pico}" and len(pico) > 40


def test_functions_in_another_style_are_right(checked):
    status, lines, text, _ = checked(START + "\n\n".join(OTHERS.values()))
    assert {name: line.partition(",")[0] for name, line in lines.items()} == dict.fromkeys(
        NAMES, "right"
    )
    assert text.startswith("Together they write the same 40 tokens") and status == 0


def test_mine_as_it_comes_is_not_written_yet(checked):
    assert checked(MINE) == (1, dict.fromkeys(NAMES, "not written yet"), "", "")
    assert checked("") == (1, dict.fromkeys(NAMES, "not written yet"), "", "")


def test_each_function_is_checked_by_itself(checked):
    """Whatever the others are: right, or wrong, each in its own way."""
    wrong = [planted(name, MISTAKES[name][0][1:]) for name in NAMES]
    lines = checked(START + "\n\n".join(wrong))[1]
    assert all(MISTAKES[name][0][0] in lines[name] for name in NAMES)
    for i, name in enumerate(NAMES[:8]):
        lines = checked(f"{START}{OTHERS[name]}\n\n{wrong[i + 1]}\n")[1]
        assert lines.pop(name).startswith("right")
        assert MISTAKES[NAMES[i + 1]][0][0] in lines.pop(NAMES[i + 1])
        assert set(lines.values()) == {"not written yet"}


def test_the_model_is_finished_without_the_gradients(checked):
    status, lines, text, _ = checked(START + "\n".join(SOLVED.values()))
    assert status == 1 and lines["softmax_backward"] == "not written yet"
    assert text.startswith("Together they write the same 40 tokens")


def test_functions_that_fail_only_together_are_reported(checked):
    for fault, message in (
        ("return x", "all functions together: ["),
        ("raise ValueError('no')", "all functions together: line "),
    ):
        gelu = SOLVED["gelu"].replace(
            "    return", f"    calls.append(1)\n    if len(calls) > 9: {fault}\n    return"
        )
        text = START + "calls = []\n" + "\n".join({**OTHERS, **SOLVED, "gelu": gelu}.values())
        status, lines, speech, said = checked(text)
        assert lines["gelu"] == "right" and speech == "" and status == 1
        assert message in said and said.count("\n") == 1


def test_mine_has_the_signatures_and_shapes_of_gpt2_pico():
    def first_lines(source):
        return {line for line in source.splitlines() if line.startswith("def ")}

    assert first_lines(PICO) == first_lines(MINE.partition("# Step 20")[0])
    assert [*check.TRUE, *check.GRADIENTS] == NAMES == [*check.read_mistakes()]
    backward = (ROOT / "training" / "backward.py").read_text(encoding="utf-8")
    found = [
        source.partition(":")[0]
        for source in (backward, MINE)
        for source in re.findall("def linear_backward.*", source)
    ]
    assert found[0] == found[1]


def test_mine_needs_numpy_only_and_names_the_steps_of_the_lesson():
    """By the end of a function's step, the lesson has shown all of the function."""
    lesson = (ROOT / "lesson" / "README.md").read_text(encoding="utf-8")
    assert [line for line in MINE.splitlines() if "import" in line] == [
        "import numpy as np  # noqa: F401"
    ]
    for step, name in re.findall(
        r"^# Step (\d+)\. (?:.*\n)(?:#.*\n)*def (\w+)", MINE, re.MULTILINE
    ):
        read = lesson.partition(f"\n## {int(step) + 1} ")[0]
        assert f"<!-- quote gpt2_pico.{name} -->" in read or name.endswith("backward"), name


# ==== Mistakes ==================================================================================


@pytest.mark.parametrize(
    "name, advice, edits",
    [(name, advice, edits) for name in NAMES for advice, *edits in MISTAKES[name]],
)
def test_a_usual_mistake_is_recognised(name, advice, edits, checked):
    status, lines, text, said = checked(f"{MINE}\n\n{planted(name, edits)}\n")
    assert status == 1 and said == text == ""
    assert advice in lines.pop(name)
    assert set(lines.values()) == {"not written yet"}


def test_each_mistake_is_planted_here_and_changes_the_source():
    for name, mistakes in check.read_mistakes().items():
        for advice, edits in mistakes:
            assert any(part in advice for part, *_ in MISTAKES[name]), advice
            assert all(
                before in inspect.getsource({**check.TRUE, **check.GRADIENTS}[name])
                for before, _ in edits
            ), advice


@pytest.mark.parametrize(
    "source, line",
    [
        ("def gelu(x):\n    return x[:2]", "shape [2, 1024] instead of [6, 1024]"),
        ("def gelu(x):\n    y = x", "it returns nothing: is `return` missing?"),
        (
            "from gpt2_pico import gelu as f\ndef gelu(x):\n    return f(x) + 0.25",
            "off by up to 0.25",
        ),
        ("def gelu(x):\n    return x / 0", "off by up to inf"),
        ("def gelu(x):\n    return 0 * x / 0", "some numbers are NaN (not a number)"),
        ("def gelu(x):\n    return 'x'", "shape [] instead of [6, 1024]"),
        ("def gelu(x):\n    return x.astype(str)", "not an array of numbers"),
        ("def gelu(x):\n\n    return y", "line 4: NameError: name 'y' is not defined"),
        (
            "def gelu(x):\n    def f():\n        1 / 0\n\n    f()",
            "line 4: ZeroDivisionError: division by zero",
        ),
        ("def gelu(x):\n    raise ValueError('a\\n \\x1b')", "line 3: ValueError: a \\x1b"),
        ("def gelu(x):\n    exit()", "line 3: SystemExit: None"),
        (
            "def gelu(x):\n    x *= 2\n    return x",
            "line 3: it changes its argument: write x = x - y instead of x -= y",
        ),
        (
            "def gelu(x):\n    x[0] = 2\n    return x",
            "line 3: it changes its argument: write x = x - y instead of x -= y",
        ),
        ("def gelu(y):\n    return y", "TypeError: gelu() got an unexpected keyword argument 'x'"),
        (
            "def gelu(x):\n    return head(x, 1, 2)",
            "line 3, in head: AttributeError: 'int' object has no attribute 'T'",
        ),
        ("gelu = 3", "TypeError: 'int' object is not callable"),
    ],
)
def test_other_faults_are_described(source, line, checked):
    assert checked(START.replace("\n\n", "\n") + source)[1]["gelu"] == line


def test_float64_is_right_but_said(checked):
    source = SOLVED["gelu"].replace("0.5 * x", "np.ones(1) / 2 * x")
    status, lines, _, _ = checked(START + source)
    assert lines["gelu"] == check.FLOAT64


@pytest.mark.parametrize(
    "data, message",
    [
        (b"x = 1\ndef f(:\n", "line 2: invalid syntax"),
        (b"if 1:\nx = 1\n", "line 2: expected an indented block"),
        (b"x = '\xff'\n", ""),
        (b"\0", ""),
        (b"\n\nimport nothing_of_this_name\n", "line 3: ModuleNotFoundError: No module named"),
        (b"\nraise SystemExit\n", "line 2: SystemExit"),
        (b"1 / 0\n", "line 1: ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_does_not_run_is_one_line(data, message, tmp_path, capsys):
    path = tmp_path / "my_gpt2.py"
    path.write_bytes(data)
    assert check.main([str(path)]) == 1
    out, said = capsys.readouterr()
    assert out == "" and said.count("\n") == 1 and "None" not in said
    assert said.startswith(f"lesson/check.py: error: {path}: {message}")


def test_a_file_that_is_not_there_is_one_line(tmp_path, capsys):
    for path, message in (tmp_path / "none.py", "No such file"), (tmp_path, "not a regular file"):
        assert check.main([str(path)]) == 1
        out, said = capsys.readouterr()
        assert out == "" and said.count("\n") == 1 and message in said and str(path) in said
