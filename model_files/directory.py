"""Read, check and save a model directory: one in Hugging Face's format for GPT-2, or OpenAI's own.

The files hold a flat dict of parameters. Its keys are transformers' names without "transformer.":
    {"wte.weight": [n_vocab, n_embd], "h.0.attn.c_attn.weight": [n_embd, 3 n_embd], ...}
In the code they are a tree, whose keys are the arguments of the functions in gpt2.py:
    {"wte": ..., "blocks": [{"attn": {"c_attn": {"w": ..., "b": ...}, ...}, ...}, ...], ...}
Weights are memory-mapped, so a model may be larger than memory. Lesson: step 5.
"""

import contextlib
import json
import math
import os
import re
from pathlib import Path

import numpy as np

from model_files import END_OF_TEXT
from model_files.files import (
    check_space,
    open_regular,
    read_bytes,
    read_json,
    remove_temporary,
    write_atomic,
)
from model_files.safetensors import BF16, read_safetensors, widen, write_tensors
from model_files.vocabulary import SIDE_FILES, read_vocabulary, save_vocabulary

# ==== The parameters ============================================================================


def parameter_shapes(n_vocab, n_ctx, n_embd, n_layer, n_inner=None, **others):
    """Return {name: shape} of all parameters, in the order in which the model uses them. n_inner is
    the width of the MLP."""
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
    """Return a flat dict as a tree: {"h.0.ln_1.bias": x} -> {"blocks": [{"ln_1": {"b": x}}]}."""
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
    """Return a parameter's path: "h.0.mlp.c_fc.weight" -> ["blocks", 0, "mlp", "c_fc", "w"]."""
    *path, leaf = name.split(".")
    if path[-1] in ("wte", "wpe"):
        return path
    if path[0] == "h":
        path = ["blocks", int(path[1]), *path[2:]]
    if leaf == "bias":
        return [*path, "b"]
    return [*path, "g" if path[-1].startswith("ln_") else "w"]


def flatten(params, name=""):
    """Return a tree as a flat dict. This is the inverse of nest."""
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

