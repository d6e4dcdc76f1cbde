"""Write golden/from_nothing.json: the first 20 losses of lesson/from_nothing.py, as torch has them.

pip install torch transformers && python tests/make_golden_from_nothing.py

transformers' GPT-2 starts with the same weights and learns from the same batches. Its gradients are
torch's, and so are the loss, clipping and Adam.
"""

import json
import math
import sys

import numpy as np
import torch
from conftest import GOLDEN, ROOT
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(ROOT / "lesson"))

import from_nothing as lesson

N_STEPS = 20


def part_of_rate(step):
    return min((step + 1) / lesson.WARMUP, 1) * (1 + math.cos(math.pi * step / lesson.STEPS)) / 2


def main():
    rng = np.random.default_rng(0)
    state = {f"transformer.{name}": x for name, x in lesson.random_weights(rng).items()}
    config = GPT2Config(
        vocab_size=lesson.N_VOCAB,
        n_positions=lesson.N_CTX,
        n_embd=lesson.N_EMBD,
        n_layer=1,
        n_head=lesson.N_HEAD,
        bos_token_id=None,
        eos_token_id=None,
        layer_norm_epsilon=lesson.EPS,
    )
    model = GPT2LMHeadModel(config).eval()  # without dropout
    model.load_state_dict({name: torch.from_numpy(x) for name, x in state.items()}, strict=False)
    model.tie_weights()
    adam = torch.optim.Adam(model.parameters(), lr=lesson.RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, part_of_rate)
    losses = []
    for _ in range(N_STEPS):
        ids = torch.from_numpy(lesson.batch(rng))
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        losses.append(round(loss.item(), 5))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        schedule.step()
    text = json.dumps(losses) + "\n"
    (GOLDEN / "from_nothing.json").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
