"""The functions of lesson/mine.py as readers write them: right, and with the usual mistakes."""

# The same functions as another person might write them.
OTHERS = """
def layer_norm(x, g, b, eps):
    mean = x.mean(axis=-1, keepdims=True)
    std = np.sqrt(x.var(axis=-1, keepdims=True) + eps)
    return (x - mean) / std * g + b

def linear(x, w, b):
    return np.matmul(x, w) + b

def softmax(x):
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)

def head(q, k, v):
    scores = q @ k.T / np.sqrt(q.shape[1])
    later = np.triu(np.ones((len(q), len(q))), 1) == 1
    weights = softmax(np.where(later, -1e30, scores))
    return weights @ v

def mha(x, c_attn, c_proj, n_head):
    q, k, v = np.hsplit(linear(x, **c_attn), 3)
    q, k, v = [np.hsplit(part, n_head) for part in (q, k, v)]
    heads = [head(*parts) for parts in zip(q, k, v)]
    return linear(np.hstack(heads), **c_proj)

def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

def ffn(x, c_fc, c_proj):
    hidden = gelu(linear(x, **c_fc))
    return linear(hidden, **c_proj)

def gpt2(inputs, wte, wpe, blocks, ln_f, n_head, eps):
    x = wte[inputs] + wpe[np.arange(len(inputs))]
    for block in blocks:
        y = layer_norm(x, **block["ln_1"], eps=eps)
        x = x + mha(y, **block["attn"], n_head=n_head)
        z = layer_norm(x, **block["ln_2"], eps=eps)
        x = x + ffn(z, **block["mlp"])
    x = layer_norm(x, **ln_f, eps=eps)
    return np.matmul(x, wte.T)

def generate(inputs, params, hparams, n_tokens):
    ids = list(inputs)
    n_head, eps = hparams["n_head"], hparams["layer_norm_epsilon"]
    for _ in range(n_tokens):
        logits = gpt2(ids, **params, n_head=n_head, eps=eps)
        best = int(np.argmax(logits[-1]))
        if best in hparams["eos_token_ids"]:
            break
        ids.append(best)
        yield best

def linear_backward(dy, x, w, b):
    dx = np.einsum("no,io->ni", dy, w)
    dw = np.array([[(x[:, i] * dy[:, j]).sum() for j in range(w.shape[1])] for i in range(len(w))])
    db = np.ones(len(dy)) @ dy
    return dx, {"w": dw, "b": db}

def softmax_backward(dy, y):
    return y * dy - y * np.sum(y * dy, axis=-1, keepdims=True)
"""
OTHERS = {source.split("(")[0][4:]: source for source in OTHERS.strip().split("\n\n")}
POST_NORM = """
def gpt2(inputs, wte, wpe, blocks, ln_f, n_head, eps):
    x = wte[inputs] + wpe[: len(inputs)]
    for block in blocks:
        x = layer_norm(x + mha(x, **block["attn"], n_head=n_head), **block["ln_1"], eps=eps)
        x = layer_norm(x + ffn(x, **block["mlp"]), **block["ln_2"], eps=eps)
    return layer_norm(x, **ln_f, eps=eps) @ wte.T
"""
EXACT = """
    from math import erf
    return np.array([[v * (1 + erf(v / 2**0.5)) / 2 for v in row] for row in x])
"""
MISTAKES = {  # {function: [(advice, a piece of it, what a reader has written instead, ...), ...]}
    "layer_norm": [
        ("by n, not by n - 1", "var(", "var(ddof=1, "),
        ("variance of each row", "x.var(axis=-1, keepdims=True)", "(x - mean).var()"),
        (
            "eps belongs under the root",
            "np.sqrt(x.var(axis=-1, keepdims=True)",
            "(x.std(axis=-1, keepdims=True)",
        ),
        ("eps is missing", " + eps", ""),
        ("the root is missing", "np.sqrt", ""),
        ("divide by the spread", " / std", ""),
        ("the gain g is missing", " * g", ""),
        ("the bias b is missing", " + b", ""),
        ("the gain g and the bias b are missing", " * g + b", ""),
        ("the mean is not subtracted", "x.var(", "np.mean(x * x, ", "x - mean", "x"),
        ("but not from x", "x - mean", "x"),
        ("those of each column", "axis=-1", "axis=0"),
        ("those of the whole array", "axis=-1, keepdims=True", ""),
        ("keepdims=True is missing", ", keepdims=True", ""),
    ],
    "linear": [
        ("the bias b is missing", " + b", ""),
        ("w must not be transposed", "(x, w)", "(x, w.T)"),
        ("x comes first", "(x, w)", "(w, x)"),
        ("x comes first", "(x, w)", "(w.T, x)"),
        ("x comes first", "(x, w)", "(w.T, x.T)"),
        ("the matrix product", "np.matmul(x, w)", "x * w"),
    ],
    "softmax": [
        ("subtract each row's maximum before exp", " - np.max(x, axis=-1, keepdims=True)", ""),
        ("not that of the whole array", "np.max(x, axis=-1, keepdims=True)", "x.max()"),
        ("each column sums to 1", "axis=-1", "axis=0"),
        ("axis -1, which is the last one", "axis=-1", "axis=1"),
        ("the whole array sums to 1", "np.sum(e, axis=-1, keepdims=True)", "np.sum(e)"),
        ("those of the whole array", ", axis=-1, keepdims=True", ""),
        ("keepdims=True is missing", ", keepdims=True", ""),
        ("divide by the sum", "e / np.sum(e, axis=-1, keepdims=True)", "e"),
    ],
    "head": [
        ("the mask is missing", "np.where(later, -1e30, scores)", "scores"),
        ("the mask is the wrong way round", "triu", "tril", ", 1)", ", -1)"),
        ("the mask is the wrong way round", "triu", "tril", ", 1)", ")", "-1e30", "-np.inf"),
        ("the mask is the wrong way round", "triu", "tril", "-1e30", "-np.inf"),
        ("0 * -inf is NaN", "np.where(later, -1e30, scores)", "later * -np.inf + scores"),
        ("each token from itself", ", 1)", ")", "-1e30", "-np.inf"),
        ("each token sees the next one", ", 1)", ", 2)"),
        ("add -inf instead", "-1e30", "0"),
        (
            "no longer sum to 1",
            "np.where(later, -1e30, scores)",
            "scores",
            "weights @",
            "(weights * ~later) @",
        ),
        ("by the root of d, not by d", "np.sqrt(q.shape[1])", "q.shape[1]"),
        ("are not divided", " / np.sqrt(q.shape[1])", ""),
        ("not the number of tokens", "q.shape[1]", "len(q)"),
        ("instead of multiplying", "T / np", "T * np"),
        ("not its result after it", " / np.sqrt(q.shape[1])", "", "@ v", "@ v / 8"),
        ("query and key are swapped", "q @ k.T", "k @ q.T"),
        ("must be transposed", "q @ k.T", "q @ k"),
        ("softmax is missing", "softmax", "", "-1e30", "-np.inf"),
        ("multiply them by the values", " @ v", ""),
        ("not by the keys", "@ v", "@ k"),
    ],
    "mha": [
        *(
            (f"not {order}", "q, k, v = np", f"{order} = np")
            for order in ("q, v, k", "k, q, v", "k, v, q", "v, q, k", "v, k, q")
        ),
        ("reshape mixes tokens", "np.hsplit(part, n_head)", "part.reshape(n_head, len(x), -1)"),
        (
            "not every h-th one",
            "np.hsplit(part, n_head)",
            "[part[:, i::n_head] for i in range(n_head)]",
        ),
        ("first split q, k and v", "np.hsplit(part, n_head)", "part"),
        ("c_attn is a dict", "**c_attn", "c_attn"),
        ("split the columns", "np.hsplit(part, n_head)", "np.vsplit(part, n_head)"),
        (
            "first split into q, k and v",
            "3)",
            "n_head)",
            "q, k, v = np",
            "parts = np",
            "np.hsplit(part, n_head) for part in (q, k, v)",
            "list(x) for x in zip(*(np.hsplit(part, 3) for part in parts))",
        ),
        ("all heads work as one", "np.hsplit(part, n_head)", "[part]"),
        ("reshape alone mixes tokens", "np.hstack(heads)", "np.stack(heads).reshape(len(x), -1)"),
        ("not one below the other", "hstack", "vstack"),
        ("c_proj is missing", "linear(np.hstack(heads), **c_proj)", "np.hstack(heads)"),
        ("the bias of c_attn", "linear(x, **c_attn)", 'x @ c_attn["w"]'),
        (
            "the bias of c_proj",
            "linear(np.hstack(heads), **c_proj)",
            'np.hstack(heads) @ c_proj["w"]',
        ),
        ("do not add x here", "return", "return x +"),
    ],
    "gelu": [
        ("the cube is 0.044715", "0.044715", "0.44715"),
        ("the exact GELU", OTHERS["gelu"].partition(":")[2], EXACT),
        ("ReLU", OTHERS["gelu"].partition("return")[2], " x * (x > 0)"),
        ("a sigmoid", OTHERS["gelu"].partition("return")[2], " x / (1 + np.exp(-1.702 * x))"),
        ("the factor 0.5", "0.5 * ", ""),
        ("the factor x in front", "x * (1", "(1"),
        ("the 1 before tanh", "1 + ", ""),
        ("the cube", "x**3", "x**2"),
        ("needs parentheses", "(x + 0.044715 * x**3)", "x + 0.044715 * x**3"),
        ("take the root of 2 / pi", "np.sqrt(2 / np.pi)", "2 / np.pi"),
        ("the factor 0.044715", "0.044715 * ", ""),
    ],
    "ffn": [
        ("c_fc is a dict", "**c_fc", "c_fc"),
        ("gelu is missing", "gelu", ""),
        (
            "between the two layers",
            "gelu(",
            "(",
            "linear(hidden, **c_proj)",
            "gelu(linear(hidden, **c_proj))",
        ),
        ("c_fc comes first", "**c_fc", "**c", "**c_proj", "**c_fc", "**c)", "**c_proj)"),
        ("c_proj is missing", "linear(hidden, **c_proj)", "hidden"),
        ("do not add x here", "return", "return x +"),
    ],
    "gpt2": [
        ("the first rows of wpe", "wpe[np.arange(len(inputs))]", "wpe[len(inputs)]"),
        ("not the sum", OTHERS["gpt2"], POST_NORM),
        (
            "is return inside the loop",
            "    x = layer_norm(x, **ln_f",
            "        x = layer_norm(x, **ln_f",
            "    return",
            "        return",
        ),
        ("the positions are missing", " + wpe[np.arange(len(inputs))]", ""),
        ("positions count from 0", "arange(len(inputs))", "arange(len(inputs)) + 1"),
        ("not per id", "np.arange(len(inputs))", "inputs"),
        ("as many rows", "wpe[np.arange(len(inputs))]", "wpe"),
        ("attention must be added", "x + mha", "mha"),
        ("the MLP must be added", "x + ffn", "ffn"),
        ("attention and MLP must be added", "x + mha", "mha", "x + ffn", "ffn"),
        ("not to its normalised copy", "y = ", "x = ", "z = ", "x = ", "(y", "(x", "(z", "(x"),
        ("before attention is missing", "mha(y", "mha(x"),
        ("before the MLP is missing", "ffn(z", "ffn(x"),
        ("before attention and MLP are missing", "mha(y", "mha(x", "ffn(z", "ffn(x"),
        ("before the MLP comes ln_2", "ln_2", "ln_1"),
        ("ln_1 comes before attention", "ln_2", "ln_3", "ln_1", "ln_2", "ln_3", "ln_1"),
        ("ln_f, is missing", "x = layer_norm(x, **ln_f, eps=eps)", ""),
        ("not only the last", "np.matmul(x, wte.T)", "x[-1] @ wte.T"),
        ("without softmax", "np.matmul(x, wte.T)", "softmax(x @ wte.T)"),
        ("with the tokens' embeddings", "np.matmul(x, wte.T)", "x"),
        ("transpose wte", "wte.T", "wte"),
    ],
    "generate": [
        (
            "a list instead of a generator: use `yield`",
            "yield best",
            "",
            "for _",
            "return list(ids)\n    for _",
        ),
        ("not the first", "logits[-1]", "logits[0]"),
        ("the last row only", "logits[-1]", "logits"),
        ("use argmax", "argmax", "argmin"),
        ("do not yield the prompt", "    for", "    yield from ids\n    for"),
        ("stop at an end-of-text id", "break", "pass"),
        ("do not yield the end-of-text id", "            break", "            yield best; break"),
        ("append each new id", "ids.append(best)", ""),
        ("not only its last token", "gpt2(ids", "gpt2(ids[-1:]"),
        ("not one more", "range(n_tokens)", "range(n_tokens + 1)"),
        ("not one more", "for _ in range(n_tokens)", "while True"),
        ("not one fewer", "range(n_tokens)", "range(1, n_tokens)"),
        ("does not include the prompt", "range(n_tokens)", "range(n_tokens - len(inputs))"),
        ("begin with ids = list(inputs)", "list(inputs)", "inputs"),
    ],
    "linear_backward": [
        ("not their mean", "np.ones(len(dy)) @ dy", "dy.mean(0)"),
        ("with sum(0)", "np.ones(len(dy)) @ dy", "np.sum(dy)"),
        ("db is the sum of the rows", "np.ones(len(dy)) @ dy", "dy"),
        ("not a mean", "sum()", "mean()"),
        ("so is db", "sum()", "mean()", "np.ones(len(dy)) @ dy", "dy.mean(0)"),
        ("w's shape", '"w": dw', '"w": dw.T'),
        ("w must be transposed", 'np.einsum("no,io->ni", dy, w)', "dy @ w"),
        ("x must be transposed", '"w": dw', '"w": x @ dy'),
        ('return dx, {"w": dw, "b": db}', 'dx, {"w": dw, "b": db}', "dx"),
    ],
    "softmax_backward": [
        ("affects the sum in softmax", " - y * np.sum(y * dy, axis=-1, keepdims=True)", ""),
        ("not only y[i]", "np.sum(y * dy, axis=-1, keepdims=True)", "y * dy"),
        ("sum over each row, with axis -1", "axis=-1", "axis=0"),
        ("not over the whole array", ", axis=-1, keepdims=True", ""),
        ("keepdims=True is missing", ", keepdims=True", ""),
        ("multiply by y", "y * dy - y * np.sum", "dy - np.sum"),
        ("weight the sum by y", "sum(y * dy", "sum(dy"),
        ("not the mean", "np.sum", "np.mean"),
        ("do not add it", "y * dy - ", "y * dy + "),
        ("is softmax(x) already", "return", "y = softmax(y); return"),
    ],
}
