"""A pass of gpt2_pico in float64 that writes down all it does: the truth for what explain.py shows.

Nothing here is shared with page/record.py: each head is computed by itself, and a part that is left
out is left out of the pass from the beginning.
"""

import numpy as np
from conftest import float64

import gpt2_pico


class Pass:
    """The pass over some ids. without: (block, head), (block, "attention") or (block, "MLP").

    Lists with an entry for each block: patterns [h, n, n], values [h, n, d], written [h, n, e] (to
    the stream, by each head), neurons [n, 4e], mlp [n, e] (written by the MLP, with its bias).
    streams: 2 n_layer + 1 arrays of [n, e].
    """

    def __init__(self, ids, params, hparams, without=None):
        self.params, self.eps = float64(params), hparams["layer_norm_epsilon"]
        self.n_head, self.without = hparams["n_head"], without
        self.streams = [self.params["wte"][ids] + self.params["wpe"][: len(ids)]]
        self.patterns, self.values, self.written, self.neurons, self.mlp = [], [], [], [], []
        for i, block in enumerate(self.params["blocks"]):
            self.attend(i, block)
            self.feed_forward(i, block)

    def attend(self, i, block):
        x, c_proj = self.streams[-1], block["attn"]["c_proj"]
        y = gpt2_pico.layer_norm(x, **block["ln_1"], eps=self.eps)
        q, k, v = np.split(gpt2_pico.linear(y, **block["attn"]["c_attn"]), 3, axis=1)
        d = x.shape[1] // self.n_head
        patterns, values, written = [], [], []
        for head in range(self.n_head):
            columns = slice(head * d, (head + 1) * d)
            scores = q[:, columns] @ k[:, columns].T / np.sqrt(d)
            scores[np.triu_indices(len(x), 1)] = -np.inf
            patterns.append(gpt2_pico.softmax(scores))
            values.append(v[:, columns])
            written.append(patterns[-1] @ values[-1] @ c_proj["w"][columns])
            if self.without == (i, head):
                written[-1] *= 0
        self.patterns.append(np.stack(patterns))
        self.values.append(np.stack(values))
        self.written.append(np.stack(written))
        added = self.written[-1].sum(0) + c_proj["b"]
        if self.without == (i, "attention"):
            added *= 0
        self.streams.append(x + added)

    def feed_forward(self, i, block):
        x = self.streams[-1]
        y = gpt2_pico.layer_norm(x, **block["ln_2"], eps=self.eps)
        self.neurons.append(gpt2_pico.gelu(gpt2_pico.linear(y, **block["mlp"]["c_fc"])))
        self.mlp.append(gpt2_pico.linear(self.neurons[-1], **block["mlp"]["c_proj"]))
        if self.without == (i, "MLP"):
            self.mlp[-1] *= 0
        self.streams.append(x + self.mlp[-1])

    def logits(self, stream):  # [n, e] -> [n, n_vocab]
        """Return the logits of a residual stream."""
        x = gpt2_pico.layer_norm(stream, **self.params["ln_f"], eps=self.eps)
        return x @ self.params["wte"].T

    def contribution(self, part):  # [n, e] -> [n, n_vocab]
        """Return what a part of the last stream adds to the logits, with the scale as it was."""
        scale = np.sqrt(self.streams[-1].var(-1, keepdims=True) + self.eps)
        x = (part - part.mean(-1, keepdims=True)) / scale * self.params["ln_f"]["g"]
        return x @ self.params["wte"].T

    def value_norms(self, i):  # -> [h, n]
        """Return the length of each value of block i, as the output matrix writes it."""
        rows = np.split(self.params["blocks"][i]["attn"]["c_proj"]["w"], len(self.values[i]))
        written = [v @ w for v, w in zip(self.values[i], rows)]
        return np.sqrt((np.stack(written) ** 2).sum(-1))

    def written_by_neurons(self, i, row):  # -> [4e, e]
        """Return what each neuron of block i adds to the stream at a position."""
        return self.neurons[i][row][:, None] * self.params["blocks"][i]["mlp"]["c_proj"]["w"]

    def promoted(self, i, neuron):  # -> ids, the most likely one first
        """Return the tokens that the row of a neuron makes more likely, without a scale."""
        w = self.params["blocks"][i]["mlp"]["c_proj"]["w"][neuron]
        return np.argsort(-((w - w.mean()) * self.params["ln_f"]["g"] @ self.params["wte"].T))
