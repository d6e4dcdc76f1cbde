"""What the benchmarks share: paths, model sizes, timing, worker processes, tables, results.

After `import common`, a script can import the modules of the project. Import it before NumPy,
because it sets how long idle OpenBLAS threads stay awake.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ROOT / "README.md", ROOT / "docs" / "speed.md"
SHARED = Path(os.environ.get("GPT2_SHARED", ROOT.parent / "shared"))
VOCABULARY = SHARED / "gpt2-vocab"
TEXT = SHARED / "data" / "tinyshakespeare.txt"
N_THREADS = os.cpu_count()  # All programs get the same number of threads.
WEIGHTS = "reading all weights once"  # the name of a row in several tables
SIZES = {  # n_layer, n_head, n_embd
    "124M": (12, 12, 768),
    "355M": (24, 16, 1024),
    "774M": (36, 20, 1280),
    "1558M": (48, 25, 1600),
}
sys.path.insert(0, str(ROOT))  # This folder has an encoder.py, too, but the project's comes first.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")  # as the commands set it


def hparams_of(size):
    n_layer, n_head, n_embd = SIZES[size]
    return {
        "n_vocab": 50257,
        "n_ctx": 1024,
        "n_embd": n_embd,
        "n_head": n_head,
        "n_layer": n_layer,
        "layer_norm_epsilon": 1e-5,
        "eos_token_ids": [50256],
    }


def matrices(params):
    """Yield every matrix that a pass multiplies its rows with."""
    for block in params["blocks"]:
        for layer in (*block["attn"].values(), *block["mlp"].values()):
            yield layer["w"]
    yield params["wte"].T


def read_weights(params):
    """Return a function that only multiplies one row with every matrix."""
    import numpy as np

    pairs = [(np.ones((1, len(w)), np.float32), w) for w in matrices(params)]
    return lambda: [x @ w for x, w in pairs]


def timed(function, *arguments, n=1):
    """Call a function n times; return the mean seconds per call, and the last result."""
    start = time.perf_counter()
    for _ in range(n):
        result = function(*arguments)
    return (time.perf_counter() - start) / n, result


def medians(functions, rounds):
    """Time functions in turn, once per round; return {name: median seconds per call}.

    functions: {name: (function, n)}; in each round, n calls are timed together.
    """
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, (function, n) in functions.items():
            seconds[name].append(timed(function, n=n)[0])
    return {name: median(column) for name, column in seconds.items()}


def run_program(command, **options):
    """Run a program; return its time in seconds, its peak memory in MiB, and its standard output.

    On Linux the peak includes the memory of the calling script at the start, so keep that small.
    """
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=printed, stderr=errors, **options)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        errors.seek(0)
        if process.returncode:
            sys.exit(f"{command[:3]} failed:\n{errors.read().decode()}")
        units_per_mib = 2**20 if sys.platform == "darwin" else 2**10
        return seconds, usage.ru_maxrss / units_per_mib, printed.read()


def blas_threads():
    """Return the environment of a process whose BLAS uses all threads."""
    names = ("OPENBLAS_NUM", "OMP_NUM", "MKL_NUM", "VECLIB_MAXIMUM")
    return {**os.environ, **{f"{name}_THREADS": str(N_THREADS) for name in names}}


def run_worker(script, *job):
    """Call a function of a script in a new process, and return its result.

    job: the function's name and its arguments. The script must pass the function to start().
    """
    command = [sys.executable, script, "--worker", json.dumps(job, default=str)]
    process = subprocess.run(command, env=blas_threads(), stdout=subprocess.PIPE, check=True)
    return json.loads(process.stdout)


def start(main, *jobs):
    """Run main, or, in a worker process, run its job and print the result as JSON."""
    if "--worker" not in sys.argv:
        main()
        return
    name, *arguments = json.loads(sys.argv[2])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # From here on, libraries print to stderr.
    result = {job.__name__: job for job in jobs}[name](*arguments)
    print(json.dumps(result), file=out)


def table(head, rows):
    """Return the lines of a Markdown table."""
    rows = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def machine(packages, threads=N_THREADS):
    """Return a line with the processor, system, threads, and versions of installed packages."""
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
    plural = "s" if threads > 1 else ""
    return f"{cpu}, {system}; {threads} thread{plural}; {', '.join(versions)}."


def report(name, lines, packages=("numpy",), threads=N_THREADS, write=True):
    """Print a table and the machine; write both to results/NAME.md, and the table into PAGES."""
    text = "\n".join([*lines, "", machine(packages, threads)])
    print(text)
    if write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
        fill(name, lines)


def fill(marker, lines):
    """Put lines between <!-- marker --> and <!-- end --> in PAGES."""
    text = "\n".join(lines)
    for path in PAGES:
        before, mark, rest = path.read_text(encoding="utf-8").partition(f"<!-- {marker} -->\n")
        if mark:
            _, end, after = rest.partition("<!-- end -->")
            path.write_text(f"{before}{mark}{text}\n{end}{after}", encoding="utf-8")
