"""Compare training/backward.py with torch's autograd (a golden file), gpt2.py and differences."""

import weakref

import numpy as np
import pytest
from conftest import (
    EPS,
    GOLDEN,
    LONG,
    N_VOCAB,
    TINY,
    float64,
    leaves,
    random_params,
    some_ids,
    watch,
)

import gpt2
import gpt2_pico
from gpt2 import QUERY_BLOCK
from training import backward


def loss_and_gradient(params, ids, rate=0.0, seed=0):
    """Return the mean loss of sequences of ids [B, n + 1], and its gradient."""
    inputs, targets = ids[:, :-1], ids[:, 1:].ravel()
    logits, kept = backward.gpt2_forward(
        inputs, **params, hparams=TINY, rate=rate, rng=np.random.default_rng(seed)
    )
    loss, dlogits = backward.cross_entropy(logits, targets)
    dlogits /= targets.size
    return loss / targets.size, backward.gpt2_backward(dlogits, kept, **params, hparams=TINY)


def check_directions(loss, arrays, grads, step=1e-4):
    """Compare each gradient with (loss(x + u) - loss(x - u)) / 2 along a random direction u."""
    rng = np.random.default_rng(0)
    for path, x in arrays:
        u = rng.standard_normal(x.shape)
        u *= step / np.linalg.norm(u)
        x += u
        above = loss()
        x -= 2 * u
        difference = (above - loss()) / 2
        x += u
        np.testing.assert_allclose(
            (grads[path] * u).sum(), difference, rtol=1e-5, atol=1e-12, err_msg=path
        )


def test_the_forward_pass_gives_the_logits_of_gpt2():
    params, ids = random_params(n_ctx=LONG), some_ids(3, LONG)
    logits, _ = backward.gpt2_forward(ids, **params, hparams=TINY)
    expected = [gpt2.gpt2(row, **params, hparams=TINY) for row in ids]
    np.testing.assert_allclose(logits, np.concatenate(expected), rtol=0, atol=1e-4)


def test_the_loss_and_every_gradient_agree_with_torch():
    golden = dict(np.load(GOLDEN / "backward.npz"))
    params = random_params(seed=3)
    loss, grads = loss_and_gradient(params, golden.pop("ids"))
    assert loss == pytest.approx(golden.pop("loss"), abs=1e-5)
    grads = dict(leaves(grads))
    assert set(grads) == set(golden) == {path for path, _ in leaves(params)}
    for path, expected in golden.items():
        np.testing.assert_allclose(
            grads[path], expected, rtol=1e-4, atol=1e-5 * abs(expected).max(), err_msg=path
        )


@pytest.mark.parametrize("rate", [0, 0.3], ids=["no dropout", "dropout"])
@pytest.mark.parametrize("batch", [(1, 2), (12, 48), (3, LONG)], ids=str)
def test_gradients_agree_with_finite_differences(batch, rate):
    params, ids = float64(random_params(seed=1, n_layer=1, n_ctx=LONG)), some_ids(*batch)
    _, grads = loss_and_gradient(params, ids, rate)

    def loss():
        logits, _ = backward.gpt2_forward(
            ids[:, :-1], **params, hparams=TINY, rate=rate, rng=np.random.default_rng(0)
        )
        return backward.cross_entropy(logits, ids[:, 1:].ravel())[0] / ids[:, 1:].size

    check_directions(loss, leaves(params), dict(leaves(grads)))


def test_gradients_of_many_rows_agree_with_finite_differences():
    """With 4,000 rows, the functions that work in pieces need several of them."""
    rng = np.random.default_rng(0)
    x, dy, g, b = (rng.standard_normal(shape) for shape in ((4000, 40), (4000, 40), 40, 40))
    y, slope = backward.gelu_forward(x)
    assert np.array_equal(y, gpt2.gelu(x))
    grads = {"x": backward.gelu_backward(dy.copy(), slope)}
    check_directions(lambda: (gpt2.gelu(x) * dy).sum(), [("x", x)], grads)
    dx, grads = backward.layer_norm_backward(dy, x, g, b, EPS)
    check_directions(
        lambda: (gpt2.layer_norm(x, g=g, b=b, eps=EPS) * dy).sum(),
        [("x", x), ("g", g), ("b", b)],
        {**grads, "x": dx},
    )