DEFAULTS = {  # {key: the value if config.json does not have the key, as in transformers}
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_inner": None,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
ALIASES = {  # {another name: the key}; if config.json has both, transformers uses the other name
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
ARCHITECTURE = {  # {key: the values that are supported here, the default first}
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),  # one formula, 3 names
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
}
AXES = {  # {key of config.json: the tensor and its axis that must have this size}
    "vocab_size": ("wte.weight", 0),
    "n_positions": ("wpe.weight", 0),
    "n_embd": ("wte.weight", 1),
    "n_inner": ("h.0.mlp.c_fc.weight", 1),
}
MAX_SHARDS = 200  # files of weights that a model may have; the largest GPT-2 has 2
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
# The name of a file of weights. Windows reserves some names: con.safetensors is the terminal.
SHARD = re.compile(r"(?ai)(?!(con|prn|aux|nul|com\d|lpt\d)\.)[\w-][\w.-]{,200}\.safetensors")


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
        weights = [WEIGHTS]
        if WEIGHTS not in names:
            weights = read_weight_map(directory / INDEX).values()
        return {"config.json", *weights} <= names
    return False


def bundle_prefix(directory):
    """Return the path of OpenAI's TensorFlow checkpoint without .index, or None if it is absent."""
    name = "model.ckpt"
    with contextlib.suppress(OSError, ValueError), open_regular(directory / "checkpoint") as file:
        match = re.match(rb'model_checkpoint_path: "(?:.*[/\\])?([\w.-]+)"', file.read(4096))
        if match:
            name = match[1].decode()
    has_index = (directory / f"{name}.index").exists()
    return directory / name if has_index and any(directory.glob(f"{name}.data-*")) else None


def load_model(directory, is_released=False):
    """Return the vocabulary, the hparams and the parameters, a tree of float32 arrays.

    hparams is a dict of everything except the arrays: n_vocab, n_ctx, n_embd, n_head, n_layer,
    n_inner, layer_norm_epsilon, eos_token_ids, and training, the content of train.py's
    training.json, or {}. is_released: the model is one of OpenAI's; other files are not read.
    """
    directory = Path(directory)
    vocabulary, hparams, tensors = read_model(directory, is_released)
    hparams["training"] = read_training(directory)
    tensors = {name: widen(x) for name, x in tensors.items()}
    for name, x in tensors.items():
        if not math.isfinite(x.ravel() @ x.ravel()):  # This is the fastest check.
            fault = f"tensor {name} has numbers that are not finite or too large"
            raise ValueError(f"{directory}: {fault}; download or train the model again")
    return vocabulary, hparams, nest(tensors)


def read_model(directory, is_released=False):
    """Return the vocabulary, the hparams and all parameters: {name: array as it is stored}."""
    vocabulary = read_vocabulary(directory, is_released)
    prefix = bundle_prefix(directory)
    if (directory / WEIGHTS).exists() or (directory / INDEX).exists():
        path = directory / "config.json"
        config = read_config(path)
        eos_token_ids = read_eos(directory, config, is_released)
        tensors = strip_names(directory, read_weights(directory), config["tie_word_embeddings"])
    elif prefix:
        from model_files.tensor_bundle import read_tensor_bundle  # Few directories need it.

        path = directory / "hparams.json"
        config = read_config(path)
        eos_token_ids = [vocabulary.ids.get(END_OF_TEXT)]
        tensors = from_openai(read_tensor_bundle(prefix))
    elif (directory / "pytorch_model.bin").exists():
        fault = "is a pickle, which could run any code, so it is not opened"
        raise ValueError(f"{directory}/pytorch_model.bin {fault}; convert it to {WEIGHTS}")
    else:
        fault = f"there is neither {WEIGHTS} nor OpenAI's model.ckpt.index with its data"
        raise FileNotFoundError(f"{directory} holds no model: {fault}")
    hparams = {
        "n_vocab": config["vocab_size"],
        "n_ctx": config["n_positions"],
        **{name: config[name] for name in ("n_embd", "n_head", "n_layer", "n_inner")},
        "layer_norm_epsilon": float(config["layer_norm_epsilon"]),
        "eos_token_ids": [i for i in eos_token_ids if i in range(config["vocab_size"])],
    }
    if len(vocabulary.ids) > hparams["n_vocab"]:
        sizes = f"{len(vocabulary.ids)} tokens, the model {hparams['n_vocab']}"
        raise ValueError(f"{directory}: the vocabulary has {sizes}; take both from the same model")
    check_sizes(path, config, tensors)
    return vocabulary, hparams, check_tensors(directory, hparams, tensors)


def read_config(path):
    """Return config.json, or OpenAI's hparams.json, after a check, with defaults filled in."""
    config = read_json(path)
    config |= {name: config[alias] for alias, name in ALIASES.items() if alias in config}
    for old_name, name in (("n_ctx", "n_positions"), ("n_vocab", "vocab_size")):
        if name not in config and old_name in config:
            config[name] = config[old_name]
    for name, values in ARCHITECTURE.items():
        if config.get(name, values[0]) not in values:
            fault = f"only {' or '.join(map(repr, values))} is supported"
            raise ValueError(f"{path}: {name} is {config[name]!r:.40}; {fault}")
    config = {**DEFAULTS, **config}
    if config["n_inner"] is None and type(config["n_embd"]) is int:
        config["n_inner"] = 4 * config["n_embd"]
    for name in ("vocab_size", "n_positions", "n_embd", "n_head", "n_layer", "n_inner"):
        if type(config[name]) is not int or not 0 < config[name] < 1 << 48:
            raise ValueError(f"{path}: {name} is {config[name]!r:.40}, not a positive whole number")
    if config["n_embd"] % config["n_head"]:
        fault = f"n_embd {config['n_embd']} is not divisible by n_head {config['n_head']}"
        raise ValueError(f"{path}: {fault}")
    eps = config["layer_norm_epsilon"]
    if type(eps) not in (int, float) or not 0 < eps < 1:
        raise ValueError(f"{path}: layer_norm_epsilon is {eps!r:.40}, not between 0 and 1")
    return config


def read_eos(directory, config, is_released):
    """Return the ids that end a text: as in transformers, generation_config.json has precedence."""
    path = directory / GENERATION
    if is_released or not path.exists():
        path = directory / "config.json"
    else:
        config = read_json(path)
    ids = config.get("eos_token_id")
    if ids is None:
        return []
    ids = ids if isinstance(ids, list) else [ids]
    if not all(type(id_) is int for id_ in ids):
        raise ValueError(f"{path}: eos_token_id is {ids!r:.40}, neither an id nor a list of ids")
    return ids


def read_training(directory):
    """Return the options with which train.py trained a model, and the stop words; {} if unknown."""
    path = directory / "training.json"
    if not path.exists():
        return {}
    training = read_json(path, read_bytes(path))  # It may hold a megabyte of stop words.
    stopwords = training.get("stopwords", [])
    if not isinstance(training.get("lowercase", False), bool):
        raise ValueError(f"{path}: lowercase is neither true nor false")
    if not isinstance(stopwords, list) or not all(isinstance(word, str) for word in stopwords):
        raise ValueError(f"{path}: stopwords is not a list of words")
    return training


def read_weights(directory):
    """Return {name: array} of model.safetensors, or of the files that its index names."""
    if (directory / WEIGHTS).exists():
        return read_safetensors(directory / WEIGHTS)
    weight_map = read_weight_map(directory / INDEX)
    tensors = {}
    for file in set(weight_map.values()):
        shard = read_safetensors(directory / file)
        for name in weight_map:
            if weight_map[name] == file:
                if name not in shard:
                    fault = f"tensor {name!r:.80} is missing; download the model again"
                    raise ValueError(f"{directory / file}: {fault}")
                tensors[name] = shard[name]
    return tensors


def read_weight_map(index):
    """Return {name of a tensor: name of its file, which is in the directory of the index}."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) and SHARD.fullmatch(file) for file in weight_map.values()
    ):
        raise ValueError(f"{index}: weight_map does not map tensors to names of .safetensors files")
    n_files = len(set(weight_map.values()))
    if n_files > MAX_SHARDS:
        raise ValueError(f"{index}: weight_map names {n_files} files; the limit is {MAX_SHARDS}")
    return weight_map


def strip_names(directory, tensors, tied):
    """Drop the prefix "transformer.", the mask buffers, and an output head that equals wte."""
    kept = [name for name in tensors if not re.search(r"\.attn\.(masked_)?bias$", name)]
    bare = {name.removeprefix("transformer."): tensors[name] for name in kept}
    if len(bare) < len(kept):
        raise ValueError(f"{directory}: a tensor occurs with and without the prefix 'transformer.'")
    head, wte = bare.pop("lm_head.weight", None), bare.get("wte.weight")
    if head is None and not tied:
        fault = "is missing, although config.json says that it is not tied to wte.weight"
        raise ValueError(f"{directory}: tensor lm_head.weight {fault}")
    if head is not None and wte is not None and not are_equal(head, wte):
        fault = "differs from wte.weight, which is not supported"
        raise ValueError(f"{directory}: tensor lm_head.weight {fault}")
    return bare


def are_equal(x, y):
    """Return whether two arrays are equal bit by bit. They may be larger than memory."""
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


def check_sizes(path, config, tensors):
    """Raise ValueError if the tensors do not have the sizes in config.json, which is at path.

    Nothing as large as config.json says may be allocated before this check.
    """
    for key, (name, axis) in AXES.items():
        if name not in tensors:
            raise ValueError(f"{path.parent}: tensor {name} is missing")
        shape = tensors[name].shape
        if axis < len(shape) and config[key] != shape[axis]:
            fault = f"but tensor {name} has shape {shape}; take both from the same model"
            raise ValueError(f"{path}: {key} is {config[key]}, {fault}")
    n_layer = len({name.split(".")[1] for name in tensors if name.startswith("h.")})
    if config["n_layer"] != n_layer:
        fault = f"but the weights have {n_layer} layers; take both from the same model"
        raise ValueError(f"{path}: n_layer is {config['n_layer']}, {fault}")


def check_tensors(directory, hparams, tensors):
    """Return the tensors in the order of parameter_shapes. ValueError if they do not match it."""
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
        raise ValueError(f"{directory}: tensor {min(unknown)!r} is not part of GPT-2")
    return {name: tensors[name] for name in shapes}


# ==== Saving ====================================================================================


def save_model(directory, hparams, params, vocabulary, dtype="float32"):
    """Write a model directory that transformers can open, too.

    The weights are written first, so a full disk replaces nothing, and they get their name last.
    ValueError if another file in the directory would change how the model works.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / GENERATION).exists():
        raise ValueError(f"{directory / GENERATION} belongs to another model; move it away")
    with write_atomic(directory / WEIGHTS) as file:
        write_weights(file, flatten(params), dtype)
        save_vocabulary(vocabulary, directory)
        write_config(directory, hparams, dtype)


