"""Read TensorFlow's checkpoints ("tensor bundles"), a small index and data, without TensorFlow.

Sources, in tensorflow/core: lib/io/format.cc, util/tensor_bundle, protobuf/tensor_bundle.proto.
The checksums in the index are not compared: downloaded files have been verified by other hashes.
"""

import math
import mmap
import os

import numpy as np

from model_files.files import open_regular

DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 9: "<i8", 19: "<f2"}  # The keys: see types.proto.
MAGIC = 0xDB4775248B80FB57  # Each sorted string table ends with this number.
MAX_INDEX = 1 << 17  # An index may have this many bytes. The largest GPT-2's has 20 KB.
MAX_KEY = 250  # A key may have this many bytes. A small file can hold long ones: see read_block.


def read_tensor_bundle(prefix):
    """Return {name: array}. The arrays are mapped from the data files: read-only."""
    path, shards, ends, tensors = f"{prefix}.index", {}, {}, {}
    with open_regular(path) as file:
        index = file.read(MAX_INDEX + 1)
    try:
        n_shards, entries = read_index(index)
    except ValueError as error:
        raise ValueError(f"{path}: damaged, or not a TensorFlow index: {error}") from None
    for shard, begin, end, name, dtype, shape in entries:
        data = f"{prefix}.data-{shard:05d}-of-{n_shards:05d}"
        if shard not in shards:
            shards[shard] = map_file(data)
        if not ends.get(shard, 0) <= begin <= end <= len(shards[shard]):
            raise ValueError(
                f"{data}: it has {len(shards[shard])} bytes, but tensor {name} lies from byte "
                f"{begin} to {end}: it is cut off, or belongs to another index"
            )
        ends[shard] = end
        tensors[name] = np.ndarray(shape, dtype, shards[shard], begin)
    return tensors


def map_file(path):
    with open_regular(path) as file:
        if os.path.getsize(path):
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return b""  # An empty file cannot be mapped.


def read_index(data):
    """Return the number of data files, and a sorted [(shard, begin, end, name, dtype, shape)]."""
    table = read_table(data)
    key, value = next(table, (None, b""))
    if key != b"":
        raise ValueError("it has no header")
    header = dict(read_proto(value))
    if header.get(0x10, 0) or not 0 < header.get(0x08, 0) < 100_000:  # endianness, num_shards
        raise ValueError("it is big-endian, or has no data file")
    return header[0x08], sorted(read_entry(key, value) for key, value in table)


def read_entry(key, value):
    """Return (shard, begin, end, name, dtype, shape) of a BundleEntryProto."""
    name = ascii(key.decode("utf-8"))[1:-1]
    fields = dict(read_proto(value))
    # A tag is a field's number times 8, plus its wire type. Fields whose value is 0 are left out.
    number = fields.get(0x08, 0)
    proto = fields.get(0x12, b"")
    shard = fields.get(0x18, 0)
    begin = fields.get(0x20, 0)
    size = fields.get(0x28, 0)
    dims = [dict(read_proto(dim)).get(0x08, 0) for tag, dim in read_proto(proto) if tag == 0x12]
    if number not in DTYPES or 0x3A in fields:
        raise ValueError(f"tensor {name} has dtype {number}, or is stored in slices")
    dtype = np.dtype(DTYPES[number])
    # NumPy limits the product of the other axes, even if one is 0 and the tensor takes no bytes.
    if len(dims) > 16 or math.prod(max(n, 1) for n in dims) >= 1 << 48:
        raise ValueError(f"tensor {name} has an impossible shape")
    if math.prod(dims) * dtype.itemsize != size:
        raise ValueError(f"tensor {name}: {dims} of {dtype} do not fit {size} bytes")
    return shard, begin, begin + size, name, dtype, tuple(dims)


def read_table(data):
    """Yield (key, value) of a sorted string table, in order."""
    if not 48 <= len(data) <= MAX_INDEX or int.from_bytes(data[-8:], "little") != MAGIC:
        raise ValueError("its last bytes are not those of a table")
    footer, last, end = data[-48:-8], None, 0
    position = read_handle(footer)[2]  # This skips the handle of the metaindex.
    for _, handle in read_block(data, footer[position:]):
        offset, size, _ = read_handle(handle)
        if offset < end:  # A small file could repeat one block thousands of times.
            raise ValueError("its blocks overlap")
        end = offset + size
        for key, value in read_block(data, handle):
            if last is not None and key <= last:
                raise ValueError("its keys are not in order")
            last = key
            yield key, value


def read_block(data, handle):
    """Yield (key, value) of the block at a handle. Each key reuses the start of the one before."""
    offset, size, _ = read_handle(handle)
    end = offset + size
    if end + 5 > len(data) or end < offset + 4 or data[end]:
        raise ValueError("a block is compressed or lies outside the file")
    # The entries end before the restart offsets and the number of these offsets.
    end -= 4 + 4 * int.from_bytes(data[end - 4 : end], "little")
    block, position, key = data[offset : max(end, offset)], 0, b""
    while position < len(block):
        shared, position = varint(block, position)
        unshared, position = varint(block, position)
        length, position = varint(block, position)
        value = position + unshared
        if shared > len(key) or value + length > len(block) or shared + unshared > MAX_KEY:
            raise ValueError("an entry leaves its block, or its name is too long")
        key = key[:shared] + block[position:value]
        position = value + length
        yield key, block[value:position]


def read_handle(handle):
    """Return a block's offset and size in bytes, and the position after its handle."""
    offset, position = varint(handle, 0)
    size, position = varint(handle, position)
    return offset, size, position


def read_proto(data):
    """Yield (tag, value) of a protocol buffer. The tag says if the value is an integer or bytes."""
    position = 0
    while position < len(data):
        tag, position = varint(data, position)
        if tag & 7 == 0:
            value, position = varint(data, position)
        elif tag & 7 == 2:
            length, position = varint(data, position)
            value, position = data[position : position + length], position + length
        elif tag & 7 in (1, 5):
            length = 8 if tag & 7 == 1 else 4
            value = int.from_bytes(data[position : position + length], "little")
            position += length
        else:
            raise ValueError("a message is damaged")
        if position > len(data):
            raise ValueError("a message is cut off")
        yield tag, value


def varint(data, position):
    """Return a number of 7 bits per byte, and the position after it: b"\\xac\\x02", 0 -> 300, 2."""
    number = 0
    for i, byte in enumerate(data[position : position + 10]):
        number |= (byte & 127) << 7 * i
        if byte < 128:
            return number, position + i + 1
    raise ValueError("a number is cut off")