@pytest.mark.parametrize("n", [1, 2, QUERY_BLOCK - 1, QUERY_BLOCK, QUERY_BLOCK + 1, LONG])
def test_attention_gradient_agrees_with_finite_differences(n):
    rng = np.random.default_rng(n)
    qkv, dy = rng.standard_normal((3, 10, n, 8)), rng.standard_normal((10, n, 8))
    dqkv = backward.attention_backward(dy, gpt2.attention(*qkv), *qkv)
    check_directions(lambda: (gpt2.attention(*qkv) * dy).sum(), enumerate(qkv), dqkv)


def test_heads_are_split_and_joined():
    """Take 2 sequences with 3 tokens each, and 5 heads."""
    x = np.arange(2 * 3 * 5 * 4).reshape(6, 20)
    heads = backward.heads_of_rows(x, n=3, n_head=5)
    assert heads.shape == (10, 3, 4)
    for sequence in 0, 1:
        for head in range(5):
            expected = x[3 * sequence : 3 * sequence + 3, 4 * head : 4 * head + 4]
            assert np.array_equal(heads[5 * sequence + head], expected)
    assert np.array_equal(backward.join_heads(heads, n_head=5), x)


def test_the_embedding_gradient_adds_each_row_at_its_id():
    rng = np.random.default_rng(0)
    dy, ids = rng.standard_normal((200, 7)), rng.integers(1, 20, size=200)
    expected = np.zeros((21, 7))
    np.add.at(expected, ids, dy)
    np.testing.assert_allclose(backward.embedding_backward(dy, ids, 21), expected, rtol=1e-12)


@pytest.mark.parametrize("t", [0, 1, QUERY_BLOCK - 1, QUERY_BLOCK, LONG - 2])
def test_a_later_token_gets_no_gradient_from_an_earlier_one(t):
    params, ids = random_params(n_ctx=LONG), some_ids(2, LONG)
    logits, kept = backward.gpt2_forward(ids, **params, hparams=TINY)
    dlogits = np.zeros_like(logits).reshape(2, LONG, N_VOCAB)
    dlogits[0, t] = np.random.default_rng(t).standard_normal(
        N_VOCAB
    )  # the loss depends on position t
    grads = backward.gpt2_backward(dlogits.reshape(logits.shape), kept, **params, hparams=TINY)
    assert not grads["wpe"][t + 1 :].any()
    assert grads["wpe"][: t + 1].any(-1).all()


def test_the_gradient_of_a_batch_is_the_sum_over_its_sequences():
    params, ids = random_params(), some_ids(5, 40)
    _, whole = loss_and_gradient(params, ids)
    parts = [dict(leaves(loss_and_gradient(params, row[None])[1])) for row in ids]
    for path, x in leaves(whole):
        mean = sum(part[path] for part in parts) / len(ids)
        np.testing.assert_allclose(x, mean, rtol=1e-4, atol=1e-5 * abs(x).max(), err_msg=path)


