"""Test AdamW and Muon against the published algorithms, the schedule, and the vector of weights."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import random_params

from model_files.directory import flatten
from training import optimizer
from training.optimizer import Optimizer


def test_adamw_is_the_published_algorithm():
    rng = np.random.default_rng(0)
    w, g, m, v = (rng.standard_normal(5).astype(np.float32) for _ in range(4))
    v = abs(v)
    ours = [x.copy() for x in (w, m, v)]
    optimizer.adamw(ours[0], g, *ours[1:], scale=0.5, lr=0.1, decay=0.3, step=3)
    for i in range(5):
        gradient = 0.5 * float(g[i])
        first = 0.9 * float(m[i]) + 0.1 * gradient
        second = 0.99 * float(v[i]) + 0.01 * gradient**2
        step = (first / (1 - 0.9**3)) / (math.sqrt(second / (1 - 0.99**3)) + 1e-8)
        expected = float(w[i]) - 0.1 * 0.3 * float(w[i]) - 0.1 * step
        assert [x[i] for x in ours] == pytest.approx([expected, first, second], rel=1e-5)


@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16)])
def test_orthogonalize_brings_singular_values_near_one(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    y = optimizer.orthogonalize(x)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    values = np.diag(u.T @ y @ vt.T)
    assert y.dtype == np.float32 and 0.5 < values.min() and values.max() < 1.35
    assert np.abs(u.T @ y @ vt.T - np.diag(values)).max() < 1e-4  # the same singular vectors


@pytest.mark.parametrize("shape, n_parts", [((16, 16), 1), ((16, 48), 3), ((16, 64), 1)])
def test_muon_is_the_published_algorithm(shape, n_parts):
    rng = np.random.default_rng(1)
    w, g, m = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    ours = w.copy(), m.copy()
    optimizer.muon(ours[0], g, ours[1], scale=0.5, lr=0.1, decay=0.3)
    m = 0.95 * m + 0.5 * g
    nesterov = 0.5 * g + 0.95 * m
    expected = (1 - 0.1 * 0.3) * w
    for i in range(n_parts):  # c_attn is the matrices of q, k and v
        part = slice(i * shape[1] // n_parts, (i + 1) * shape[1] // n_parts)
        u, s, vt = np.linalg.svd(nesterov[:, part], full_matrices=False)
        s /= np.linalg.norm(s)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        size = 0.2 * math.sqrt(max(16, shape[1] // n_parts))
        expected[:, part] -= 0.1 * size * (u * s) @ vt
    np.testing.assert_allclose(ours[0], expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours[1], m, rtol=1e-5, atol=1e-6)


def test_schedule_warms_up_and_ends_at_zero():
    schedule = optimizer.schedule
    assert schedule(0.0, 0.1) == 0 and schedule(1.0, 0.1) == pytest.approx(0)
    assert schedule(0.05, 0.1) == pytest.approx(0.5, abs=0.01)
    assert schedule(0.55, 0.1) == pytest.approx(0.5 + 0.5 * math.cos(math.pi * 0.55))
    assert schedule(0.1, 0.1) == pytest.approx(0.5 + 0.5 * math.cos(math.pi * 0.1))


def test_clip_shortens_only_gradients_that_are_too_long():
    assert optimizer.clip(0.0) == optimizer.clip(0.5) == 1
    for norm, limit in (4.0, 1.0), (1e6, 1.0), (4.0, 2.0):
        assert norm * optimizer.clip(norm, limit) == pytest.approx(limit, rel=1e-5)
    assert optimizer.clip(4.0) == optimizer.clip(4.0, 1.0)
    assert optimizer.clip(1.0, 2.0) == 1


def test_a_flat_vector_holds_each_parameter_once():
    params = random_params()
    state = Optimizer(params, 2, decay=0.1, by_muon=True)
    views, original = flatten(state.params), flatten(params)
    assert views.keys() == original.keys()
    assert all(np.array_equal(view, original[name]) for name, view in views.items())
    for vector, tree in (state.w, state.params), *zip(state.g, state.gradients, strict=True):
        views = flatten(tree)
        assert all(view.shape == original[name].shape for name, view in views.items())
        vector[...] = np.arange(vector.size)
        seen = np.concatenate([view.ravel() for view in views.values()])
        assert sorted(seen.tolist()) == list(range(state.w.size))
    for vector in state.w, state.m, state.v, state.g:
        assert vector.dtype == np.float32


def test_the_parameters_that_are_passed_in_stay_unchanged():
    params = random_params()
    before = {name: x.copy() for name, x in flatten(params).items()}
    state = Optimizer(params, 1, decay=0.1, by_muon=False)
    state.w[...] = 0
    assert all(np.array_equal(x, before[name]) for name, x in flatten(params).items())


@pytest.mark.parametrize("piece", [2**16, 1000])
def test_adamw_updates_every_weight_and_decays_only_matrices(piece, monkeypatch):
    """In the first step of AdamW, each weight moves by lr, against the sign of its gradient."""
    monkeypatch.setattr(optimizer, "PIECE", piece)
    params, rng = random_params(), np.random.default_rng(0)
    state = Optimizer(params, 2, decay=0.3, by_muon=False)
    state.g[...] = np.where(rng.random(state.g.shape) < 0.5, -1.0, 1.0) * [[5.0], [7.0]]
    gradients = {name: g.copy() for name, g in flatten(state.gradients[0]).items()}
    with ThreadPoolExecutor(2) as pool:
        state.update(0.1, 0.25, 1, pool)
    for name, x in flatten(state.params).items():
        before = flatten(params)[name]
        decayed = before if before.ndim == 1 else (1 - 0.25 * 0.3) * before
        expected = decayed - 0.25 * np.sign(gradients[name])
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-5, err_msg=name)


def test_muon_updates_the_matrices_in_blocks_and_adamw_the_rest():
    """A gradient u v^T has a single direction, so Muon changes only its size."""
    params, rng = random_params(), np.random.default_rng(0)
    state = Optimizer(params, 1, decay=0.3, by_muon=True)
    directions = {}
    for name, g in flatten(state.gradients[0]).items():
        u, v = (rng.uniform(0.5, 1, n) * rng.choice([-1, 1], n) for n in (len(g), g.shape[-1]))
        directions[name] = u if g.ndim == 1 else np.outer(u, v)
        g[...] = 1e-3 * directions[name]
    with ThreadPoolExecutor(2) as pool:
        state.update(1.0, 0.25, 1, pool)
    for name, x in flatten(state.params).items():
        before, direction = flatten(params)[name], directions[name]
        decayed = before if before.ndim == 1 else (1 - 0.25 * 0.3) * before
        step = decayed - x
        if name.startswith("h.") and x.ndim == 2:
            for part in np.split(np.arange(x.shape[1]), 3 if "c_attn" in name else 1):
                one, other = step[:, part], direction[:, part]
                alike = (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)
                size = 0.25 * 0.2 * math.sqrt(max(one.shape))
                assert alike > 0.999, name
                assert 0.65 * size < np.linalg.norm(one) < 1.25 * size, name
        else:
            np.testing.assert_allclose(step, 0.25 * np.sign(direction), atol=1e-4, err_msg=name)


def test_each_weight_has_its_own_moments(monkeypatch):
    """Three updates in pieces give the same as adamw for the whole vector."""
    monkeypatch.setattr(optimizer, "PIECE", 1000)
    state = Optimizer(random_params(), 1, decay=0.0, by_muon=False)
    rng = np.random.default_rng(0)
    w, m, v = state.w.copy(), np.zeros_like(state.w), np.zeros_like(state.w)
    with ThreadPoolExecutor(2) as pool:
        for step in 1, 2, 3:
            state.g[...] = rng.standard_normal(state.g.shape, np.float32)
            optimizer.adamw(w, state.g[0].copy(), m, v, 0.5, 0.1, 0.0, step)
            state.update(0.5, 0.1, step, pool)
    for ours, expected in ((state.w, w), (state.m, m), (state.v, v)):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)


def test_each_thread_has_its_own_row_of_gradients():
    state = Optimizer(random_params(), 3, decay=0.0, by_muon=False)
    for i, tree in enumerate(state.gradients):
        for x in flatten(tree).values():
            x[...] = i + 1
    assert np.array_equal(state.g, np.ones_like(state.g) * [[1], [2], [3]])


@pytest.mark.parametrize("by_muon", [False, True])
def test_a_weight_without_a_gradient_stays_unchanged(by_muon):
    """One example is a position that no sequence reaches: 0 / 0 would be NaN."""
    state = Optimizer(random_params(), 1, decay=0.0, by_muon=by_muon)
    before = state.w.copy()
    with ThreadPoolExecutor(2) as pool:
        state.update(1.0, 0.25, 1, pool)
    assert np.array_equal(state.w, before)


@pytest.mark.parametrize("by_muon, name", [(False, "adamw"), (True, "adamw"), (True, "muon")])
def test_an_error_in_an_update_is_raised(by_muon, name, monkeypatch):
    def fails(*args):
        raise MemoryError("too large")

    monkeypatch.setattr(optimizer, name, fails)
    state = Optimizer(random_params(), 1, decay=0.0, by_muon=by_muon)
    with ThreadPoolExecutor(2) as pool, pytest.raises(MemoryError, match="too large"):
        state.update(1.0, 0.25, 1, pool)
