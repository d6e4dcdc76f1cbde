"""benchmarks/goals.py: what is reached and what is missed."""

import importlib.util

from conftest import ROOT

SPEC = importlib.util.spec_from_file_location("goals", ROOT / "benchmarks" / "goals.py")
goals = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(goals)


def measured(decode, prefill=None, whole=None):
    prefill = {} if prefill is None else {128: [prefill]}
    return {"decode": {40: [decode]}, "prefill": prefill, "whole": whole or []}


def test_a_verdict_has_the_figure_and_its_limit_is_reached():
    assert goals.verdict("speed", 0.95, at_least=0.95) == (
        "- goal speed at least 0.95: reached (0.95)"
    )
    assert goals.verdict("time", 1.0, at_most=1.0).endswith("reached (1.00)")
    assert goals.verdict("speed", 0.9, at_least=0.95).endswith("missed (0.90)")
    assert goals.verdict("time", 1.1, at_most=1.0).endswith("missed (1.10)")


def test_times_and_speeds_are_compared_the_right_way_round():
    results = {
        "NumPy plain": measured(1.0, 0.2, [(0.5, 500.0)]),
        "NumPy": measured(0.5, 0.1, [(0.6, 510.0)]),
        "transformers": measured(2.0, 0.08, [(4.0, 900.0)]),
        "llama.cpp F32": measured(0.9, 0.1, [(1.0, 600.0)]),
    }
    lines = goals.of_peers("124M, repeats", results, weights=500.0)
    figures = [line.rsplit(": ", 1)[1] for line in lines]
    decoding, prompt = ["missed (0.90)", "reached (2.00)"], ["missed (1.25)"]
    assert figures == decoding + prompt + ["reached (0.60)", "reached (0.15)", "reached (1.02)"]


def test_peers_that_took_no_part_and_what_was_not_measured_have_no_verdict():
    lines = goals.of_peers("355M, wanders", {"NumPy plain": measured(1.0)}, weights=500.0)
    assert len(lines) == 1 and "drafts" in lines[0]


def test_a_larger_model_has_a_larger_limit():
    results = {"NumPy plain": measured(1.0, 0.11), "transformers": measured(1.0, 0.10)}
    of = [goals.of_peers(title, results, 1.0)[-1] for title in ("124M, repeats", "355M, repeats")]
    assert "missed" in of[0] and "reached" in of[1]
