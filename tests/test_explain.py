"""explain.py: what it sees is what gpt2.py and transformers compute; the terminal; the file."""

import base64
import json
import re
import zlib

import numpy as np
import pytest
from conftest import EPS, GOLDEN, LONG, N_HEAD, ROOT, model_options, random_params, run, some_ids

import explain
import gpt2
import gpt2_pico
from page import data
from utils import load_encoder_hparams_and_params

SIZES = {  # n_layer, n_head, n_embd
    "124M": (12, 12, 768),
    "355M": (24, 16, 1024),
    "774M": (36, 20, 1280),
    "1558M": (48, 25, 1600),
}


def model_of(params, n_head=N_HEAD, eps=EPS):
    return {**params, "n_head": n_head, "eps": eps}


def forward(ids, params):
    return gpt2.gpt2(ids, **params, n_head=N_HEAD, eps=EPS)


def all_streams(ids, model):
    seen = list(explain.look(ids, **model))
    streams = [x for block in seen for x in (block.x, block.middle)] + [seen[-1].end]
    return np.stack(streams), np.stack([block.mixed for block in seen]), seen


def logits_of(stream, model):
    return np.concatenate([logits for _, logits in explain.read_out(stream, **model)])


def unpack(array):
    """What data.js does."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(array["data"])), np.uint8)
    itemsize = int(array["type"][1:])
    numbers = (
        planes.reshape(itemsize, -1).T.copy().view("<" + array["type"]).reshape(array["shape"])
    )
    return numbers * array["step"] if array["step"] else numbers


def read_page(page):
    content = re.search(rb'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)[1]
    facts = json.loads(content)
    return facts, {name: unpack(x) for name, x in facts["arrays"].items()}


@pytest.fixture(scope="module")
def shipped():
    encoder, hparams, params = load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))
    model = model_of(params, hparams["n_head"], hparams["layer_norm_epsilon"])
    return encoder, hparams, params, model


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "explain.npz")


@pytest.fixture(scope="module")
def recorded(shipped, golden):
    """The record of the golden text, of which the first twelve tokens are the prompt."""
    _, hparams, params, _ = shipped
    arrays, fits, notes = explain.record(golden["ids"].tolist(), 12, None, params, hparams)
    arrays = {name: x[0] * x[1] if isinstance(x, tuple) else x for name, x in arrays.items()}
    return arrays, fits, notes


# The pass that is watched


@pytest.mark.parametrize("n", [1, 7, 48])
def test_the_watched_pass_ends_where_gpt2_does(n):
    params, ids = random_params(3), some_ids(n)
    model = model_of(params)
    streams, _, _ = all_streams(ids, model)
    np.testing.assert_allclose(
        logits_of(streams[-1], model), forward(ids, params), rtol=0, atol=1e-4
    )
    pico = gpt2_pico.gpt2(ids, **model)
    np.testing.assert_allclose(logits_of(streams[-1], model), pico, rtol=0, atol=1e-4)


def test_a_text_of_several_pieces_is_watched_the_same():
    params, ids = random_params(5, n_ctx=LONG), some_ids(LONG)
    model = model_of(params)
    streams, _, seen = all_streams(ids, model)
    np.testing.assert_allclose(
        logits_of(streams[-1], model), forward(ids, params), rtol=0, atol=2e-4
    )
    for block in seen:
        np.testing.assert_allclose(block.weights.sum(-1), 1, atol=1e-5)
        assert not np.triu(block.weights, 1).any()


@pytest.mark.parametrize("half", range(6))
def test_a_pass_can_start_before_any_half_block(half):
    params, ids = random_params(4), some_ids(9)
    model = model_of(params)
    streams, _, _ = all_streams(ids, model)
    end = explain.resume(streams[half], half, **model)
    np.testing.assert_allclose(end, streams[-1], rtol=0, atol=1e-4)


def test_everything_seen_is_float32():
    model = model_of(random_params(6))
    for block in explain.look(some_ids(5), **model):
        assert {x.dtype for x in block} == {np.dtype(np.float32)}


def test_what_is_seen_is_what_transformers_computes(shipped, golden):
    *_, model = shipped
    streams, _, seen = all_streams(golden["ids"], model)
    weights = np.stack([block.weights for block in seen])
    np.testing.assert_allclose(weights, golden["weights"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(streams[:, -1], golden["stream"], rtol=0, atol=1e-4)
    ids, p = explain.lens(streams, slice(None), model)
    np.testing.assert_allclose(p[..., :2], golden["lens_p"], rtol=0, atol=1e-4)
    assert np.mean(ids[..., 0] == golden["lens_ids"][..., 0]) > 0.999
    np.testing.assert_allclose(logits_of(streams[-1:, -1], model)[0], golden["logits"], atol=1e-3)


# Shares and knock-outs


def test_shares_add_up_to_the_logit(recorded, golden):
    arrays, fits, _ = recorded
    assert fits["shares"] == slice(0, len(golden["ids"]))
    sums = arrays["shares"].sum(-1)[:, :-1]
    np.testing.assert_allclose(sums, arrays["logits"], rtol=0, atol=1e-4)
    exact = golden["logits"][arrays["candidates"][-1]]
    np.testing.assert_allclose(sums[-1], exact, rtol=0, atol=1e-4)


def test_a_share_is_what_its_part_adds(shipped, golden):
    """A head's share is the change of the logit, with the scale held, where its output is 0."""
    *_, model = shipped
    ids, at = golden["ids"], slice(None)
    streams, mixed, _ = all_streams(ids, model)
    candidates = np.tile(np.arange(3), (len(ids), 1))
    found = explain.shares(ids, at, candidates, streams, mixed, **model)
    i, head = 2, 3
    w = model["blocks"][i]["attn"]["c_proj"]["w"][64 * head : 64 * (head + 1)]
    x = streams[-1].astype(np.float64)
    scale = np.sqrt(x.var(-1, keepdims=True) + model["eps"])
    without = x - mixed[i][:, 64 * head : 64 * (head + 1)] @ w

    def logits(x):
        x = (x - x.mean(-1, keepdims=True)) / scale * model["ln_f"]["g"] + model["ln_f"]["b"]
        return x @ model["wte"].T

    n_others = 2 + i * (model["n_head"] + 1)
    change = logits(x) - logits(without)
    np.testing.assert_allclose(found[:, :3, n_others + head], change[:, :3], atol=1e-4)
    np.testing.assert_allclose(found[:, 3, n_others + head], change.mean(-1), atol=1e-4)


