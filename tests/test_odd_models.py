"""Odd model directories give the same ids and tokens as in transformers, or are refused by name."""

import json

import numpy as np
import pytest
from conftest import GOLDEN, ROOT, run
from odd_models import INPUT, N_TOKENS, TEXTS, build
from odd_tokenizers import CASES

from batch import generate_many
from gpt2 import generate, gpt2
from model_files.directory import save_model
from page.record import run_with_trace, unembed
from utils import load_encoder_hparams_and_params

LOADS = [name for name, odd in CASES.items() if not odd.refused]


@pytest.fixture(scope="module")
def golden():
    golden = json.loads((GOLDEN / "odd_models.json").read_text(encoding="utf-8"))
    with np.load(GOLDEN / "odd_models.npz") as file:
        golden["logits"] = dict(zip(golden["cases"], file["logits"], strict=True))
    return golden


def load(directory):
    return load_encoder_hparams_and_params(str(directory), ".")


def test_transformers_has_opened_every_directory_that_loads(golden):
    assert [*golden["cases"]] == LOADS and len(CASES) > 150


@pytest.mark.parametrize("name", LOADS)
def test_a_directory_loads_as_in_transformers(name, golden, tmp_path):
    build(CASES[name], tmp_path / "odd")
    encoder, hparams, params = load(tmp_path / "odd")
    case = golden["cases"][name]
    tokens, texts = golden["kinds"][case["tokens"]]
    for text, ids, decoded in zip(TEXTS, tokens, texts, strict=True):
        assert encoder.encode(text) == ids, text
        expected = text if decoded == 0 else decoded
        assert encoder.decode(ids) == "".join(encoder.decode_stream(ids)) == expected
    assert encoder.eot not in encoder.encode("a<|endoftext|> <|endoftext|>")
    logits = gpt2(INPUT, **params, hparams=hparams)[-1]
    logits = logits[:: len(logits) // 20][:20]
    np.testing.assert_allclose(logits, golden["logits"][name], rtol=1e-4, atol=1e-4)
    assert list(generate(INPUT, params, hparams, N_TOKENS)) == case["greedy"]
    others = generate_many([INPUT, INPUT[:2]], params, hparams, N_TOKENS)
    assert [id_ for i, id_ in others if i == 0] == case["greedy"]
    *_, trace = run_with_trace(INPUT, params, hparams)
    traced = unembed(trace.resid_post, params, hparams)[-1]
    np.testing.assert_allclose(traced[:: len(traced) // 20][:20], logits, rtol=1e-4, atol=1e-4)
    save_model(tmp_path / "saved", hparams, params, encoder.vocabulary)
    saved_encoder, saved_hparams, _ = load(tmp_path / "saved")
    vocabulary = encoder.vocabulary._replace(source=saved_encoder.vocabulary.source)
    assert saved_encoder.vocabulary == vocabulary and saved_hparams == hparams


@pytest.mark.parametrize("name", [name for name in CASES if name not in LOADS])
def test_a_directory_is_refused_in_one_line(name, tmp_path):
    build(CASES[name], tmp_path / "odd")
    with pytest.raises((ValueError, OSError), match=CASES[name].refused) as error:
        load(tmp_path / "odd")
    assert str(tmp_path / "odd") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["the activation gelu", "an output head of its own"])
def test_pico_and_training_refuse_another_architecture_by_name(name, tmp_path):
    build(CASES[name], tmp_path / "odd")
    kind = "its activation_function is gelu" if "gelu" in name else "its output head is not wte"
    pico = run("gpt2_pico.py", "low", "--model_size", tmp_path / "odd")
    train = run(
        "train.py", ROOT / "README.md", "--out", tmp_path / "out", "--init_from", tmp_path / "odd"
    )
    for done in pico, train:
        assert (
            done.returncode == 1 and kind in done.stderr.decode() and done.stderr.count(b"\n") == 1
        )
    assert not (tmp_path / "out" / "config.json").exists()
    done = run("gpt2.py", "low", "--n_tokens_to_generate", "3", "--model_size", tmp_path / "odd")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", ["a second head, for multiple choice", "a value head"])
def test_what_is_left_out_is_said_in_one_line(name, tmp_path, capsys):
    build(CASES[name], tmp_path / "odd")
    load(tmp_path / "odd")
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path / 'odd'}: only the language model is loaded, without ")
    assert said.count("\n") == 1 and "head.summary" in said
    build(CASES["mask buffers"], tmp_path / "masks")
    load(tmp_path / "masks")
    assert capsys.readouterr().err == ""


def test_a_folded_model_is_saved_as_a_plain_gpt2(tmp_path):
    build(CASES["everything that varies"], tmp_path / "odd")
    encoder, hparams, params = load(tmp_path / "odd")
    save_model(tmp_path / "saved", hparams, params, encoder.vocabulary)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (
        config["scale_attn_by_inverse_layer_idx"] is False and config["scale_attn_weights"] is True
    )
    assert config["activation_function"] == "gelu" and config["tie_word_embeddings"] is False
    assert np.array_equal(load(tmp_path / "saved")[2]["lm_head"], params["lm_head"])
