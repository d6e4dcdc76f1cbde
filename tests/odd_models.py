"""Odd model directories as data: a name, how to build it, and whether it loads or is refused.

test_odd_models.py opens each of them. make_golden_odd.py opens those that load with transformers.
"""

import json
import random
import shutil
import zipfile
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

WITH_HOLES = {token: i + 10 * (i >= 100) for token, i in IDS.items()}

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


def random_text(rng, parts=PARTS):
    """Return a random sequence of words, added tokens, and white space of all kinds."""
    return "".join(rng.choice(parts) for _ in range(rng.randrange(1, 12)))


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


STORAGES = {"float32": "Float", "float64": "Double", "float16": "Half", "bool": "Bool"}


def torch_save(path, tensors):
    """Write a state dict as torch.save does: a zip archive with a pickle of protocol 2."""
    program, numbers = [b"\x80\x02ccollections\nOrderedDict\n)R("], {}
    for i, (name, x) in enumerate(tensors.items()):
        kind = "BFloat16" if x.dtype == BF16 else STORAGES[x.dtype.name]
        numbers[f"data/{i}"] = np.ascontiguousarray(x).tobytes()
        strides = np.array(np.empty(x.shape, np.uint8).strides)
        program += [
            text(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(str(i)) + text("cpu"),
            number(x.size) + b"tQK\x00",
            b"(" + b"".join(map(number, x.shape)) + b"t",
            b"(" + b"".join(map(number, strides)) + b"t",
            b"\x89ccollections\nOrderedDict\n)RtR",
        ]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"".join([*program, b"u."]))
        for name, data in {**numbers, "version": b"3\n"}.items():
            archive.writestr(f"archive/{name}", data)


def text(x):
    return b"X" + len(x).to_bytes(4, "little") + x.encode()


def number(x):
    return b"J" + int(x).to_bytes(4, "little")


def pickled(dtype=None, name="pytorch_model.bin", change=None):
    """A function that writes the weights to one pickle."""

    def write(directory, tensors):
        tensors = {f"transformer.{key}": x for key, x in tensors.items()}
        if change:
            change(tensors)
        if dtype is not None:
            tensors = {key: narrow(x, dtype) for key, x in tensors.items()}
        torch_save(directory / name, tensors)

    return write


def pickled_shards(directory, tensors):
    names = [f"transformer.{key}" for key in tensors]
    files = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    weight_map = {name: files[i % 2] for i, name in enumerate(names)}
    for file in files:
        part = {name: tensors[name[12:]] for name in names if weight_map[name] == file}
        torch_save(directory / file, part)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def renamed(function):
    """A change that gives each tensor another name, or none."""

    def change(tensors):
        named = {function(name): x for name, x in tensors.items()}
        tensors.clear()
        tensors.update({name: x for name, x in named.items() if name})

    return change


def head_alone(tensors):
    tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")


def other_heads(*names):
    def change(tensors):
        tensors.update({name: np.ones((1, 8), np.float32) for name in names})

    return change


