"""A model directory is read as its writers meant it, or refused in one line; a saved one is whole.

FUZZ in the environment sets how many damaged files are tried.
"""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_tf_checkpoint import mutate

import tensor_file
import utils
from encoder import learn_bpe

ROOT = Path(__file__).parent.parent
OPENAI = Path(__file__).parent / "golden" / "tf_gpt2"
FUZZ = int(os.environ.get("FUZZ", 500))


@pytest.fixture
def directory(tmp_path):
    """A Hugging Face directory: 2 layers, 8 wide, 257 tokens."""
    encoder, hparams, params = utils.load_model(OPENAI)
    utils.save_model(tmp_path / "model", hparams, params, encoder)
    return tmp_path / "model"


def rewrite(directory, change, dtype=None):
    """Let change edit {name: array} of the weights."""
    path = directory / "model.safetensors"
    tensors = {name: x.copy() for name, x in utils.read_safetensors(path).items()}
    change(tensors)
    utils.write_safetensors(path, tensors, dtype=dtype)


def configure(directory, **keys):
    config = json.loads((directory / "config.json").read_text()) | keys
    config = {name: value for name, value in config.items() if value != "absent"}
    (directory / "config.json").write_text(json.dumps(config))


def test_a_save_that_fails_replaces_nothing(directory, monkeypatch):
    before = {path: path.read_bytes() for path in directory.iterdir()}
    _, hparams, params = utils.load_model(directory)
    encoder = learn_bpe(["other words"], 257)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(tensor_file, "raw_bytes", lambda x, dtype: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="model.safetensors"):
        utils.save_model(directory, hparams, params, encoder)
    assert before == {path: path.read_bytes() for path in directory.iterdir()}


def test_save_and_load(directory, tmp_path):
    encoder, hparams, params = utils.load_encoder_hparams_and_params("model", tmp_path)
    original_encoder, original_hparams, original = utils.load_model(OPENAI)
    assert hparams == original_hparams and encoder.encoder == original_encoder.encoder
    params, original = utils.flatten(params), utils.flatten(original)
    assert list(params) == list(original)
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


def test_data_begins_aligned(directory):
    data = (directory / "model.safetensors").read_bytes()
    assert (8 + int.from_bytes(data[:8], "little")) % 64 == 0


def test_written_file_in_the_safetensors_library(directory):
    library = pytest.importorskip("safetensors.numpy")
    ours = utils.read_safetensors(directory / "model.safetensors")
    theirs = library.load_file(directory / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(x, theirs[name]) for name, x in ours.items())
    assert library.save(theirs)[-len(ours) * 4 :]
    library.save_file(theirs, directory / "theirs.safetensors")
    again = utils.read_safetensors(directory / "theirs.safetensors")
    assert all(np.array_equal(x, again[name]) for name, x in ours.items())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_transformers_names(dtype, directory):
    """What GPT2LMHeadModel.save_pretrained writes: the prefix, no head, and its own metadata."""
    encoder, hparams, params = utils.load_model(OPENAI)
    utils.save_model(directory, hparams, params, encoder, dtype)
    data = (directory / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert all(name.startswith("transformer.") for name in header) and len(header) == 28
    assert {entry["dtype"] for entry in header.values()} == {"F32" if dtype[-2:] == "32" else "F16"}
    config = json.loads((directory / "config.json").read_text())
    assert config["model_type"] == "gpt2" and config["dtype"] == dtype
    loaded = utils.flatten(utils.load_model(directory)[2])
    for name, x in utils.flatten(params).items():
        assert np.array_equal(loaded[name], x.astype(dtype)), name


def test_shared_model_saves_as_transformers_wrote_it(shared, tmp_path):
    original = shared / "models" / "shakespeare-hf"
    encoder, hparams, params = utils.load_model(original)
    utils.save_model(tmp_path, hparams, params, encoder)
    ours, theirs = (
        utils.read_safetensors(path / "model.safetensors") for path in (tmp_path, original)
    )
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], x) for name, x in theirs.items())
    ours, theirs = (json.loads((path / "config.json").read_text()) for path in (tmp_path, original))
    assert {name for name in ours if ours[name] != theirs[name]} == set()


