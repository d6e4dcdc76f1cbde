"""A model directory: find it, load it, save it. A Hugging Face GPT-2 directory, or OpenAI's own.

Nothing in a model directory is trusted or executed: what does not fit is refused in one line that
names the file and the fault. Weights are mapped, not read, so a model may be larger than memory.
"""

import contextlib
import json
import os
import re
from pathlib import Path

import numpy as np

from encoder import get_encoder, save_encoder
from tensor_file import BF16, read_json, read_safetensors, widen, write_atomic, write_safetensors

SIZES = {  # the released sizes: repository on the hub, revision
    "124M": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "355M": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "774M": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "1558M": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
}
REPO = r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([A-Za-z0-9][\w.-]*))?"  # owner/name[@revision]

# Keys absent from config.json take transformers' defaults, but for eos_token_id, which is looked up
# in the vocabulary. Of FIXED, another value than the ones
# here is another model, and the first one is the default.
DEFAULTS = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_inner": None,
    "layer_norm_epsilon": 1e-5,
    "eos_token_id": None,
    "tie_word_embeddings": True,
}
FIXED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),  # the tanh form
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
}


class UnknownModel(ValueError):
    """A name that is neither a size nor a model directory: wrong usage, in one line."""


def load_encoder_hparams_and_params(model_size, models_dir):
    """-> a model: name of a size, or under models_dir; a path; owner/name[@revision] of the hub.

    ValueError (bad content, unknown name) or OSError (not to be read or fetched), in one line.
    """
    return load_model(find_model(model_size, Path(models_dir)))


def find_model(model_size, models_dir):
    """-> the directory of a model, which is fetched if neither models_dir nor a cache holds it."""
    path, repo = Path(os.path.expanduser(model_size)), re.fullmatch(REPO, model_size)
    if model_size in (".", "..") or re.search(r"[/\\~]", model_size):  # a path or a repository
        if path.is_dir():
            return path
        if not repo or path.parent.is_dir():
            raise FileNotFoundError(f"{model_size}: no such directory")
    elif not re.fullmatch(r"\w[\w.@ +-]*", model_size):
        raise ValueError(f"{model_size!r} is no name of a model")
    directory = models_dir / model_size.replace("/", "--")
    if holds_model(directory) or (directory.is_dir() and not repo and model_size not in SIZES):
        if (directory / "incomplete").is_dir():  # fetching was killed just before its end
            from fetch import clean

            clean(directory)
        return directory
    if not repo and model_size not in SIZES:
        found = sorted(p.name for p in models_dir.glob("*") if holds_model(p))
        raise UnknownModel(
            f"unknown model {model_size!r}: known sizes are {', '.join(SIZES)}; in "
            f"{models_dir} there is {', '.join(found) or 'none'}; a path or a "
            "repository owner/name of the Hugging Face hub will do as well"
        )
    repo, revision = SIZES.get(model_size) or repo.groups(default="main")
    if cached := find_cached(repo, revision):
        return cached
    from fetch import fetch  # it imports requests, which costs more time than all the rest

    fetch(model_size, repo, revision, directory)
    return directory


