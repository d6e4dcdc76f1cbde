"""A model directory: read, check, save. A Hugging Face GPT-2 directory, or OpenAI's own.

Weights are mapped, not read, so a model may be larger than memory.
"""

import contextlib
import json
import os
import re
from pathlib import Path

import numpy as np

from model_files.added_tokens import END_OF_TEXT
from model_files.files import read_json, write_atomic
from model_files.parameters import flatten, nest, parameter_shapes
from model_files.safetensors import BF16, read_safetensors, widen, write_safetensors
from model_files.vocabulary import read_vocabulary, save_vocabulary

DEFAULTS = {  # of keys that are absent from config.json: transformers'
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_inner": None,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
ALIASES = {  # of config.json's keys, and they have the say over them, as in transformers
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
ARCHITECTURE = {  # any other value is another model; the first one is the default
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),  # the tanh form
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
}


def holds_model(directory):
    """Are there weights? Here they are always the last file to be written."""
    names = "model.safetensors", "model.safetensors.index.json"
    return any((directory / n).is_file() for n in names) or bool(bundle_prefix(directory))


def bundle_prefix(directory):
    """-> path of OpenAI's TensorFlow checkpoint without .index, or None if there is none."""
    name = "model.ckpt"
    with contextlib.suppress(OSError), open(directory / "checkpoint", "rb") as file:
        found = re.match(rb'model_checkpoint_path: "(?:.*[/\\])?([\w.-]+)"', file.read(4096))
        name = found[1].decode() if found else name
    there = (directory / f"{name}.index").is_file() and any(directory.glob(f"{name}.data-*"))
    return directory / name if there else None


def load_model(directory, is_released=False):
    """-> vocabulary, hparams, params as a tree of float32 (mapped where the file has them so).

    is_released: it is one of the four sizes, so that only the files with known hashes are read.
    """
    vocabulary, hparams, tensors = read_model(Path(directory), is_released)
    return vocabulary, hparams, nest({name: widen(x) for name, x in tensors.items()})


def read_model(directory, is_released=False):
    """-> vocabulary, hparams, {name: array as it is stored}: all that parameter_shapes names."""
    vocabulary = read_vocabulary(directory, is_released)
    whole, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    prefix = bundle_prefix(directory)
    if whole.is_file() or index.is_file():
        config = read_config(directory / "config.json")
        ends = read_ends(directory, is_released)
        tensors = read_safetensors(whole) if whole.is_file() else read_shards(index)
        tensors = strip_names(directory, tensors, config["tie_word_embeddings"])
    elif prefix:
        from model_files.tensor_bundle import read_tensor_bundle  # few directories need it

        config = read_config(directory / "hparams.json")
        ends = [vocabulary.ids[END_OF_TEXT]] if END_OF_TEXT in vocabulary.ids else []
        tensors = from_openai(read_tensor_bundle(prefix))
    elif (directory / "pytorch_model.bin").is_file():
        raise ValueError(
            f"{directory}/pytorch_model.bin is a pickle, which can run any code, and "
            "is not opened: convert it to model.safetensors"
        )
    else:
        raise FileNotFoundError(
            f"{directory} holds no model: neither model.safetensors nor "
            "OpenAI's model.ckpt.index and its data"
        )
    hparams = hparams_of(config, ends)
    if (n_tokens := len(vocabulary.ids)) > hparams["n_vocab"]:
        raise ValueError(
            f"{directory}: the vocabulary has {n_tokens} tokens, the model {hparams['n_vocab']}"
        )
    return vocabulary, hparams, check_tensors(directory, hparams, tensors)


def read_config(path):
    """config.json, or OpenAI's hparams.json -> the same with its defaults, checked."""
    config = read_json(path)
    config |= {name: config[alias] for alias, name in ALIASES.items() if alias in config}
    for old, new in (("n_ctx", "n_positions"), ("n_vocab", "vocab_size")):
        if new not in config and old in config:
            config[new] = config[old]
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


def read_ends(directory, is_released):
    """-> the ids that end a text, as transformers finds them: generation_config.json has the say
    where there is one, else config.json."""
    path = directory / "generation_config.json"
    path = path if path.is_file() and not is_released else directory / "config.json"
    found = read_json(path).get("eos_token_id")
    ends = found if isinstance(found, list) else [] if found is None else [found]
    if set(map(type, ends)) - {int}:
        raise ValueError(f"{path}: eos_token_id is {found!r:.40}, neither an id nor a list of ids")
    return ends


def hparams_of(config, ends):
    """config.json's values by the names that OpenAI gave them: what the functions here take."""
    return {
        "n_vocab": config["vocab_size"],
        "n_ctx": config["n_positions"],
        **{name: config[name] for name in ("n_embd", "n_head", "n_layer", "n_inner")},
        "layer_norm_epsilon": float(config["layer_norm_epsilon"]),
        "eos_token_ids": [id_ for id_ in ends if 0 <= id_ < config["vocab_size"]],
    }


def read_shards(index):
    """-> the tensors of a checkpoint in several files, which its index assigns to them."""
    weight_map = read_weight_map(index)
    shards = {file: read_safetensors(index.parent / file) for file in set(weight_map.values())}
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise ValueError(f"{index.parent / file}: tensor {name!r} is missing")
    return {name: shards[file][name] for name, file in weight_map.items()}


def read_weight_map(index):
    """-> {name of a tensor: name of the file beside the index that holds it}"""
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
        raise ValueError(f"{directory}: a tensor is there with and without transformer.")
    head, wte = bare.pop("lm_head.weight", None), bare.get("wte.weight")
    if head is None and not tied:
        raise ValueError(f"{directory}: tensor lm_head.weight is missing, and not tied to wte")
    if head is not None and wte is not None and not same(head, wte):
        raise ValueError(
            f"{directory}: tensor lm_head.weight differs from wte.weight: another architecture"
        )
    return bare


def same(x, y):
    """Are two arrays equal to the bit? Piece by piece: they may be larger than memory."""
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    x, y = (np.ascontiguousarray(z).reshape(-1).view(np.uint8) for z in (x, y))
    pieces = (slice(i, i + (1 << 20)) for i in range(0, len(x), 1 << 20))
    return all(np.array_equal(x[piece], y[piece]) for piece in pieces)


def from_openai(tensors):
    """OpenAI's names -> transformers': model/h0/mlp/c_fc/w [1, m, n] -> h.0.mlp.c_fc.weight."""
    names = {}
    for name, x in tensors.items():
        path = re.sub(r"^h(\d+)/", r"h/\1/", name.removeprefix("model/"))
        path = re.sub(r"/[wg]$", "/weight", re.sub(r"/b$", "/bias", path))
        path = re.sub(r"^(wte|wpe)$", r"\1/weight", path)
        names[path.replace("/", ".")] = x[0] if x.ndim == 3 and len(x) == 1 else x
    return names


def check_tensors(directory, hparams, tensors):
    """-> the tensors in the order of parameter_shapes, once each has its shape and a float type."""
    shapes = parameter_shapes(**hparams)
    for name, shape in shapes.items():
        if name not in tensors:
            raise ValueError(f"{directory}: tensor {name} is missing")
        if tensors[name].shape != shape:
            found = tensors[name].shape
            raise ValueError(f"{directory}: tensor {name} has shape {found}, not {shape}")
        if tensors[name].dtype not in (np.float32, np.float16, BF16):
            found = tensors[name].dtype
            raise ValueError(f"{directory}: tensor {name} is {found}, not F32, F16 or BF16")
    if left := tensors.keys() - shapes.keys():
        raise ValueError(f"{directory}: tensor {min(left)!r} is no part of this architecture")
    return {name: tensors[name] for name in shapes}


def save_model(directory, hparams, params, vocabulary, dtype="float32"):
    """Write a directory that transformers opens as well; the weights, once they fit on the disk,
    get their name last."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / "model.safetensors.new"
    try:
        write_weights(new, flatten(params), dtype)
        save_vocabulary(vocabulary, directory)
        write_config(directory, hparams, dtype)
        (directory / "generation_config.json").unlink(missing_ok=True)  # of a model before
        os.replace(new, directory / "model.safetensors")
    finally:
        new.unlink(missing_ok=True)


def write_config(directory, hparams, dtype="float32"):
    n_embd, n_inner, ends = hparams["n_embd"], hparams.get("n_inner"), hparams["eos_token_ids"]
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "dtype": dtype,
        **{name: values[0] for name, values in ARCHITECTURE.items()},
        "vocab_size": hparams["n_vocab"],
        "n_positions": hparams["n_ctx"],
        **{name: hparams[name] for name in ("n_embd", "n_head", "n_layer")},
        "n_inner": None if n_inner == 4 * n_embd else n_inner,
        "layer_norm_epsilon": hparams["layer_norm_epsilon"],
        "tie_word_embeddings": True,
        "bos_token_id": ends[0] if ends else None,
        "eos_token_id": ends if len(ends) > 1 else ends[0] if ends else None,
    }
    with write_atomic(directory / "config.json") as file:
        file.write(json.dumps(config, indent=2).encode() + b"\n")


def write_weights(path, tensors, dtype="float32"):
    named = {f"transformer.{name}": x for name, x in tensors.items()}
    write_safetensors(path, named, {"format": "pt"}, dtype)
