"""Checkpoints of other programs; test_odd_models.py opens whole directories of them."""

import numpy as np
import pytest
from odd_models import narrow

from model_files.architecture import are_equal, fold_scale
from model_files.safetensors import BF16, widen


@pytest.mark.parametrize("row", [0, 1023, 1024, 2999])
def test_matrices_that_differ_in_one_number_of_any_row_are_not_equal(row):
    """An output head of its own may differ from wte in the rows of a few new tokens only."""
    x = np.random.default_rng(0).random((3000, 4), np.float32)
    y = x.copy()
    assert are_equal(x, y)
    y[row, 3] += 1
    assert not are_equal(x, y)


@pytest.mark.parametrize("dtype", [np.float16, BF16])
def test_the_scale_of_weights_in_half_precision_is_not_rounded_to_it(dtype):
    rng = np.random.default_rng(0)
    shapes = {"weight": (8, 24), "bias": (24,)}
    stored = {
        f"h.{i}.attn.c_attn.{leaf}": narrow(rng.random(shape, np.float32), dtype)
        for i in range(3)
        for leaf, shape in shapes.items()
    }
    config = {"n_embd": 8, "n_head": 2, "n_layer": 3}
    config |= {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}
    folded = fold_scale(config, dict(stored))
    for name, x in stored.items():
        expected = widen(x).copy()
        expected[..., :8] *= 2 / (int(name[2]) + 1)  # the root of d = 4, and the layer's number
        np.testing.assert_allclose(widen(folded[name]), expected, rtol=1e-6)