def find_cached(repo, revision):
    """-> the directory where Hugging Face's own tools have put this repository, or None."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", os.path.join(cache, "huggingface"))
    cache = os.path.expanduser(os.environ.get("HF_HUB_CACHE", os.path.join(home, "hub")))
    cache = Path(cache, f"models--{repo.replace('/', '--')}")
    with contextlib.suppress(OSError, UnicodeDecodeError):
        revision = (cache / "refs" / revision).read_text(encoding="ascii").strip()
    directory = cache / "snapshots" / revision
    with contextlib.suppress(OSError):  # what cannot be read is not there
        pair = all((directory / name).is_file() for name in ("vocab.json", "merges.txt"))
        vocabulary = pair or (directory / "tokenizer.json").is_file()
        config = (directory / "config.json").is_file()
        return directory if vocabulary and config and holds_model(directory) else None


def holds_model(directory):
    """Are there weights? Here they are always the last file to be written."""
    names = "model.safetensors", "model.safetensors.index.json"
    return any((directory / n).is_file() for n in names) or bool(checkpoint_prefix(directory))


def checkpoint_prefix(directory):
    """-> path of OpenAI's TensorFlow checkpoint without .index, or None if there is none."""
    name = "model.ckpt"
    with contextlib.suppress(OSError), open(directory / "checkpoint", "rb") as file:
        found = re.match(rb'model_checkpoint_path: "(?:.*[/\\])?([\w.-]+)"', file.read(4096))
        name = found[1].decode() if found else name
    there = (directory / f"{name}.index").is_file() and any(directory.glob(f"{name}.data-*"))
    return directory / name if there else None


def load_model(directory):
    """-> encoder, hparams and params of a model directory."""
    encoder, config, tensors = read_model(directory)
    return encoder, hparams_of(config, encoder), nest(directory, config, tensors)


def hparams_of(config, encoder):
    return {
        "n_vocab": config["vocab_size"],
        "n_ctx": config["n_positions"],
        **{name: config[name] for name in ("n_embd", "n_head", "n_layer")},
        "layer_norm_epsilon": float(config["layer_norm_epsilon"]),
        "eos_token_id": encoder.eot if config["eos_token_id"] is None else config["eos_token_id"],
    }


def read_model(directory):
    """-> encoder, config with all its keys, {bare name in transformers: array as it is stored}."""
    encoder = get_encoder(directory)
    whole, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    prefix = checkpoint_prefix(directory)
    if whole.is_file() or index.is_file():
        config = read_config(directory / "config.json")
        tensors = read_safetensors(whole) if whole.is_file() else read_shards(index)
        tensors = strip_names(directory, tensors, config["tie_word_embeddings"])
    elif prefix:
        from tf_checkpoint import read_checkpoint

        config = read_config(directory / "hparams.json")
        tensors = from_openai(read_checkpoint(prefix))
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
    if encoder.n_vocab > config["vocab_size"]:
        raise ValueError(
            f"{directory}: the vocabulary has {encoder.n_vocab} tokens, the model "
            f"{config['vocab_size']}"
        )
    return encoder, config, tensors


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


def read_config(path):
    """config.json, or OpenAI's hparams.json -> the same with its defaults, checked."""
    config = read_json(path)
    for old, new in (("n_ctx", "n_positions"), ("n_vocab", "vocab_size")):
        if new not in config and old in config:
            config[new] = config[old]
    for name, values in FIXED.items():
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
    eps, eos = config["layer_norm_epsilon"], config["eos_token_id"]
    if type(eps) not in (int, float) or not 0 < eps < 1:
        raise ValueError(f"{path}: layer_norm_epsilon is {eps!r:.40}, not between 0 and 1")
    if type(eos) is not int or not 0 <= eos < config["vocab_size"]:
        config["eos_token_id"] = None
    return config


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
    return all(
        np.array_equal(x[i : i + (1 << 20)], y[i : i + (1 << 20)])
        for i in range(0, len(x), 1 << 20)
    )


def from_openai(tensors):
    """OpenAI's names -> transformers': model/h0/mlp/c_fc/w [1, m, n] -> h.0.mlp.c_fc.weight."""
    names = {}
    for name, x in tensors.items():
        path = re.sub(r"^h(\d+)/", r"h/\1/", name.removeprefix("model/"))
        path = re.sub(r"/[wg]$", "/weight", re.sub(r"/b$", "/bias", path))
        path = re.sub(r"^(wte|wpe)$", r"\1/weight", path)
        names[path.replace("/", ".")] = x[0] if x.ndim == 3 and len(x) == 1 else x
    return names


