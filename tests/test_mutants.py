"""For each fault that mutants.py puts in, the line of the source and the files of tests exist."""

from conftest import ROOT
from mutants import put_in, read


def test_each_fault_can_be_put_in():
    faults = read(ROOT / "tests" / "mutants.txt")
    missing = [
        f"{file}: {effect}"
        for file, _, edits, effect in faults
        if put_in((ROOT / file).read_text(encoding="utf-8"), edits) is None
    ]
    assert faults and not missing
    test_files = {name for _, tests, *_ in faults for name in tests if name.endswith(".py")}
    assert [name for name in test_files if not (ROOT / name).is_file()] == []


def test_a_fault_replaces_whole_lines():
    source = "a = 1\nif a:\n    b = a\n"
    assert put_in(source, [["b = a", "b = 2"], ["if a:", "if b:"]]) == "a = 1\nif b:\n    b = 2\n"
    assert put_in(source, [["b = b", "b = 2"]]) is None
