"""gpt2_pico.py against transformers (golden file), its own docstring, and gpt2.py's command."""

import re

import numpy as np
import pytest
from conftest import (
    EPS,
    GOLDEN,
    LONG,
    N_HEAD,
    N_VOCAB,
    ROOT,
    TINY,
    model_options,
    random_params,
    run,
    run_copied,
    some_ids,
    watch,
)

import cli
import gpt2
import gpt2_pico
from model_files.directory import save_model
from utils import load_encoder_hparams_and_params


def forward(ids, params):
    return gpt2_pico.gpt2(ids, **params, n_head=N_HEAD, eps=EPS)


def tokens(ids, params, n, **hparams):
    return list(gpt2_pico.generate(ids, params, {**TINY, **hparams}, n))


def test_logits_are_those_of_transformers():
    golden = np.load(GOLDEN / "model.npz")
    for ids, logits in zip(golden["ids"], golden["logits"], strict=True):
        np.testing.assert_allclose(forward(ids, random_params(seed=1)), logits, rtol=0, atol=1e-4)


def test_the_trace_in_the_docstring_is_true(monkeypatch):
    """Each of its numbers and quoted texts, in order."""
    trace = gpt2_pico.__doc__.split("\n\n")[1]
    encoder, hparams, params = load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))
    assert "models/shakespeare" in trace
    shapes, layer_norm = [], gpt2_pico.layer_norm

    def watched(x, *args, **keywords):
        shapes.append(x.shape)
        return layer_norm(x, *args, **keywords)

    monkeypatch.setattr(gpt2_pico, "layer_norm", watched)
    texts = re.findall('"(.*?)"', trace)
    ids = encoder.encode(texts[0])
    eps = hparams["layer_norm_epsilon"]
    logits = gpt2_pico.gpt2(ids, **params, n_head=hparams["n_head"], eps=eps)
    p = gpt2_pico.softmax(logits[-1])
    best = np.argsort(-p)[:3].tolist()
    assert texts[1:] == [*(encoder.decode([i]) for i in best), encoder.decode(best[:1])]
    n_blocks = (len(shapes) - 1) // 2  # each has two layer_norms, and one comes after them all
    numbers = [*ids, *shapes[0], shapes[-1][1], n_blocks, *logits.shape, len(logits)]
    numbers += [f"{100 * p[i]:.1f}" for i in best]
    assert re.findall(r"[\d.]*\d", trace) == [str(number) for number in numbers]


def test_softmax_of_large_scores_does_not_overflow():
    x = np.array([[1000, 1000, -np.inf], [-2000, -2000 + np.log(3), -3000]], np.float64)
    np.testing.assert_allclose(gpt2_pico.softmax(x), [[0.5, 0.5, 0], [0.25, 0.75, 0]], atol=1e-12)


@pytest.mark.parametrize("t", [1, 40, 64, LONG - 1])
def test_later_tokens_do_not_change_earlier_logits(t):
    ids, params = some_ids(LONG), random_params(seed=5, n_ctx=LONG)
    changed = np.append(ids[:t], (ids[t:] + 1) % N_VOCAB)
    before, after = forward(ids, params), forward(changed, params)
    assert np.array_equal(before[:t], after[:t])
    assert (before[t:] != after[t:]).any(-1).all()  # and that each position sees its own token


def test_each_token_is_the_most_likely_one_after_all_before_it():
    params, ids = random_params(seed=2), [3, 1, 4]
    found = tokens(ids, params, 20)
    logits = forward(ids + found, params)
    assert found == logits[len(ids) - 1 : -1].argmax(-1).tolist() and len(found) == 20
    assert ids == [3, 1, 4]  # the caller's list has not changed


def test_generation_ends_at_an_end_of_text():
    params, ids = random_params(seed=9), [3, 1, 4]
    found = tokens(ids, params, 30)
    eos = found[12]
    other = min({*range(N_VOCAB)} - {*found})
    for ends in [eos], [other, eos], [eos, other]:
        assert tokens(ids, params, 30, eos_token_ids=ends) == found[: found.index(eos)]