def test_half_precision_and_unaligned(directory, tmp_path):
    """BF16 and F16 are widened exactly; F32 at an odd byte, as the hub's 124M has it, is copied."""
    tensors = {"a": np.array([[1.5, -2.25], [3e38, -0.0]], np.float32)}
    bf16 = (tensors["a"].view(np.uint32) >> 16).astype(np.uint16).view(utils.BF16)
    utils.write_safetensors(tmp_path / "b", {"a": bf16, "odd": np.zeros(3, np.uint8)})
    found = utils.read_safetensors(tmp_path / "b")["a"]
    assert found.dtype == utils.BF16
    exact = (tensors["a"].view(np.uint32) >> 16 << 16).view(np.float32)
    assert np.array_equal(utils.widen(found), exact)
    utils.write_safetensors(tmp_path / "f", {"a": bf16}, dtype="float32")
    assert np.array_equal(utils.read_safetensors(tmp_path / "f")["a"], exact)
    path = directory / "model.safetensors"
    data = path.read_bytes()
    expected = {name: x.copy() for name, x in utils.flatten(utils.load_model(directory)[2]).items()}
    n = int.from_bytes(data[:8], "little")
    path.write_bytes((n + 3).to_bytes(8, "little") + data[8 : 8 + n] + b"   " + data[8 + n :])
    assert not utils.read_safetensors(path)["transformer.wte.weight"].flags.aligned
    for name, x in utils.flatten(utils.load_model(directory)[2]).items():
        assert x.flags.aligned and np.array_equal(x, expected[name])


