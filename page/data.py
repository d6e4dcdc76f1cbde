"""What a page holds: thinned out to what a file may weigh, packed, and put into the HTML.

data.js reads what is written here. An array is deflated and in base64, since a page is text.
"""

import base64
import hashlib
import html
import json
import re
import zlib
from pathlib import Path

import numpy as np

ADDRESS = ""  # where the project can be read, such as https://host/owner/name/blob/main: for links
HERE = Path(__file__).resolve().parent
SCRIPTS = "data parts strip lens attention stream why choosing main".split()

# How much of a long text a page holds: see benchmarks/results/page.md for what becomes of it.
MOST_BYTES = 25_000_000
N_WEIGHTS = 7_000_000  # attention weights, a byte each; if that is not all,
N_STRONGEST = 1_800_000  # the largest ones, three bytes each
N_PRODUCTS, M_PRODUCTS = 6_200_000, 200  # numbers of queries and keys, a byte each; positions
N_LENS = 26_000  # cells of the lens: each is a product with the whole vocabulary
N_SHARES, M_SHARES = 560_000, 170  # of logits, up to four bytes each; positions
N_FIRED = 140_000  # neurons that fired, seven bytes each
N_BEST, N_BINS = 150_000, 10_000  # likely tokens, six bytes each; bins in a nat for the others
MOST_FIRED = 16
N_CANDIDATES = 10  # tokens that may come next, of which the page says why
A_MINUTE = 9e12  # operations, on two cores


def what_fits(n, n_prompt, hparams):
    """-> which positions, steps and passes a page of n tokens holds, and what it says of that."""
    n_layer, n_head, n_embd = (hparams[name] for name in ("n_layer", "n_head", "n_embd"))
    fits, notes = {}, []

    def some(name, limit, what):
        """At most so many positions: from the prompt's last one on, or the last ones."""
        m = max(1, min(n, limit))
        start = min(n_prompt - 1, n - m)
        fits[name] = slice(start, start + m)
        if m < n:
            notes.append(f"{what} for positions {start} to {start + m - 1} only, of {n}")

    steps = 2 * n_layer + 1
    fits["steps"] = list(range(0, steps, 1 if steps * n <= N_LENS else 2))
    if len(fits["steps"]) < steps:
        notes.append("the lens after whole blocks, not half blocks")
    some("lens", N_LENS // len(fits["steps"]), "the lens")
    fits["strongest"] = 0  # all weights, or for each query only so many
    if n_layer * n_head * n * (n + 1) // 2 > N_WEIGHTS:
        fits["strongest"] = min(n, max(4, N_STRONGEST // (n_layer * n_head * n)))
        notes.append(f"of each token's attention the {fits['strongest']} largest weights")
    n_rows = N_STRONGEST // (4 * n_layer * n_head) if fits["strongest"] else n
    some("weights", n_rows, "attention")
    some("products", min(M_PRODUCTS, N_PRODUCTS // (2 * n_layer * n_embd)), "queries and keys")
    fits["best"], fits["bins"] = min(200, max(10, N_BEST // n)), min(16, max(1, N_BINS // n))
    fits["fired"] = max(1, min(MOST_FIRED, N_FIRED // (n_layer * n)))
    if fits["best"] < 200:
        notes.append(f"of each distribution the {fits['best']} best tokens one by one")
    if fits["fired"] < MOST_FIRED:
        notes.append(f"of each block and token the {fits['fired']} strongest neurons")
    n_parts = n_layer * (n_head + 1)  # heads and MLPs
    n_shares = N_SHARES // ((N_CANDIDATES + 1) * (n_parts + 3))
    some("shares", min(M_SHARES, n_shares), "shares and knock-outs")
    # A pass without a part takes on average half of the blocks, two operations for each number.
    rest = 12 * n_layer * n_embd**2 * n
    rest += 2 * (fits["shares"].stop - fits["shares"].start) * n_embd * hparams["n_vocab"]
    fits["whole_layers"], fits["passes"] = n_parts * rest > A_MINUTE, n_parts
    if fits["whole_layers"]:
        fits["passes"] = 2 * n_layer if 2 * n_layer * rest < 5 * A_MINUTE else 0
        notes.append(
            "knock-outs of whole layers: of single heads they take longer than a minute"
            if fits["passes"]
            else "no knock-outs: they take longer than five minutes"
        )
    return fits, notes


def pack(x, step=None):
    """An array for the page: its type and shape, and the first bytes of all its numbers, then the
    second ones and so on, which deflate better, in base64. step: what its whole numbers count."""
    if x.dtype == np.int64:
        x = x.astype(np.uint16 if x.max(initial=0) < 2**16 else np.uint32)
    x = np.ascontiguousarray(x.astype(x.dtype.newbyteorder("<"), copy=False))
    planes = x.reshape(-1, 1).view(np.uint8).T.tobytes()
    data = base64.b64encode(zlib.compress(planes)).decode()
    return {"type": x.dtype.str[1:], "shape": x.shape, "step": step, "data": data}


def root(x, dtype=np.uint8):  # of 0 to 1
    """Rounded square roots: half a percent still shows among the weights of a long text."""
    return np.round(np.sqrt(x) * np.iinfo(dtype).max).astype(dtype)


def fixed(x, dtype, finest=0.0):
    """Whole numbers of steps, the finest ones that the type holds, or finest. -> ints, step"""
    step = max(finest, float(np.abs(x).max(initial=0)) / (np.iinfo(dtype).max - 1)) or 1.0
    return np.round(x / step).astype(dtype), step


def attention_map(weights, n_strongest):  # [h, m, n], the last m queries of n
    """All weights a token may have, one query's after the other, or the strongest and where."""
    h, m, n = weights.shape
    if not n_strongest:
        return {"weights": root(weights[:, np.tri(n, dtype=bool)])}
    places = np.argpartition(weights, -n_strongest, axis=-1)[..., -n_strongest:]
    places.sort(axis=-1)
    places = places.astype(np.uint16 if n < 2**16 else np.uint32)
    return {"weights": root(np.take_along_axis(weights, places, -1)), "weight_places": places}


def build(facts, arrays, encoder):
    """-> the bytes of the page."""
    words = [encoder.decode_bytes([id_]) for id_ in range(encoder.n_vocab)]
    arrays = {
        **arrays,
        "word_bytes": np.frombuffer(b"".join(words), np.uint8),
        "word_lengths": np.array([*map(len, words)], np.uint16),
    }
    fits = {
        name: [x.start, x.stop] if isinstance(x, slice) else x for name, x in facts["fits"].items()
    }
    facts = {**facts, "fits": fits, "address": ADDRESS}
    facts["arrays"] = {
        name: pack(*x) if isinstance(x, tuple) else pack(x) for name, x in arrays.items()
    }
    data = json.dumps(facts, separators=(",", ":")).replace("<", "\\u003c")
    script = "\n".join((HERE / f"{name}.js").read_text("utf-8") for name in SCRIPTS)
    style = (HERE / "style.css").read_text("utf-8")
    title = encoder.decode(facts["ids"][: facts["n_prompt"]])
    parts = {
        "title": html.escape(re.sub(r"[\0-\x1f\x7f]+", " ", title[:60])),
        "style_hash": sha256(style),
        "script_hash": sha256(script),
        "style": style,
        "script": script,
        "data": data,
    }
    page = (HERE / "page.html").read_text("utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page).encode()
    if len(page) > MOST_BYTES:
        raise ValueError(f"the page would have {len(page) / 1e6:.0f} MB: a shorter text has less")
    return page


def sha256(text):
    """As the page's content security policy names a script or style that may run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
