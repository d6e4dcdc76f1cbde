"""The names and shapes of parameters: one table, one flat dict, one tree."""

import inspect

import make_golden_tf
import numpy as np
from conftest import FULL, TINY, leaves, random_params

import gpt2
from model_files.directory import from_openai
from model_files.parameters import flatten, nest, parameter_shapes

PATHS = {  # the name of a parameter in files -> its path in the tree
    "wte.weight": ".wte",
    "wpe.weight": ".wpe",
    "h.0.ln_1.weight": ".blocks.0.ln_1.g",
    "h.0.ln_1.bias": ".blocks.0.ln_1.b",
    "h.0.attn.c_attn.weight": ".blocks.0.attn.c_attn.w",
    "h.0.attn.c_attn.bias": ".blocks.0.attn.c_attn.b",
    "h.0.attn.c_proj.weight": ".blocks.0.attn.c_proj.w",
    "h.0.attn.c_proj.bias": ".blocks.0.attn.c_proj.b",
    "h.0.ln_2.weight": ".blocks.0.ln_2.g",
    "h.0.ln_2.bias": ".blocks.0.ln_2.b",
    "h.0.mlp.c_fc.weight": ".blocks.0.mlp.c_fc.w",
    "h.0.mlp.c_fc.bias": ".blocks.0.mlp.c_fc.b",
    "h.0.mlp.c_proj.weight": ".blocks.0.mlp.c_proj.w",
    "h.0.mlp.c_proj.bias": ".blocks.0.mlp.c_proj.b",
    "ln_f.weight": ".ln_f.g",
    "ln_f.bias": ".ln_f.b",
}


def arrays(**hparams):
    shapes = parameter_shapes(**hparams)
    return {name: np.full(shape, i) for i, (name, shape) in enumerate(shapes.items())}


def test_each_name_has_its_place_in_the_tree():
    tensors = arrays(**{**TINY, "n_layer": 1})
    found = [(path, int(x.flat[0])) for path, x in leaves(nest(tensors))]
    assert sorted(found) == sorted((path, i) for i, path in enumerate(PATHS.values()))
    assert list(tensors) == list(PATHS)  # in the order of use


def test_nest_and_flatten_are_inverse():
    tensors = arrays(**{**TINY, "n_layer": 12})  # 10 comes after 9, not after 1
    for order in list(tensors), sorted(tensors), sorted(tensors)[::-1]:
        tree = nest({name: tensors[name] for name in order})
        flat = flatten(tree)
        assert flat.keys() == tensors.keys()
        assert all(flat[name] is x for name, x in tensors.items())
        assert [int(block["ln_1"]["g"][0]) for block in tree["blocks"]] == [*range(2, 146, 12)]
    assert list(flatten(nest(tensors))) == list(tensors)
    params = random_params()
    again = dict(leaves(nest(flatten(params))))
    assert all(again.pop(path) is x for path, x in leaves(params)) and not again


def test_every_name_of_openai_has_its_shape():
    theirs = make_golden_tf.gpt2_shapes(**make_golden_tf.GPT2)
    found = from_openai({name: np.zeros(shape) for name, shape in theirs.items()})
    assert {name: x.shape for name, x in found.items()} == parameter_shapes(**make_golden_tf.GPT2)


def test_124M_is_124M():
    shapes = parameter_shapes(**FULL)
    assert len(shapes) == 148
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 124_439_808


def test_the_mlp_is_four_times_as_wide_unless_told_otherwise():
    hparams = {"n_vocab": 9, "n_ctx": 4, "n_embd": 6, "n_layer": 1}
    for n_inner, width in (None, 24), (24, 24), (10, 10):
        shapes = parameter_shapes(**hparams, n_inner=n_inner, n_head=2, eos_token_ids=[3])
        assert shapes["h.0.mlp.c_fc.weight"] == (6, width)
        assert shapes["h.0.mlp.c_fc.bias"] == (width,)
        assert shapes["h.0.mlp.c_proj.weight"] == (width, 6)
    assert parameter_shapes(**hparams) == parameter_shapes(**hparams, n_inner=24)


def test_the_keys_of_the_tree_are_the_arguments_of_the_functions():
    params = random_params()
    (block, *_), c_attn = params["blocks"], params["blocks"][0]["attn"]["c_attn"]
    for function, tree in (
        (gpt2.gpt2, params),
        (gpt2.mha, block["attn"]),
        (gpt2.ffn, block["mlp"]),
        (gpt2.linear, c_attn),
        (gpt2.layer_norm, block["ln_1"]),
        (gpt2.layer_norm, params["ln_f"]),
    ):
        assert tree.keys() <= inspect.signature(function).parameters.keys()
