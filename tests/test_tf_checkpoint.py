"""TensorFlow's checkpoints, written by TensorFlow itself, read bit for bit; damaged ones refused.

FUZZ in the environment sets how many damaged files are tried.
"""

import os
import random
import shutil
from pathlib import Path

import make_golden_tf as golden
import numpy as np
import pytest

import utils
from tf_checkpoint import masked_crc32c, read_checkpoint, varint

GOLDEN = Path(__file__).parent / "golden"
FUZZ = int(os.environ.get("FUZZ", 500))


def crc32c(data):
    """Bit by bit, from the definition."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def unmask(masked):
    rotated = (masked - 0xA282EAD8) % (1 << 32)
    return (rotated >> 17 | rotated << 15) % (1 << 32)


def test_crc32c():
    """Published values (RFC 3720, B.4), then the definition at lengths around every boundary."""
    assert unmask(masked_crc32c(b"123456789")) == 0xE3069283
    assert unmask(masked_crc32c(bytes(32))) == 0x8A9136AA
    assert unmask(masked_crc32c(b"\xff" * 32)) == 0x62A8AB43
    assert unmask(masked_crc32c(bytes(range(32)))) == 0x46DD794E
    data = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
    for n in [0, 1, 2, 3, 4, 5, 7, 8, 9, 5684, 5685, 5686, 45480]:
        assert unmask(masked_crc32c(data[:n])) == crc32c(data[:n]), n


def test_crc32c_over_many_blocks():
    """Appending data and its remainder leads to one constant, whatever the data."""
    data = np.random.default_rng(1).integers(0, 256, 1_000_000, dtype=np.uint8).tobytes()
    for n in [276_671, 276_672, 276_673, 553_344, 999_999]:
        whole = data[:n] + unmask(masked_crc32c(data[:n])).to_bytes(4, "little")
        assert unmask(masked_crc32c(whole)) == 0x48674BC7, n


def test_varint():
    assert varint(b"\xac\x02", 0) == (300, 2)
    for data in (b"", b"\x80", b"\xff" * 11):
        with pytest.raises(ValueError, match="cut off"):
            varint(data, 0)


@pytest.mark.parametrize("verify", [False, True])
def test_shapes_and_types(verify):
    tensors = read_checkpoint(GOLDEN / "tf_shapes" / "model.ckpt", verify)
    assert tensors.keys() == golden.SHAPES.keys()
    for name, shape in golden.SHAPES.items():
        x, expected = tensors[name], golden.values(name, shape)
        assert x.dtype == expected.dtype and x.shape == shape, name
        assert x.tobytes() == expected.tobytes(), name
        assert not x.flags.writeable or not x.size, name


def test_an_index_of_many_blocks():
    tensors = read_checkpoint(GOLDEN / "tf_many" / "model.ckpt", verify=True)
    assert len(tensors) == 400
    for name, x in tensors.items():
        assert np.array_equal(x, golden.values(name, x.shape)), name


def test_tiny_gpt2():
    encoder, hparams, params = utils.load_model(GOLDEN / "tf_gpt2")
    assert hparams == {**golden.GPT2, "layer_norm_epsilon": 1e-5, "eos_token_id": 256}
    assert encoder.encode("Hi") == [encoder.encoder["H"], encoder.encoder["i"]]
    expected = {
        name: golden.values(name, shape)
        for name, shape in golden.gpt2_shapes(**golden.GPT2).items()
    }
    assert np.array_equal(params["wte"], expected["model/wte"])
    assert np.array_equal(params["ln_f"]["g"], expected["model/ln_f/g"])
    for i, block in enumerate(params["blocks"]):
        for layer in ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj"):
            part, name = layer.split("/")
            w, b = (expected[f"model/h{i}/{layer}/{leaf}"] for leaf in "wb")
            assert np.array_equal(block[part][name]["w"], w[0])
            assert np.array_equal(block[part][name]["b"], b)
        assert np.array_equal(block["ln_2"]["b"], expected[f"model/h{i}/ln_2/b"])


def test_shared_models_are_the_same(shared):
    encoder, hparams, params = utils.load_model(shared / "models" / "shakespeare-openai")
    other_encoder, other_hparams, other = utils.load_model(shared / "models" / "shakespeare-hf")
    assert hparams == other_hparams and encoder.encoder == other_encoder.encoder
    params, other = utils.flatten(params), utils.flatten(other)
    assert params.keys() == other.keys()
    for name, x in params.items():
        assert np.array_equal(x, other[name]) and x.flags.aligned and not x.flags.owndata, name


def test_damage_is_named(tmp_path):
    for path in (GOLDEN / "tf_gpt2").iterdir():
        shutil.copy(path, tmp_path)
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    genuine = data.read_bytes()
    data.write_bytes(genuine[:5000] + bytes([genuine[5000] ^ 1]) + genuine[5001:])
    with pytest.raises(ValueError, match="tensor model/.* is damaged: its CRC-32C"):
        read_checkpoint(tmp_path / "model.ckpt", verify=True)
    data.write_bytes(genuine[:-1])
    with pytest.raises(ValueError, match="15775 bytes, but tensor model/.* cut off"):
        utils.load_model(tmp_path)
    (tmp_path / "model.ckpt.index").write_bytes(b"<html>" * 20)
    with pytest.raises(ValueError, match="model.ckpt.index: damaged, or no TensorFlow index"):
        utils.load_model(tmp_path)
    data.unlink()
    with pytest.raises(FileNotFoundError, match="holds no model"):
        utils.load_model(tmp_path)


def test_checkpoint_of_another_name(tmp_path):
    """Fine-tuning programs number their checkpoints; the file checkpoint names the latest."""
    for path in (GOLDEN / "tf_gpt2").iterdir():
        shutil.copy(path, tmp_path / path.name.replace("model.ckpt", "model-1000"))
    for name in ("model-1000", "/elsewhere/run1/model-1000"):
        (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n')
        assert utils.load_model(tmp_path)[1]["n_layer"] == 2
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "../model-1000"\n')
    assert utils.checkpoint_prefix(tmp_path) == tmp_path / "model-1000"


def reseal(index):
    """The index with right checksums: else every change would end at the first one."""
    index, position = bytearray(index), 0
    footer = bytes(index[-48:-8])
    try:
        handles = []
        for _ in range(4):
            number, position = varint(footer, position)
            handles.append(number)
        blocks = [tuple(handles[2:])]
        if handles[2] < len(index):  # the data blocks lie one after the other before the metaindex
            blocks.append((0, handles[0] - 5))
        for offset, size in blocks:
            if 0 <= offset < offset + size < len(index) - 48:
                crc = masked_crc32c(bytes(index[offset : offset + size + 1]))
                index[offset + size + 1 : offset + size + 5] = crc.to_bytes(4, "little")
    except ValueError:
        pass
    return bytes(index)


def test_fuzz(tmp_path):
    """A mutated index is read, or refused in one line with its name."""
    rng = random.Random(0)
    genuine = {
        directory: (GOLDEN / directory / "model.ckpt.index").read_bytes()
        for directory in ("tf_gpt2", "tf_shapes")
    }
    for directory in genuine:
        shutil.copytree(GOLDEN / directory, tmp_path / directory)
    refused = {}
    for i in range(FUZZ):
        directory = rng.choice(list(genuine))
        index = mutate(rng, genuine[directory])
        path = tmp_path / directory / "model.ckpt.index"
        path.write_bytes(reseal(index) if rng.random() < 0.8 else index)
        try:
            for x in read_checkpoint(tmp_path / directory / "model.ckpt").values():
                x.sum()
        except (ValueError, OSError) as error:
            message = str(error)
            assert str(path.parent) in message and "\n" not in message, f"{i}: {message}"
            reason = message.split(": ", 2)[-1][:25]
            refused[reason] = refused.get(reason, 0) + 1
    print(f"{FUZZ} mutated indices, {sum(refused.values())} refused: {refused}")
    assert len(refused) > 3


def mutate(rng, data):
    """data with a few bits flipped, bytes replaced, inserted, deleted, repeated, or cut off."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, n = rng.randrange(len(data) or 1), rng.choice([1, 1, 2, 4, 9, 40])
        match rng.randrange(6):
            case 0 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + n] = rng.randbytes(n)
            case 2:
                data[at : at + n] = rng.choice([b"\xff", b"\0", b"\x80", b"\x7f"]) * n
            case 3:
                data[at:at] = rng.randbytes(n)
            case 4:
                del data[at : at + n]
            case 5:
                data[at : at + n] = data[(start := rng.randrange(len(data) or 1)) : start + n]
    return bytes(data) if rng.random() < 0.95 else bytes(data[: rng.randrange(len(data) or 1)])
