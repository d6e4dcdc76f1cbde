"""Write golden/explain.npz: what transformers computes when it runs the shipped model on a text.

pip install torch transformers && python tests/make_golden_explain.py
"""

import numpy as np
import torch
from conftest import GOLDEN, ROOT
from transformers import GPT2LMHeadModel

from utils import load_encoder_hparams_and_params

DIRECTORY = ROOT / "models" / "shakespeare"
TEXT = "To be, or not to be: that is the question:\nWhether 'tis nobler in the mind to suffer"


def main():
    encoder, _, _ = load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))
    model = GPT2LMHeadModel.from_pretrained(
        DIRECTORY, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = encoder.encode(TEXT)
    streams, hooks = [], []
    for block in model.transformer.h:  # The input of each layer norm is the residual stream.
        for layer in block.ln_1, block.ln_2:
            hooks.append(layer.register_forward_pre_hook(lambda _, x: streams.append(x[0][0])))
    last = lambda _, x: streams.append(x[0][0])  # noqa: E731
    hooks.append(model.transformer.ln_f.register_forward_pre_hook(last))
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_attentions=True)
        for hook in hooks:
            hook.remove()
        streams = torch.stack(streams)
        lens = model.lm_head(model.transformer.ln_f(streams)).softmax(-1).topk(2)
        best = out.logits[0].argmax(-1)
        heads = [0, 1, 2, 3]
        ablated = [without(model, ids, best, i, part) for i in range(6) for part in [*heads, "mlp"]]
        layers = [without(model, ids, best, i, part) for i in range(6) for part in ("attn", "mlp")]
    np.savez_compressed(
        GOLDEN / "explain.npz",
        ids=ids,
        weights=torch.cat(out.attentions).numpy().round(6),
        stream=streams[:, -1].numpy(),
        lens_ids=lens.indices.numpy().astype(np.uint16),
        lens_p=lens.values.numpy(),
        logits=out.logits[0, -1].numpy(),
        best=best.numpy(),
        knocked=torch.stack(ablated).numpy(),
        layers=torch.stack(layers).numpy(),
    )


def without(model, ids, best, i, part):
    """Return the probabilities of the best tokens when a part of block i is ablated.

    part: the number of a head, "attn" or "mlp".
    """
    block = model.transformer.h[i]

    def drop_head(_, x):
        x[0][..., part * 64 : (part + 1) * 64] = 0

    def drop_output(_, x, y):
        return (torch.zeros_like(y[0]), *y[1:]) if isinstance(y, tuple) else torch.zeros_like(y)

    if part in ("attn", "mlp"):
        hook = getattr(block, part).register_forward_hook(drop_output)
    else:
        hook = block.attn.c_proj.register_forward_pre_hook(drop_head)
    p = model(torch.tensor([ids])).logits[0].softmax(-1)
    hook.remove()
    return p[torch.arange(len(ids)), best]


if __name__ == "__main__":
    main()
