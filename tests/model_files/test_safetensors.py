"""Safetensors files are read as their writer meant them, or refused. Written files are complete.

The environment variable FUZZ is the number of damaged headers to try.
"""

import errno
import json
import os
import tracemalloc
import weakref

import numpy as np
import pytest

from model_files import files, safetensors
from model_files.directory import flatten, load_model
from model_files.safetensors import BF16, read_safetensors, widen, write_safetensors

FUZZ = int(os.environ.get("FUZZ", 500))


def test_data_starts_at_a_multiple_of_64_bytes(directory):
    data = (directory / "model.safetensors").read_bytes()
    assert (8 + int.from_bytes(data[:8], "little")) % 64 == 0


def test_tensors_of_small_numbers_do_not_unalign_those_of_large_ones(tmp_path):
    tensors = {
        name: np.arange(n, dtype=dtype)
        for name, n, dtype in (("a", 3, "u1"), ("b", 5, "f4"), ("c", 7, "f2"), ("d", 2, "f8"))
    }
    write_safetensors(tmp_path / "x", tensors)
    for name, x in read_safetensors(tmp_path / "x").items():
        assert x.flags.aligned and x.dtype == tensors[name].dtype, name
        assert np.array_equal(x, tensors[name])


def test_the_safetensors_library_reads_our_file_and_we_read_its_own(directory):
    library = pytest.importorskip("safetensors.numpy")
    ours = read_safetensors(directory / "model.safetensors")
    theirs = library.load_file(directory / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(x, theirs[name]) for name, x in ours.items())
    with library.safe_open(directory / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses a file without this.
    library.save_file(theirs, directory / "theirs.safetensors")
    again = read_safetensors(directory / "theirs.safetensors")
    assert all(np.array_equal(x, again[name]) for name, x in ours.items())


def test_bf16_and_f16_are_widened_exactly(tmp_path):
    x = np.array([[1.5, -2.25], [3e38, -0.0]], np.float32)
    bf16 = (x.view(np.uint32) >> 16).astype(np.uint16).view(BF16)
    write_safetensors(tmp_path / "b", {"a": bf16, "odd": np.zeros(3, np.uint8)})
    loaded = read_safetensors(tmp_path / "b")["a"]
    assert loaded.dtype == BF16
    exact = (x.view(np.uint32) >> 16 << 16).view(np.float32)
    assert np.array_equal(widen(loaded), exact)
    write_safetensors(tmp_path / "f", {"a": bf16}, dtype="float32")
    assert np.array_equal(read_safetensors(tmp_path / "f")["a"], exact)
    half = np.array([1.5, 65504, 6e-8, -0.0], np.float16)
    write_safetensors(tmp_path / "h", {"a": half})
    assert read_safetensors(tmp_path / "h")["a"].dtype == np.float16
    assert widen(read_safetensors(tmp_path / "h")["a"]).tolist() == half.tolist()


def test_unaligned_numbers_are_copied_and_aligned_ones_stay_mapped(directory):
    """In the hub's file of 124M, the float32 data starts at an odd byte."""
    path = directory / "model.safetensors"
    data = path.read_bytes()
    assert not any(widen(x).flags.owndata for x in read_safetensors(path).values())
    expected = {name: x.copy() for name, x in flatten(load_model(directory)[2]).items()}
    n = int.from_bytes(data[:8], "little")
    path.write_bytes((n + 3).to_bytes(8, "little") + data[8 : 8 + n] + b"   " + data[8 + n :])
    assert not read_safetensors(path)["transformer.wte.weight"].flags.aligned
    for name, x in flatten(load_model(directory)[2]).items():
        assert x.flags.aligned and np.array_equal(x, expected[name])


@pytest.mark.parametrize(
    "header, match",
    [
        (b"", "cut off"),
        (b"[]", "not an object"),
        (b"{", "damaged JSON"),
        (b"{} x", "damaged JSON"),
        (b"[" * 100_000, "damaged JSON"),
        (b'{"a": NaN}', "NaN is n"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": 1}',
            "key occurs twice",
        ),
        (b'{"a": 3}', "tensor 'a' must have exactly dtype"),
        (b'{"a": {"dtype": "F32"}}', "tensor 'a' must have exactly"),
        (b'{"__metadata__": {"a": 1}}', "__metadata__"),
        (b'{"__metadata__": []}', "__metadata__"),
        (b'{"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}', "unknown dtype 'F33'"),
        (b'{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}', "unknown dtype"),
        (b'{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}', "damaged shape"),
        (b'{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}', "damaged shape"),
        (b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', "damaged shape"),
        (b'{"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}', "damaged shape"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}', "data_offsets"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', "does not fit"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "does not fit"),
        (
            b'{"a": {"dtype": "F32", "shape": [0, 1099511627776, 1048576], '
            b'"data_offsets": [0, 0]}}',
            "impossible shape",
        ),
        (
            b'{"a": {"dtype": "F32", "shape": [0, 99999999999999, 99999999999999], '
            b'"data_offsets": [0, 0]}}',
            "impossible shape",
        ),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "hole or overlap"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
            b'"b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            "hole or overlap",
        ),
        (b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}', "cut off"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            "4 bytes after the last",
        ),
        (b'{"a\\n\xe2\x80\xa8": 3}', "a.n.u2028"),
        (b"\xff{}", "damaged JSON"),
        (b'{"%s": {}}' % (b"a" * 251), "a tensor's name is longer than 250"),
    ],
)
def test_a_damaged_header_is_refused_in_one_line(header, match, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match=match) as error:
        read_safetensors(path)
    assert str(error.value).startswith(str(path)) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        bytes(8),
        b"\xff" * 8,
        b"\xff" * 7 + b"\x7f{}",
        (1 << 40).to_bytes(8, "little") + b"{}",
    ],
)
def test_a_wrong_length_of_the_header_is_refused(data, tmp_path):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(
        ValueError, match=r"x: not a safetensors file \(\d+ bytes\): damaged or cut off"
    ):
        read_safetensors(tmp_path / "x")


