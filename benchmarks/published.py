"""Compare completions of the released weights with the published ones in docs/published.md.

    python benchmarks/published.py 124M

For 124M, it also compares ten logits. The exit status is 1 if anything differs.
"""

import argparse
import re
import sys

import numpy as np
from common import ROOT

from gpt2 import generate, gpt2
from utils import load_encoder_hparams_and_params

ROW = r"^\| (\w+) \| `(.+)` \| (\d+) \| `(.+)` \|$"  # size, prompt, number of tokens, continuation
LOGITS = (  # of 124M after <|endoftext|>, for ids 0 to 9
    "-43.431618 -39.836346 -43.065910 -42.828045 -43.529541 "
    "-44.318398 -41.227425 -41.270760 -42.541393 -42.394997"
)


def main():
    page = (ROOT / "docs" / "published.md").read_text(encoding="utf-8")
    rows = re.findall(ROW, page, re.MULTILINE)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model_size", choices=sorted({size for size, *_ in rows}))
    parser.add_argument("--models_dir", default="models", help="(models)")
    args = parser.parse_args()
    encoder, hparams, params = load_encoder_hparams_and_params(args.model_size, args.models_dir)
    all_same = True
    for size, prompt, n_tokens, continuation in rows:
        if size == args.model_size:
            ids = list(generate(encoder.encode(prompt), params, hparams, int(n_tokens)))
            text = encoder.decode(ids)
            expected = continuation.replace("\\n", "\n")
            same = expected in (text, " ".join(map(str, ids)))  # Some are published as ids.
            print(f"{'same' if same else 'DIFFERENT'}: {prompt!r} -> {text!r}")
            all_same = all_same and same
    if args.model_size == "124M":
        logits = gpt2([50256], **params, hparams=hparams)[0, :10]
        error = float(np.abs(logits - np.array(LOGITS.split(), np.float32)).max())
        print(f"logits after <|endoftext|> differ by at most {error:.1e}")
        all_same = all_same and error < 1e-3
    return 0 if all_same else 1


if __name__ == "__main__":
    sys.exit(main())
