"""gpt2.py against transformers (golden files) and gpt2_pico.py: logits, choices, generated text."""

import copy
import itertools
import json
import math
import pickle
import sys
import weakref

import numpy as np
import pytest
from conftest import (
    EPS,
    FULL,
    GOLDEN,
    LONG,
    N_HEAD,
    N_VOCAB,
    TINY,
    greedy,
    initial_params,
    leaves,
    map_leaves,
    model_options,
    random_params,
    run_copied,
    some_ids,
    watch,
    window_start,
)

import gpt2
import gpt2_pico
from fast import Drafts
from gpt2 import QUERY_BLOCK
from utils import load_encoder_hparams_and_params


def forward(ids, params, **options):
    return gpt2.gpt2(ids, **params, hparams=TINY, **options)


def pico(ids, params):
    return gpt2_pico.gpt2(ids, **params, n_head=N_HEAD, eps=EPS)


def new_cache(n):
    cache = gpt2.new_cache(n, TINY)
    cache[...] = np.nan  # a position that has not been written must not be read
    return cache


def forward_in_chunks(ids, params, sizes, **options):
    """Return the logits of ids that go through the model in chunks, with a cache."""
    cache = new_cache(len(params["wpe"]))
    assert sum(sizes) == len(ids)
    ends = list(itertools.accumulate(sizes, initial=0))
    return np.concatenate(
        [
            forward(ids[i:j], params, cache=cache, n_past=i, **options)
            for i, j in itertools.pairwise(ends)
        ]
    )


@pytest.fixture(scope="module")
def long_params():
    return random_params(seed=5, n_ctx=LONG)


# The model


