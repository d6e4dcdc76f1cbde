"""House rules: which room may import which, how large one may be, what has to be installed."""

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from conftest import ROOT

READING = """
    gpt2_pico gpt2 drafts encoder utils evaluate backward optimizer corpus training_run train
""".split()
BESIDE = {"batch", "explain", "startup", "parallel", "command", "completion", "settings", "texts"}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in [*ROOT.glob("*.py"), *ROOT.glob("model_files/*.py"), *ROOT.glob("page/*.py")]
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imports(tree):
    """The names that a module imports anywhere in it, each as module.name, too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def graph(trees):
    """{module: the modules among these that it imports}"""
    return {name: (imports(tree) & trees.keys()) - {name} for name, tree in trees.items()}


def circle(graph):
    """-> modules that import each other in a circle, or none"""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def n_lines(name):
    return len(FILES[name].read_text(encoding="utf-8").splitlines())


def test_there_is_no_circle_of_imports():
    assert circle(graph(TREES)) == []


def test_a_circle_would_be_found():
    sources = {
        "a": "import b, os\nimport d.e as f",
        "b": "def late():\n    if True:\n        from c import x",
        "c": "from d import e",
        "d": "",
        "d.e": "import regex",
    }
    found = graph({name: ast.parse(source) for name, source in sources.items()})
    assert found == {"a": {"b", "d.e"}, "b": {"c"}, "c": {"d", "d.e"}, "d": set(), "d.e": set()}
    assert circle(found) == []
    sources["d.e"] = "class C:\n    def method(self):\n        import a"
    found = circle(graph({name: ast.parse(source) for name, source in sources.items()}))
    assert set(found) in ({"a", "d.e"}, {"a", "b", "c", "d.e"})
    assert circle(graph({**TREES, "gpt2": ast.parse("def f():\n    from evaluate import windows")}))


def test_no_import_is_relative():
    nodes = (node for tree in TREES.values() for node in ast.walk(tree))
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes)


def test_nobody_imports_what_is_a_command_and_no_more():
    imported = set().union(*graph(TREES).values())
    assert not imported & {"train", "gpt2_pico", "explain"}


def test_model_files_imports_nothing_from_outside_the_folder():
    for name, others in graph(TREES).items():
        if name.startswith("model_files"):
            assert all(other.startswith("model_files") for other in others), name


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_longer_than_500_lines(name):
    assert n_lines(name) <= 500


@pytest.mark.parametrize("name", [name for name in FILES if "." not in name])
def test_no_function_is_longer_than_45_lines(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef) and node.name != "parser":
            assert node.end_lineno - node.lineno + 1 <= 45, node.name


def test_the_formula_has_less_than_100_lines():
    assert n_lines("gpt2_pico") < 100


def test_what_there_is_to_read_has_less_than_2700_lines():
    assert sum(map(n_lines, READING)) < 2700
    assert {name for name in FILES if "." not in name} == {*READING, *BESIDE}


def third_party(tree):
    names = {name.split(".")[0] for name in imports(tree)}
    return names - sys.stdlib_module_names - {name.split(".")[0] for name in FILES}


def test_four_libraries_have_to_be_installed_and_one_more_to_draw():
    found = {name: third_party(tree) for name, tree in TREES.items()}
    assert set().union(*found.values()) == {"numpy", "regex", "requests", "tqdm", "matplotlib"}
    assert [name for name, libraries in found.items() if "matplotlib" in libraries] == ["train"]
    plot = next(x for x in ast.walk(TREES["train"]) if getattr(x, "name", "") == "plot")
    assert "matplotlib" in third_party(plot)
    required = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    required = set(re.findall(r"^[a-z]+", required, re.MULTILINE))
    assert set().union(*found.values()) - required == {"matplotlib"} and len(required) == 4
