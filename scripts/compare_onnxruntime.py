#!/usr/bin/env python3
"""Holds our backbones against ONNX Runtime's CPU path: same weights, same input, same number of threads.

    cargo build --release
    scripts/compare_onnxruntime.py [--rounds 7] [--threads 2] [--arch efficientnet_lite0] [--json]

The ONNX model is written node by node from our own weights file, in the order of the papers' layers, so
no framework is needed. Convolution and batch norm stand apart in it; ONNX Runtime fuses them when it loads
the model, as we do when we compile. Without --weights ARCH=FILE (a file that `inspectd import` wrote) the
weights are random: the time does not depend on them.

Prints, for each backbone at 256x256, batch 1: the median over interleaved rounds of each side's median
time, their ratio (below 1: we are faster), and how far the outputs differ.

Its packages go into a virtual environment of its own, third_party/compare, on the first run.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / "third_party/compare"
REQUIREMENTS = ROOT / "scripts/requirements/compare.txt"
SIZE = 256


def enter_environment():
    """Runs this script again inside its virtual environment, which it makes if need be."""
    try:
        import numpy, onnx, onnxruntime, safetensors  # noqa: F401, E401

        return
    except ImportError:
        pass
    python = VENV / "bin/python"
    if os.environ.get("INSPECTD_COMPARE_ENTERED"):
        sys.exit(f"error: {VENV} lacks a package\n       type: rm -r {VENV}, then run this script again")
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: the packages could not be installed: {error}\n"
                 f"       type: apt install python3-venv, or look at the network, then run this again")
    os.environ["INSPECTD_COMPARE_ENTERED"] = "1"
    os.execv(python, [str(python), *sys.argv])


# --- the two networks -------------------------------------------------------------------------------------

# Blocks of a width: how many, kernel, first block's stride, expansion, output channels.
EFFICIENTNET_STAGES = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
                       (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]
EFFICIENTNET_TAPS = {2: "block2", 4: "block4", 10: "block10", 15: "block15"}
RESNET_BLOCKS = [3, 4, 6, 3]


class Net:
    """Writes an ONNX graph. `weights(name, shape)` yields our tensor of that name: convolutions HWIO, batch
    norms `.weight`, `.bias`, and `.moments` (means, then variances)."""

    def __init__(self, weights, eps):
        self.weights, self.eps = weights, eps
        self.nodes, self.initialisers, self.taps = [], [], []
        self.size = {"image": (SIZE, 3)}

    def constant(self, name, array):
        from onnx import numpy_helper
        import numpy

        self.initialisers.append(numpy_helper.from_array(numpy.ascontiguousarray(array), name))
        return name

    def node(self, kind, inputs, size, **attributes):
        from onnx import helper

        out = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], **attributes))
        self.size[out] = size
        return out

    def conv_bn(self, x, conv, bn, out, kernel, stride, same=False, depthwise=False):
        size, channels = self.size[x]
        if same:  # TensorFlow's SAME: the odd pixel of padding lies below and to the right
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads = (total // 2, total - total // 2)
        else:
            pads = (kernel // 2, kernel // 2)
        groups = channels if depthwise else 1
        w = self.weights(f"{conv}.weight", (kernel, kernel, channels // groups, out))
        w = self.constant(f"{conv}.weight", w.transpose(3, 2, 0, 1))
        size = ((size + sum(pads) - kernel) // stride + 1, out)
        y = self.node("Conv", [x, w], size, kernel_shape=[kernel] * 2, strides=[stride] * 2,
                      pads=[pads[0], pads[0], pads[1], pads[1]], group=groups)
        moments = self.weights(f"{bn}.moments", (1, 1, 2, out)).reshape(2, out)
        scale, bias = (self.weights(f"{bn}.{field}", (1, 1, 1, out)).reshape(out) for field in ("weight", "bias"))
        parts = {"weight": scale, "bias": bias, "mean": moments[0], "var": moments[1]}
        constants = [self.constant(f"{bn}.{field}", value) for field, value in parts.items()]
        return self.node("BatchNormalization", [y, *constants], size, epsilon=self.eps)

    def relu(self, x):
        return self.node("Relu", [x], self.size[x])

    def relu6(self, x):
        import numpy

        if not any(i.name == "six" for i in self.initialisers):
            self.constant("zero", numpy.float32(0))
            self.constant("six", numpy.float32(6))
        return self.node("Clip", [x, "zero", "six"], self.size[x])

    def add(self, x, y):
        return self.node("Add", [x, y], self.size[x])

    def tap(self, name, x):
        self.taps.append((name, x))

    def model(self, taps):
        from onnx import TensorProto, checker, helper

        def value(name, rename=None):
            size, channels = self.size[name]
            return helper.make_tensor_value_info(rename or name, TensorProto.FLOAT, [1, channels, size, size])

        rename = [helper.make_node("Identity", [x], [name]) for name, x in taps]
        outputs = [value(x, name) for name, x in taps]
        graph = helper.make_graph(self.nodes + rename, "backbone", [value("image")], outputs, self.initialisers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        checker.check_model(model)
        return model.SerializeToString()


def efficientnet_lite0(weights):
    net = Net(weights, 1e-3)
    x = net.relu6(net.conv_bn("image", "_conv_stem", "_bn0", 32, 3, 2, same=True))
    index = 0
    for blocks, kernel, first_stride, expand, out in EFFICIENTNET_STAGES:
        for place in range(blocks):
            stride = first_stride if place == 0 else 1
            block, before = f"_blocks.{index}.", x
            if expand > 1:
                wide = net.size[x][1] * expand
                x = net.relu6(net.conv_bn(x, block + "_expand_conv", block + "_bn0", wide, 1, 1))
            wide = net.size[x][1]
            x = net.relu6(net.conv_bn(x, block + "_depthwise_conv", block + "_bn1", wide, kernel, stride,
                                      same=True, depthwise=True))
            x = net.conv_bn(x, block + "_project_conv", block + "_bn2", out, 1, 1)
            if net.size[x] == net.size[before]:
                x = net.add(x, before)
            if index in EFFICIENTNET_TAPS:
                net.tap(EFFICIENTNET_TAPS[index], x)
            index += 1
    return net


def wide_resnet50_2(weights):
    net = Net(weights, 1e-5)
    x = net.relu(net.conv_bn("image", "conv1", "bn1", 64, 7, 2))
    size, channels = net.size[x]
    x = net.node("MaxPool", [x], (size // 2, channels), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for layer, blocks in enumerate(RESNET_BLOCKS):
        inner, outer = 128 << layer, 256 << layer
        for block in range(blocks):
            stride = 2 if layer > 0 and block == 0 else 1
            at = f"layer{layer + 1}.{block}."
            y = net.relu(net.conv_bn(x, at + "conv1", at + "bn1", inner, 1, 1))
            y = net.relu(net.conv_bn(y, at + "conv2", at + "bn2", inner, 3, stride))
            y = net.conv_bn(y, at + "conv3", at + "bn3", outer, 1, 1)
            if block == 0:
                x = net.conv_bn(x, at + "downsample.0", at + "downsample.1", outer, 1, stride)
            x = net.relu(net.add(y, x))
        net.tap(f"layer{layer + 1}", x)
    return net


ARCHS = {"efficientnet_lite0": efficientnet_lite0, "wide_resnet50_2": wide_resnet50_2}


# --- weights ----------------------------------------------------------------------------------------------

def random_weights():
    """Makes weights as the network asks for them, of a size that keeps activations finite; yields the
    function and the dictionary that it fills."""
    import numpy

    rng, made = numpy.random.default_rng(1), {}

    def weights(name, shape):
        if name.endswith(".moments"):
            value = numpy.stack([rng.uniform(-0.1, 0.1, shape[3]), rng.uniform(0.7, 1.3, shape[3])])
        elif name.endswith(".bias"):
            value = rng.uniform(-0.1, 0.1, shape)
        elif shape[:3] == (1, 1, 1):
            # Where a residual branch ends the gain is small: 16 blocks of gain 1 would add up.
            value = rng.uniform(0.2, 0.6, shape) if name.endswith(("bn3.weight", "_bn2.weight")) else \
                rng.uniform(0.8, 1.2, shape)
        else:
            bound = math.sqrt(6 / math.prod(shape[:3]))
            value = rng.uniform(-bound, bound, shape)
        made[name] = value.astype(numpy.float32).reshape(shape)
        return made[name]

    return weights, made


def weights_from(path):
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except Exception as error:  # noqa: BLE001: whatever it is, the file cannot be used
        sys.exit(f"error: {path} cannot be read: {error}\n"
                 f"       type: inspectd import --from YOURS --arch ARCH --out {path}")

    def weights(name, shape):
        if name not in tensors or tensors[name].shape != shape:
            found = tensors[name].shape if name in tensors else "missing"
            sys.exit(f"error: {path}: {name} should be {shape}, is {found}\n"
                     f"       type: inspectd import --from YOURS --arch ARCH --out {path}")
        return tensors[name]

    return weights


# --- the two sides ----------------------------------------------------------------------------------------

def session(model, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def median_ms(run, seconds=1.0, least=5):
    run()
    times, begin = [], time.perf_counter()
    while len(times) < least or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def inspectd(binary, *args):
    done = subprocess.run([str(binary), *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"error: {binary} {' '.join(map(str, args))} failed:\n{done.stderr}")
    return done.stdout


def largest_difference(binary, arch, weights_file, net, folder, threads):
    """Over the taps: max |ours - theirs| / max |theirs| on one random image."""
    import numpy
    from safetensors.numpy import load_file, save_file

    image = numpy.random.default_rng(2).standard_normal((1, 3, SIZE, SIZE)).astype(numpy.float32)
    save_file({"image": image}, folder / "in.safetensors")
    inspectd(binary, "forward", "--arch", arch, "--weights", weights_file, "--input", folder / "in.safetensors",
             "--out", folder / "out.safetensors")
    ours = load_file(folder / "out.safetensors")
    theirs = session(net.model(net.taps), threads).run([name for name, _ in net.taps], {"image": image})
    return max(float(numpy.abs(ours[name] - other).max() / numpy.abs(other).max())
               for (name, _), other in zip(net.taps, theirs))


def compare(arch, args, folder):
    import numpy
    from safetensors.numpy import save_file

    weights_file = args.weights.get(arch)
    if weights_file:
        net = ARCHS[arch](weights_from(weights_file))
    else:
        weights, made = random_weights()
        net = ARCHS[arch](weights)
        weights_file = folder / "weights.safetensors"
        save_file(made, weights_file, metadata={"format": "inspectd-weights", "arch": arch})
    difference = largest_difference(args.binary, arch, weights_file, net, folder, args.threads)

    image = numpy.random.default_rng(3).standard_normal((1, 3, SIZE, SIZE)).astype(numpy.float32)
    ours, theirs = [], []
    for _ in range(args.rounds):
        # A session made anew each round: a living one would keep its threads spinning beside ours.
        runner = session(net.model(net.taps[-1:]), args.threads)
        theirs.append(median_ms(lambda: runner.run(None, {"image": image})))
        del runner
        filter_ = f"net/{arch}/{SIZE}"
        line = inspectd(args.binary, "bench", "--filter", filter_, "--json", "--threads", args.threads)
        ours.append(json.loads(line.splitlines()[0])["us"] / 1e3)
    us, them = statistics.median(ours), statistics.median(theirs)
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    return {"name": f"net/{arch}/{SIZE}", "inspectd_ms": round(us, 2), "onnxruntime_ms": round(them, 2),
            "ratio": round(us / them, 3), "ratio_least": round(ratios[0], 3), "ratio_most": round(ratios[-1], 3),
            "least_inspectd_ms": round(min(ours), 2), "least_onnxruntime_ms": round(min(theirs), 2),
            "difference": float(f"{difference:.2g}"), "rounds": args.rounds, "threads": args.threads}


def parse():
    def pair(text):
        arch, _, path = text.partition("=")
        if arch not in ARCHS or not path:
            raise argparse.ArgumentTypeError(f"`{text}` is not ARCH=FILE with ARCH one of {', '.join(ARCHS)}")
        return arch, pathlib.Path(path)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=ARCHS, action="append", help="only this one; may be repeated")
    parser.add_argument("--weights", type=pair, action="append", default=[], metavar="ARCH=FILE")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON line per backbone")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/inspectd")
    args = parser.parse_args()
    args.weights = dict(args.weights)
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads are at least 1")
    if not args.binary.exists():
        sys.exit(f"error: {args.binary} is not there\n       type: cargo build --release")
    return args


def main():
    args = parse()
    enter_environment()
    for arch in args.arch or ARCHS:
        with tempfile.TemporaryDirectory() as folder:
            line = compare(arch, args, pathlib.Path(folder))
        if args.json:
            print(json.dumps(line), flush=True)
        else:
            print(f"{line['name']:<28} inspectd {line['inspectd_ms']:8.2f} ms   onnxruntime "
                  f"{line['onnxruntime_ms']:8.2f} ms   ratio {line['ratio']:.2f} "
                  f"({line['ratio_least']:.2f} to {line['ratio_most']:.2f}, {line['rounds']} rounds)   "
                  f"outputs differ by {line['difference']:.1e}", flush=True)


if __name__ == "__main__":
    main()
