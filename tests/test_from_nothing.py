"""The model that the lesson trains from nothing: its losses, gradient, updates and samples."""

import json
import math
import sys
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from conftest import GOLDEN, ROOT, run

from training import optimizer

sys.path.insert(0, str(ROOT / "lesson"))

import from_nothing as lesson

SCRIPT = ROOT / "lesson" / "from_nothing.py"


def test_the_first_20_losses_are_those_of_torch():
    golden = json.loads((GOLDEN / "from_nothing.json").read_text(encoding="utf-8"))
    losses = [loss for loss, _ in islice(lesson.train(lesson.STEPS), 20)]
    np.testing.assert_allclose(losses, golden, rtol=0, atol=0.01)
    assert len(golden) == 20 and golden[-1] < golden[0] - 1


def test_a_short_run_ends_below_the_table_of_pairs():
    *_, (_, weights) = lesson.train(150)
    assert lesson.held_out_loss(weights) < lesson.bigram_loss()


def test_the_last_step_is_short():
    seen = [weights["wte.weight"].copy() for _, weights in lesson.train(12)]
    moved = [np.abs(after - before).max() for before, after in zip(seen, seen[1:])]
    assert len(seen) == 13 and moved[-1] < 0.2 * max(moved)


def test_the_table_of_pairs_has_the_loss_of_counted_pairs():
    split = len(lesson.TEXT) * 9 // 10
    learned, held_out = lesson.TEXT[:split], lesson.TEXT[split:]
    pairs, firsts = Counter(zip(learned, learned[1:])), Counter(learned[:-1])
    n = len(set(lesson.TEXT))
    nats = [-math.log((pairs[x] + 1) / (firsts[x[0]] + n)) for x in zip(held_out, held_out[1:])]
    assert lesson.bigram_loss() == pytest.approx(sum(nats) / len(nats))


def test_the_gradient_is_the_slope_of_the_mean_loss():
    rng = np.random.default_rng(1)
    weights = {name: w.astype(np.float64) for name, w in lesson.random_weights(rng).items()}
    ids = lesson.batch(rng)[:3]
    direction = {name: rng.standard_normal(w.shape) for name, w in weights.items()}
    slope = sum(
        (g * direction[k]).sum() for k, g in lesson.loss_and_gradient(weights, ids)[1].items()
    )
    more, less = (
        lesson.loss_and_gradient({k: w + x * direction[k] for k, w in weights.items()}, ids)[0]
        for x in (1e-6, -1e-6)
    )
    assert slope == pytest.approx((more - less) / 2e-6, rel=1e-5)


def test_a_batch_of_two_equal_sequences_has_the_loss_and_gradient_of_one():
    rng = np.random.default_rng(2)
    weights, ids = lesson.random_weights(rng), lesson.batch(rng)[:1]
    once, twice = (lesson.loss_and_gradient(weights, np.repeat(ids, n, axis=0)) for n in (1, 2))
    assert twice[0] == pytest.approx(once[0], abs=1e-5)
    for name, g in once[1].items():
        np.testing.assert_allclose(twice[1][name], g, rtol=0, atol=1e-6)


def test_adam_is_adamw_without_decay():
    """tests/training/test_optimizer.py compares that one with the published algorithm."""
    rng = np.random.default_rng(3)
    w, m, v = rng.standard_normal((3, 4, 5)).astype(np.float32)
    m, v = 0.1 * m, 0.01 * v * v
    ours, theirs = [[x.copy() for x in (w, m, v)] for _ in range(2)]
    for step in range(1, 5):
        g = rng.standard_normal((4, 5)).astype(np.float32)
        lesson.adam(ours[0], g, *ours[1:], rate=0.1, step=step)
        optimizer.adamw(theirs[0], g, *theirs[1:], scale=1, lr=0.1, decay=0, step=step)
    for x, y in zip(ours, theirs):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
        assert x.dtype == np.float32


def test_only_long_gradients_are_clipped():
    long, short = ({"a": np.full(4, x), "b": np.full((2, 6), x)} for x in (1.0, 0.1))
    lesson.clip(long)
    lesson.clip(short)
    np.testing.assert_allclose(np.concatenate([x.ravel() for x in long.values()]), 0.25)
    np.testing.assert_allclose(np.concatenate([x.ravel() for x in short.values()]), 0.1)


def test_batches_come_from_all_of_the_learned_text_and_nothing_else():
    """Here each id of the text is its own position."""
    ids = lesson.LEARNED
    try:
        lesson.LEARNED = np.arange(len(ids))
        batches = np.concatenate([lesson.batch(np.random.default_rng(i)) for i in range(500)])
    finally:
        lesson.LEARNED = ids
    assert (np.diff(batches, axis=1) == 1).all() and batches.shape[1] == lesson.N_CTX + 1
    assert batches.min() < 200 and len(ids) - 200 < batches.max() < len(ids)
    assert len(lesson.LEARNED) + len(lesson.HELD_OUT) == len(lesson.TEXT)
    assert "".join(lesson.CHARS[lesson.HELD_OUT]) == lesson.TEXT[-len(lesson.HELD_OUT) :]


def test_the_text_is_the_beginning_of_tiny_shakespeare(shared):
    play = (shared / "data" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert play.startswith(lesson.TEXT + "\n") and 299_000 < len(lesson.TEXT) <= 300_000


def test_the_program_works_from_any_directory_and_writes_text(tmp_path):
    done = run(SCRIPT, "--steps", "2", "--seed", "5", cwd=tmp_path)
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0 and done.stderr == b"" and [*tmp_path.iterdir()] == []
    assert f"counting pairs: held-out loss {lesson.bigram_loss():.3f}" in lines
    steps = [line for line in lines if line.startswith("step ")]
    *_, (loss, weights) = lesson.train(2, seed=5)
    assert len(steps) == 2 and steps[0].startswith("step 0, ")
    for value, name in (loss, ": loss "), (lesson.held_out_loss(weights), "held-out loss "):
        assert float(steps[1].split(name)[1].split(",")[0]) == pytest.approx(value, abs=2e-3)
    assert len("".join(line[4:] for line in lines[lines.index(steps[1]) + 1 :])) > 100


@pytest.mark.parametrize("option", ["--steps", "--seed"])
def test_a_wrong_number_is_a_usage_error(option):
    done = run(SCRIPT, option, "-1")
    assert done.returncode == 2 and option.encode() in done.stderr and b"Trace" not in done.stderr
