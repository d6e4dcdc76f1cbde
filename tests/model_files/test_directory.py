"""Test that model directories are read correctly, refused in one line, and saved completely.

The environment variable FUZZ sets how many damaged files are tried.
"""

import inspect
import json
import os
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import make_golden_tf as golden
import numpy as np
import pytest
from conftest import FULL, OPENAI, TINY, leaves, map_leaves, random_params
from damage import build_models, damage, judge, mutate, mutate_json, run_all, shard

import gpt2
from encoder import learn_bpe
from model_files.architecture import from_openai
from model_files.directory import (
    bundle_prefix,
    flatten,
    holds_model,
    load_model,
    nest,
    parameter_shapes,
    read_config,
    read_model,
    save_model,
)
from model_files.safetensors import read_safetensors, write_safetensors

FUZZ = int(os.environ.get("FUZZ", 500))
SAMPLE = 100  # damaged directories that are tried; damage.py itself tries 2,000
needs_unix = pytest.mark.skipif(os.name == "nt", reason="no pipes, no limits of memory")


def rewrite(directory, change, dtype=None):
    """Call change({name: array}), which edits the weights, and write them again."""
    path = directory / "model.safetensors"
    tensors = {name: x.copy() for name, x in read_safetensors(path).items()}
    change(tensors)
    write_safetensors(path, tensors, dtype=dtype)


def configure(directory, **keys):
    """Change values in config.json; remove a key whose value is "absent"."""
    config = json.loads((directory / "config.json").read_text()) | keys
    config = {name: value for name, value in config.items() if value != "absent"}
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "function, match",
    [("safetensors.raw_bytes", "left.*model.safetensors"), ("directory.save_vocabulary", "left")],
)
def test_a_save_that_fails_replaces_nothing(function, match, directory, monkeypatch):
    before = {path: path.read_bytes() for path in directory.iterdir()}
    _, hparams, params = load_model(directory)
    params = map_leaves(lambda x: x + 1, params)
    vocabulary = learn_bpe(["other words"], 257).vocabulary

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"model_files.{function}", full)
    with pytest.raises(OSError, match=match):
        save_model(directory, hparams, params, vocabulary)
    assert before == {path: path.read_bytes() for path in directory.iterdir()}


def test_a_saved_model_can_be_loaded(directory):
    vocabulary, hparams, params = load_model(directory)
    original_vocabulary, original_hparams, original = load_model(OPENAI)
    assert hparams == original_hparams
    assert vocabulary == original_vocabulary._replace(source=vocabulary.source)
    params, original = flatten(params), flatten(original)
    assert list(params) == list(original) == list(parameter_shapes(**hparams))
    for name, x in params.items():
        assert x.dtype == np.float32 and np.array_equal(x, original[name]), name
        assert x.flags.aligned and not x.flags.owndata and not x.flags.writeable, name
    assert params["h.1.attn.c_attn.weight"].shape == (8, 24)
    assert sorted(path.name for path in directory.iterdir()) == [
        "config.json",
        "merges.txt",
        "model.safetensors",
        "vocab.json",
    ]


def test_an_mlp_may_have_another_width(tmp_path):
    """n_inner is 4 n_embd in every released model, but config.json may say otherwise."""
    vocabulary, hparams, _ = load_model(OPENAI)
    hparams["n_inner"] = 24
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal(shape, np.float32)
        for name, shape in parameter_shapes(**hparams).items()
    }
    assert tensors["h.0.mlp.c_fc.weight"].shape == (8, 24)
    save_model(tmp_path, hparams, nest(tensors), vocabulary)
    assert json.loads((tmp_path / "config.json").read_text())["n_inner"] == 24
    _, loaded_hparams, params = load_model(tmp_path)
    assert loaded_hparams == hparams
    assert all(np.array_equal(x, tensors[name]) for name, x in flatten(params).items())
    save_model(tmp_path, {**hparams, "n_inner": 32}, load_model(OPENAI)[2], vocabulary)
    assert json.loads((tmp_path / "config.json").read_text())["n_inner"] is None  # 4 n_embd


EOS = [(5, [5]), ("absent", []), (None, []), (257, []), ([1, 256], [1, 256]), ([-1, 2], [2])]


