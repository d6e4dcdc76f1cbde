"""Tests of explain.py and page/: they show what gpt2_pico and transformers compute."""

import base64
import contextlib
import json
import math
import os
import re
import stat
import struct
import subprocess
import unicodedata
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import (
    GOLDEN,
    LETTERS,
    LONG,
    ROOT,
    TINY,
    command,
    model_options,
    random_params,
    run,
    some_ids,
)
from pico_trace import Pass

import cli
import explain
import gpt2
from encoder import Encoder, learn_bpe
from model_files.directory import save_model
from page import data, record
from utils import load_encoder_hparams_and_params

SIZES = {  # n_layer, n_head, n_embd
    "124M": (12, 12, 768),
    "355M": (24, 16, 1024),
    "774M": (36, 20, 1280),
    "1558M": (48, 25, 1600),
}


def unpack(array):
    """Unpack an array from data.pack as data.js does it."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(array["data"])), np.uint8)
    itemsize = int(array["type"][1:])
    numbers = planes.reshape(itemsize, -1).T.copy().view("<" + array["type"])
    return numbers.reshape(array["shape"])


def read_page(page):
    """Return the facts and the arrays of a page."""
    content = re.search(rb'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)[1]
    facts = json.loads(content)
    return facts, {name: unpack(x) for name, x in facts["arrays"].items()}


@pytest.fixture(scope="module")
def shipped():
    return load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "explain.npz")


@pytest.fixture(scope="module")
def recorded(shipped, golden):
    """Return the record of the golden text, whose first twelve tokens are the prompt."""
    _, hparams, params = shipped
    return record.record(golden["ids"].tolist(), 12, None, params, hparams)


IDS = some_ids(11, seed=4).tolist()


@pytest.fixture(scope="module")
def tiny_params():
    """Return parameters in which all biases, gains and norms differ from each other."""
    return random_params(8)


@pytest.fixture(scope="module")
def truth(tiny_params):
    return Pass(IDS, tiny_params, TINY)


@pytest.fixture(scope="module")
def tiny_record(tiny_params):
    """Return the record of IDS as {name: array}. The first four ids are the prompt."""
    arrays, _ = record.record(IDS, 4, 7, tiny_params, TINY)
    return arrays


def trace(ids, params, hparams=TINY):
    return list(record.run_with_trace(ids, params, hparams))


def streams_of(traces):
    return np.stack(list(record.residual_streams(traces).values()))


def close(found, expected, atol=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


# The pass with a trace


@pytest.mark.parametrize("n", [1, 7, 48])
def test_the_pass_with_a_trace_gives_the_logits_of_gpt2(n):
    params, ids = random_params(3), some_ids(n)
    logits = record.unembed(trace(ids, params)[-1].resid_post, params, TINY)
    close(logits, gpt2.gpt2(ids, **params, hparams=TINY))
    exact = Pass(ids, params, TINY)
    close(logits, exact.logits(exact.streams[-1]), 1e-4)


def test_a_trace_has_the_activations_of_each_block(tiny_params, truth):
    traces = trace(IDS, tiny_params)
    close(streams_of(traces), truth.streams)
    for i, block in enumerate(traces):
        close(block.resid_pre, truth.streams[2 * i])
        close(block.resid_mid, truth.streams[2 * i + 1])
        close(block.resid_post, truth.streams[2 * i + 2])
        close(block.pattern, truth.patterns[i])
        close(block.v, truth.values[i])
        close(block.z, truth.patterns[i] @ truth.values[i])
        close(block.neurons, truth.neurons[i])


def test_the_steps_of_the_stream_have_names(tiny_params):
    last = record.residual_streams(trace(IDS, tiny_params), rows=slice(-1, None))
    assert [*last][:4] == ["embedding", "block 0 attention", "block 0 MLP", "block 1 attention"]
    assert len(last) == 2 * TINY["n_layer"] + 1
    whole = record.residual_streams(trace(IDS, tiny_params))
    assert all(np.array_equal(last[name], x[-1:]) for name, x in whole.items())


def test_attention_of_a_long_text_is_computed_in_pieces():
    hparams = {**TINY, "n_ctx": LONG}
    params, ids = random_params(5, **hparams), some_ids(LONG)
    exact = Pass(ids, params, hparams)
    for block, pattern in zip(trace(ids, params, hparams), exact.patterns):
        found = block.pattern
        close(found, pattern, 1e-4)
        close(found.sum(-1), 1)
        assert not np.triu(found, 1).any()


def test_every_activation_is_float32(tiny_params):
    for block in trace(IDS, tiny_params):
        assert {x.dtype for x in vars(block).values()} == {np.dtype(np.float32)}


def test_the_trace_has_the_activations_of_transformers(shipped, golden):
    _, hparams, params = shipped
    traces = trace(golden["ids"], params, hparams)
    patterns = [block.pattern for block in traces]
    close(patterns, golden["weights"], 2e-6)
    streams = streams_of(traces)
    close(streams[:, -1], golden["stream"], 1e-4)
    for x, ids, p in zip(streams, golden["lens_ids"], golden["lens_p"]):
        found_ids, found_p = record.logit_lens(x, params, hparams)
        close(found_p[:, :2], p, 1e-4)
        assert np.mean(found_ids[:, 0] == ids[:, 0]) > 0.96
    close(record.unembed(streams[-1, -1:], params, hparams)[0], golden["logits"], 1e-4)


def test_the_lens_reads_the_stream_as_if_the_model_ended_there(tiny_params, truth):
    for x, exact in zip(streams_of(trace(IDS, tiny_params)), truth.streams):
        logits = truth.logits(exact)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        best = np.argsort(-p)[:, :5]
        ids, found = record.logit_lens(x, tiny_params, TINY)
        assert (ids == best).all()
        close(found, np.take_along_axis(p, best, 1))
        some = np.arange(2 * len(IDS)).reshape(-1, 2)
        ids, found = record.logit_lens(x, tiny_params, TINY, some)
        assert (ids == some).all()
        close(found, np.take_along_axis(p, some, 1))


# Attribution and ablation


def test_contributions_add_up_to_the_logit(recorded, golden):
    arrays, fits = recorded
    assert fits["attribution"] == slice(0, len(golden["ids"]))
    sums = arrays["attribution"].sum(-1)[:, :-1]
    close(sums, arrays["candidate_logits"], 1e-4)
    close(sums[-1], golden["logits"][arrays["candidates"][-1]], 1e-4)


def test_a_contribution_is_what_the_part_adds_to_the_logit(tiny_params, truth):
    """Compare each part by itself, for two tokens and for the mean of all tokens."""
    at, candidates = slice(2, 9), np.tile([3, 70], (7, 1))
    traces = trace(IDS, tiny_params)
    found = record.direct_logit_attribution(IDS, at, candidates, traces, tiny_params, TINY)
    n, p = len(IDS), truth.params
    parts, bias = [p["wte"][IDS], p["wpe"][:n]], 0
    for i, block in enumerate(p["blocks"]):
        parts += [*truth.written[i], truth.mlp[i] - block["mlp"]["c_proj"]["b"]]
        bias = bias + block["attn"]["c_proj"]["b"] + block["mlp"]["c_proj"]["b"]
    logits = np.stack([truth.contribution(part) for part in parts], -1)  # [n, n_vocab, parts]
    biases = truth.contribution(np.tile(bias, (n, 1))) + p["wte"] @ p["ln_f"]["b"]
    logits = np.concatenate([logits, biases[..., None]], -1)[at]
    assert found.shape == (7, 3, 2 + TINY["n_layer"] * (TINY["n_head"] + 1) + 1)
    close(found[:, :2], logits[:, [3, 70]], 1e-4)
    close(found[:, 2], logits.mean(1), 1e-4)


@pytest.mark.parametrize("name, whole", [("knocked", False), ("layers", True)])
def test_ablation_agrees_with_transformers_without_that_part(name, whole, shipped, golden):
    _, hparams, params = shipped
    traces = trace(golden["ids"], params, hparams)
    best = golden["best"][:, None]
    streams = record.ablate_parts(traces, whole, params, hparams)
    found = [record.without_parts(x, best, params, hparams) for x in streams]
    close(np.concatenate(found)[..., 0], golden[name], 1e-4)


@pytest.mark.parametrize("whole", [False, True])
def test_ablation_leaves_out_one_part_after_another(whole, tiny_params):
    """The bias of a part is left out, too. A head has none of its own."""
    names = ["attention"] if whole else [*range(TINY["n_head"])]
    parts = [(i, name) for i in range(TINY["n_layer"]) for name in [*names, "MLP"]]
    blocks = record.ablate_parts(trace(IDS, tiny_params), whole, tiny_params, TINY)
    streams = np.concatenate(list(blocks))
    assert len(streams) == len(parts)
    for x, part in zip(streams, parts):
        close(x, Pass(IDS, tiny_params, TINY, without=part).streams[-1], 1e-4)


def test_the_record_has_the_probabilities_of_the_candidates_without_a_part(tiny_record):
    found = (tiny_record["ablation"] / 65535) ** 2  # [parts, n, c]
    params, candidates = random_params(8), tiny_record["candidates"]
    for part, name in (3, (0, 3)), (5, (0, "MLP")), (10, (1, 4)):
        exact = Pass(IDS, params, TINY, without=name)
        logits = exact.logits(exact.streams[-1])
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        close(found[part], np.take_along_axis(p, candidates, 1), 1e-4)


# Lengths, values and neurons


def test_the_lengths_of_the_stream_and_of_what_each_half_block_adds(tiny_record, truth):
    """The length of a difference is not the difference of two lengths."""
    lengths = [np.sqrt((x**2).sum(-1)) for x in truth.streams]
    close(tiny_record["resid_norms"], lengths, 1e-4)
    added = [after - before for before, after in zip(truth.streams, truth.streams[1:])]
    close(tiny_record["added_norms"], [np.sqrt((x**2).sum(-1)) for x in added], 1e-4)


def test_the_norm_of_a_value_is_that_of_its_output_by_the_head(tiny_record, truth):
    for i, found in enumerate(tiny_record["value_norms"]):
        norms = truth.value_norms(i)
        close((found / 65535) ** 2, norms / norms.max(-1, keepdims=True), 3e-5)
        before = np.sqrt((truth.values[i] ** 2).sum(-1))
        assert abs(before / before.max(-1, keepdims=True) - (found / 65535) ** 2).max() > 0.1


def test_a_head_without_output_has_values_of_norm_0():
    params = random_params(8)
    params["blocks"][0]["attn"]["c_proj"]["w"][:8] = 0
    with np.errstate(all="raise"):
        arrays, _ = record.record(IDS, 4, None, params, TINY)
    assert not arrays["value_norms"][0, 0].any() and arrays["value_norms"][0, 1].any()


@pytest.mark.parametrize("n_inner", [160, 10])
def test_the_strongest_neurons_are_those_that_add_most(n_inner):
    """With ten neurons all of them are shown, and some activations are negative."""
    hparams = {**TINY, "n_inner": n_inner}
    params = random_params(8, **hparams)
    arrays, exact = record.record(IDS, 4, 7, params, hparams)[0], Pass(IDS, params, hparams)
    for i in range(TINY["n_layer"]):
        rows = [exact.written_by_neurons(i, row) for row in range(len(IDS))]
        written = np.sqrt((np.stack(rows) ** 2).sum(-1))  # [n, n_inner]
        best = np.argsort(-written)[:, :16]
        assert (arrays["top_neurons"][i] == best).all()
        close(arrays["activations"][i], np.take_along_axis(exact.neurons[i], best, 1))
        found = (arrays["neuron_norms"][i] / 65535) ** 2
        close(found, np.take_along_axis(written, best, 1) / written.max(), 3e-5)
    assert (arrays["activations"] < 0).any() == (n_inner == 10)


def test_a_neuron_promotes_the_tokens_that_its_row_points_to(tiny_record, truth):
    numbers = tiny_record["promoting_neurons"].tolist()
    shown = {i * 160 + x for i, rows in enumerate(tiny_record["top_neurons"]) for x in rows.flat}
    assert sorted(shown) == numbers
    for number, tokens in zip(numbers, tiny_record["promoted_tokens"]):
        assert tokens.tolist() == truth.promoted(*divmod(number, 160))[:5].tolist()


def test_promoted_tokens_are_computed_for_the_strongest_of_too_many_neurons(
    tiny_params, tiny_record, monkeypatch
):
    monkeypatch.setattr(data, "MAX_PROMOTING", 3 * 4)
    found = record.promoted_tokens(tiny_record["top_neurons"], tiny_params)
    numbers = found["promoting_neurons"].reshape(3, 4)
    for i, strongest in enumerate(tiny_record["top_neurons"]):
        first = dict.fromkeys(strongest[:, 0].tolist())  # the strongest of each token
        assert numbers[i].tolist() == sorted(i * 160 + x for x in [*first][:4])


# The distribution of the next token


def test_the_next_token_is_always_among_the_candidates(recorded, tiny_record, golden):
    arrays, ids = recorded[0], golden["ids"]
    assert all(next_id in row for next_id, row in zip(ids[1:], arrays["candidates"]))
    best = np.argsort(-golden["logits"])[:10]
    assert arrays["candidates"][-1].tolist() == best.tolist()
    assert 7 in tiny_record["candidates"][-1]  # the id that follows IDS


def test_the_distribution_comes_from_the_last_stream(tiny_record, truth):
    logits = truth.logits(truth.streams[-1])
    order = np.argsort(-logits)
    assert (tiny_record["best"] == order).all()  # all 101 tokens
    close(tiny_record["best_logits"], np.take_along_axis(logits, order, 1), 1e-4)
    close(tiny_record["log_sum_exp"], np.log(np.exp(logits).sum(-1)), 1e-4)
    for i, (row, candidates) in enumerate(zip(logits, tiny_record["candidates"])):
        next_id = [*IDS[1:], 7][i]
        expected = order[i][:10].tolist()
        if next_id not in expected:
            expected[-1] = next_id
        assert candidates.tolist() == expected
        close(tiny_record["candidate_logits"][i], row[expected], 1e-4)
    close(tiny_record["prompt_logits"], logits[3], 1e-4)


def test_the_bins_of_a_distribution_are_exact_enough(recorded, golden):
    """At any temperature, 200 logits and the bins give the denominator of the probabilities."""
    arrays = recorded[0]
    logits = golden["logits"].astype(np.float64)
    counts, means = arrays["bin_counts"][-1], arrays["bin_means"][-1]
    assert counts.sum() + 200 == len(logits)
    best = arrays["best_logits"][-1].astype(np.float64)
    tail = best[-1] - (np.arange(len(counts)) + (means + 0.5) / 256) / 16
    for temperature in 0.1, 0.5, 1, 2, 10:
        largest = logits.max()
        exact = np.exp((logits - largest) / temperature).sum()
        kept = np.exp((best - largest) / temperature).sum()
        kept += (counts * np.exp((tail - largest) / temperature)).sum()
        assert abs(kept / exact - 1) < 1e-4


# Packing


def test_rounding_loses_little(recorded, golden):
    weights = (recorded[0]["pattern"] / 65535.0) ** 2
    exact = golden["weights"][:, :, np.tri(len(golden["ids"]), dtype=bool)]
    close(weights, exact, 3e-5)


def test_queries_and_keys_are_rounded_to_32767_steps(recorded, shipped, golden):
    _, hparams, params = shipped
    arrays = recorded[0]
    for i, block in enumerate(trace(golden["ids"], params, hparams)):
        for which, exact in enumerate((block.q, block.k)):
            step = arrays["qk_step"][i, which][:, None]  # [h, 1, d]
            assert (abs(arrays["qk"][i, which]).max(1) == 32767).all()
            assert (abs(arrays["qk"][i, which] * step - exact) <= 0.51 * step).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.float32, np.int64])
def test_packing_loses_nothing(dtype):
    x = np.random.default_rng(0).integers(0, 100, size=(3, 0, 2)).astype(dtype)
    assert unpack(data.pack(x)).shape == x.shape
    x = np.random.default_rng(0).integers(0, 100, size=(3, 5, 2)).astype(dtype) * 3
    assert (unpack(data.pack(x[:, ::2])) == x[:, ::2]).all()


def test_large_ids_take_four_bytes():
    x = np.array([0, 65535, 65536])
    assert data.pack(x[:2])["type"] == "u2" and data.pack(x)["type"] == "u4"
    assert unpack(data.pack(x)).tolist() == x.tolist()


def test_a_token_of_more_than_65535_bytes_is_packed(tmp_path, small):
    vocabulary = small.vocabulary._replace(
        ids={**small.vocabulary.ids, "x" * 70_000: small.n_vocab}
    )
    hparams = {**LETTERS, "n_vocab": small.n_vocab + 1}
    save_model(tmp_path / "long", hparams, random_params(3, **hparams), vocabulary)
    args = "low", *model_options(tmp_path, "long"), "--page", tmp_path / "page.html"
    done = run("explain.py", *args, "--n_tokens_to_generate", "1")
    assert done.returncode == 0, done.stderr
    _, arrays = read_page((tmp_path / "page.html").read_bytes())
    assert (
        arrays["token_lengths"][-1] == 70_000 and b"x" * 70_000 in arrays["token_bytes"].tobytes()
    )


def test_large_contributions_are_exact():
    """Contributions are rounded to a multiple of 2^-20 and stay float32."""
    params = random_params(8)
    params["ln_f"]["g"] *= 10_000
    arrays, fits = record.record(IDS, 4, None, params, TINY)
    sums = arrays["attribution"].astype(np.float64).sum(-1)[:, :-1]
    assert abs(sums).max() > 5_000
    np.testing.assert_allclose(sums, arrays["candidate_logits"][fits["attribution"]], rtol=1e-4)


@pytest.mark.parametrize("n", [1, 40, 300, 1024])
@pytest.mark.parametrize("size", SIZES)
def test_a_page_stays_small_at_any_size_and_length(size, n):
    """Count the bytes before compression; base64 writes 3 bytes as 4."""
    n_layer, n_head, n_embd = SIZES[size]
    hparams = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "n_vocab": 50257}
    fits = data.what_fits(n, max(1, n // 2), hparams)
    m = {name: x.stop - x.start for name, x in fits.items() if isinstance(x, slice)}
    n_parts = n_layer * (n_head + 1)
    if fits["strongest"]:
        weights = n_layer * n_head * m["pattern"] * fits["strongest"] * 4
    else:
        weights = n_layer * n_head * n * (n + 1)
    rest = m["attribution"] * (11 * 4 * (n_parts + 3) + 20 * fits["passes"])
    rest += len(fits["steps"]) * m["lens"] * 20
    rest += n_layer * n * (fits["neurons"] * 8 + n_head * 2 + 16)
    rest += n * (60 + fits["best"] * 6 + fits["bins"] * 27 * 3) + 14 * 8192 + 13 * 50257
    products = 2 * n_layer * n_embd * (m["qk"] + 2) * 2
    assert (weights + products + rest) * 4 / 3 < 1.1 * data.MAX_BYTES
    assert all(0 <= x.start < x.stop <= n for x in fits.values() if isinstance(x, slice))
    if n <= 40 or (size == "124M" and n <= 100):
        n_qk = {"774M": 33, "1558M": 20}.get(size, n)  # Their queries and keys take most space.
        everything = {"lens": n, "pattern": n, "qk": min(n, n_qk), "attribution": n}
        assert m == everything and not fits["strongest"]
        assert (fits["best"], fits["neurons"], len(fits["steps"])) == (200, 16, 2 * n_layer + 1)


def test_less_is_ablated_if_it_would_take_minutes(monkeypatch):
    hparams = {"n_layer": 4, "n_head": 3, "n_embd": 64, "n_vocab": 1000}
    operations = 12 * 4 * 64**2 * 20 + 2 * 20 * 64 * 1000  # in one pass over 20 tokens
    for minutes, expected in (
        (16 * operations, (16, False)),  # each head and MLP
        (16 * operations - 1, (8, True)),  # each attention and MLP
        (8 * operations / 5 + 1, (8, True)),
        (8 * operations / 5, (0, True)),
    ):
        monkeypatch.setattr(data, "A_MINUTE", minutes)
        fits = data.what_fits(20, 5, hparams)
        assert (fits["passes"], fits["whole_layers"]) == expected


def test_the_lens_of_a_long_text_shows_only_whole_blocks():
    hparams = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_vocab": 50257}
    assert data.what_fits(1040, 9, hparams)["steps"] == list(range(25))
    assert data.what_fits(1041, 9, hparams)["steps"] == list(range(0, 25, 2))


def test_every_page_contains_the_end_of_the_prompt():
    hparams = {"n_layer": 48, "n_head": 25, "n_embd": 1600, "n_vocab": 50257}
    for n, n_prompt in (1024, 1), (1024, 500), (1024, 1024), (300, 40):
        fits = data.what_fits(n, n_prompt, hparams)
        assert all(x.start < n_prompt <= x.stop for x in fits.values() if isinstance(x, slice))


# The command


def lines(*args, **options):
    done = run("explain.py", *args, **options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    return done.stdout.decode().split("\n")


SHIPPED = "--model_size", "shakespeare", "--models_dir", ROOT / "models"


def test_the_terminal_shows_the_tokens_the_next_token_and_the_lens(shipped):
    encoder, hparams, params = shipped
    text = lines("To be, or not to", *SHIPPED, "--top", "4")
    assert text[1] == "  'To' 397  ' be' 305  ',' 12  ' or' 530  ' not' 322  ' to' 288"
    exact = Pass(encoder.encode("To be, or not to"), params, hparams)
    p = gpt2.probabilities(exact.logits(exact.streams[-1])[-1])
    for line, id_ in zip(text[4:8], np.argsort(-p)):
        bar = "█" * round(40 * p[id_] / p.max())
        assert line == f"  {100 * p[id_]:5.1f} %  {encoder.decode([id_])!r:15} {bar}"
    assert text[8] == "" and len(text[11:-1]) == 2 * hparams["n_layer"] + 1
    names = [f"block {i} {half}" for i in range(6) for half in ("attention", "MLP")]
    for line, name, x in zip(text[11:-1], ["embedding", *names], exact.streams):
        p = gpt2.probabilities(exact.logits(x)[-1])
        best = [f"{100 * p[i]:5.1f} % {encoder.decode([i])!r:11}" for i in np.argsort(-p)[:3]]
        assert line == f"  {name:19}{' '.join(best)}".rstrip()
    assert "15.5 % ' be'" in text[-2]


def test_the_legend_names_the_step_of_the_lesson_that_explains_the_lens():
    legend = lines("To be", *SHIPPED)
    (step,) = (re.search(r"step (\d+)", line)[1] for line in legend if "logit lens" in line)
    lesson = (ROOT / "lesson" / "README.md").read_text("utf-8")
    before = lesson[: lesson.index("*logit lens*")]
    assert re.findall(r"^## (\d+) ", before, re.MULTILINE)[-1] == step


def width_of(text):
    """Return the width of a text in a terminal: a wide character has 2 columns, an accent 0."""
    chars = [char for char in text if unicodedata.category(char)[0] != "M"]
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in chars)


PROMPTS = {
    "two tokens": "ROMEO:",
    "every kind of character": "naïve ☃ 😀 日本語 ｶ́",
    "empty": "",
    "a space": " ",
    "longer than the context": "To be, or not to be: that is the question. 日本語 " * 30,
}


@pytest.fixture(scope="module")
def wide():
    """Return a random model whose tokens are long words, Japanese, emoji and single bytes."""
    words = "incomprehensibilities 日本語日本語日本語日本語 😀😀😀😀 ｶﾞｷﾞｸﾞ naïve " * 4
    encoder = learn_bpe([words], 500)
    hparams = {**LETTERS, "n_layer": 12, "n_vocab": encoder.n_vocab}
    params = random_params(1, **hparams)
    params["wte"][257:] *= 2  # so that the model predicts long tokens more often
    return encoder, hparams, params


@pytest.fixture
def view(monkeypatch, shipped):
    """Return a function that returns explain.py's lines for a prompt and a width in columns."""

    def view(prompt, n_columns, model=shipped, *options):
        monkeypatch.setenv("COLUMNS", str(n_columns))
        args = explain.parser().parse_args([prompt, *options])
        args.sampling = cli.sampling_options(args)
        ids = cli.prompt_ids(prompt, model[0], model[1])
        return "\n".join(explain.terminal_view(ids, *model, args)).split("\n")

    return view