class Bar:
    def update(self):
        pass


@pytest.mark.parametrize("name, whole", [("knocked", False), ("layers", True)])
def test_knock_outs_are_passes_of_transformers_without_that_part(name, whole, shipped, golden):
    *_, model = shipped
    streams, mixed, _ = all_streams(golden["ids"], model)
    best = golden["best"][:, None]
    p = explain.knock_outs(slice(None), best, streams, mixed, whole, model, Bar())
    np.testing.assert_allclose(p[..., 0], golden[name], rtol=0, atol=1e-4)


# What is kept of it


def test_the_text_itself_is_always_among_the_candidates(recorded, golden):
    arrays, ids = recorded[0], golden["ids"]
    assert all(next_id in row for next_id, row in zip(ids[1:], arrays["candidates"]))
    best = np.argsort(-golden["logits"])[:10]
    assert arrays["candidates"][-1].tolist() == best.tolist()


def test_rounding_loses_little(recorded, golden):
    weights = (recorded[0]["weights"] / 255.0) ** 2
    n = len(golden["ids"])
    exact = golden["weights"][:, :, np.tri(n, dtype=bool)]
    np.testing.assert_allclose(weights, exact, rtol=0, atol=0.004)


def test_the_tail_of_a_distribution_is_kept_well_enough(recorded, shipped, golden):
    """The sum that every probability is divided by, at any temperature: 200 tokens and bins."""
    arrays = recorded[0]
    logits = golden["logits"].astype(np.float64)
    start, stop = arrays["bin_starts"][-2:]
    counts, means = arrays["bin_counts"][start:stop], arrays["bin_means"][start:stop]
    assert counts.sum() + 200 == len(logits)
    best = arrays["best_logits"][-1].astype(np.float64)
    tail = best[-1] - (np.arange(stop - start) + (means + 0.5) / 256) / 16
    for temperature in 0.1, 0.5, 1, 2, 10:
        largest = logits.max()
        exact = np.exp((logits - largest) / temperature).sum()
        kept = np.exp((best - largest) / temperature).sum()
        kept += (counts * np.exp((tail - largest) / temperature)).sum()
        assert abs(kept / exact - 1) < 1e-4


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.float32, np.int64])
def test_packing_loses_nothing(dtype):
    x = np.random.default_rng(0).integers(0, 100, size=(3, 0, 2)).astype(dtype)
    assert unpack(data.pack(x)).shape == x.shape
    x = np.random.default_rng(0).integers(0, 100, size=(3, 5, 2)).astype(dtype) * 3
    assert (unpack(data.pack(x[:, ::2])) == x[:, ::2]).all()


