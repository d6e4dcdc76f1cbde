"""Damage files and model directories as a bad disk or an attacker would.

    python tests/model_files/damage.py [N] [MODEL ...]

Run gpt2.py on N damaged model directories (by default 2,000), each in a process of its own, and
count the outcomes. The exit status is 1 if gpt2.py neither uses one correctly nor refuses it with
an error of one line. MODEL: damage only these of build_models, and 1 time in 20 the largest one.
"""

import contextlib
import json
import os
import pickletools
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import GOLDEN, LETTERS, OPENAI, ROOT, command, random_params
from odd_models import pickled, pickled_shards, torch_save

from model_files.directory import flatten, load_model, save_model
from model_files.safetensors import read_safetensors, write_safetensors
from model_files.torch_pickle import read_torch_pickle
from model_files.vocabulary import read_vocabulary

EVIL = (
    *(None, True, 0, 1, -1, 2.5, 1e308, 10**6, 10**9, 1 << 31, 1 << 62, 10**30),
    *("", "F16", "BF16", [], {}, [0, 0], [1, 1, 257, 8], [[]], {"a": 1}, "transformer.wte.weight"),
)
DEEP = "nested"  # It stands for deeply nested lists, which json.dumps cannot write.
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SETTINGS += "generation_config.json", "training.json"
NAMES = (
    *("config.json", "vocab.json", "merges.txt", "tokenizer.json", *SETTINGS),
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"),
    *("hparams.json", "encoder.json", "vocab.bpe", "checkpoint", "model.ckpt.index"),
    "model.ckpt.data-00000-of-00001",
)
KEYS = (
    *("tokenizer_class", "added_tokens_decoder", "add_prefix_space", "pad_token", "eos_token_id"),
    *("additional_special_tokens", "lowercase", "stopwords", "<|x|>", "257"),
)


def mutate(rng, data):
    """Return data after a few changes: bits flipped, bytes replaced, inserted, deleted, repeated,
    or the end cut off."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, n = rng.randrange(len(data) or 1), rng.choice([1, 1, 2, 4, 9, 40])
        match rng.randrange(6):
            case 0 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + n] = rng.randbytes(n)
            case 2:
                data[at : at + n] = rng.choice([b"\xff", b"\0", b"\x80", b"\x7f"]) * n
            case 3:
                data[at:at] = rng.randbytes(n)
            case 4:
                del data[at : at + n]
            case 5:
                data[at : at + n] = data[(start := rng.randrange(len(data) or 1)) : start + n]
    return bytes(data) if rng.random() < 0.95 else bytes(data[: rng.randrange(len(data) or 1)])


def mutate_json(rng, data):
    """Return JSON after one change: a value replaced, removed, or moved to another key."""
    content = json.loads(data)
    inner, key = content, rng.choice(list(content))
    while isinstance(inner[key], (dict, list)) and inner[key] and rng.random() < 0.8:
        inner = inner[key]
        key = rng.randrange(len(inner)) if isinstance(inner, list) else rng.choice(list(inner))
    if rng.random() < 0.7:
        number = inner[key] if type(inner[key]) is int else 0
        inner[key] = rng.choice([*EVIL, DEEP, number + 1, number - 1, number * 2, number // 2])
    else:
        value = inner.pop(key)
        if isinstance(inner, dict) and rng.random() < 0.5:
            inner[rng.choice(["wte.weight", "lm_head.weight", "n_ctx", "shape", key + "x"])] = value
    depth = rng.choice([30, 900, 990, 100_000])
    nested = b"[" * depth + b"]" * depth
    return json.dumps(content).encode().replace(json.dumps(DEEP).encode(), nested)


# Directories


def shard(directory):
    """Split the weights into two files, as transformers does with large models. Return the path of
    the index and its weight_map."""
    path = directory / "model.safetensors"
    tensors = {name: x.copy() for name, x in read_safetensors(path).items()}
    path.unlink()
    weight_map = {}
    for i, names in enumerate((list(tensors)[::2], list(tensors)[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        write_safetensors(directory / file, {name: tensors[name] for name in names})
        weight_map |= dict.fromkeys(names, file)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index, weight_map


def build_models(directory):
    """Write a small model of each kind and return their directories, the largest one last."""
    shutil.copytree(OPENAI, directory / "openai")
    vocabulary, hparams, params = load_model(OPENAI)
    for name in "whole", "shards":
        save_model(directory / name, hparams, params, vocabulary)
    shard(directory / "shards")
    for name, write in ("pickle", pickled()), ("pickled_shards", pickled_shards):
        save_model(directory / name, hparams, params, vocabulary)
        (directory / name / "model.safetensors").unlink()
        write(directory / name, flatten(params))
    tokenizer = directory / "tokenizer"
    tokenizer.mkdir()
    shutil.copy(GOLDEN / "encoder_tokenizer.json", tokenizer / "tokenizer.json")
    (tokenizer / "tokenizer_config.json").write_text('{"pad_token": "<|user|>", "eos_token": "!"}')
    hparams = {**LETTERS, "n_vocab": 302}
    save_model(tokenizer, hparams, random_params(5, **hparams), read_vocabulary(tokenizer))
    names = "openai", "whole", "shards", "tokenizer", "pickle", "pickled_shards"
    return [*(directory / name for name in names), ROOT / "models" / "shakespeare"]


class Unsuited(Exception):
    """Raised if a file cannot be damaged in this way."""


def regular_files(directory):
    """Return the paths of the regular files of at most 32 MB in a directory."""
    paths = [path for path in sorted(directory.iterdir()) if path.is_file()]
    return [path for path in paths if path.stat().st_size < 1 << 25]


def put(path, data):
    """Write a file, unless the path is a directory, a pipe or a device."""
    if os.path.lexists(path) and not path.is_file():
        raise Unsuited
    path.write_bytes(data)


def change_bytes(rng, path, others):
    """Change a few bytes, but not those of the weights themselves."""
    if ".data-" in path.name or path.suffix == ".bin":
        raise Unsuited
    data = path.read_bytes()
    start, end = 0, len(data)
    if path.suffix == ".safetensors":
        start, end = rng.choice([0, 8, 8]), 8 + int.from_bytes(data[:8], "little")
    path.write_bytes(data[:start] + mutate(rng, data[start:end]) + data[end:])


def change_value(rng, path, others):
    """Change a value in JSON, often in the file with the model's sizes or in a header."""
    sizes = [path.parent / name for name in ("config.json", "hparams.json")]
    path = rng.choice([path, *filter(Path.is_file, sizes)])
    data = path.read_bytes()
    if path.suffix == ".json":
        path.write_bytes(mutate_json(rng, data))
    elif path.suffix == ".safetensors":
        n = 8 + int.from_bytes(data[:8], "little")
        head = mutate_json(rng, data[8:n])
        path.write_bytes(len(head).to_bytes(8, "little") + head + data[n:])
    else:
        raise Unsuited