def test_a_text_longer_than_the_context_is_refused():
    params = random_params()
    with pytest.raises(ValueError, match="the prompt is empty"):
        tokens([], params, 5)
    for n_inputs, n in (49, 0), (48, 1), (1, 48), (20, 29):
        with pytest.raises(ValueError, match=f"{n_inputs} tokens and {n} .* context of 48"):
            tokens([5] * n_inputs, params, n)
    assert len(tokens([5] * 20, params, 28)) == 28 and tokens([5] * 48, params, 0) == []


@pytest.mark.usefixtures("numpy_2_promotion")
def test_every_function_keeps_float32(monkeypatch):
    seen, params = watch(gpt2_pico, monkeypatch), random_params(seed=5, n_ctx=LONG)
    for n in (1, 5, LONG):
        forward(some_ids(n), params)
    tokens([1, 2, 1, 2, 1], params, 5)
    assert {"gelu", "softmax", "layer_norm", "linear", "head", "mha", "ffn", "gpt2"} <= set(seen)
    assert {name: dtypes for name, dtypes in seen.items() if dtypes - {np.dtype("float32")}} == {}


def test_the_command_prints_what_gpt2_prints(models_dir):
    args = "low and slow", "--n_tokens_to_generate", "20", *model_options(models_dir)
    slow, fast = run("gpt2_pico.py", *args), run("gpt2.py", *args)
    assert (slow.returncode, fast.stderr) == (0, b"")
    assert slow.stdout == fast.stdout and len(slow.stdout) > 20


def test_the_command_says_on_one_line_when_its_text_repeats_itself():
    model = "--model_size", "shakespeare"
    loop, other = run("gpt2_pico.py", "To be, or not to", *model), run("gpt2_pico.py", "It", *model)
    assert loop.stdout.count(b"DUKE OF YORK:\nI am a king, and I am a king.\n") == 2
    assert loop.stderr.startswith(b"the text repeats itself") and loop.stderr.count(b"\n") == 1
    assert (other.returncode, other.stderr) == (0, b"") and len(other.stdout) > 40


def test_what_the_message_recommends_avoids_the_repetition(capsys):
    encoder, hparams, params = load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))
    inputs = encoder.encode("To be, or not to")
    for seed in range(5):
        cli.warn_of_repetition(
            [*gpt2.generate(inputs, params, hparams, 40, temperature=0.8, seed=seed)]
        )
    assert capsys.readouterr().err == ""
    cli.warn_of_repetition([*gpt2.generate(inputs, params, hparams, 40)])
    assert "--temperature 0.8" in capsys.readouterr().err


def test_the_command_fails_in_one_line(models_dir, tiny, tmp_path):
    encoder, hparams, params = tiny
    save_model(tmp_path / "cut", hparams, params, encoder.vocabulary)
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for args, word in (
        (["", *model_options(models_dir)], "prompt is empty"),
        (["x" * 33, "--n_tokens_to_generate", "1", *model_options(models_dir)], "context of 32"),
        (["x", *model_options(tmp_path, "cut")], "model.safetensors"),
    ):
        done = run("gpt2_pico.py", *args)
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
        assert done.stderr.decode().startswith("gpt2_pico.py: error: ")
        assert word in done.stderr.decode()
    done = run("gpt2_pico.py", "x", "--n_tokens_to_generate", "-1", *model_options(models_dir))
    assert done.returncode == 2 and b"-1 is not at least 0" in done.stderr
    done = run("gpt2_pico.py", "x", *model_options(models_dir, "nosuch"))
    assert done.returncode == 2 and b"give a size (124M" in done.stderr


def test_a_copy_of_the_file_alone_needs_numpy_and_nothing_else(tmp_path):
    code = "from gpt2_pico import generate, gpt2; print(sorted({*sys.modules} & {'cli', 'utils'}))"
    assert run_copied(["gpt2_pico"], code, tmp_path) == "[]\n"
