"""A model directory: read, check, save. Either a Hugging Face GPT-2 directory or OpenAI's own.

In files, the parameters are a flat dict by transformers' names without the prefix transformer.:
    {"wte.weight": [n_vocab, n_embd], "h.0.attn.c_attn.weight": [n_embd, 3 n_embd], ...}
In the code they are a tree, whose keys are the arguments of the functions in gpt2.py:
    {"wte": ..., "blocks": [{"attn": {"c_attn": {"w": ..., "b": ...}, ...}, ...}, ...], ...}
Weights are memory-mapped, so a model may be larger than memory. Lesson: step 5.
"""

import contextlib
import json
import os
import re
from pathlib import Path

import numpy as np

from model_files import END_OF_TEXT
from model_files.files import check_space, read_json, write_atomic
from model_files.safetensors import BF16, read_safetensors, widen, write_safetensors
from model_files.vocabulary import SIDE_FILES, read_vocabulary, save_vocabulary

# ==== The parameters ============================================================================


def parameter_shapes(n_vocab, n_ctx, n_embd, n_layer, n_inner=None, **others):
    """Return {name: shape} of all parameters, in the order in which the model uses them.

    n_inner is the width of the MLP, by default 4 n_embd. All other hparams are ignored.
    """
    n_inner = n_inner or 4 * n_embd
    block = {
        "ln_1.weight": (n_embd,),
        "ln_1.bias": (n_embd,),
        "attn.c_attn.weight": (n_embd, 3 * n_embd),
        "attn.c_attn.bias": (3 * n_embd,),
        "attn.c_proj.weight": (n_embd, n_embd),
        "attn.c_proj.bias": (n_embd,),
        "ln_2.weight": (n_embd,),
        "ln_2.bias": (n_embd,),
        "mlp.c_fc.weight": (n_embd, n_inner),
        "mlp.c_fc.bias": (n_inner,),
        "mlp.c_proj.weight": (n_inner, n_embd),
        "mlp.c_proj.bias": (n_embd,),
    }
    return {
        "wte.weight": (n_vocab, n_embd),
        "wpe.weight": (n_ctx, n_embd),
        **{f"h.{i}.{name}": shape for i in range(n_layer) for name, shape in block.items()},
        "ln_f.weight": (n_embd,),
        "ln_f.bias": (n_embd,),
    }


def nest(tensors):
    """Return the tree of a flat dict.

    {"h.0.ln_1.weight": x, ...} -> {"blocks": [{"ln_1": {"g": x, ...}, ...}, ...], ...}
    """
    tree = {}
    for name, x in tensors.items():
        *path, last = tree_path(name)
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = x
    tree["blocks"] = [tree["blocks"][i] for i in range(len(tree["blocks"]))]
    return tree


def tree_path(name):
    """Return the keys in the tree: "h.0.mlp.c_fc.weight" -> "blocks", 0, "mlp", "c_fc", "w"."""
    *path, leaf = name.split(".")
    if path[-1] in ("wte", "wpe"):
        return path
    if path[0] == "h":
        path = ["blocks", int(path[1]), *path[2:]]
    if leaf == "bias":
        return [*path, "b"]
    return [*path, "g" if path[-1].startswith("ln_") else "w"]


def flatten(params, name=""):
    """Return the flat dict of a tree, the inverse of nest."""
    if isinstance(params, np.ndarray):
        return {f"{name}.weight" if name in ("wte", "wpe") else name: params}
    if isinstance(params, list):
        params = dict(enumerate(params))
    names = {"blocks": "h", "g": "weight", "w": "weight", "b": "bias"}
    flat = {}
    for key, value in params.items():
        flat |= flatten(value, f"{name}.{names.get(key, key)}".lstrip("."))
    return flat


# ==== Reading ===================================================================================

