"""What the benchmarks share: where things lie, sizes, times, worker processes, tables, results.

Importing it lets a script import the project's modules. Nothing here imports NumPy at once: how
many threads a BLAS has, and how long they spin, is in the environment of the process that does.
"""

import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHARED = Path(os.environ.get("GPT2_SHARED", ROOT.parent / "shared"))
VOCABULARY, TEXT = SHARED / "gpt2-vocab", SHARED / "data" / "tinyshakespeare.txt"
SIZES = {  # n_layer, n_head, n_embd
    "124M": (12, 12, 768),
    "355M": (24, 16, 1024),
    "774M": (36, 20, 1280),
    "1558M": (48, 25, 1600),
}
sys.path.insert(0, str(ROOT))  # before this folder, which has an encoder.py as well
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")  # as in our commands: see startup.py


def hparams_of(size):
    n_layer, n_head, n_embd = SIZES[size]
    shape = {"n_vocab": 50257, "n_ctx": 1024, "n_embd": n_embd, "n_head": n_head}
    return {**shape, "n_layer": n_layer, "layer_norm_epsilon": 1e-5, "eos_token_ids": [50256]}


def matrices(params):
    """Those that a row is multiplied with on its way: all inside blocks, and the output's."""
    from model_files.parameters import flatten
    from optimizer import MATRIX, kind

    inside = [x for name, x in flatten(params).items() if kind(name, x) == MATRIX]
    return [*inside, params["wte"].T]


def one_row(params):
    """-> function that multiplies one row with every matrix, and does nothing else: the floor."""
    import numpy as np

    pairs = [(np.ones((1, len(w)), np.float32), w) for w in matrices(params)]
    return lambda: [x @ w for x, w in pairs]


def timed(function, *arguments, n=1):
    """-> seconds of a call, the mean of n in a row, and what the last one returns."""
    start = time.perf_counter()
    for _ in range(n):
        result = function(*arguments)
    return (time.perf_counter() - start) / n, result


def medians(functions, rounds):
    """{name: (function, n)} -> {name: median seconds of a call}; in each round all take a turn."""
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, (function, n) in functions.items():
            times[name].append(timed(function, n=n)[0])
    return {name: median(column) for name, column in times.items()}


def blas_threads(n):
    """-> the environment of a process whose BLAS has n threads."""
    names = ("OPENBLAS_NUM", "OMP_NUM", "MKL_NUM", "VECLIB_MAXIMUM")
    return {**os.environ, **{f"{name}_THREADS": str(n) for name in names}}


def run_worker(script, *job, env=None):
    """Do a job in a process of its own, which calls work; -> what it returns."""
    command = [sys.executable, script, "--worker", json.dumps(job, default=str)]
    return json.loads(subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout)


def work(*functions):
    """In the worker: print what the job returns, and nothing that libraries print beside it."""
    name, *arguments = json.loads(sys.argv[2])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    result = {function.__name__: function for function in functions}[name](*arguments)
    print(json.dumps(result), file=out)


def table(head, rows):
    """Lines of Markdown."""
    rows = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def machine(threads, packages):
    """One line: processor, system, threads, and the versions of what is installed of packages."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
    versions = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            pass
    system = f"{os.cpu_count()} cores, {platform.system()}"
    return f"{cpu}, {system}; {threads} thread{'s' * (threads > 1)}; {', '.join(versions)}."


def report(name, lines, packages=("numpy",), threads=None, write=True):
    """Print the lines and the machine's, and write them to results/NAME.md."""
    text = "\n".join([*lines, "", machine(threads or os.cpu_count(), packages), ""])
    print(text)
    if write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