CELL = re.compile(r" *(\d+\.\d) % (\S.*?)(?= +\d+\.\d % | *$)")


@pytest.mark.parametrize("n_columns", [40, 57, 80, 120])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("model", ["shipped", "wide"])
def test_no_line_is_wider_than_the_terminal(prompt, n_columns, model, view, request):
    model = request.getfixturevalue(model)
    text = view(prompt, n_columns, model, "--top", "50")
    assert max(map(width_of, text)) <= n_columns
    rows = text[-(2 * model[1]["n_layer"] + 1) :]
    ends = {tuple(width_of(line[: x.end()]) for x in re.finditer(" % ", line)) for line in rows}
    assert ends == {tuple(range(29, n_columns - 9, 20))}  # the guesses stay aligned


@pytest.mark.parametrize("n_columns, n_guesses", [(20, 1), (79, 2), (80, 3), (99, 3), (300, 5)])
def test_the_lens_has_as_many_guesses_as_fit(n_columns, n_guesses, view, wide):
    """Long tokens are cut, but probabilities are not."""
    encoder, hparams, params = wide
    text = view("naïve 日本語", n_columns, wide)
    rows = text[-(2 * hparams["n_layer"] + 1) :]
    exact = Pass(encoder.encode("naïve 日本語"), params, hparams)
    n_cut = n_wide = 0
    for line, x in zip(rows, exact.streams):
        p = gpt2.probabilities(exact.logits(x)[-1])
        cells = CELL.findall(line[21:])
        assert [cell[0] for cell in cells] == [f"{x:.1f}" for x in -np.sort(-100 * p)[:n_guesses]]
        for (_, shown), id_ in zip(cells, np.argsort(-p)):
            token = explain.spell(encoder, [id_])
            n_wide += width_of(token) > len(token)
            if width_of(token) > 11:
                assert shown[-1] == "…" and token.startswith(shown[:-1])
                assert 10 <= width_of(shown) <= 11
                n_cut += 1
            else:
                assert shown == token
    assert n_cut and n_wide


