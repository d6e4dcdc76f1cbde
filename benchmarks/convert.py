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
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SHAPES = {
    "124M": (12, 12, 768),
    "355M": (24, 16, 1024),
    "774M": (36, 20, 1280),
    "1558M": (48, 25, 1600),
}
SHARED = Path(os.environ.get("GPT2_SHARED", ROOT.parent / "shared"))


def shapes(size):
    from make_golden_tf import gpt2_shapes

    n_layer, n_head, n_embd = SHAPES[size]
    return gpt2_shapes(50257, 1024, n_embd, n_head, n_layer)


def write_data(file, n_bytes):
    """Bytes whose float32 are finite."""
    noise = np.random.default_rng(0).integers(0, 127, 1 << 26, np.uint8)
    for start in range(0, n_bytes, len(noise)):
        file.write(noise[: n_bytes - start].data)


def write_hub(directory, size):
    """config.json, vocabulary and model.safetensors."""
    from utils import from_openai

    tensors = {
        name: x.shape
        for name, x in from_openai(
            {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes(size).items()}
        ).items()
    }
    n_layer, n_head, n_embd = SHAPES[size]
    tensors |= {f"h.{i}.attn.bias": (1, 1, 1024, 1024) for i in range(n_layer)}
    header, end = {}, 0
    for name, shape in tensors.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4 + 3)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        write_data(file, end)
    config = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}
    (directory / "config.json").write_text(json.dumps(config))
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(SHARED / "gpt2-vocab" / name, directory)


def number(n):
    """A varint."""
    return bytes([n & 127 | 128]) + number(n >> 7) if n > 127 else bytes([n])


def write_store(directory, size):
    """hparams.json, vocabulary, and the checkpoint with an index in which nothing is shared."""
    from tf_checkpoint import MAGIC, masked_crc32c

    n_layer, n_head, n_embd = SHAPES[size]
    (directory / "hparams.json").write_text(
        json.dumps(
            {
                "n_vocab": 50257,
                "n_ctx": 1024,
                "n_embd": n_embd,
                "n_head": n_head,
                "n_layer": n_layer,
            }
        )
    )
    for old, new in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        shutil.copy(SHARED / "gpt2-vocab" / old, directory / new)
    data, end, entries = directory / "model.ckpt.data-00000-of-00001", 0, [(b"", b"\x08\x01")]
    tensors = sorted(shapes(size).items())
    with open(data, "wb") as file:
        write_data(file, sum(4 * int(np.prod(shape)) for _, shape in tensors))
    mapped = np.memmap(data, np.uint8, "r")
    for name, shape in tensors:
        begin, end = end, end + 4 * int(np.prod(shape))
        dims = b"".join(b"\x12" + number(len(number(n)) + 1) + b"\x08" + number(n) for n in shape)
        entries.append(
            (
                name.encode(),
                b"\x08\x01\x12"
                + number(len(dims))
                + dims
                + b"\x20"
                + number(begin)
                + b"\x28"
                + number(end - begin)
                + b"\x35"
                + masked_crc32c(mapped[begin:end]).to_bytes(4, "little"),
            )
        )

    def block(entries, offset):
        """-> the bytes of a block with its trailer, and its handle."""
        body = (
            b"".join(
                b"\0" + number(len(key)) + number(len(value)) + key + value
                for key, value in entries
            )
            + bytes(4)
            + b"\1\0\0\0"
        )
        trailer = b"\0" + masked_crc32c(body + b"\0").to_bytes(4, "little")
        return body + trailer, number(offset) + number(len(body))

    first, handle = block(entries, 0)
    second, index = block([(b"n", handle)], len(first))
    footer = (number(0) + number(0) + index).ljust(40, b"\0") + MAGIC.to_bytes(8, "little")
    (directory / "model.ckpt.index").write_bytes(first + second + footer)


def anonymous():
    """Bytes of this process's own memory."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def times():
    return np.array([time.perf_counter(), time.process_time()])


def convert(stage, directory):
    """Check and convert, in this process; print the figures as JSON."""
    from fetch import install, read_checkpoint

    stage, directory, done = Path(stage), Path(directory), threading.Event()
    before = peak = anonymous()

    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous())

    threading.Thread(target=watch, daemon=True).start()
    start = times()
    if (stage / "model.ckpt.index").exists():
        weights = stage / "model.ckpt.data-00000-of-00001"
        read_checkpoint(stage / "model.ckpt", verify=True)
    else:
        weights, sha256 = stage / "model.safetensors", hashlib.sha256()
        with open(weights, "rb") as file:
            while chunk := file.read(1 << 20):
                sha256.update(chunk)
    checked = times()
    install(stage, directory)
    end = times()
    done.set()
    print(
        json.dumps(
            {
                "bytes": weights.stat().st_size,
                "peak": peak - before,
                "check": (checked - start).tolist(),
                "convert": (end - checked).tolist(),
            }
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", choices=[*SHAPES, []], default=["124M"])
    parser.add_argument("--directory", help="where to write; default: the system's for such")
    arguments = parser.parse_args()
    print(
        "| weights | from | check, GB/s: clock / processor | conversion, GB/s: clock / processor "
        "| memory, MB | largest tensor, MB |"
    )
    print("|---|---|---|---|---|---|")
    for size in arguments.sizes:
        largest = max(4 * int(np.prod(shape)) for shape in shapes(size).values())
        for source, write in (("hub (SHA-256)", write_hub), ("store (CRC-32C)", write_store)):
            with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
                stage, target = Path(directory, "stage"), Path(directory, "model")
                stage.mkdir()
                target.mkdir()
                write(stage, size)
                run = subprocess.run(
                    [sys.executable, __file__, "--convert", stage, target],
                    capture_output=True,
                    text=True,
                    check=True,
                )
            seen = json.loads(run.stdout)
            check, conversion = (
                " / ".join(f"{seen['bytes'] / 1e9 / t:.2f}" for t in seen[what])
                for what in ("check", "convert")
            )
            print(
                f"| {size} | {source} | {check} | {conversion} | {seen['peak'] / 1e6:.0f} | "
                f"{largest / 1e6:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--convert"]:
        convert(*sys.argv[2:])
    else:
        main()
