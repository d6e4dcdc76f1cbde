"""What several test files share: the shared data, and models of random weights."""

import inspect
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
SHARED = Path(os.environ.get("GPT2_SHARED", ROOT.parent / "shared"))
sys.path.insert(0, str(ROOT))

# Shapes are odd on purpose, and epsilon large enough to be missed where it is left out.
TINY = {
    "n_layer": 3,
    "n_head": 5,
    "n_embd": 40,
    "n_ctx": 48,
    "n_vocab": 101,
    "layer_norm_epsilon": 0.01,
    "eos_token_id": None,
}
FULL = {
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "n_ctx": 1024,
    "n_vocab": 50257,
    "layer_norm_epsilon": 1e-5,
    "eos_token_id": 50256,
}


@pytest.fixture(scope="session")
def shared():
    """The directory of real inputs (vocabulary, trained models, text) that is not committed."""
    if not SHARED.is_dir():
        pytest.skip(f"GPT2_SHARED: {SHARED} is not there")
    return SHARED


@pytest.fixture
def numpy_2_promotion():
    """NumPy 2's rules under NumPy 1 too: there, one float64 scalar turns a whole array float64."""
    if int(np.__version__.split(".")[0]) >= 2:
        yield
    else:
        before = np._get_promotion_state()
        np._set_promotion_state("weak")
        yield
        np._set_promotion_state(before)


def build_params(hparams, weight, wte, wpe, projection, gain, bias):
    """The nested parameters, each array made by the function of its kind: shape -> array."""
    e = hparams["n_embd"]

    def norm():
        return {"g": gain(e), "b": bias(e)}

    def block():
        return {
            "ln_1": norm(),
            "attn": {
                "c_attn": {"w": weight(e, 3 * e), "b": bias(3 * e)},
                "c_proj": {"w": projection(e, e), "b": bias(e)},
            },
            "ln_2": norm(),
            "mlp": {
                "c_fc": {"w": weight(e, 4 * e), "b": bias(4 * e)},
                "c_proj": {"w": projection(4 * e, e), "b": bias(e)},
            },
        }

    return {
        "wte": wte(hparams["n_vocab"], e),
        "wpe": wpe(hparams["n_ctx"], e),
        "blocks": [block() for _ in range(hparams["n_layer"])],
        "ln_f": norm(),
    }


def normal(rng, scale, mean=0.0):
    def make(*shape):
        x = rng.standard_normal(shape, np.float32)
        x *= scale
        x += mean
        return x

    return make


def random_params(seed=0, **hparams):
    """Parameters that all matter, no bias zero and no gain one, of TINY's shape but for hparams."""
    rng, hparams = np.random.default_rng(seed), {**TINY, **hparams}
    weight = normal(rng, 1.5 / math.sqrt(hparams["n_embd"]))
    return build_params(
        hparams,
        weight,
        wte=normal(rng, 0.5),
        wpe=normal(rng, 0.5),
        projection=weight,
        gain=normal(rng, 0.3, 1.0),
        bias=normal(rng, 0.3),
    )


def initial_params(seed, hparams, wte=0.02, wpe=0.01):
    """Parameters as GPT-2's training starts with them: what follows a token is mostly itself.

    With wte=0.08, wpe=1 the position counts for more than the token, and greedy text wanders.
    """
    rng = np.random.default_rng(seed)
    projection = normal(rng, 0.02 / math.sqrt(2 * hparams["n_layer"]))
    return build_params(
        hparams,
        normal(rng, 0.02),
        wte=normal(rng, wte),
        wpe=normal(rng, wpe),
        projection=projection,
        gain=lambda *shape: np.ones(shape, np.float32),
        bias=lambda *shape: np.zeros(shape, np.float32),
    )


def leaves(tree, name=""):
    """Every array of a nested dict, list or tuple under its path: (".blocks.0.ln_1.g", array)."""
    if isinstance(tree, np.ndarray):
        yield name, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{name}.{key}")
    elif isinstance(tree, (list, tuple)):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{name}.{i}")


def map_leaves(function, tree):
    """The same nesting with function(array) for each array."""
    if isinstance(tree, dict):
        return {key: map_leaves(function, value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [map_leaves(function, value) for value in tree]
    return function(tree)


def watch(module, monkeypatch):
    """Let each function of the module note the dtypes of the floats it returns: {name: {...}}."""
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