@pytest.mark.parametrize("n", [1, 40, 300, 1024])
@pytest.mark.parametrize("size", ["124M", "355M", "774M", "1558M"])
def test_a_page_stays_small_at_any_size_and_length(size, n):
    """What is kept, in bytes before they are deflated; base64 makes 4 of 3."""
    n_layer, n_head, n_embd = SIZES[size]
    hparams = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "n_vocab": 50257}
    fits, notes = data.what_fits(n, max(1, n // 2), hparams)
    m = {name: x.stop - x.start for name, x in fits.items() if isinstance(x, slice)}
    n_parts = n_layer * (n_head + 1)
    if fits["strongest"]:
        weights = n_layer * n_head * m["weights"] * fits["strongest"] * 3
    else:
        weights = n_layer * n_head * n * (n + 1) // 2
    rest = m["shares"] * (11 * 4 * (n_parts + 3) + 20 * fits["passes"])
    rest += len(fits["steps"]) * m["lens"] * 20 + n_layer * n * (fits["fired"] * 7 + n_head + 16)
    rest += n * (60 + fits["best"] * 6 + fits["bins"] * 27 * 3) + 14 * 8192 + 13 * 50257
    products = 2 * n_layer * n_embd * (m["products"] + 4)
    assert (weights + products + rest) * 4 / 3 < 1.1 * data.MOST_BYTES  # before they are deflated
    assert all(0 <= x.start < x.stop <= n for x in fits.values() if isinstance(x, slice))
    if n <= 40 or (size == "124M" and n <= 100):
        assert not [note for note in notes if "knock-outs of whole" not in note]


def test_the_prompts_end_is_always_among_what_is_kept():
    hparams = {"n_layer": 48, "n_head": 25, "n_embd": 1600, "n_vocab": 50257}
    for n, n_prompt in (1024, 1), (1024, 500), (1024, 1024), (300, 40):
        fits, _ = data.what_fits(n, n_prompt, hparams)
        assert all(x.start < n_prompt <= x.stop for x in fits.values() if isinstance(x, slice))


# The command


def lines(*args, **options):
    done = run("explain.py", *args, **options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    return done.stdout.decode().split("\n")


SHIPPED = "--model_size", "shakespeare", "--models_dir", ROOT / "models"


def test_the_terminal_shows_tokens_what_may_follow_and_the_lens(shipped):
    encoder, hparams, params, model = shipped
    text = lines("To be, or not to", *SHIPPED, "--top", "4")
    assert text[1] == "  'To' 397  ' be' 305  ',' 12  ' or' 530  ' not' 322  ' to' 288"
    logits = gpt2.gpt2(encoder.encode("To be, or not to"), **model)[-1]
    p = gpt2.probabilities(logits)
    for line, id_ in zip(text[4:8], np.argsort(-p)):
        assert re.fullmatch(rf" +{100 * p[id_]:.1f} %  {encoder.decode([id_])!r} +█+", line)
    assert text[8] == "" and len(text[10:-1]) == 2 * hparams["n_layer"] + 1
    assert text[10].startswith("  embedding") and text[11].startswith("  block 0 attention")
    assert text[-2].startswith("  block 5 MLP") and "15.5 % ' be'" in text[-2]


def test_the_terminal_shows_what_the_settings_leave():
    text = lines("To be, or not to", *SHIPPED, "--top_k", "2", "--temperature", "0.5")
    assert text[4].startswith("   95") and text[6] == ""


@pytest.mark.parametrize("text", [b"", b"\xe2\x98\x83", b"\0\x1b[31m", b"a\r\n"])
def test_any_prompt_from_standard_input(text):
    shown = lines("-", *SHIPPED, stdin=text)[1]
    assert "\x1b" not in shown and "\0" not in shown
    assert text or shown == "  '<|endoftext|>' 0"
    assert text != b"\xe2\x98\x83" or r"b'\xe2'" in shown
    assert text != b"a\r\n" or len(shown.split()) == 2


def test_standard_output_can_be_the_page(models_dir, tmp_path):
    args = "low", *model_options(models_dir), "--n_tokens_to_generate", "2"
    done = run("explain.py", *args, "--page", "-")
    assert done.returncode == 0 and done.stderr == b""
    path = tmp_path / "page.html"
    said = run("explain.py", *args, "--page", path)
    assert said.stdout == b"" and str(path).encode() in said.stderr
    assert path.read_bytes() == done.stdout
    facts, arrays = read_page(done.stdout)
    assert facts["n_prompt"] == len(facts["ids"]) - 2
    assert arrays["word_lengths"].sum() == len(arrays["word_bytes"])


def test_a_page_is_replaced_whole_or_not_at_all(models_dir, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("before")
    args = ["low", *map(str, model_options(models_dir)), "--page", str(path)]

    def fails(*args, **options):
        raise ValueError("damaged")

    with monkeypatch.context() as patch:
        patch.setattr(explain, "build", fails)
        assert explain.main(args) == 1
    assert path.read_text() == "before" and [*tmp_path.iterdir()] == [path]
    assert explain.main(args) == 0
    assert path.read_bytes().startswith(b"<!doctype html>") and [*tmp_path.iterdir()] == [path]


def test_a_page_that_would_be_too_large_is_not_written(models_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "MOST_BYTES", 1000)
    path = tmp_path / "page.html"
    args = ["low", *map(str, model_options(models_dir)), "--page", str(path)]
    assert explain.main(args) == 1
    assert "shorter text" in capsys.readouterr().err and not path.exists()


@pytest.mark.parametrize(
    "args, status, said",
    [
        (["low", "--page", "nowhere/page.html"], 1, "nowhere"),
        ([], 2, "prompt"),
        (["low", "--top", "0"], 2, "--top"),
        (["low", "--model_size", "nothing"], 2, "unknown model"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(args, status, said, models_dir):
    done = run("explain.py", *model_options(models_dir), *args)
    assert done.returncode == status and said in done.stderr.decode().split("\n")[-2]
    assert done.stdout == b"" and b"Traceback" not in done.stderr


def test_a_stop_and_the_end_of_the_context_end_a_page(models_dir, tiny):
    options = *model_options(models_dir), "--temperature", "1", "--seed", "2", "--page", "-"
    facts, _ = read_page(run("explain.py", "low", *options, "--n_tokens_to_generate", "-1").stdout)
    assert len(facts["ids"]) <= 32 and not facts["beyond"]
    text = tiny[0].decode(facts["ids"][facts["n_prompt"] :])
    stop = text[3]
    facts, _ = read_page(run("explain.py", "low", *options, "--stop", stop).stdout)
    assert facts["ended"] == "stop"
    assert stop not in tiny[0].decode(facts["ids"][facts["n_prompt"] :])
