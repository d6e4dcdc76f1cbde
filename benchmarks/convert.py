"""How fast downloaded weights become a model directory, and in how much memory.

    python benchmarks/convert.py 124M 1558M [--directory DIR]

Weights of the right shapes and any values are written as the hub has them (bare names, mask
buffers, data at an odd byte) and as OpenAI's store has them (a TensorFlow checkpoint); then a new
process converts each, as it is done after a download. Timed are the checks of all bytes and the
conversion with its fsync, by the clock and by the processor's time: the difference is the disk and
other work on the machine. Memory is the largest sum of the process's own pages (RssAnon, Linux)
less what it had before: mapped files are the system's cache and can be dropped at any time.
Needs 3 times the size of the weights in DIR and the vocabulary of GPT-2 in $GPT2_SHARED/gpt2-vocab.
"""

import argparse
import hashlib
import json
import math
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from common import SIZES, VOCABULARY, hparams_of, machine, run_worker, table, work

from model_files.fetch import install
from model_files.parameters import parameter_shapes, tree_path
from model_files.released import BUNDLE
from model_files.tensor_bundle import MAGIC, masked_crc32c, read_tensor_bundle


def write_data(file, n_bytes):
    """Bytes whose float32 are finite."""
    noise = np.random.default_rng(0).integers(0, 127, 1 << 26, np.uint8)
    for start in range(0, n_bytes, len(noise)):
        file.write(noise[: n_bytes - start].data)


def write_hub(directory, hparams):
    """config.json, vocabulary and model.safetensors."""
    shapes = parameter_shapes(**hparams)
    shapes |= {f"h.{i}.attn.bias": (1, 1, 1024, 1024) for i in range(hparams["n_layer"])}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4 + 3)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        write_data(file, end)
    (directory / "config.json").write_text(json.dumps(hparams))
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(VOCABULARY / name, directory)


def varint(n):
    return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])


def with_length(data):
    return varint(len(data)) + data


def store_shapes(hparams):
    """{"h.0.mlp.c_fc.weight": (m, n), ...} as OpenAI has it: {"model/h0/mlp/c_fc/w": (1, m, n)}"""
    shapes = {}
    for name, shape in parameter_shapes(**hparams).items():
        path = "/".join(map(str, tree_path(name))).replace("blocks/", "h")
        shapes[f"model/{path}"] = (1, *shape) if path.endswith("/w") else shape
    return shapes


def write_store(directory, hparams):
    """hparams.json, vocabulary, and the checkpoint with an index in which nothing is shared."""
    (directory / "hparams.json").write_text(json.dumps(hparams))
    for old, new in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        shutil.copy(VOCABULARY / old, directory / new)
    data, end, entries = directory / BUNDLE, 0, [(b"", b"\x08\x01")]
    shapes = sorted(store_shapes(hparams).items())
    with open(data, "wb") as file:
        write_data(file, sum(4 * math.prod(shape) for _, shape in shapes))
    mapped = np.memmap(data, np.uint8, "r")
    for name, shape in shapes:
        begin, end = end, end + 4 * math.prod(shape)
        entry = b"\x08\x01\x12"
        entry += with_length(b"".join(b"\x12" + with_length(b"\x08" + varint(n)) for n in shape))
        entry += b"\x20" + varint(begin) + b"\x28" + varint(end - begin)
        entry += b"\x35" + masked_crc32c(mapped[begin:end]).to_bytes(4, "little")
        entries.append((name.encode(), entry))

    def block(entries, offset):
        """-> the bytes of a block with its trailer, and its handle."""
        body = b"".join(
            b"\0" + varint(len(key)) + varint(len(value)) + key + value for key, value in entries
        )
        body += bytes(4) + b"\1\0\0\0"
        trailer = b"\0" + masked_crc32c(body + b"\0").to_bytes(4, "little")
        return body + trailer, varint(offset) + varint(len(body))

    first, handle = block(entries, 0)
    second, index = block([(b"n", handle)], len(first))
    footer = (varint(0) + varint(0) + index).ljust(40, b"\0") + MAGIC.to_bytes(8, "little")
    (directory / "model.ckpt.index").write_bytes(first + second + footer)


def anonymous():
    """Bytes of this process's own memory."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def times():
    return np.array([time.perf_counter(), time.process_time()])


def convert(stage, directory):
    """Check and convert, in this process; -> the figures."""
    stage, directory, done = Path(stage), Path(directory), threading.Event()
    before = peak = anonymous()

    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous())

    threading.Thread(target=watch, daemon=True).start()
    start = times()
    if (stage / "model.ckpt.index").exists():
        weights = stage / BUNDLE
        read_tensor_bundle(stage / "model.ckpt", verify=True)
    else:
        weights, sha256 = stage / "model.safetensors", hashlib.sha256()
        with open(weights, "rb") as file:
            while chunk := file.read(1 << 20):
                sha256.update(chunk)
    checked = times()
    install(stage, directory)
    end = times()
    done.set()
    return {
        "bytes": weights.stat().st_size,
        "peak": peak - before,
        "check": (checked - start).tolist(),
        "convert": (end - checked).tolist(),
    }


def main():
    if sys.argv[1:2] == ["--worker"]:
        return work(convert)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", metavar="SIZE", help=f"of {', '.join(SIZES)} (124M)")
    parser.add_argument("--directory", help="where to write; default: the system's for such")
    args = parser.parse_args()
    rows = []
    for size in args.sizes or ["124M"]:
        hparams = hparams_of(size)
        largest = max(4 * math.prod(shape) for shape in parameter_shapes(**hparams).values())
        for source, write in (("hub (SHA-256)", write_hub), ("store (CRC-32C)", write_store)):
            with tempfile.TemporaryDirectory(dir=args.directory) as directory:
                stage, target = Path(directory, "stage"), Path(directory, "model")
                stage.mkdir()
                target.mkdir()
                write(stage, hparams)
                seen = run_worker(__file__, "convert", stage, target)
            speeds = [
                " / ".join(f"{seen['bytes'] / 1e9 / t:.2f}" for t in seen[what])
                for what in ("check", "convert")
            ]
            peak, tensor = (f"{n / 1e6:.0f}" for n in (seen["peak"], largest))
            rows.append((size, source, *speeds, peak, tensor))
            print(*rows[-1], flush=True)
    head = [
        "weights",
        "from",
        "check, GB/s: clock / processor",
        "conversion, GB/s: clock / processor",
        "memory, MB",
        "largest tensor, MB",
    ]
    print("\n".join([*table(head, rows), "", machine(1, ("numpy",))]))


if __name__ == "__main__":
    main()
