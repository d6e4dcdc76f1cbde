"""The gradients of the functions in gpt2.py, in the same order.

The loss is one number. For any array x, dx stands for dloss/dx: an array of x's shape that says
how fast the loss grows with each number in x. Training moves each weight in the other direction.

A function y = f(x) has a partner f_backward(dy, ...). It gets dy from the function after f, and
returns dx for the function before f. This is the chain rule: dx[i] is the sum, over all j, of
dy[j] times the derivative of y[j] with respect to x[i]. If f has parameters, f_backward also
returns their gradients, in a dict with the same keys. Its comments repeat what f computes, and
state the gradient. docs/gradients.md derives four of these formulas, step by step.

Some functions have a variant f_forward, which also returns kept: the values that f_backward needs.

Shapes are those of gpt2.py, with one difference: the B sequences of a batch, of n tokens each, form
one array of B n rows. Only attention and the embedding of positions need to know where a sequence
ends. Source: Rumelhart, Hinton and Williams 1986. Lesson: step 20.
"""

import math

import numpy as np

from gpt2 import QUERY_BLOCK, attention, exp_scores, layer_norm, linear, mean, normal_cdf, pieces

SCORES = 2**17  # Attention computes about this many scores at a time: they fit the CPU's cache.


def gelu_forward(x):  # [rows, 4e] -> y and dy/dx, both [rows, 4e]
    """Return gelu(x) and its slope together: both need the same tanh, which is slow."""
    # y = x * cdf, where cdf = (1 + tanh(u)) / 2 and u = c * (x + 0.044715 * x^3)
    # dtanh(u)/du = 1 - tanh(u)^2 = (1 + tanh(u)) * (1 - tanh(u)) = 4 * cdf * (1 - cdf)
    # dcdf/du = 2 * cdf * (1 - cdf)
    # dy/dx = cdf + x * dcdf/du * du/dx = cdf + y * (1 - cdf) * 2 * du/dx
    c = math.sqrt(2 / math.pi)
    y = np.empty_like(x)
    slope = np.empty_like(x)
    for i in pieces(x):
        cdf = normal_cdf(x[i])
        np.multiply(x[i], cdf, out=y[i])
        two_du = x[i] * x[i]  # two_du = 2 * du/dx = 2 * c * (1 + 3 * 0.044715 * x^2)
        two_du *= 6 * 0.044715 * c
        two_du += 2 * c
        np.subtract(1, cdf, out=slope[i])  # slope = cdf + y * (1 - cdf) * 2 * du/dx
        slope[i] *= two_du
        slope[i] *= y[i]
        slope[i] += cdf
    return y, slope


def gelu_backward(dy, slope):  # twice [rows, 4e] -> [rows, 4e]; overwrites dy
    # y = gelu(x). Each number of y depends on one number of x only, so dx = dy * slope.
    dy *= slope
    return dy


def layer_norm_backward(dy, x, g, b, eps):  # twice [rows, e] -> [rows, e]
    # y = g z + b, where z = (x - mean(x)) / std
    # dz = g dy; dx = (dz - mean(dz) - z mean(z dz)) / std
    dx = np.empty_like(x)
    dg = np.zeros_like(g)
    db = np.zeros_like(b)
    for i in pieces(x):
        z = x[i] - mean(x[i])
        std = np.sqrt(mean(z * z) + eps)
        z /= std
        dg += (dy[i] * z).sum(0)
        db += dy[i].sum(0)
        dz = dy[i] * g
        mean_dz = mean(dz)
        z *= mean(dz * z)
        dz -= z
        dz -= mean_dz
        np.divide(dz, std, out=dx[i])
    return dx, {"g": dg, "b": db}


def linear_backward(dy, x, w, b):  # [rows, out], [rows, in] -> [rows, in]
    # y = x w + b, which is y[r, k] = sum_j x[r, j] w[j, k] + b[k]. So the chain rule gives
    # dx[r, j] = sum_k dy[r, k] w[j, k]; dw[j, k] = sum_r x[r, j] dy[r, k]; db[k] = sum_r dy[r, k]
    return dy @ w.T, {"w": x.T @ dy, "b": dy.sum(0)}


def attention_backward(dy, y, q, k, v):  # [h, n, d] each -> dq, dk, dv: [h, n, d] each
    # y = a v, where a = softmax(s) and s = q k^T / sqrt(d). Both products are as in linear:
    # dv = a^T dy and da = dy v^T; dq = ds k / sqrt(d) and dk = ds^T q / sqrt(d)
    # Raising a score s[i,t] raises exp(s[i,t]), and with it the sum that divides all of row i. So
    # ds[i,t] = a[i,t] (da[i,t] - sum_u a[i,u] da[i,u])
    # This sum over all keys u is also a sum over the d numbers of a row of y, which are fewer:
    # sum_u a[i,u] da[i,u] = sum_u a[i,u] sum_c dy[i,c] v[u,c] = sum_c dy[i,c] y[i,c]
    _, n, d = q.shape
    q = q * (1 / math.sqrt(d))
    dq = np.empty_like(q)
    dk = np.zeros_like(k)
    dv = np.zeros_like(v)
    sum_a_da = (dy * y).sum(-1, keepdims=True)
    for i in range(0, n, QUERY_BLOCK):  # the same blocks as in attention
        j = i + QUERY_BLOCK
        a = exp_scores(q[:, i:j], k[:, :j])  # [h, j - i, j]: too large to keep, so computed again
        a /= a.sum(-1, keepdims=True)
        dv[:, :j] += a.swapaxes(1, 2) @ dy[:, i:j]
        ds = dy[:, i:j] @ v[:, :j].swapaxes(1, 2)  # this is da; the next two lines make it ds
        ds -= sum_a_da[:, i:j]
        ds *= a
        dq[:, i:j] = ds @ k[:, :j]
        dk[:, :j] += ds.swapaxes(1, 2) @ q[:, i:j]
    dq *= 1 / math.sqrt(d)
    return dq, dk, dv


