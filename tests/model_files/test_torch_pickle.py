"""pytorch_model.bin: read as PyTorch wrote it, or refused in one line, and never executed.

FUZZ in the environment sets how many damaged pickles are tried.
"""

import os
import pickle
import random
import subprocess
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from conftest import GOLDEN, ROOT
from damage import planted

from model_files.safetensors import BF16, widen
from model_files.torch_pickle import read_torch_pickle

FUZZ = int(os.environ.get("FUZZ", 1000))
TORCH = GOLDEN / "torch"  # written by torch.save, by make_golden_torch.py


@pytest.fixture(scope="module")
def numbers():
    with np.load(TORCH / "numbers.npz") as file:
        return dict(file)


def entries_of(path):
    """Return {name: bytes} of an archive."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_archive(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def with_pickle(path, program):
    """Write an archive of torch.save's, but with another pickle."""
    return write_archive(path, entries_of(TORCH / "types.bin") | {"types/data.pkl": program})


def test_every_type_has_the_numbers_that_pytorch_saved(numbers):
    tensors = read_torch_pickle(TORCH / "types.bin")
    kinds = {name: x.dtype for name, x in tensors.items()}
    assert kinds["f64"] == np.float64 and kinds["f16"] == np.float16 and kinds["bf16"] == BF16
    assert kinds["i64"] == np.int64 and kinds["u8"] == np.uint8 and kinds["bool"] == np.bool_
    assert set(kinds) == {name for name in numbers if "module." not in name}
    for name, x in tensors.items():
        assert x.shape == numbers[name].shape
        assert np.array_equal(widen(x), numbers[name]), name


def test_views_share_the_numbers_of_the_file_and_nothing_is_copied():
    tensors = read_torch_pickle(TORCH / "types.bin")
    assert np.shares_memory(tensors["f32"], tensors["transposed"])
    assert np.shares_memory(tensors["f32"], tensors["part"])
    assert not any(x.flags.owndata or x.flags.writeable for x in tensors.values())


def test_a_state_dict_of_modules_is_read(numbers):
    tensors = read_torch_pickle(TORCH / "module.bin")
    assert [*tensors] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert all(np.array_equal(x, numbers[f"module.{name}"]) for name, x in tensors.items())


def test_a_dict_of_many_tensors_is_read():
    """The pickle numbers its parts, and has other instructions for the parts from 256 on."""
    tensors = read_torch_pickle(TORCH / "many.bin")
    assert len(tensors) == 42 and tensors["a"] == [1] and tensors["b"] == [0]
    for i in range(40):
        assert np.array_equal(tensors[f"from {i}"], np.arange(i, 300))


@pytest.mark.parametrize(
    "name, match",
    [
        ("old", "format of before 2020: convert it .*torch.save.* old.bin$"),
        ("whole_module", "it names 'torch.nn.modules.container Sequential'"),
        ("checkpoint", r"'model' is not a tensor: save model.state_dict\(\) alone"),
        ("int8", "it names 'torch._utils _rebuild_qtensor'"),
    ],
)
def test_what_is_not_a_state_dict_is_named(name, match):
    with pytest.raises(ValueError, match=match) as error:
        read_torch_pickle(TORCH / f"{name}.bin")
    assert str(TORCH / f"{name}.bin") in str(error.value) and "\n" not in str(error.value)


class Attack:
    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize("protocol", range(6))
def test_no_pickle_runs_anything(tmp_path, protocol):
    attack = pickle.dumps({"a": Attack(os.mkdir, str(tmp_path / "made"))}, protocol)
    pickle.loads(attack)  # this is what Python's own reader does
    (tmp_path / "made").rmdir()
    path = with_pickle(tmp_path / "x.bin", attack)
    with pytest.raises(ValueError, match="it names|the instruction|damaged"):
        read_torch_pickle(path)
    assert not (tmp_path / "made").exists()


def test_what_damage_plants_runs_in_pythons_reader_and_not_in_ours(tmp_path, monkeypatch):
    made = tmp_path / "made"
    for call in planted(made):
        program = b"\x80\x04" + call + b"}."
        monkeypatch.delitem(sys.modules, "this", raising=False)
        with pytest.raises(ValueError, match="it names|it has the instruction"):
            read_torch_pickle(with_pickle(tmp_path / "x.bin", program))
        assert "this" not in sys.modules and not made.exists()
        assert pickle.loads(program) == {}
        assert ("this" in sys.modules) != made.exists()
        if made.exists():
            made.rmdir()


def test_a_name_that_is_text_is_not_imported_or_called_either(tmp_path):
    text = b"X\x08\x00\x00\x00os mkdir(X\x01\x00\x00\x00xtR."
    with pytest.raises(ValueError, match="it has a call that no dict of tensors needs"):
        read_torch_pickle(with_pickle(tmp_path / "x.bin", b"\x80\x02" + text))


# offset 0, shape (3, 4), strides (4, 1)
PLACE = b"K\x00K\x03K\x04\x86q\tK\x04K\x01\x86"


