"""Write golden/lesson.npz: the arrays of the lesson's steps 6 to 16, computed by transformers.

The model is models/shakespeare. The prompt and the names of the arrays are those of the lesson.

pip install torch transformers && python tests/make_golden_lesson.py
"""

import numpy as np
import torch
from conftest import GOLDEN, ROOT
from transformers import GPT2LMHeadModel

IDS = [397, 305, 12, 530, 322, 288]  # "To be, or not to"


def main():
    model = GPT2LMHeadModel.from_pretrained(
        ROOT / "models" / "shakespeare", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    activations = {}  # {name of a module: [its input, its output]}

    def keep(name):
        def hook(module, inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            activations[name] = [x.reshape(x.shape[-2:]).numpy() for x in (inputs[0], output)]

        return hook

    body = model.transformer
    for name, module in body.named_modules():
        if name.startswith("h.") or name == "ln_f":
            module.register_forward_hook(keep(name))
    with torch.no_grad():
        out = model(torch.tensor([IDS]), output_attentions=True)
    n_head, d = model.config.n_head, model.config.n_embd // model.config.n_head
    qkv = activations["h.0.attn.c_attn"][1].reshape(len(IDS), 3, n_head, d)
    q, k, v = qkv.transpose(1, 2, 0, 3)
    stream = []
    for i in range(model.config.n_layer):
        stream += [activations[f"h.{i}.ln_1"][0], activations[f"h.{i}.ln_2"][0]]
    np.savez_compressed(
        GOLDEN / "lesson.npz",
        normed=activations["h.0.ln_1"][1],
        q=q,
        k=k,
        v=v,
        pattern=out.attentions[0][0].numpy(),
        mixed=activations["h.0.attn.c_proj"][0].reshape(len(IDS), n_head, d).swapaxes(0, 1),
        attended=activations["h.0.attn.c_proj"][1],
        hidden=activations["h.0.mlp.c_fc"][1],
        active=activations["h.0.mlp.act"][1],
        maps=np.array([x[0].numpy() for x in out.attentions]),
        stream=np.array([*stream, activations["ln_f"][0]]),
        final=activations["ln_f"][1],
        logits=out.logits[0].numpy(),
    )


if __name__ == "__main__":
    main()