@pytest.mark.parametrize("eos, expected", EOS, ids=str)
def test_eos_token_ids_are_those_of_generation_config_or_config(eos, expected, directory):
    configure(directory, eos_token_id=eos)
    vocabulary, hparams, params = load_model(directory)
    assert hparams["eos_token_ids"] == expected
    (directory / "generation_config.json").write_text('{"eos_token_id": 7, "top_k": 3}')
    assert load_model(directory)[1]["eos_token_ids"] == [7]
    (directory / "generation_config.json").write_text("{}")
    assert load_model(directory)[1]["eos_token_ids"] == []  # It has precedence.
    with pytest.raises(ValueError, match="generation_config.json belongs to another model"):
        save_model(directory, hparams, params, vocabulary)
    assert (directory / "generation_config.json").read_text() == "{}"
    (directory / "generation_config.json").unlink()
    save_model(directory, hparams, params, vocabulary)
    assert load_model(directory)[1] == hparams


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("eos", ["5", 5.0, True, [1, "2"], {}, [[]]], ids=str)
def test_an_eos_token_id_that_is_not_an_id_is_refused(eos, file, directory):
    text = json.loads((directory / "config.json").read_text()) | {"eos_token_id": eos}
    (directory / file).write_text(json.dumps(text))
    with pytest.raises(ValueError, match=f"{file}: eos_token_id is .*, neither an id nor"):
        load_model(directory)


def test_an_openai_directory_ends_texts_at_its_end_of_text():
    assert load_model(OPENAI)[1]["eos_token_ids"] == [256]


def test_weights_are_read_as_they_are_stored(directory):
    def halve(tensors):
        tensors.update({name: x.astype(np.float16) for name, x in tensors.items()})

    rewrite(directory, halve)
    vocabulary, hparams, tensors = read_model(directory)
    assert {x.dtype for x in tensors.values()} == {np.dtype(np.float16)}
    assert list(tensors) == list(parameter_shapes(**hparams))
    assert {x.dtype for x in flatten(load_model(directory)[2]).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_saved_names_are_those_of_transformers(dtype, directory):
    """GPT2LMHeadModel.save_pretrained writes the prefix and this metadata, but no output head."""
    vocabulary, hparams, params = load_model(OPENAI)
    save_model(directory, hparams, params, vocabulary, dtype)
    data = (directory / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert all(name.startswith("transformer.") for name in header) and len(header) == 28
    assert {entry["dtype"] for entry in header.values()} == {"F32" if dtype[-2:] == "32" else "F16"}
    config = json.loads((directory / "config.json").read_text())
    assert config["model_type"] == "gpt2" and config["dtype"] == dtype
    loaded = flatten(load_model(directory)[2])
    for name, x in flatten(params).items():
        assert np.array_equal(loaded[name], x.astype(dtype)), name


def test_a_model_is_saved_as_transformers_wrote_it(shared, tmp_path):
    original = shared / "models" / "shakespeare-hf"
    vocabulary, hparams, params = load_model(original)
    save_model(tmp_path, hparams, params, vocabulary)
    ours, theirs = (read_safetensors(path / "model.safetensors") for path in (tmp_path, original))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], x) for name, x in theirs.items())
    ours, theirs = (json.loads((path / "config.json").read_text()) for path in (tmp_path, original))
    assert {name for name in ours if ours[name] != theirs[name]} == set()


