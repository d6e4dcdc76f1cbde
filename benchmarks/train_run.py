"""Whole training runs: what Muon buys beside AdamW, memory over a run, fine-tuning 124M.

    python benchmarks/train_run.py ../shared/data/tinyshakespeare.txt --model models/124M

Each run is train.py as its users start it, in a process of its own, one after the other. The
optimisers get the same minutes with the default shape, AdamW at several peak rates, and are
compared by the loss on the whole held-out tail. Memory is the resident size of the process, read
ten times a second: "after a tenth" is its maximum in the first tenth of the run, "to the end" in
all of it. Fine-tuning takes a few steps of 4 sequences of 256 tokens; the first is not counted.
Writes results/train_run.md. Linux only (it reads /proc).
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, TEXT, report, table

RATES = {"muon": ("4e-3",), "adamw": ("5e-4", "1e-3", "2e-3")}


def run(text, out, *options):
    """-> what train.py prints, its wall time in s, [(seconds, resident MiB)]"""
    command = [ROOT / "train.py", text, "--out", out, "--overwrite", *options]
    command = [sys.executable, *map(str, command)]
    start, memory = time.perf_counter(), []
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            if found := re.search(r"VmRSS:\s+(\d+)", status):
                memory.append((time.perf_counter() - start, int(found[1]) / 2**10))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        output.seek(0)
        printed = output.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{printed}")
    return printed, seconds, memory


def compare(text, minutes, out):
    rows = []
    for name, rates in RATES.items():
        for rate in rates:
            options = f"--minutes {minutes} --optimizer {name} --learning_rate {rate}"
            printed, seconds, memory = run(text, out, *options.split())
            steps = re.findall(r"^step (\d+),", printed, re.MULTILINE)[-1]
            loss = re.findall(r"nats per character +([\d.]+)", printed)[-1]
            early = max(mib for second, mib in memory if second < seconds / 10)
            late = max(mib for _, mib in memory)
            rows.append((name, rate, steps, loss, f"{early:.0f}", f"{late:.0f}"))
            print(*rows[-1], flush=True)
    return rows


def fine_tune(text, model, out, optimizer):
    """-> seconds a step, peak MiB"""
    seconds = []
    for steps in 1, 4:
        options = f"--n_ctx 256 --batch_size 4 --iterations {steps} --learning_rate 1e-4"
        options = *options.split(), "--optimizer", optimizer, "--init_from", model
        _, _, memory = run(text, out, *options)
        log = (out / "log.csv").read_text(encoding="utf-8")
        seconds.append(float(log.split()[-1].split(",")[1]))
    return (seconds[1] - seconds[0]) / 3, max(mib for _, mib in memory)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", nargs="?", type=Path, default=TEXT)
    parser.add_argument("--model", help="of GPT-2's size, to fine-tune")
    parser.add_argument("--minutes", type=float, default=3, help="of each run (3)")
    args = parser.parse_args()
    head = "optimiser, peak rate, steps, nats per character, MiB after a tenth, MiB to the end"
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        rows = compare(args.text, args.minutes, out)
        lines = ["### Optimisers", "", f"{args.minutes:g} minutes each, the default shape.", ""]
        lines += table(head.split(", "), rows)
        if args.model:
            start = Path(directory) / "start.txt"
            start.write_text(args.text.read_text(encoding="utf-8")[:100_000], encoding="utf-8")
            rows = []
            for name in RATES:
                seconds, mib = fine_tune(start, args.model, out, name)
                rows.append((name, f"{seconds:.1f}", f"{mib:.0f}"))
                print(*rows[-1], flush=True)
            lines += ["", "### Fine-tuning 124M", "", "4 sequences of 256 tokens a step.", ""]
            lines += table(["optimiser", "s a step", "peak MiB"], rows)
    report("train_run", lines)


if __name__ == "__main__":
    main()