def as_nanogpt(tensors):
    for name in tensors:
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            tensors[name] = np.ascontiguousarray(tensors[name].T)


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
    "weights in float64": Odd(weights=store(dtype=np.float64)),
    "weights in a pickle": Odd(weights=pickled()),
    "weights in a pickle in float16": Odd(weights=pickled(np.float16)),
    "weights in a pickle in bfloat16": Odd(weights=pickled(BF16)),
    "weights in a pickle in float64": Odd(weights=pickled(np.float64)),
    "weights in pickles, in shards": Odd(weights=pickled_shards),
    "weights in a pickle, with mask buffers": Odd(weights=pickled(change=masks)),
    "weights that are integers": Odd(
        weights=store(dtype=np.int32), refused=r"wte.weight is int32, not F64"
    ),
    "names without a prefix": Odd(weights=store(prefix="")),
    "a name with and without the prefix": Odd(
        weights=store(change=lambda t: t.update({"wte.weight": t["transformer.wte.weight"]})),
        refused="with and without a prefix",
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
        {"tie_word_embeddings": False}, store(change=head(lambda x: x[::-1].copy()))
    ),
    "an output head that differs, declared as tied": Odd(
        weights=store(change=head(lambda x: x[::-1].copy()))
    ),
    "an output head that equals wte, in another type": Odd(
        weights=store(change=head(lambda x: x.astype(np.float64)))
    ),
    "an output head in another type, rounded": Odd(
        weights=store(change=head(lambda x: x.astype(np.float16)))
    ),
    "an output head of its own in a pickle": Odd(
        {"tie_word_embeddings": False}, pickled(change=head(lambda x: x[::-1].copy()))
    ),
    "an output head of another size": Odd(
        weights=store(change=head(lambda x: x[1:].copy())),
        refused=r"tensor lm_head.weight has shape \(279, 8\), not \(280, 8\)",
    ),
    "only the output head is stored, for both": Odd(weights=store(change=head_alone)),
    "only the output head is stored, and not tied": Odd(
        {"tie_word_embeddings": False},
        store(change=head_alone),
        refused="tensor wte.weight is missing",
    ),
    "names with the prefix of parallel training": Odd(
        weights=store(change=renamed(lambda name: f"module.{name}")), reference=PLAIN
    ),
    "names with the prefix of a compiled model": Odd(
        weights=store(change=renamed(lambda name: f"_orig_mod.{name}")), reference=PLAIN
    ),
    "names with two prefixes, in a pickle": Odd(
        weights=pickled(change=renamed(lambda name: f"_orig_mod.module.{name}")), reference=PLAIN
    ),
    "a second head, for multiple choice": Odd(
        {"architectures": ["GPT2DoubleHeadsModel"]},
        store(change=other_heads("multiple_choice_head.summary.weight")),
    ),
    "a value head": Odd(
        weights=store(change=other_heads("v_head.summary.weight", "v_head.summary.bias"))
    ),
    "a classifier": Odd(
        {"architectures": ["GPT2ForSequenceClassification"]},
        store(change=other_heads("score.weight")),
        refused="is a classifier, not a language model: it has score.weight",
    ),
    "a classifier of tokens": Odd(
        weights=store(change=other_heads("classifier.weight", "classifier.bias")),
        refused="is a classifier",
    ),
    "a reader of questions": Odd(
        weights=store(change=other_heads("qa_outputs.weight", "qa_outputs.bias")),
        refused="is a classifier, not a language model: it has qa_outputs.bias",
    ),
    "weights quantised to 8 bits": Odd(
        weights=store(
            change=lambda t: t.update(
                {"transformer.h.0.attn.c_attn.weight": np.ones((8, 24), np.int8)}
            )
        ),
        refused="h.0.attn.c_attn.weight is int8: its weights are quantised",
    ),
    "nanoGPT's layout": Odd(weights=store(change=as_nanogpt), refused="has the layout of nanoGPT"),
    "declared as untied, without an output head": Odd(
        {"tie_word_embeddings": False}, refused="lm_head.weight is missing"
    ),
    "a tensor too few": Odd(
        weights=store(change=lambda t: t.pop("transformer.h.1.ln_2.bias")),
        refused="tensor h.1.ln_2.bias is missing",
    ),
    "a layer too many": Odd({"n_layer": 1}, refused="n_layer is 1, but the weights have 2 layers"),
    "an unknown tensor": Odd(
        weights=store(change=other_heads("transformer.h.0.attn.c_attn.lora_A")),
        refused="'h.0.attn.c_attn.lora_A' is not",
    ),
    "a transposed matrix": Odd(
        weights=store(
            change=lambda t: t.update({"transformer.wte.weight": t["transformer.wte.weight"].T})
        ),
        refused=r"vocab_size is 280, but tensor wte.weight has shape \(8, 280\)",
    ),
    "a damaged pickle": Odd(
        weights=no_weights,
        files={"pytorch_model.bin": b"\x80\x04"},
        refused="pytorch_model.bin: not a file of torch.save: damaged or cut off",
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
    **{
        f"the activation {name}": Odd({"activation_function": name})
        for name in ("gelu", "gelu_python", "gelu_accurate", "relu", "silu", "swish", "tanh")
    },
    "an unknown activation": Odd(
        {"activation_function": "mish"},
        refused="activation_function is 'mish', not one of gelu_new",
    ),
    "no activation": Odd({"activation_function": None}, refused="activation_function is None"),
    "scores that are not scaled": Odd({"scale_attn_weights": False}),
    "scores scaled by the layer": Odd({"scale_attn_by_inverse_layer_idx": True}),
    "scores scaled by the layer alone, in float16": Odd(
        {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
        store(dtype=np.float16),
    ),
    "scores in float32": Odd({"reorder_and_upcast_attn": True}),
    "everything that varies": Odd(
        {
            "activation_function": "gelu",
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
            "tie_word_embeddings": False,
        },
        store(change=head(lambda x: x[::-1].copy())),
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
    "fewer ids than tokens": Odd({"vocab_size": 269}, refused="ids up to 269, the model has 269"),
    "ids with holes": Odd(files={"vocab.json": WITH_HOLES}),
    "ids with holes, beyond the model": Odd(
        {"vocab_size": 275}, files={"vocab.json": WITH_HOLES}, refused="ids up to 279"
    ),
    "two tokens with one id": Odd(
        files={"vocab.json": {**IDS, "lo": 5}}, refused="270 tokens have 269 ids: two share one"
    ),
    "an id far away": Odd(files={"vocab.json": {**IDS, "lo": 10**12}}, refused="is not between 0"),
    "ids with holes, and an added token that gets the id of another": Odd(
        files={"vocab.json": WITH_HOLES, "added_tokens.json": {"<x>": 270}},
        refused="'<x>' gets the id 270, which another token has",
    ),
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
