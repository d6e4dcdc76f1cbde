"""Turn the checkpoints of other programs into a plain GPT-2, as far as that is possible.

Programs give the tensors other names, and some models scale the scores of attention differently.
Both can be undone here. Another activation and a separate output head cannot, so they stay.
"""

import math
import re

import numpy as np

from model_files.files import say
from model_files.safetensors import widen

ACTIVATION_NAMES = {  # transformers has several names for one function: {name: ours}
    **dict.fromkeys(["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"], "gelu_new"),
    **dict.fromkeys(["gelu", "gelu_python"], "gelu"),
    **dict.fromkeys(["silu", "swish"], "silu"),
    "relu": "relu",
    "tanh": "tanh",
}
# The parts of a language model. Programs put transformer, module, _orig_mod and so on before them.
PART = re.compile(r"(?:\w+\.)*?((?:wte|wpe|h|ln_f|lm_head)\..+)")
CLASSIFIER = re.compile(r"(?:\w+\.)*?(?:score|classifier|qa_outputs)\.")  # a classifier's head


def strip_names(directory, tensors, config):
    """Return the tensors of the language model, by their names without prefixes."""
    kept = [name for name in tensors if not re.search(r"\.attn\.(masked_)?bias$", name)]
    bare = {match[1]: tensors[match[0]] for match in map(PART.fullmatch, kept) if match}
    others = [name for name in kept if not PART.fullmatch(name)]
    if len(bare) + len(others) < len(kept):
        raise ValueError(f"{directory}: a tensor exists with and without a prefix")
    if "wte.weight" not in bare and "lm_head.weight" in bare and config["tie_word_embeddings"]:
        bare["wte.weight"] = bare["lm_head.weight"]  # The file has it once for both.
    if "lm_head.weight" not in bare:
        if heads := sorted(filter(CLASSIFIER.match, others)):
            kind = f"it has {heads[0]} and no lm_head.weight"
            raise ValueError(f"{directory} is a classifier, not a language model: {kind}")
        if not config["tie_word_embeddings"]:
            raise ValueError(f"{directory}: tensor lm_head.weight is missing, and not tied to wte")
    elif "wte.weight" in bare and are_equal(bare["lm_head.weight"], bare["wte.weight"]):
        del bare["lm_head.weight"]
    if others and "wte.weight" in bare:
        say(f"{directory}: only the language model is loaded, without {', '.join(others):.200}")
    return bare


def are_equal(x, y):
    """Return whether two matrices have the same numbers. They may be larger than memory."""
    if x.shape != y.shape:
        return False
    pieces = (slice(i, i + 1024) for i in range(0, len(x), 1024))
    return all(np.array_equal(widen(x[i]), widen(y[i])) for i in pieces)


def check_plain(directory, hparams, tensors):
    """Raise ValueError if gpt2_pico.py and train.py, which know only GPT-2, cannot run a model."""
    known_by = "which only gpt2.py, batch.py, evaluate.py and explain.py know"
    if (activation := hparams["activation_function"]) != "gelu_new":
        raise ValueError(f"{directory}: its activation_function is {activation}, {known_by}")
    if "lm_head.weight" in tensors:
        raise ValueError(f"{directory}: its output head is not wte, {known_by}")


def fold_scale(config, tensors):
    """Return tensors of a model whose scores are divided by the root of d, as in GPT-2.

    Another scale of the scores is a factor on the query's weights and bias.
    """
    e = config["n_embd"]
    for i in range(config["n_layer"]):
        factor = 1.0 if config["scale_attn_weights"] else math.sqrt(e / config["n_head"])
        if config["scale_attn_by_inverse_layer_idx"]:
            factor /= i + 1
        for leaf in ("weight", "bias") if factor != 1 else ():
            name = f"h.{i}.attn.c_attn.{leaf}"
            tensors[name] = widen(tensors[name]).copy()
            tensors[name][..., :e] *= factor
    return tensors


def from_openai(tensors):
    """Rename OpenAI's tensors: model/h0/mlp/c_fc/w [1, m, n] -> h.0.mlp.c_fc.weight [m, n]."""
    renamed = {}
    for name, x in tensors.items():
        path = re.sub(r"^h(\d+)/", r"h/\1/", name.removeprefix("model/"))
        path = re.sub(r"/[wg]$", "/weight", re.sub(r"/b$", "/bias", path))
        path = re.sub(r"^(wte|wpe)$", r"\1/weight", path)
        renamed[path.replace("/", ".")] = x[0] if x.ndim == 3 and len(x) == 1 else x
    return renamed
