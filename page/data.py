"""Decide how much a page contains, pack it for data.js, and put everything into one HTML file."""

import base64
import hashlib
import html
import json
import re
import zlib
from pathlib import Path

import numpy as np

ADDRESS = ""  # If the project has a web address (https://.../blob/main), pages link to the lesson.
HERE = Path(__file__).resolve().parent
SCRIPTS = "data", "parts", "strip", "lens", "attention", "stream", "why", "choosing", "main"
N_CANDIDATES = 10  # At each position, the page explains the logits of this many tokens.

# The page of a short text contains everything. For long texts, these limits keep the page below
# MAX_BYTES and the time to make it below a few minutes.
MAX_BYTES = 25_000_000
MAX_PATTERN = 4_000_000  # An attention weight takes two bytes. If there are more weights than this,
MAX_STRONGEST = 1_100_000  # the page contains the largest of each query, with four bytes each.
MAX_QK = 3_100_000  # Each number of a query or a key takes two bytes.
MAX_QK_POSITIONS = 200
MAX_LENS = 26_000  # Each cell of the lens takes a product with the embeddings of all tokens.
MAX_ATTRIBUTION = 560_000  # A contribution to a logit takes up to four bytes.
MAX_ATTRIBUTION_POSITIONS = 170
MAX_NEURONS = 140_000  # An activation of a neuron takes eight bytes, with its index and length.
MAX_NEURONS_PER_TOKEN = 16
MAX_PROMOTING = 8_192  # The tokens that a neuron promotes take such a product, too.
MAX_BEST = 150_000  # A likely next token takes six bytes.
MAX_BINS_PER_NAT = 10_000  # All positions share these bins, which count the logits of other tokens.
N_BINS = 1024  # Each position has this many bins.
A_MINUTE = 9e12  # Two cores do about this many operations in a minute.


def what_fits(n, n_prompt, hparams):
    """Return a dict of how much a page contains of a text of n tokens. Slices are positions.

    steps: indices of the residual streams in the lens. strongest: how many attention weights per
    query, 0 for all. best, neurons: how many per position. bins: how many per nat. passes: how many
    parts are ablated; if whole_layers, the heads of a block are a single part.
    """
    n_layer, n_head, n_embd = (hparams[name] for name in ("n_layer", "n_head", "n_embd"))

    def positions(limit):
        """Return at most limit positions, from the prompt's last token on if enough follow it."""
        m = max(1, min(n, limit))
        start = min(n_prompt - 1, n - m)
        return slice(start, start + m)

    steps = list(range(2 * n_layer + 1))
    if len(steps) * n > MAX_LENS:
        steps = steps[::2]  # the streams after whole blocks
    strongest = 0
    n_queries = n
    if n_layer * n_head * n * (n + 1) // 2 > MAX_PATTERN:
        strongest = min(n, max(4, MAX_STRONGEST // (n_layer * n_head * n)))
        n_queries = MAX_STRONGEST // (4 * n_layer * n_head)
    n_parts = n_layer * (n_head + 1)
    n_contributions = (N_CANDIDATES + 1) * (n_parts + 3)  # at each position
    attribution = positions(min(MAX_ATTRIBUTION_POSITIONS, MAX_ATTRIBUTION // n_contributions))
    # An ablation runs half of the blocks on average, with two operations per token and parameter.
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
    """Return all weights that the mask allows, query after query, or the largest and their keys."""
    n = pattern.shape[2]
    if n_strongest == 0:
        return {"pattern": quantize_root(pattern[:, np.tri(n, dtype=bool)])}
    keys = np.argpartition(pattern, -n_strongest, axis=-1)[..., -n_strongest:]
    keys = np.sort(keys, axis=-1)
    weights = quantize_root(np.take_along_axis(pattern, keys, -1))
    return {"pattern": weights, "pattern_keys": keys}


def quantize_root(x, dtype=np.uint16):  # from 0 to 1 -> from 0 to the largest number of the type
    """Return rounded square roots, because these keep more digits of small numbers."""
    return np.round(np.sqrt(x) * np.iinfo(dtype).max).astype(dtype)


def pack(x):
    """Return an array as JSON can store it: type, shape, and compressed numbers in base64."""
    if x.dtype == np.int64:
        x = x.astype(np.uint16 if x.max(initial=0) < 2**16 else np.uint32)
    x = np.ascontiguousarray(x.astype(x.dtype.newbyteorder("<"), copy=False))
    # The first bytes of all numbers, then the second bytes: similar bytes compress well together.
    planes = x.reshape(-1, 1).view(np.uint8).T.tobytes()
    numbers = base64.b64encode(zlib.compress(planes)).decode()
    return {"type": x.dtype.str[1:], "shape": x.shape, "data": numbers}


def build_page(facts, arrays, encoder):
    """Return the page, in bytes. facts: a dict for JSON with all data that is not in the arrays."""
    tokens = [encoder.decode_bytes([id_]) for id_ in range(encoder.n_vocab)]
    arrays = {
        **arrays,
        "token_bytes": np.frombuffer(b"".join(tokens), np.uint8),
        "token_lengths": np.array([*map(len, tokens)], np.int64),
    }
    packed = {name: pack(x) for name, x in arrays.items()}
    facts = {"address": ADDRESS, **facts, "arrays": packed}
    # JSON has no slices, so default turns the slices of what_fits into lists.
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
        "data": data.replace("<", "\\u003c"),  # so that no text can end the <script> element
    }
    page = (HERE / "page.html").read_text("utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page).encode()
    if len(page) > MAX_BYTES:
        raise ValueError(f"the page would have {len(page) / 1e6:.0f} MB: use a shorter text")
    return page


def project_address(path):
    """Return where a page with this path finds the project's files, or "" if it cannot.

    Without ADDRESS, a page inside a checkout gets a relative address. A page elsewhere gets none,
    because pages are passed on and should not name the directories of this computer.
    """
    root, directory = HERE.parent, Path(path).resolve().parent
    if ADDRESS or path == "-" or not directory.is_relative_to(root):
        return ADDRESS
    return "/".join([".", *[".."] * len(directory.relative_to(root).parts)])


def sha256(text):
    """Return the hash of a script or style, as the page's content security policy needs it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
