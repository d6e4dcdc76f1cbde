"""Random command lines: whatever is asked for, a command ends with the right status and one line.

COMMAND_LINES in the environment sets how many are run as processes; a sample always runs in here.
"""

import contextlib
import io
import json
import os
import random
import re
import runpy
import subprocess
import sys
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT, command
from odd_models import build
from odd_tokenizers import CASES

import batch
import evaluate
import explain
import gpt2
import train
from model_files.directory import flatten, nest, save_model
from model_files.files import CONTROL

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows refuses the odd names of files")
MAINS = {"gpt2.py": gpt2, "batch.py": batch, "evaluate.py": evaluate, "explain.py": explain}
MAINS["train.py"] = train
# The beginnings of errors that are wrong usage, although each option by itself is right.
USAGE = (
    "unknown model|--.* has no effect|at --temperature 0|--verbose shows|which text|where should"
)
USAGE += "|--.* comes from the model|--n_embd .* is not divisible"
USAGE += "|--chat reads what you type|--json prints data|--special_tokens contradicts"
# The lines that a command may print before an error.
NOTES = "the model sees|was trained on|a backslash and an n|only the language model is loaded"
NUMBERS = "0", "1", "7", "-1", "0.5", "1e999", "nan", str(10**30), "-" + "9" * 5000, "0x10"
ENDLESS = "--n_tokens_to_generate", "--n_samples", "--minutes"  # that may be asked to go on and on
TEXTS = "low", "", " ", "日本 é", "\x1b[31mred\x07", "a\nb\r\x9b", "\udcff", "-", "--", "low " * 99
TEXTS += "\u202e", "x" * 5000, "low<|endoftext|>slow", r"low\nslow"
TABLES = {  # files for --text_column and --text_key; most are right, but some only for one of them
    "one.csv": b'body\r\n"low, ""lower"""\r\nslow low lower low\r\n' * 9,
    "two.csv": b'id,body\n1,low lower slow slowest\n2,"low\nslow low"\n\n3\n',
    "quotes.csv": b'body\n"low" er\n"low',
    "tabs.tsv": b"id\tbody\n1\tlow lower, slow slowest\n2\tlow low low\n",
    "header.tsv": b"body\n",
    "lines.jsonl": b'{"text": "low lower slow", "body": "slow low lower"}\n' * 3,
    "odd.jsonl": b'{"text": "low"}\n\n{"body": ["low"], "text": 1}\n[\n',
    "utf-16.txt": "\ufefflow lower \u00e9 slow\r\nlow\r\n".encode("utf-16-le") * 3,
    "utf-16.csv": "\ufeffid,body\r\n1,low lower slow low\r\n".encode("utf-16-be"),
    "cut.txt": "low lower".encode("utf-16")[:-1],
    "archive.zip": b"PK\3\4\x14\0\0\0",
    "paper.txt": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "data.parquet": b"PAR1\x15\x04",
    "empty.csv": b"",
    "empty.jsonl": b"",
}
MODELS = {  # {name of a directory: the odd model in it}
    "pickle": "weights in a pickle in float16",
    "untied": "everything that varies",
    "heads": "a second head, for multiple choice",
    "bare": "no vocabulary",
}


def places(models_dir, directory):
    """Return names of models and of files, some of which are odd, and make the odd ones."""
    directory.mkdir()
    (directory / "text").write_text("low lower slow slowest the king\n" * 40)
    (directory / "empty").touch()
    (directory / "bytes").write_bytes(bytes(range(256)) * 9)
    (directory / "lines").write_bytes(b'{"prompt": "low"}\n[\n\xff\n"x"\n')
    (directory / "\x1b[31m").write_text("low lower\nslow\n")
    for name in "folder", "hollow", "locked":
        (directory / name).mkdir()
    (directory / "hollow" / "config.json").write_text("{}")
    (directory / "locked" / "file").touch()
    (directory / "locked" / "file").chmod(0)  # which root can read all the same
    models = ["tiny"] * 50 + ["nothing", "./nowhere", "", "..", "owner//name", *TEXTS]
    files = [directory / "text"] * 20 + [
        directory / "missing" / "x",
        directory / "\x1b[31m",
        directory / "lines",
    ]
    files += [directory / "empty", directory / "bytes", directory / "folder", directory / "locked"]
    files += ["", "\udcff"]
    models += [directory / name for name in ("hollow", "folder", "bytes")]
    for name, data in TABLES.items():
        (directory / name).write_bytes(data)
    for name, case in MODELS.items():
        build(CASES[case], directory / name)
        models += [directory / name] * 5
    os.mkfifo(directory / "hollow" / "merges.txt")
    os.mkfifo(directory / "fifo")
    models.append(directory / "fifo")
    tables = [directory / name for name in TABLES]
    known = {"models_dir": models_dir, "models": models, "directory": directory}
    return {**known, "files": files, "tables": tables}


