"""What PyTorch makes of every operation, forward and backward: tests/golden/ops.safetensors.

    python tests/golden/make_ops.py        (needs torch and safetensors)

Computed in double precision, stored as float32 in our layouts (N·H·W·C, weights H·W·I·O, vectors
1·1·1·C). A case CASE holds its inputs CASE/in/NAME, the output CASE/y, the gradient dy that came back
from a random loss Σ y·dy, and the gradients CASE/d/NAME by the inputs. `tests/ops_match_pytorch.rs`
builds the same.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(20)
torch.set_default_dtype(torch.float64)
OUT = {}


def randn(*shape):
    # Rounded to float32 first: what is stored is what was computed with.
    return torch.randn(*shape).float().double()


def image(t):
    return t.permute(0, 2, 3, 1)


def weight(t):
    return t.permute(2, 3, 1, 0)


def vector(t):
    return t.reshape(1, 1, 1, -1)


def same(t):
    return t


LAYOUTS = {"x": image, "res": image, "w": weight, "b": vector, "gamma": vector, "beta": vector}


def case(name, fn, layout_y=image, layouts=None, grads=True, **inputs):
    layouts = {**LAYOUTS, **(layouts or {})}
    leaves = {key: t.clone().requires_grad_(grads and t.is_floating_point()) for key, t in inputs.items()}
    y = fn(*leaves.values())

    def put(key, t, layout):
        t = layout(t.detach()).contiguous().float()
        assert t.dim() == 4, f"{name}/{key}: {t.shape}"
        OUT[f"{name}/{key}"] = t.clone()

    for key, t in inputs.items():
        put(f"in/{key}", t, layouts.get(key, same))
    put("y", y, layout_y)
    if grads:
        dy = randn(*y.shape)
        put("dy", dy, layout_y)
        (y * dy).sum().backward()
        for key, t in leaves.items():
            if t.grad is not None:
                put(f"d/{key}", t.grad, layouts.get(key, same))


def scalar(t):
    return t.reshape(1, 1, 1, 1)


def convolutions():
    def conv(name, x, w, bias, stride, pad, groups=1):
        top, left, bottom, right = pad

        def fn(x, w, b=None):
            return F.conv2d(F.pad(x, [left, right, top, bottom]), w, b, stride, 0, 1, groups)

        extra = {"b": randn(w[0])} if bias else {}
        fan = w[1] * w[2] * w[3]
        case(name, fn, x=randn(*x), w=(randn(*w) / fan**0.5).float().double(), **extra)

    conv("conv1x1", (2, 24, 7, 5), (40, 24, 1, 1), True, 1, (0, 0, 0, 0))
    conv("conv1x1_s2", (2, 8, 7, 6), (16, 8, 1, 1), False, 2, (0, 0, 0, 0))
    conv("conv3x3", (2, 16, 11, 9), (24, 16, 3, 3), True, 1, (1, 1, 1, 1))
    conv("conv3x3_small", (1, 3, 2, 1), (5, 3, 3, 3), True, 1, (1, 1, 1, 1))
    conv("conv3x3_wide", (1, 32, 8, 17), (33, 32, 3, 3), False, 1, (1, 1, 1, 1))
    conv("conv3x3_s2", (2, 8, 9, 8), (16, 8, 3, 3), True, 2, (1, 1, 1, 1))
    conv("conv3x3_s2_same", (1, 8, 8, 10), (16, 8, 3, 3), False, 2, (0, 0, 1, 1))
    conv("conv5x5_s2", (1, 6, 10, 9), (8, 6, 5, 5), True, 2, (1, 2, 2, 1))
    conv("conv7x7_s2", (1, 3, 20, 18), (16, 3, 7, 7), False, 2, (3, 3, 3, 3))
    conv("depthwise3", (2, 20, 7, 9), (20, 1, 3, 3), True, 1, (1, 1, 1, 1), 20)
    conv("depthwise3_s2", (1, 16, 8, 8), (16, 1, 3, 3), False, 2, (0, 0, 1, 1), 16)
    conv("depthwise5", (1, 17, 9, 6), (17, 1, 5, 5), True, 1, (2, 2, 2, 2), 17)
    conv("depthwise5_s2", (1, 16, 9, 12), (16, 1, 5, 5), False, 2, (2, 1, 2, 2), 16)
    conv("grouped", (1, 12, 6, 7), (20, 3, 3, 3), True, 1, (1, 1, 1, 1), 4)
    conv("grouped_s2", (1, 8, 6, 7), (8, 4, 3, 3), True, 2, (1, 1, 1, 1), 2)

    def residual(x, w, b, res):
        return (F.conv2d(x, w, b, padding=1) + res).relu()

    w = (randn(16, 8, 3, 3) / 72**0.5).float().double()
    case("conv_residual_relu", residual, x=randn(1, 8, 6, 5), w=w, b=randn(16), res=randn(1, 16, 6, 5))

    def transposed(name, x, w, stride, pad, groups=1, bias=True):
        def fn(x, w, b=None):
            return F.conv_transpose2d(x, w, b, stride, pad, 0, groups)

        extra = {"b": randn(w[1] * groups)} if bias else {}
        case(name, fn, x=randn(*x), w=(randn(*w) / (w[0] * 4) ** 0.5).float().double(), **extra)

    transposed("transposed4x4_s2", (2, 12, 5, 4), (12, 10, 4, 4), 2, 1)
    transposed("transposed3x3", (1, 6, 5, 4), (6, 8, 3, 3), 1, 1)
    transposed("transposed2x2_s2", (1, 6, 5, 4), (6, 8, 2, 2), 2, 0, bias=False)
    transposed("transposed_grouped", (1, 6, 5, 4), (6, 4, 4, 4), 2, 1, 2)


def matrices():
    for ta in (False, True):
        for tb in (False, True):
            a = randn(2, 3, 7, 5) if ta else randn(2, 3, 5, 7)
            b = randn(2, 3, 6, 7) if tb else randn(2, 3, 7, 6)

            def fn(a, c, ta=ta, tb=tb):
                return 0.5 * (a.mT if ta else a) @ (c.mT if tb else c)

            case(f"matmul_{'nt'[ta]}{'nt'[tb]}", fn, same, a=a, c=b)


def pointwise():
    x = 3 * randn(2, 5, 4, 3)
    positive = (x.abs() + 0.1).float().double()
    functions = {
        "relu": torch.relu,
        "relu6": F.relu6,
        "silu": F.silu,
        "sigmoid": torch.sigmoid,
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "tanh": torch.tanh,
        "exp": torch.exp,
        "square": torch.square,
        "affine": lambda x: -1.5 * x + 0.25,
        "clamp": lambda x: x.clamp(-2, 1.5),
    }
    for name, fn in functions.items():
        case(f"unary_{name}", fn, x=x)
    case("unary_log1p", torch.log1p, x=positive)
    case("unary_sqrt", torch.sqrt, x=positive)

    other = (randn(2, 5, 4, 3).abs() + 0.5).float().double()
    column = (randn(2, 5, 1, 1).abs() + 0.5).float().double()
    as_images = {"a": image, "c": image}
    for name, fn in {
        "add": torch.add,
        "sub": torch.sub,
        "mul": torch.mul,
        "div": torch.div,
        "max": torch.maximum,
        "min": torch.minimum,
    }.items():
        grads = name not in ("max", "min")
        case(f"binary_{name}", lambda a, c, fn=fn: fn(a, c), layouts=as_images, grads=grads, a=x, c=other)
        case(f"stretch_{name}", lambda a, c, fn=fn: fn(a, c), layouts=as_images, grads=grads, a=x, c=column)
        case(f"stretched_{name}", lambda a, c, fn=fn: fn(c, a), layouts=as_images, grads=grads, a=x, c=column)
    case("broadcast", lambda x: x.expand(2, 5, 4, 3), x=randn(2, 5, 1, 1))


def reductions():
    x = randn(2, 5, 4, 3)
    for name, fn in {"sum": torch.sum, "mean": torch.mean, "max": torch.amax, "min": torch.amin}.items():
        grads = name in ("sum", "mean")
        for axes, dims in {"hw": (2, 3), "c": (1,), "n": (0,), "all": (0, 1, 2, 3)}.items():
            case(f"reduce_{name}_{axes}", lambda x, fn=fn, dims=dims: fn(x, dims, keepdim=True), grads=grads, x=x)
    case("sum_squares", lambda x, res: scalar(x.square().sum() + res.square().sum()), same, grads=False, x=x, res=x * 2)


def norms():
    x, gamma, beta = 2 * randn(3, 12, 5, 4) + 1, randn(12), randn(12)
    case("group_norm", lambda x, gamma, beta: F.group_norm(x, 4, gamma, beta, 1e-5), x=x, gamma=gamma, beta=beta)
    case("group_norm_one", lambda x, gamma, beta: F.group_norm(x, 1, gamma, beta, 1e-6), x=x, gamma=gamma, beta=beta)

    def layer(x, gamma, beta):
        return F.layer_norm(x.permute(0, 2, 3, 1), (12,), gamma, beta, 1e-5).permute(0, 3, 1, 2)

    case("layer_norm", layer, x=x, gamma=gamma, beta=beta)
    moments = torch.stack([randn(12), randn(12).abs() + 0.5]).float().double()
    running = {"moments": lambda t: t.reshape(1, 1, 2, -1)}

    def batch_eval(x, gamma, beta, moments):
        moments = moments.detach()
        return F.batch_norm(x, moments[0], moments[1], gamma, beta, False, 0.1, 1e-3)

    case("batch_norm_eval", batch_eval, layouts=running, x=x, gamma=gamma, beta=beta, moments=moments)
    after = moments.clone()

    def batch_train(x, gamma, beta, moments):
        return F.batch_norm(x, after[0], after[1], gamma, beta, True, 0.1, 1e-5)

    case("batch_norm_train", batch_train, layouts=running, x=x, gamma=gamma, beta=beta, moments=moments)
    OUT["batch_norm_train/moments_after"] = after.reshape(1, 1, 2, -1).float()


def spatial():
    x = randn(2, 6, 9, 8)
    case("max_pool_3_2_1", lambda x: F.max_pool2d(x, 3, 2, 1), x=x)
    case("max_pool_2_2_0", lambda x: F.max_pool2d(x, 2, 2, 0), x=x)
    case("avg_pool_2_2_0", lambda x: F.avg_pool2d(x, 2, 2, 0), x=x)
    case("avg_pool_3_1_1", lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), x=x)
    case("avg_pool_3_2_1", lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), x=x)
    small = randn(2, 5, 6, 4)
    for h, w in [(12, 8), (9, 7), (3, 2), (6, 10)]:
        case(f"nearest_{h}_{w}", lambda x, h=h, w=w: F.interpolate(x, (h, w), mode="nearest"), x=small)
        case(f"bilinear_{h}_{w}", lambda x, h=h, w=w: F.interpolate(x, (h, w), mode="bilinear", align_corners=False), x=small)
        case(f"aligned_{h}_{w}", lambda x, h=h, w=w: F.interpolate(x, (h, w), mode="bilinear", align_corners=True), x=small)
    for h, w in [(3, 2), (4, 3), (1, 1)]:
        case(f"area_{h}_{w}", lambda x, h=h, w=w: F.interpolate(x, (h, w), mode="area"), x=small)


def losses():
    x = 2 * randn(2, 5, 3, 4)
    case("softmax", lambda x: x.softmax(1), x=x)
    target = torch.randint(0, 5, (2, 3, 4))
    case(
        "cross_entropy",
        lambda x, target: scalar(F.cross_entropy(x, target.long())),
        same,
        {"target": lambda t: t.unsqueeze(-1)},
        x=x,
        target=target,
    )


def attention():
    n, h, w, heads, d = 2, 3, 4, 2, 5

    def attend(q, k, v, causal):
        mask = torch.full((h * w, h * w), -torch.inf).triu(1) if causal else torch.zeros(h * w, h * w)
        return ((q @ k.mT) / d**0.5 + mask).softmax(-1) @ v

    def per_head(x, causal=False):
        qkv = x.flatten(2).reshape(n, heads, 3, d, h * w).transpose(-1, -2)
        y = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], causal)
        return y.transpose(-1, -2).reshape(n, heads * d, h, w)

    def blocks(x, causal=False):
        qkv = x.flatten(2).reshape(n, 3, heads, d, h * w).transpose(-1, -2)
        y = attend(qkv[:, 0], qkv[:, 1], qkv[:, 2], causal)
        return y.transpose(-1, -2).reshape(n, heads * d, h, w)

    x = randn(n, 3 * heads * d, h, w)
    case("attention_per_head", per_head, x=x)
    case("attention_blocks", blocks, x=x)
    case("attention_blocks_causal", lambda x: blocks(x, True), x=x)


def layout():
    a, c = randn(2, 3, 4, 5), randn(2, 3, 2, 5)
    case("concat_2", lambda a, c: torch.cat([a, c], 2), same, a=a, c=c)
    case("concat_3", lambda a, c: torch.cat([a, c, a], 3), same, a=randn(2, 3, 4, 5), c=randn(2, 3, 4, 2))
    case("slice_1", lambda a: a[:, 1:3], same, a=a)
    case("slice_3", lambda a: a[..., 2:5], same, a=a)
    case("pad_2", lambda a: F.pad(a, [0, 0, 1, 2]), same, a=a)
    case("pad_0", lambda a: F.pad(a, [0, 0, 0, 0, 0, 0, 2, 0]), same, a=a)
    case("reshape", lambda a: a.reshape(1, 6, 10, 2), same, a=a)
    case("transpose", lambda a: a.permute(0, 3, 1, 2), same, a=a)
    case("transpose_all", lambda a: a.permute(3, 1, 0, 2), same, a=a)
    keys = randn(3, 1, 1, 20)
    case("top_k", lambda a: a.topk(7, -1).indices, same, grads=False, a=keys)
    shared = torch.tensor([4, 0, 2, 2]).reshape(1, 1, 1, -1)
    each = torch.tensor([[4, 0, 2], [1, 1, 3]]).reshape(2, 1, 1, -1)
    x = randn(2, 3, 4, 5)
    case("gather_shared", lambda a, index: a[..., index.flatten().long()], same, a=x, index=shared)
    case(
        "gather_each",
        lambda a, index: torch.gather(a, 3, index.long().expand(2, 3, 4, 3)),
        same,
        a=x,
        index=each,
    )


def optimisers():
    for name, decay in [("adam", 0.0), ("adamw", 0.1)]:
        p = torch.nn.Parameter(randn(1, 1, 4, 6))
        OUT[f"{name}/p"] = p.detach().float().clone()
        step = torch.optim.AdamW([p], lr=0.05, betas=(0.9, 0.99), eps=1e-6, weight_decay=decay)
        for t in range(3):
            p.grad = randn(1, 1, 4, 6)
            OUT[f"{name}/g{t}"] = p.grad.float()
            step.step()
            OUT[f"{name}/p{t}"] = p.detach().float().clone()


for make in (convolutions, matrices, pointwise, reductions, norms, spatial, losses, attention, layout, optimisers):
    make()
path = Path(__file__).parent / "ops.safetensors"
save_file(OUT, path)
path.chmod(0o644)
print(f"{len(OUT)} tensors of {len({name.split('/')[0] for name in OUT})} cases, {path.stat().st_size} bytes")
