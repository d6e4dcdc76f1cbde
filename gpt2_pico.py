"""GPT-2 as one formula: text in, the most likely next tokens out, and nothing kept in between.

Shapes: n tokens, e = n_embd numbers a token, h = n_head heads of d = e / h numbers each.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

import argparse
import math
import sys

import numpy as np


def gelu(x):  # [n, 4e] -> [n, 4e]
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def softmax(x):  # [..., n] -> [..., n], each row sums to 1
    exp_x = np.exp(x - x.max(-1, keepdims=True))
    return exp_x / exp_x.sum(-1, keepdims=True)


def layer_norm(x, g, b, eps):  # [n, e] -> [n, e]
    x = x - x.mean(-1, keepdims=True)
    return g * x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) + b


def linear(x, w, b):  # [n, in] @ [in, out] -> [n, out]
    return x @ w + b


def mha(x, c_attn, c_proj, n_head):  # [n, e] -> [n, e]
    n, e = x.shape
    qkv = linear(x, **c_attn).reshape(n, 3, n_head, e // n_head)  # [n, 3, h, d]
    q, k, v = qkv.transpose(1, 2, 0, 3)  # three of [h, n, d]
    future = np.triu(np.full((n, n), -np.inf, np.float32), 1)  # what a token must not see
    x = softmax(q @ k.swapaxes(1, 2) / math.sqrt(e // n_head) + future) @ v  # [h, n, d]
    return linear(x.swapaxes(0, 1).reshape(n, e), **c_proj)


def ffn(x, c_fc, c_proj):  # [n, e] -> [n, 4e] -> [n, e]
    return linear(gelu(linear(x, **c_fc)), **c_proj)


def gpt2(inputs, wte, wpe, blocks, ln_f, n_head, eps=1e-5):  # [n] ids -> [n, n_vocab] logits
    x = wte[inputs] + wpe[: len(inputs)]
    for block in blocks:
        x = x + mha(layer_norm(x, **block["ln_1"], eps=eps), **block["attn"], n_head=n_head)
        x = x + ffn(layer_norm(x, **block["ln_2"], eps=eps), **block["mlp"])
    return layer_norm(x, **ln_f, eps=eps) @ wte.T


def generate(inputs, params, n_head, n_tokens, eps=1e-5, eos=None):  # ids -> iterator of ids
    ids, n_ctx = list(inputs), len(params["wpe"])
    half = max(1, n_ctx // 2)
    for _ in range(n_tokens):
        # Past the context the window jumps by half of it, so that gpt2.py can keep its cache.
        start = -(-max(0, len(ids) - n_ctx) // half) * half
        ids.append(int(gpt2(ids[start:], **params, n_head=n_head, eps=eps)[-1].argmax()))
        if ids[-1] == eos:
            return
        yield ids[-1]


if __name__ == "__main__":
    from utils import load_encoder_hparams_and_params

    parser = argparse.ArgumentParser(description="Complete a prompt, the short and slow way.")
    parser.add_argument("prompt")
    parser.add_argument("--n_tokens_to_generate", type=int, default=40)
    parser.add_argument("--model_size", default="124M")
    parser.add_argument("--models_dir", default="models")
    args = parser.parse_args()
    try:
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        encoder, hparams, params = load_encoder_hparams_and_params(args.model_size, args.models_dir)
        eps, eos = hparams["layer_norm_epsilon"], hparams["eos_token_id"]
        inputs = encoder.encode(args.prompt)[-hparams["n_ctx"] :] or [eos]
        if inputs == [None]:
            raise ValueError("an empty prompt needs a model with <|endoftext|>: give a prompt")
        ids = generate(inputs, params, hparams["n_head"], args.n_tokens_to_generate, eps, eos)
        print(encoder.decode(list(ids)), flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"gpt2_pico.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