def test_bare_names_masks_and_a_redundant_head(directory):
    def as_on_the_hub(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for i in range(2):
            tensors[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), bool))
            tensors[f"h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
        tensors["lm_head.weight"] = tensors["wte.weight"]

    expected = utils.flatten(utils.load_model(directory)[2])
    rewrite(directory, as_on_the_hub)
    configure(directory, tie_word_embeddings=False)  # the head is equal, whatever this says
    found = utils.flatten(utils.load_model(directory)[2])
    assert found.keys() == expected.keys()
    assert all(np.array_equal(x, expected[name]) for name, x in found.items())


def test_config_defaults(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    config = utils.read_config(tmp_path / "config.json")
    assert config == {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_inner": 3072,
        "layer_norm_epsilon": 1e-5,
        "eos_token_id": None,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text('{"n_ctx": 64, "n_embd": 24, "eos_token_id": [1, 2]}')
    config = utils.read_config(tmp_path / "config.json")
    assert config["n_positions"] == 64 and config["n_inner"] == 96
    assert config["eos_token_id"] is None


@pytest.mark.parametrize(
    "key, value",
    [
        ("model_type", "gpt_neo"),
        ("activation_function", "relu"),
        ("activation_function", "gelu"),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("reorder_and_upcast_attn", True),
        ("add_cross_attention", True),
        ("n_layer", 0),
        ("n_layer", 2.0),
        ("n_layer", True),
        ("n_head", 3),
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
        utils.load_model(directory)
    assert key in str(error.value) or key == "n_head"
    assert "\n" not in str(error.value)


def test_tensors_are_refused_by_name(directory):
    def refused(change, match):
        pristine = (directory / "model.safetensors").read_bytes()
        rewrite(directory, change)
        with pytest.raises(ValueError, match=match) as error:
            utils.load_model(directory)
        assert str(directory) in str(error.value) and "\n" not in str(error.value)
        (directory / "model.safetensors").write_bytes(pristine)

    wte = "transformer.wte.weight"
    refused(lambda t: t.pop("transformer.h.1.ln_2.bias"), "tensor h.1.ln_2.bias is missing")
    refused(lambda t: t.update({wte: t[wte].T}), r"wte.weight has shape \(8, 257\), not \(257, 8\)")
    refused(lambda t: t.update({wte: t[wte].astype(np.float64)}), "wte.weight is float64, not F32")
    refused(lambda t: t.update({"lm_head.weight": t[wte] + 1}), "lm_head.weight differs from wte")
    refused(lambda t: t.update({"lm_head.weight": t[wte][1:]}), "lm_head.weight differs from wte")
    refused(
        lambda t: t.update({"transformer.h.2.ln_1.bias": t["transformer.ln_f.bias"]}),
        "'h.2.ln_1.bias' is no part",
    )
    refused(lambda t: t.update({"wte.weight": t[wte]}), "with and without transformer.")
    configure(directory, tie_word_embeddings=False)
    refused(lambda t: None, "lm_head.weight is missing")
    configure(directory, tie_word_embeddings=True, n_layer=3)
    refused(lambda t: None, "tensor h.2.ln_1.weight is missing")
    configure(directory, n_layer=2, vocab_size=256)
    refused(lambda t: None, "the vocabulary has 257 tokens, the model 256")


def test_pickle_and_nothing_are_refused(directory):
    (directory / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model holds no model"):
        utils.load_model(directory)
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="pytorch_model.bin is a pickle"):
        utils.load_model(directory)


def shard(directory):
    """Split the weights into two files with an index, as transformers does with large models."""
    path = directory / "model.safetensors"
    tensors = {name: x.copy() for name, x in utils.read_safetensors(path).items()}
    path.unlink()
    weight_map = {}
    for i, names in enumerate((list(tensors)[::2], list(tensors)[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        utils.write_safetensors(directory / file, {name: tensors[name] for name in names})
        weight_map |= dict.fromkeys(names, file)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index, weight_map


def test_an_index_without_its_data_is_no_model(tmp_path):
    (tmp_path / "model.ckpt.index").touch()
    assert not utils.holds_model(tmp_path)
    (tmp_path / "model.ckpt.data-00000-of-00001").touch()
    assert utils.holds_model(tmp_path)


def test_shards(directory):
    expected = utils.flatten(utils.load_model(directory)[2])
    index, weight_map = shard(directory)
    found = utils.flatten(utils.load_model(directory)[2])
    assert all(np.array_equal(x, found[name]) for name, x in expected.items())
    name = "transformer.wte.weight"
    other = next(file for file in weight_map.values() if file != weight_map[name])
    for weight_map[name], match in (
        (other, "wte.weight' is missing"),
        (3, "names of files"),
        ("../model.safetensors", "names of files"),
        ("/etc/passwd", "names of files"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ValueError, match=match):
            utils.load_model(directory)


@pytest.mark.parametrize(
    "header, match",
    [
        (b"", "cut off"),
        (b"[]", "not an object"),
        (b"{", "damaged JSON"),
        (b"{} x", "damaged JSON"),
        (b"[" * 100_000, "damaged JSON"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": 1}',
            "key occurs twice",
        ),
        (b'{"a": 3}', "tensor 'a' has no dtype"),
        (b'{"a": {"dtype": "F32"}}', "tensor 'a' has no"),
        (b'{"__metadata__": {"a": 1}}', "__metadata__"),
        (b'{"__metadata__": []}', "__metadata__"),
        (b'{"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}', "unknown dtype 'F33'"),
        (b'{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}', "unknown dtype"),
        (b'{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}', "damaged shape"),
        (b'{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}', "damaged shape"),
        (b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', "damaged shape"),
        (b'{"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}', "damaged shape"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}', "data_offsets"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', "does not fit"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "does not fit"),
        (
            b'{"a": {"dtype": "F32", "shape": [0, 99999999999999, 99999999999999], '
            b'"data_offsets": [0, 0]}}',
            "impossible shape",
        ),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "hole or overlap"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
            b'"b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            "hole or overlap",
        ),
        (b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}', "cut off"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            "4 bytes after the last",
        ),
        (b'{"a\\n\xe2\x80\xa8": 3}', "a.n.u2028"),
        (b"\xff{}", "damaged JSON"),
    ],
)
def test_damaged_header(header, match, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match=match) as error:
        utils.read_safetensors(path)
    assert str(error.value).startswith(str(path)) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        bytes(8),
        b"\xff" * 8,
        b"\xff" * 7 + b"\x7f{}",
        (1 << 40).to_bytes(8, "little") + b"{}",
    ],
)
def test_header_length_is_bounded(data, tmp_path):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match="no safetensors file, or cut off"):
        utils.read_safetensors(tmp_path / "x")


def test_fuzz(directory):
    """A model with a mutated file is loaded, or refused in one line that names it."""
    rng, refused = random.Random(0), {}
    names = ["model.safetensors"] * 3 + ["config.json", "vocab.json", "merges.txt"]
    genuine = {name: (directory / name).read_bytes() for name in names}
    for i in range(FUZZ):
        name = rng.choice(names)
        data = genuine[name]
        if name == "model.safetensors":  # the bytes of its tensors may be any
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
            for x in utils.flatten(utils.load_model(directory)[2]).values():
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


EVIL = (
    None,
    True,
    0,
    1,
    -1,
    2.5,
    1e308,
    1 << 31,
    1 << 62,
    10**30,
    "",
    "F16",
    "BF16",
    [],
    {},
    [0, 0],
    [1, 1, 257, 8],
    [[]],
    {"a": 1},
    "transformer.wte.weight",
)


def mutate_json(rng, data):
    """JSON with one value somewhere in it replaced, dropped, or put under another name."""
    content = json.loads(data)
    inner, key = content, rng.choice(list(content))
    while isinstance(inner[key], (dict, list)) and inner[key] and rng.random() < 0.8:
        inner = inner[key]
        key = rng.randrange(len(inner)) if isinstance(inner, list) else rng.choice(list(inner))
    if rng.random() < 0.7:
        number = inner[key] if type(inner[key]) is int else 0
        inner[key] = rng.choice([*EVIL, number + 1, number - 1, number * 2, number // 2])
    else:
        value = inner.pop(key)
        if isinstance(inner, dict) and rng.random() < 0.5:
            inner[rng.choice(["wte.weight", "lm_head.weight", "n_ctx", "shape", key + "x"])] = value
    return json.dumps(content).encode()


def test_any_json_as_header(tmp_path):
    """hypothesis: whatever JSON a header is, it is read or refused in one line."""
    hypothesis = pytest.importorskip("hypothesis")
    st, path = hypothesis.strategies, tmp_path / "x"
    scalar = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from([*tensor_file.DTYPES, "F8"]),
            "shape": st.lists(st.integers(0, 9)),
            "data_offsets": st.lists(st.integers(0, 99), min_size=2, max_size=2),
        }
    )
    anything = st.recursive(scalar, lambda x: st.lists(x) | st.dictionaries(st.text(), x))

    headers = st.dictionaries(st.text(max_size=9), entry | anything)

    @hypothesis.settings(max_examples=FUZZ // 5, deadline=None, database=None)
    @hypothesis.given(headers, st.binary(max_size=99))
    def check(content, data):
        header = json.dumps(content).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + data)
        try:
            utils.read_safetensors(path)
        except ValueError as error:
            assert str(error).startswith(str(path)) and len(str(error).splitlines()) == 1

    check()


def test_atomic(directory, monkeypatch):
    """A disk that is full, or Ctrl-C, while a file is written leaves the one before as it was."""

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    monkeypatch.setattr(tensor_file.os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*model.safetensors"):
        utils.write_safetensors(directory / "model.safetensors", {"a": np.zeros(3, np.float32)})
    assert before == {path.name: path.read_bytes() for path in directory.iterdir()}


def test_writing_takes_tensors_one_by_one(tmp_path, monkeypatch):
    """At most one of them is held widened at any time."""
    alive = []
    widen = tensor_file.widen

    def watched(x):
        import weakref

        assert all(ref() is None for ref in alive), "the one before is still held"
        wide = widen(x)
        alive.append(weakref.ref(wide))
        return wide

    monkeypatch.setattr(tensor_file, "widen", watched)
    tensors = {f"{i}": np.full((30, 40), i, np.float16) for i in range(4)}
    utils.write_safetensors(tmp_path / "x", tensors, dtype="float32")
    assert len(alive) == 4


def test_nothing_slow_is_imported(directory):
    """requests and tqdm cost more than a warm start may take; they come in only to fetch."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import utils; "
        f"utils.load_encoder_hparams_and_params({str(directory)!r}, 'models'); "
        "print({'requests', 'tqdm', 'tf_checkpoint', 'fetch'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_names_and_paths(directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(directory, tmp_path / "models" / "124M")
    for name in ("model", "./model", "model/", str(directory), "../" + tmp_path.name + "/model"):
        where = tmp_path if name == "model" else tmp_path / "nowhere"
        assert utils.find_model(name, where).resolve() == directory
    assert utils.find_model("124M", tmp_path / "models") == tmp_path / "models" / "124M"
    with pytest.raises(FileNotFoundError, match="models/nosuch: no such directory"):
        utils.find_model("models/nosuch", tmp_path / "models")
    with pytest.raises(ValueError, match="in models there is 124M; a path"):
        utils.find_model("nosuch", Path("models"))