def random_line(rng, known):
    """Return a script, its arguments, and its standard input (None if it is closed)."""
    script = rng.choice([*MAINS, *MAINS, "gpt2_pico.py"])
    directory, number = known["directory"], rng.randrange(10**9)

    def pick(*values):
        """One of these values, or with a small probability something odd."""
        return rng.choice([*NUMBERS, *TEXTS] if rng.random() < 0.15 else values)

    model = ["--models_dir", known["models_dir"], "--model_size", rng.choice(known["models"])]
    completion = {
        "--n_tokens_to_generate": pick("0", "2", "5"),
        "--stop": pick("e", "lo"),
        "--temperature": pick("0", "0.5", "1", "1e-300", "1e300"),
        "--top_k": pick("1", "40", str(10**30)),
        "--top_p": pick("0", "0.9", "1"),
        "--min_p": pick("0", "0.1", "1"),
        "--repetition_penalty": pick("1", "1.2", "1e-6", "1e300"),
        "--seed": pick("0", "1", str(10**30)),
        "--tokenizer": rng.choice(known["models"]),
    }
    table = {"--text_column": pick("body", "id"), "--text_key": pick("text", "body")}
    texts = known["tables"] if rng.random() < 0.3 else [*known["files"], "-"]
    must, flags, options = [rng.choice(TEXTS)], ["--special_tokens"], completion
    if script == "gpt2.py":
        flags += ["--json", "--verbose"]
        if rng.random() < 0.4:
            flags, must = [*flags, *["--chat"] * 3], rng.choice([[], [], must])
    elif script == "gpt2_pico.py":
        flags = []
        options = {"--n_tokens_to_generate": pick("0", "3", "20")}
    elif script == "batch.py":
        must = [rng.choice([*known["files"], "-"])]
        options = {**completion, "--n_samples": pick("2", "3"), "--batch_size": pick("1", "9")}
    elif script == "explain.py":
        flags += ["--json"] * 2
        page = rng.choice([directory / f"{number}.html", directory / "folder", "/dev/full", "-"])
        options = {**completion, "--page": page, "--top": pick("1", "3", str(10**30))}
    elif script == "evaluate.py":
        must = rng.choices(texts, k=rng.choice([1, 1, 2]))
        flags += ["--lines", "--verbose", "--json", "--lowercase", "--literal_endoftext"]
        options = {**table, "--tokenizer": completion["--tokenizer"]}
        options |= {"--stride": pick("1", "16", str(10**30)), "--val_fraction": pick("0.1", "1")}
        options["--stopwords"] = rng.choice(known["files"])
    else:
        must = rng.choices(texts, k=rng.choice([0, 1, 1, 2]))
        must += ["--n_layer", "1", "--n_ctx", "8", "--batch_size", "2", "--iterations", "2"]
        must += ["--out", rng.choice([directory / f"out{number}"] * 5 + [directory / "bytes"])]
        model = ["--models_dir", known["models_dir"], "--threads", "1"]
        flags = ["--resume", "--overwrite", "--lowercase", "--literal_endoftext"]
        options = {
            **table,
            "--n_embd": pick("8", "9"),
            "--n_head": pick("2", "3"),
            "--vocab_size": pick("257", "300", str(10**30)),
            "--init_from": rng.choice(known["models"]),
            "--tokenizer": rng.choice(known["models"]),
            "--dtype": pick("float16", "float32"),
            "--minutes": pick("0.01"),
            "--learning_rate": pick("0", "1e-3", "1e300"),
            "--warmup": pick("0.05", "1"),
            "--dropout": pick("0", "0.99"),
            "--weight_decay": pick("0", "1e30"),
            "--optimizer": pick("muon", "adamw"),
            "--eval_interval": pick("1", "9"),
            "--seed": pick("0", str(10**30)),
            "--val_fraction": pick("0", "0.1", "1"),
            "--stopwords": rng.choice(known["files"]),
            "--merge_dropout": pick("0", "0.1"),
            "--plot": directory / "folder",
        }
    args = [*must, *model, *rng.sample(flags, rng.randint(0, min(2, len(flags))))]
    for name in rng.sample([*options], rng.randint(0, min(4, len(options)))):
        endless = name in ENDLESS and options[name] in ("-1", "1", "7", str(10**30))
        args += [name, "0.01" if endless else options[name]]
    if must and must[0] in known["tables"]:
        args += [x for name in table if rng.random() < 0.4 for x in (name, table[name])]
    if rng.random() < 0.05:
        args.insert(rng.randint(0, len(args)), rng.choice(["--help", "--nosuch\x1b[31m", "--see"]))
    stdin = rng.choice([None, b"", b"low\nslow\n", b"\xff\xfe", b"\x1b[31m", b"low low " * 99])
    if "--chat" in args:
        stdin = rng.choice([stdin, b"low\n\n/reset\n\xff\nlow low \x1b[31m\n quit \nslow\n"])
    return script, [*map(str, args)], stdin


def refuses(script, args):
    """Return whether argparse refuses the arguments. (gpt2_pico.py hides its parser.)"""
    if script not in MAINS:
        return None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            MAINS[script].parser().parse_args(args)
        except SystemExit as error:
            return error.code == 2
    return False


