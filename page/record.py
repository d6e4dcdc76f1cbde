"""Record what happens in the model while it reads a text, and how that leads to the next token.

gpt2.gpt2 keeps no intermediate results. run_with_trace makes the same pass with the same functions
and yields the activations of each block. Each function after it answers one question about them,
and record collects the answers for the page. Shapes are as in gpt2.py; m is at most n.
"""

import math
from itertools import pairwise

import numpy as np
from tqdm import tqdm

import gpt2
from page import data

LOGIT_ROWS = 256  # With fewer rows, a product with all tokens mostly waits for memory.


class BlockTrace:
    """The activations of a block for the residual stream x, under the names of TransformerLens."""

    def __init__(self, x, block, hparams):
        y = gpt2.layer_norm(x, **block["ln_1"], eps=hparams["layer_norm_epsilon"])
        qkv = gpt2.linear(y, **block["attn"]["c_attn"])  # [n, 3e]
        self.q, self.k, self.v = gpt2.split_heads(qkv, hparams["n_head"])  # three times [h, n, d]
        self.pattern = attention_pattern(self.q, self.k)  # [h, n, n], each row sums to 1
        self.z = self.pattern @ self.v  # [h, n, d], the output of each head before c_proj
        z = self.z.swapaxes(0, 1).reshape(x.shape)  # [h, n, d] -> [n, e]
        self.resid_pre = x  # [n, e]
        self.resid_mid = x + gpt2.linear(z, **block["attn"]["c_proj"])  # between attention and MLP
        self.neurons, self.resid_post = run_mlp(self.resid_mid, block, hparams)


def attention_pattern(q, k):  # twice [h, n, d] -> [h, n, n], each row sums to 1
    """Return the weights that gpt2.attention gives to the values."""
    h, n, d = q.shape
    q = q * (1 / math.sqrt(d))
    pattern = np.zeros((h, n, n), np.float32)
    for rows in row_groups(n, gpt2.QUERY_BLOCK):
        exps = gpt2.exp_scores(q[:, rows], k[:, : rows.stop])
        np.divide(exps, exps.sum(-1, keepdims=True), out=pattern[:, rows, : rows.stop])
    return pattern


def row_groups(n, size):  # -> slices
    """Split range(n) into pieces, because the logits of a long text might not fit in memory."""
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def run_mlp(resid_mid, block, hparams):  # [n, e] -> [n, 4e], [n, e]
    """Return the activations of the MLP's neurons, and the residual stream after it."""
    y = gpt2.layer_norm(resid_mid, **block["ln_2"], eps=hparams["layer_norm_epsilon"])
    activation = gpt2.ACTIVATIONS[hparams.get("activation_function", "gelu_new")]
    neurons = activation(gpt2.linear(y, **block["mlp"]["c_fc"]))
    return neurons, resid_mid + gpt2.linear(neurons, **block["mlp"]["c_proj"])


