"""Odd model directories give the same ids and tokens as in transformers, or are refused by name."""

import json

import numpy as np
import pytest
from conftest import GOLDEN
from odd_models import INPUT, N_TOKENS, TEXTS, build
from odd_tokenizers import CASES

from gpt2 import generate, gpt2
from model_files.directory import save_model
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
