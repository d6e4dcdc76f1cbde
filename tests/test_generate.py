"""Generation: the choice of a token, drafts that change no token, and the sliding window."""

import math

import numpy as np
import pytest
from conftest import TINY, random_params

import gpt2

N_HEAD, EPS = TINY["n_head"], TINY["layer_norm_epsilon"]


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


def test_choice_inverts_the_distribution():
    class Fixed:
        def random(self):
            return self.value

    logits, rng = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32)), Fixed()
    for rng.value, token in (0, 0), (0.09, 0), (0.11, 1), (0.31, 2), (0.59, 2), (0.61, 3), (1, 3):
        rng.value = min(rng.value, 1 - 2**-53)
        assert gpt2.choose(logits, rng, temperature=1) == token
    assert gpt2.choose(logits, rng) == 3


def tokens(params, inputs=(1, 2, 3), n=150, **options):
    return list(gpt2.generate(list(inputs), params, N_HEAD, n, EPS, **options))


def test_generate_leaves_its_input_alone():
    inputs, params = [5, 6, 5, 6], random_params(0)
    assert len(list(gpt2.generate(inputs, params, N_HEAD, 5, EPS))) == 5
    assert inputs == [5, 6, 5, 6] and tokens(params, n=0) == []


@pytest.mark.parametrize("temperature", [0, 0.3, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_drafts_change_no_token(seed, temperature):
    params = random_params(seed, n_ctx=48 + seed)  # 150 tokens slide the window several times
    plain = tokens(params, seed=seed, temperature=temperature, max_draft=0)
    for max_draft in 1, 2, 7, 31:
        drafted = tokens(params, seed=seed, temperature=temperature, max_draft=max_draft)
        assert drafted == plain


def test_drafts_of_a_text_that_repeats_are_taken():
    passes = []
    params = random_params(0, n_ctx=200)
    params["wpe"] = params["wpe"] * 0  # without positions a cycle goes on for ever
    repeats = tokens(params, inputs=[7] * 20, n=170, passes=passes)
    assert repeats == tokens(params, inputs=[7] * 20, n=170, max_draft=0)
    assert sum(passes) == 170 and max(passes) == gpt2.MAX_DRAFT + 1 and len(passes) < 60


def test_a_draft_ends_with_the_text_at_eos():
    params = random_params(0, n_ctx=200)
    params["wpe"] = params["wpe"] * 0
    plain = tokens(params, inputs=[7] * 20, n=100, max_draft=0)
    for eos in set(plain):
        assert tokens(params, inputs=[7] * 20, n=100, eos=eos) == plain[: plain.index(eos)]


def test_draft_follows_the_latest_occurrence_and_goes_round():
    assert gpt2.draft("abcdeabc", 10) == "deabcdeabc"
    assert gpt2.draft("abcXabcYabc", 2) == "Ya"
    assert gpt2.draft("aaaa", 5) == "aaaaa"
    assert gpt2.draft("abcd", 5) == gpt2.draft("ab", 5) == gpt2.draft("", 5) == ""
    assert gpt2.draft("abcdabc", 0) == gpt2.draft("abcdabc", -1) == ""


@pytest.mark.parametrize("n, start", [(1, 0), (48, 0), (49, 24), (72, 24), (73, 48), (97, 72)])
def test_window_jumps_by_half(n, start):
    assert gpt2.window_start(n, 48) == start
    assert n - start <= 48


@pytest.mark.parametrize(
    "n, length, stride",
    [(10, 6, 3), (10, 6, 6), (5, 6, 3), (6, 6, 1), (100, 7, 4), (7, 6, 6), (2, 9, 9)],
)
def test_windows_predict_each_token_once(n, length, stride):
    targets = []
    for start, first, stop in gpt2.windows(n, length, stride):
        assert start < first < stop <= min(n, start + length)
        targets += range(first, stop)
    missing = set(range(1, n)) - set(targets)
    assert len(set(targets)) == len(targets)  # a window's first token has no context there
    assert missing == (set(range(length, n, length)) if stride == length else set())
