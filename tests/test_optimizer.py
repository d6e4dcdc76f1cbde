"""The updates against their published algorithms, the schedule, and the flat vector of weights."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import random_params

import optimizer
from model_files.parameters import flatten
from optimizer import Optimizer


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
    for i in range(n_parts):  # the query's, the key's and the value's matrix of c_attn by itself
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


def test_clip_shortens_what_is_too_long_and_nothing_else():
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


def test_the_parameters_that_came_in_stay_as_they_are():
    params = random_params()
    before = {name: x.copy() for name, x in flatten(params).items()}
    state = Optimizer(params, 1, decay=0.1, by_muon=False)
    state.w[...] = 0
    assert all(np.array_equal(x, before[name]) for name, x in flatten(params).items())


@pytest.mark.parametrize("by_muon", [True, False])
@pytest.mark.parametrize("piece", [2**16, 1000])
def test_an_update_does_to_each_parameter_what_its_kind_asks_for(by_muon, piece, monkeypatch):
    """Muon for matrices in blocks, AdamW for the rest; decay for whatever is a matrix."""
    monkeypatch.setattr(optimizer, "PIECE", piece)
    params, rng = random_params(), np.random.default_rng(0)
    state = Optimizer(params, 2, decay=0.3, by_muon=by_muon)
    expected = {name: [x.copy(), 0 * x, 0 * x] for name, x in flatten(params).items()}
    with ThreadPoolExecutor(2) as pool:
        for step in 1, 2:
            state.g[...] = rng.standard_normal(state.g.shape, np.float32)
            gradients = {name: g.copy() for name, g in flatten(state.gradients[0]).items()}
            state.update(0.5, 0.1, step, pool)
            for name, (w, m, v) in expected.items():
                if by_muon and w.ndim == 2 and name.startswith("h."):
                    optimizer.muon(w, gradients[name], m, 0.5, 0.1, 0.3)
                else:
                    decay = 0.3 if w.ndim == 2 else 0
                    optimizer.adamw(w, gradients[name], m, v, 0.5, 0.1, decay, step)
    for name, x in flatten(state.params).items():
        np.testing.assert_allclose(x, expected[name][0], rtol=1e-5, atol=1e-6, err_msg=name)
