"""GPT-2 (Radford et al. 2019) as one formula: from text to the next token. Lesson: steps 6 to 18.

    "To be, or not to"                    a text that models/shakespeare continues
    [397, 305, 12, 530, 322, 288]         its tokens (pieces of text) as ids in the vocabulary
    x [6, 256]                            256 numbers for each; 6 blocks (mha, ffn) add to them
    logits [6, 2048]                      a score for each token that could follow each of the 6
    " be" 15.5 %, "-" 3.5 %, " do" 3.5 %  the last row as probabilities: " be" is the most likely

Shapes: n tokens of e = n_embd numbers each; h = n_head heads of d = e / h numbers each."""

import numpy as np


# A smooth max(x, 0): x times the probability that a standard normal variable is below x (tanh gives
# a close approximation). Without gelu, two linear layers in a row could do no more than one.
def gelu(x):  # [n, 4e] -> [n, 4e]
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x)))


# Turn x into probabilities. Subtracting the maximum cancels out, but keeps exp from overflowing.
def softmax(x):  # [..., n] -> [..., n], each row sums to 1
    exp_x = np.exp(x - x.max(-1, keepdims=True))
    return exp_x / exp_x.sum(-1, keepdims=True)


# Give each row mean 0 and variance 1, whatever was added to it. Then apply a learned gain and bias.
def layer_norm(x, g, b, eps):  # [n, e] -> [n, e]
    x = x - x.mean(-1, keepdims=True)
    return g * x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) + b  # eps: never divide by 0


# Each output is a weighted sum of the inputs, plus a bias. The weights w and biases b are learned.
def linear(x, w, b):  # [n, in] @ [in, out] -> [n, out]; **c_attn below passes w and b
    return x @ w + b


# One head of attention. Each token takes an average of the tokens' values v, weighted by how well
# its query q fits their keys k. Each score is a sum of d products, so scores grow like sqrt(d).
# Without dividing by that, softmax would give nearly all the weight to one token.
def head(q, k, v):  # three times [n, d] -> [n, d]
    scores = q @ k.T / q.shape[1] ** 0.5  # [n, n]
    # Hide later tokens, because the model learns to predict them: their weight is exp(-inf) = 0.
    mask = np.triu(np.full(scores.shape, -np.inf, np.float32), 1)  # -inf above the diagonal
    return softmax(scores + mask) @ v


# Multi-head attention, the only place where tokens exchange information. From its row each token
# makes a query (what it looks for), a key (what others find it by) and a value (what it passes on).
# Each head has its own queries, keys and values, so it can look for something different.
def mha(x, c_attn, c_proj, n_head):  # [n, e] -> [n, e]; c_: OpenAI called linear a "convolution"
    q, k, v = np.split(linear(x, **c_attn), 3, axis=1)  # [n, 3e] -> three times [n, e]
    q, k, v = (np.split(part, n_head, axis=1) for part in (q, k, v))  # now lists of h arrays [n, d]
    heads = [head(q[i], k[i], v[i]) for i in range(n_head)]
    return linear(np.concatenate(heads, axis=1), **c_proj)  # side by side [n, e], then mixed


# The feed-forward network (MLP): each token, by itself, processes what attention has brought to it.
def ffn(x, c_fc, c_proj):  # [n, e] -> [n, 4e] -> [n, e]; fc: fully connected; proj: projection
    return linear(gelu(linear(x, **c_fc)), **c_proj)


def gpt2(inputs, wte, wpe, blocks, ln_f, n_head, eps):  # [n] ids -> [n, n_vocab] logits
    # wte ("word token embedding") has a row for each token in the vocabulary, wpe one per position.
    x = wte[inputs] + wpe[: len(inputs)]  # without wpe, attention would not know the order
    for block in blocks:  # x, the residual stream, is only ever added to, never replaced
        x = x + mha(layer_norm(x, **block["ln_1"], eps=eps), **block["attn"], n_head=n_head)
        x = x + ffn(layer_norm(x, **block["ln_2"], eps=eps), **block["mlp"])
    # A logit is the product of a row with a token's embedding: how similar the two are.
    return layer_norm(x, **ln_f, eps=eps) @ wte.T


def generate(inputs, params, hparams, n_tokens):  # yields the ids that follow the inputs
    ids, n_ctx = list(inputs), hparams["n_ctx"]
    if not ids:
        raise ValueError("the prompt is empty: give at least one token")
    if len(ids) + n_tokens > n_ctx:
        raise ValueError(f"{len(ids)} tokens and {n_tokens} new ones exceed the context of {n_ctx}")
    for _ in range(n_tokens):  # each time the whole text goes through the model
        logits = gpt2(ids, **params, n_head=hparams["n_head"], eps=hparams["layer_norm_epsilon"])
        ids.append(int(logits[-1].argmax()))
        if ids[-1] in hparams["eos_token_ids"]:  # end of sequence: the text ends here
            return
        yield ids[-1]


if __name__ == "__main__":
    import cli
    from utils import load_encoder_hparams_and_params as load

    def complete(args):
        encoder, hparams, params = load(args.model_size, args.models_dir, only_plain=True)
        ids = [*generate(encoder.encode(args.prompt), params, hparams, args.n_tokens_to_generate)]
        print(cli.visible(encoder.decode(ids)))
        cli.warn_of_repetition(ids)

    parser = cli.new_parser("gpt2_pico.py", "Complete a prompt with the short and slow model.")
    parser.add_argument("prompt")
    parser.add_argument("--n_tokens_to_generate", type=cli.number(int, 0), default=40)
    cli.add_model_options(parser)
    raise SystemExit(cli.run(parser, complete))
