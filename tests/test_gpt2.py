"""gpt2.py against transformers (golden files) and gpt2_pico.py: logits, choices, generated text."""

import itertools
import json
import math
import platform
import subprocess
import sys

import numpy as np
import pytest
from conftest import (
    EPS,
    FULL,
    GOLDEN,
    LONG,
    N_HEAD,
    N_VOCAB,
    ROOT,
    TINY,
    greedy,
    initial_params,
    random_params,
    some_ids,
    watch,
)

import drafts
import gpt2
import gpt2_pico
from gpt2 import N_QUERIES
from utils import load_encoder_hparams_and_params


def forward(ids, params, **options):
    return gpt2.gpt2(ids, **params, n_head=N_HEAD, eps=EPS, **options)


def new_cache(n):
    cache = gpt2.new_cache(n, **TINY)
    cache[...] = np.nan  # what has not been written yet
    return cache


def forward_in_chunks(ids, params, sizes, **options):
    """Logits of ids fed to the cache in chunks."""
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is about glibc")
def test_memory_of_large_arrays_is_used_again_without_page_faults():
    code = """
import gpt2, numpy, resource
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [numpy.ones(2**18) for _ in range(20)]  # 2 MB each
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    command = [sys.executable, "-c", code]
    assert int(subprocess.check_output(command, cwd=ROOT)) < 1000  # of 10,240


def test_logits_are_those_of_transformers():
    golden = np.load(GOLDEN / "model.npz")
    for ids, logits in zip(golden["ids"], golden["logits"], strict=True):
        np.testing.assert_allclose(forward(ids, random_params(seed=1)), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name, scales", [("repeats", {}), ("wanders", {"wte": 0.08, "wpe": 1.0})])
def test_124M_logits_and_200_greedy_tokens_are_those_of_transformers(name, scales):
    golden = np.load(GOLDEN / f"model_124M_{name}.npz")
    params = initial_params(int(golden["seed"]), FULL, **scales)
    ids, hparams = golden["ids"], {**FULL, "eos_token_ids": []}
    logits = gpt2.gpt2(ids, **params, n_head=FULL["n_head"], eps=FULL["layer_norm_epsilon"])
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


def test_every_way_of_cutting_a_short_input_gives_the_same_logits():
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
        [N_QUERIES - 1, 1, 1, LONG - N_QUERIES - 1],
        [N_QUERIES, N_QUERIES, LONG - 2 * N_QUERIES],
        [N_QUERIES + 1, LONG - N_QUERIES - 1],
        [1, LONG - 1],
        [LONG - 1, 1],
        [7, LONG - 7],
        [1] * LONG,
        *range(8),
    ],
    ids=lambda sizes: str(sizes)[:20],
)
def test_cutting_a_long_input_gives_the_same_logits(sizes, long_params):
    if isinstance(sizes, int):  # the seed of random cuts
        rng = np.random.default_rng(sizes)
        cuts = rng.choice(np.arange(1, LONG), size=rng.integers(1, 40), replace=False)
        sizes = np.diff([0, *sorted(cuts), LONG])
    ids = some_ids(LONG)
    np.testing.assert_allclose(
        forward_in_chunks(ids, long_params, sizes), forward(ids, long_params), rtol=0, atol=1e-4
    )


def test_cache_position_can_step_back():
    params, ids, other = random_params(seed=7), some_ids(20), some_ids(20, seed=1)
    cache = new_cache(20)
    forward(np.append(ids[:8], other[8:]), params, cache=cache)  # 12 positions of another text
    after = forward(ids[8:11], params, cache=cache, n_past=8)
    np.testing.assert_allclose(after, forward(ids, params)[8:11], rtol=0, atol=1e-4)


@pytest.mark.parametrize("n_logits", [0, 1, 2, 5, 20])
def test_n_logits_are_the_last_ones(n_logits):
    params, ids = random_params(seed=8), some_ids(20)
    logits = forward(ids, params, n_logits=n_logits)
    assert logits.shape == (n_logits, N_VOCAB)
    np.testing.assert_allclose(logits, forward(ids, params)[20 - n_logits :], rtol=0, atol=1e-5)
    sizes = [n for n in (20 - n_logits, n_logits) if n]
    cached = forward_in_chunks(ids, params, sizes, n_logits=n_logits)
    np.testing.assert_allclose(cached[len(cached) - n_logits :], logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("t", [1, 40, N_QUERIES, LONG - 1])
def test_the_future_changes_nothing_in_the_past(t, long_params):
    ids = some_ids(LONG)
    changed = np.append(ids[:t], (ids[t:] + 1) % N_VOCAB)
    before, after = forward(ids, long_params), forward(changed, long_params)
    assert np.array_equal(before[:t], after[:t])
    assert (before[t:] != after[t:]).any(-1).all()  # and that each position sees its own token


@pytest.mark.parametrize("n", [1, 2, 9, 47, LONG])
def test_pico_gives_the_same_logits(n, long_params):
    ids = some_ids(n, seed=n)
    pico = gpt2_pico.gpt2(ids, **long_params, n_head=N_HEAD, eps=EPS)
    np.testing.assert_allclose(forward(ids, long_params), pico, rtol=0, atol=1e-4)


def test_large_scores_do_not_overflow():
    rng, n = np.random.default_rng(0), N_QUERIES + 9
    q, k, v = 40 * rng.standard_normal((3, 2, n, 8), np.float32)
    scores = (q.astype(float) @ k.swapaxes(1, 2)) / math.sqrt(8)
    assert scores.max() > 1000  # exp of 89 is more than float32 holds
    shares = gpt2_pico.softmax(scores + np.triu(np.full((n, n), -np.inf), 1))
    np.testing.assert_allclose(gpt2.attention(q, k, v), shares @ v, rtol=0, atol=0.05)


@pytest.mark.usefixtures("numpy_2_promotion")
def test_every_function_keeps_float32(monkeypatch, long_params):
    seen = watch(gpt2, monkeypatch)
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
    golden = np.load(GOLDEN / "sampling.npz")
    settings = json.loads(str(golden["settings"]))
    for i, setting in enumerate(settings):
        logits = golden["logits"][i]
        before = logits.copy()
        if penalty := setting.pop("repetition_penalty", None):
            logits = gpt2.penalize(logits, golden["ids"][i], penalty)
        found = gpt2.probabilities(logits, **setting)
        np.testing.assert_allclose(found, golden["probabilities"][i], atol=1e-6)
        assert (golden["logits"][i] == before).all()
    assert len(settings) == 60


def test_of_equal_tokens_min_p_keeps_all():
    logits = np.log(np.array([0.4, 0.2, 0.2, 0.1, 0.1], np.float32))
    for min_p, kept in (0, 5), (0.2, 5), (0.3, 3), (0.6, 1), (1.0, 1):
        assert (gpt2.probabilities(logits, min_p=min_p) > 0).sum() == kept


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("penalty", [0.7, 1.3, 3.0])
def test_a_penalty_counts_what_the_model_sees_and_drafts_change_nothing(penalty, temperature):
    """Each token against its definition, past the context too, and through drafts."""
    params, ids = random_params(seed=5), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3] * 3
    options = {"temperature": temperature, "repetition_penalty": penalty, "seed": 8}
    n_ctx, sampler = TINY["n_ctx"], gpt2.Sampler(temperature=temperature, seed=8)
    expected = list(ids)
    for _ in range(60):
        seen = expected[gpt2.window_start(len(expected), n_ctx) :]
        logits = gpt2_pico.gpt2(seen, **params, n_head=N_HEAD, eps=EPS)[-1]
        for id_ in set(seen):
            logits[id_] = logits[id_] * penalty if logits[id_] < 0 else logits[id_] / penalty
        expected.append(sampler.choose(logits, seen))
    assert tokens(params, ids, 60, **options) == expected[30:]
    plain = tokens(params, ids, 60, temperature=temperature, seed=8)
    assert plain != expected[30:]  # or the test would notice nothing


def test_a_guess_is_penalized_for_its_own_tokens(cycles):
    """Greedy text that goes round is drafted; with a penalty each round counts in the next."""
    params, hparams = cycles
    for penalty in 1.001, 1.01, 1.1:
        options = {"hparams": hparams, "repetition_penalty": penalty}
        slowly = tokens(params, drafts=gpt2.Drafts(longest=0), **options)
        assert tokens(params, **options) == slowly


def test_without_a_number_it_goes_on():
    params = random_params(seed=1)
    some = list(itertools.islice(gpt2.generate([1], params, TINY), 200))
    assert some == tokens(params, [1], 200) and len(some) == 200


def test_choice_inverts_the_distribution():
    class Fixed:
        def random(self):
            return self.value

    logits, sampler = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32)), gpt2.Sampler(1.0)
    sampler.rng = rng = Fixed()
    for rng.value, token in (0, 0), (0.09, 0), (0.11, 1), (0.31, 2), (0.59, 2), (0.61, 3), (1, 3):
        rng.value = min(rng.value, 1 - 2**-53)
        assert sampler.choose(logits, []) == token
    assert gpt2.Sampler().choose(logits, []) == 3
    rng.value = 1 - 2**-53  # ten times 0.1 is less, and seven times 1 / 7 even more so
    for n in 10, 7:
        assert sampler.choose(np.zeros(n, np.float32), []) == n - 1
    rng.value = 0  # the first place of the way; the first token has none of it
    assert sampler.choose(np.array([-np.inf, 0, 0], np.float32), []) == 1


def test_what_is_left_out_asks_for_a_draw_or_not():
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


def test_no_seed_draws_anew_each_time():
    logits = np.zeros(50_000, np.float32)
    draws = [
        gpt2.Sampler(temperature=1, seed=seed).choose(logits, []) for seed in (None, None, 0, 0)
    ]
    assert draws[0] != draws[1] and draws[2] == draws[3] and draws[2] not in draws[:2]


@pytest.mark.parametrize(
    "name, values",
    [
        ("temperature", [-1, math.nan, math.inf, -0.1]),
        ("top_k", [0, -3, 1.5, "9"]),
        ("top_p", [-0.1, 1.1, math.nan]),
        ("min_p", [-0.1, 1.1, math.nan]),
        ("repetition_penalty", [0, -1, math.inf, "2"]),
        ("seed", [-1, 0.5, "x"]),
    ],
)
def test_an_option_that_means_nothing_is_refused(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"{name} is .*, and has to be"):
            list(gpt2.generate([1], random_params(0), TINY, 3, **{name: value}))


def test_inputs_that_mean_nothing_are_refused():
    params = random_params(0)
    for inputs in [TINY["n_vocab"]], [-1], [1.0], ["1"], [None], [1, 2, 10**9]:
        with pytest.raises(ValueError, match="an id is .*a whole number from 0 to 100"):
            next(gpt2.generate(inputs, params, TINY, 3))
    for n in -1, 2.0:
        with pytest.raises(ValueError, match="n_tokens is"):
            next(gpt2.generate([1], params, TINY, n))
    with pytest.raises(ValueError, match="hparams is 5, and has to be the dict"):
        next(gpt2.generate([1], params, TINY["n_head"], 3))  # as it once was
    assert tokens(params, np.array([3, 1, 4]), 5) == tokens(params, [3, 1, 4], 5)


def test_nothing_starts_from_the_end_of_text_or_is_refused():
    params = random_params(0)
    with pytest.raises(ValueError, match="nothing to continue"):
        next(gpt2.generate([], params, TINY, 3))
    ends = {**TINY, "eos_token_ids": [7, 9]}
    assert tokens(params, [], 20, ends) == tokens(params, [7], 20, ends) != []


def test_of_equal_tokens_top_k_keeps_all_and_top_p_the_fewest():
    four = np.array([1, 5, 5, 5, 5], np.float32)
    np.testing.assert_allclose(gpt2.probabilities(four, top_k=1), [0, 0.25, 0.25, 0.25, 0.25])
    np.testing.assert_allclose(gpt2.probabilities(four, 1e-9, top_p=0.5), [0, 0.5, 0.5, 0, 0])
    np.testing.assert_allclose(gpt2.probabilities(four, 1e-9, top_p=0.0), [0, 1, 0, 0, 0])


@pytest.mark.parametrize("damaged", [[0, math.nan, 1], [0, math.inf, 1], [-math.inf] * 3])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_refused(damaged, temperature):
    with pytest.raises(ValueError, match="the model's logits are not finite"):
        gpt2.Sampler(temperature).choose(np.array(damaged, np.float32), [])


# Generating


def tokens(params, inputs=(1, 2, 3), n=150, hparams=TINY, **options):
    return list(gpt2.generate(list(inputs), params, hparams, n, **options))


@pytest.fixture
def cycles():
    """Parameters and hparams of a model that, without positions, goes round in a cycle for ever."""
    params = random_params(0, n_ctx=200)
    return {**params, "wpe": params["wpe"] * 0}, {**TINY, "n_ctx": 200}


def watch_passes(monkeypatch):
    """-> a list that gets (number of inputs, n_past) of each pass over the model."""
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
        logits = gpt2_pico.gpt2(ids, **params, n_head=N_HEAD, eps=EPS)
        ids.append(sampler.choose(logits[-1], ids))
    assert tokens(params, [3, 1, 4], 40, seed=11, **sampling) == ids[3:]
    assert tokens(params, [3, 1, 4], 40, seed=12, **sampling) != ids[3:]


def test_generation_ends_at_eos():
    params = random_params(seed=9)
    found = tokens(params, [3, 1, 4], 30)
    eos = found[12]
    other = min({*range(N_VOCAB)} - {*found})
    for ends in [eos], [eos, other], [other, eos], [found[-1], eos], (eos,):
        until = found[: min(found.index(end) for end in ends if end in found)]
        assert tokens(params, [3, 1, 4], 30, {**TINY, "eos_token_ids": ends}) == until


def test_generate_leaves_its_input_alone():
    inputs, params = [5, 6, 5, 6], random_params(0)
    assert len(list(gpt2.generate(inputs, params, TINY, 5))) == 5
    assert inputs == [5, 6, 5, 6] and tokens(params, n=0) == []


@pytest.mark.parametrize("n, start", [(1, 0), (48, 0), (49, 24), (72, 24), (73, 48), (97, 72)])
def test_window_jumps_by_half(n, start):
    assert gpt2.window_start(n, 48) == start
    assert n - start <= 48


@pytest.mark.parametrize("n_ctx", [1, 2, 3, 7, 48])
def test_window_holds_the_last_ids_and_no_more_than_the_context(n_ctx):
    starts = [gpt2.window_start(n, n_ctx) for n in range(1, 4 * n_ctx)]
    for n, start in enumerate(starts, 1):
        assert min(n, n_ctx - n_ctx // 2) <= n - start <= n_ctx
    assert starts == sorted(starts)


def test_only_new_ids_go_through_the_model(monkeypatch):
    passes = watch_passes(monkeypatch)
    tokens(random_params(1), some_ids(30).tolist(), 50, drafts=gpt2.Drafts(longest=0))
    one_by_one = [(1, n) for n in range(24, 48)]
    assert (
        passes
        == [
            *[(30, 0), *((1, n) for n in range(30, 48))],  # texts of 30 to 48 ids
            *[(25, 0), *((1, n) for n in range(25, 48))],  # of 49 to 72: the window starts at 24
            *[(25, 0), *one_by_one[1:7]],  # of 73 to 79: it starts at 48
        ]
    )


def test_a_wrong_guess_is_overwritten_and_a_right_one_stays(monkeypatch):
    params, passes = random_params(3), watch_passes(monkeypatch)
    window, ids = gpt2.Window(params, TINY, 48), some_ids(20).tolist()
    for n, guess in (9, [50, 51, 52]), (10, []), (11, ids[11:14]), (15, [60]), (16, []):
        rows = window.logits(ids[:n], guess)
        expected = forward(ids[:n] + guess, params)[n - 1 :]
        np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-4)
    assert passes[::2] == [(12, 0), (1, 9), (4, 10), (2, 14), (1, 15)]  # the others are expected
    assert [window.room([0] * n) for n in (1, 47, 48, 49, 72, 73)] == [47, 1, 0, 23, 0, 23]


def test_the_cache_is_no_larger_than_the_text_or_the_context():
    params = random_params()
    for n, positions in (5, 5), (48, 48), (100, 48):
        assert gpt2.Window(params, TINY, n).cache.shape == (3, 2, 5, positions, 8)


@pytest.mark.parametrize("temperature", [0, 0.3, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_drafts_change_no_token(seed, temperature):
    hparams = {**TINY, "n_ctx": 48 + seed}  # 150 tokens slide the window several times
    params = random_params(seed, **hparams)

    def generated(longest):
        drafts = gpt2.Drafts(longest=longest)
        return tokens(params, hparams=hparams, seed=seed, drafts=drafts, temperature=temperature)

    plain = generated(0)
    for longest in 1, 2, 7, 31:
        assert generated(longest) == plain
    assert tokens(params, hparams=hparams, seed=seed, temperature=temperature) == plain


def test_drafts_of_a_text_that_repeats_are_taken(cycles, monkeypatch):
    plain = tokens(cycles[0], [7] * 20, 170, cycles[1], drafts=gpt2.Drafts(longest=0))
    drafts, passes = gpt2.Drafts(), watch_passes(monkeypatch)
    assert tokens(cycles[0], [7] * 20, 170, cycles[1], drafts=drafts) == plain
    assert len(plain) == 170 and drafts.n_passes == len(passes) < 60
    assert max(n for n, n_past in passes if n_past) == gpt2.Drafts.LONGEST + 1 == 32


def test_the_logits_of_a_token_keep_those_of_no_other_in_memory(cycles):
    params, hparams = cycles
    chosen = gpt2.choices([7] * 20, params, hparams, 50, gpt2.Sampler(), gpt2.Drafts())
    assert all(logits.base is None for _, logits in chosen)


def test_a_draft_ends_with_the_text_at_eos(cycles):
    params, hparams = cycles
    plain = tokens(params, [7] * 20, 100, hparams, drafts=gpt2.Drafts(longest=0))
    for eos in set(plain):
        found = tokens(params, [7] * 20, 100, {**hparams, "eos_token_ids": [eos]})
        assert found == plain[: plain.index(eos)]


def test_a_guess_follows_the_latest_occurrence_and_goes_round():
    assert drafts.look_up("abcdeabc", 3, 10) == "deabcdeabc"
    assert drafts.look_up("abcXabcYabc", 3, 2) == "Ya"
    assert drafts.look_up("aaaa", 3, 5) == "aaaaa"
    assert drafts.look_up("abcdabc", 3, 0) == drafts.look_up("abcdabc", 3, -1) == ""
    for text in "abcd", "ab", "":
        assert drafts.look_up(text, 3, 5) == ""
    assert drafts.look_up("abXab", 2, 3) == "Xab" and drafts.look_up("abXab", 3, 3) == ""


REPEATS = [1, 2, 3, 4] * 10
MUCH = 1000  # room


def test_a_guess_repeats_the_text_as_far_as_there_is_room():
    drafts = gpt2.Drafts()
    assert drafts.guess(REPEATS, MUCH) == [1, 2, 3, 4, 1, 2, 3]
    assert drafts.guess([*REPEATS, 1, 9, 50256, 2, 3, 4], 3) == [1, 9, 50256]
    assert drafts.guess([*REPEATS, 1, 9, 50256, 2, 3, 4, 1, 9], 5) == [50256, 2, 3, 4, 1]
    assert drafts.guess([*REPEATS, 1, 9, 50256, 2, 3, 4, 1, 9, 8], MUCH) == []
    assert drafts.n_passes == 4
    assert gpt2.Drafts(longest=2).guess(REPEATS, MUCH) == [1, 2]
    assert gpt2.Drafts().guess(REPEATS, 0) == []
    assert gpt2.Drafts().guess([7, 1, 2, 5, 8, 1, 2], MUCH) == []  # two tokens are not enough


def test_a_right_guess_makes_the_next_one_longer():
    drafts, lengths = gpt2.Drafts(), []
    for _ in range(4):
        guess = drafts.guess(REPEATS, MUCH)
        lengths.append(len(guess))
        drafts.judge(guess, n_right=len(guess))
    assert lengths == [7, 15, 31, 31]


@pytest.mark.parametrize("n_right, length, pause", [(7, 15, 0), (6, 7, 0), (4, 7, 0), (3, 7, 0)])
def test_half_right_is_good_enough_to_go_on(n_right, length, pause):
    drafts = gpt2.Drafts()
    drafts.judge(drafts.guess(REPEATS, MUCH), n_right)
    assert (drafts.length, drafts.pause) == (length, pause)


def test_half_of_a_long_guess_keeps_its_length_and_less_starts_anew():
    drafts = gpt2.Drafts()
    drafts.judge(drafts.guess(REPEATS, MUCH), 7)
    drafts.judge(drafts.guess(REPEATS, MUCH), 8)  # of 15
    assert (drafts.length, drafts.pause) == (15, 0)
    drafts.judge(drafts.guess(REPEATS, 9), 5)  # as long as there was room for
    assert (drafts.length, drafts.pause) == (9, 0)
    drafts.judge(drafts.guess(REPEATS, MUCH), 3)
    assert (drafts.length, drafts.pause) == (7, 0)


def test_pauses_grow_until_a_guess_is_right():
    drafts = gpt2.Drafts()

    def passes_without_a_guess():
        for n in itertools.count():
            if guess := drafts.guess(REPEATS, MUCH):
                return n, guess
            drafts.judge(guess, 0)  # no guess, and so neither right nor wrong

    pauses = []
    for right in (0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0):
        n, guess = passes_without_a_guess()
        pauses.append(n)
        drafts.judge(guess, len(guess) * right)
    assert pauses == [0, 0, 1, 3, 7, 15, 31, 63, 63, 63, 0, 0]
