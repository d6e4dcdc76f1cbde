"""The parameters of a GPT-2: their names and shapes, as a flat dict and as a tree.

In files they are a flat dict, by transformers' names without the prefix transformer.:
    {"wte.weight": [n_vocab, n_embd], "h.0.attn.c_attn.weight": [n_embd, 3 n_embd], ...}
In code they are a tree, whose keys are the arguments of the functions in gpt2.py:
    {"wte": ..., "blocks": [{"attn": {"c_attn": {"w": ..., "b": ...}, ...}, ...}, ...], ...}
Lesson: step 5.
"""

import numpy as np


def parameter_shapes(n_vocab, n_ctx, n_embd, n_layer, n_inner=None, **others):
    """-> {name: shape} of all parameters, in the order in which the model uses them.

    n_inner, the width of the MLP, is 4 n_embd unless given; the other hparams have no say.
    """
    n_inner = n_inner or 4 * n_embd
    block = {
        "ln_1.weight": (n_embd,),
        "ln_1.bias": (n_embd,),
        "attn.c_attn.weight": (n_embd, 3 * n_embd),
        "attn.c_attn.bias": (3 * n_embd,),
        "attn.c_proj.weight": (n_embd, n_embd),
        "attn.c_proj.bias": (n_embd,),
        "ln_2.weight": (n_embd,),
        "ln_2.bias": (n_embd,),
        "mlp.c_fc.weight": (n_embd, n_inner),
        "mlp.c_fc.bias": (n_inner,),
        "mlp.c_proj.weight": (n_inner, n_embd),
        "mlp.c_proj.bias": (n_embd,),
    }
    return {
        "wte.weight": (n_vocab, n_embd),
        "wpe.weight": (n_ctx, n_embd),
        **{f"h.{i}.{name}": shape for i in range(n_layer) for name, shape in block.items()},
        "ln_f.weight": (n_embd,),
        "ln_f.bias": (n_embd,),
    }


def nest(tensors):
    """{"h.0.ln_1.weight": x, ...} -> {"blocks": [{"ln_1": {"g": x, ...}, ...}, ...], ...}"""
    tree = {}
    for name, x in tensors.items():
        *path, last = tree_path(name)
        place = tree
        for key in path:
            place = place.setdefault(key, {})
        place[last] = x
    tree["blocks"] = [tree["blocks"][i] for i in range(len(tree["blocks"]))]
    return tree


def tree_path(name):
    """ "h.0.attn.c_attn.weight" -> ["blocks", 0, "attn", "c_attn", "w"]; "wte.weight" -> ["wte"]"""
    *path, leaf = name.split(".")
    if path[0] == "h":
        path[:2] = "blocks", int(path[1])
    if path[-1] in ("wte", "wpe"):
        return path
    return [*path, "b" if leaf == "bias" else "g" if path[-1].startswith("ln_") else "w"]


def flatten(params, name=""):
    """The inverse of nest: a tree -> {"h.0.ln_1.weight": x, ...}"""
    if isinstance(params, np.ndarray):
        return {f"{name}.weight" if name in ("wte", "wpe") else name: params}
    if isinstance(params, list):
        params = dict(enumerate(params))
    keys = {"blocks": "h", "g": "weight", "w": "weight", "b": "bias"}
    return {
        path: x
        for key, value in params.items()
        for path, x in flatten(value, f"{name}.{keys.get(key, key)}".lstrip(".")).items()
    }