def fault(script, args, status, out, errors):
    """Return what is wrong with how a command ended, or None."""
    *others, last = errors.rstrip("\n").split("\n")
    others = [line for line in others if not re.search(NOTES, line)]
    refused = refuses(script, args)
    if "Traceback" in errors or "Warning" in errors:
        return "a traceback or a warning"
    if CONTROL.search(errors.replace("\n", "")):
        return "control characters"
    if status == 0:
        if refused:
            return "wrong usage is accepted"
        is_json = "--json" in args or script == "batch.py"
        for line in out.decode().splitlines() if is_json and "--help" not in args else []:
            json.loads(line)
        return None
    if not last.startswith((f"{script}: error: ", "TEXT may be files")):
        return "the last line is not an error"
    if status == 1:
        if out and script in ("gpt2_pico.py", "explain.py"):
            return "an error, and output"
        if others and "--verbose" not in args:
            return "more than one line"
        return "wrong usage has status 1" if refused else None
    if status != 2:
        return "another status"
    if out:
        return "wrong usage, and output"
    if refused is False and not re.search(f"error: ({USAGE})|^TEXT may be", last):
        return "this is not wrong usage"
    return None


def run_here(script, args):
    """Run a command in this process: return its status, its output and its errors."""
    out, errors = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            if script in MAINS:
                status = MAINS[script].main(args)
            else:
                sys.argv = [script, *args]
                runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as error:
            status = error.code
    out.flush()
    errors.flush()
    return status, out.buffer.getvalue(), errors.buffer.getvalue().decode()


@pytest.fixture
def known(models_dir, tmp_path):
    return places(models_dir, tmp_path / "odd")


def test_any_command_line_in_this_process(known, monkeypatch):
    """Without processes: each takes a third of a second to start."""
    rng, found = random.Random(0), []
    monkeypatch.setattr(sys, "argv", [])
    for _ in range(120):
        script, args, stdin = random_line(rng, known)
        stream = io.TextIOWrapper(io.BytesIO(stdin)) if stdin is not None else None
        monkeypatch.setattr(sys, "stdin", stream)
        if wrong := fault(script, args, *run_here(script, args)):
            found.append((wrong, script, args))
    assert found == []


DAMAGED = {  # {tensor: a number that a file of weights never holds}
    "wte.weight": np.nan,
    "wpe.weight": -np.inf,
    "h.0.attn.c_attn.weight": np.inf,
    "h.1.mlp.c_proj.bias": 1e38,
    "ln_f.weight": 1e38,
    "ln_f.bias": np.nan,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_weights_are_one_line_in_every_command(name, tiny, known, monkeypatch):
    encoder, hparams, params = tiny
    directory, text = known["directory"], known["directory"] / "text"
    tensors = {**flatten(params)}
    tensors[name] = tensors[name].copy()
    tensors[name].flat[3] = DAMAGED[name]
    save_model(directory / "damaged", hparams, nest(tensors), encoder.vocabulary)
    model = "--model_size", directory / "damaged"
    monkeypatch.setattr(sys, "argv", [])
    for script, *args in (
        ["gpt2.py", "low", *model],
        ["gpt2.py", "low", "--json", "--seed", "1", *model],
        ["gpt2_pico.py", "low", "--n_tokens_to_generate", "3", *model],
        ["batch.py", text, *model],
        ["evaluate.py", text, *model],
        ["evaluate.py", text, "--lines", *model],
        ["explain.py", "low", *model],
        ["explain.py", "low", "--page", directory / "page.html", *model],
        ["train.py", text, "--out", directory / "out", "--init_from", directory / "damaged"],
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            status, out, errors = run_here(script, [*map(str, args)])
        assert (status, out, errors.count("\n")) == (1, b"", 1), script
        assert errors.startswith(f"{script}: error: ") and f"tensor {name} has numbers" in errors
    assert not (directory / "page.html").exists() and not (directory / "out").exists()


def test_any_command_line_as_a_process(known):
    rng, n = random.Random(1), int(os.environ.get("COMMAND_LINES", 8))
    lines = [random_line(rng, known) for _ in range(n)]
    closed = [rng.choice([0, 0, 0, 1, 2]) for _ in range(n)]  # another stream than that of the text

    def one(line, stream):
        script, args, stdin = line
        streams = {"input": stdin or b"", "capture_output": True, "timeout": 100}
        if stdin is None:
            streams["preexec_fn"] = lambda: os.close(stream)
        done = subprocess.run(command(script, *args), **streams)
        wrong = fault(script, args, done.returncode, done.stdout, done.stderr.decode())
        if stdin is None and stream == 2 and done.returncode in (1, 2) and not done.stderr:
            wrong = None  # nobody could read the error
        return done.returncode, wrong and (wrong, script, args, done)

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(one, lines, closed))
    assert [wrong for _, wrong in ended if wrong] == []
    if n >= 100:
        print(
            n,
            "command lines:",
            sorted(Counter((line[0], status) for line, (status, _) in zip(lines, ended)).items()),
        )
