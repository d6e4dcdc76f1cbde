"""Turn gradients into changes of the weights: AdamW, Muon, the learning rate, clipping.

The gradient says in which direction the loss grows. A plain step multiplies it by a learning rate,
and subtracts that from the weights. AdamW and Muon do better, as they remember earlier gradients.
"""

import math

import numpy as np

from model_files.directory import flatten, nest

PIECE = 2**16  # AdamW updates this many weights at a time: their m, v and g fit the CPU's cache.
MATRIX, EMBEDDING, VECTOR = range(3)  # These are the three kinds of parameters.


def adamw(w, g, m, v, scale, lr, decay, step, beta1=0.9, beta2=0.99, eps=1e-8):
    """Update a vector of weights in place: Loshchilov and Hutter 2019, algorithm 2.

    w: weights; g: their gradient, which is multiplied by scale first; m: the mean of about the last
    10 gradients; v: the mean of about the last 100 squared gradients; step: counts from 1.

    A plain step has two faults. It follows the noise of a single batch; m averages that out. And
    weights with large gradients move far, the others hardly at all, so no learning rate suits both.
    The root of v is the usual size of a weight's gradient, so m / sqrt(v) no longer depends on that
    size: it is near 1 or -1 where the recent gradients agree, however small they are, and near 0
    where they cancel out. A weight moves by about lr at most, and one learning rate suits all.
    """
    g = g * scale
    m += (g - m) * (1 - beta1)
    v += (g * g - v) * (1 - beta2)
    # Both start at 0, so after one step m is only a tenth of g, and v a hundredth of g's square.
    # Dividing by 1 - beta**step corrects that.
    root = np.sqrt(v / (1 - beta2**step))
    root += eps
    update = np.divide(m, root, out=root)
    update *= lr / (1 - beta1**step)
    w *= 1 - lr * decay  # weight decay: weights that the loss does not need shrink to 0
    w -= update


def muon(w, g, m, scale, lr, decay, beta=0.95):
    """Update a matrix of weights [in, out] in place: Jordan et al. 2024, "Muon".

    m: the sum of all gradients, in which each counts 0.95 times as much as the one after it.

    AdamW looks at each weight by itself. Muon looks at what the matrix does to its input x. Say the
    gradient of a matrix is [[9, 0], [0, 0.1]]: the first number of x matters in every batch, the
    second one rarely. A plain step would change what the matrix does with the first number 90
    times as much as what it does with the second. Muon steps by [[1, 0], [0, 1]], so both are
    learned. In a real matrix, it is not single numbers of x that matter often or rarely, but
    certain sums of them, which orthogonalize finds. c_attn [e, 3e] is three matrices side by side.
    """
    g = g * scale
    m *= beta
    m += g
    g += beta * m  # Nesterov: look ahead to m after one more such gradient, which learns faster
    parts = [g]
    if g.shape[1] == 3 * len(g):
        parts = np.split(g, 3, axis=1)
    # orthogonalize returns a matrix with stretches of about 1, as many as its shorter side is long.
    # Their squares and those of its numbers have the same sum, so a number is about 1 / sqrt(longer
    # side). With this factor it is about 0.2, as in a typical step of AdamW: Liu et al. 2025.
    size = 0.2 * math.sqrt(max(parts[0].shape))
    w *= 1 - lr * decay
    w -= np.concatenate([orthogonalize(part) for part in parts], axis=1) * (lr * size)


def orthogonalize(x):  # [m, n] -> [m, n]
    """Return the matrix that turns its input as x does, but stretches it equally in all directions.

    Every matrix is a rotation v^T, then a stretch of each axis by a number s, then another rotation
    u: its singular value decomposition, x = u s v^T. (A rotation may also reflect.) We want u v^T,
    without the stretch. Products of matrices come near it, because between two stretches the
    rotations cancel (u^T u = v^T v = 1). So x x^T = u s^2 u^T, (x x^T) x = u s^3 v^T, and

        a x + b (x x^T) x + c (x x^T)^2 x = u (a s + b s^3 + c s^5) v^T

    With a, b, c = 3.4445, -4.7750, 2.0315, five rounds bring every s between 0.01 and 1 into the
    range from 0.68 to 1.14. That is near enough to 1. a is so large because small s have to grow.
    """
    if x.shape[0] > x.shape[1]:
        return orthogonalize(x.T).T  # x x^T is the smaller product then
    length = float(np.linalg.norm(x))  # the root of the sum of all s^2, so no s is larger
    x = x * (1 / (length + 1e-7))
    for _ in range(5):
        xx = x @ x.T
        x = 3.4445 * x + (2.0315 * xx @ xx - 4.7750 * xx) @ x
    return x


