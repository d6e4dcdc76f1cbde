"""What several test files use: real data, random models, and functions that run commands."""

import inspect
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gpt2
import gpt2_pico
from encoder import learn_bpe
from model_files.directory import load_model, nest, parameter_shapes, save_model
from utils import load_encoder_hparams_and_params

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
OPENAI = GOLDEN / "tf_gpt2"  # in OpenAI's layout: 2 layers, 8 numbers per token, 257 tokens
SHARED = Path(os.environ.get("GPT2_SHARED", ROOT.parent / "shared"))

# Sizes are odd on purpose. Epsilon is so large that results change if it is left out.
TINY = {
    "n_layer": 3,
    "n_head": 5,
    "n_embd": 40,
    "n_ctx": 48,
    "n_vocab": 101,
    "layer_norm_epsilon": 0.01,
    "eos_token_ids": [],
}
N_HEAD, EPS, N_VOCAB = TINY["n_head"], TINY["layer_norm_epsilon"], TINY["n_vocab"]
LONG = 2 * gpt2.QUERY_BLOCK + 50  # attention computes a text of this length in three pieces
FULL = {
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "n_ctx": 1024,
    "n_vocab": 50257,
    "layer_norm_epsilon": 1e-5,
    "eos_token_ids": [50256],
}
LETTERS = {  # the model that the commands load in tests
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "n_ctx": 32,
    "n_vocab": 260,
    "layer_norm_epsilon": 1e-5,
    "eos_token_ids": [0],
}


@pytest.fixture(scope="session")
def shared():
    """The directory of real data that is not committed: a vocabulary, trained models, a text."""
    if not SHARED.is_dir():
        pytest.skip(f"GPT2_SHARED: there is no directory {SHARED}")
    return SHARED


@pytest.fixture
def numpy_2_promotion():
    """Use NumPy 2's promotion in NumPy 1, too: a float64 scalar makes a float32 array float64."""
    if int(np.__version__.split(".")[0]) >= 2:
        yield
    else:
        before = np._get_promotion_state()
        np._set_promotion_state("weak")
        yield
        np._set_promotion_state(before)


# Random models


def build_params(seed, hparams, **spread):
    """Return random parameters. spread: {kind: (standard deviation, mean)}.

    Arrays with a standard deviation of 0 use up no random numbers.
    """
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in parameter_shapes(**hparams).items():
        scale, mean = spread[kind(name)]
        x = rng.standard_normal(shape, np.float32) if scale else np.zeros(shape, np.float32)
        x *= scale
        x += mean
        tensors[name] = x
    return nest(tensors)


def kind(name):
    *_, layer, leaf = name.split(".")
    if layer in ("wte", "wpe") or leaf == "bias":
        return layer if leaf == "weight" else leaf
    return "gain" if layer.startswith("ln_") else "projection" if layer == "c_proj" else "weight"


def random_params(seed=0, **hparams):
    """Return parameters of TINY's shape, changed by hparams. All of them matter: no bias is 0, no
    gain is 1."""
    hparams = {**TINY, **hparams}
    weight, embedding = (1.5 / math.sqrt(hparams["n_embd"]), 0), (0.5, 0)
    return build_params(
        seed,
        hparams,
        wte=embedding,
        wpe=embedding,
        weight=weight,
        projection=weight,
        gain=(0.3, 1),
        bias=(0.3, 0),
    )


def initial_params(seed, hparams, wte=0.02, wpe=0.01):
    """Return parameters as GPT-2's training starts with: mostly, a token is followed by itself.

    With wte=0.08 and wpe=1, positions matter more than tokens, and greedy text does not repeat.
    """
    return build_params(
        seed,
        hparams,
        wte=(wte, 0),
        wpe=(wpe, 0),
        weight=(0.02, 0),
        projection=(0.02 / math.sqrt(2 * hparams["n_layer"]), 0),
        gain=(0, 1),
        bias=(0, 0),
    )


def some_ids(*shape, seed=0, n_vocab=N_VOCAB):
    return np.random.default_rng(seed).integers(n_vocab, size=shape)


