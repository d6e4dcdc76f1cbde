"""From chosen ids to a text: streaming, stops, log-probabilities, JSON."""

import json
import random

import numpy as np
import pytest

import completion
from encoder import learn_bpe

TEXT = "naïve 日本 😀 the end, the\nend. aab aaab 日日本"


@pytest.fixture(scope="module")
def encoder():
    return learn_bpe([TEXT, TEXT, "the end"], 280)


def ids_cut_anyhow(text, encoder, seed):
    """A text as ids of pieces of bytes, cut at random places, also inside characters."""
    data, rng, ids = text.encode(), random.Random(seed), []
    while data:
        n = rng.randint(1, 6)
        ids += encoder.encode_bytes(data[:n])
        data = data[n:]
    return ids


def follow(ids, encoder, ends=(), **options):
    """-> the Completion, and the pieces that were shown; each after one more id."""
    done, shown = completion.Completion(encoder, ends, **options), []
    for id_ in ids:
        shown.append(done.add(id_, None))
        if done.ended != "length":
            break
    return done, [*shown, done.rest()]


def stopped(text, stops):
    """The definition: text until the first stop that is complete, however long it is."""
    for n in range(len(text) + 1):
        found = [stop for stop in stops if text[:n].endswith(stop)]
        if found:
            return text[: n - max(map(len, found))], True
    return text, False


STOPS = [
    [],
    ["the"],
    [" end"],
    ["e"],
    ["本"],
    ["\nend"],
    ["aab", "aaab"],
    ["aaab", "aab"],
    ["the", "h"],
    ["nowhere"],
    ["the end. no", "日本 😀 the", "end"],
    ["naïve"],
    ["日日"],
]


@pytest.mark.parametrize("stops", STOPS)
def test_a_stop_ends_the_text_before_it_wherever_tokens_are_cut(stops, encoder):
    expected, ends = stopped(TEXT, stops)
    for seed in range(30):
        ids = ids_cut_anyhow(TEXT, encoder, seed)
        done, shown = follow(ids, encoder, stops=stops)
        assert "".join(shown) == expected
        assert done.ended == ("stop" if ends else "length")
        assert done.ids == ids[: len(done.ids)]
        kept = encoder.decode_bytes(done.ids)
        assert expected.encode().startswith(kept)  # not the token in which the stop begins
        if ends:
            following = encoder.decode_bytes(ids[: len(done.ids) + 1])
            assert len(following) > len(expected.encode())


def test_text_is_shown_as_soon_as_it_is_certain(encoder):
    ids = [encoder.encode_bytes(bytes([byte]))[0] for byte in "a日the thx".encode()]
    done, shown = follow(ids, encoder, stops=["the end"])
    assert shown == ["a", "", "", "日", "", "", "", "", "the ", "", "thx", ""]
    done, shown = follow(ids[:-1], encoder, stops=["the end"])
    assert shown[-1] == "th" and "".join(shown) == "a日the th"


def test_an_end_of_text_is_neither_text_nor_id(encoder):
    ids = encoder.encode("the end")
    done, shown = follow([*ids, encoder.eot, *ids], encoder, [5, encoder.eot], stops=["end, "])
    assert ("".join(shown), done.ids, done.ended) == ("the end", ids, "end of text")


def test_log_probabilities_are_those_of_softmax():
    logits = np.random.default_rng(0).standard_normal(50).astype(np.float32) * 5
    p = np.exp(logits.astype(np.float64))
    for id_ in range(50):
        assert completion.log_probability(logits, id_) == pytest.approx(np.log(p / p.sum())[id_])
    assert completion.log_probability(np.array([0, 2000], np.float32), 0) == -2000


def test_a_stop_takes_its_log_probabilities_along(encoder):
    done, logits = completion.Completion(encoder, [], ["!!"], scored=True), np.zeros(280)
    ids = [*encoder.encode("the"), *encoder.encode("!"), *encoder.encode("!")]
    for id_ in ids:
        done.add(id_, logits)
    assert done.ended == "stop" and done.ids == ids[:-2]
    assert done.log_probabilities == pytest.approx([-np.log(280)] * len(done.ids))


def test_json_says_what_is_no_utf8(encoder):
    whole, _ = follow(ids_cut_anyhow("日\n", encoder, 0), encoder)
    line = whole.as_json(prompt="the", seed=None)
    assert "\n" not in line and "日" in line
    assert json.loads(line) == {
        "prompt": "the",
        "seed": None,
        "text": "日\n",
        "ids": whole.ids,
        "log_probabilities": [],
        "ended": "length",
        "valid_utf8": True,
    }
    half, _ = follow(encoder.encode_bytes("日".encode()[:2]), encoder)
    found = json.loads(half.as_json())
    assert found["text"] == "\ufffd" and found["valid_utf8"] is False
    said, _ = follow(encoder.encode("\ufffd"), encoder)  # as a character it is valid
    assert json.loads(said.as_json())["valid_utf8"] is True
