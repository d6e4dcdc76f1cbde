"""Your own GPT-2. Write each function when the lesson asks you to, and check it:

    cp lesson/mine.py my_gpt2.py           write in a copy of this file (on Windows: copy)
    python lesson/check.py my_gpt2.py      see which functions are right so far

NumPy is all you need. Shapes: n tokens of e numbers each; h = n_head heads of d = e / h numbers.
"""

import numpy as np  # noqa: F401


# Step 8. Give each row mean 0 and variance 1, then multiply by the gain g and add the bias b.
def layer_norm(x, g, b, eps):  # [n, e] -> [n, e]
    raise NotImplementedError


# Step 9. Make each output a sum of all inputs, weighted by a column of w, plus a bias.
def linear(x, w, b):  # [n, in] @ [in, out] -> [n, out]; **c_attn below passes w and b
    raise NotImplementedError


# Step 11. Turn each row into probabilities, even if it holds numbers as large as 1000.
def softmax(x):  # [..., n] -> [..., n], each row sums to 1
    raise NotImplementedError


# Step 12. Compare each query with the keys of its own token and of those before it, and return the
# average of their values, weighted by how well they fit.
def head(q, k, v):  # three times [n, d] -> [n, d]
    raise NotImplementedError


# Step 12. Make queries, keys and values with c_attn, give each head its columns of them, put the
# results of the heads side by side, and mix them with c_proj.
def mha(x, c_attn, c_proj, n_head):  # [n, e] -> [n, e]; c_: OpenAI called linear a "convolution"
    raise NotImplementedError


# Step 14. Multiply each number by the probability that a standard normal variable is below it, in
# the approximation with tanh.
def gelu(x):  # [n, 4e] -> [n, 4e]
    raise NotImplementedError


# Step 14. Make each row four times as long with c_fc, apply gelu, and make it short with c_proj.
def ffn(x, c_fc, c_proj):  # [n, e] -> [n, 4e] -> [n, e]; fc: fully connected; proj: projection
    raise NotImplementedError


# Step 16. Add token and position embeddings, let each block add its attention (block["ln_1"],
# block["attn"]) and its MLP (block["ln_2"], block["mlp"]), and compare the result with each token.
def gpt2(inputs, wte, wpe, blocks, ln_f, n_head, eps):  # [n] ids -> [n, n_vocab] logits
    raise NotImplementedError


# Step 18. Yield the most likely next id, n_tokens times, or until it is in
# hparams["eos_token_ids"]. (gpt2 needs hparams["n_head"] and hparams["layer_norm_epsilon"], too.)
def generate(inputs, params, hparams, n_tokens):  # yields the ids that follow the inputs
    raise NotImplementedError


# Step 20. For y = linear(x, w, b), return dx and {"w": dw, "b": db}. dy, dx, dw and db are the
# gradients of the loss with respect to y, x, w and b.
def linear_backward(dy, x, w, b):  # [n, out], [n, in] -> [n, in]
    raise NotImplementedError


# Step 20. For y = softmax(x), return dx.
def softmax_backward(dy, y):  # twice [..., n] -> [..., n]
    raise NotImplementedError
