#!/usr/bin/env python3
"""Hold `inspectd forward` against PyTorch: same weights, same input, tap by tap.

    scripts/compare_pytorch.py --arch efficientnet_lite0 --weights weights/efficientnet_lite0.pth
    scripts/compare_pytorch.py --arch wide_resnet50_2 --weights wide_resnet50_2-95faca4d.pth
    scripts/compare_pytorch.py --arch wide_resnet50_2          (seeded random weights)

Needs torch, numpy and safetensors (pip install torch numpy safetensors). The networks are written out
below, so neither torchvision nor timm is needed. Prints one line per tap; exits with 1 if a relative
error |ours - theirs| / |theirs| (Frobenius norms) exceeds 1e-4.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

LIMIT = 1e-4


class Bottleneck(nn.Module):
    def __init__(self, cin, inner, outer, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer)
        self.downsample = None
        if stride != 1 or cin != outer:
            conv = nn.Conv2d(cin, outer, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outer))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return (self.bn3(self.conv3(y)) + (self.downsample(x) if self.downsample else x)).relu()


class WideResNet50_2(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        cin = 64
        for i, blocks in enumerate([3, 4, 6, 3]):
            inner, outer = 128 << i, 256 << i
            layer = []
            for block in range(blocks):
                layer.append(Bottleneck(cin, inner, outer, 2 if i > 0 and block == 0 else 1))
                cin = outer
            setattr(self, f"layer{i + 1}", nn.Sequential(*layer))

    def forward(self, x):
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        taps = {}
        for i in range(1, 5):
            x = taps[f"layer{i}"] = getattr(self, f"layer{i}")(x)
        return taps


class Same(nn.Conv2d):
    """TensorFlow's SAME padding: the odd pixel goes below and to the right."""

    def forward(self, x):
        def around(size, k, s):
            total = max((-(-size // s) - 1) * s + k - size, 0)
            return [total // 2, total - total // 2]

        (kh, kw), (sh, sw) = self.kernel_size, self.stride
        x = F.pad(x, around(x.shape[3], kw, sw) + around(x.shape[2], kh, sh))
        return F.conv2d(x, self.weight, None, self.stride, 0, 1, self.groups)


def bn(channels):
    return nn.BatchNorm2d(channels, eps=1e-3)


class InvertedBottleneck(nn.Module):
    def __init__(self, cin, cout, kernel, stride, expand):
        super().__init__()
        wide = cin * expand
        self._expand_conv = None
        if expand > 1:
            self._expand_conv, self._bn0 = Same(cin, wide, 1, bias=False), bn(wide)
        self._depthwise_conv = Same(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = bn(wide)
        self._project_conv, self._bn2 = Same(wide, cout, 1, bias=False), bn(cout)
        self.residual = stride == 1 and cin == cout

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x))) if self._expand_conv else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    STAGES = [  # blocks, kernel, stride, expansion, width
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    ]
    TAPS = (2, 4, 10, 15)

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = Same(3, 32, 3, 2, bias=False), bn(32)
        blocks, cin = [], 32
        for count, kernel, stride, expand, cout in self.STAGES:
            for place in range(count):
                blocks.append(InvertedBottleneck(cin, cout, kernel, stride if place == 0 else 1, expand))
                cin = cout
        self._blocks = nn.ModuleList(blocks)

    def forward(self, x):
        x = F.relu6(self._bn0(self._conv_stem(x)))
        taps = {}
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.TAPS:
                taps[f"block{i}"] = x
        return taps


ARCHS = {"efficientnet_lite0": EfficientNetLite0, "wide_resnet50_2": WideResNet50_2}


def randomize(model):
    """Kaiming weights and batch norms that are not the identity."""
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight)
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.3, 0.9)
            nn.init.uniform_(m.bias, -0.2, 0.2)
            nn.init.uniform_(m.running_mean, -0.2, 0.2)
            nn.init.uniform_(m.running_var, 0.7, 1.5)


def main():
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--arch", required=True, choices=ARCHS)
    parser.add_argument("--weights", type=Path, help=".pth; left out, seeded random weights are used")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 256], metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--binary", type=Path, default=root / "target/release/inspectd")
    parser.add_argument("--reference", action="store_true", help="inspectd's plain operations")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    model = ARCHS[args.arch]().eval()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        weights = args.weights
        if weights is None:
            randomize(model)
            weights = folder / "weights.pth"
            torch.save(model.state_dict(), weights)
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            missing, unused = model.load_state_dict(state, strict=False)
            missing = [key for key in missing if not key.endswith("num_batches_tracked")]
            assert not missing, f"{weights} lacks {missing}"
            print(f"not used: {', '.join(unused) or 'nothing'}")
        image = torch.randn(args.batch, 3, *args.size)
        save_file({"image": image}, folder / "in.safetensors")
        with torch.no_grad():
            theirs = model.double()(image.double())
        command = [args.binary, "forward", "--arch", args.arch, "--weights", weights]
        command += ["--input", folder / "in.safetensors", "--out", folder / "out.safetensors"]
        start = time.monotonic()
        subprocess.run(command + ["--reference"] * args.reference, check=True)
        print(f"inspectd took {time.monotonic() - start:.2f} s, start and reading included")
        ours = load_file(folder / "out.safetensors")
    worst = 0.0
    for tap, expected in theirs.items():
        found = ours[tap].double()
        assert found.shape == expected.shape, f"{tap}: {found.shape} instead of {expected.shape}"
        error = ((found - expected).norm() / expected.norm()).item()
        largest = (found - expected).abs().max().item()
        worst = max(worst, error)
        shape = "x".join(map(str, expected.shape))
        print(f"{tap:8} {shape:>16}  relative error {error:.2e}  largest difference {largest:.2e}"
              f"  norm {expected.norm().item():.4g}")
    print("equal" if worst <= LIMIT else f"DIFFERENT: {worst:.2e} > {LIMIT:.0e}")
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    main()
