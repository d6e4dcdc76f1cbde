"""gpt2.py and gpt2_pico.py against transformers (golden files) and against each other."""

import itertools
import json

import numpy as np
import pytest
from conftest import FULL, GOLDEN, TINY, initial_params, random_params, watch

import gpt2
import gpt2_pico
import utils

EPS, N_HEAD = TINY["layer_norm_epsilon"], TINY["n_head"]
LONG = 2 * gpt2.ROWS + 50  # a text whose attention is computed in three pieces


def forward(ids, params, **options):
    return gpt2.gpt2(ids, **params, n_head=N_HEAD, eps=EPS, **options)


def forward_in_chunks(ids, params, sizes, **options):
    """Logits of ids fed to the cache in chunks; what the cache has not yet been given is NaN."""
    cache = gpt2.new_cache(params, N_HEAD, len(params["wpe"]))
    cache[...] = np.nan
    assert sum(sizes) == len(ids)
    ends = list(itertools.accumulate(sizes, initial=0))
    return np.concatenate(
        [
            forward(ids[i:j], params, cache=cache, n_past=i, **options)
            for i, j in itertools.pairwise(ends)
        ]
    )


def some_ids(n, seed=0, n_vocab=TINY["n_vocab"]):
    return np.random.default_rng(seed).integers(n_vocab, size=n)


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "model.npz")


@pytest.fixture(scope="module")
def long_params():
    return random_params(seed=5, n_ctx=LONG)


@pytest.mark.parametrize("model", [gpt2, gpt2_pico], ids=lambda module: module.__name__)
def test_logits_are_those_of_transformers(model, golden):
    for ids, logits in zip(golden["ids"], golden["logits"], strict=True):
        ours = model.gpt2(ids, **random_params(seed=1), n_head=N_HEAD, eps=EPS)
        np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name, scales", [("repeats", {}), ("wanders", {"wte": 0.08, "wpe": 1.0})])
def test_124M_logits_and_200_greedy_tokens_are_those_of_transformers(name, scales):
    golden = np.load(GOLDEN / f"model_124M_{name}.npz")
    params = initial_params(int(golden["seed"]), FULL, **scales)
    ids, n_head = golden["ids"], FULL["n_head"]
    logits = gpt2.gpt2(ids, **params, n_head=n_head)
    assert logits.shape == (len(ids), FULL["n_vocab"])
    np.testing.assert_allclose(
        logits[np.ix_(golden["positions"], golden["columns"])], golden["logits"], rtol=0, atol=1e-3
    )
    tokens = gpt2.generate(ids[:10].tolist(), params, n_head, len(golden["tokens"]))
    assert list(tokens) == golden["tokens"].tolist()


@pytest.mark.parametrize(
    "case",
    json.loads((GOLDEN / "model_shakespeare.json").read_text("utf-8")),
    ids=lambda case: case["prompt"][:12],
)
def test_shakespeare_text_is_that_of_transformers(case, shared):
    encoder, hparams, params = utils.load_encoder_hparams_and_params(
        str(shared / "models" / "shakespeare-hf"), "models"
    )
    assert encoder.encode(case["prompt"]) == case["ids"]
    tokens = list(
        gpt2.generate(
            case["ids"],
            params,
            hparams["n_head"],
            len(case["tokens"]),
            eps=hparams["layer_norm_epsilon"],
            eos=hparams["eos_token_id"],
        )
    )
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
        [gpt2.ROWS - 1, 1, 1, LONG - gpt2.ROWS - 1],
        [gpt2.ROWS, gpt2.ROWS, LONG - 2 * gpt2.ROWS],
        [gpt2.ROWS + 1, LONG - gpt2.ROWS - 1],
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
    cache = gpt2.new_cache(params, N_HEAD, 20)
    forward(np.append(ids[:8], other[8:]), params, cache=cache)  # 12 positions of another text
    after = forward(ids[8:11], params, cache=cache, n_past=8)
    np.testing.assert_allclose(after, forward(ids, params)[8:11], rtol=0, atol=1e-4)


