"""Odd model directories as data: a name, how to build it, and whether it loads or is refused.

test_odd_models.py opens each of them. make_golden_odd.py opens those that load with transformers.
"""

import json
import random
import shutil
from typing import Any, NamedTuple

import numpy as np
from conftest import OPENAI, random_params

from encoder import learn_bpe
from model_files.directory import flatten, load_model, save_model
from model_files.safetensors import BF16, write_safetensors

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_ctx": 16, "n_vocab": 280}
SHAPE |= {"layer_norm_epsilon": 1e-5, "eos_token_ids": [0]}
CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 280,  # The vocabulary has only 270 of these ids.
    "n_positions": 16,
    "n_embd": 8,
    "n_head": 2,
    "n_layer": 2,
    "eos_token_id": 0,
    "bos_token_id": 0,
}
INPUT = [5, 200, 17, 80]  # The model's greedy continuation of this is GREEDY.
N_TOKENS = 8
VOCABULARY = learn_bpe(["maskmask mask\nlow lower low\nthe the"] * 2, 270).vocabulary
IDS = VOCABULARY.ids

TEXTS = [
    "",
    " ",
    "low",
    " low lower\n",
    "low <x> low",
    "low <m> low",
    "low <y> low",
    "a<x>b<m>c<y>d",
    "<x>\u00a0\u3000<m>\n\n<x>  <y>\t",
    "  <x><x> <m><m> <y><y>  ",
    "lowlower, lowest! allow mask",
    "_low low_ low1 1low lowé \u0301low low\u200d",
    "the mask of the mask<mask> <mask>s",
    "é<x>é 日<m>日 😀<y>😀",
    "naïve 日本 😀",
    "\ufefflow \ufeff<x>",
    "\nlow",
    "<x",
    "<x>x><xx>",
    "<X> <M>",
]
PARTS = "low lower the mask x _ é 日 1 \u0301 \u200d - . 's Low a <x> <m> <y> <mask>".split(" ")
PARTS += [
    *PARTS[-4:],
    " ",
    "  ",
    " ",
    "\n",
    "\t",
    "\u00a0",
    "\u3000",
    "\x1c",
    "\u200b",
    "\x85",
    " \n ",
]


def random_text(rng):
    """Return a random sequence of words, added tokens, and white space of all kinds."""
    return "".join(rng.choice(PARTS) for _ in range(rng.randrange(1, 12)))


TEXTS += [random_text(random.Random(seed)) for seed in range(30)]


class Odd(NamedTuple):
    """How a directory differs from one with CONFIG, model.safetensors, vocab.json and merges.txt.

    config: keys of config.json, removed if ABSENT; weights: a function that writes the weights;
    files: {name: content, or None for no file}; refused: a pattern of the error message, "" if the
    directory loads; reference: the Odd that transformers opens instead, if it cannot open this one;
    shape: hyperparameters that differ from SHAPE.
    """

    config: dict = {}
    weights: Any = None
    files: dict = {}
    refused: str = ""
    reference: Any = None
    shape: dict = {}


ABSENT = object()


