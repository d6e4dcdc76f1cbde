"""TensorFlow's checkpoint ("tensor bundle") without TensorFlow: a small index and mapped data.

Sources, in tensorflow/core: lib/io/format.cc, util/tensor_bundle, protobuf/tensor_bundle.proto.
"""

import math
import mmap
import os

import numpy as np

DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 9: "<i8", 19: "<f2"}  # numbers of types.proto
MAGIC = 0xDB4775248B80FB57  # ends a sorted string table
MAX_INDEX = 16 << 20  # bytes; that of the largest GPT-2 has 20 KB


def read_tensor_bundle(prefix, verify=False):
    """-> {name: array mapped from the file, read-only}; verify checks the CRC-32C of each."""
    path, shards, ends, tensors = f"{prefix}.index", {}, {}, {}
    with open(path, "rb") as file:
        index = file.read(MAX_INDEX + 1)
    try:
        n_shards, entries = read_index(index)
    except ValueError as error:
        raise ValueError(f"{path}: damaged, or no TensorFlow index: {error}") from None
    for shard, begin, end, name, dtype, shape, crc in entries:
        data = f"{prefix}.data-{shard:05d}-of-{n_shards:05d}"
        if shard not in shards:
            shards[shard] = map_file(data)
        if not ends.get(shard, 0) <= begin <= end <= len(shards[shard]):
            raise ValueError(
                f"{data}: has {len(shards[shard])} bytes, but tensor {name} lies from "
                f"{begin} to {end}: cut off, or of another index"
            )
        ends[shard] = end
        if verify and masked_crc32c(memoryview(shards[shard])[begin:end]) != crc:
            raise ValueError(f"{data}: tensor {name} is damaged: its CRC-32C is another")
        tensors[name] = np.ndarray(shape, dtype, shards[shard], begin)
    return tensors


def map_file(path):
    with open(path, "rb") as file:
        if os.path.getsize(path):
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return b""  # of which there is no map


def read_index(data):
    """-> number of data files, [(shard, begin, end, name, dtype, shape, masked CRC-32C)] sorted."""
    table = list(read_table(data))
    if not table or table[0][0]:
        raise ValueError("it has no header")
    header = dict(read_proto(table[0][1]))
    if header.get(0x10, 0) or not 0 < header.get(0x08, 0) < 100_000:  # endianness, num_shards
        raise ValueError("it is big-endian, or has no data file")
    return header[0x08], sorted(read_entry(key, value) for key, value in table[1:])


def read_entry(key, value):
    """BundleEntryProto -> (shard, begin, end, name, dtype, shape, masked CRC-32C)."""
    name, fields = ascii(key.decode("utf-8"))[1:-1], dict(read_proto(value))
    number, proto, shard, begin, size, crc = (  # tag: field number, then wire type in 3 bits
        fields.get(tag, default)
        for tag, default in ((0x08, 0), (0x12, b""), (0x18, 0), (0x20, 0), (0x28, 0), (0x35, 0))
    )
    dims = [dict(read_proto(dim)).get(0x08, 0) for tag, dim in read_proto(proto) if tag == 0x12]
    if number not in DTYPES or 0x3A in fields:
        raise ValueError(f"tensor {name} has dtype {number}, or is stored in slices")
    dtype = np.dtype(DTYPES[number])
    # A tensor without elements takes no bytes, but NumPy bounds its other axes all the same.
    if len(dims) > 16 or math.prod(max(n, 1) for n in dims) >= 1 << 48:
        raise ValueError(f"tensor {name} has an impossible shape")
    if math.prod(dims) * dtype.itemsize != size:
        raise ValueError(f"tensor {name}: {dims} of {dtype} do not fit {size} bytes")
    return shard, begin, begin + size, name, dtype, tuple(dims), crc