def test_logits_are_those_of_transformers():
    golden = np.load(GOLDEN / "model.npz")
    for ids, logits in zip(golden["ids"], golden["logits"], strict=True):
        np.testing.assert_allclose(forward(ids, random_params(seed=1)), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name, scales", [("repeats", {}), ("wanders", {"wte": 0.08, "wpe": 1.0})])
def test_124M_logits_and_200_greedy_tokens_are_those_of_transformers(name, scales):
    golden = np.load(GOLDEN / f"model_124M_{name}.npz")
    params = initial_params(int(golden["seed"]), FULL, **scales)
    ids, hparams = golden["ids"], {**FULL, "eos_token_ids": []}
    logits = gpt2.gpt2(ids, **params, hparams=hparams)
    assert logits.shape == (len(ids), FULL["n_vocab"])
    np.testing.assert_allclose(
        logits[np.ix_(golden["positions"], golden["columns"])], golden["logits"], rtol=0, atol=1e-3
    )
    tokens = gpt2.generate(ids[:10].tolist(), params, hparams, len(golden["tokens"]))
    assert list(tokens) == golden["tokens"].tolist()


@pytest.mark.parametrize(
    "case",
    json.loads((GOLDEN / "model_shakespeare.json").read_text("utf-8")),
    ids=lambda case: case["prompt"][:12],
)
def test_shakespeare_text_is_that_of_transformers(case, shared):
    encoder, hparams, params = load_encoder_hparams_and_params(
        str(shared / "models" / "shakespeare-hf"), "models"
    )
    assert encoder.encode(case["prompt"]) == case["ids"]
    tokens = list(gpt2.generate(case["ids"], params, hparams, len(case["tokens"])))
    assert tokens == case["tokens"]
    assert encoder.decode(tokens) == case["text"]


def test_every_chunking_of_a_short_input_gives_the_same_logits():
    params, ids = random_params(seed=6), some_ids(9)
    whole = forward(ids, params)
    for n_cuts in range(len(ids)):
        for cuts in itertools.combinations(range(1, len(ids)), n_cuts):
            sizes = np.diff([0, *cuts, len(ids)])
            np.testing.assert_allclose(
                forward_in_chunks(ids, params, sizes), whole, rtol=0, atol=1e-4, err_msg=str(sizes)
            )


@pytest.mark.parametrize(
    "sizes",
    [
        [QUERY_BLOCK - 1, 1, 1, LONG - QUERY_BLOCK - 1],
        [QUERY_BLOCK, QUERY_BLOCK, LONG - 2 * QUERY_BLOCK],
        [QUERY_BLOCK + 1, LONG - QUERY_BLOCK - 1],
        [1, LONG - 1],
        [LONG - 1, 1],
        [7, LONG - 7],
        [1] * LONG,
        *range(8),
    ],
    ids=lambda sizes: str(sizes)[:20],
)
def test_chunks_of_a_long_input_give_the_same_logits(sizes, long_params):
    if isinstance(sizes, int):  # the seed of random cuts
        rng = np.random.default_rng(sizes)
        cuts = rng.choice(np.arange(1, LONG), size=rng.integers(1, 40), replace=False)
        sizes = np.diff([0, *sorted(cuts), LONG])
    ids = some_ids(LONG)
    np.testing.assert_allclose(
        forward_in_chunks(ids, long_params, sizes), forward(ids, long_params), rtol=0, atol=1e-4
    )


def test_a_cache_can_be_overwritten_from_any_position():
    params, ids, other = random_params(seed=7), some_ids(20), some_ids(20, seed=1)
    cache = new_cache(20)
    forward(np.append(ids[:8], other[8:]), params, cache=cache)  # 12 positions of another text
    after = forward(ids[8:11], params, cache=cache, n_past=8)
    np.testing.assert_allclose(after, forward(ids, params)[8:11], rtol=0, atol=1e-4)


@pytest.mark.parametrize("n_logits", [0, 1, 2, 5, 20])
def test_n_logits_selects_the_last_positions(n_logits):
    params, ids = random_params(seed=8), some_ids(20)
    logits = forward(ids, params, n_logits=n_logits)
    assert logits.shape == (n_logits, N_VOCAB)
    np.testing.assert_allclose(logits, forward(ids, params)[20 - n_logits :], rtol=0, atol=1e-5)
    sizes = [n for n in (20 - n_logits, n_logits) if n]
    cached = forward_in_chunks(ids, params, sizes, n_logits=n_logits)
    np.testing.assert_allclose(cached[len(cached) - n_logits :], logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("t", [1, 40, QUERY_BLOCK, LONG - 1])
def test_later_tokens_do_not_change_earlier_logits(t, long_params):
    ids = some_ids(LONG)
    changed = np.append(ids[:t], (ids[t:] + 1) % N_VOCAB)
    before, after = forward(ids, long_params), forward(changed, long_params)
    assert np.array_equal(before[:t], after[:t])
    assert (before[t:] != after[t:]).any(-1).all()  # and that each position sees its own token


@pytest.mark.parametrize("n", [1, 2, 9, 47, LONG])
def test_pico_gives_the_same_logits(n, long_params):
    ids = some_ids(n, seed=n)
    expected = pico(ids, long_params)
    np.testing.assert_allclose(forward(ids, long_params), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("n_past", [0, 1, QUERY_BLOCK, LONG - 1])
def test_attention_of_all_heads_at_once_is_that_of_pico_head_by_head(n_past, long_params):
    attn = long_params["blocks"][1]["attn"]
    x = np.random.default_rng(n_past).standard_normal((LONG, TINY["n_embd"]), np.float32)
    expected = gpt2_pico.mha(x, **attn, n_head=N_HEAD)
    cache = new_cache(LONG)[0]
    options = {**attn, "n_head": N_HEAD, "cache": cache}
    chunks = [x[:n_past], x[n_past:]] if n_past else [x]
    y = [gpt2.mha(chunk, **options, n_past=len(x[:n_past]) * i) for i, chunk in enumerate(chunks)]
    np.testing.assert_allclose(np.concatenate(y), expected, rtol=0, atol=2e-5)


def test_pieces_cover_all_rows_and_fit_the_cache_of_the_cpu():
    for n, width in (1000, 768), (1, 10**6), (7, gpt2.PIECE), (0, 5), (200, 1):
        pieces = [range(n)[piece] for piece in gpt2.pieces(np.empty((n, width), np.int8))]
        assert [i for piece in pieces for i in piece] == [*range(n)]
        assert all(len(piece) == 1 or len(piece) * width <= gpt2.PIECE for piece in pieces)


def test_softmax_is_that_of_pico_and_does_not_overflow():
    x = 1000 * np.random.default_rng(0).standard_normal((3, 4, 5), np.float32)
    x[0, 0, 2:] = -np.inf
    np.testing.assert_allclose(gpt2.softmax(x), gpt2_pico.softmax(x), rtol=1e-6)
    assert np.isfinite(gpt2.softmax(x)).all() and gpt2.softmax(x).dtype == np.float32


def test_large_scores_do_not_overflow():
    rng, n = np.random.default_rng(0), QUERY_BLOCK + 9
    q, k, v = 40 * rng.standard_normal((3, 2, n, 8), np.float32)
    scores = (q.astype(float) @ k.swapaxes(1, 2)) / math.sqrt(8)
    assert scores.max() > 1000  # exp of 89 is more than float32 holds
    pattern = gpt2_pico.softmax(scores + np.triu(np.full((n, n), -np.inf), 1))
    np.testing.assert_allclose(gpt2.attention(q, k, v), pattern @ v, rtol=0, atol=0.05)


@pytest.mark.usefixtures("numpy_2_promotion")
def test_every_function_keeps_float32(monkeypatch, long_params):
    seen = watch(gpt2, monkeypatch)
    monkeypatch.setitem(gpt2.ACTIVATIONS, "gelu_new", gpt2.gelu)  # the watched one
    for n in (1, 5, LONG):
        forward(some_ids(n), long_params)
    list(gpt2.generate([1, 2, 1, 2, 1], long_params, {**TINY, "n_ctx": LONG}, 5))
    assert {"gelu", "normal_cdf", "layer_norm", "mean", "linear", "attention", "exp_scores"} | {
        "mha",
        "ffn",
        "gpt2",
        "new_cache",
    } <= set(seen)
    assert {name: dtypes for name, dtypes in seen.items() if dtypes - {np.dtype("float32")}} == {}


# Choosing a token


@pytest.mark.parametrize(
    "temperature, top_k, top_p",
    [(1, 0, 1), (0.7, 0, 1), (2, 5, 1), (1, 0, 0.8), (0.5, 7, 0.6), (1, 1, 1), (1, 0, 1e-9)],
)
def test_probabilities_are_the_textbook_ones(temperature, top_k, top_p):
    logits = np.random.default_rng(1).standard_normal(30).astype(np.float32) * 2
    p = [math.exp(x / temperature) for x in logits.tolist()]
    ranked = sorted(range(30), key=lambda i: -p[i])
    ranked = ranked[: top_k or 30]
    total, kept, mass = sum(p[i] for i in ranked), [], 0.0
    for i in ranked:
        if mass < top_p:
            kept.append(i)
            mass += p[i] / total
    direct = np.zeros(30)
    direct[kept] = [p[i] for i in kept]
    direct /= direct.sum()
    found = gpt2.probabilities(logits, temperature, top_k, top_p)
    assert np.abs(found - direct).max() < 1e-12


def test_probabilities_and_penalty_are_those_of_transformers():
    golden = dict(np.load(GOLDEN / "sampling.npz"))
    settings = json.loads(str(golden["settings"]))
    before = golden["logits"].copy()
    for i, setting in enumerate(settings):
        logits = golden["logits"][i]
        if penalty := setting.pop("repetition_penalty", None):
            logits = gpt2.penalize(logits, golden["ids"][i], penalty)
        found = gpt2.probabilities(logits, **setting)
        np.testing.assert_allclose(found, golden["probabilities"][i], atol=1e-6)
    assert len(settings) == 60
    assert np.array_equal(golden["logits"], before)  # both leave the logits as they are


def test_min_p_keeps_all_of_several_equal_tokens():
    logits = np.log(np.array([0.4, 0.2, 0.2, 0.1, 0.1], np.float32))
    for min_p, kept in (0, 5), (0.2, 5), (0.3, 3), (0.6, 1), (1.0, 1):
        assert (gpt2.probabilities(logits, min_p=min_p) > 0).sum() == kept


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("penalty", [0.7, 1.3, 3.0])
def test_a_penalty_counts_what_the_model_sees_and_drafts_change_nothing(penalty, temperature):
    """Each token follows the definition, past the context, too, and with drafts."""
    params, ids = random_params(seed=5), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3] * 3
    options = {"temperature": temperature, "repetition_penalty": penalty, "seed": 8}
    n_ctx, sampler = TINY["n_ctx"], gpt2.Sampler(temperature=temperature, seed=8)
    expected = list(ids)
    for _ in range(60):
        seen = expected[window_start(len(expected), n_ctx) :]
        logits = pico(seen, params)[-1]
        for id_ in set(seen):
            logits[id_] = logits[id_] * penalty if logits[id_] < 0 else logits[id_] / penalty
        expected.append(sampler.choose(logits, seen))
    assert tokens(params, ids, 60, **options) == expected[30:]
    plain = tokens(params, ids, 60, temperature=temperature, seed=8)
    assert plain != expected[30:]  # or the test would notice nothing


@pytest.mark.parametrize("n_ctx", [200, 48])
@pytest.mark.parametrize("temperature", [0, 0.02])
def test_drafts_change_no_penalized_token(n_ctx, temperature, cycles):
    params, hparams = cycles
    for penalty in 1.01, 1.1:
        options = {"temperature": temperature, "seed": 4, "repetition_penalty": penalty}
        options |= {"hparams": {**hparams, "n_ctx": n_ctx}, "n": 120}
        drafts = Drafts()
        expected = tokens(params, drafts=Drafts(longest=0), **options)
        assert tokens(params, drafts=drafts, **options) == expected
        assert drafts.n_passes < 80  # most drafts are right


def test_without_a_number_of_tokens_generation_continues():
    params = random_params(seed=1)
    some = list(itertools.islice(gpt2.generate([1], params, TINY), 200))
    assert some == tokens(params, [1], 200) and len(some) == 200


def test_a_sample_is_where_a_random_number_falls_in_the_distribution():
    class Fixed:
        def random(self):
            return self.value

    logits, sampler = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32)), gpt2.Sampler(1.0)
    sampler.rng = rng = Fixed()
    for rng.value, token in (0, 0), (0.09, 0), (0.11, 1), (0.31, 2), (0.59, 2), (0.61, 3), (1, 3):
        rng.value = min(rng.value, 1 - 2**-53)
        assert sampler.choose(logits, []) == token
    assert gpt2.Sampler().choose(logits, []) == 3
    rng.value = 1 - 2**-53  # the sum of ten times 0.1 is less, and that of seven times 1 / 7
    for n in 10, 7:
        assert sampler.choose(np.zeros(n, np.float32), []) == n - 1
    rng.value = 0  # not the first token, whose probability is 0
    assert sampler.choose(np.array([-np.inf, 0, 0], np.float32), []) == 1


