"""Write tests/golden/tf*: checkpoints that TensorFlow itself saves with its 1.x Saver.

pip install tensorflow-cpu && python tests/make_golden_tf.py

tf_gpt2    a tiny GPT-2 with OpenAI's names, vocabulary and hparams, as in OpenAI's store
tf_shapes  many shapes and types, in two data files
tf_many    an index of several blocks

The values come from a formula, so that the tests can compute them without TensorFlow.
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
GPT2 = {"n_vocab": 257, "n_ctx": 16, "n_embd": 8, "n_head": 2, "n_layer": 2}
SHAPES = {
    "float32/scalar": (),
    "float32/vector": (5,),
    "float32/empty": (0, 3),
    "float32/cube": (2, 3, 4),
    "float32/large": (64, 300),
    "float64/matrix": (3, 7),
    "int32/vector": (9,),
    "int64/global_step": (),
    "uint8/bytes": (33,),
    "float16/matrix": (4, 6),
}


def values(name, shape):
    """Return the values of an array. They depend only on its name and shape."""
    n = int(np.prod(shape))
    start = sum(i * ord(c) for i, c in enumerate(name, 1))
    x = (np.arange(n, dtype=np.int64) * 7919 + start) % 2003
    known = ("float64", "int32", "int64", "uint8", "float16")
    dtype = next((t for t in known if name.startswith(t)), "float32")
    return (x / 2003 - 0.5 if dtype.startswith("float") else x % 251).astype(dtype).reshape(shape)


def gpt2_shapes(n_vocab, n_ctx, n_embd, n_head, n_layer):
    e, shapes = n_embd, {"model/wte": (n_vocab, n_embd), "model/wpe": (n_ctx, n_embd)}
    for i in range(n_layer):
        for name, m, n in (
            ("attn/c_attn", e, 3 * e),
            ("attn/c_proj", e, e),
            ("mlp/c_fc", e, 4 * e),
            ("mlp/c_proj", 4 * e, e),
        ):
            shapes[f"model/h{i}/{name}/w"] = (1, m, n)
            shapes[f"model/h{i}/{name}/b"] = (n,)
        for name in ("ln_1", "ln_2"):
            shapes[f"model/h{i}/{name}/g"] = shapes[f"model/h{i}/{name}/b"] = (e,)
    return {**shapes, "model/ln_f/g": (e,), "model/ln_f/b": (e,)}


def main():
    import tensorflow.compat.v1 as tf

    tf.disable_eager_execution()

    def save(directory, shapes, **options):
        directory.mkdir(parents=True, exist_ok=True)
        with tf.Graph().as_default(), tf.Session() as session:
            for i, (name, shape) in enumerate(shapes.items()):
                with tf.device(f"/cpu:{i % 2 if options.get('sharded') else 0}"):
                    tf.get_variable(name, initializer=values(name, shape))
            session.run(tf.global_variables_initializer())
            saver = tf.train.Saver(save_relative_paths=True, **options)
            saver.save(session, str(directory / "model.ckpt"), write_meta_graph=False)

    from encoder import BYTE_OF_CHAR

    gpt2 = HERE / "golden" / "tf_gpt2"
    save(gpt2, gpt2_shapes(**GPT2))
    (gpt2 / "hparams.json").write_text(json.dumps(GPT2))
    tokens = [*sorted(BYTE_OF_CHAR), "<|endoftext|>"]
    (gpt2 / "encoder.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (gpt2 / "vocab.bpe").write_text("#version: 0.2\n")
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    save(HERE / "golden" / "tf_shapes", SHAPES, sharded=True)
    many = {f"layer_{i:03d}/a_name_that_is_somewhat_long/{i % 7}": (i % 3,) for i in range(400)}
    save(HERE / "golden" / "tf_many", many)


if __name__ == "__main__":
    main()
