"""House rules: which room may import which, how large one may be, which packages are needed."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from conftest import ROOT

FOLDERS = "model_files", "page", "training"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in [*ROOT.glob("*.py"), *(x for name in FOLDERS for x in ROOT.glob(f"{name}/*.py"))]
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
TOP = [name for name in FILES if "." not in name]
COMMANDS = {"gpt2_pico", "train", "evaluate", "batch", "explain"}  # gpt2 is one, and a library


def imports(tree, lazy=True):
    """Return the names that a module imports, each as module.name, too.

    lazy: also those that are imported inside a function or only when it runs as a program.
    """
    found, todo = set(), [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif lazy or not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.If)):
            todo += ast.iter_child_nodes(node)
    return found


def graph(trees, lazy=True):
    """Return {module: the modules among these that it imports}."""
    return {name: (imports(tree, lazy) & trees.keys()) - {name} for name, tree in trees.items()}


def circle(graph):
    """Return modules that import each other in a circle, or an empty list."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def n_lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


# Imports


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
    early = graph({name: ast.parse(source) for name, source in sources.items()}, lazy=False)
    assert early == {**found, "b": set()}
    sources["d.e"] = "class C:\n    def method(self):\n        import a"
    found = circle(graph({name: ast.parse(source) for name, source in sources.items()}))
    assert set(found) in ({"a", "d.e"}, {"a", "b", "c", "d.e"})
    assert (
        circle(graph({**TREES, "cli": ast.parse("def f():\n    from utils import MODELS")})) == []
    )
    assert circle(graph({**TREES, "utils": ast.parse("import gpt2")}))


def test_no_import_is_relative():
    nodes = (node for tree in TREES.values() for node in ast.walk(tree))
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes)


def test_cli_and_fast_import_nothing_of_ours_but_how_a_line_is_printed():
    assert graph(TREES)["cli"] == {"model_files.files"}
    assert graph(TREES)["fast"] == set()


def test_the_model_imports_numpy_and_fast_and_everything_else_when_it_runs_as_a_program():
    for name, others in ("gpt2_pico", set()), ("gpt2", {"fast"}):
        names = {name.split(".")[0] for name in imports(TREES[name], lazy=False)}
        assert names - sys.stdlib_module_names == {"numpy", *others}, name


def test_only_train_imports_a_command():
    found = {name: others & COMMANDS for name, others in graph(TREES).items()}
    assert {name: others for name, others in found.items() if others} == {"train": {"evaluate"}}


def test_model_files_imports_nothing_from_outside():
    for name, others in graph(TREES).items():
        if name.startswith("model_files"):
            assert all(other.startswith("model_files") for other in others), name


def test_a_prompt_runs_at_most_13_of_our_files():
    code = (
        "import gpt2, sys\n"
        "gpt2.main(['ROMEO:', '--model_size', 'shakespeare', '--n_tokens_to_generate', '12'])\n"
        "print(*(getattr(module, '__file__', None) for module in sys.modules.values()), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    ours = {*map(str, FILES.values())} & {*done.stdout.splitlines()}
    assert done.stderr == "" and 5 < len(ours) <= 13, ours


# Sizes


def test_the_top_level_has_at_most_ten_modules():
    assert {*TOP} <= {*COMMANDS, "gpt2", "fast", "encoder", "utils", "cli"} and len(TOP) <= 10


def test_the_product_has_at_most_8700_lines():
    assert sum(map(n_lines, [*FILES.values(), *ROOT.glob("lesson/*.py")])) <= 8700


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_longer_than_500_lines(name):
    assert n_lines(FILES[name]) <= 500


@pytest.mark.parametrize("name", TOP)
def test_no_function_is_longer_than_45_lines(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef) and not re.match("parser|add_", node.name):  # options
            assert node.end_lineno - node.lineno + 1 <= 45, node.name


def test_the_formula_has_at_most_100_lines():
    assert n_lines(FILES["gpt2_pico"]) <= 100


# Packages


def packages(tree, lazy=True):
    names = {name.split(".")[0] for name in imports(tree, lazy)}
    return names - sys.stdlib_module_names - {name.split(".")[0] for name in FILES}


def test_four_packages_are_needed_and_one_more_to_draw():
    found = {name: packages(tree) for name, tree in TREES.items()}
    assert set().union(*found.values()) == {"numpy", "regex", "requests", "tqdm", "matplotlib"}
    assert [name for name, names in found.items() if "matplotlib" in names] == ["train"]
    assert "matplotlib" not in packages(TREES["train"], lazy=False)
    required = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    required = set(re.findall(r"^[a-z]+", required, re.MULTILINE))
    assert required == {"numpy", "regex", "requests", "tqdm"}