def test_any_option_of_sampling_turns_sampling_on():
    for options in (
        {},
        {"repetition_penalty": 2},
        {"temperature": 0},
        {"temperature": 0, "top_k": 5, "seed": 1},
    ):
        assert gpt2.Sampler(**options).temperature == 0
    for options in ({"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.1}, {"seed": 0}, {"temperature": 1}):
        assert gpt2.Sampler(**options).temperature == 1
    assert gpt2.Sampler(0.7, top_k=4).temperature == 0.7


def test_without_a_seed_each_run_samples_other_tokens():
    logits = np.zeros(50_000, np.float32)
    draws = [
        gpt2.Sampler(temperature=1, seed=seed).choose(logits, []) for seed in (None, None, 0, 0)
    ]
    assert draws[0] != draws[1] and draws[2] == draws[3] and draws[2] not in draws[:2]


@pytest.mark.parametrize(
    "name, values",
    [
        ("temperature", [-1, math.nan, math.inf, -0.1, True, 10**400, np.float32("inf"), 1e7]),
        ("top_k", [0, -3, 1.5, "9", True]),
        ("top_p", [-0.1, 1.1, math.nan]),
        ("min_p", [-0.1, 1.1, math.nan]),
        ("repetition_penalty", [0, -1, math.inf, "2", 10**400]),
        ("seed", [-1, 0.5, "x", True]),
    ],
)
def test_an_option_out_of_range_is_refused_when_generate_is_called(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"{name} is .*: it must be"):
            gpt2.generate([1], random_params(0), TINY, 3, **{name: value})


def test_wrong_inputs_are_refused_when_generate_is_called():
    params = random_params(0)
    for inputs in [TINY["n_vocab"]], [-1], [1.0], ["1"], [None], [1, None], [1, 2, 10**9], [True]:
        with pytest.raises(ValueError, match="an id is .*a whole number, from 0 to 100"):
            gpt2.generate(inputs, params, TINY, 3)
    for inputs in "low", b"low", 5, None, "":
        with pytest.raises(ValueError, match="a prompt is .*: it must be a list of ids"):
            gpt2.generate(inputs, params, TINY, 3)
    for n in -1, 2.0, math.inf, True, "5":
        with pytest.raises(ValueError, match="n_tokens is .*a whole number, at least 0"):
            gpt2.generate([1], params, TINY, n)
    for model in (params, TINY["n_head"]), (params, params):  # picoGPT's fourth argument
        with pytest.raises(ValueError, match="hparams must be the dict with 'n_ctx'"):
            gpt2.generate([1], *model, 3)
    for model in (TINY, params), (None, TINY), ([params], TINY):
        with pytest.raises(ValueError, match="params must be the dict with 'wte'"):
            gpt2.generate([1], *model, 3)
    ids = gpt2.generate([1], params, TINY, 3)
    assert iter(ids) is ids and [next(ids), *ids] == tokens(params, [1], 3)
    expected = tokens(params, [3, 1, 4], 5, seed=3)
    for inputs in np.array([3, 1, 4]), np.array([3, 1, 4], np.uint16), (3, 1, 4), iter([3, 1, 4]):
        found = gpt2.generate(inputs, params, TINY, np.int64(5), seed=np.int32(3))
        assert list(found) == expected


def test_an_empty_prompt_starts_from_the_end_of_text_or_is_refused():
    params = random_params(0)
    with pytest.raises(ValueError, match="the prompt is empty"):
        gpt2.generate([], params, TINY, 3)
    ends = {**TINY, "eos_token_ids": [7, 9]}
    assert tokens(params, [], 20, ends) == tokens(params, [7], 20, ends) != []


def test_top_k_keeps_all_of_several_equal_tokens_and_top_p_the_fewest():
    four = np.array([1, 5, 5, 5, 5], np.float32)
    np.testing.assert_allclose(gpt2.probabilities(four, top_k=1), [0, 0.25, 0.25, 0.25, 0.25])
    np.testing.assert_allclose(gpt2.probabilities(four, 1e-9, top_p=0.5), [0, 0.5, 0.5, 0, 0])
    np.testing.assert_allclose(gpt2.probabilities(four, 1e-9, top_p=0.0), [0, 1, 0, 0, 0])


@pytest.mark.parametrize("damaged", [[0, math.nan, 1], [0, math.inf, 1], [-math.inf] * 3])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_finite_are_refused(damaged, temperature):
    with pytest.raises(ValueError, match="the model's logits are not finite"):
        gpt2.Sampler(temperature).choose(np.array(damaged, np.float32), [])


def test_log_probabilities_are_those_of_softmax():
    logits = np.random.default_rng(0).standard_normal((50, 30)).astype(np.float32) * 5
    before, ids = logits.copy(), np.arange(50) % 30
    p = np.exp(logits.astype(np.float64))
    expected = np.log(p / p.sum(-1, keepdims=True))[np.arange(50), ids]
    for row, id_, x in zip(logits, ids, expected):
        assert gpt2.log_probability(row, id_) == pytest.approx(x, abs=1e-12)
    assert np.array_equal(logits, before)
    np.testing.assert_allclose(gpt2.log_probabilities(logits, ids), expected, atol=1e-5)
    assert gpt2.log_probability(np.array([0, 2000], np.float32), 0) == -2000
    assert gpt2.log_probabilities(np.array([[0, 2000]], np.float32), [0]) == -2000


# Generating


def tokens(params, inputs=(1, 2, 3), n=150, hparams=TINY, **options):
    return list(gpt2.generate(list(inputs), params, hparams, n, **options))


@pytest.fixture
def cycles():
    """Return parameters and hparams of a model without positions: its text soon repeats itself."""
    params = random_params(0, n_ctx=200)
    return {**params, "wpe": params["wpe"] * 0}, {**TINY, "n_ctx": 200}


def watch_passes(monkeypatch):
    """Return a list that gets (number of inputs, n_past) of each pass over the model."""
    passes, model = [], gpt2.gpt2

    def watched(inputs, *args, n_past=0, **keywords):
        passes.append((len(inputs), n_past))
        return model(inputs, *args, n_past=n_past, **keywords)

    monkeypatch.setattr(gpt2, "gpt2", watched)
    return passes


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_prompt", [1, 30, TINY["n_ctx"]])
def test_pico_gives_the_same_tokens_also_past_the_context(n_prompt, seed):
    params, ids = random_params(seed), some_ids(n_prompt, seed=seed).tolist()
    n = 3 * TINY["n_ctx"] - n_prompt
    expected = greedy(ids, params, TINY, n)
    assert tokens(params, ids, n) == expected and len(expected) == n


@pytest.mark.parametrize("sampling", [{"temperature": 0.8}, {"temperature": 1.5, "top_k": 9}])
def test_each_sampled_token_takes_one_random_number(sampling):
    params, sampler, ids = random_params(seed=2), gpt2.Sampler(seed=11, **sampling), [3, 1, 4]
    for _ in range(40):
        ids.append(sampler.choose(pico(ids, params)[-1], ids))
    assert tokens(params, [3, 1, 4], 40, seed=11, **sampling) == ids[3:]
    assert tokens(params, [3, 1, 4], 40, seed=12, **sampling) != ids[3:]


def test_generation_ends_before_any_end_of_text():
    params = random_params(seed=9)
    found = tokens(params, [3, 1, 4], 30)
    eos = found[12]
    other = min({*range(N_VOCAB)} - {*found})
    for ends in [eos], [eos, other], [other, eos], [found[-1], eos], (eos,):
        until = found[: min(found.index(end) for end in ends if end in found)]
        assert tokens(params, [3, 1, 4], 30, {**TINY, "eos_token_ids": ends}) == until


def test_generate_changes_none_of_its_arguments():
    inputs, params = [5, 6, 5, 6], random_params(0)
    hparams = {**TINY, "eos_token_ids": [99]}
    before = copy.deepcopy((inputs, hparams)), map_leaves(np.copy, params)
    assert len(list(gpt2.generate(inputs, params, hparams, 60, repetition_penalty=1.1))) == 60
    assert (inputs, hparams) == before[0] and tokens(params, n=0) == []
    assert all(np.array_equal(x, dict(leaves(before[1]))[name]) for name, x in leaves(params))


@pytest.mark.parametrize("n, start", [(1, 0), (48, 0), (49, 24), (72, 24), (73, 48), (97, 72)])
def test_the_window_jumps_by_half_of_the_context(n, start):
    assert gpt2.next_window(0, n, 48) == start
    assert n - start <= 48


@pytest.mark.parametrize("n_ctx", [1, 2, 3, 7, 48])
def test_the_window_starts_where_it_would_start_without_its_past(n_ctx):
    for n in range(1, 4 * n_ctx):
        start = window_start(n, n_ctx)
        assert min(n, n_ctx - n_ctx // 2) <= n - start <= n_ctx
        for m in range(1, n + 1):
            assert gpt2.next_window(window_start(m, n_ctx), n, n_ctx) == start


def test_only_new_ids_go_through_the_model(monkeypatch):
    passes = watch_passes(monkeypatch)
    tokens(random_params(1), some_ids(30).tolist(), 50, drafts=Drafts(longest=0))
    one_by_one = [(1, n) for n in range(24, 48)]
    assert (
        passes
        == [
            *[(30, 0), *((1, n) for n in range(30, 48))],  # texts of 30 to 48 ids
            *[(25, 0), *((1, n) for n in range(25, 48))],  # of 49 to 72: the window starts at 24
            *[(25, 0), *one_by_one[1:7]],  # of 73 to 79: it starts at 48
        ]
    )


class Given:
    """Drafts that are given beforehand, and notes on how gpt2.continuation uses them."""

    def __init__(self, *drafts):
        self.left, self.rooms, self.accepted = list(drafts), [], []

    def draft(self, ids, room):
        self.rooms.append((len(ids), room))
        return self.left.pop(0) if self.left else []

    def update(self, draft, n_accepted):
        self.accepted.append((len(draft), n_accepted))


def test_rejected_tokens_are_overwritten_and_accepted_ones_stay(monkeypatch):
    params, ids = random_params(3), some_ids(9).tolist()
    right = tokens(params, ids, 8)
    wrong = min({*range(N_VOCAB)} - {*right})
    passes = watch_passes(monkeypatch)
    drafts = Given([wrong, right[1]], [*right[1:3], wrong, right[4]], [], [right[5]])
    steps = list(gpt2.continuation(ids, params, TINY, 8, gpt2.Sampler(), drafts))
    assert [id_ for id_, _ in steps] == right
    expected = pico(ids + right, params)[len(ids) - 1 : -1]
    np.testing.assert_allclose([logits for _, logits in steps], expected, rtol=0, atol=1e-4)
    assert passes == [(11, 0), (5, 9), (1, 12), (2, 13), (1, 15)]
    assert drafts.accepted == [(2, 0), (4, 2), (0, 0), (1, 1), (0, 0)]


def test_each_token_of_a_draft_counts_in_the_penalty_of_the_next():
    params = initial_params(0, TINY, wte=0.5)  # a token is followed by itself, without a penalty
    plain = tokens(params, [5], 6, drafts=Given())
    options = {"repetition_penalty": 50}
    right = tokens(params, [5], 6, drafts=Given(), **options)
    drafts = Given(right[:5])
    assert tokens(params, [5], 6, drafts=drafts, **options) == right
    assert drafts.accepted == [(5, 5)] and len(set(right)) > 4 and set(plain) == {5}


def test_a_draft_ends_with_the_context_and_before_the_last_token():
    drafts, n_ctx = Given(), TINY["n_ctx"]
    list(gpt2.continuation([5] * 30, random_params(1), TINY, 50, gpt2.Sampler(), drafts))
    assert drafts.rooms == [
        (n, min(n_ctx - (n - window_start(n, n_ctx)), 80 - n - 1)) for n in range(30, 80)
    ]


@pytest.mark.parametrize("n_tokens, positions", [(2, 5), (45, 48), (97, 48), (None, 48)])
def test_the_cache_is_no_larger_than_the_text_or_the_context(n_tokens, positions, monkeypatch):
    caches, new_cache = [], gpt2.new_cache
    monkeypatch.setattr(
        gpt2, "new_cache", lambda *args: caches.append(new_cache(*args)) or caches[0]
    )
    next(gpt2.generate([1, 2, 3], random_params(), TINY, n_tokens))
    assert [cache.shape for cache in caches] == [(3, 2, 5, positions, 8)]


@pytest.mark.parametrize("temperature", [0, 0.3, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_drafts_change_no_token(seed, temperature):
    hparams = {**TINY, "n_ctx": 48 + seed}  # within 150 tokens, the window jumps several times
    params = random_params(seed, **hparams)

    def generated(longest):
        drafts = Drafts(longest=longest)
        return tokens(params, hparams=hparams, seed=seed, drafts=drafts, temperature=temperature)

    plain = generated(0)
    for longest in 1, 2, 7, 31:
        assert generated(longest) == plain
    assert tokens(params, hparams=hparams, seed=seed, temperature=temperature) == plain


def test_drafts_of_a_text_that_repeats_itself_save_passes(cycles, monkeypatch):
    plain = tokens(cycles[0], [7] * 20, 170, cycles[1], drafts=Drafts(longest=0))
    drafts, passes = Drafts(), watch_passes(monkeypatch)
    assert tokens(cycles[0], [7] * 20, 170, cycles[1], drafts=drafts) == plain
    assert len(plain) == 170 and drafts.n_passes == len(passes) < 60
    assert max(n for n, n_past in passes if n_past) == Drafts.LONGEST + 1 == 32


def test_the_logits_of_one_pass_are_freed_before_the_next(cycles, monkeypatch):
    params, hparams = cycles
    alive, model = [], gpt2.gpt2

    def watched(*args, **keywords):
        assert all(logits() is None for logits in alive)
        logits = model(*args, **keywords)
        alive.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr(gpt2, "gpt2", watched)
    steps = gpt2.continuation([7] * 20, params, hparams, 50, gpt2.Sampler(), Drafts())
    rows = [logits for _, logits in steps]  # the caller may keep them, each by itself
    assert len(rows) == 50 > len(alive) and all(logits.base is None for logits in rows)


def test_a_draft_does_not_reach_beyond_an_end_of_text(cycles):
    params, hparams = cycles
    plain = tokens(params, [7] * 20, 100, hparams, drafts=Drafts(longest=0))
    for eos in set(plain):
        found = tokens(params, [7] * 20, 100, {**hparams, "eos_token_ids": [eos]})
        assert found == plain[: plain.index(eos)]


def test_a_copy_of_gpt2_and_fast_alone_needs_numpy_and_nothing_else(tmp_path):
    params = random_params(1)
    with open(tmp_path / "model.pickle", "wb") as file:
        pickle.dump((params, TINY), file)
    code = f"""
import os, pickle
before = dict(os.environ)
from gpt2 import generate
params, hparams = pickle.load(open({str(tmp_path / "model.pickle")!r}, "rb"))
print(list(generate([3, 1, 4], params, hparams, 60)), dict(os.environ) == before)
"""
    found = run_copied(["gpt2", "fast"], code, tmp_path)
    assert found == f"{tokens(params, [3, 1, 4], 60)} True\n"


# Choosing, where it is nearly something else


def test_top_k_may_be_more_than_all_tokens():
    logits = np.random.default_rng(0).standard_normal(30).astype(np.float32)
    for top_k in 30, 31, 10**6:
        assert np.array_equal(gpt2.probabilities(logits, top_k=top_k), gpt2.probabilities(logits))


def test_of_many_equally_likely_tokens_top_p_keeps_those_with_the_lowest_ids():
    logits = np.array([0, -np.inf] * 512, np.float32)  # sorted, they come in any order
    p = gpt2.probabilities(logits, top_p=0.25)
    assert np.flatnonzero(p).tolist() == list(range(0, 256, 2))


def test_a_temperature_near_0_is_allowed_and_not_0():
    with np.errstate(all="raise", under="ignore"):
        p = gpt2.probabilities(np.array([1, 0, 1], np.float32), temperature=1e-320)
    assert p.tolist() == [0.5, 0, 0.5]
    sampler = gpt2.Sampler(temperature=0.001, seed=0)
    assert {sampler.choose(np.array([0, 1e-4], np.float32), []) for _ in range(50)} == {0, 1}


def test_the_seed_that_is_shown_samples_the_same_text(models_dir, monkeypatch, capsys):
    """Also if nobody gave one, and it was chosen at random."""
    monkeypatch.setattr(sys, "stdin", None)
    args = ["low", "--temperature", "1", "--json", *map(str, model_options(models_dir))]
    assert gpt2.main([*args, "--verbose"]) == 0
    out, errors = capsys.readouterr()
    found = json.loads(out)
    assert f"\nseed           {found['seed']}\n" in errors
    assert gpt2.main([*args, "--seed", str(found["seed"])]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {**again, "seconds": None} == {**found, "seconds": None}
