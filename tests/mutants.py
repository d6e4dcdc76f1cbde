"""Put plausible faults into the source, one at a time, and see whether the tests notice.

    python tests/mutants.py [FILE ...] [--jobs 2]

The faults are in mutants.txt. Each is put into a copy of the repository, where the tests run that
should notice; one that they do not notice is printed, and the exit status is 1. So it is if a line
is no longer found. All of them take an hour; FILE takes those of one file.
"""

import argparse
import os
import queue
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = {".git", ".venv", "__pycache__", ".pytest_cache", ".ruff_cache", "benchmarks"}


def read(path):
    """-> [(file, tests, [[line as it is, line as it would be wrong], ...], what it breaks), ...]"""
    faults, file, tests, edits = [], None, None, []
    for line in path.read_text(encoding="utf-8").splitlines():
        sign, rest = line[:1], line[2:]
        if sign == "@":
            file, *tests = shlex.split(rest)
        elif sign == "-":
            edits.append([rest.strip()])
        elif sign == "+":
            edits[-1].append(rest.strip())
        elif sign == "=":
            faults.append((file, tests, edits, rest.strip()))
            edits = []
    return faults


def put_in(source, edits):
    """The source with the first line that reads so replaced, for each; None if there is none."""
    lines = source.split("\n")
    stripped = [line.strip() for line in lines]
    for old, new in edits:
        if old not in stripped:
            return None
        i = stripped.index(old)
        lines[i] = lines[i].replace(old, new)
    return "\n".join(lines)


def try_one(copy, fault):
    """-> "noticed", "SURVIVES" or "NOT FOUND"."""
    file, tests, edits, _ = fault
    path = copy / file
    source = path.read_text(encoding="utf-8")
    wrong = put_in(source, edits)
    if wrong is None:
        return "NOT FOUND"
    path.write_text(wrong, encoding="utf-8", newline="\n")
    try:
        return "SURVIVES" if pass_in(copy, tests) else "noticed"
    finally:
        path.write_text(source, encoding="utf-8", newline="\n")


def pass_in(copy, tests):
    """-> whether these tests pass there; what goes on for ever does not."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        return subprocess.run(command, cwd=copy, capture_output=True, timeout=900).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", help="only the faults of these files")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    faults = [one for one in read(ROOT / "tests" / "mutants.txt") if one[0] in args.files]
    faults = faults or read(ROOT / "tests" / "mutants.txt")
    os.environ.setdefault("GPT2_SHARED", str(ROOT.parent / "shared"))
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    copies, n_bad = queue.Queue(), 0
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(args.jobs) as pool:
        for i in range(args.jobs):
            copy = Path(directory, str(i), "gpt2")
            shutil.copytree(ROOT, copy, ignore=lambda _, names: OUT & set(names))
            copies.put(copy)

        for tests in sorted({tuple(tests) for _, tests, *_ in faults}):
            if not pass_in(copy, tests):  # or every fault would count as noticed
                sys.exit(f"these fail without a fault: {' '.join(tests)}")

        def one(fault):
            copy = copies.get()
            try:
                return fault, try_one(copy, fault)
            finally:
                copies.put(copy)

        for (file, _, edits, breaks), found in pool.map(one, faults):
            n_bad += found != "noticed"
            print(f"{found:10}{file}: {breaks}", flush=True)
            if found != "noticed":
                print(*(f"{'':10}{line}" for edit in edits for line in edit), sep="\n", flush=True)
    print(f"{len(faults)} faults, {n_bad} not noticed or not found")
    return 1 if n_bad else 0


if __name__ == "__main__":
    sys.exit(main())
