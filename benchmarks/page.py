"""Pages of explain.py: how long one takes to make, how large it is, how soon it is ready to read.

    GPT2_SHARED=../shared python benchmarks/page.py

Models of random weights in the shapes of the released ones, with GPT-2's vocabulary; random ids, of
which the first half counts as the prompt. Each page is made in a process of its own, on one thread.
Time is that of the processor, from the ids to the bytes of the page, without loading and
generating; more threads make it shorter. Memory is the resident peak less
what the process had when the weights were there. Ready is what the page itself measures from its
opening to the moment when all but the wall of heads is drawn, in a headless Chromium, if playwright
is installed; the median of five. Writes results/page.md.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from common import VOCABULARY, blas_threads, hparams_of, report, run_worker, table, work

CASES = [("124M", 20), ("124M", 40), ("124M", 100), ("124M", 300), ("124M", 1024), ("1558M", 40)]


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def make(size, n, path):
    import numpy as np

    from encoder import get_encoder
    from explain import record
    from page.data import build
    from training_run import init_params

    hparams, rng = hparams_of(size), np.random.default_rng(0)
    params, encoder = init_params(hparams, rng), get_encoder(VOCABULARY)
    ids, before = rng.integers(hparams["n_vocab"], size=n).tolist(), peak()
    start = time.process_time()
    arrays, fits, notes = record(ids, n // 2, None, params, hparams)
    facts = {
        "model": size,
        "ids": ids,
        "n_cut": 0,
        "beyond": [],
        "n_prompt": n // 2,
        "ended": "length",
    }
    facts |= {"fits": fits, "notes": notes, "hparams": hparams}
    facts["sampling"] = {"temperature": 0.0, "top_k": None, "seed": None}
    page = build(facts, arrays, encoder)
    seconds = time.process_time() - start
    Path(path).write_bytes(page)
    weights = sum(x.nbytes for x in leaves(params)) / 2**20
    return {
        "seconds": seconds,
        "bytes": len(page),
        "memory": peak() - before,
        "weights": weights,
        "notes": notes,
    }


def leaves(tree):
    from model_files.parameters import flatten

    return flatten(tree).values()


def ready(path):
    """Milliseconds until the page can be read, or "" without a browser."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        return ""
    import shutil

    with sync_playwright() as playwright:
        try:
            path_of_browser = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(
                executable_path=path_of_browser, args=["--no-sandbox"]
            )
        except Error:
            return ""
        times = []
        for _ in range(5):
            page = browser.new_page()
            page.goto(Path(path).as_uri())
            page.wait_for_selector("html[data-ready]", timeout=60000)
            times.append(int(page.evaluate("document.documentElement.dataset.ready")))
            page.close()
        browser.close()
        return round(median(times))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="*", help="such as 124M:40 (all)")
    args = parser.parse_args()
    cases = [case.split(":") for case in args.cases or []] or CASES
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for size, n in cases:
            path = Path(folder) / "page.html"
            done = run_worker(__file__, "make", size, int(n), path, env=blas_threads(1))
            seconds, megabytes = f"{done['seconds']:.1f}", f"{done['bytes'] / 1e6:.2f}"
            memory = f"{done['memory']:.0f}", f"{done['weights']:.0f}"
            rows.append((size, n, seconds, megabytes, *memory, ready(path)))
            print(*rows[-1], flush=True, file=sys.stderr)
            if done["notes"]:
                notes.append(f"- {size}, {n} tokens: {'; '.join(done['notes'])}.")
    head = (
        "model",
        "tokens",
        "s to make, one thread",
        "MB",
        "peak MiB more",
        "weights MiB",
        "ms until ready",
    )
    lines = [*table(head, rows), "", "What is thinned out, as the pages say:", "", *notes]
    report("page", lines, threads=1, write=not args.cases)


if __name__ == "__main__":
    work(make) if "--worker" in sys.argv else main()
