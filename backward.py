"""The gradient of each function in gpt2.py, in the same order under the same names.

The loss is one number. For any array x, dx stands for dloss/dx: an array of x's shape that says
how fast the loss grows with each number in x. Training steps the other way.

A function y = f(x) has a partner f_backward(dy, ...), which gets dy from the function after it and
returns dx to the one before it. That is the chain rule: dx[i] is the sum, over all j, of dy[j]
times the derivative of y[j] by x[i]. The gradients of f's parameters come with it, in a dict like
theirs. Each partner quotes the forward line, takes what the forward pass kept, and recomputes what
is cheap. docs/gradients.md derives two of them step by step.

Shapes as in gpt2.py, but a batch: B sequences of n tokens are one array of N = B n rows, and only
attention tells them apart.
Source: Rumelhart, Hinton and Williams 1986. Lesson: step 20.
"""

import math

import numpy as np

from gpt2 import N_QUERIES, attention, exp_scores, layer_norm, linear, mean, normal_cdf, pieces

SCORES = 2**17  # that attention computes at a time: they stay in the processor's cache


def gelu_forward(x):  # [N, 4e] -> y and dy/dx, both [N, 4e]
    """gelu, and its slope while the tanh is at hand: x itself is of no use after that."""
    # y = x cdf, where cdf = normal_cdf(x) = 0.5 (1 + tanh(u)) and u = c (x + 0.044715 x^3)
    # dy/dx = cdf + x dcdf/dx; dcdf/dx = 2 cdf (1 - cdf) du/dx; du/dx = c (1 + 3 * 0.044715 x^2)
    # Here the letters d are not the loss's: two_du is 2 du/dx, and slope is dy/dx.
    c, y, slope = math.sqrt(2 / math.pi), np.empty_like(x), np.empty_like(x)
    for i in pieces(x):
        cdf = normal_cdf(x[i])
        np.multiply(x[i], cdf, out=y[i])
        two_du = x[i] * x[i]
        two_du *= 6 * 0.044715 * c
        two_du += 2 * c
        np.subtract(1, cdf, out=slope[i])
        slope[i] *= two_du
        slope[i] *= y[i]
        slope[i] += cdf
    return y, slope


def gelu_backward(dy, slope):  # [N, 4e] twice -> [N, 4e]; overwrites dy
    # y = gelu(x)
    dy *= slope
    return dy


def layer_norm_backward(dy, x, g, b, eps):  # [N, e] twice -> [N, e]
    # y = g z + b, where z = (x - mean(x)) / std
    # dz = g dy; dx = (dz - mean(dz) - z mean(z dz)) / std
    dx, dg, db = np.empty_like(x), np.zeros_like(g), np.zeros_like(b)
    for i in pieces(x):
        z = x[i] - mean(x[i])
        std = np.sqrt(mean(z * z) + eps)
        z /= std
        dg += np.add.reduce(dy[i] * z, 0)
        db += np.add.reduce(dy[i], 0)
        dz = dy[i] * g
        mean_dz = mean(dz)
        z *= mean(dz * z)
        dz -= z
        dz -= mean_dz
        dz /= std
        dx[i] = dz
    return dx, {"g": dg, "b": db}


def linear_backward(dy, x, w, b):  # [N, out], [N, in] -> [N, in]
    # y = x w + b
    return dy @ w.T, {"w": x.T @ dy, "b": np.add.reduce(dy, 0)}


def attention_backward(dy, y, qkv):  # [..., n, d] twice, [3, ..., n, d] -> [3, ..., n, d]
    # y = a v, where a = softmax(s) and s = q k^T / sqrt(d)
    # dv = a^T dy; da = dy v^T; ds = a (da - sum of a da in the row); dq = ds k / sqrt(d);
    # dk = ds^T q / sqrt(d). The sum over the keys of a da is that of dy y over the d numbers of a
    # row, as dy (a v)^T = (dy v^T) a^T: so it takes no product of two arrays of scores.
    q, k, v = qkv
    n, d = q.shape[-2:]
    q = q * (1 / math.sqrt(d))
    dqkv = np.empty_like(qkv)
    dq, dk, dv = dqkv
    dk[...] = dv[...] = 0
    sum_a_da = np.add.reduce(dy * y, -1, keepdims=True)
    for i in range(0, n, N_QUERIES):  # the same pieces as in attention
        j = min(i + N_QUERIES, n)
        a = exp_scores(q[..., i:j, :], k[..., :j, :])  # [..., j - i, j]: computed anew, not kept
        a /= np.add.reduce(a, -1, keepdims=True)
        dv[..., :j, :] += a.swapaxes(-1, -2) @ dy[..., i:j, :]
        ds = dy[..., i:j, :] @ v[..., :j, :].swapaxes(-1, -2)
        ds -= sum_a_da[..., i:j, :]
        ds *= a
        np.matmul(ds, k[..., :j, :], out=dq[..., i:j, :])
        dk[..., :j, :] += ds.swapaxes(-1, -2) @ q[..., i:j, :]
    dq *= 1 / math.sqrt(d)
    return dqkv


