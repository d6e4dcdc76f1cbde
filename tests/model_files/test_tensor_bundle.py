"""Checkpoints written by TensorFlow itself are read bit for bit. Damaged ones are refused.

The environment variable FUZZ is the number of damaged files to try.
"""

import os
import random
import shutil
import tracemalloc

import make_golden_tf as golden
import numpy as np
import pytest
from conftest import GOLDEN, OPENAI
from damage import mutate

from model_files.tensor_bundle import MAGIC, MAX_INDEX, read_index, read_tensor_bundle, varint

FUZZ = int(os.environ.get("FUZZ", 500))


def test_numbers_of_seven_bits_per_byte():
    assert varint(b"\xac\x02", 0) == (300, 2)
    for data in (b"", b"\x80", b"\xff" * 11):
        with pytest.raises(ValueError, match="cut off"):
            varint(data, 0)


def test_shapes_and_types():
    tensors = read_tensor_bundle(GOLDEN / "tf_shapes" / "model.ckpt")
    assert tensors.keys() == golden.SHAPES.keys()
    for name, shape in golden.SHAPES.items():
        x, expected = tensors[name], golden.values(name, shape)
        assert x.dtype == expected.dtype and x.shape == shape, name
        assert x.tobytes() == expected.tobytes(), name
        assert not x.flags.writeable or not x.size, name


def test_an_index_of_many_blocks():
    tensors = read_tensor_bundle(GOLDEN / "tf_many" / "model.ckpt")
    assert len(tensors) == 400
    for name, x in tensors.items():
        assert np.array_equal(x, golden.values(name, x.shape)), name


def test_an_error_names_the_damaged_file(tmp_path):
    for path in OPENAI.iterdir():
        shutil.copy(path, tmp_path)
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    genuine = data.read_bytes()
    data.write_bytes(genuine[:-1])
    with pytest.raises(ValueError, match="15775 bytes, but tensor model/.* cut off"):
        read_tensor_bundle(tmp_path / "model.ckpt")
    (tmp_path / "model.ckpt.index").write_bytes(b"<html>" * 20)
    with pytest.raises(ValueError, match="model.ckpt.index: damaged, or not a TensorFlow index"):
        read_tensor_bundle(tmp_path / "model.ckpt")
    (tmp_path / "model.ckpt.index").unlink()
    with pytest.raises(FileNotFoundError):
        read_tensor_bundle(tmp_path / "model.ckpt")


def number(n):
    """Return n in 7 bits per byte, as varint reads it."""
    return bytes([n & 127 | 128]) + number(n >> 7) if n > 127 else bytes([n])


def index_of(entries):
    """Return a sorted string table of one block with these (key, value), as TensorFlow does."""

    def block(entries):
        data = b"".join(
            number(0) + number(len(key)) + number(len(value)) + key + value
            for key, value in entries
        )
        return data + bytes(4) + (1).to_bytes(4, "little") + bytes(5)  # restarts, type, CRC-32C

    data = block(entries)
    handle = number(len(data)) + number(len(block([])) - 5)
    where = len(data + block([]))
    index = block([(b"\xff", number(0) + number(len(data) - 5))])
    data += block([]) + index
    footer = handle + number(where) + number(len(index) - 5)
    return data + footer.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")


