"""Put plausible faults into the source, one at a time, and check that the tests catch them.

    python tests/mutants.py [FILE ...] [--jobs 2]

The faults are in mutants.txt. Each is put into a copy of the repository, and the tests that should
catch it run there, the fastest first. A line is printed for each fault: it was caught, it survives,
its line of the source was not found, or its tests fail even without it. The exit status is 0 only
if all were caught. Without FILE, all faults are tried.
"""

import argparse
import contextlib
import json
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = {".git", ".venv", "__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis"}
LEFT_OUT |= {"benchmarks"}
SECONDS = "MUTANTS_SECONDS"  # This environment variable names a file of {test: its seconds}.


def read(path):
    """Return [(file, tests, [[line of the source, wrong line], ...], effect), ...]."""
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
            faults.append((file, tuple(tests), edits, rest.strip()))
            edits = []
    return faults


def put_in(source, edits):
    """Return the source after the edits, [[old line, new line], ...], or None if one is missing."""
    lines = source.split("\n")
    stripped = [line.strip() for line in lines]
    for old, new in edits:
        if old not in stripped:
            return None
        i = stripped.index(old)
        lines[i] = lines[i].replace(old, new)
    return "\n".join(lines)


def try_one(copy, fault, seconds):
    """Return "caught", "SURVIVES", "NOT FOUND" (the line), or "BAD TESTS" (they fail anyway)."""
    file, tests, edits, _ = fault
    if not seconds.exists():
        return "BAD TESTS"
    path = copy / file
    source = path.read_text(encoding="utf-8")
    wrong = put_in(source, edits)
    if wrong is None:
        return "NOT FOUND"
    path.write_text(wrong, encoding="utf-8", newline="\n")
    try:
        return "SURVIVES" if passes(copy, tests, seconds) else "caught"
    finally:
        path.write_text(source, encoding="utf-8", newline="\n")


def passes(copy, tests, seconds):
    """Return whether these tests pass in a copy. Tests that take far too long count as failed.

    seconds: the path of a file of {test: its seconds}, which is written if it does not exist.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    limit = 60 + 10 * total(seconds) if seconds.exists() else 900
    env = {**os.environ, "PYTHONPATH": str(copy / "tests"), SECONDS: str(seconds)}
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": env}
    process = subprocess.Popen(
        [*command, "-p", "mutants", *tests], cwd=copy, start_new_session=True, **options
    )
    try:
        return process.wait(limit) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(OSError):  # Also kill the commands that the tests have started.
            if os.name == "posix":
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()


def total(seconds):
    """Return the seconds that all tests in such a file take, or 0 if it does not exist."""
    return sum(json.loads(seconds.read_text()).values()) if seconds.exists() else 0


# pytest runs the following functions as a plugin.

seconds_of_test = defaultdict(float)


def pytest_collection_modifyitems(items):
    """Put the fastest tests first, but keep those of one file together."""
    path = Path(os.environ[SECONDS])
    if not path.exists():
        return
    seconds = json.loads(path.read_text())
    of_file = defaultdict(float)
    for item in items:
        of_file[item.path] += seconds.get(item.nodeid, 0)
    items.sort(key=lambda item: (of_file[item.path], item.path, seconds.get(item.nodeid, 0)))


def pytest_runtest_logreport(report):
    seconds_of_test[report.nodeid] += report.duration


def pytest_sessionfinish(exitstatus):
    path = Path(os.environ[SECONDS])
    if exitstatus == 0 and not path.exists():
        path.write_text(json.dumps(seconds_of_test))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", help="try only the faults of these files or folders")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="tests run at a time")
    args = parser.parse_args()
    faults = read(ROOT / "tests" / "mutants.txt")
    if args.files:
        faults = [fault for fault in faults if fault[0].startswith(tuple(args.files))]
    if not faults:
        parser.error(f"mutants.txt has no faults of {', '.join(args.files)}")
    os.environ.setdefault("GPT2_SHARED", str(ROOT.parent / "shared"))
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(args.jobs) as pool:
        copies = queue.Queue()
        for i in range(args.jobs):
            copy = Path(directory, str(i), "gpt2")
            shutil.copytree(ROOT, copy, ignore=lambda _, names: LEFT_OUT & set(names))
            copies.put(copy)

        def with_copy(function, *args):
            copy = copies.get()
            try:
                return function(copy, *args)
            finally:
                copies.put(copy)

        groups = sorted({tests for _, tests, *_ in faults})
        seconds = {tests: Path(directory, f"{i}.json") for i, tests in enumerate(groups)}
        are_good = pool.map(lambda tests: with_copy(passes, tests, seconds[tests]), groups)
        for tests, is_good in zip(groups, are_good):
            if not is_good:
                print(f"these tests fail without any fault: {shlex.join(tests)}", flush=True)
        faults.sort(key=lambda fault: total(seconds[fault[1]]))
        results = pool.map(lambda fault: with_copy(try_one, fault, seconds[fault[1]]), faults)
        n_caught = 0
        for (file, _, edits, effect), result in zip(faults, results):
            n_caught += result == "caught"
            print(f"{result:10}{file}: {effect}", flush=True)
            if result != "caught":
                print(*(f"{'':10}{line}" for edit in edits for line in edit), sep="\n", flush=True)
    print(f"{n_caught} of {len(faults)} caught")
    return 0 if n_caught == len(faults) else 1


if __name__ == "__main__":
    sys.exit(main())