def window_start(n, n_ctx):
    """Return where the window starts in which a model sees the last of n ids.

    When a window of n_ctx is full, the next one starts half a window later.
    """
    if n <= n_ctx:
        return 0
    half = max(1, n_ctx // 2)
    return math.ceil((n - n_ctx) / half) * half


def greedy(ids, params, hparams, n):
    """Return greedy tokens of gpt2_pico.gpt2, also past the context, to compare generate with."""
    ids, n_inputs, eps = list(ids), len(ids), hparams["layer_norm_epsilon"]
    while len(ids) < n_inputs + n:
        seen = ids[window_start(len(ids), hparams["n_ctx"]) :]
        logits = gpt2_pico.gpt2(seen, **params, n_head=hparams["n_head"], eps=eps)
        ids.append(int(logits[-1].argmax()))
        if ids[-1] in hparams["eos_token_ids"]:
            return ids[n_inputs:-1]
    return ids[n_inputs:]


def leaves(tree, name=""):
    """Yield (path, array), such as (".blocks.0.ln_1.g", array), of a nested dict, list or tuple."""
    if isinstance(tree, np.ndarray):
        yield name, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{name}.{key}")
    elif isinstance(tree, (list, tuple)):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{name}.{i}")


def map_leaves(function, tree):
    """Return the same nested dicts and lists, with function(array) for each array."""
    if isinstance(tree, dict):
        return {key: map_leaves(function, value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [map_leaves(function, value) for value in tree]
    return function(tree)


def float64(params):
    return map_leaves(lambda x: x.astype(np.float64), params)


def watch(module, monkeypatch):
    """Return {function: dtypes of its results}, which fills as the functions are called."""
    seen = {}

    def watched(name, function):
        def call(*args, **keywords):
            result = function(*args, **keywords)
            dtypes = {x.dtype for _, x in leaves(result) if x.dtype.kind == "f"}
            seen.setdefault(name, set()).update(dtypes)
            return result

        return call

    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__ and not inspect.isgeneratorfunction(function):
            monkeypatch.setattr(module, name, watched(name, function))
    return seen


# Vocabularies and directories


@pytest.fixture(scope="session")
def small():
    """An Encoder of 280 tokens."""
    return learn_bpe(["the theme of the thesis, naïve naïve 日本日本 😀😀  \n\n"] * 2, 280)


@pytest.fixture
def directory(tmp_path):
    """A Hugging Face directory with the model of OPENAI."""
    vocabulary, hparams, params = load_model(OPENAI)
    save_model(tmp_path / "model", hparams, params, vocabulary)
    return tmp_path / "model"


# Commands

os.environ.pop("PYTHONUNBUFFERED", None)  # or a missing flush would go unnoticed


def command(script, *args):
    return [sys.executable, str(ROOT / script), *map(str, args)]


def default_handler():
    """Make Ctrl-C work: a shell lets the processes that it starts in the background ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(script, *args, stdin=b"", **options):
    """Run a command as a process and return the finished process."""
    return subprocess.run(
        command(script, *args), input=stdin, capture_output=True, timeout=120, **options
    )


NOTHING_ELSE = """
import sys

class Refuse:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", *ALLOWED}:
            raise ModuleNotFoundError(f"{name} must not be imported")

sys.meta_path.insert(0, Refuse)
sys.path.insert(0, DIRECTORY)
"""


def run_copied(names, code, directory):
    """Copy some of our modules into a directory, run Python code there, and return its output.

    The code can import these modules, NumPy and the standard library, but nothing else.
    """
    for name in names:
        shutil.copy(ROOT / f"{name}.py", directory)
    start = f"ALLOWED, DIRECTORY = {names!r}, {str(directory)!r}\n{NOTHING_ELSE}"
    args = [sys.executable, "-I", "-c", start + code]
    return subprocess.run(args, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    vocabulary = learn_bpe(["low lower lowest, slow slower slowest"], 260).vocabulary
    save_model(path / "tiny", LETTERS, random_params(7, **LETTERS), vocabulary)
    return path


@pytest.fixture(scope="session")
def tiny(models_dir):
    return load_encoder_hparams_and_params("tiny", str(models_dir))


def model_options(models_dir, model="tiny"):
    return "--models_dir", models_dir, "--model_size", model


# Runs of training

SMALL = [
    *("--n_layer", "1", "--n_head", "2", "--n_embd", "16", "--n_ctx", "16", "--batch_size", "6"),
    *("--vocab_size", "300", "--iterations", "44", "--eval_interval", "10", "--threads", "2"),
]
NOISY = [*SMALL, "--dropout", "0.2", "--merge_dropout", "0.1"]
TRAINED = [  # the files of a model that train.py has made
    *("config.json", "log.csv", "merges.txt", "model.safetensors", "training.json", "vocab.json")
]


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    rng = random.Random(0)
    words = "the king and queen of york will not come to london, said richard;\n\nyes my lord\n"
    path.write_text(" ".join(rng.choices(words.split(" "), k=4000)), encoding="utf-8")
    return path


def train_command(*args):
    return command("train.py", *args)


def run_train(*args, **options):
    return run("train.py", *args, stdin="", text=True, **options)


def curve(path):
    """Return the rows of log.csv without the seconds, which differ from run to run."""
    rows = [line.split(",") for line in (path / "log.csv").read_text().splitlines()]
    return [[row[0], *row[2:]] for row in rows]


@pytest.fixture(scope="session")
def unbroken(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "unbroken"
    done = run_train(text, "--out", out, *NOISY)
    assert done.returncode == 0, done.stderr
    return out, done
