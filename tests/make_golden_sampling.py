"""Write golden/sampling.npz: the probabilities that transformers computes from random logits.

pip install transformers torch && python tests/make_golden_sampling.py
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

N_VOCAB, N_IDS = 120, 30


def main():
    rng = np.random.default_rng(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=N_VOCAB, n_layer=1, n_head=1, n_embd=4))
    settings, logits, ids, scores = [], [], [], []
    for i in range(60):
        setting = {"temperature": float(rng.choice([0.3, 0.8, 1.0, 1.7]))}
        for name, values in {
            "top_k": [1, 5, 40],
            "top_p": [0.1, 0.5, 0.9, 0.95],
            "min_p": [0.01, 0.1, 0.5],
            "repetition_penalty": [0.8, 1.1, 1.3, 2.0],
        }.items():
            if rng.random() < 0.6:
                setting[name] = type(values[0])(rng.choice(values))
        settings.append(setting)
        logits.append(rng.standard_normal(N_VOCAB).astype(np.float32) * 3 - i % 3)
        ids.append(rng.integers(0, N_VOCAB, N_IDS))
        options = {"top_k": 0, **setting}  # The default of transformers is 50.
        config = GenerationConfig(do_sample=True, **options)
        processors = model._get_logits_processor(config, N_IDS, torch.from_numpy(ids[-1][None]))
        processed = processors(
            torch.from_numpy(ids[-1][None]), torch.from_numpy(logits[-1][None]).double()
        )
        scores.append(processed.softmax(-1)[0].numpy())
    np.savez_compressed(
        Path(__file__).parent / "golden" / "sampling.npz",
        settings=json.dumps(settings),
        logits=np.array(logits),
        ids=np.array(ids, np.uint8),
        probabilities=np.array(scores, np.float32),
    )


if __name__ == "__main__":
    main()