def test_tokens_of_one_character_stand_together(view):
    text = view("naïve ☃ 😀 日本語", 300)
    assert text[1] == (
        "  'n' 78  'a' 65  'ï' 128 108  've' 295  ' ' 221  '☃' 159 247 226  ' ' 221"
        "  '😀' 173 254 247 223  ' ' 221  '日' 163 246 99  '本' 163 251 106  '語' 165 104 253"
    )


def test_wide_characters_have_two_columns_and_accents_have_none():
    widths = {
        "naïve": 5,
        "nai\u0308ve": 5,
        "日本語": 6,
        "ｶ": 1,
        "😀": 2,
        "☃": 1,
        "か\u3099": 2,
        "": 0,
    }
    assert {text: explain.columns(text) for text in widths} == widths
    assert explain.fit("ne\u0301e", 4) == "ne\u0301e " and explain.fit("日本語", 4) == "日… "


def test_part_of_a_character_is_shown_as_bytes(shipped):
    """A prompt that is too long may begin inside a character, and a token may be part of one."""
    snowman, comma = shipped[0].encode("☃"), shipped[0].encode(",")
    found = [*explain.prompt_lines([*snowman[1:], *comma, *snowman], shipped[0], 80)]
    assert found == [r"  b'\x98\x83' 247 226  ',' 12  '☃' 159 247 226"]
    assert explain.spell(shipped[0], snowman[:2]) == r"b'\xe2\x98'"