@pytest.mark.parametrize("n_logits", [1, 2, 5, 20])
def test_n_logits_are_the_last_ones(n_logits):
    params, ids = random_params(seed=8), some_ids(20)
    logits = forward(ids, params, n_logits=n_logits)
    assert logits.shape == (n_logits, TINY["n_vocab"])
    np.testing.assert_allclose(logits, forward(ids, params)[-n_logits:], rtol=0, atol=1e-5)
    cached = forward_in_chunks(
        ids, params, [20 - n_logits, n_logits][20 == n_logits :], n_logits=n_logits
    )
    np.testing.assert_allclose(cached[-n_logits:], logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", [gpt2, gpt2_pico], ids=lambda module: module.__name__)
@pytest.mark.parametrize("t", [1, 40, gpt2.ROWS, LONG - 1])
def test_the_future_changes_nothing_in_the_past(model, t, long_params):
    ids = some_ids(LONG)
    changed = np.append(ids[:t], (ids[t:] + 1) % TINY["n_vocab"])
    before, after = (model.gpt2(x, **long_params, n_head=N_HEAD, eps=EPS) for x in (ids, changed))
    assert np.array_equal(before[:t], after[:t])
    assert (before[t:] != after[t:]).any(-1).all()  # and that each position sees its own token


@pytest.mark.parametrize("n", [1, 2, 9, 47, LONG])
def test_pico_gives_the_same_logits(n, long_params):
    ids = some_ids(n, seed=n)
    pico = gpt2_pico.gpt2(ids, **long_params, n_head=N_HEAD, eps=EPS)
    np.testing.assert_allclose(forward(ids, long_params), pico, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_prompt", [1, 30, TINY["n_ctx"]])
def test_pico_gives_the_same_tokens_also_past_the_context(n_prompt, seed):
    params, ids = random_params(seed), some_ids(n_prompt, seed).tolist()
    prompt, n = list(ids), 3 * TINY["n_ctx"] - n_prompt
    pico = list(gpt2_pico.generate(ids, params, N_HEAD, n, EPS))
    assert list(gpt2.generate(ids, params, N_HEAD, n, eps=EPS)) == pico
    assert len(pico) == n and ids == prompt  # the caller's list is as it was


@pytest.mark.parametrize("model", [gpt2, gpt2_pico], ids=lambda module: module.__name__)
def test_generation_ends_at_eos(model):
    params, ids = random_params(seed=9), [3, 1, 4]
    tokens = list(model.generate(ids, params, N_HEAD, 30, eps=EPS))
    eos = tokens[12]
    until = tokens[: tokens.index(eos)]
    assert list(model.generate(ids, params, N_HEAD, 30, eps=EPS, eos=eos)) == until


@pytest.mark.parametrize(
    "module, expected",
    [
        (gpt2_pico, {"gelu", "softmax", "layer_norm", "linear", "mha", "ffn", "gpt2"}),
        (
            gpt2,
            {
                "gelu",
                "layer_norm",
                "linear",
                "attention",
                "mha",
                "ffn",
                "transformer_block",
                "new_cache",
                "gpt2",
            },
        ),
    ],
    ids=["gpt2_pico", "gpt2"],
)
@pytest.mark.usefixtures("numpy_2_promotion")
def test_every_function_keeps_float32(module, expected, monkeypatch, long_params):
    seen = watch(module, monkeypatch)
    for n in (1, 5, LONG):
        module.gpt2(some_ids(n), **long_params, n_head=N_HEAD, eps=EPS)
    list(module.generate([1, 2, 1, 2, 1], long_params, N_HEAD, 5, eps=EPS))
    assert expected <= set(seen)
    assert {name: dtypes for name, dtypes in seen.items() if dtypes - {np.dtype("float32")}} == {}
