"""Small weights files as PyTorch writes them, and what they hold: weights/*.pth, weights/expected.safetensors.

    python tests/golden/make_weights.py        (needs torch and safetensors)
"""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

OUT = Path(__file__).parent / "weights"


class Attack:
    def __reduce__(self):
        return os.system, ("echo harm",)


def main():
    OUT.mkdir(exist_ok=True)
    torch.manual_seed(1)
    base = torch.randn(4, 6)
    tensors = OrderedDict(
        f32=base,
        transposed=base.t(),
        sliced=base[1:3, ::2],
        permuted=torch.randn(2, 3, 4, 5).permute(3, 1, 0, 2),
        expanded=torch.randn(3, 1).expand(3, 4),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        f16=torch.randn(5).half(),
        bf16=torch.randn(5).bfloat16(),
        f64=torch.randn(5).double(),
        i64=torch.tensor([-(2**40), 7]),
        i32=torch.arange(-3, 3, dtype=torch.int32),
        u8=torch.arange(250, 256, dtype=torch.uint8),
        mask=torch.tensor([True, False]),
    )
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, OUT / "expected.safetensors")

    model = torch.nn.Sequential(torch.nn.Linear(2, 3))
    checkpoint = {
        "epoch": 3,
        "best": 0.5,
        "arch": {"widths": [1, 2, None], "name": "small"},
        "state_dict": OrderedDict((f"module.{name}", t) for name, t in tensors.items()),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
    }
    for name, zipped in [("zip", True), ("legacy", False)]:
        torch.save(tensors, OUT / f"{name}.pth", _use_new_zipfile_serialization=zipped)
        torch.save(checkpoint, OUT / f"{name}_checkpoint.pth", _use_new_zipfile_serialization=zipped)
        torch.save(Attack(), OUT / f"{name}_attack.pth", _use_new_zipfile_serialization=zipped)
        parameters = dict(model.named_parameters())
        torch.save(parameters, OUT / f"{name}_parameters.pth", _use_new_zipfile_serialization=zipped)
    for protocol in (0, 2, 4):
        (OUT / f"attack_{protocol}.pkl").write_bytes(pickle.dumps(Attack(), protocol))


main()