def read_table(data):
    """Yield (key, value) of a sorted string table, in order."""
    if not 48 <= len(data) <= MAX_INDEX or int.from_bytes(data[-8:], "little") != MAGIC:
        raise ValueError("its last bytes are not those of a table")
    footer, last = data[-48:-8], None
    position = varint(footer, varint(footer, 0)[1])[1]  # past the handle of the metaindex
    for _, handle in read_block(data, footer[position:]):
        for key, value in read_block(data, handle):
            if last is not None and key <= last:
                raise ValueError("its keys are not in order")
            last = key
            yield key, value


def read_block(data, handle):
    """Yield (key, value) of the block at a handle; a key shares its start with the one before."""
    offset, position = varint(handle, 0)
    end = offset + varint(handle, position)[0]
    if end + 5 > len(data) or end < offset + 4 or data[end]:
        raise ValueError("a block is compressed or lies outside the file")
    if masked_crc32c(data[offset : end + 1]) != int.from_bytes(data[end + 1 : end + 5], "little"):
        raise ValueError("the CRC-32C of a block is another")
    end -= 4 + 4 * int.from_bytes(data[end - 4 : end], "little")  # restart offsets and their number
    block, position, key = data[offset : max(end, offset)], 0, b""
    while position < len(block):
        shared, position = varint(block, position)
        unshared, position = varint(block, position)
        length, position = varint(block, position)
        value = position + unshared
        if shared > len(key) or value + length > len(block):
            raise ValueError("an entry leaves its block")
        key = key[:shared] + block[position:value]
        position = value + length
        yield key, block[value:position]


def read_proto(data):
    """Yield (tag, value) of a protocol buffer: a whole number, or bytes where the tag says so."""
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
    """Seven bits a byte, the low ones first: b"\\xac\\x02", 0 -> 300 and the next position, 2."""
    number = 0
    for i, byte in enumerate(data[position : position + 10]):
        number |= (byte & 127) << 7 * i
        if byte < 128:
            return number, position + i + 1
    raise ValueError("a number is cut off")


def byte_remainders():
    """-> the CRC-32C remainder of each byte (reflected Castagnoli polynomial 0x82f63b78)."""
    table = np.arange(256)
    for _ in range(8):
        table = table >> 1 ^ (table & 1) * 0x82F63B78
    return table.tolist()


REMAINDERS = byte_remainders()
A, B, C = 5685, 1362, 426  # x^A = x^B + x^C + 1 modulo that polynomial; found by search
BLOCK = 64 * (A - B)  # bytes; it and its carry stay in the second-level cache


def masked_crc32c(data):
    """CRC-32C of bytes, rotated and shifted as TensorFlow stores it, at three XORs a word.

    Squaring over GF(2) doubles the exponents of x^A = x^B + x^C + 1. After six squarings they count
    words of 64 bits: each word can go, if it is XORed onto the words A - B, A - C and A further on.
    So a block folds onto the A words before the next one, and in the end those onto A bytes.
    """
    data, window = np.frombuffer(data, np.uint8), np.zeros(8 * A + BLOCK, np.uint8)
    first = len(data) % BLOCK
    # These bytes lead from remainder 0, where zeros in front change nothing, to 0xffffffff.
    window[len(window) - first - 4 : len(window) - first] = list(b"Td\x1fd")
    for end in range(first, len(data) + 1, BLOCK):
        part = data[max(end - BLOCK, 0) : end]
        window[len(window) - len(part) :] = part
        fold(window.view(np.uint64), BLOCK // 8)
        window[: 8 * A] = window[BLOCK:]
    fold(window, 7 * A)
    crc = 0
    for byte in window[7 * A : 8 * A].tolist():
        crc = REMAINDERS[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def fold(window, n):
    """XOR the first n elements onto later ones, in place; the remainder of the rest is the same."""
    for start in range(0, n, A - B):  # elements of one slice do not reach each other
        x = window[start : min(start + A - B, n)]
        for shift in (A - B, A - C, A):
            window[start + shift : start + shift + len(x)] ^= x