def groups(x):  # [B, h, n, d] -> slices of B
    """As many sequences at a time as have SCORES together; long ones go one by one."""
    _, n_head, n, _ = x.shape
    size = max(1, SCORES // (n_head * min(n, N_QUERIES) * n))
    return [slice(i, i + size) for i in range(0, len(x), size)]


def mha_forward(x, c_attn, c_proj, n, n_head):  # [N, e] -> [N, e], and what mha_backward takes
    qkv = linear(x, **c_attn).reshape(-1, n, 3, n_head, x.shape[1] // n_head)  # [B, n, 3, h, d]
    qkv = qkv.transpose(2, 0, 3, 1, 4)  # [3, B, h, n, d]
    y = np.empty_like(qkv[0])
    for i in groups(y):
        y[i] = attention(*qkv[:, i])
    return linear(y.swapaxes(1, 2).reshape(x.shape), **c_proj), (x, qkv, y)


def mha_backward(dy, kept, c_attn, c_proj):  # [N, e] -> [N, e]
    # y = linear(attention(*linear(x, c_attn)), c_proj)
    x, qkv, y = kept
    dy, d_c_proj = linear_backward(dy, y.swapaxes(1, 2).reshape(x.shape), **c_proj)
    dy = dy.reshape(y.swapaxes(1, 2).shape).swapaxes(1, 2)  # [N, e] -> [B, h, n, d]
    dqkv = np.empty_like(qkv)
    for i in groups(y):
        dqkv[:, i] = attention_backward(dy[i], y[i], qkv[:, i])
    dqkv = dqkv.transpose(1, 3, 0, 2, 4).reshape(len(x), -1)  # [N, 3e]
    dx, d_c_attn = linear_backward(dqkv, x, **c_attn)
    return dx, {"c_attn": d_c_attn, "c_proj": d_c_proj}


def ffn_forward(x, c_fc, c_proj):  # [N, e] -> [N, e], and what ffn_backward takes
    h = linear(x, **c_fc)  # [N, 4e]
    y, slope = gelu_forward(h)
    return linear(y, **c_proj), (x, slope, y)


def ffn_backward(dy, kept, c_fc, c_proj):  # [N, e] -> [N, e]
    # y = linear(gelu(linear(x, c_fc)), c_proj)
    x, slope, y = kept
    dy, d_c_proj = linear_backward(dy, y, **c_proj)
    dx, d_c_fc = linear_backward(gelu_backward(dy, slope), x, **c_fc)
    return dx, {"c_fc": d_c_fc, "c_proj": d_c_proj}


def dropout(x, rate, rng):  # [N, e] -> [N, e], overwrites x; and the mask for the backward pass
    """Zero a share of the numbers, the rate, and scale up the rest, so that the mean stays:
    Srivastava et al. 2014."""
    if rate == 0:
        return x, None
    mask = (rng.random(x.shape, np.float32) >= rate) * np.float32(1 / (1 - rate))
    x *= mask
    return x, mask


def dropout_backward(dy, mask):  # [N, e] -> [N, e]
    # y = x mask
    return dy if mask is None else dy * mask


def block_forward(x, ln_1, attn, ln_2, mlp, n, n_head, eps, rate, rng):  # [N, e] -> [N, e]
    """The two lines of the loop in gpt2.gpt2, with dropout; and what block_backward takes."""
    y, kept_attn = mha_forward(layer_norm(x, **ln_1, eps=eps), **attn, n=n, n_head=n_head)
    y, mask_1 = dropout(y, rate, rng)
    y += x
    z, kept_mlp = ffn_forward(layer_norm(y, **ln_2, eps=eps), **mlp)
    z, mask_2 = dropout(z, rate, rng)
    z += y
    return z, (x, kept_attn, mask_1, y, kept_mlp, mask_2)


def block_backward(dz, kept, ln_1, attn, ln_2, mlp, eps):  # [N, e] -> [N, e]
    # y = x + dropout(mha(layer_norm(x, ln_1))); z = y + dropout(ffn(layer_norm(y, ln_2)))
    # A sum passes its gradient on to both of its parts: hence dy += dz and dx += dy.
    x, kept_attn, mask_1, y, kept_mlp, mask_2 = kept
    dy, d_mlp = ffn_backward(dropout_backward(dz, mask_2), kept_mlp, **mlp)
    dy, d_ln_2 = layer_norm_backward(dy, y, **ln_2, eps=eps)
    dy += dz
    dx, d_attn = mha_backward(dropout_backward(dy, mask_1), kept_attn, **attn)
    dx, d_ln_1 = layer_norm_backward(dx, x, **ln_1, eps=eps)
    dx += dy
    return dx, {"ln_1": d_ln_1, "attn": d_attn, "ln_2": d_ln_2, "mlp": d_mlp}


def gpt2_forward(inputs, wte, wpe, blocks, ln_f, n_head, eps, rate=0.0, rng=None):
    """gpt2.gpt2 of a batch, with dropout: [B, n] ids -> [B n, n_vocab], and what it kept."""
    n = inputs.shape[1]
    x, mask = dropout((wte[inputs] + wpe[:n]).reshape(-1, wte.shape[1]), rate, rng)  # [N, e]
    kept = []
    for block in blocks:
        x, kept_block = block_forward(x, **block, n=n, n_head=n_head, eps=eps, rate=rate, rng=rng)
        kept.append(kept_block)
    y = layer_norm(x, **ln_f, eps=eps)
    return y @ wte.T, (inputs, mask, kept, x, y)


def gpt2_backward(dlogits, kept, wte, wpe, blocks, ln_f, eps):  # -> gradients like params
    inputs, mask, kept_blocks, x, y = kept
    # logits = y wte^T; wte is used twice, here and as the table of embeddings, so dwte is a sum
    dx, d_ln_f = layer_norm_backward(dlogits @ wte, x, **ln_f, eps=eps)
    dwte = dlogits.T @ y
    d_blocks = []
    while kept_blocks:  # popped, so that each layer's memory is free once it has been used
        block = blocks[len(kept_blocks) - 1]
        dx, d_block = block_backward(dx, kept_blocks.pop(), **block, eps=eps)
        d_blocks.insert(0, d_block)
    dx = dropout_backward(dx, mask)
    # x = wte[inputs] + wpe[:n]
    dwte += embedding_backward(dx, inputs.ravel(), len(wte))
    dwpe = np.zeros_like(wpe)
    dwpe[: inputs.shape[1]] = dx.reshape(*inputs.shape, -1).sum(0)
    return {"wte": dwte, "wpe": dwpe, "blocks": d_blocks, "ln_f": d_ln_f}


def embedding_backward(dy, ids, n_rows):  # [N, e], [N] -> [n_rows, e]
    # y = w[ids]; rows that share an id add up, sorted, so that float32 always adds up the same
    order = np.argsort(ids, kind="stable")
    ids, first = np.unique(ids[order], return_index=True)
    dw = np.zeros((n_rows, dy.shape[1]), dy.dtype)
    dw[ids] = np.add.reduceat(dy[order], first)
    return dw


def cross_entropy(logits, targets):  # [N, n_vocab], [N] -> the sum of -log p(target), and dlogits
    """Overwrites the logits, the largest array there is, with their gradient."""
    # loss = -log softmax(logits)[target], so dlogits = softmax(logits) - onehot(target)
    rows = np.arange(len(targets))
    logits -= logits.max(-1, keepdims=True)
    loss = -logits[rows, targets].sum()
    np.exp(logits, out=logits)
    total = np.add.reduce(logits, -1, keepdims=True)
    loss += np.log(total).sum()
    logits /= total
    logits[rows, targets] -= 1
    return float(loss), logits
