"""GPT-2 (Radford et al. 2019) as one formula: text in, next token out. Lesson: steps 6 to 18.

    "To be, or not to"                   text; models/shakespeare completes it
    [397, 305, 12, 530, 322, 288]        its tokens, pieces of text, as ids: places in a list
    x [6, 256]                           a row of numbers for each token: the residual stream
    x [6, 256]                           the same after 6 blocks (mha, then ffn) have added to it
    logits [6, 2048]                     how well each token of the list would follow each of the 6
    " be" 15.5 %, "-" 3.5 %, " do" 3.5 % the last row of them as probabilities: best " be"

Shapes: n tokens of n_vocab, e numbers each (n_embd), h heads of d = e / h numbers each (n_head).
"""

if __name__ == "__main__":
    import startup  # no part of the lesson: Ctrl-C shall end this without a traceback

    startup.begin()

import numpy as np

import command


# A soft switch, x times the share of a bell curve below x, nearly: lets large numbers through
# and holds negative ones back. Without it, two linear layers in a row could be written as one.
def gelu(x):  # [n, 4e] -> [n, 4e]
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x)))


# Numbers become shares of 1. Taking off the maximum cancels out, but keeps exp from overflowing.
def softmax(x):  # [..., n] -> [..., n]
    exp_x = np.exp(x - x.max(-1, keepdims=True))
    return exp_x / exp_x.sum(-1, keepdims=True)


# Mean 0, variance 1 for each row, however much was added to it; then a learned gain g and bias b.
def layer_norm(x, g, b, eps):  # [n, e] -> [n, e]
    x = x - x.mean(-1, keepdims=True)
    return g * x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) + b  # eps: never divide by 0


# Learned weights w and bias b: each number that comes out is a weighted sum of those that go in.
def linear(x, w, b):  # [n, in] @ [in, out] -> [n, out]; **c_attn below is w=..., b=...
    return x @ w + b


# Multi-head attention, the only place where tokens learn of each other. From its row each token
# makes a query (what it looks for), a key (what it can be found by) and a value (what it passes
# on). A score is query times key; softmax makes shares of them, in which the values are summed.
def mha(x, c_attn, c_proj, n_head):  # [n, e] -> [n, e]; c_: OpenAI called linear a "convolution"
    n, e = x.shape
    d = e // n_head  # for each head, whose queries are its own: it looks for other things
    q, k, v = linear(x, **c_attn).reshape(n, 3, n_head, d).transpose(1, 2, 0, 3)  # [3, h, n, d]
    # A sum of d products grows like sqrt(d): undivided, one score would soon take the whole share.
    scores = q @ k.swapaxes(1, 2) / d**0.5  # [h, n, n]
    # No token sees those after it, which it is trained to predict: exp(-inf), their share, is 0.
    mask = np.triu(np.full((n, n), -np.inf, np.float32), 1)  # -inf above the diagonal
    y = softmax(scores + mask) @ v  # [h, n, n] @ [h, n, d] -> [h, n, d]
    return linear(y.swapaxes(0, 1).reshape(n, e), **c_proj)  # the heads side by side, then mixed


# The feed-forward network (MLP): what each token, by itself, makes of what attention brought.
def ffn(x, c_fc, c_proj):  # [n, e] -> [n, 4e] -> [n, e]
    return linear(gelu(linear(x, **c_fc)), **c_proj)


def gpt2(inputs, wte, wpe, blocks, ln_f, n_head, eps):  # [n] ids -> [n, n_vocab] logits
    # wte, "word token embedding", has a row for each token of the list; wpe has one for each place.
    x = wte[inputs] + wpe[: len(inputs)]  # without wpe attention would not know the order
    for block in blocks:  # x, the residual stream, is only ever added to: nothing gets lost
        x = x + mha(layer_norm(x, **block["ln_1"], eps=eps), **block["attn"], n_head=n_head)
        x = x + ffn(layer_norm(x, **block["ln_2"], eps=eps), **block["mlp"])
    # A logit is the product of a row with a token's embedding: how much it looks like that token.
    return layer_norm(x, **ln_f, eps=eps) @ wte.T


def generate(inputs, params, hparams, n_tokens):  # ids -> the ids that follow
    if not 0 < len(inputs) <= len(params["wpe"]) - n_tokens:
        raise ValueError(f"prompt and {n_tokens} tokens: 1 to {len(params['wpe'])} in all")
    ids, n_head, eps = list(inputs), hparams["n_head"], hparams["layer_norm_epsilon"]
    for _ in range(n_tokens):
        logits = gpt2(ids, **params, n_head=n_head, eps=eps)  # all rows, for the last one
        ids.append(int(logits[-1].argmax()))
        if ids[-1] in hparams["eos_token_ids"]:  # end of sequence: the text is over
            break
        yield ids[-1]


def complete(args):
    encoder, hparams, params = command.load(args)  # text <-> ids; sizes; the arguments of gpt2
    ids = encoder.encode(args.prompt)
    print(encoder.decode(list(generate(ids, params, hparams, args.n_tokens_to_generate))))


if __name__ == "__main__":
    parser = command.new_parser("gpt2_pico.py", "Complete a prompt, the short and slow way.")
    parser.add_argument("prompt")
    parser.add_argument("--n_tokens_to_generate", type=int, default=40)
    command.model_options(parser)
    raise SystemExit(command.run(parser, complete))