def run_block(x, block, hparams):  # [s, n, e] -> [s, n, e]
    """Return the residual streams of s passes after a block.

    The rows of all passes go through the linear layers together, which is faster. To attention, the
    heads of other passes are only more heads.
    """
    s, n, e = x.shape
    h = hparams["n_head"]
    x = x.reshape(s * n, e)
    y = gpt2.layer_norm(x, **block["ln_1"], eps=hparams["layer_norm_epsilon"])
    qkv = gpt2.linear(y, **block["attn"]["c_attn"]).reshape(s, n, 3, h, e // h)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4).reshape(3, s * h, n, e // h)  # from [3, s, h, n, d]
    z = gpt2.attention(q, k, v).reshape(s, h, n, e // h)
    z = z.swapaxes(1, 2).reshape(s * n, e)  # [s, h, n, d] -> [s, n, h, d] -> [s n, e]
    resid_mid = x + gpt2.linear(z, **block["attn"]["c_proj"])
    return run_mlp(resid_mid, block, hparams)[1].reshape(s, n, e)


def run_with_trace(ids, params, hparams):
    """Yield a BlockTrace for each block of the pass that gpt2.gpt2 makes over these [n] ids."""
    x = params["wte"][ids] + params["wpe"][: len(ids)]  # [n] -> [n, e]
    for block in params["blocks"]:
        trace = BlockTrace(x, block, hparams)
        yield trace
        x = trace.resid_post


def residual_streams(traces, rows=slice(None)):
    """Return {step: rows of the residual stream} for the embedding and after each half block."""
    streams = {}
    for i, trace in enumerate(traces):
        streams.setdefault("embedding", trace.resid_pre[rows])  # kept from the first block only
        streams[f"block {i} attention"] = trace.resid_mid[rows]
        streams[f"block {i} MLP"] = trace.resid_post[rows]
    return streams


def unembed(x, params, hparams):  # [n, e] -> [n, n_vocab]
    """Return the logits of a residual stream, as gpt2.gpt2 does after the last block."""
    x = gpt2.layer_norm(x, **params["ln_f"], eps=hparams["layer_norm_epsilon"])
    return x @ output_head(params).T


def output_head(params):  # -> [n_vocab, e]
    """Return the matrix that gives the logits: wte, unless a model has one of its own."""
    return params.get("lm_head", params["wte"])


def top(x, n):  # [..., m] -> [..., n]
    """Return the indices of the n largest numbers of each row, the largest first."""
    indices = np.argpartition(x, -n, axis=-1)[..., -n:]
    order = np.argsort(-np.take_along_axis(x, indices, -1), axis=-1, kind="stable")
    return np.take_along_axis(indices, order, -1)


def logit_lens(x, params, hparams, ids=None):  # [m, e] -> ids and probabilities, both [m, c]
    """Return the 5 best guesses, or these ids, if the model ended here: nostalgebraist 2020."""
    best, p = [], []
    for rows in row_groups(len(x), LOGIT_ROWS):
        logits = unembed(x[rows], params, hparams)
        best.append(top(logits, min(5, logits.shape[1])) if ids is None else ids[rows])
        p.append(np.take_along_axis(gpt2.softmax(logits), best[-1], -1))
    return np.concatenate(best), np.concatenate(p)


def next_token(logits, next_id, fits):  # [n_vocab] -> {name: array}
    """Return what the page needs to know about the distribution of the next token.

    candidates: the 10 most likely tokens. If next_id, the token that really follows, is known but
    not among them, it replaces the last. log_sum_exp: a probability is exp(logit - log_sum_exp).
    best: more of the most likely tokens. bin_counts: the numbers of other tokens, by how far their
    logits are below the last of these. bin_means: where their mean is in each bin, from 0 to 255.
    """
    best = top(logits, min(fits["best"], len(logits)))
    candidates = best[: data.N_CANDIDATES].copy()
    if next_id is not None and next_id not in candidates:
        candidates[-1] = next_id
    largest, smallest = logits[best[0]], logits[best[-1]]
    distances = (smallest - np.delete(logits, best)) * fits["bins"]
    bins = np.minimum(distances, data.N_BINS - 1).astype(np.int64)
    bin_counts = np.bincount(bins, minlength=data.N_BINS)
    bin_means = np.bincount(bins, distances - bins, data.N_BINS) / np.maximum(bin_counts, 1)
    return {
        "candidates": candidates,
        "candidate_logits": logits[candidates],
        "log_sum_exp": np.log(np.exp(logits - largest).sum()) + largest,
        "best": best,
        "best_logits": logits[best],
        "bin_counts": bin_counts,
        "bin_means": np.minimum(bin_means * 256, 255).astype(np.uint8),
    }


def direct_logit_attribution(ids, at, candidates, traces, params, hparams):
    """Return what each part of the model contributes to the logits of candidates [m, c].

    A logit is the product of a token's embedding and the last stream, normalised. The stream is a
    sum, so the logit is one, too, if the last layer norm keeps its scale: Elhage et al. 2021. at: a
    slice of m positions. -> [m, c + 1, parts]; the last candidate is the mean of all tokens. Parts:
    the embeddings of token and position, each block's heads and MLP, and the sum of all biases.
    """
    wte, ln_f, head = params["wte"], params["ln_f"], output_head(params)
    x = traces[-1].resid_post[at]
    mean_token = np.broadcast_to(head.mean(0), (len(x), 1, x.shape[1]))
    tokens = np.concatenate([head[candidates], mean_token], 1)  # [m, c + 1, e]
    # Normalising the tokens instead of each part gives the same products.
    direction = tokens * ln_f["g"]
    direction -= direction.mean(-1, keepdims=True)
    direction /= np.sqrt(x.var(-1) + hparams["layer_norm_epsilon"])[:, None, None]

    def contribution(part):  # [m, e] or [e] -> [m, c + 1, 1]
        return direction @ np.broadcast_to(part, x.shape)[..., None]

    parts = [contribution(wte[ids[at]]), contribution(params["wpe"][: len(ids)][at])]
    biases = tokens @ ln_f["b"][:, None]
    for block, trace in zip(params["blocks"], traces):
        attn_bias, mlp_bias = block["attn"]["c_proj"]["b"], block["mlp"]["c_proj"]["b"]
        heads = trace.z[:, at] @ split_output(block, hparams)  # [h, m, e]
        mlp = trace.resid_post[at] - trace.resid_mid[at] - mlp_bias
        parts += [direction @ heads.transpose(1, 2, 0), contribution(mlp)]
        biases = biases + contribution(attn_bias + mlp_bias)
    return np.concatenate([*parts, biases], -1)


def split_output(block, hparams):  # -> [h, d, e]
    """Return the rows of attention's output matrix that belong to each head."""
    w = block["attn"]["c_proj"]["w"]
    return w.reshape(hparams["n_head"], -1, w.shape[1])


def ablate_parts(traces, whole_layers, params, hparams):
    """Yield the last residual streams [parts, n, e] of passes without a part, block after block.

    The parts are each block's heads (with whole_layers all its heads at once) and its MLP. A part
    that is left out adds nothing at any position. The parts before it are not computed again.
    """
    n, e = traces[0].resid_pre.shape
    for i, (block, trace) in enumerate(zip(params["blocks"], traces)):
        if whole_layers:
            mids = trace.resid_pre
        else:
            mids = trace.resid_mid - trace.z @ split_output(block, hparams)  # [h, n, e]
        x = run_mlp(mids.reshape(-1, e), block, hparams)[1]
        x = np.concatenate([x, trace.resid_mid])  # resid_mid is the stream without the MLP
        x = x.reshape(-1, n, e)  # [parts n, e] -> [parts, n, e]
        for later in params["blocks"][i + 1 :]:
            x = run_block(x, later, hparams)
        yield x


def without_parts(x, candidates, params, hparams):  # [parts, m, e], [m, c] -> [parts, m, c]
    """Return the probabilities of the candidates at the end of passes without a part."""
    ids = np.tile(candidates, (len(x), 1))  # [parts m, c]
    p = logit_lens(x.reshape(len(ids), -1), params, hparams, ids)[1]
    return p.reshape(len(x), *candidates.shape)


def top_neurons(neurons, block, n_best):  # [n, 4e] -> three times [n, n_best]
    """Return the neurons that add most: indices, activations, and the lengths of what they add."""
    lengths = np.abs(neurons) * np.linalg.norm(block["mlp"]["c_proj"]["w"], axis=1)
    indices = top(lengths, min(n_best, neurons.shape[1]))
    activations = np.take_along_axis(neurons, indices, -1)
    return indices, activations, np.take_along_axis(lengths, indices, -1)


def promoted_tokens(indices, params):  # [n_layer, n, n_best] -> {name: array}
    """Return the tokens that neurons make more likely, and block * 4e + index of each neuron.

    A neuron adds a multiple of its row of c_proj, and the logits of that row show which tokens it
    promotes: Geva et al. 2022. If there are too many neurons, the strongest of each token stay.
    """
    numbers, tokens = [], []
    for i, (block, strongest) in enumerate(zip(params["blocks"], indices)):
        w = block["mlp"]["c_proj"]["w"]  # [4e, e]
        chosen = list(dict.fromkeys(strongest.T.ravel().tolist()))  # without duplicates
        chosen = sorted(chosen[: max(1, data.MAX_PROMOTING // len(indices))])
        numbers += [i * len(w) + neuron for neuron in chosen]
        added = (w[chosen] - w[chosen].mean(-1, keepdims=True)) * params["ln_f"]["g"]
        for rows in row_groups(len(added), LOGIT_ROWS):
            logits = added[rows] @ output_head(params).T
            tokens.append(top(logits, min(5, logits.shape[1])))
    return {"promoting_neurons": np.array(numbers), "promoted_tokens": np.concatenate(tokens)}


def record(ids, n_prompt, next_id, params, hparams):
    """Return {name: array} for the page, and the dict from data.what_fits.

    ids: the prompt (n_prompt ids) and its continuation. next_id: the id after these, or None.
    """
    fits = data.what_fits(len(ids), n_prompt, hparams)
    traces, blocks, positions = [], [], []
    for trace, block in zip(run_with_trace(ids, params, hparams), params["blocks"]):
        blocks.append(record_block(trace, block, fits, hparams))
        del trace.q, trace.k, trace.v, trace.pattern, trace.neurons  # to save memory
        traces.append(trace)
    streams = list(residual_streams(traces).values())
    next_ids = [*ids[1:], next_id]
    for rows in row_groups(len(ids), LOGIT_ROWS):
        logits = unembed(streams[-1][rows], params, hparams)
        positions += [next_token(*pair, fits) for pair in zip(logits, next_ids[rows])]
    arrays = {**stack(blocks), **stack(positions)}
    arrays["prompt_logits"] = unembed(streams[-1][[n_prompt - 1]], params, hparams)[0]
    steps = [streams[step][fits["lens"]] for step in fits["steps"]]
    lens = [logit_lens(x, params, hparams) for x in tqdm(steps, "lens", delay=1, disable=None)]
    arrays["lens_ids"] = np.stack([best for best, _ in lens])
    arrays["lens_p"] = data.quantize_root(np.stack([p for _, p in lens]))
    arrays["resid_norms"] = np.stack([np.linalg.norm(x, axis=-1) for x in streams])
    added = (after - before for before, after in pairwise(streams))
    arrays["added_norms"] = np.stack([np.linalg.norm(x, axis=-1) for x in added])
    arrays |= promoted_tokens(arrays["top_neurons"], params)
    at = fits["attribution"]
    candidates = arrays["candidates"][at]
    contributions = direct_logit_attribution(ids, at, candidates, traces, params, hparams)
    arrays["attribution"] = np.round(contributions * 2.0**20) / 2.0**20  # compresses better
    if fits["passes"]:
        passes = ablate_parts(traces, fits["whole_layers"], params, hparams)
        passes = tqdm(passes, "ablation", hparams["n_layer"], delay=1, disable=None)
        p = [without_parts(x[:, at], candidates, params, hparams) for x in passes]
        arrays["ablation"] = data.quantize_root(np.concatenate(p))  # [parts, m, c]
    return arrays, fits


def record_block(trace, block, fits, hparams):
    """Return {name: array} with everything that the page contains about a block."""
    qk = np.stack([trace.q, trace.k])[:, :, fits["qk"]]  # [2, h, m, d]
    qk_step = np.abs(qk).max(2, keepdims=True) / 32767 + 1e-30
    # Attention to a small value has little effect, so the page needs sizes: Kobayashi et al. 2020.
    norms = np.linalg.norm(trace.v @ split_output(block, hparams), axis=-1)  # [h, n]
    neurons, activations, lengths = top_neurons(trace.neurons, block, fits["neurons"])
    return {
        **data.thin_pattern(trace.pattern[:, fits["pattern"]], fits["strongest"]),
        "qk": np.round(qk / qk_step).astype(np.int16),
        "qk_step": qk_step[:, :, 0],
        "value_norms": data.quantize_root(norms / (norms.max(-1, keepdims=True) + 1e-30)),
        "top_neurons": neurons,
        "activations": activations,
        "neuron_norms": data.quantize_root(lengths / (lengths.max() + 1e-30)),
    }


def stack(rows):
    """Stack the arrays of m dicts with the same names: [{"a": [n]}] * m -> {"a": [m, n]}."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