def schedule(progress, warmup):
    """Return the learning rate as a part of its maximum. progress: 0 at the start, 1 at the end.

    It rises during the warm-up: the first gradients are large, and m and v are means of only a few
    of them, so long steps would go astray. Then it falls along a cosine. Long steps make progress
    fast, but they keep jumping past the best weights. The short ones at the end come close.
    """
    return min(progress / warmup, 1) * (0.5 + 0.5 * math.cos(math.pi * progress))


def clip(norm, limit=1.0):
    """Return the factor that shortens a gradient of this norm to the limit, 1 if it is shorter.

    Without this, one batch that surprises the model could undo the work of many others.
    """
    return min(1, limit / (norm + 1e-6))


class Optimizer:
    """The weights of a model, and everything that changes them.

    All weights are one long vector w, and params is a tree of views into it. For two parameters,
    wte [2, 3] and a bias [3]:

        w       a b c d e f g h i
        params  {"wte": [[a, b, c], [d, e, f]], "ln_f": {"b": [g, h, i]}}

    Changing one changes the other. The model needs the tree. AdamW takes the vector, since it does
    the same to every number. The vector is sorted by kind: matrices inside blocks (for Muon or
    AdamW, with weight decay), embeddings (AdamW, with decay), gains and biases (AdamW, without).

    m and v are vectors like w. g [n_threads, size] has a gradient like w for each thread, and
    gradients[i] is g[i] as a tree. update uses g[0], after the others have been added to it.
    decay: the weight decay; by_muon: whether Muon updates the matrices inside blocks.
    """

    def __init__(self, params, n_threads, decay, by_muon):
        self.decay, self.by_muon = decay, by_muon
        tensors = flatten(params)
        self.shapes = {name: x.shape for name, x in tensors.items()}
        self.slices, self.ends = layout(tensors)
        size = self.ends[VECTOR]
        self.w = np.zeros(size, np.float32)
        self.m = np.zeros(size, np.float32)
        self.v = np.zeros(size, np.float32)
        self.g = np.zeros((n_threads, size), np.float32)
        self.params = nest(self.views(self.w))
        self.gradients = [nest(self.views(g)) for g in self.g]
        for name, x in self.views(self.w).items():
            x[...] = tensors[name]
        views = [self.views(vector) for vector in (self.w, self.g[0], self.m)]
        names = [name for name, x in tensors.items() if kind(name, x) == MATRIX]
        self.matrices = [[view[name] for view in views] for name in names]  # [w, g, m] for muon

    def views(self, vector):
        """Return {name: view}. Each view is part of a vector, in the shape of a parameter."""
        return {
            name: vector[self.slices[name]].reshape(shape) for name, shape in self.shapes.items()
        }

    def update(self, scale, lr, step, pool):
        """Update all weights, with the gradient g[0] times scale. step: counts from 1."""
        jobs = []
        start = 0
        if self.by_muon:
            for w, g, m in self.matrices:
                jobs.append(pool.submit(muon, w, g, m, scale, lr, self.decay))
            start = self.ends[MATRIX]
        middle, stop = self.ends[EMBEDDING], self.ends[VECTOR]
        for first, last, decay in ((start, middle, self.decay), (middle, stop, 0)):
            for i in ranges(first, last):
                vectors = self.w[i], self.g[0, i], self.m[i], self.v[i]
                jobs.append(pool.submit(adamw, *vectors, scale, lr, decay, step))
        for job in jobs:
            job.result()


def layout(tensors):
    """Return where each parameter is in the vector, {name: slice}, and where each kind ends."""
    kinds = {name: kind(name, x) for name, x in tensors.items()}
    slices, ends, size = {}, {}, 0
    for name in sorted(tensors, key=kinds.get):
        slices[name] = slice(size, size + tensors[name].size)
        size = slices[name].stop
        ends[kinds[name]] = size
    return slices, ends


def kind(name, x):
    """Return the kind of a parameter: MATRIX, EMBEDDING or VECTOR."""
    if x.ndim == 1:
        return VECTOR
    return MATRIX if name.startswith("h.") else EMBEDDING  # such as h.0.attn.c_attn.weight


def ranges(start, stop):
    """Split range(start, stop) into slices of at most PIECE numbers."""
    return [slice(i, min(i + PIECE, stop)) for i in range(start, stop, PIECE)]
