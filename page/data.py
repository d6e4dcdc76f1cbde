"""Choose what a page holds, pack it as data.js reads it, and put everything into one HTML file."""

import base64
import hashlib
import html
import json
import re
import zlib
from pathlib import Path

import numpy as np

ADDRESS = ""  # of the project, such as https://host/owner/name/blob/main: links to the lesson
HERE = Path(__file__).resolve().parent
SCRIPTS = "data", "parts", "strip", "lens", "attention", "stream", "why", "choosing", "main"
N_CANDIDATES = 10  # next tokens for which the page says why

# The page of a short text holds everything. For long texts, these limits keep the page below
# MAX_BYTES and the time to make it below a few minutes.
MAX_BYTES = 25_000_000
MAX_PATTERN = 7_000_000  # attention weights, one byte each. If there are more,
MAX_STRONGEST = 1_800_000  # only the largest of each query are kept, three bytes each.
MAX_QK = 6_200_000  # numbers of queries and keys, one byte each
MAX_QK_POSITIONS = 200
MAX_LENS = 26_000  # cells of the lens, each of them a product with the whole vocabulary
MAX_ATTRIBUTION = 560_000  # contributions to logits, up to four bytes each
MAX_ATTRIBUTION_POSITIONS = 170
MAX_NEURONS = 140_000  # activations of neurons, seven bytes each
MAX_NEURONS_PER_TOKEN = 16
MAX_PROMOTING = 8_192  # neurons whose tokens are computed, also a product with the vocabulary each
MAX_BEST = 150_000  # likely next tokens, six bytes each
MAX_BINS_PER_NAT = 10_000  # for the logits of all other tokens, at all positions together
N_BINS = 1024  # at a position
A_MINUTE = 9e12  # operations, on two cores


def what_fits(n, n_prompt, hparams):
    """Return what a page holds of a text of n tokens, as a dict. Slices are positions.

    steps: those of residual_streams that the lens reads. strongest: attention weights per query, or
    0 for all. best, neurons: how many per position. bins: per nat. passes: with one part ablated, a
    head or an MLP, or if whole_layers the attention or the MLP of a block.
    """
    n_layer, n_head, n_embd = (hparams[name] for name in ("n_layer", "n_head", "n_embd"))

    def positions(limit):
        """Return the positions from the last one of the prompt on, or the last ones of the text."""
        m = max(1, min(n, limit))
        start = min(n_prompt - 1, n - m)
        return slice(start, start + m)

    steps = list(range(2 * n_layer + 1))
    if len(steps) * n > MAX_LENS:
        steps = steps[::2]  # after whole blocks
    strongest = 0
    n_queries = n
    if n_layer * n_head * n * (n + 1) // 2 > MAX_PATTERN:
        strongest = min(n, max(4, MAX_STRONGEST // (n_layer * n_head * n)))
        n_queries = MAX_STRONGEST // (4 * n_layer * n_head)
    n_parts = n_layer * (n_head + 1)
    n_contributions = (N_CANDIDATES + 1) * (n_parts + 3)  # of a position
    attribution = positions(min(MAX_ATTRIBUTION_POSITIONS, MAX_ATTRIBUTION // n_contributions))
    # A pass runs half of the blocks on average, with two operations per token and parameter.
    operations = 12 * n_layer * n_embd**2 * n
    operations += 2 * (attribution.stop - attribution.start) * n_embd * hparams["n_vocab"]
    passes = n_parts
    whole_layers = n_parts * operations > A_MINUTE
    if whole_layers:
        passes = 2 * n_layer if 2 * n_layer * operations < 5 * A_MINUTE else 0
    return {
        "steps": steps,
        "lens": positions(MAX_LENS // len(steps)),
        "strongest": strongest,
        "pattern": positions(n_queries),
        "qk": positions(min(MAX_QK_POSITIONS, MAX_QK // (2 * n_layer * n_embd))),
        "best": min(200, max(10, MAX_BEST // n)),
        "bins": min(16, max(1, MAX_BINS_PER_NAT // n)),
        "neurons": max(1, min(MAX_NEURONS_PER_TOKEN, MAX_NEURONS // (n_layer * n))),
        "attribution": attribution,
        "passes": passes,
        "whole_layers": whole_layers,
    }


def thin_pattern(pattern, n_strongest):  # [h, m, n], the last m of n queries
    """Return all weights that the mask allows, query after query, or the strongest with keys."""
    n = pattern.shape[2]
    if n_strongest == 0:
        return {"pattern": quantize_root(pattern[:, np.tri(n, dtype=bool)])}
    keys = np.argpartition(pattern, -n_strongest, axis=-1)[..., -n_strongest:]
    keys = np.sort(keys, axis=-1)
    weights = quantize_root(np.take_along_axis(pattern, keys, -1))
    return {"pattern": weights, "pattern_keys": keys}


def quantize_root(x, dtype=np.uint8):  # from 0 to 1 -> from 0 to the largest number of the type
    """Return rounded square roots, in which small numbers keep more of their digits."""
    return np.round(np.sqrt(x) * np.iinfo(dtype).max).astype(dtype)


def pack(x):
    """Return an array for JSON: its type, its shape, and its compressed numbers in base64."""
    if x.dtype == np.int64:
        x = x.astype(np.uint16 if x.max(initial=0) < 2**16 else np.uint32)
    x = np.ascontiguousarray(x.astype(x.dtype.newbyteorder("<"), copy=False))
    # The first bytes of all numbers, then the second bytes: deflate likes what is alike together.
    planes = x.reshape(-1, 1).view(np.uint8).T.tobytes()
    numbers = base64.b64encode(zlib.compress(planes)).decode()
    return {"type": x.dtype.str[1:], "shape": x.shape, "data": numbers}


def build_page(facts, arrays, encoder):
    """Return the page, in bytes. facts: what data.js finds beside the arrays, ready for JSON."""
    tokens = [encoder.decode_bytes([id_]) for id_ in range(encoder.n_vocab)]
    arrays = {
        **arrays,
        "token_bytes": np.frombuffer(b"".join(tokens), np.uint8),
        "token_lengths": np.array([*map(len, tokens)], np.int64),
    }
    packed = {name: pack(x) for name, x in arrays.items()}
    facts = {**facts, "address": ADDRESS, "arrays": packed}
    # JSON has no slices: default turns those of what_fits into lists.
    data = json.dumps(facts, separators=(",", ":"), default=lambda x: [x.start, x.stop])
    script = "\n".join((HERE / f"{name}.js").read_text("utf-8") for name in SCRIPTS)
    style = (HERE / "style.css").read_text("utf-8")
    title = encoder.decode(facts["ids"][: facts["n_prompt"]])[:60]
    parts = {
        "title": html.escape(re.sub(r"[\0-\x1f\x7f]+", " ", title)),
        "style_hash": sha256(style),
        "script_hash": sha256(script),
        "style": style,
        "script": script,
        "data": data.replace("<", "\\u003c"),  # no text can end the element that holds it
    }
    page = (HERE / "page.html").read_text("utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page).encode()
    if len(page) > MAX_BYTES:
        raise ValueError(f"the page would have {len(page) / 1e6:.0f} MB: use a shorter text")
    return page


def sha256(text):
    """Return a hash as the page's content security policy names a script or style by it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