@pytest.mark.parametrize("n_columns", [40, 80])
def test_the_prompt_is_wrapped_between_tokens(n_columns, view, shipped):
    prompt = PROMPTS["longer than the context"]
    text = view(prompt, n_columns)
    found = text[1 : text.index("")]
    assert len(found) > 20 and all(re.match("  ['\"b]", line) for line in found)
    (whole,) = explain.prompt_lines(shipped[0].encode(prompt)[-256:], shipped[0], 10_000)
    assert "".join(found) == whole
    for line, following in zip(found, found[1:]):
        first = re.match(r"  ('.*?'|\".*?\")( \d+)+", following)[0]
        assert width_of(line + first) > n_columns  # the next token does not fit


def test_a_long_token_of_the_prompt_is_cut_but_not_its_id(small):
    ids = {**small.vocabulary.ids, "x" * 70_000: small.n_vocab}
    encoder = Encoder(small.vocabulary._replace(ids=ids))
    id_ = small.n_vocab
    assert [*explain.prompt_lines([id_], encoder, 40)] == [f"  '{'x' * 32}… {id_}"]
    # Twenty bytes from inside characters, which are invalid as a text: their ids fill the line.
    ids = small.encode("日")[1:2] * 20
    (line,) = explain.prompt_lines(ids, small, 40)
    assert line == f"  … {' '.join(map(str, ids))}"