def write_config(directory, hparams, dtype="float32"):
    """Write the hyperparameters to config.json."""
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


def write_weights(file, tensors, dtype="float32"):
    """Write {name: array} to a file, with the names of transformers."""
    named = {f"transformer.{name}": x for name, x in tensors.items()}
    write_tensors(file, named, {"format": "pt"}, dtype)


# Files are installed in this order. A killed installation leaves no vocabulary or the right one:
# tokenizer.json needs the side files, and has precedence over vocab.json and merges.txt.
INSTALLED = "source.json", "generation_config.json", *SIDE_FILES
INSTALLED += "tokenizer.json", "vocab.json", "merges.txt"


def check_free(source, directory):
    """Raise FileExistsError if installing a model would replace or delete a file of the user."""
    import filecmp

    with contextlib.suppress(OSError, ValueError):
        if read_json(directory / "source.json").keys() == {"repository", "commit"}:
            return  # A download has written this file, and so also the others.
    for name in (*INSTALLED, "config.json"):
        old, new = directory / name, source / name
        is_same = old.exists() and new.exists() and filecmp.cmp(old, new, shallow=False)
        if os.path.lexists(old) and not is_same:
            fault = "is not from a download and would be replaced"
            raise FileExistsError(f"{old} {fault}; move it away, or use another --models_dir")


def install(source, directory, only_vocabulary=False):
    """Install a downloaded model in a directory, its weights last, and as aligned float32."""
    read_vocabulary(source)
    if not only_vocabulary:
        _, hparams, tensors = read_model(source)
        check_space(directory, 4 * sum(x.size for x in tensors.values()))
    check_free(source, directory)
    remove_temporary(directory)
    for name in reversed(INSTALLED[1:]):  # source.json stays: it says that the others are ours.
        (directory / name).unlink(missing_ok=True)
    for name in INSTALLED:
        if (source / name).exists():
            with write_atomic(directory / name) as file:
                file.write((source / name).read_bytes())
    if not only_vocabulary:
        write_config(directory, hparams)
        with write_atomic(directory / WEIGHTS) as file:
            write_weights(file, tensors)