def overlapping_index(n_heads, n_entries, stem=b""):
    """Return an index of n_heads overlapping blocks, with n_heads * n_entries tensors in all.

    Each block begins with an entry of its own, its head. All blocks continue with the same bytes:
    entries whose names reuse the name of the head.
    """

    def entry(shared, name, value):
        return number(shared) + number(len(name)) + number(len(value)) + name + value

    def name(i):
        return bytes([65 + i // 1600, 65 + i // 40 % 40, 65 + i % 40])

    end = bytes(4) + (1).to_bytes(4, "little") + bytes(5)  # restarts, type, CRC-32C
    empty = b"\x08\x01\x12\x02\x12\x00"  # float32 [0]
    header = entry(0, b"", b"\x08\x01") + end
    heads, distances = b"", []
    # The value of a head has an unknown field, which holds all heads after it.
    for i in reversed(range(n_heads)):
        heads = entry(0, stem + name(i), empty + b"\x7a" + number(len(heads)) + heads)
        distances.insert(0, len(heads))
    entries = b"".join(entry(len(stem) + 3, name(i), empty) for i in range(n_entries))
    data = header + heads + entries + end
    index = entry(0, b"", number(0) + number(len(header) - 5))
    for i, distance in enumerate(distances):
        start = len(header + heads) - distance
        index += entry(0, b"~" + name(i), number(start) + number(len(data) - 5 - start))
    footer = number(0) + number(0) + number(len(data)) + number(len(index + end) - 5)
    return data + index + end + footer.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")


def test_no_part_of_an_index_is_read_twice():
    assert len(read_index(overlapping_index(1, 600))[1]) == 601
    data = overlapping_index(300, 600)
    assert len(data) < 16_000
    with pytest.raises(ValueError, match="its blocks overlap"):
        read_index(data)


def test_an_index_with_impossible_contents_is_refused():
    header, empty = (b"", b"\x08\x01"), b"\x08\x01\x12\x02\x12\x00"  # float32 [0]
    shards, entries = read_index(index_of([header, (b"a", empty), (b"b", empty)]))
    assert shards == 1 and [entry[:6] for entry in entries] == [
        (0, 0, 0, name, np.dtype("f4"), (0,)) for name in "ab"
    ]
    for table, fault in (
        ([header, (b"b", empty), (b"a", empty)], "its keys are not in order"),
        ([header, (b"a", empty), (b"a", empty)], "its keys are not in order"),
        ([], "it has no header"),
        ([(b"a", empty)], "it has no header"),
        ([(b"", b"\x08\x01\x10\x01")], "it is big-endian"),
        ([(b"", b"\x08\x00")], "or has no data file"),
        ([header, (b"a", b"\x08\x07")], "tensor a has dtype 7"),
        ([header, (b"a", empty + b"\x3a\x00")], "or is stored in slices"),
        ([header, (b"a", b"\x08\x01\x28\x08")], r"tensor a: \[\] of float32 do not fit 8 bytes"),
        ([header, (b"a", b"\x0b")], "a message is damaged"),
        ([header, (b"a", b"\x12\x05\x12")], "a message is cut off"),
    ):
        with pytest.raises(ValueError, match=fault):
            read_index(index_of(table))
    index = index_of([header, (b"a", empty)])
    # The bytes of an entry are shared, unshared, length, key.
    for entry in b"\2\1\6a", b"\0\1\7a", b"\0\7\6a":
        with pytest.raises(ValueError, match="an entry leaves its block"):
            read_index(index.replace(b"\0\1\6a", entry))


def test_overlapping_tensors_are_refused(tmp_path):
    def entry(offset):  # float32 [2]
        return b"\x08\x01\x12\x04\x12\x02\x08\x02\x20" + bytes([offset]) + b"\x28\x08"

    def read(*offsets):
        table = [(b"", b"\x08\x01"), *((b"%d" % i, entry(n)) for i, n in enumerate(offsets))]
        (tmp_path / "x.index").write_bytes(index_of(table))
        return read_tensor_bundle(tmp_path / "x")

    (tmp_path / "x.data-00000-of-00001").write_bytes(np.arange(5, dtype="<f4").tobytes())
    assert {name: x.tolist() for name, x in read(12, 4).items()} == {"0": [3, 4], "1": [1, 2]}
    for offsets in (4, 4), (4, 8), (0, 16):
        with pytest.raises(ValueError, match="has 20 bytes, but tensor 1 lies from byte"):
            read(*offsets)


def test_tensors_lie_one_after_the_other_in_each_data_file(tmp_path):
    def write_index(*locations):  # Each is (data file, offset) of a float32 [1].
        entry = b"\x08\x01\x12\x04\x12\x02\x08\x01\x18%c\x20%c\x28\x04"
        entries = [(bytes([97 + i]), entry % location) for i, location in enumerate(locations)]
        (tmp_path / "x.index").write_bytes(index_of([(b"", b"\x08\x02"), *entries]))

    for shard, numbers in enumerate(([1, 2, 3], [4])):
        path = tmp_path / f"x.data-{shard:05d}-of-00002"
        path.write_bytes(np.array(numbers, np.float32).tobytes())
    write_index((0, 0), (1, 0), (0, 8))
    tensors = read_tensor_bundle(tmp_path / "x")
    assert {name: x.tolist() for name, x in tensors.items()} == {"a": [1], "b": [4], "c": [3]}
    write_index((0, 0), (0, 3))
    with pytest.raises(ValueError, match="x.data-00000-of-00002: .*b lies from byte 3 to 7"):
        read_tensor_bundle(tmp_path / "x")


def test_the_size_of_an_index_and_of_its_keys_is_limited():
    """A key reuses the start of the one before, so a small file could hold long keys."""
    entries = [(b"%06d" % i + b"x" * 244, b"\x08\x01\x28\x04") for i in range(3)]
    header = (b"", b"\x08\x01")
    assert len(read_index(index_of([header, *entries]))[1]) == 3
    with pytest.raises(ValueError, match="its name is too long"):
        read_index(index_of([header, (b"a" * 251, b"\x08\x01\x28\x04")]))
    with pytest.raises(ValueError, match="its last bytes are not those of a table"):
        read_index(bytes(MAX_INDEX) + index_of([header]))


def test_the_largest_index_takes_little_memory(tmp_path):
    """It has as many tensors as fit, with the longest names that are allowed."""
    index = overlapping_index(1, 10_000, b"x" * 244)
    assert len(index) < MAX_INDEX < 1.1 * len(index)
    tracemalloc.start()
    assert len(read_index(index)[1]) == 10_001
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_damaged_index_is_read_or_refused_by_name(tmp_path):
    rng = random.Random(0)
    genuine = {
        directory: (GOLDEN / directory / "model.ckpt.index").read_bytes()
        for directory in ("tf_gpt2", "tf_shapes")
    }
    for directory in genuine:
        shutil.copytree(GOLDEN / directory, tmp_path / directory)
    refused = {}
    for i in range(FUZZ):
        directory = rng.choice(list(genuine))
        index = mutate(rng, genuine[directory])
        path = tmp_path / directory / "model.ckpt.index"
        path.write_bytes(index)
        try:
            for x in read_tensor_bundle(tmp_path / directory / "model.ckpt").values():
                x.sum()
        except (ValueError, OSError) as error:
            message = str(error)
            assert str(path.parent) in message and "\n" not in message, f"{i}: {message}"
            reason = message.split(": ", 2)[-1][:25]
            refused[reason] = refused.get(reason, 0) + 1
    print(f"{FUZZ} mutated indices, {sum(refused.values())} refused: {refused}")
    assert len(refused) > 3