@pytest.mark.parametrize("n", [10, 64, 256, 1024])
def test_a_group_has_as_many_sequences_as_the_cpu_cache_has_room_for(n):
    groups = backward.groups(1001 * n, n, n_head=4)
    rows = range(1001 * n)
    assert [i for group in groups for i in rows[group]] == [*rows]
    sizes = [len(rows[group]) // n for group in groups]
    scores = 4 * min(n, QUERY_BLOCK) * n  # how many a sequence computes at a time
    assert max(sizes) == sizes[0] and (sizes[0] + 1) * scores > backward.SCORES
    assert sizes[0] * scores <= backward.SCORES or sizes[0] == 1
    assert all(len(rows[group]) % n == 0 for group in groups)


def test_dropout_sets_a_part_to_zero_and_keeps_the_mean():
    x, mask = backward.dropout(np.ones((500, 400), np.float32), 0.3, np.random.default_rng(0))
    assert set(np.unique(x)) == {np.float32(0), np.float32(1 / 0.7)}
    assert np.mean(x == 0) == pytest.approx(0.3, abs=0.005)
    assert np.array_equal(backward.dropout_backward(np.ones_like(x), mask), x)
    x, mask = backward.dropout(np.ones((5, 4), np.float32), 0, None)
    assert (x == 1).all() and np.array_equal(backward.dropout_backward(x, mask), x)


def test_dropout_applies_to_the_embedding_and_to_what_each_layer_adds():
    """Compare with gpt2_pico.py and masks that are drawn from the same random numbers in turn."""
    params, (ids,), rate = random_params(), some_ids(1, 30), 0.3
    logits, _ = backward.gpt2_forward(
        ids[None], **params, hparams=TINY, rate=rate, rng=np.random.default_rng(5)
    )
    params, rng = float64(params), np.random.default_rng(5)

    def drop(x):
        return x * (rng.random(x.shape, np.float32) >= rate) / (1 - rate)

    x = drop(params["wte"][ids] + params["wpe"][:30])
    for block in params["blocks"]:
        y = gpt2_pico.layer_norm(x, **block["ln_1"], eps=EPS)
        x = x + drop(gpt2_pico.mha(y, **block["attn"], n_head=TINY["n_head"]))
        y = gpt2_pico.layer_norm(x, **block["ln_2"], eps=EPS)
        x = x + drop(gpt2_pico.ffn(y, **block["mlp"]))
    expected = gpt2_pico.layer_norm(x, **params["ln_f"], eps=EPS) @ params["wte"].T
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("numpy_2_promotion")
@pytest.mark.parametrize("rate", [0, 0.1], ids=["no dropout", "dropout"])
def test_every_function_keeps_float32(rate, monkeypatch):
    seen = watch(backward, monkeypatch)
    _, grads = loss_and_gradient(random_params(n_ctx=LONG), some_ids(6, LONG), rate)
    assert {name.removesuffix("_backward") for name in seen if name.endswith("_backward")} >= {
        "gelu",
        "layer_norm",
        "linear",
        "attention",
        "dropout",
        "mha",
        "ffn",
        "block",
        "embedding",
        "gpt2",
    }
    assert {name: dtypes for name, dtypes in seen.items() if dtypes - {np.dtype("float32")}} == {}
    assert {x.dtype for _, x in leaves(grads)} == {np.dtype("float32")}


def test_dropout_sets_single_numbers_to_zero_and_scales_up_the_others():
    y, mask = backward.dropout(np.ones((400, 300), np.float32), 0.25, np.random.default_rng(0))
    assert np.array_equal(y, mask) and y.dtype == np.float32
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    for axis in 0, 1:  # the zeros are spread evenly over rows and columns
        assert abs((y == 0).mean(axis) - 0.25).max() < 0.15
    assert abs((y == 0).mean() - 0.25) < 0.01
    assert backward.dropout(y, 0, np.random.default_rng(0))[1] is None  # no random number was drawn


def test_the_loss_of_large_logits_is_finite():
    logits = np.array([[0, 2000], [-3000, 0]], np.float32)
    loss, dlogits = backward.cross_entropy(logits, np.array([0, 1]))
    assert loss == 2000
    assert dlogits.tolist() == [[-1, 1], [0, 0]]


def test_the_backward_pass_frees_what_each_block_kept(monkeypatch):
    """When the gradient of the first block is computed, the others have been freed."""
    params, ids = random_params(), some_ids(2, 9)
    logits, kept = backward.gpt2_forward(ids, **params, hparams=TINY)
    slopes = [weakref.ref(kept_mlp[1]) for _, _, _, _, kept_mlp, _ in kept[2]]
    alive, block_backward = [], backward.block_backward

    def watched(*args, **options):
        alive.append(sum(slope() is not None for slope in slopes))
        return block_backward(*args, **options)

    monkeypatch.setattr(backward, "block_backward", watched)
    backward.gpt2_backward(np.ones_like(logits), kept, **params, hparams=TINY)
    assert alive == [3, 2, 1]
