"""pytorch_model.bin, the format of torch.save: read without PyTorch, and without running anything.

It is a zip archive without compression. NAME/data.pkl is a pickle, the state dict; NAME/data/KEY
are the numbers of a tensor, or of several. A pickle is a program for a stack machine: Python's own
reader would import and call whatever it names. This one knows the instructions and the names that
torch.save writes for tensors, imports nothing, and refuses everything else.
"""

import math
import mmap
import pickletools
import re
import struct
import zipfile
from typing import NamedTuple

import numpy as np

from model_files.files import MAX_SETTINGS, describe, open_regular
from model_files.safetensors import DTYPES, MAX_NAME

MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # how the older format begins
STORAGES = {  # {the name of a storage in the pickle: its type in safetensors.py}
    "torch DoubleStorage": "F64",
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
    "torch LongStorage": "I64",
    "torch IntStorage": "I32",
    "torch ByteStorage": "U8",
    "torch BoolStorage": "BOOL",
}
DICT, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
PARAMETER = "torch._utils _rebuild_parameter"  # takes a tensor and whether it has a gradient
FUNCTIONS = DICT, TENSOR, PARAMETER


class Storage(NamedTuple):
    """The numbers of a tensor, or of several. kind: one of STORAGES; key: part of a file's name."""

    kind: str
    key: str


class Tensor(NamedTuple):
    """What the pickle says about a tensor. offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


def read_torch_pickle(path):
    """Return {name: array}, mapped from the file: read-only, as it is stored, maybe unaligned.

    ValueError naming the file if it is damaged, or if it is not a dict of tensors.
    """
    with open_regular(path) as file:
        if file.read(len(MAGIC)) == MAGIC:
            load = "torch.load(f, map_location='cpu')"
            program = f"import sys, torch; f = sys.argv[1]; torch.save({load}, f)"
            raise ValueError(
                f"{path} is in PyTorch's format of before 2020: convert it where PyTorch is "
                f'installed, with python -c "{program}" {path.name}'
            )
        try:
            entries = {info.filename: info for info in zipfile.ZipFile(file).infolist()}
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error):
            file.seek(0)
            fault = f"not a file of torch.save: {describe(file.read(64))}"
            raise ValueError(f"{path}: {fault}") from None
    names = [name for name in entries if re.fullmatch("[^/]+/data.pkl", name)]
    if not names:
        raise ValueError(f"{path}: the archive holds no data.pkl: torch.save did not write it")
    root = names[0].removesuffix("data.pkl")
    try:
        return read_tensors(entries, root, mapped)
    except (IndexError, KeyError, OverflowError, TypeError, AttributeError, UnicodeError) as error:
        raise ValueError(f"{path}: damaged: {type(error).__name__} {error!s:.80}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error!s:.250}") from None


def read_tensors(entries, root, mapped):
    """Return {name: array} of an archive's entries, {name: zipfile.ZipInfo}."""
    if f"{root}byteorder" in entries:
        if bytes(contents(entries[f"{root}byteorder"], mapped)) != b"little":
            raise ValueError("its numbers are big-endian")
    program = contents(entries[f"{root}data.pkl"], mapped)
    if len(program) > MAX_SETTINGS:
        raise ValueError(f"data.pkl has more than {MAX_SETTINGS} bytes")
    state_dict = run(bytes(program))
    if type(state_dict) is not dict:
        raise ValueError("it does not hold a dict of tensors")
    tensors = {}
    for name, x in state_dict.items():
        if len(name) > MAX_NAME or type(x) is not Tensor:
            raise ValueError(f"{name!r:.80} is not a tensor: save model.state_dict() alone")
        tensors[name] = array(x, contents(entries[f"{root}data/{x.storage.key}"], mapped))
    return tensors


def contents(info, mapped):
    """Return the bytes of an entry of the archive, without a copy."""
    header = mapped[info.header_offset : info.header_offset + 30]
    if info.compress_type or info.flag_bits & 1 or len(header) < 30 or header[:4] != b"PK\3\4":
        raise ValueError(f"{info.filename!r:.80} is compressed or damaged")
    n_name, n_extra = struct.unpack("<HH", header[26:])
    begin = info.header_offset + 30 + n_name + n_extra
    end = begin + info.file_size
    if end > len(mapped):
        raise ValueError(f"{info.filename!r:.80} is cut off")
    return memoryview(mapped)[begin:end]


def array(tensor, data):
    """Return a view of a storage's bytes as the array that the pickle describes."""
    dtype = DTYPES[STORAGES[tensor.storage.kind]]
    numbers = [tensor.offset, *tensor.shape, *tensor.strides]
    if not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers) or len(tensor.shape) > 16:
        raise ValueError("a tensor has an impossible shape")
    # Strides of 0 would let a few bytes stand for terabytes.
    if math.prod(tensor.shape) * dtype.itemsize > len(data):
        raise ValueError(f"a tensor of shape {tensor.shape} is larger than its data")
    strides = [n * dtype.itemsize for n in tensor.strides]
    return np.ndarray(tensor.shape, dtype, data, tensor.offset * dtype.itemsize, strides)


def run(program):
    """Return what a pickle builds of dicts, tuples, numbers, text and Tensors.

    Names are kept as text, and call does what the three FUNCTIONS would do. Values may be nested so
    deeply that not even an error may print them. ValueError if it has another instruction or name.
    """
    stack, memo, marks = [], {}, []

    def pop_to_mark():
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, argument, _ in pickletools.genops(program):
        match opcode.name:
            case "PROTO" | "STOP":
                pass
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(None)  # Nothing here depends on it.
            case "GLOBAL":
                if argument not in (*FUNCTIONS, *STORAGES):
                    raise ValueError(f"it names {argument!r:.80}, which no dict of tensors needs")
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(opcode.name[-1])
                stack[-n:] = [tuple(stack[-n:])]
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "SETITEM":
                marks.append(len(stack) - 2)
                add_items(stack[marks[-1] - 1], pop_to_mark())
            case "SETITEMS":
                add_items(stack[marks[-1] - 1], pop_to_mark())
            case "BINPERSID":
                _, kind, key, _, _ = stack.pop()  # with the device and the number of numbers
                if type(kind) is not str or type(key) is not str:
                    raise ValueError("a storage has no name")
                stack.append(Storage(kind, key))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(call(function, arguments))
            case "BUILD":  # of an OrderedDict: its attributes, such as the versions of modules
                stack.pop()
            case other:
                raise ValueError(f"it has the instruction {other}, which no dict of tensors needs")
    return stack.pop()


def add_items(target, items):
    """Put [key, value, key, value, ...] into a dict whose keys are text."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(target) is not dict or type(key) is not str:
            raise ValueError("it has a dict whose keys are not all text")
        target[key] = value


def call(function, arguments):
    """Return what one of the FUNCTIONS would return."""
    if function == DICT and arguments == ():
        return {}
    if function == TENSOR and type(arguments[0]) is Storage:
        return Tensor(*arguments[:4])
    if function == PARAMETER:
        return arguments[0]
    raise ValueError("it has a call that no dict of tensors needs")
