"""Write golden/odd_models.{json,npz}: what transformers computes with the models of odd_models.py.

pip install torch transformers && python tests/make_golden_odd.py

It also compares the encoders with transformers' tokenizers on random texts. The environment
variable FUZZ is the number of texts per model.
"""

import json
import os
import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from conftest import GOLDEN
from odd_models import INPUT, N_TOKENS, PARTS, TEXTS, build, random_text
from odd_tokenizers import CASES
from transformers import AutoModelForCausalLM, AutoTokenizer

from encoder import Encoder
from model_files.directory import load_model, save_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def decode(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def continuation(directory):
    """Return the logits after INPUT, the greedy tokens that follow, and the smallest lead.

    The tokens do not include the end-of-text token. A lead is the difference between the best and
    the second-best logit.
    """
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.tensor([INPUT])
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=N_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
        )
    tokens = output.sequences[0, len(INPUT) :].tolist()
    best = [step[0].topk(2).values for step in output.logits]
    ends = model.generation_config.eos_token_id
    if tokens[-1] in (ends if isinstance(ends, list) else [ends]):
        del tokens[-1]
    return logits.numpy(), tokens, min(float(a - b) for a, b in best)


def main():
    golden, rows, kinds = {}, [], []
    n_fuzz = int(os.environ.get("FUZZ", 300))
    for name, odd in CASES.items():
        if odd.refused:
            continue
        with tempfile.TemporaryDirectory() as directory:
            directory = Path(directory) / "gpt2"
            build(odd.reference or odd, directory)
            tokenizer = AutoTokenizer.from_pretrained(directory)
            tokens = [tokenizer.encode(text) for text in TEXTS]
            texts = [decode(tokenizer, ids) for ids in tokens]
            # A 0 stands for ids that decode to the text itself. Most cases share the same ids.
            kind = [tokens, [x if x != text else 0 for x, text in zip(texts, TEXTS, strict=True)]]
            if kind not in kinds:
                kinds.append(kind)
            logits, greedy, lead = continuation(directory)
            assert lead > 1e-4, (name, lead)
            print(f"{name}: {greedy}, smallest lead {lead:.4f}")
            golden[name] = {"tokens": kinds.index(kind), "greedy": greedy}
            rows.append(logits[:: len(logits) // 20][:20])
            fuzz(name, odd, tokenizer, directory, n_fuzz)
            assert continuation(directory.parent / "gpt2-saved")[1] == greedy, name
    lines = ",\n".join(json.dumps(kind, separators=(",", ":")) for kind in kinds)
    cases = json.dumps(golden, ensure_ascii=False)
    text = f'{{"kinds": [\n{lines}\n],\n"cases": {cases}}}\n'
    (GOLDEN / "odd_models.json").write_text(text, encoding="utf-8")
    np.savez_compressed(GOLDEN / "odd_models.npz", logits=np.array(rows))


def fuzz(name, odd, tokenizer, directory, n):
    """Compare our encoder with transformers' tokenizer on n random texts.

    Do the same for the tokenizer that transformers reads from a directory that we loaded and saved.
    """
    build(odd, directory.parent / "ours")
    vocabulary, hparams, params = load_model(directory.parent / "ours")
    save_model(directory.parent / "gpt2-saved", hparams, params, vocabulary)
    saved = AutoTokenizer.from_pretrained(directory.parent / "gpt2-saved")
    ours, rng = Encoder(vocabulary, hparams["n_vocab"]), random.Random(n)
    for _ in range(n):
        text = random_text(rng)
        ids = tokenizer.encode(text)
        assert ours.encode(text) == ids == saved.encode(text), (name, text)
        assert ours.decode(ids) == decode(tokenizer, ids) == decode(saved, ids), (name, text)
        text = random_text(rng, [*PARTS, *8 * ["<|endoftext|>"]])
        # We ignore the flags that a file may give <|endoftext|>; where two files differ, it shows.
        if "<|endoftext|>" in tokenizer.get_added_vocab() and "other flags of" not in name:
            assert ours.encode(text, special_tokens=True) == tokenizer.encode(text), (name, text)


if __name__ == "__main__":
    main()