def test_a_header_that_is_too_long_is_not_parsed(tmp_path, monkeypatch):
    write_safetensors(tmp_path / "x", {"a": np.zeros(100, np.float32)})
    n = int.from_bytes((tmp_path / "x").read_bytes()[:8], "little")
    monkeypatch.setattr(safetensors, "MAX_SETTINGS", 8 + n)
    assert len(read_safetensors(tmp_path / "x")) == 1
    monkeypatch.setattr(safetensors, "MAX_SETTINGS", 8 + n - 1)
    with pytest.raises(ValueError, match="x: not a safetensors file"):
        read_safetensors(tmp_path / "x")


def test_a_large_header_takes_little_memory(tmp_path):
    """A header may have a megabyte. The largest GPT-2's has 75 KB."""
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(entry % i for i in range(16_500)) + b"}"
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header)
    tracemalloc.start()
    assert len(read_safetensors(tmp_path / "x")) == 16_500
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()
    (tmp_path / "x").write_bytes((1 << 20).to_bytes(8, "little") + bytes(1 << 20))
    with pytest.raises(ValueError, match="x: not a safetensors file"):
        read_safetensors(tmp_path / "x")


def test_any_json_as_a_header_is_read_or_refused_in_one_line(tmp_path):
    hypothesis = pytest.importorskip("hypothesis")
    st, path = hypothesis.strategies, tmp_path / "x"
    scalar = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from([*safetensors.DTYPES, "F8"]),
            "shape": st.lists(st.integers(0, 9)),
            "data_offsets": st.lists(st.integers(0, 99), min_size=2, max_size=2),
        }
    )
    anything = st.recursive(scalar, lambda x: st.lists(x) | st.dictionaries(st.text(), x))

    headers = st.dictionaries(st.text(max_size=9), entry | anything)

    @hypothesis.settings(max_examples=FUZZ // 5, deadline=None, database=None)
    @hypothesis.given(headers, st.binary(max_size=99))
    def check(content, data):
        header = json.dumps(content).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + data)
        try:
            read_safetensors(path)
        except ValueError as error:
            assert str(error).startswith(str(path)) and len(str(error).splitlines()) == 1

    check()


def test_a_file_that_cannot_be_written_leaves_the_old_one(directory, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*model.safetensors"):
        write_safetensors(directory / "model.safetensors", {"a": np.zeros(3, np.float32)})
    assert before == {path.name: path.read_bytes() for path in directory.iterdir()}


def test_tensors_are_converted_one_at_a_time(tmp_path, monkeypatch):
    alive = []
    widen = safetensors.widen

    def watched(x):
        assert all(ref() is None for ref in alive), "the tensor before is still in memory"
        wide = widen(x)
        alive.append(weakref.ref(wide))
        return wide

    monkeypatch.setattr(safetensors, "widen", watched)
    tensors = {f"{i}": np.full((30, 40), i, np.float16) for i in range(4)}
    write_safetensors(tmp_path / "x", tensors, dtype="float32")
    assert len(alive) == 4


def test_a_transposed_matrix_is_written_row_by_row(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_safetensors(tmp_path / "x", {"a": x.T, "b": x[:, ::2]})
    loaded = read_safetensors(tmp_path / "x")
    assert loaded["a"].tolist() == x.T.tolist() and loaded["b"].tolist() == x[:, ::2].tolist()


@pytest.mark.parametrize("shape, size", [([1], 8), ([1] * 70, 4)])
def test_a_shape_that_is_too_small_or_has_too_many_axes_is_refused(shape, size, tmp_path):
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"a": entry}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(size)
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match=r"x: tensor 'a'"):
        read_safetensors(tmp_path / "x")