@pytest.mark.skipif(os.name == "nt", reason="terminals of POSIX")
@pytest.mark.parametrize("n_columns", [40, 120])
def test_the_width_is_that_of_the_terminal(n_columns, view):
    import fcntl
    import pty
    import termios

    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 50, n_columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    args = command("explain.py", "ROMEO: ☃", *SHIPPED)
    with subprocess.Popen(args, stdout=end, env=env):
        os.close(end)
        printed = b""
        with contextlib.suppress(OSError):  # Linux reports the end of a terminal as an error
            while data := os.read(terminal, 1 << 16):
                printed += data
    os.close(terminal)
    assert printed.decode().split("\r\n")[:-1] == view("ROMEO: ☃", n_columns)


def test_the_terminal_applies_top_k_and_the_temperature():
    text = lines("To be, or not to", *SHIPPED, "--top_k", "2", "--temperature", "0.5")
    assert text[4].startswith("   95") and text[6] == ""


def test_the_terminal_applies_the_repetition_penalty(shipped):
    encoder, hparams, params = shipped
    prompt = "long live the king, long live the king, long live"
    text = lines(prompt, *SHIPPED, "--repetition_penalty", "1.8", "--top", "3")
    ids = encoder.encode(prompt)
    exact = Pass(ids, params, hparams)
    plain = exact.logits(exact.streams[-1])[-1]
    p = gpt2.probabilities(gpt2.penalize(plain, ids, 1.8))
    best = np.argsort(-p)[:3]
    assert best.tolist() != np.argsort(-plain)[:3].tolist()  # so that the penalty has an effect
    start = text.index("most likely next tokens") + 1
    for line, id_ in zip(text[start : start + 3], best):
        assert line.startswith(f"  {100 * p[id_]:5.1f} %  {encoder.decode([id_])!r}")