def entries_of(path):
    """Return {name: bytes} of a file of torch.save, and the name of its pickle."""
    if path.suffix != ".bin":
        raise Unsuited
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # An earlier change has damaged the archive, and zipfile has many errors.
        raise Unsuited from None
    return entries, [name for name in entries if name.endswith("/data.pkl")][0]


def write_entries(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def change_zip(rng, path, others):
    """Change bytes of the zip archive: its first header, or the list of entries at its end."""
    data = path.read_bytes()
    start = data.find(b"PK\1\2")  # how an entry of the list begins
    if path.suffix != ".bin" or start < 0:
        raise Unsuited
    if rng.random() < 0.3:
        path.write_bytes(mutate(rng, data[:80]) + data[80:])
    else:
        path.write_bytes(data[:start] + mutate(rng, data[start:]))


def change_entries(rng, path, others):
    """Remove, cut off, exchange, rename or compress the entries of the archive."""
    entries, _ = entries_of(path)
    name, other = rng.choice(list(entries)), rng.choice(list(entries))
    match rng.randrange(5):
        case 0:
            del entries[name]
        case 1:
            entries[name] = entries[name][: rng.randrange(len(entries[name]) + 1)]
        case 2:
            entries[name], entries[other] = entries[other], entries[name]
        case 3:
            new = rng.choice(["archive/byteorder", "x/data.pkl", "../data.pkl", name + "/", other])
            entries[new] = entries.pop(name)
    compression = rng.choice([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED])
    write_entries(path, entries, compression)


def change_pickle(rng, path, others):
    """Change bytes or a number of the pickle, in an archive that is whole."""
    entries, name = entries_of(path)
    program = entries[name]
    if rng.random() < 0.6:
        entries[name] = mutate(rng, program)
    else:
        places = [at for opcode, _, at in pickletools.genops(program) if opcode.name == "BININT"]
        at = rng.choice(places)
        old = int.from_bytes(program[at + 1 : at + 5], "little")
        new = rng.choice([0, 1, old + 1, old - 1, old * 2, 2**31 - 1, 2**31, 2**32 - 1]) % 2**32
        entries[name] = program[: at + 1] + new.to_bytes(4, "little") + program[at + 5 :]
    write_entries(path, entries)


def planted(path):
    """Return pickles that import a module which prints a poem, or that make a directory. Each one
    drops its result, so that a larger pickle around it goes on."""
    made = b"X" + len(str(path).encode()).to_bytes(4, "little") + str(path).encode()
    return [
        b"cthis\ns\n0",  # GLOBAL
        b"\x8c\x04this\x8c\x01s\x930",  # STACK_GLOBAL
        b"cbuiltins\n__import__\nX\x04\0\0\0this\x85R0",
        b"cos\nmkdir\n" + made + b"\x85R0",  # REDUCE
        b"\x8c\x02os\x8c\x05mkdir\x93" + made + b"\x85R0",
        b"(" + made + b"ios\nmkdir\n0",  # INST
        b"(cos\nmkdir\n" + made + b"o0",  # OBJ
    ]


def plant_call(rng, path, others):
    """Put an import or a call between two instructions of the pickle."""
    entries, name = entries_of(path)
    places = [at for _, _, at in pickletools.genops(entries[name])]
    at, call = rng.choice(places), rng.choice(planted(others[0].parent / "made"))
    entries[name] = entries[name][:at] + call + entries[name][at:]
    write_entries(path, entries)


def add_settings(rng, path, others):
    """Add or replace a file of settings."""
    settings = {rng.choice(KEYS): rng.choice(EVIL) for _ in range(2)}
    if rng.random() < 0.3:
        settings["added_tokens_decoder"] = {str(rng.choice(EVIL)): {"content": "<|y|>"}}
    put(path.parent / rng.choice(SETTINGS), json.dumps(settings).encode())


def change_length(rng, path, others):
    """Cut a file off, or append up to a gigabyte of zeros, which take no space on the disk."""
    size = path.stat().st_size
    os.truncate(path, rng.choice([0, 1, rng.randrange(size or 1), size - 1, size + 9, 1 << 30]))


def change_shape(rng, path, others):
    """Give one tensor another shape or another type."""
    if path.suffix not in (".safetensors", ".bin"):
        raise Unsuited
    read = read_safetensors if path.suffix == ".safetensors" else read_torch_pickle
    tensors = {name: x.copy() for name, x in read(path).items()}
    name = rng.choice(list(tensors))
    x = tensors[name]
    changed = [x.T, x[1:], x[None], x.reshape(-1), x[:0], x.astype("f8"), x.astype("f2")]
    tensors[name] = rng.choice(changed)
    write = write_safetensors if path.suffix == ".safetensors" else torch_save
    write(path, tensors)


def remove(rng, path, others):
    """Remove a file."""
    path.unlink()


def copy(rng, path, others):
    """Copy a file to another name, which may be that of another file."""
    put(path.parent / rng.choice(NAMES), path.read_bytes())


def swap(rng, path, others):
    """Exchange two files."""
    other = rng.choice(regular_files(path.parent))
    data = path.read_bytes(), other.read_bytes()
    path.write_bytes(data[1])
    other.write_bytes(data[0])


def take_from_another(rng, path, others):
    """Add a file of another model, or replace one by it."""
    foreign = rng.choice(regular_files(rng.choice(others)))
    put(path.parent / rng.choice([foreign.name, foreign.name, path.name]), foreign.read_bytes())


def replace_by_special_file(rng, path, others):
    """Replace a file by a directory, a pipe, a socket, or a link to something else."""
    path = rng.choice([path, path, path.parent / rng.choice(NAMES)])
    path.unlink(missing_ok=True)
    kind = rng.choice(["directory", "pipe", "socket", "device", "loop", "nowhere", "link"])
    targets = {"device": "/dev/zero", "loop": path.name, "nowhere": "missing", "link": others[0]}
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end, contextlib.suppress(OSError):
            end.bind(os.path.relpath(path))  # This fails if the path is too long.
    else:
        path.symlink_to(targets[kind])


KINDS = (
    *(change_bytes, change_bytes, change_value, change_value, add_settings, change_length),
    *(change_shape, remove, copy, swap, take_from_another),
    *(replace_by_special_file, replace_by_special_file),
)
PICKLE_KINDS = change_zip, change_entries, change_pickle, change_pickle, plant_call


def damage(seed, models, directory):
    """Make a damaged copy of one of the models. Return the model and a list of the changes."""
    rng = random.Random(seed)
    model = models[-1] if seed % 20 == 0 else rng.choice(models[:-1])
    shutil.copytree(model, directory)
    changes = []
    n = rng.choice([1, 1, 1, 2, 3])
    while len(changes) < n and regular_files(directory):
        path, kind = rng.choice(regular_files(directory)), rng.choice(KINDS)
        pickles = [path for path in regular_files(directory) if path.suffix == ".bin"]
        if pickles and rng.random() < 0.6:
            path, kind = rng.choice(pickles), rng.choice(PICKLE_KINDS)
        # After an earlier change the file may be empty or not JSON.
        with contextlib.suppress(Unsuited, ValueError, IndexError, AttributeError, TypeError):
            kind(rng, path, models)
            changes.append(f"{kind.__name__} {path.name}")
    return model, ", ".join(changes)


# Running gpt2.py on them

OPTIONS = "hi", "--n_tokens_to_generate", "5", "--model_size"
NOTES = "was trained on text", "the model sees", "the text is longer than the context"
NOTES += ("only the language model is loaded",)


def judge(status, output, errors, expected):
    """Return "unchanged", "another text" or "refused", or a description of a wrong outcome."""
    lines = [line for line in errors.splitlines() if not any(note in line for note in NOTES)]
    if "Zen of Python" in output:
        return "a pickle has imported a module"
    if status == 0 and not lines:
        return "unchanged" if output == expected else "another text"
    is_message = len(lines) == 1 and lines[0].startswith("gpt2.py: error: ")
    if status == 1 and not output and is_message and "not enough memory" not in errors:
        return "refused"
    return f"status {status}, {len(output)} characters, {len(lines)} lines: {errors[-500:]}"


IN_ONE = r"""
import contextlib, io, json, re, resource, sys
import gpt2
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
for directory in sys.argv[1].split(":"):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            status = gpt2.main([*sys.argv[2:], directory])
    print(json.dumps([status, output.getvalue(), errors.getvalue()]))
try:
    peak = int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1])
except FileNotFoundError:
    peak = 0  # This is not Linux.
print(peak / 1024)
"""


def run_all(directories):
    """Run gpt2.py on all directories in one process. Return [[status, output, errors], ...] and the
    megabytes of memory that it needed at most, or 0 if the system does not tell."""
    names = ":".join(map(str, directories))
    arguments = [sys.executable, "-c", IN_ONE, names, *OPTIONS]
    process = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60)
    *results, peak = map(json.loads, process.stdout.splitlines())
    assert len(results) == len(directories), process.stderr[-2000:]
    return results, peak


