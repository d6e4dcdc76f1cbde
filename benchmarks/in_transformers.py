"""Load a model directory with transformers, and compare its ids, logits and greedy text with ours.

    pip install torch transformers
    python benchmarks/in_transformers.py [DIRECTORY] [PROMPT]

DIRECTORY is models/shakespeare by default. It can be any directory that train.py has written.
"""

import sys

import numpy as np
import torch
from common import ROOT
from transformers import AutoTokenizer, GPT2LMHeadModel

from gpt2 import generate, gpt2
from utils import load_encoder_hparams_and_params


def main(directory=ROOT / "models" / "shakespeare", prompt="To be, or not to", n=60):
    encoder, hparams, params = load_encoder_hparams_and_params(str(directory), "models")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()
    ids = encoder.encode(prompt)
    if ids != tokenizer(prompt)["input_ids"]:
        sys.exit("the ids DIFFER")
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
        text = model.generate(torch.tensor([ids]), max_new_tokens=n, do_sample=False)[0]
    ours = gpt2(ids, **params, hparams=hparams)
    new = list(generate(ids, params, hparams, n))
    same = text[len(ids) :].tolist()[:n] == new
    print(f"logits differ by at most {np.abs(ours - theirs).max():.1e}")
    print(f"greedy tokens are {'equal' if same else 'DIFFERENT'}")
    print(prompt + encoder.decode(new))


if __name__ == "__main__":
    main(*sys.argv[1:])
