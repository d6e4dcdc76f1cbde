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

from model_files import END_OF_TEXT, architecture
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
    if path[-1] in ("wte", "wpe", "lm_head"):
        return path
    if path[0] == "h":
        path = ["blocks", int(path[1]), *path[2:]]
    if leaf == "bias":
        return [*path, "b"]
    return [*path, "g" if path[-1].startswith("ln_") else "w"]


def flatten(params, name=""):
    """Return a tree as a flat dict. This is the inverse of nest."""
    if isinstance(params, np.ndarray):
        return {f"{name}.weight" if name in ("wte", "wpe", "lm_head") else name: params}
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
    "activation_function": "gelu_new",
}
ALIASES = {  # {another name: the key}; if config.json has both, transformers uses the other name
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
ARCHITECTURE = {  # {key: the values that are supported here, the default first}
    "model_type": ("gpt2",),
    "scale_attn_weights": (True, False),
    "scale_attn_by_inverse_layer_idx": (False, True),
    "reorder_and_upcast_attn": (False, True),  # changes only how the scores are rounded
    "add_cross_attention": (False,),
}
AXES = {  # {key of config.json: the tensor and its axis that must have this size}
    "vocab_size": ("wte.weight", 0),
    "n_positions": ("wpe.weight", 0),
    "n_embd": ("wte.weight", 1),
    "n_inner": ("h.0.mlp.c_fc.weight", 1),
}
MAX_SHARDS = 200  # files of weights that a model may have; the largest GPT-2 has 2
WEIGHTS = "model.safetensors"
# The files that may hold the weights, or say which files do; the first one that exists is read.
WEIGHTS_FILES = (
    *(WEIGHTS, "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
OTHER_KINDS = {  # {part of a file name: what a place with such a file has instead of a model}
    "adapter_config.json": "it has an adapter for another model; merge the two with peft",
    ".gguf": "it has GGUF files for llama.cpp; look for the model that they were made from",
    "tf_model.h5": "it has TensorFlow weights; convert them with transformers",
    "flax_model.msgpack": "it has Flax weights; convert them with transformers",
    "ckpt.pt": "it has a checkpoint of nanoGPT; convert it to transformers' names and layout",
    "": "it does not have the files of a model; check the name",
}
GENERATION = "generation_config.json"
# The name of a file of weights. Windows reserves some names: con.safetensors is the terminal.
SHARD = re.compile(r"(?ai)(?!(con|prn|aux|nul|com\d|lpt\d)\.)[\w-][\w.-]{,200}\.(safetensors|bin)")


def other_kind(names):
    """Return what files with these names are instead of a model, and what to do."""
    return next(kind for part, kind in OTHER_KINDS.items() if part in " ".join(names))


def holds_model(directory):
    """Return whether a directory holds weights, which are always the last file to be written."""
    return weights_file(directory) is not None or bundle_prefix(directory) is not None


def is_complete(directory):
    """Return whether a Hugging Face directory has config, vocabulary and all files of weights."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        names = {path.name for path in directory.iterdir() if path.is_file()}
        if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
            return False
        path = weights_file(directory)
        shards = read_weight_map(path).values() if path.suffix == ".json" else [path.name]
        return {"config.json", *shards} <= names
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


def load_model(directory, is_released=False, vocabulary=None, only_plain=False):
    """Return the vocabulary, the hparams and the parameters, a tree of float32 arrays.

    hparams is a dict of everything except the arrays: n_vocab, n_ctx, n_embd, n_head, n_layer,
    n_inner, layer_norm_epsilon, activation_function, eos_token_ids, and training, the content of
    train.py's training.json, or {}. is_released: the model is one of OpenAI's; other files are not
    read. vocabulary: another model's, instead of the one in the directory. only_plain: refuse a
    model with another activation than GPT-2's, or an output head of its own: params["lm_head"].
    """
    directory = Path(directory)
    vocabulary, hparams, tensors = read_model(directory, is_released, vocabulary)
    if only_plain:
        architecture.check_plain(directory, hparams, tensors)
    hparams["training"] = read_training(directory)
    tensors = {name: widen(x) for name, x in tensors.items()}
    for name, x in tensors.items():
        if not math.isfinite(x.ravel() @ x.ravel()):  # This is the fastest check.
            fault = f"tensor {name} has numbers that are not finite or too large"
            raise ValueError(f"{directory}: {fault}; download or train the model again")
    return vocabulary, hparams, nest(tensors)


def read_model(directory, is_released=False, vocabulary=None):
    """Return the vocabulary, the hparams and all parameters: {name: array as it is stored}."""
    prefix = bundle_prefix(directory)
    if not prefix and not weights_file(directory):
        fault = f"there is no {WEIGHTS}, pytorch_model.bin or model.ckpt.index with its data"
        names = [path.name for path in directory.iterdir()]
        raise FileNotFoundError(f"{directory} holds no model: {fault}; {other_kind(names)}")
    vocabulary = vocabulary or read_vocabulary(directory, is_released)
    if weights_file(directory):
        path = directory / "config.json"
        config = read_config(path)
        eos_token_ids = read_eos(directory, config, is_released)
        tensors = architecture.strip_names(directory, read_weights(directory), config)
    else:
        from model_files.tensor_bundle import read_tensor_bundle  # Few directories need it.

        path = directory / "hparams.json"
        config = read_config(path)
        eos_token_ids = [vocabulary.ids.get(END_OF_TEXT)]
        tensors = architecture.from_openai(read_tensor_bundle(prefix))
    hparams = {
        "n_vocab": config["vocab_size"],
        "n_ctx": config["n_positions"],
        **{name: config[name] for name in ("n_embd", "n_head", "n_layer", "n_inner")},
        "layer_norm_epsilon": float(config["layer_norm_epsilon"]),
        "activation_function": config["activation_function"],
        "eos_token_ids": [i for i in eos_token_ids if i in range(config["vocab_size"])],
    }
    last = max(vocabulary.ids.values())
    if last >= hparams["n_vocab"]:
        sizes = f"ids up to {last}, the model has {hparams['n_vocab']} ids"
        raise ValueError(f"{directory}: the vocabulary has {sizes}; take both from the same model")
    check_sizes(path, config, tensors)
    tensors = check_tensors(directory, hparams, tensors)
    return vocabulary, hparams, architecture.fold_scale(config, tensors)


def read_config(path):
    """Return config.json, or OpenAI's hparams.json, after a check, with defaults filled in."""
    config = read_json(path)
    config |= {name: config[alias] for alias, name in ALIASES.items() if alias in config}
    for old_name, name in (("n_ctx", "n_positions"), ("n_vocab", "vocab_size")):
        if name not in config and old_name in config:
            config[name] = config[old_name]
    if config.get("quantization_config"):
        raise ValueError(f"{path}: the weights are quantised; use the model they were made from")
    for name, values in ARCHITECTURE.items():
        if config.get(name, values[0]) not in values:
            fault = f"only {' or '.join(map(repr, values))} is supported"
            raise ValueError(f"{path}: {name} is {config[name]!r:.40}; {fault}")
    config = {**DEFAULTS, **{name: values[0] for name, values in ARCHITECTURE.items()}, **config}
    activation = config["activation_function"]
    if not isinstance(activation, str) or activation not in architecture.ACTIVATION_NAMES:
        known = ", ".join(architecture.ACTIVATION_NAMES)
        raise ValueError(f"{path}: activation_function is {activation!r:.40}, not one of {known}")
    config["activation_function"] = architecture.ACTIVATION_NAMES[activation]
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


def weights_file(directory):
    """Return the path of a directory's weights, or of their index, or None.

    OpenAI's own checkpoint is preferred to a pickle.
    """
    names = WEIGHTS_FILES[:2] if bundle_prefix(directory) else WEIGHTS_FILES
    paths = (directory / name for name in names)
    return next((path for path in paths if path.exists()), None)


def read_weights(directory):
    """Return {name: array} of the file of weights, or of the files that an index names."""
    path = weights_file(directory)
    if path.suffix != ".json":
        return read_file(path)
    weight_map = read_weight_map(path)
    tensors = {}
    for file in set(weight_map.values()):
        shard = read_file(directory / file)
        for name in weight_map:
            if weight_map[name] == file:
                if name not in shard:
                    fault = f"tensor {name!r:.80} is missing; download the model again"
                    raise ValueError(f"{directory / file}: {fault}")
                tensors[name] = shard[name]
    return tensors


def read_file(path):
    """Return {name: array} of a file in the format of safetensors or torch.save."""
    if path.suffix == ".bin":
        from model_files.torch_pickle import read_torch_pickle  # few directories need it

        return read_torch_pickle(path)
    return read_safetensors(path)


def read_weight_map(index):
    """Return {name of a tensor: name of its file, which is in the directory of the index}."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) and SHARD.fullmatch(file) for file in weight_map.values()
    ):
        raise ValueError(f"{index}: weight_map does not map tensors to names of files of weights")
    n_files = len(set(weight_map.values()))
    if n_files > MAX_SHARDS:
        raise ValueError(f"{index}: weight_map names {n_files} files; the limit is {MAX_SHARDS}")
    return weight_map


def check_sizes(path, config, tensors):
    """Raise ValueError if the tensors do not have the sizes in config.json, which is at path.

    Nothing as large as config.json says may be allocated before this check.
    """
    matrix, n_embd = tensors.get("h.0.attn.c_attn.weight"), config["n_embd"]
    if matrix is not None and matrix.shape == (3 * n_embd, n_embd):
        advice = "transpose the four matrices of each block, as transformers stores them"
        raise ValueError(f"{path.parent} has the layout of nanoGPT: {advice}")
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
    if "lm_head.weight" in tensors:
        shapes["lm_head.weight"] = shapes["wte.weight"]
    for name, shape in shapes.items():
        if name not in tensors:
            raise ValueError(f"{directory}: tensor {name} is missing")
        x = tensors[name]
        if x.shape != shape:
            raise ValueError(f"{directory}: tensor {name} has shape {x.shape}, not {shape}")
        if x.dtype in (np.int8, np.uint8):
            advice = "its weights are quantised: look for the model they were made from"
            raise ValueError(f"{directory}: tensor {name} is {x.dtype}: {advice}")
        if x.dtype not in (np.float64, np.float32, np.float16, BF16):
            raise ValueError(f"{directory}: tensor {name} is {x.dtype}, not F64, F32, F16 or BF16")
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
        write_config(directory, hparams, dtype, tied="lm_head" not in params)


def write_config(directory, hparams, dtype="float32", tied=True):
    """Write config.json. tied: the model has no output head of its own."""
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
        "activation_function": hparams.get("activation_function", "gelu_new"),
        "tie_word_embeddings": tied,
        "bos_token_id": eos[0] if eos else None,
        "eos_token_id": eos if len(eos) > 1 else next(iter(eos), None),
    }
    with write_atomic(directory / "config.json") as file:
        file.write(json.dumps(config, indent=2).encode() + b"\n")


def write_weights(file, tensors, dtype="float32"):
    """Write {name: array} as transformers names them."""
    named = {f"transformer.{name}": x for name, x in tensors.items() if name != "lm_head.weight"}
    if "lm_head.weight" in tensors:
        named["lm_head.weight"] = tensors["lm_head.weight"]
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
        write_config(directory, hparams, tied="lm_head.weight" not in tensors)
        with write_atomic(directory / WEIGHTS) as file:
            write_weights(file, tensors)