DEFAULTS = {  # of keys that are absent from config.json, as in transformers
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_inner": None,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
ALIASES = {  # other names of config.json's keys; where both are there, transformers takes these
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
ARCHITECTURE = {  # the supported values of other keys, the default first
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),  # the same formula
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def holds_model(directory):
    """Return whether a directory holds weights, which are always the last file to be written."""
    has_weights = any((directory / name).is_file() for name in (WEIGHTS, INDEX))
    return has_weights or bundle_prefix(directory) is not None


def is_complete(directory):
    """Return whether a Hugging Face directory has config, vocabulary and all files of weights."""
    with contextlib.suppress(OSError, ValueError):
        names = {path.name for path in directory.iterdir() if path.is_file()}
        if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
            return False
        needed = {"config.json", "model.safetensors"}
        if "model.safetensors" not in names:
            weight_map = read_weight_map(directory / "model.safetensors.index.json")
            needed = {"config.json", *weight_map.values()}
        return needed <= names
    return False


def bundle_prefix(directory):
    """Return the path of OpenAI's TensorFlow checkpoint without .index, or None."""
    name = "model.ckpt"
    with contextlib.suppress(OSError), open(directory / "checkpoint", "rb") as file:
        match = re.match(rb'model_checkpoint_path: "(?:.*[/\\])?([\w.-]+)"', file.read(4096))
        if match:
            name = match[1].decode()
    has_index = (directory / f"{name}.index").is_file()
    return directory / name if has_index and any(directory.glob(f"{name}.data-*")) else None


def load_model(directory, is_released=False):
    """Return vocabulary, hparams and params, a tree of float32 (mapped if the file has float32).

    hparams is a dict of everything except the arrays: n_vocab, n_ctx, n_embd, n_head, n_layer,
    n_inner, layer_norm_epsilon, eos_token_ids, and training, which is what train.py has recorded in
    training.json, or {}. is_released: it is a released size, of which no other files are read.
    """
    directory = Path(directory)
    vocabulary, hparams, tensors = read_model(directory, is_released)
    hparams["training"] = read_training(directory)
    return vocabulary, hparams, nest({name: widen(x) for name, x in tensors.items()})


def read_model(directory, is_released=False):
    """Return vocabulary, hparams and {name: array as it is stored} of all parameters."""
    vocabulary = read_vocabulary(directory, is_released)
    prefix = bundle_prefix(directory)
    if (directory / WEIGHTS).is_file() or (directory / INDEX).is_file():
        config = read_config(directory / "config.json")
        eos_token_ids = read_eos(directory, is_released)
        tensors = strip_names(directory, read_weights(directory), config["tie_word_embeddings"])
    elif prefix:
        from model_files.tensor_bundle import read_tensor_bundle  # few directories need it

        config = read_config(directory / "hparams.json")
        eos_token_ids = [vocabulary.ids.get(END_OF_TEXT)]
        tensors = from_openai(read_tensor_bundle(prefix))
    elif (directory / "pytorch_model.bin").is_file():
        raise ValueError(
            f"{directory}/pytorch_model.bin is a pickle, which can run any code, and is not "
            f"opened: convert it to {WEIGHTS}"
        )
    else:
        raise FileNotFoundError(
            f"{directory} holds no model: neither {WEIGHTS} nor OpenAI's model.ckpt.index and its "
            "data"
        )
    hparams = {
        "n_vocab": config["vocab_size"],
        "n_ctx": config["n_positions"],
        **{name: config[name] for name in ("n_embd", "n_head", "n_layer", "n_inner")},
        "layer_norm_epsilon": float(config["layer_norm_epsilon"]),
        "eos_token_ids": [i for i in eos_token_ids if i in range(config["vocab_size"])],
    }
    if len(vocabulary.ids) > hparams["n_vocab"]:
        raise ValueError(
            f"{directory}: the vocabulary has {len(vocabulary.ids)} tokens, the model "
            f"{hparams['n_vocab']}"
        )
    return vocabulary, hparams, check_tensors(directory, hparams, tensors)


def read_config(path):
    """Return config.json, or OpenAI's hparams.json, checked and completed by the defaults."""
    config = read_json(path)
    config |= {name: config[alias] for alias, name in ALIASES.items() if alias in config}
    for old_name, name in (("n_ctx", "n_positions"), ("n_vocab", "vocab_size")):
        if name not in config and old_name in config:
            config[name] = config[old_name]
    for name, values in ARCHITECTURE.items():
        if config.get(name, values[0]) not in values:
            raise ValueError(f"{path}: {name} is {config[name]!r:.40}: another architecture")
    config = {**DEFAULTS, **config}
    if config["n_inner"] is None and type(config["n_embd"]) is int:
        config["n_inner"] = 4 * config["n_embd"]
    for name in ("vocab_size", "n_positions", "n_embd", "n_head", "n_layer", "n_inner"):
        if type(config[name]) is not int or not 0 < config[name] < 1 << 31:
            raise ValueError(f"{path}: {name} is {config[name]!r:.40}, not a positive whole number")
    if config["n_embd"] % config["n_head"]:
        raise ValueError(f"{path}: n_embd {config['n_embd']} is not divisible by n_head")
    eps = config["layer_norm_epsilon"]
    if type(eps) not in (int, float) or not 0 < eps < 1:
        raise ValueError(f"{path}: layer_norm_epsilon is {eps!r:.40}, not between 0 and 1")
    return config


def read_eos(directory, is_released):
    """Return the ids that end a text, from generation_config.json if it exists, or config.json.

    So does transformers.
    """
    path = directory / "generation_config.json"
    if is_released or not path.is_file():
        path = directory / "config.json"
    ids = read_json(path).get("eos_token_id")
    if ids is None:
        return []
    ids = ids if isinstance(ids, list) else [ids]
    if not all(type(id_) is int for id_ in ids):
        raise ValueError(f"{path}: eos_token_id is {ids!r:.40}, neither an id nor a list of ids")
    return ids


def read_training(directory):
    """Return what train.py recorded about a model: its options by name, and the stop words."""
    path = directory / "training.json"
    if not path.is_file():
        return {}
    training = read_json(path)
    stopwords = training.get("stopwords", [])
    if not isinstance(training.get("lowercase", False), bool):
        raise ValueError(f"{path}: lowercase is neither true nor false")
    if not isinstance(stopwords, list) or not all(isinstance(word, str) for word in stopwords):
        raise ValueError(f"{path}: stopwords is not a list of words")
    return training


def read_weights(directory):
    """Return {name: array} of model.safetensors, or of the files that its index names."""
    if (directory / WEIGHTS).is_file():
        return read_safetensors(directory / WEIGHTS)
    weight_map = read_weight_map(directory / INDEX)
    shards = {file: read_safetensors(directory / file) for file in set(weight_map.values())}
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise ValueError(f"{directory / file}: tensor {name!r} is missing")
    return {name: shards[file][name] for name, file in weight_map.items()}


def read_weight_map(index):
    """Return {name of a tensor: name of the file beside the index that holds it}."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) and re.fullmatch(r"[\w-][\w.-]*\.safetensors", file)
        for file in weight_map.values()
    ):
        raise ValueError(f"{index}: weight_map is not a dict of names of files beside it")
    return weight_map


def strip_names(directory, tensors, tied):
    """Drop the prefix transformer., the mask buffers and an output head that equals wte."""
    kept = [name for name in tensors if not re.search(r"\.attn\.(masked_)?bias$", name)]
    bare = {name.removeprefix("transformer."): tensors[name] for name in kept}
    if len(bare) < len(kept):
        raise ValueError(f"{directory}: a tensor exists with and without the prefix transformer.")
    head, wte = bare.pop("lm_head.weight", None), bare.get("wte.weight")
    if head is None and not tied:
        raise ValueError(f"{directory}: tensor lm_head.weight is missing, and not tied to wte")
    if head is not None and wte is not None and not are_equal(head, wte):
        raise ValueError(
            f"{directory}: tensor lm_head.weight differs from wte.weight: another architecture"
        )
    return bare


def are_equal(x, y):
    """Return whether two arrays are equal to the bit. They may be larger than memory."""
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    x, y = (np.ascontiguousarray(z).reshape(-1).view(np.uint8) for z in (x, y))
    pieces = (slice(i, i + (1 << 20)) for i in range(0, len(x), 1 << 20))
    return all(np.array_equal(x[piece], y[piece]) for piece in pieces)


def from_openai(tensors):
    """Rename OpenAI's tensors: model/h0/mlp/c_fc/w [1, m, n] -> h.0.mlp.c_fc.weight [m, n]."""
    renamed = {}
    for name, x in tensors.items():
        path = re.sub(r"^h(\d+)/", r"h/\1/", name.removeprefix("model/"))
        path = re.sub(r"/[wg]$", "/weight", re.sub(r"/b$", "/bias", path))
        path = re.sub(r"^(wte|wpe)$", r"\1/weight", path)
        renamed[path.replace("/", ".")] = x[0] if x.ndim == 3 and len(x) == 1 else x
    return renamed


def check_tensors(directory, hparams, tensors):
    """Return the tensors in the order of parameter_shapes; ValueError if they do not fit it."""
    shapes = parameter_shapes(**hparams)
    for name, shape in shapes.items():
        if name not in tensors:
            raise ValueError(f"{directory}: tensor {name} is missing")
        x = tensors[name]
        if x.shape != shape:
            raise ValueError(f"{directory}: tensor {name} has shape {x.shape}, not {shape}")
        if x.dtype not in (np.float32, np.float16, BF16):
            raise ValueError(f"{directory}: tensor {name} is {x.dtype}, not F32, F16 or BF16")
    if unknown := tensors.keys() - shapes.keys():
        raise ValueError(f"{directory}: tensor {min(unknown)!r} is not part of this architecture")
    return {name: tensors[name] for name in shapes}


# ==== Saving ====================================================================================


def save_model(directory, hparams, params, vocabulary, dtype="float32"):
    """Write a directory that transformers opens as well.

    The weights are written first, so that a full disk replaces nothing, and renamed last.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / f"{WEIGHTS}.new"
    try:
        write_weights(new, flatten(params), dtype)
        save_vocabulary(vocabulary, directory)
        write_config(directory, hparams, dtype)
        (directory / "generation_config.json").unlink(missing_ok=True)  # of a model before it
        os.replace(new, directory / WEIGHTS)
    finally:
        new.unlink(missing_ok=True)


def write_config(directory, hparams, dtype="float32"):
    """Write config.json."""
    eos = hparams["eos_token_ids"]
    n_inner = hparams.get("n_inner")
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "dtype": dtype,
        **{name: values[0] for name, values in ARCHITECTURE.items()},
        "vocab_size": hparams["n_vocab"],
        "n_positions": hparams["n_ctx"],
        **{name: hparams[name] for name in ("n_embd", "n_head", "n_layer")},
        "n_inner": None if n_inner == 4 * hparams["n_embd"] else n_inner,
        "layer_norm_epsilon": hparams["layer_norm_epsilon"],
        "tie_word_embeddings": True,
        "bos_token_id": eos[0] if eos else None,
        "eos_token_id": eos if len(eos) > 1 else next(iter(eos), None),
    }
    with write_atomic(directory / "config.json") as file:
        file.write(json.dumps(config, indent=2).encode() + b"\n")


def write_weights(path, tensors, dtype="float32"):
    """Write {name: array} as transformers names them."""
    named = {f"transformer.{name}": x for name, x in tensors.items()}
    write_safetensors(path, named, {"format": "pt"}, dtype)


def install(source, directory, only_vocabulary=False):
    """Make a model directory of the files in another: float32, aligned, the weights last.

    tokenizer.json comes after the files that add to it and before the pair that it overrules, so
    what an installation leaves that was killed is no vocabulary, or the right one.
    """
    read_vocabulary(source)
    if not only_vocabulary:
        _, hparams, tensors = read_model(source)
        check_space(directory, 4 * sum(x.size for x in tensors.values()))
    names = "source.json", "generation_config.json", *SIDE_FILES
    names += "tokenizer.json", "vocab.json", "merges.txt"
    for old in (*directory.glob("*.tmp"), *map(directory.joinpath, names)):
        old.unlink(missing_ok=True)
    for name in names:
        if (source / name).exists():
            with write_atomic(directory / name) as file:
                file.write((source / name).read_bytes())
    if not only_vocabulary:
        write_config(directory, hparams)
        write_weights(directory / "model.safetensors", tensors)