@pytest.mark.parametrize("text", [b"", b"\xe2\x98\x83", b"\0\x1b[31m", b"a\r\n"])
def test_any_prompt_from_standard_input(text):
    shown = lines("-", *SHIPPED, stdin=text)[1]
    assert "\x1b" not in shown and "\0" not in shown
    assert text or shown == "  '<|endoftext|>' 0"
    assert text != b"\xe2\x98\x83" or shown == "  '☃' 159 247 226"
    assert text != b"a\r\n" or len(shown.split()) == 2


def test_standard_output_can_be_the_page(models_dir, tmp_path):
    args = "low", *model_options(models_dir), "--n_tokens_to_generate", "2"
    done = run("explain.py", *args, "--page", "-")
    assert done.returncode == 0 and done.stderr == b""
    path = tmp_path / "page.html"
    other = run("explain.py", *args, "--page", path)
    assert other.stdout == b"" and str(path).encode() in other.stderr
    assert path.read_bytes() == done.stdout
    facts, arrays = read_page(done.stdout)
    assert facts["n_prompt"] == len(facts["ids"]) - 2
    assert arrays["token_lengths"].sum() == len(arrays["token_bytes"])


def test_a_page_does_not_tell_how_the_model_was_trained():
    """Pages are passed on, and training.json may hold paths of this computer."""
    facts, _ = read_page(run("explain.py", "a", *SHIPPED, "--page", "-").stdout)
    assert facts["hparams"]["n_layer"] == 6 and "training" not in facts["hparams"]