def nest(directory, config, tensors, convert=widen):
    """{name: array} -> the nested params, converted to float32, with every shape checked."""
    n_embd, n_inner, left = config["n_embd"], config["n_inner"], dict(tensors)

    def take(name, *shape):
        if name not in left:
            raise ValueError(f"{directory}: tensor {name} is missing")
        x = left.pop(name)
        if x.shape != shape:
            raise ValueError(f"{directory}: tensor {name} has shape {x.shape}, not {shape}")
        if x.dtype not in (np.float32, np.float16, BF16):
            raise ValueError(f"{directory}: tensor {name} is {x.dtype}, not F32, F16 or BF16")
        return convert(x)

    def norm(name):
        return {"g": take(f"{name}.weight", n_embd), "b": take(f"{name}.bias", n_embd)}

    def linear(name, m, n):
        return {"w": take(f"{name}.weight", m, n), "b": take(f"{name}.bias", n)}

    def block(name):
        return {
            "ln_1": norm(f"{name}.ln_1"),
            "attn": {
                "c_attn": linear(f"{name}.attn.c_attn", n_embd, 3 * n_embd),
                "c_proj": linear(f"{name}.attn.c_proj", n_embd, n_embd),
            },
            "ln_2": norm(f"{name}.ln_2"),
            "mlp": {
                "c_fc": linear(f"{name}.mlp.c_fc", n_embd, n_inner),
                "c_proj": linear(f"{name}.mlp.c_proj", n_inner, n_embd),
            },
        }

    params = {
        "wte": take("wte.weight", config["vocab_size"], n_embd),
        "wpe": take("wpe.weight", config["n_positions"], n_embd),
        "blocks": [block(f"h.{i}") for i in range(config["n_layer"])],
        "ln_f": norm("ln_f"),
    }
    if left:
        raise ValueError(f"{directory}: tensor {min(left)!r} is no part of this architecture")
    return params


def flatten(params, name=""):
    """The nested params -> {bare name in transformers: array}.

    {"blocks": [{"ln_1": {"g": x, ...}, ...}], ...} -> {"h.0.ln_1.weight": x, ...}
    """
    if isinstance(params, np.ndarray):
        return {f"{name}.weight" if name in ("wte", "wpe") else name: params}
    if isinstance(params, list):
        params = dict(enumerate(params))
    keys = {"blocks": "h", "g": "weight", "w": "weight", "b": "bias"}
    return {
        path: x
        for key, value in params.items()
        for path, x in flatten(value, f"{name}.{keys.get(key, key)}".lstrip(".")).items()
    }


def save_model(directory, hparams, params, encoder, dtype="float32"):
    """Write a directory that transformers opens as well; nothing is replaced before all fits."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / "model.safetensors.new"
    try:
        write_weights(new, params, dtype)
        save_encoder(encoder, directory)
        write_config(directory, hparams, params, dtype)
        os.replace(new, directory / "model.safetensors")
    finally:
        new.unlink(missing_ok=True)


def write_config(directory, hparams, params, dtype="float32"):
    n_embd, n_inner = params["blocks"][0]["mlp"]["c_fc"]["w"].shape
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "dtype": dtype,
        **{name: values[0] for name, values in FIXED.items()},
        "vocab_size": hparams["n_vocab"],
        "n_positions": hparams["n_ctx"],
        **{name: hparams[name] for name in ("n_embd", "n_head", "n_layer")},
        "n_inner": None if n_inner == 4 * n_embd else n_inner,
        "layer_norm_epsilon": hparams["layer_norm_epsilon"],
        "tie_word_embeddings": True,
        "bos_token_id": hparams["eos_token_id"],
        "eos_token_id": hparams["eos_token_id"],
    }
    with write_atomic(directory / "config.json") as file:
        file.write(json.dumps(config, indent=2).encode() + b"\n")


def write_weights(path, params, dtype="float32"):
    tensors = {f"transformer.{name}": x for name, x in flatten(params).items()}
    write_safetensors(path, tensors, {"format": "pt"}, dtype)