def build(odd, directory):
    """Write the directory that an Odd describes."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {name: x for name, x in {**CONFIG, **odd.config}.items() if x is not ABSENT}
    pair = {"vocab.json": IDS, "merges.txt": MERGES}
    for name, content in {"config.json": config, **pair, **odd.files}.items():
        if content is not None:
            content = content if isinstance(content, (str, bytes)) else json.dumps(content)
            content = content if isinstance(content, bytes) else content.encode()
            (directory / name).write_bytes(content)
    (odd.weights or store())(directory, flatten(random_params(3, **{**SHAPE, **odd.shape})))


MERGES = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in VOCABULARY.merges)


# Weights


def store(prefix="transformer.", dtype=None, name="model.safetensors", change=None):
    """Return a function that writes the weights to one file."""

    def write(directory, tensors):
        tensors = {prefix + key: x for key, x in tensors.items()}
        if change:
            change(tensors)
        if dtype is not None:
            tensors = {key: narrow(x, dtype) for key, x in tensors.items()}
        write_safetensors(directory / name, tensors, {"format": "pt"})

    return write


def narrow(x, dtype):
    if dtype is not BF16:
        return x.astype(dtype)
    return (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.uint16).view(BF16)


def shards(dtypes=(None, None), missing=None):
    """Return a function that writes the weights to several files with an index."""

    def write(directory, tensors):
        named, weight_map = {f"transformer.{key}": x for key, x in tensors.items()}, {}
        for i, dtype in enumerate(dtypes):
            part = {key: named[key] for key in sorted(named)[i :: len(dtypes)]}
            part = {key: x if dtype is None else narrow(x, dtype) for key, x in part.items()}
            name = f"model-{i + 1:05d}-of-{len(dtypes):05d}.safetensors"
            weight_map |= dict.fromkeys(part, name)
            if i != missing:
                write_safetensors(directory / name, part, {"format": "pt"})
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))

    return write


def both(directory, tensors):
    """Write the weights to one file, which counts, and shards of another model beside it."""
    shards()(directory, {name: x + 1 for name, x in tensors.items()})
    store()(directory, tensors)


def adding(**more):
    return lambda tensors: tensors.update({name: x(tensors) for name, x in more.items()})


def masks(tensors):
    for i in range(2):
        tensors[f"transformer.h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), np.float32))
        tensors[f"transformer.h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)


def likely(wte):
    """Make token 50256 the most likely one after INPUT, instead of token 49636."""
    wte[50256] = 2 * wte[49636]


def head(function):
    def change(tensors):
        tensors["lm_head.weight"] = function(tensors["transformer.wte.weight"])

    return change


def openai(name="model.ckpt", checkpoint=None):
    """Return a function that writes a directory in OpenAI's layout."""

    def write(directory, tensors):
        shutil.rmtree(directory)
        directory.mkdir()
        for path in OPENAI.iterdir():
            shutil.copy(path, directory / path.name.replace("model.ckpt", name))
        if checkpoint is not None:
            (directory / "checkpoint").write_text(checkpoint)

    return write


def converted(directory, tensors):
    """Write the model of OPENAI in Hugging Face's layout."""
    shutil.rmtree(directory)
    vocabulary, hparams, params = load_model(OPENAI)
    save_model(directory, hparams, params, vocabulary)


def no_weights(directory, tensors):
    pass


BOM = b"\xef\xbb\xbf"
PLAIN = Odd()
GREEDY = [209, 122, 178, 266, 209, 266, 178, 266]
EOS = {"eos_token_id": GREEDY[2]}

