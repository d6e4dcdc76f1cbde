"""Write golden/torch/: what torch.save makes of small state dicts, and the numbers in them.

pip install torch && python tests/make_golden_torch.py
"""

import collections

import numpy as np
import torch
from conftest import GOLDEN

PLACE = GOLDEN / "torch"


def main():
    PLACE.mkdir(exist_ok=True)
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    tensors = {
        "f32": x,
        "transposed": x.T,  # shares the numbers of f32
        "part": x[1:, 1:3],
        "f64": x.double(),
        "f16": x.half(),
        "bf16": x.bfloat16(),
        "i64": torch.arange(3),
        "u8": torch.arange(6, dtype=torch.uint8).reshape(2, 3),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    torch.save(collections.OrderedDict(tensors), PLACE / "types.bin")
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    torch.save(model.state_dict(), PLACE / "module.bin")  # has _metadata
    save_many()
    torch.save({"a": x}, PLACE / "old.bin", _use_new_zipfile_serialization=False)
    torch.save(model, PLACE / "whole_module.bin")
    torch.save({"model": {"a": x}, "step": 3}, PLACE / "checkpoint.bin")
    torch.save({"a": x, "b": torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)}, PLACE / "int8.bin")
    tensors |= {f"module.{name}": x for name, x in model.state_dict().items()}
    arrays = {name: x.detach().float().numpy() for name, x in tensors.items()}
    np.savez_compressed(PLACE / "numbers.npz", **arrays)


def save_many():
    """Save a dict whose pickle has the instructions for numbers from 256 on, as a model's has."""
    x = torch.arange(300).half()
    tensors = {f"from {i}": x[i:] for i in range(40)}
    torch.save({**tensors, "a": torch.ones(1), "b": torch.zeros(1)}, PLACE / "many.bin")


if __name__ == "__main__":
    main()