@pytest.mark.parametrize(
    "old, new, match",
    [
        (PLACE, PLACE.replace(b"K\x03K\x04", b"K\x03K\x05"), "larger than its data"),
        (PLACE, PLACE.replace(b"K\x00", b"K\x01"), "TypeError|strides"),
        (PLACE, PLACE.replace(b"K\x04K\x01", b"K\x09K\x01"), "TypeError|strides"),
        (PLACE, PLACE.replace(b"K\x03", b"N"), "impossible shape"),
        (PLACE, PLACE.replace(b"K\x03", b"J\xff\xff\xff\xff"), "impossible shape"),
        (
            PLACE,
            PLACE.replace(b"K\x03", b"J\xff\xff\xff\x7f").replace(b"K\x04K\x01", b"K\0K\0"),
            "larger than its data",
        ),
        (b"torch\nFloatStorage", b"torch\nFloatStorag_", "it names 'torch FloatStorag_'"),
        (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x00x", "KeyError 'types/data/x'"),
        (b"X\x03\x00\x00\x00f64", b")", "it has a dict whose keys are not all text"),
    ],
)
def test_what_torch_save_would_not_write_is_refused(tmp_path, old, new, match):
    program = entries_of(TORCH / "types.bin")["types/data.pkl"]
    assert old in program
    with pytest.raises(ValueError, match=match):
        read_torch_pickle(with_pickle(tmp_path / "x.bin", program.replace(old, new, 1)))


def test_damaged_archives_are_named(tmp_path):
    entries = entries_of(TORCH / "types.bin")
    data = (TORCH / "types.bin").read_bytes()
    path = tmp_path / "x.bin"

    def fault():
        with pytest.raises(ValueError, match=str(path)) as error:
            read_torch_pickle(path)
        return str(error.value)

    for part in (b"", b"\x80\x02", b"<html>", data[: len(data) // 2], data[:-1]):
        path.write_bytes(part)
        assert "not a file of torch.save: " in fault()
    write_archive(path, entries, zipfile.ZIP_DEFLATED)
    assert "'types/byteorder' is compressed or damaged" in fault()
    write_archive(path, {"word/document.xml": b"<x/>"})
    assert "holds no data.pkl" in fault()
    write_archive(path, entries | {"types/byteorder": b"big"})
    assert "big-endian" in fault()
    write_archive(path, entries | {"types/data.pkl": bytes(1 << 20) + b"."})
    assert "more than" in fault()
    write_archive(path, entries | {"types/data/0": bytes(47)})
    assert "larger than its data" in fault()
    with pytest.raises(ValueError, match="not a regular file"):
        read_torch_pickle(tmp_path)


@pytest.mark.filterwarnings("ignore:invalid escape")  # pickletools decodes all texts
def test_damaged_pickles_are_refused_in_one_line_or_give_arrays_of_the_file(tmp_path):
    sources = [(name, entries_of(TORCH / f"{name}.bin")) for name in ("types", "module", "int8")]
    refused, rng = 0, random.Random(FUZZ)
    before = set(sys.modules)
    for _ in range(FUZZ):
        name, entries = rng.choice(sources)
        program = bytearray(entries[f"{name}/data.pkl"])
        for _ in range(rng.choice([1, 1, 1, 3, 20])):
            i = rng.randrange(len(program))
            if rng.random() < 0.7:
                program[i] = rng.randrange(256)
            else:
                program[i : i + rng.randrange(9)] = rng.randbytes(rng.randrange(3))
        path = write_archive(tmp_path / "x.bin", entries | {f"{name}/data.pkl": bytes(program)})
        try:
            for x in read_torch_pickle(path).values():
                assert x.nbytes <= path.stat().st_size
        except ValueError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 500
    new = set(sys.modules) - before  # pickletools may decode a text before the opcode is refused
    assert all(name.startswith("encodings.") for name in new)
    assert refused > FUZZ / 2


def test_the_file_of_another_program_is_opened_without_importing_it():
    program = (
        "import sys; from pathlib import Path; from model_files.torch_pickle import *\n"
        f"read_torch_pickle(Path({str(TORCH / 'types.bin')!r}))\n"
        "print(sorted(name for name in sys.modules if name.startswith(('torch', 'pickle'))))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch'" not in done.stdout


def test_the_type_and_the_key_of_a_storage_are_text(tmp_path):
    """Otherwise hashing one, or printing it, could take forever."""
    for storage in (b"K\0)K\0K\0K\0", b"K\0X\x01\0\0\0x)K\0K\0"):
        tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQK\0))tR"
        program = b"\x80\x02}X\x01\0\0\0x" + tensor + b"s."
        with pytest.raises(ValueError, match="a storage has no name"):
            read_torch_pickle(with_pickle(tmp_path / "x.bin", program))


PAIRS = b")q\0" + 60 * b"h\0h\0\x86q\0"  # a tuple with 2**60 leaves
DEEP = b")" + 100_000 * b"\x85"  # a tuple in a tuple in a tuple ...
LONG = b"X\x40\x0d\x03\0" + 200_000 * b"x" + b"q\0" + 100_000 * b"h\0Q"  # storages made of a text


@pytest.mark.parametrize(
    "program",
    [
        *(bomb + after for bomb in (PAIRS, DEEP) for after in (b".", b")R.", b"Q.", b"}h\0s.")),
        *(b"(" + b"K\0" + bomb + b"K\0K\0K\0tQ." for bomb in (PAIRS, DEEP)),
        *(b"(" + b"K\0K\0" + bomb + b"K\0K\0tQ." for bomb in (PAIRS, DEEP)),
        *(b"ctorch._utils\n_rebuild_tensor_v2\n(" + x + b"K\0))tR." for x in (PAIRS, DEEP)),
        *(b"}X\x01\0\0\0x" + bomb + b"s." for bomb in (PAIRS, DEEP)),
        LONG + b".",
    ],
)
def test_a_crafted_pickle_costs_little_time_and_memory(program, tmp_path):
    path = with_pickle(tmp_path / "x.bin", b"\x80\x02" + program)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ValueError) as error:
        read_torch_pickle(path)
    assert time.process_time() - start < 20 and tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()
    assert str(path) in str(error.value) and len(str(error.value)) < 600