MODELS = {
    # Weights
    "nothing is odd": PLAIN,
    "weights in float16": Odd(weights=store(dtype=np.float16)),
    "weights in bfloat16": Odd(weights=store(dtype=BF16)),
    "weights in float64": Odd(weights=store(dtype=np.float64), refused=r"float64, not F32"),
    "weights that are integers": Odd(
        weights=store(dtype=np.int32), refused=r"wte.weight is int32, not F32"
    ),
    "names without a prefix": Odd(weights=store(prefix="")),
    "names with another prefix": Odd(
        weights=store(prefix="model."), refused="tensor wte.weight is missing"
    ),
    "a name with and without the prefix": Odd(
        weights=store(change=lambda t: t.update({"wte.weight": t["transformer.wte.weight"]})),
        refused="with and without .*transformer",
    ),
    "two shards": Odd(weights=shards()),
    "seven shards": Odd(weights=shards((None,) * 7)),
    "shards of two types": Odd(weights=shards((np.float16, BF16))),
    "a shard is missing": Odd(weights=shards(missing=1), refused="model-00002-of-00002"),
    "shards of another model beside the whole one": Odd(weights=both),
    "mask buffers": Odd(weights=store(change=masks)),
    "an output head that equals wte": Odd(weights=store(change=head(np.copy))),
    "an output head that equals wte, declared as untied": Odd(
        {"tie_word_embeddings": False}, store(change=head(np.copy))
    ),
    "an output head of its own": Odd(
        {"tie_word_embeddings": False},
        store(change=head(lambda x: x + 1)),
        refused="lm_head.weight differs from wte.weight",
    ),
    "an output head that differs, declared as tied": Odd(
        weights=store(change=head(lambda x: x + 1)), refused="lm_head.weight differs from wte"
    ),
    "declared as untied, without an output head": Odd(
        {"tie_word_embeddings": False}, refused="lm_head.weight is missing"
    ),
    "a tensor too few": Odd(
        weights=store(change=lambda t: t.pop("transformer.h.1.ln_2.bias")),
        refused="tensor h.1.ln_2.bias is missing",
    ),
    "a layer too many": Odd({"n_layer": 1}, refused="n_layer is 1, but the weights have 2 layers"),
    "an unknown tensor": Odd(
        weights=store(change=lambda t: t.update({"score.weight": np.ones((2, 8), np.float32)})),
        refused="'score.weight' is not",
    ),
    "a transposed matrix": Odd(
        weights=store(
            change=lambda t: t.update({"transformer.wte.weight": t["transformer.wte.weight"].T})
        ),
        refused=r"vocab_size is 280, but tensor wte.weight has shape \(8, 280\)",
    ),
    "a pickle": Odd(
        weights=no_weights,
        files={"pytorch_model.bin": b"\x80\x04"},
        refused="pytorch_model.bin is a pickle",
    ),
    "a pickle beside model.safetensors": Odd(files={"pytorch_model.bin": b"\x80\x04"}),
    "no weights": Odd(weights=no_weights, refused="holds no model"),
    "files of other programs": Odd(
        files={"README.md": "# x", "training_args.bin": b"\x80", "vocab.txt": "x", "a.gguf": b"x"}
    ),
    # config.json
    "transformers' other names": Odd(
        {
            **dict.fromkeys(("n_embd", "n_layer", "n_head", "n_positions"), ABSENT),
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 16,
        }
    ),
    "both names, and the other one counts": Odd(
        {"n_embd": 16, "hidden_size": 8, "n_layer": 9, "num_hidden_layers": 2}
    ),
    "both names, and the other one is null": Odd({"hidden_size": None}, refused="n_embd is None"),
    "n_ctx beside n_positions": Odd({"n_ctx": 1024}),
    "n_ctx alone": Odd({"n_positions": ABSENT, "n_ctx": 16}, reference=PLAIN),
    "a context without a size": Odd(
        {"n_positions": ABSENT}, refused=r"n_positions is 1024, but .* shape \(16, 8\)"
    ),
    "a narrow MLP": Odd({"n_inner": 12}, shape={"n_inner": 12}),
    "an MLP whose width is null": Odd({"n_inner": None}),
    "another epsilon": Odd({"layer_norm_epsilon": 0.1}),
    "the epsilon by another architecture's name": Odd({"layer_norm_eps": 0.1}),
    "an epsilon that is null": Odd({"layer_norm_epsilon": None}, refused="epsilon is None"),
    "an epsilon that is text": Odd({"layer_norm_epsilon": "1e-5"}, refused="epsilon is '1e-5'"),
    "gelu by PyTorch's name": Odd({"activation_function": "gelu_pytorch_tanh"}),
    "gelu by its name gelu_fast": Odd({"activation_function": "gelu_fast"}),
    "the exact gelu": Odd({"activation_function": "gelu"}, refused="activation_function is 'gelu'"),
    "relu": Odd({"activation_function": "relu"}, refused="activation_function is 'relu'"),
    "no activation": Odd({"activation_function": None}, refused="activation_function is None"),
    "scores that are not scaled": Odd(
        {"scale_attn_weights": False}, refused="scale_attn_weights is False"
    ),
    "scores scaled by the layer": Odd(
        {"scale_attn_by_inverse_layer_idx": True}, refused="scale_attn_by_inverse_layer_idx is True"
    ),
    "cross attention": Odd({"add_cross_attention": True}, refused="add_cross_attention is True"),
    "another model_type": Odd({"model_type": "gpt_neo"}, refused="model_type is 'gpt_neo'"),
    "a model_type that is null": Odd({"model_type": None}, refused="model_type is None"),
    "no model_type": Odd({"model_type": ABSENT}, reference=PLAIN),
    "a class without a head": Odd({"architectures": ["GPT2Model"]}, store(prefix="")),
    "dropout, dtype, task_specific_params and the like": Odd(
        {
            "resid_pdrop": 0.5,
            "attn_pdrop": 0.9,
            "torch_dtype": "float16",
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 5}},
            "use_cache": False,
            "initializer_range": 0.5,
            "_name_or_path": "gpt2",
        }
    ),
    "a number of layers that is null": Odd({"n_layer": None}, refused="n_layer is None"),
    "a size with a decimal point": Odd({"n_embd": 8.0}, refused="n_embd is 8.0"),
    "heads that do not divide the width": Odd({"n_head": 3}, refused="not divisible by n_head"),
    "fewer ids than tokens": Odd({"vocab_size": 269}, refused="270 tokens, the model 269"),
    "a byte order mark before config.json": Odd(
        files={"config.json": BOM + json.dumps(CONFIG).encode()}, reference=PLAIN
    ),
    "a byte order mark before every text": Odd(
        files={
            "config.json": BOM + json.dumps(CONFIG).encode(),
            "generation_config.json": BOM + json.dumps(EOS).encode(),
            "vocab.json": BOM + json.dumps(IDS).encode(),
            "merges.txt": BOM + MERGES.encode(),
            "added_tokens.json": BOM + b'{"<x>": 270}',
        },
        reference=Odd(EOS, files={"added_tokens.json": {"<x>": 270}}),
    ),
    "a config that is damaged": Odd(files={"config.json": b"{"}, refused="damaged JSON"),
    "no config": Odd(files={"config.json": None}, refused="config.json"),
    # The end of text
    "an end in config.json": Odd({"eos_token_id": GREEDY[2]}),
    "several ends in config.json": Odd({"eos_token_id": [279, GREEDY[3], 1]}),
    "no end in config.json": Odd({"eos_token_id": ABSENT}),
    "an end that is null": Odd({"eos_token_id": None}),
    "an end beyond the vocabulary": Odd({"eos_token_id": 50256}),
    "an end in generation_config.json": Odd(
        files={"generation_config.json": {"eos_token_id": GREEDY[2]}}
    ),
    "several ends in generation_config.json": Odd(
        files={"generation_config.json": {"eos_token_id": [0, GREEDY[4]]}}
    ),
    "generation_config.json overrides config.json": Odd(
        {"eos_token_id": GREEDY[1]}, files={"generation_config.json": {"eos_token_id": GREEDY[3]}}
    ),
    "an end that is null in generation_config.json": Odd(
        {"eos_token_id": GREEDY[1]}, files={"generation_config.json": {"eos_token_id": None}}
    ),
    "generation_config.json without an end": Odd(
        {"eos_token_id": GREEDY[1]}, files={"generation_config.json": {"max_length": 99}}
    ),
    "an end that is text": Odd({"eos_token_id": "0"}, refused="eos_token_id is .*'0'.*, neither"),
    **{
        f"GPT-2's number of ids, and {what}": Odd(
            {"eos_token_id": end, "vocab_size": 50257, "n_embd": 2, "n_head": 1, "n_layer": 1},
            store(change=lambda t: likely(t["transformer.wte.weight"])),
            shape={"n_vocab": 50257, "n_embd": 2, "n_head": 1, "n_layer": 1},
        )
        for what, end in (("its end", 50256), ("no end", ABSENT))
    },
    # OpenAI's layout
    "OpenAI's layout": Odd(weights=openai(), reference=Odd(weights=converted)),
    "OpenAI's layout with a checkpoint of another name": Odd(
        weights=openai("model-1000", 'model_checkpoint_path: "model-1000"\n'),
        reference=Odd(weights=converted),
    ),
    "OpenAI's layout with the path of another machine": Odd(
        weights=openai("model-7", 'model_checkpoint_path: "C:\\\\run\\model-7"\n'),
        reference=Odd(weights=converted),
    ),
    "OpenAI's layout whose checkpoint is missing": Odd(
        weights=openai("model-7", 'model_checkpoint_path: "model-8"\n'), refused="holds no model"
    ),
}