def heads_of_rows(x, n, n_head):  # [rows, e] -> [B h, n, d]
    """Return all heads of all sequences, one after another: attention treats them all alike."""
    x = x.reshape(-1, n, n_head, x.shape[1] // n_head)  # [B, n, h, d]
    return x.swapaxes(1, 2).reshape(-1, n, x.shape[3])


def join_heads(x, n_head):  # [B h, n, d] -> [rows, e]
    """Put each token's heads side by side again. This is the inverse of heads_of_rows."""
    _, n, d = x.shape
    x = x.reshape(-1, n_head, n, d)  # [B, h, n, d]
    return x.swapaxes(1, 2).reshape(-1, n_head * d)


def groups(n_rows, n, n_head):
    """Return slices of rows, each with one or more whole sequences. A slice gives attention about
    SCORES scores to compute at a time, as each head takes QUERY_BLOCK queries at a time."""
    size = n * max(1, SCORES // (n_head * min(n, QUERY_BLOCK) * n))
    return [slice(i, i + size) for i in range(0, n_rows, size)]


def mha_forward(x, c_attn, c_proj, n, n_head):  # [rows, e] -> [rows, e], and kept
    qkv = linear(x, **c_attn)  # [rows, 3e]
    y = np.empty_like(x)
    for i in groups(len(x), n, n_head):
        heads = [heads_of_rows(part, n, n_head) for part in np.split(qkv[i], 3, axis=1)]
        y[i] = join_heads(attention(*heads), n_head)
    return linear(y, **c_proj), (x, qkv, y)


def mha_backward(dy, kept, c_attn, c_proj, n, n_head):  # [rows, e] -> [rows, e]
    # y = linear(joined, c_proj), where joined = attention(*split(linear(x, c_attn)))
    x, qkv, joined = kept
    d_joined, d_c_proj = linear_backward(dy, joined, **c_proj)
    dqkv = np.empty_like(qkv)
    for i in groups(len(x), n, n_head):
        parts = [d_joined[i], joined[i], *np.split(qkv[i], 3, axis=1)]
        grads = attention_backward(*(heads_of_rows(part, n, n_head) for part in parts))
        dqkv[i] = np.concatenate([join_heads(part, n_head) for part in grads], axis=1)
    dx, d_c_attn = linear_backward(dqkv, x, **c_attn)
    return dx, {"c_attn": d_c_attn, "c_proj": d_c_proj}


def ffn_forward(x, c_fc, c_proj):  # [rows, e] -> [rows, e], and kept
    y, slope = gelu_forward(linear(x, **c_fc))
    return linear(y, **c_proj), (x, slope, y)


def ffn_backward(dy, kept, c_fc, c_proj):  # [rows, e] -> [rows, e]
    # y = linear(hidden, c_proj), where hidden = gelu(linear(x, c_fc))
    x, slope, hidden = kept
    d_hidden, d_c_proj = linear_backward(dy, hidden, **c_proj)
    dx, d_c_fc = linear_backward(gelu_backward(d_hidden, slope), x, **c_fc)
    return dx, {"c_fc": d_c_fc, "c_proj": d_c_proj}


def dropout(x, rate, rng):  # [rows, e] -> [rows, e], overwrites x; and the mask
    """Set each number to 0 with probability rate, and scale up the others to keep the mean.

    A model that cannot rely on any single number learns less by heart: Srivastava et al. 2014.
    """
    if rate == 0:
        return x, None
    mask = (rng.random(x.shape, np.float32) >= rate) * np.float32(1 / (1 - rate))
    x *= mask
    return x, mask


def dropout_backward(dy, mask):  # [rows, e] -> [rows, e]
    # y = x mask
    return dy if mask is None else dy * mask


def block_forward(x, ln_1, attn, ln_2, mlp, n, hparams, rate, rng):  # [rows, e] -> [rows, e]
    """Apply a block to x as the loop in gpt2.gpt2 does, with dropout. Return the new x and kept."""
    n_head, eps = hparams["n_head"], hparams["layer_norm_epsilon"]
    y, kept_attn = mha_forward(layer_norm(x, **ln_1, eps=eps), **attn, n=n, n_head=n_head)
    y, mask_1 = dropout(y, rate, rng)
    y += x
    z, kept_mlp = ffn_forward(layer_norm(y, **ln_2, eps=eps), **mlp)
    z, mask_2 = dropout(z, rate, rng)
    z += y
    return z, (x, kept_attn, mask_1, y, kept_mlp, mask_2)


def block_backward(dz, kept, ln_1, attn, ln_2, mlp, n, hparams):  # [rows, e] -> [rows, e]
    # y = x + dropout(mha(layer_norm(x, ln_1))); z = y + dropout(ffn(layer_norm(y, ln_2)))
    # A sum passes its gradient on unchanged to both of its terms, as dy += dz and dx += dy do.
    # So the gradient reaches even the first block directly, along the residual stream.
    n_head, eps = hparams["n_head"], hparams["layer_norm_epsilon"]
    x, kept_attn, mask_1, y, kept_mlp, mask_2 = kept
    dy, d_mlp = ffn_backward(dropout_backward(dz, mask_2), kept_mlp, **mlp)
    dy, d_ln_2 = layer_norm_backward(dy, y, **ln_2, eps=eps)
    dy += dz
    dx, d_attn = mha_backward(dropout_backward(dy, mask_1), kept_attn, **attn, n=n, n_head=n_head)
    dx, d_ln_1 = layer_norm_backward(dx, x, **ln_1, eps=eps)
    dx += dy
    return dx, {"ln_1": d_ln_1, "attn": d_attn, "ln_2": d_ln_2, "mlp": d_mlp}


def gpt2_forward(inputs, wte, wpe, blocks, ln_f, hparams, rate=0.0, rng=None):
    """Return the logits of a batch, [B, n] ids -> [B n, n_vocab], and kept for gpt2_backward.

    rate: the probability that dropout uses; rng: the random generator that it draws from.
    """
    n = inputs.shape[1]
    x = (wte[inputs] + wpe[:n]).reshape(-1, wte.shape[1])  # [B, n, e] -> [rows, e]
    x, mask = dropout(x, rate, rng)
    kept_blocks = []
    for block in blocks:
        x, kept = block_forward(x, **block, n=n, hparams=hparams, rate=rate, rng=rng)
        kept_blocks.append(kept)
    y = layer_norm(x, **ln_f, eps=hparams["layer_norm_epsilon"])
    return y @ wte.T, (inputs, mask, kept_blocks, x, y)


def gpt2_backward(dlogits, kept, wte, wpe, blocks, ln_f, hparams):
    """Return the gradients of all parameters, in a tree like theirs. kept can be used only once."""
    inputs, mask, kept_blocks, x, y = kept
    n = inputs.shape[1]
    # logits = y wte^T
    dx, d_ln_f = layer_norm_backward(dlogits @ wte, x, **ln_f, eps=hparams["layer_norm_epsilon"])
    dwte = dlogits.T @ y
    d_blocks = []
    for block in reversed(blocks):  # pop frees what a block kept, as soon as it has been used
        dx, d_block = block_backward(dx, kept_blocks.pop(), **block, n=n, hparams=hparams)
        d_blocks.append(d_block)
    dx = dropout_backward(dx, mask)
    # x = wte[inputs] + wpe[:n]. The model uses wte twice, so its two gradients add up.
    dwte += embedding_backward(dx, inputs.ravel(), len(wte))
    dwpe = np.zeros_like(wpe)
    dwpe[:n] = dx.reshape(-1, n, dx.shape[1]).sum(0)
    return {"wte": dwte, "wpe": dwpe, "blocks": d_blocks[::-1], "ln_f": d_ln_f}


def embedding_backward(dy, ids, n_rows):  # [rows, e], [rows] -> [n_rows, e]
    """Return zeros to which each row of dy is added at its id, like np.add.at(dw, ids, dy).

    That is slow, so the rows are sorted by id. Rows with the same id are then neighbours, and
    reduceat adds up the rows from each start to the next. For the ids 7 2 7, sorted 2 7 7, the
    starts are 0 and 1: row 1 of dy is added to dw[2], rows 0 and 2 are added to dw[7].
    """
    # y = w[ids]
    order = np.argsort(ids, kind="stable")
    ids, starts = np.unique(ids[order], return_index=True)  # each id, and where its rows start
    dw = np.zeros((n_rows, dy.shape[1]), dy.dtype)
    dw[ids] = np.add.reduceat(dy[order], starts)
    return dw


def cross_entropy(logits, targets):  # [rows, n_vocab], [rows] -> a number, [rows, n_vocab]
    """Return the sum of the losses, -log softmax(logits)[target] for each row, and its gradient.

    The gradient overwrites the logits, which are the largest array of the pass.
    """
    # loss = log(sum of exp(logits)) - logits[target]; dlogits = softmax(logits) - onehot(target)
    rows = np.arange(len(targets))
    logits -= logits.max(-1, keepdims=True)
    loss = -logits[rows, targets].sum()
    np.exp(logits, out=logits)
    total = logits.sum(-1, keepdims=True)
    loss += np.log(total).sum()
    logits /= total
    logits[rows, targets] -= 1
    return float(loss), logits
