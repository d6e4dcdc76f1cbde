"""Read safetensors files by mapping them into memory, and write them with aligned data."""

import json
import math
import mmap
import os

import numpy as np

from model_files.files import MAX_SETTINGS, describe, open_regular, read_json, write_atomic

MAX_NAME = 250  # A tensor's name may have this many characters.
BF16 = np.dtype([("bfloat16", "<u2")])  # NumPy has no bfloat16, so this holds its two bytes.
# These are the names of types in a file, with NumPy's types.
DTYPES = {f"I{8 * n}": np.dtype(f"<i{n}") for n in (1, 2, 4, 8)}
DTYPES |= {f"U{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)}
DTYPES |= {f"F{8 * n}": np.dtype(f"<f{n}") for n in (2, 4, 8)}
DTYPES |= {"BF16": BF16, "BOOL": np.dtype("?")}


def read_safetensors(path):
    """Return {name: array}. The arrays are mapped from the file: read-only, and maybe unaligned.

    A file begins with the length of its header in 8 bytes, little-endian. Then comes the header in
    JSON: {"wte.weight": {"dtype": "F32", "shape": [50257, 768], "data_offsets": [0, 154389504]},
    ...}, and then the data without holes. ValueError naming the file if it is not like this.
    """
    with open_regular(path) as file:
        size = os.path.getsize(path)
        start = 8 + int.from_bytes(file.read(8), "little")
        if not 8 < start <= min(size, MAX_SETTINGS):
            file.seek(0)
            fault = describe(file.read(64))
            raise ValueError(f"{path}: not a safetensors file ({size} bytes): {fault}")
        header = read_json(path, file.read(start - 8))
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if max(map(len, header), default=0) > MAX_NAME:
        raise ValueError(f"{path}: a tensor's name is longer than {MAX_NAME} characters")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{path}: __metadata__ is not a dict of strings")
    entries = sorted((*check_entry(path, name, entry), name) for name, entry in header.items())
    tensors, end = {}, 0
    for begin, stop, name in entries:
        if begin != end:
            raise ValueError(f"{path}: hole or overlap before tensor {name!r} at byte {begin}")
        dtype, shape, end = DTYPES[header[name]["dtype"]], tuple(header[name]["shape"]), stop
        if end > size - start:
            raise ValueError(f"{path}: cut off: tensor {name!r} ends at {end} of {size - start}")
        tensors[name] = np.ndarray(shape, dtype, mapped, start + begin)
    if end != size - start:
        raise ValueError(f"{path}: there are {size - start - end} bytes after the last tensor")
    return tensors


def check_entry(path, name, entry):
    """Return (begin, end) of a tensor; ValueError unless its dtype, shape and offsets agree."""

    def is_list_of_sizes(numbers):
        return (
            isinstance(numbers, list)
            and len(numbers) <= 16
            and all(type(n) is int and 0 <= n < 1 << 48 for n in numbers)
        )

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{path}: tensor {name!r} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{path}: tensor {name!r} has the unknown dtype {dtype!r:.40}")
    if not is_list_of_sizes(shape) or not is_list_of_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{path}: tensor {name!r} has a damaged shape or data_offsets")
    # NumPy limits the product of the other axes, even if one is 0 and the tensor takes no bytes.
    if math.prod(max(n, 1) for n in shape) >= 1 << 48:
        raise ValueError(f"{path}: tensor {name!r} has the impossible shape {shape}")
    if math.prod(shape) * DTYPES[dtype].itemsize != offsets[1] - offsets[0]:
        raise ValueError(f"{path}: tensor {name!r}: {dtype} {shape} does not fit bytes {offsets}")
    return offsets


def write_safetensors(path, tensors, metadata=None, dtype=None):
    """Write {name: array} to a file, which is replaced only when all is written."""
    with write_atomic(path) as file:
        write_tensors(file, tensors, metadata, dtype)


def write_tensors(file, tensors, metadata=None, dtype=None):
    """Write {name: array}, one tensor at a time. dtype: convert all of them to it.

    Spaces pad the header to a multiple of 64 bytes, so the data can be used without a copy.
    """
    names, header, end = {dtype: name for name, dtype in DTYPES.items()}, {}, 0
    if metadata:
        header["__metadata__"] = metadata
    stored = {name: np.dtype(dtype or x.dtype) for name, x in tensors.items()}
    # Tensors of small numbers come last, since they could unalign those after them.
    order = sorted(tensors, key=lambda name: -stored[name].itemsize)
    for name in order:
        begin, end = end, end + tensors[name].size * stored[name].itemsize
        header[name] = {
            "dtype": names[stored[name]],
            "shape": tensors[name].shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(raw_bytes(tensors[name], stored[name]))


def raw_bytes(x, dtype):
    """Return the bytes of an array, converted to dtype, as a memoryview."""
    x = x if x.dtype == dtype else widen(x).astype(dtype, copy=False)
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8).data


def widen(x):
    """Return an array as float32. An aligned float32 array is returned as it is, still mapped."""
    if x.dtype == BF16:  # A bfloat16 is the upper half of a float32.
        return (x["bfloat16"].astype(np.uint32) << 16).view(np.float32)
    return np.require(x, np.float32, "A")