@pytest.mark.parametrize("error, status", [(ValueError("damaged"), 1), (KeyboardInterrupt(), 130)])
def test_a_page_is_replaced_whole_or_not_at_all(error, status, models_dir, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("before")
    args = ["low", *map(str, model_options(models_dir)), "--page", str(path)]

    def fails(*args, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(explain, "build_page", fails)
        assert explain.main(args) == status
    assert path.read_text() == "before" and [*tmp_path.iterdir()] == [path]
    assert explain.main(args) == 0
    assert path.read_bytes().startswith(b"<!doctype html>") and [*tmp_path.iterdir()] == [path]


@pytest.fixture
def write_page(models_dir):
    """Return a function that runs explain.py --page: its exit status, errors and output."""

    def write_page(path, **streams):
        args = command("explain.py", "low", *model_options(models_dir), "--page", path)
        streams = {"stdout": subprocess.PIPE, **streams}
        done = subprocess.run(args, stderr=subprocess.PIPE, timeout=60, **streams)
        return done.returncode, done.stderr.decode(), done.stdout

    return write_page


def is_page(data):
    return data.startswith(b"<!doctype html>") and data.endswith(b"</html>\n")


def test_a_page_keeps_the_mode_of_the_file_and_the_files_beside_it(write_page, tmp_path):
    n = 50 if os.name == "nt" else 250  # Windows limits whole paths
    path, other = tmp_path / ("p" * n + ".html"), tmp_path / "page.tmp"
    for file in path, other:
        file.write_text("mine")
        file.chmod(0o600)
    assert write_page(path)[0] == 0 and is_page(path.read_bytes())
    assert os.name == "nt" or path.stat().st_mode & 0o777 == 0o600
    assert other.read_text() == "mine" and {*tmp_path.iterdir()} == {path, other}


@pytest.mark.skipif(os.name == "nt", reason="links take a right on Windows")
@pytest.mark.parametrize("exists", [True, False])
def test_a_page_is_written_to_the_target_of_a_link(exists, write_page, tmp_path):
    link, target = tmp_path / "link", tmp_path / "folder" / "target"
    target.parent.mkdir()
    link.symlink_to(target)
    if exists:
        target.write_text("before")
    assert write_page(link)[0] == 0
    assert link.is_symlink() and is_page(target.read_bytes())
    assert [*target.parent.iterdir()] == [target]


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices of POSIX")
def test_a_page_is_written_into_a_pipe_or_a_device(write_page, tmp_path):
    import pty
    import tty

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(pipe.read_bytes)
        assert write_page(pipe)[0] == 0 and is_page(reader.result(60))
    assert pipe.is_fifo() and [*tmp_path.iterdir()] == [pipe]
    terminal, end = pty.openpty()
    tty.setraw(end)
    name = os.ttyname(end)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(write_page, name)
        data = b""
        while not data.endswith(b"</html>\n"):
            data += os.read(terminal, 1 << 16)
        assert done.result(60)[0] == 0 and is_page(data)
    assert stat.S_ISCHR(os.stat(name).st_mode)
    os.close(end)
    os.close(terminal)


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="no /dev/stdout")
def test_a_page_for_dev_stdout_is_on_standard_output(write_page, tmp_path):
    status, _, out = write_page("/dev/stdout")
    assert status == 0 and is_page(out)
    with open(tmp_path / "out", "wb") as file:
        assert write_page("/dev/stdout", stdout=file)[0] == 0
    assert is_page((tmp_path / "out").read_bytes())


@pytest.mark.parametrize(
    "name", ["folder", "nowhere/page.html", "p" * 256, "/dev/full", "locked/p"]
)
def test_the_error_for_a_page_that_cannot_be_written_is_one_line(name, write_page, tmp_path):
    if name == "/dev/full" and not os.path.exists(name):
        pytest.skip("no /dev/full")
    if name == "locked/p" and (os.name == "nt" or os.geteuid() == 0):
        pytest.skip("root may write everywhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "locked").mkdir(0o555)
    status, errors, out = write_page(tmp_path / name)
    assert (status, out, errors.count("\n")) == (1, b"", 1)
    assert errors.startswith("explain.py: error: ") and name in errors
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("name", ["folder", "folder/nowhere/page.html"])
def test_a_page_that_cannot_be_written_is_not_computed(
    name, models_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(explain, "make_page", None)
    (tmp_path / "folder").mkdir()
    args = ["low", *map(str, model_options(models_dir)), "--page", str(tmp_path / name)]
    assert explain.main(args) == 1 and name in capsys.readouterr().err


def test_a_page_that_would_be_too_large_is_not_written(models_dir, tmp_path, monkeypatch, capsys):
    path = tmp_path / "page.html"
    args = ["low", *map(str, model_options(models_dir)), "--page", str(path)]
    assert explain.main(args) == 0
    n_bytes = path.stat().st_size
    path.unlink()
    monkeypatch.setattr(data, "MAX_BYTES", n_bytes - 1)
    assert explain.main(args) == 1
    assert "shorter text" in capsys.readouterr().err and not path.exists()
    monkeypatch.setattr(data, "MAX_BYTES", n_bytes)
    assert explain.main(args) == 0


def test_the_name_of_a_model_cannot_end_the_data_of_a_page(tiny):
    facts = {"model": "</script><b>", "ids": [97], "n_prompt": 1}
    page = data.build_page(facts, {}, tiny[0])
    assert page.count(b"</script>") == 2 and page.count(b"<b>") == 0
    assert read_page(page)[0]["model"] == facts["model"]


@pytest.mark.parametrize(
    "args, status, message",
    [
        (["low", "--page", "nowhere/page.html"], 1, "nowhere"),
        ([], 2, "prompt"),
        (["low", "--top", "0"], 2, "--top"),
        (["low", "--page", ""], 2, "--page: it must not be empty"),
        (["low", "--temperature", "0", "--top_k", "3"], 2, "--top_k"),
        (["low", "--model_size", "nothing"], 2, "unknown model"),
    ],
)
def test_an_error_is_one_line(args, status, message, models_dir):
    done = run("explain.py", *model_options(models_dir), *args)
    assert done.returncode == status and message in done.stderr.decode().split("\n")[-2]
    assert done.stdout == b"" and b"Traceback" not in done.stderr


def test_a_stop_and_the_end_of_the_context_end_a_page(models_dir, tiny):
    options = *model_options(models_dir), "--temperature", "1", "--seed", "2", "--page", "-"
    facts, _ = read_page(run("explain.py", "low", *options, "--n_tokens_to_generate", "-1").stdout)
    assert len(facts["ids"]) <= 32 and not facts["beyond"]
    text = tiny[0].decode(facts["ids"][facts["n_prompt"] :])
    stop = text[3]
    facts, _ = read_page(run("explain.py", "low", *options, "--stop", stop).stdout)
    assert facts["ended"] == "stop"
    before = text[: text.index(stop)]
    assert before.startswith(tiny[0].decode(facts["ids"][facts["n_prompt"] :]))


def test_the_token_beyond_the_context_is_among_the_candidates(models_dir):
    """At temperature 20, it is not one of the ten most likely tokens."""
    options = *model_options(models_dir), "--temperature", "20", "--seed", "1", "--page", "-"
    done = run("explain.py", "low " * 30, *options, "--n_tokens_to_generate", "1")
    facts, arrays = read_page(done.stdout)
    assert len(facts["ids"]) == 32 and len(facts["beyond"]) == 1
    assert facts["beyond"][0] in arrays["candidates"][-1]
    assert facts["beyond"][0] not in arrays["best"][-1, :10]


# Limits


def test_logits_far_below_the_others_are_in_the_last_bin():
    """50 of 300 logits are kept; any logit that is more than 64 below these is in bin 1,023."""
    logits = np.linspace(0, -200, 300, dtype=np.float32)
    found = record.next_token(logits, None, {"best": 50, "bins": 16})
    distances = (logits[49] - logits[50:].astype(float)) * 16
    counts = np.bincount(np.minimum(distances, 1023).astype(int), minlength=1024)
    assert found["bin_counts"].tolist() == counts.tolist() and counts[-1] > 100
    assert found["bin_means"].shape == (1024,) and found["bin_means"][-1] == 255
    for i in np.flatnonzero(counts[:-1]):
        mean = np.mean([x - i for x in distances if i <= x < i + 1])
        assert abs(found["bin_means"][i] - 256 * mean) < 1.5


def test_neurons_of_a_thin_mlp_have_their_own_numbers():
    hparams = {**TINY, "n_inner": 10}
    arrays, _ = record.record(IDS, 4, None, random_params(8, **hparams), hparams)
    numbers = {10 * i + x for i, rows in enumerate(arrays["top_neurons"]) for x in rows.flat}
    assert arrays["promoting_neurons"].tolist() == sorted(numbers) == list(range(30))


def test_parts_that_add_nothing_have_length_0():
    params = random_params(8)
    params["blocks"][0]["mlp"]["c_proj"]["w"][...] = 0
    for x in params["blocks"][0]["attn"]["c_attn"].values():
        x[..., :8] = 0  # the queries of the first head
    with np.errstate(all="raise"):
        arrays, _ = record.record(IDS, 4, None, params, TINY)
    assert not arrays["neuron_norms"][0].any() and arrays["neuron_norms"][1].any()
    assert not arrays["qk"][0, 0, 0].any() and arrays["qk"][0, 0, 1].any()


def test_attention_patterns_are_in_memory_for_one_block_at_a_time(tiny_params, monkeypatch):
    patterns, record_block = [], record.record_block

    def watched(trace, *args):
        assert [pattern for pattern in patterns if pattern() is not None] == []
        patterns.append(weakref.ref(trace.pattern))
        return record_block(trace, *args)

    monkeypatch.setattr(record, "record_block", watched)
    record.record(IDS, 4, None, tiny_params, TINY)
    assert len(patterns) == TINY["n_layer"]


def test_json_has_the_tokens_and_probabilities_that_the_terminal_shows(shipped):
    args = "To be, or not to", "--model_size", "shakespeare", "--top", "4"
    shown = run("explain.py", *args).stdout.decode()
    data = json.loads(run("explain.py", *args, "--json").stdout)
    encoder, hparams, params = shipped
    ids = encoder.encode(args[0])
    assert [token["id"] for token in data["prompt"]] == ids
    assert [token["text"] for token in data["prompt"]] == [encoder.decode([id_]) for id_ in ids]
    logits = gpt2.gpt2(ids, **params, hparams=hparams)[-1].astype(np.float64)
    log_p = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    best = np.argsort(-log_p, kind="stable")[:4]
    assert [token["id"] for token in data["next"]] == best.tolist()
    for token in data["next"]:
        assert token["log_probability"] == pytest.approx(log_p[token["id"]], abs=1e-5)
        line = f"{100 * math.exp(token['log_probability']):5.1f} %  {token['text']!r}"
        assert line in shown
    done = run("explain.py", *args, "--json", "--page", "x.html")
    assert done.returncode == 2 and b"leave out --page" in done.stderr