def run(directory):
    """Run gpt2.py on a directory. Return (status, output, errors), its seconds and megabytes."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command("gpt2.py", *OPTIONS, directory),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
        )
        timer = threading.Timer(30, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in output, errors:
            file.seek(0)
            texts.append(file.read().decode())
    return (process.returncode, *texts), time.perf_counter() - start, usage.ru_maxrss / 1024


def main(n, names):
    """Run gpt2.py on n damaged directories and return the exit status."""
    results, wrong, most = Counter(), 0, [(0, ""), (0, "")]
    with tempfile.TemporaryDirectory() as scratch:
        models = build_models(Path(scratch))
        expected = {model: run(model)[0][1] for model in models}
        models = [x for x in models if not names or x.name in names or x == models[-1]]
        for seed in range(n):
            directory = Path(scratch) / "damaged"
            model, changes = damage(seed, models, directory)
            outcome, *costs = run(directory)
            result = judge(*outcome, expected[model])
            if (Path(scratch) / "made").exists():
                result = "a pickle has called a function"
                (Path(scratch) / "made").rmdir()
            if result not in ("unchanged", "another text", "refused"):
                wrong += 1
                print(f"{seed} {model.name}, {changes}: {result}", flush=True)
            elif costs[0] > 10 or costs[1] > 300:
                wrong += 1
                print(f"{seed} {model.name}, {changes}: {costs[0]:.1f} s, {costs[1]:.0f} MB")
            results[result] += 1
            most = [max(pair) for pair in zip(most, ((cost, changes) for cost in costs))]
            shutil.rmtree(directory)
    counts = ", ".join(
        f"{results[name]} {name}" for name in ("unchanged", "another text", "refused")
    )
    (seconds, slowest), (megabytes, largest) = most
    print(f"{n} damaged directories: {counts}, {wrong} wrong")
    print(f"at most {seconds:.1f} s ({slowest}) and {megabytes:.0f} MB ({largest})")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000, sys.argv[2:]))
