"""What PyTorch makes of both backbones with formula weights: tests/golden/backbones.safetensors.

    python tests/golden/make_backbones.py        (needs torch and safetensors)

Weights and input follow the formula of `src/nets/random.rs` in integer arithmetic, so that the test
makes the very same without a weights file. Per tap: the shape, the norm, and 64 values spread over the
tensor (N·C·H·W order), from a double-precision run.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from compare_pytorch import ARCHS, EfficientNetLite0  # noqa: E402

SEED, SIZE = 1, 64
RESIDUAL_ENDS = [2, 4, 6, 7, 9, 10, 12, 13, 14]
MASK = (1 << 64) - 1


def fnv1a(name):
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 & MASK
    return value


def unit(key, count):
    i = np.arange(1, count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = np.uint64(key) + i * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1.0


def stream(name, count):
    return unit(fnv1a(name) ^ (SEED * 0x9E3779B97F4A7C15 & MASK), count)


def formula(arch, name, shape):
    if len(shape) == 4:
        o, i, kh, kw = shape
        bound = (6.0 / (kh * kw * i)) ** 0.5
        hwio = (0.0 + bound * stream(name, o * i * kh * kw)).reshape(kh, kw, i, o)
        return hwio.transpose(3, 2, 0, 1)
    c = shape[0]
    bn, kind = name.rsplit(".", 1)
    if kind in ("running_mean", "running_var"):
        values = stream(bn + ".moments", 2 * c)
        return 0.1 * values[:c] if kind == "running_mean" else 1.0 + 0.3 * values[c:]
    if kind == "bias":
        return 0.1 * stream(name, c)
    ends = name.endswith(".bn3.weight") if arch == "wide_resnet50_2" else name in [
        f"_blocks.{block}._bn2.weight" for block in RESIDUAL_ENDS
    ]
    return (0.4 if ends else 1.0) + 0.2 * stream(name, c)


def main():
    image = stream("image", 2 * SIZE * SIZE * 3).astype(np.float32).reshape(2, SIZE, SIZE, 3) * np.float32(2)
    image = torch.from_numpy(image.transpose(0, 3, 1, 2).astype(np.float64))
    out = {}
    for arch, network in ARCHS.items():
        if network is EfficientNetLite0:
            network.TAPS = tuple(range(16))
        model = network().eval().double()
        state = model.state_dict()
        for name, tensor in state.items():
            if not name.endswith("num_batches_tracked"):
                values = formula(arch, name, tuple(tensor.shape)).astype(np.float32)
                tensor.copy_(torch.from_numpy(values.astype(np.float64)))
        with torch.no_grad():
            taps = model(image)
        for tap, tensor in taps.items():
            flat = tensor.reshape(-1).numpy()
            at = np.arange(64) * len(flat) // 64
            out[f"{arch}/{tap}/shape"] = np.array(tensor.shape, dtype=np.int32)
            out[f"{arch}/{tap}/norm"] = np.array([np.linalg.norm(flat)], dtype=np.float32)
            out[f"{arch}/{tap}/values"] = flat[at].astype(np.float32)
            print(arch, tap, tuple(tensor.shape), "rms", np.sqrt(np.mean(flat**2)))
    save_file(out, Path(__file__).parent / "backbones.safetensors")


main()
