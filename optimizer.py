"""How a gradient becomes a change of the weights: AdamW, Muon, the schedule, clipping.

All weights lie in one flat vector, sorted by kind, and params is a tree of views into it:

    | matrices inside blocks, one by one | embeddings | gains and biases |
    | Muon, or AdamW                     | AdamW      | AdamW            |
    | weight decay                       | the same   | none             |

So AdamW, which treats each number alike, goes through slices of a vector and need not know what
they mean. Only Muon, which takes a matrix as a whole, goes by the tree.
"""

import math

import numpy as np

from model_files.parameters import flatten, nest

PIECE = 2**16  # numbers that AdamW takes at a time: they stay in the processor's cache
MATRIX, EMBEDDING, VECTOR = range(3)  # the three kinds


def adamw(w, g, m, v, scale, lr, decay, step, beta1=0.9, beta2=0.99, eps=1e-8):
    """One update, in place, of any vector: Loshchilov and Hutter 2019, algorithm 2.

    w: weights; g: their gradient, which is first multiplied by scale; m, v: the running means of
    the result and of its square. They start at 0: hence the divisions by 1 - beta**step.
    """
    g = g * scale
    m += (g - m) * (1 - beta1)
    v += (g * g - v) * (1 - beta2)
    update = np.sqrt(v / (1 - beta2**step))
    update += eps
    np.divide(m, update, out=update)
    update *= lr / (1 - beta1**step)
    w *= 1 - lr * decay
    w -= update


def muon(w, g, m, scale, lr, decay, beta=0.95):
    """One update, in place, of a matrix [in, out]: its momentum with all singular values near 1.

    A gradient points mostly along a few directions: so the rare ones are learned as well.
    Source: Jordan et al. 2024, "Muon"; scaled to the size of an AdamW update: Liu et al. 2025.
    The three matrices of c_attn, [e, 3e], are orthogonalized one by one.
    """
    g = g * scale
    m *= beta
    m += g
    g += beta * m
    parts = np.split(g, 3, axis=1) if g.shape[1] == 3 * len(g) else [g]
    size = 0.2 * math.sqrt(max(parts[0].shape))
    w *= 1 - lr * decay
    w -= np.concatenate([orthogonalize(part) for part in parts], axis=1) * (lr * size)


def orthogonalize(x):  # [m, n] -> [m, n]
    """u v^T of x = u s v^T (its singular value decomposition), with s of about 0.7 to 1.2 in place
    of 1, by products alone: five steps of a Newton-Schulz iteration."""
    if x.shape[0] > x.shape[1]:
        return orthogonalize(x.T).T
    x = x * (1 / (float(np.linalg.norm(x)) + 1e-7))
    for _ in range(5):  # takes each s to 3.4445 s - 4.7750 s^3 + 2.0315 s^5
        a = x @ x.T
        x = 3.4445 * x + (2.0315 * a @ a - 4.7750 * a) @ x
    return x


def schedule(progress, warmup):
    """Share of the top rate: rising for the warm-up's share of the run, then a cosine to zero."""
    return min(progress / warmup, 1) * (0.5 + 0.5 * math.cos(math.pi * progress))


def clip(norm, limit=1.0):
    """-> the factor that shortens a gradient of this length to the limit, if it is longer."""
    return min(1, limit / (norm + 1e-6))


class Optimizer:
    """The weights of a model, and all that changes them.

    w: the weights; m, v: their moments; g: a gradient for each thread, of which update takes the
    first, where train.sum_gradients has added the others. Each is a flat vector; params, a tree of
    views into w, and gradients, one into each g.
    decay: the weight decay of whatever is a matrix; by_muon: are those inside blocks Muon's?
    """

    def __init__(self, params, n_threads, decay, by_muon):
        tensors = flatten(params)
        kinds = {name: kind(name, x) for name, x in tensors.items()}
        places, self.ends, size = {}, {}, 0
        for name in sorted(tensors, key=kinds.get):
            places[name] = slice(size, size + tensors[name].size)
            size = self.ends[kinds[name]] = places[name].stop

        def tree(vector):
            return nest(
                {name: vector[places[name]].reshape(x.shape) for name, x in tensors.items()}
            )

        self.w, self.m, self.v = (np.zeros(size, np.float32) for _ in range(3))
        self.g = np.zeros((n_threads, size), np.float32)
        self.params, self.gradients = tree(self.w), [tree(g) for g in self.g]
        for name, x in flatten(self.params).items():
            x[...] = tensors[name]
        self.decay, self.by_muon = decay, by_muon
        trees = [flatten(x) for x in (self.params, self.gradients[0], tree(self.m))]
        self.matrices = [[x[name] for x in trees] for name in tensors if kinds[name] == MATRIX]

    def update(self, scale, lr, step, pool):
        """Change all weights by the gradient times scale; step counts from 1."""
        jobs, first = [], 0
        if self.by_muon:
            jobs = [(muon, *matrix, scale, lr, self.decay) for matrix in self.matrices]
            first = self.ends[MATRIX]
        middle, last = self.ends[EMBEDDING], self.ends[VECTOR]
        for start, stop, decay in (first, middle, self.decay), (middle, last, 0):
            for i in slices(start, stop):
                vectors = self.w[i], self.g[0, i], self.m[i], self.v[i]
                jobs.append((adamw, *vectors, scale, lr, decay, step))
        for job in [pool.submit(*job) for job in jobs]:
            job.result()


def kind(name, x):
    if x.ndim == 1:
        return VECTOR
    return MATRIX if name.startswith("h.") else EMBEDDING


def slices(start, stop):
    return [slice(i, min(i + PIECE, stop)) for i in range(start, stop, PIECE)]