def test_bare_names_masks_and_a_redundant_head_are_read(directory):
    def as_on_the_hub(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for i in range(2):
            tensors[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), bool))
            tensors[f"h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
        tensors["lm_head.weight"] = tensors["wte.weight"]

    expected = flatten(load_model(directory)[2])
    rewrite(directory, as_on_the_hub)
    configure(directory, tie_word_embeddings=False)  # The head is equal to wte nevertheless.
    loaded = flatten(load_model(directory)[2])
    assert loaded.keys() == expected.keys()
    assert all(np.array_equal(x, expected[name]) for name, x in loaded.items())


def test_a_config_is_completed_by_the_defaults_of_transformers(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    config = read_config(tmp_path / "config.json")
    assert config == {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_inner": 3072,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "activation_function": "gelu_new",
        "model_type": "gpt2",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    }
    (tmp_path / "config.json").write_text('{"n_ctx": 64, "n_embd": 24}')
    config = read_config(tmp_path / "config.json")
    assert config["n_positions"] == 64 and config["n_inner"] == 96


@pytest.mark.parametrize(
    "key, value",
    [
        ("model_type", "gpt_neo"),
        ("activation_function", "mish"),
        ("scale_attn_weights", None),
        ("scale_attn_by_inverse_layer_idx", "yes"),
        ("reorder_and_upcast_attn", []),
        ("add_cross_attention", True),
        ("n_layer", 0),
        ("n_layer", 2.0),
        ("n_layer", True),
        ("n_head", 3),
        ("n_head", 10**9),
        ("n_embd", "8"),
        ("n_positions", -1),
        ("vocab_size", 10**12),
        ("n_inner", []),
        ("layer_norm_epsilon", 0),
        ("n_embd", None),
        ("layer_norm_epsilon", "1e-5"),
        ("n_head", {}),
        ("activation_function", ["gelu_new"]),
    ],
)
def test_another_architecture_is_refused(key, value, directory):
    configure(directory, **{key: value})
    with pytest.raises(ValueError, match="model/config.json: ") as error:
        load_model(directory)
    assert key in str(error.value)
    assert "\n" not in str(error.value)


SIZES = {"n_layer": 2, "vocab_size": 257, "n_positions": 16, "n_inner": 32, "n_embd": 8}


@needs_unix
def test_sizes_are_compared_with_the_weights_before_memory_is_allocated(tmp_path):
    cases = {}
    sizes = [("n_layer", 1), *((key, n) for key in (*SIZES, "n_head") for n in (10**6, 10**9))]
    for model in build_models(tmp_path)[:2]:
        for key, size in sizes:
            copy = shutil.copytree(model, tmp_path / f"{model.name}-{key}-{size}")
            path = copy / ("hparams.json" if model.name == "openai" else "config.json")
            config = json.loads(path.read_text())
            theirs = {"vocab_size": "n_vocab", "n_positions": "n_ctx"}.get(key, key)
            config[theirs if theirs in config else key] = size
            path.write_text(json.dumps(config))
            cases[copy] = path, key, size
    results, peak = run_all(cases)
    for (path, key, size), (status, _, errors) in zip(cases.values(), results, strict=True):
        assert status == 1 and errors.startswith(f"gpt2.py: error: {path}: ")
        message = errors.removeprefix(f"gpt2.py: error: {path}: ")
        assert {key, str(size), str(SIZES.get(key, 8))} <= {*re.findall(r"\w+", message)}
    assert peak < 100


def test_a_wrong_tensor_is_named(directory):
    def refused(change, match):
        pristine = (directory / "model.safetensors").read_bytes()
        rewrite(directory, change)
        with pytest.raises(ValueError, match=match) as error:
            load_model(directory)
        assert str(directory) in str(error.value) and "\n" not in str(error.value)
        (directory / "model.safetensors").write_bytes(pristine)

    wte = "transformer.wte.weight"
    refused(lambda t: t.pop("transformer.h.1.ln_2.bias"), "tensor h.1.ln_2.bias is missing")
    refused(
        lambda t: t.update({wte: t[wte].T}),
        r"vocab_size is 257, but tensor wte.weight has shape \(8, 257\)",
    )
    refused(
        lambda t: t.update({wte: t[wte][:, 0]}), r"wte.weight has shape \(257,\), not \(257, 8\)"
    )
    refused(lambda t: t.update({wte: t[wte].astype(np.int64)}), "wte.weight is int64, not F64, F32")
    refused(
        lambda t: t.update({"lm_head.weight": t[wte][1:]}), r"lm_head.weight has shape \(256, 8"
    )
    bias = "transformer.h.1.attn.c_attn.bias"
    refused(lambda t: t.update({bias: t[bias][1:]}), r"bias has shape \(23,\), not \(24,\)")
    refused(lambda t: t.update({"h.1.ln_3.bias": t[bias]}), "'h.1.ln_3.bias' is not part")
    refused(lambda t: t.update({"wte.weight": t[wte]}), "with and without a prefix")
    configure(directory, tie_word_embeddings=False)
    refused(lambda t: None, "lm_head.weight is missing")
    configure(directory, tie_word_embeddings=True, vocab_size=256)
    refused(lambda t: None, "the vocabulary has ids up to 256, the model has 256")


def test_a_directory_of_openai_is_read():
    vocabulary, hparams, params = load_model(OPENAI)
    expected = {**golden.GPT2, "n_inner": 32, "layer_norm_epsilon": 1e-5, "eos_token_ids": [256]}
    assert hparams == {**expected, "activation_function": "gelu_new", "training": {}}
    assert vocabulary.ids["<|endoftext|>"] == 256 and vocabulary.merges == []
    expected = {
        name: golden.values(name, shape)
        for name, shape in golden.gpt2_shapes(**golden.GPT2).items()
    }
    assert np.array_equal(params["wte"], expected["model/wte"])
    assert np.array_equal(params["wpe"], expected["model/wpe"])
    assert np.array_equal(params["ln_f"]["g"], expected["model/ln_f/g"])
    for i, block in enumerate(params["blocks"]):
        for layer in ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj"):
            part, name = layer.split("/")
            w, b = (expected[f"model/h{i}/{layer}/{leaf}"] for leaf in "wb")
            assert np.array_equal(block[part][name]["w"], w[0])
            assert np.array_equal(block[part][name]["b"], b)
        for norm in ("ln_1", "ln_2"):
            for leaf in "gb":
                assert np.array_equal(block[norm][leaf], expected[f"model/h{i}/{norm}/{leaf}"])


def test_both_formats_of_a_model_are_equal(shared):
    vocabulary, hparams, params = load_model(shared / "models" / "shakespeare-openai")
    other_vocabulary, other_hparams, other = load_model(shared / "models" / "shakespeare-hf")
    assert hparams == other_hparams and vocabulary.ids == other_vocabulary.ids
    params, other = flatten(params), flatten(other)
    assert params.keys() == other.keys()
    for name, x in params.items():
        assert np.array_equal(x, other[name]) and x.flags.aligned and not x.flags.owndata, name


def test_damage_in_a_directory_of_openai_is_named(tmp_path):
    directory = shutil.copytree(OPENAI, tmp_path / "model")
    data = directory / "model.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ValueError, match="15775 bytes, but tensor model/.* cut off"):
        load_model(directory)
    (directory / "model.ckpt.index").write_bytes(b"<html>" * 20)
    with pytest.raises(ValueError, match="model.ckpt.index: damaged, or not a TensorFlow index"):
        load_model(directory)
    data.unlink()
    with pytest.raises(FileNotFoundError, match="holds no model"):
        load_model(directory)


def test_a_checkpoint_may_have_another_name(tmp_path):
    """Fine-tuning programs number their checkpoints. A file named checkpoint says which is last."""
    for path in OPENAI.iterdir():
        shutil.copy(path, tmp_path / path.name.replace("model.ckpt", "model-1000"))
    for name in ("model-1000", "/elsewhere/run1/model-1000"):
        (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n')
        assert load_model(tmp_path)[1]["n_layer"] == 2
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "../model-1000"\n')
    assert bundle_prefix(tmp_path) == tmp_path / "model-1000"


def test_a_directory_without_weights_is_refused_and_says_what_it_has_instead(directory):
    (directory / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model holds no model"):
        load_model(directory)
    kinds = {
        "tf_model.h5": "TensorFlow weights",
        "flax_model.msgpack": "Flax weights",
        "gpt2-q8.gguf": "GGUF files",
        "adapter_config.json": "an adapter for another model; merge",
        "ckpt.pt": "a checkpoint of nanoGPT",
    }
    for name, kind in kinds.items():
        (directory / name).write_bytes(b"x")
        with pytest.raises(FileNotFoundError, match=f"holds no model: .*; it has {kind}"):
            load_model(directory)
        (directory / name).unlink()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_and_a_web_page_are_not_weights(name, directory):
    (directory / "model.safetensors").unlink()
    contents = {
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n": "run git lfs pull",
        b"\n<!doctype html><html></html>": "a web page, not the file: download it again",
        b"": "damaged or cut off: download it again",
    }
    for content, advice in contents.items():
        (directory / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: not a .*{advice}$"):
            load_model(directory)


def test_an_index_without_its_data_is_not_a_model(tmp_path):
    (tmp_path / "model.ckpt.index").touch()
    assert not holds_model(tmp_path)
    (tmp_path / "model.ckpt.data-00000-of-00001").touch()
    assert holds_model(tmp_path)
    (tmp_path / "model.ckpt.index").unlink()
    assert not holds_model(tmp_path)


def test_weights_in_several_files_are_read(directory):
    expected = flatten(load_model(directory)[2])
    index, weight_map = shard(directory)
    loaded = flatten(load_model(directory)[2])
    assert all(np.array_equal(x, loaded[name]) for name, x in expected.items())
    name = "transformer.wte.weight"
    other = next(file for file in weight_map.values() if file != weight_map[name])
    for weight_map[name], match in (
        (other, "wte.weight' is missing"),
        (3, "names of files of weights"),
        ("../model.safetensors", "names of files of weights"),
        ("/etc/passwd", "names of files of weights"),
        ("a" * 202 + ".safetensors", "names of files of weights"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ValueError, match=match):
            load_model(directory)


def test_an_index_may_name_200_files(directory):
    index, weight_map = shard(directory)
    for n, match in (
        (198, r"No such file.*missing-\d+"),
        (199, "names 201 files; the limit is 200"),
    ):
        missing = {str(i): f"missing-{i}.safetensors" for i in range(n)}
        index.write_text(json.dumps({"weight_map": weight_map | missing}))
        with pytest.raises((OSError, ValueError), match=match):
            load_model(directory)


def test_settings_of_more_than_a_megabyte_are_not_read(directory):
    config = (directory / "config.json").read_text()
    (directory / "config.json").write_text(config + " " * ((1 << 20) - len(config)))
    assert load_model(directory)[1]["n_layer"] == 2
    for name in "config.json", "generation_config.json", "tokenizer_config.json":
        (directory / name).write_text('{"x": "%s"}' % (" " * (1 << 20)))
        with pytest.raises(ValueError, match=f"{name}: larger than 1048576 bytes"):
            load_model(directory)
        (directory / name).unlink()
        (directory / "config.json").write_text(config)
    words = ["word"] * (1 << 18)
    (directory / "training.json").write_text(json.dumps({"stopwords": words}))
    assert load_model(directory)[1]["training"]["stopwords"] == words


def test_mutated_files_are_loaded_or_refused_in_one_line(directory):
    rng, refused = random.Random(0), {}
    names = ["model.safetensors"] * 3 + ["config.json", "vocab.json", "merges.txt"]
    genuine = {name: (directory / name).read_bytes() for name in names}
    for i in range(FUZZ):
        name = rng.choice(names)
        data = genuine[name]
        if name == "model.safetensors":  # Only the header is changed: any tensor bytes are valid.
            n = 8 + int.from_bytes(data[:8], "little")
            head = mutate(rng, data[8:n]) if i % 3 else mutate_json(rng, data[8:n])
            length = len(head).to_bytes(8, "little")
            mutated = (mutate(rng, length) if i % 5 == 0 else length) + head + data[n:]
        elif name == "config.json" and i % 3:
            mutated = mutate_json(rng, data)
        else:
            mutated = mutate(rng, data)
        (directory / name).write_bytes(mutated)
        try:
            for x in flatten(load_model(directory)[2]).values():
                x.sum()
        except (ValueError, OSError) as error:
            message = str(error)
            assert str(directory) in message and len(message.splitlines()) == 1, f"{i}: {message}"
            assert len(message) < 2000, f"{i}: {message}"
            reason = name, message.split(": ", 2)[-1][:20]
            refused[reason] = refused.get(reason, 0) + 1
        (directory / name).write_bytes(genuine[name])
    print(f"{FUZZ} mutated files, {sum(refused.values())} refused: {refused}")
    assert len(refused) > 10


REGULAR = {
    "openai": "hparams.json encoder.json vocab.bpe model.ckpt.index model.ckpt.data-00000-of-00001",
    "shards": "model.safetensors.index.json model-00002-of-00002.safetensors",
    "whole": "config.json vocab.json merges.txt tokenizer.json model.safetensors training.json "
    "tokenizer_config.json special_tokens_map.json added_tokens.json generation_config.json",
}
KINDS = {
    "directory": Path.mkdir,
    "pipe": os.mkfifo if hasattr(os, "mkfifo") else None,
    "device": lambda path: path.symlink_to("/dev/zero"),
}


@needs_unix
@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_opened(kind, tmp_path):
    cases = {}
    for model in build_models(tmp_path)[:3]:
        for name in [*REGULAR[model.name].split(), "checkpoint", "pytorch_model.bin"]:
            copy = shutil.copytree(model, tmp_path / f"{model.name}-{name}")
            (copy / name).unlink(missing_ok=True)
            KINDS[kind](copy / name)
            cases[copy] = name
    results, _ = run_all(cases)
    for (directory, name), (status, _, errors) in zip(cases.items(), results, strict=True):
        if name in ("checkpoint", "pytorch_model.bin"):  # A model does not need these files.
            assert (status, errors) == (0, ""), directory
        else:
            assert errors == f"gpt2.py: error: {directory / name} is not a regular file\n"


@needs_unix
def test_damaged_directories_are_used_or_refused_in_one_line(tmp_path):
    models = build_models(tmp_path)
    expected = dict(zip(models, run_all(models)[0], strict=True))
    cases = {}
    for seed in range(SAMPLE):
        copy = tmp_path / str(seed)
        cases[copy] = damage(seed, models, copy)
    results, peak = run_all(cases)
    counts = Counter()
    for (copy, (model, changes)), result in zip(cases.items(), results, strict=True):
        verdict = judge(*result, expected[model][1])
        assert verdict in ("unchanged", "another text", "refused"), f"{copy}, {changes}: {verdict}"
        counts[verdict] += 1
    assert counts["unchanged"] and counts["refused"] > SAMPLE / 2
    assert peak < 300 and not (tmp_path / "made").exists()


def test_a_released_size_is_read_only_from_files_with_known_hashes(directory):
    vocabulary, hparams, _ = load_model(directory)
    for name in "tokenizer.json", "generation_config.json", "added_tokens.json":
        (directory / name).write_text("{")
    loaded_vocabulary, loaded_hparams, _ = load_model(directory, is_released=True)
    assert loaded_vocabulary[:3] == vocabulary[:3]
    assert loaded_hparams == hparams
    with pytest.raises(ValueError, match="damaged JSON"):
        load_model(directory)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("dtype, number", [(None, np.nan), (None, 1e38), ("float16", -np.inf)])
@pytest.mark.parametrize("name", ["wte.weight", "h.1.ln_2.bias"])
def test_a_tensor_that_is_not_finite_is_named(name, dtype, number, directory):
    def damage(tensors):
        tensors[f"transformer.{name}"].flat[-1] = number

    rewrite(directory, damage, dtype)
    with pytest.raises(ValueError, match=f"model: tensor {name} has numbers that are not finite"):
        load_model(directory)


def test_the_content_of_training_json_is_among_the_hyperparameters(directory):
    training = {"lowercase": True, "stopwords": ["the", "of"], "lr": 0.001, "text": "a.txt"}
    (directory / "training.json").write_text(json.dumps(training))
    assert load_model(directory)[1]["training"] == training
    for wrong in {"lowercase": 1}, {"stopwords": "the"}, {"stopwords": [1]}, {"stopwords": None}:
        (directory / "training.json").write_text(json.dumps({**training, **wrong}))
        with pytest.raises(ValueError, match=f"training.json: {[*wrong][0]} is n"):
            load_model(directory)


# The parameters

PATHS = {  # {name of a parameter in the files: its path in the tree}
    "wte.weight": ".wte",
    "wpe.weight": ".wpe",
    "h.0.ln_1.weight": ".blocks.0.ln_1.g",
    "h.0.ln_1.bias": ".blocks.0.ln_1.b",
    "h.0.attn.c_attn.weight": ".blocks.0.attn.c_attn.w",
    "h.0.attn.c_attn.bias": ".blocks.0.attn.c_attn.b",
    "h.0.attn.c_proj.weight": ".blocks.0.attn.c_proj.w",
    "h.0.attn.c_proj.bias": ".blocks.0.attn.c_proj.b",
    "h.0.ln_2.weight": ".blocks.0.ln_2.g",
    "h.0.ln_2.bias": ".blocks.0.ln_2.b",
    "h.0.mlp.c_fc.weight": ".blocks.0.mlp.c_fc.w",
    "h.0.mlp.c_fc.bias": ".blocks.0.mlp.c_fc.b",
    "h.0.mlp.c_proj.weight": ".blocks.0.mlp.c_proj.w",
    "h.0.mlp.c_proj.bias": ".blocks.0.mlp.c_proj.b",
    "ln_f.weight": ".ln_f.g",
    "ln_f.bias": ".ln_f.b",
}


def arrays(**hparams):
    """Return all parameters of a model: {name: array filled with its position}."""
    shapes = parameter_shapes(**hparams)
    return {name: np.full(shape, i) for i, (name, shape) in enumerate(shapes.items())}


def test_each_name_has_one_path_in_the_tree():
    tensors = arrays(**{**TINY, "n_layer": 1})
    positions = [(path, int(x.flat[0])) for path, x in leaves(nest(tensors))]
    assert sorted(positions) == sorted((path, i) for i, path in enumerate(PATHS.values()))
    assert list(tensors) == list(PATHS)  # This is the order in which the model uses them.


def test_flatten_is_the_inverse_of_nest():
    tensors = arrays(**{**TINY, "n_layer": 12})  # Layer 10 must come after 9, not after 1.
    for order in list(tensors), sorted(tensors), sorted(tensors)[::-1]:
        tree = nest({name: tensors[name] for name in order})
        flat = flatten(tree)
        assert flat.keys() == tensors.keys()
        assert all(flat[name] is x for name, x in tensors.items())
        assert [int(block["ln_1"]["g"][0]) for block in tree["blocks"]] == [*range(2, 146, 12)]
    assert list(flatten(nest(tensors))) == list(tensors)
    params = random_params()
    again = dict(leaves(nest(flatten(params))))
    assert all(again.pop(path) is x for path, x in leaves(params)) and not again


def test_openais_tensors_have_our_names_and_shapes_after_renaming():
    theirs = golden.gpt2_shapes(**golden.GPT2)
    ours = from_openai({name: np.zeros(shape) for name, shape in theirs.items()})
    assert {name: x.shape for name, x in ours.items()} == parameter_shapes(**golden.GPT2)


def test_124M_has_124_million_parameters():
    shapes = parameter_shapes(**FULL)
    assert len(shapes) == 148
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 124_439_808


def test_the_mlp_is_four_times_as_wide_by_default():
    hparams = {"n_vocab": 9, "n_ctx": 4, "n_embd": 6, "n_layer": 1}
    for n_inner, width in (None, 24), (24, 24), (10, 10):
        shapes = parameter_shapes(**hparams, n_inner=n_inner, n_head=2, eos_token_ids=[3])
        assert shapes["h.0.mlp.c_fc.weight"] == (6, width)
        assert shapes["h.0.mlp.c_fc.bias"] == (width,)
        assert shapes["h.0.mlp.c_proj.weight"] == (width, 6)
    assert parameter_shapes(**hparams) == parameter_shapes(**hparams, n_inner=24)


def test_the_keys_of_the_tree_are_the_arguments_of_the_functions():
    params = random_params()
    (block, *_), c_attn = params["blocks"], params["blocks"][0]["attn"]["c_attn"]
    for function, tree in (
        (gpt2.gpt2, params),
        (gpt2.mha, block["attn"]),
        (gpt2.ffn, block["mlp"]),
        (gpt2.linear, c_attn),
        (gpt2.layer_norm, block["ln_1"]),
        (gpt2.layer_norm, params["ln_f"]),
    ):
        assert tree.keys() <= inspect.signature(function).parameters.keys()


@pytest.mark.parametrize("prefix", ["model.", "base_model.model.transformer.", "my_transformer."])
def test_whatever_stands_before_all_names_is_ignored(prefix, directory):
    expected = dict(leaves(load_model(directory)[2]))

    def rename(tensors):
        for name in list(tensors):
            tensors[prefix + name.removeprefix("transformer.")] = tensors.pop(name)

    rewrite(directory, rename)
    found = dict(leaves(load_model(directory)[2]))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_quantised_weights_are_named_by_the_configuration(directory):
    configure(directory, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ValueError, match="config.json: the weights are quantised"):
        load_model(directory)
