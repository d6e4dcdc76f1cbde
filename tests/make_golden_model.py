"""Write golden/model*.{npz,json} and golden/backward.npz: what transformers and torch compute.

pip install torch transformers tokenizers && python tests/make_golden_model.py
"""

import json

import numpy as np
import torch
from conftest import FULL, GOLDEN, SHARED, TINY, initial_params, leaves, random_params
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from model_files.directory import flatten, nest

PROMPTS = [
    "ROMEO:",
    "First Citizen:\nBefore we proceed",
    "\n",
    "O",
    "I'll not",
    "KING RICHARD III:\nNow is the",
    "To be, or not to be: that is the question",
]
N_TOKENS = 200


def reference(hparams, params):
    """Return a transformers model with these parameters."""
    config = GPT2Config(
        vocab_size=hparams["n_vocab"],
        n_positions=hparams["n_ctx"],
        n_embd=hparams["n_embd"],
        n_layer=hparams["n_layer"],
        n_head=hparams["n_head"],
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        layer_norm_epsilon=hparams["layer_norm_epsilon"],
    )
    model = GPT2LMHeadModel(config).eval()
    state = {f"transformer.{name}": torch.from_numpy(x) for name, x in flatten(params).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model


def greedy(model, ids, n_tokens, min_lead=0.0):
    """Return the greedy tokens and the smallest lead of the best logit over the second best.

    Stop early when a lead is less than min_lead.
    """
    ids, cache, tokens, leads = torch.tensor([ids]), None, [], []
    with torch.no_grad():
        for _ in range(n_tokens):
            out = model(ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            first, second = out.logits[0, -1].topk(2).values
            leads.append(float(first - second))
            ids = out.logits[:, -1:].argmax(-1)
            tokens.append(int(ids))
            if leads[-1] < min_lead:
                break
    return tokens, min(leads)


def make_tiny():  # In double precision, transformers has practically no rounding error.
    model = reference(TINY, random_params(seed=1)).double()
    ids = np.random.default_rng(2).integers(TINY["n_vocab"], size=(3, TINY["n_ctx"]))
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)).logits.float().numpy()
    np.savez_compressed(GOLDEN / "model.npz", ids=ids, logits=logits)


def make_backward():
    model = reference(TINY, random_params(seed=3)).double()
    ids = np.random.default_rng(4).integers(TINY["n_vocab"], size=(4, 41))  # 40 of the 48 positions
    logits = model(torch.from_numpy(ids[:, :-1])).logits
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, TINY["n_vocab"]), torch.from_numpy(ids[:, 1:]).reshape(-1)
    )
    loss.backward()
    grads = {
        name.removeprefix("transformer."): x.grad.float().numpy()
        for name, x in model.named_parameters()
    }
    grads = dict(leaves(nest(grads)))
    np.savez_compressed(GOLDEN / "backward.npz", ids=ids, loss=loss.item(), **grads)


def make_shakespeare():
    directory = SHARED / "models" / "shakespeare-hf"
    model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = ByteLevelBPETokenizer.from_file(
        str(directory / "vocab.json"), str(directory / "merges.txt")
    )
    cases = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids
        tokens, lead = greedy(model, ids, N_TOKENS)
        print(f"{prompt!r}: smallest lead {lead:.5f}")
        cases.append(
            {"prompt": prompt, "ids": ids, "tokens": tokens, "text": tokenizer.decode(tokens)}
        )
    (GOLDEN / "model_shakespeare.json").write_text(json.dumps(cases, indent=1), encoding="utf-8")


def make_full(name, **scales):
    """Write the greedy tokens and some logits of a random model with the shape of 124M.

    Try seeds until no choice of a token is so close that rounding could change it.
    """
    for seed in range(100):
        ids = np.random.default_rng(seed).integers(FULL["n_vocab"], size=300)
        model = reference(FULL, initial_params(seed, FULL, **scales))
        tokens, lead = greedy(model, ids[:10].tolist(), N_TOKENS, min_lead=2e-3)
        print(f"{name}, seed {seed}: smallest lead {lead:.5f}, {len(set(tokens))} different tokens")
        if lead > 2e-3:
            break
    positions = np.array([0, 1, 2, 126, 127, 128, 129, 255, 256, 299])
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    columns = np.append(np.arange(0, FULL["n_vocab"], 1000), FULL["n_vocab"] - 1)
    np.savez_compressed(
        GOLDEN / f"model_124M_{name}.npz",
        seed=seed,
        ids=ids,
        tokens=tokens,
        positions=positions,
        columns=columns,
        logits=logits[np.ix_(positions, columns)],
    )


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    make_tiny()
    make_backward()
    make_shakespeare()
    make_full("repeats")
    make_full("wanders", wte=0.08, wpe=1.0)
