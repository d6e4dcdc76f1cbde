"""The safetensors format: read by mapping, written aligned."""

import json
import math
import mmap
import os

import numpy as np

from model_files.files import MAX_SETTINGS, open_regular, read_json, write_atomic

MAX_NAME = 250  # characters
BF16 = np.dtype([("bfloat16", "<u2")])  # NumPy has no such number: its two bytes, to be widened
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": BF16,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
DTYPES = {name: np.dtype(dtype) for name, dtype in DTYPES.items()}


def read_safetensors(path):
    """Return {name: array}, mapped from the file: read-only, as it is stored, maybe unaligned.

    A file has 8 bytes, little-endian: the length of the header; the header, JSON; the data, without
    holes: {"wte.weight": {"dtype": "F32", "shape": [50257, 768], "data_offsets": [0, 154389504]},
    ...}. ValueError naming the file if it is not like this.
    """
    with open_regular(path) as file:
        size = os.path.getsize(path)
        start = 8 + int.from_bytes(file.read(8), "little")
        if not 8 < start <= min(size, MAX_SETTINGS):
            raise ValueError(f"{path}: no safetensors file, or cut off: {size} bytes")
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
            raise ValueError(f"{path}: hole or overlap before tensor {name!r} at offset {begin}")
        dtype, shape, end = DTYPES[header[name]["dtype"]], tuple(header[name]["shape"]), stop
        if end > size - start:
            raise ValueError(f"{path}: cut off: tensor {name!r} ends at {end} of {size - start}")
        tensors[name] = np.ndarray(shape, dtype, mapped, start + begin)
    if end != size - start:
        raise ValueError(f"{path}: {size - start - end} bytes after the last tensor")
    return tensors


def check_entry(path, name, entry):
    """Return (begin, end) of a tensor; ValueError unless its dtype, shape and offsets agree."""

    def whole(numbers):
        return (
            isinstance(numbers, list)
            and len(numbers) <= 16
            and all(type(n) is int and 0 <= n < 1 << 48 for n in numbers)
        )

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{path}: tensor {name!r} has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{path}: tensor {name!r} has the unknown dtype {dtype!r:.40}")
    if not whole(shape) or not whole(offsets) or len(offsets) != 2:
        raise ValueError(f"{path}: tensor {name!r} has a damaged shape or data_offsets")
    # A tensor without elements takes no bytes, but NumPy bounds its other axes all the same.
    if math.prod(max(n, 1) for n in shape) >= 1 << 48:
        raise ValueError(f"{path}: tensor {name!r} has the impossible shape {shape}")
    if math.prod(shape) * DTYPES[dtype].itemsize != offsets[1] - offsets[0]:
        raise ValueError(f"{path}: tensor {name!r}: {dtype} {shape} does not fit {offsets}")
    return offsets


def write_safetensors(path, tensors, metadata=None, dtype=None):
    """Write {name: array} into a new file."""
    with write_atomic(path) as file:
        write_tensors(file, tensors, metadata, dtype)


def write_tensors(file, tensors, metadata=None, dtype=None):
    """Write {name: array}, aligned to 64 bytes, one tensor at a time; dtype converts them all.

    The header is padded with spaces, so that the data can be mapped and multiplied without a copy.
    """
    names, header, end = {dtype: name for name, dtype in DTYPES.items()}, {}, 0
    if metadata:
        header["__metadata__"] = metadata
    stored = {name: np.dtype(dtype or x.dtype) for name, x in tensors.items()}
    order = sorted(tensors, key=lambda name: -stored[name].itemsize)  # keeps small ones from
    for name in order:  # unaligning the large
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
    """Return an array as float32. F32 that is aligned stays as it is, mapped from its file."""
    if x.dtype == BF16:  # the upper half of a float32
        return (x["bfloat16"].astype(np.uint32) << 16).view(np.float32)
    return np.require(x, np.float32, "A")
