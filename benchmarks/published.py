"""Compare greedy completions of the released weights with the published ones.

python benchmarks/published.py 124M
"""

import argparse
import re
import sys

import common  # noqa: F401
import numpy as np

from gpt2 import generate, gpt2
from utils import load_encoder_hparams_and_params

TURING = "Alan Turing theorized that computers would one day become"
TEXTS = {  # a prompt and what follows it, as text or as ids
    "124M": [
        (
            TURING,
            " the most powerful machines on the planet.\n\nThe computer is a machine that can "
            "perform complex calculations, and it can perform these calculations in a way that "
            "is very similar to the human brain.",
        ),
        (
            f"{TURING} very powerful, but even he could not imagine",
            "703 484 561 307 1498 284 466 523 13 198 198 1 40 892 326 262 749 1593 1517 318",
        ),
        (
            "The dog",
            "373 1043 287 257 2214 1474 262 16246 286 2688 290 2688 27262 13 198 198 464 3290",
        ),
        (
            "I enjoy walking with my cute dog",
            ", but I'm not sure if I'll ever be able to walk with my dog. I'm not sure if I'll "
            "ever be able to walk with my dog.\n\nI'm not sure",
        ),
    ],
    "355M": [
        (
            "What is the answer to life, the universe, and everything?",
            "\n\nThe answer is that we are all one",
        ),
        ("Hello.", " I'm a little late to the party, but"),
    ],
    "1558M": [("Reversible computing is", " a concept that has been around for a while, but it")],
}
LOGITS_124M = [
    -43.431618,
    -39.836346,
    -43.065910,
    -42.828045,
    -43.529541,  # of ids 0 to 9 after
    -44.318398,
    -41.227425,
    -41.270760,
    -42.541393,
    -42.394997,
]  # <|endoftext|>


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model_size", choices=list(TEXTS))
    parser.add_argument("--models_dir", default="models")
    args = parser.parse_args()
    encoder, hparams, params = load_encoder_hparams_and_params(args.model_size, args.models_dir)
    same = True
    for prompt, expected in TEXTS[args.model_size]:
        given_as_ids = re.fullmatch(r"[\d ]+", expected)
        expected = [*map(int, expected.split())] if given_as_ids else encoder.encode(expected)
        ids = encoder.encode(prompt)
        found = list(generate(ids, params, hparams, len(expected)))
        verdict = "same" if found == expected else "DIFFERENT"
        print(f"{verdict}: {prompt!r} -> {encoder.decode(found)!r}")
        same &= found == expected
    if args.model_size == "124M":
        model = {**params, "n_head": hparams["n_head"], "eps": hparams["layer_norm_epsilon"]}
        logits = gpt2([50256], **model)[0, :10]
        error = float(np.abs(logits - np.array(LOGITS_124M, np.float32)).max())
        print(f"logits of <|endoftext|> differ by at most {error:.1e}")
        same &= error < 1e-3
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
