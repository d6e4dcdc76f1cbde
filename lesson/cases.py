"""What check.py gives to the functions, and what the gradients should return."""

import numpy as np

import gpt2_pico
from gpt2_pico import layer_norm, linear, softmax


def all_arguments(ids, params, hparams):
    """Return {function: [its arguments, ...]}: those it has in the first block, and some others."""
    block, n_head, eps = params["blocks"][0], hparams["n_head"], hparams["layer_norm_epsilon"]
    x = params["wte"][ids] + params["wpe"][: len(ids)]
    rows = layer_norm(x, **block["ln_1"], eps=eps)
    d = x.shape[1] // n_head
    q, k, v = (part[:, :d] for part in np.split(linear(rows, **block["attn"]["c_attn"]), 3, axis=1))
    scores = q @ k.T / d**0.5 + np.triu(np.full((len(ids), len(ids)), -np.inf, np.float32), 1)
    logits = gpt2_pico.gpt2(ids, **params, n_head=n_head, eps=eps)
    three_axes = np.array([scores, 2 * scores])
    start = ids[:-1]  # It is followed by four different ids, so a wrong one shows.
    new = list(gpt2_pico.generate(start, params, hparams, 4))
    ends_early = {**hparams, "eos_token_ids": new[2:3]}
    numbers = np.random.default_rng(0).standard_normal((3, 5))
    w, b = (block["attn"]["c_attn"][key].astype(np.float64) for key in "wb")
    return {
        "layer_norm": [{"x": x, **block["ln_1"], "eps": eps}],
        "linear": [{"x": rows, **block["attn"][key]} for key in ("c_attn", "c_proj")],
        "softmax": [{"x": x} for x in (scores, logits[-1], three_axes, 1000 * logits)],
        "head": [{"q": q, "k": k, "v": v}],
        "mha": [{"x": rows, **block["attn"], "n_head": n_head}],
        "gelu": [{"x": linear(rows, **block["mlp"]["c_fc"])}],
        "ffn": [{"x": rows, **block["mlp"]}],
        "gpt2": [{"inputs": ids, **params, "n_head": n_head, "eps": eps}],
        "generate": [
            {"inputs": start, "params": params, "hparams": settings, "n_tokens": len(new)}
            for settings in (hparams, ends_early)
        ],
        "linear_backward": [
            {"dy": numbers, "x": rows[:3, :4].astype(np.float64), "w": w[:4, :5], "b": b[:5]}
        ],
        "softmax_backward": [{"dy": numbers, "y": softmax(logits[:3, :5].astype(np.float64))}],
    }


def make_read_only(value):
    """Protect all arrays in nested lists and dicts from changes."""
    if isinstance(value, np.ndarray):
        value.flags.writeable = False
    elif isinstance(value, dict):
        make_read_only(list(value.values()))
    elif isinstance(value, list):
        for part in value:
            make_read_only(part)


def measured_gradients(name, dy, x=None, w=None, b=None, y=None):
    """Return [(label, gradient), ...], as the function of this name should: see gradients.md."""
    if name == "softmax_backward":
        x = np.log(y)  # since softmax(log(y)) is y
        return [("", slopes(lambda x: (softmax(x) * dy).sum(), x))]
    return [
        ("dx: ", slopes(lambda x: (linear(x, w, b) * dy).sum(), x)),
        ("dw: ", slopes(lambda w: (linear(x, w, b) * dy).sum(), w)),
        ("db: ", slopes(lambda b: (linear(x, w, b) * dy).sum(), b)),
    ]


def slopes(loss, x, step=1e-6):
    """Measure how fast the loss grows with each number of x."""
    result = np.empty_like(x)
    for i in np.ndindex(x.shape):
        more, less = x.copy(), x.copy()
        more[i] += step
        less[i] -= step
        result[i] = (loss(more) - loss(less)) / (2 * step)
    return result
