//! The closed set of operations. What each computes is specified by its plain implementation in
//! `cpu/reference`; what shape it yields by `shape_of` here.

use super::graph::GraphError;
use super::shape::{DType, Shape};

/// Pointwise activation, also an epilogue of convolutions and norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Act {
    #[default]
    None,
    Relu,
    Relu6,
    /// x·σ(x)
    Silu,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unary {
    Relu,
    Relu6,
    Silu,
    Sigmoid,
    /// x·σ(1.702 x), CLIP's activation.
    QuickGelu,
    Tanh,
    Exp,
    /// ln(1 + x)
    Log1p,
    Square,
    Sqrt,
    /// factor·x + offset
    Affine {
        factor: f32,
        offset: f32,
    },
    Clamp {
        lo: f32,
        hi: f32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    /// The larger of both. Its gradient is not defined here.
    Max,
    /// The smaller of both. Its gradient is not defined here.
    Min,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    Sum,
    Mean,
    Max,
    Min,
}

/// Geometry of a convolution; kernel size and widths come from the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    pub stride: usize,
    /// Zeros added: top, left, bottom, right.
    pub pad: [usize; 4],
    pub groups: usize,
}

impl Conv {
    /// Symmetric padding.
    pub const fn new(stride: usize, pad: usize) -> Self {
        Conv { stride, pad: [pad; 4], groups: 1 }
    }

    pub const fn grouped(stride: usize, pad: usize, groups: usize) -> Self {
        Conv { stride, pad: [pad; 4], groups }
    }

    pub const fn out_h(&self, h: usize, kh: usize) -> usize {
        (h + self.pad[0] + self.pad[2] - kh) / self.stride + 1
    }

    pub const fn out_w(&self, w: usize, kw: usize) -> usize {
        (w + self.pad[1] + self.pad[3] - kw) / self.stride + 1
    }
}

/// What is done to each output before it is stored: + bias, + residual, activation, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Epilogue {
    /// One more input: a vector over output channels.
    pub bias: bool,
    /// One more input, after the bias: a tensor of the output's shape.
    pub residual: bool,
    pub act: Act,
}

/// Over what a norm takes its mean and variance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// N, H, W per channel. Moments: 1×1×2×C.
    Batch,
    /// H, W and C/groups channels per image. Moments: N×1×2×groups.
    Group(usize),
    /// C per position. Moments: N×(H·W)×2×1.
    Layer,
}

impl Norm {
    /// Shape of the moments: row 0 of axis 2 the mean, row 1 the biased variance.
    pub fn moments_shape(self, x: Shape) -> Shape {
        match self {
            Norm::Batch => Shape::new(1, 1, 2, x.c()),
            Norm::Group(groups) => Shape::new(x.n(), 1, 2, groups),
            Norm::Layer => Shape::new(x.n(), x.h() * x.w(), 2, 1),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    Max,
    /// Mean of the window's pixels inside the image (padding is not counted).
    Avg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub size: usize,
    pub stride: usize,
    pub pad: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// src = floor(dst·in/out)
    Nearest,
    /// Half-pixel centres: src = (dst+.5)·in/out − .5, clamped. PyTorch's align_corners=False.
    Bilinear,
    /// Corner-aligned: src = dst·(in−1)/(out−1). PyTorch's align_corners=True.
    BilinearAligned,
    /// Mean over the source pixels that a destination pixel covers, whole pixels only
    /// (PyTorch's `area`, adaptive average pooling).
    Area,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvLayout {
    /// Channels grouped per head as [q | k | v], head after head (ADM, RealNet).
    PerHead,
    /// All q, then all k, then all v (CLIP, VQGAN after concatenation).
    Blocks,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    pub heads: usize,
    pub layout: QkvLayout,
    /// A token sees itself and those before it.
    pub causal: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Mean 0, variance 1.
    Normal,
    /// [0, 1)
    Uniform,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    /// Decoupled (AdamW): the parameter shrinks by lr·weight_decay each step.
    pub weight_decay: f32,
}

/// One operation. Inputs are listed in order; `(x)` is optional.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Fed by the caller before each run.
    Input { name: String },
    /// Weights or state held by the program; read and, by `Adam` and `MovingAverage`, written.
    Param { name: String },
    /// Every element has this value.
    Fill { value: f32 },
    /// Philox numbers; input: key, 1×1×1×4 indices (seed low, seed high, step, first image).
    /// Element e of image i is number e of the stream (seed, step, first image + i, purpose).
    Random { distribution: Distribution, purpose: u32 },

    /// x, w, (bias), (residual). w is kh×kw×(cin/groups)×cout.
    Conv2d { conv: Conv, epilogue: Epilogue },
    /// x, w, (bias), (residual): the adjoint of the convolution that maps `out` (N×h×w×cin) to x. It is
    /// the transposed convolution, and a convolution's gradient by its input. w is as for Conv2d, so
    /// its last axis is x's channels.
    ConvTranspose { conv: Conv, h: usize, w: usize, epilogue: Epilogue },
    /// x, dy: gradient of Conv2d by its weight.
    ConvBackwardWeight { conv: Conv, kh: usize, kw: usize },
    /// a, b: alpha·op(a)·op(b) per (axis 0, axis 1), op transposing the last two axes where asked.
    MatMul { transpose_a: bool, transpose_b: bool, alpha: f32 },

    /// x
    Unary(Unary),
    /// x, dy: dy·f′(x)
    UnaryBackward(Unary),
    /// a, b: axes of size 1 stretch.
    Binary(Binary),
    /// x: over the marked axes, which stay with size 1.
    Reduce { reduce: Reduce, axes: [bool; 4] },
    /// x: axes of size 1 stretch to the shape.
    Broadcast { shape: Shape },
    /// x…: Σ of all squares, a scalar.
    SumSquares,

    /// x: mean and biased variance.
    Moments { norm: Norm },
    /// x, moments, (gamma, beta): act((x − mean)/√(var + eps)·gamma + beta).
    Normalize { norm: Norm, eps: f32, affine: bool, act: Act },
    /// x, moments, (gamma), dy: gradient by x; `through_moments` where the moments were taken of x.
    NormalizeBackward { norm: Norm, eps: f32, affine: bool, through_moments: bool },
    /// x, moments, dy: 1×1×2×C, row 0 the gradient by gamma, row 1 by beta.
    NormalizeParamGrad { norm: Norm, eps: f32 },

    /// x
    Pool { pool: Pool, window: Window },
    /// x, dy
    PoolBackward { pool: Pool, window: Window },
    /// x
    Resize { resize: Resize, h: usize, w: usize },
    /// dy: h and w are those of the forward input.
    ResizeBackward { resize: Resize, h: usize, w: usize },

    /// x: over channels.
    Softmax,
    /// y, dy
    SoftmaxBackward,
    /// logits N×H×W×K, target N×H×W×1 (class as a number): mean cross-entropy, a scalar.
    CrossEntropy,
    /// logits, target, dloss
    CrossEntropyBackward,
    /// qkv N×H×W×3C: N×H×W×C, tokens are positions, scale 1/√(C/heads).
    Attention(Attention),
    /// qkv, dy
    AttentionBackward(Attention),

    /// x…: along an axis.
    Concat { axis: usize },
    /// x: `len` from `start` along an axis.
    Slice { axis: usize, start: usize, len: usize },
    /// x: zeros before and after along an axis.
    Pad { axis: usize, before: usize, after: usize },
    /// x: same elements, same order.
    Reshape { shape: Shape },
    /// x: axis i of the output is axis `perm[i]` of the input.
    Transpose { perm: [usize; 4] },
    /// keys N×1×1×C: N×1×1×k indices, by key descending, ties by lower index first.
    TopK { k: usize },
    /// x N×H×W×C, indices N×1×1×k or 1×1×1×k: the chosen channels in that order.
    Gather,
    /// indices, dy: adds dy's channels to their places among `channels`.
    GatherBackward { channels: usize },

    /// param, grad, m, v, rate (1×1×1×3: lr, 1−beta1^t, 1−beta2^t), scale (scalar, on the gradient).
    /// Writes param, m, v.
    Adam(Adam),
    /// running, new: running += momentum·(new − running), with row 1 of axis 2 of `new` first
    /// multiplied by `variance_factor` (n/(n−1) makes it PyTorch's unbiased variance). Writes running.
    MovingAverage { momentum: f32, variance_factor: f32 },
}

impl Op {
    /// A short name for messages and plans.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Input { .. } => "input",
            Op::Param { .. } => "param",
            Op::Fill { .. } => "fill",
            Op::Random { .. } => "random",
            Op::Conv2d { .. } => "conv2d",
            Op::ConvTranspose { .. } => "conv_transpose",
            Op::ConvBackwardWeight { .. } => "conv_backward_weight",
            Op::MatMul { .. } => "matmul",
            Op::Unary(_) => "unary",
            Op::UnaryBackward(_) => "unary_backward",
            Op::Binary(_) => "binary",
            Op::Reduce { .. } => "reduce",
            Op::Broadcast { .. } => "broadcast",
            Op::SumSquares => "sum_squares",
            Op::Moments { .. } => "moments",
            Op::Normalize { .. } => "normalize",
            Op::NormalizeBackward { .. } => "normalize_backward",
            Op::NormalizeParamGrad { .. } => "normalize_param_grad",
            Op::Pool { .. } => "pool",
            Op::PoolBackward { .. } => "pool_backward",
            Op::Resize { .. } => "resize",
            Op::ResizeBackward { .. } => "resize_backward",
            Op::Softmax => "softmax",
            Op::SoftmaxBackward => "softmax_backward",
            Op::CrossEntropy => "cross_entropy",
            Op::CrossEntropyBackward => "cross_entropy_backward",
            Op::Attention(_) => "attention",
            Op::AttentionBackward(_) => "attention_backward",
            Op::Concat { .. } => "concat",
            Op::Slice { .. } => "slice",
            Op::Pad { .. } => "pad",
            Op::Reshape { .. } => "reshape",
            Op::Transpose { .. } => "transpose",
            Op::TopK { .. } => "top_k",
            Op::Gather => "gather",
            Op::GatherBackward { .. } => "gather_backward",
            Op::Adam(_) => "adam",
            Op::MovingAverage { .. } => "moving_average",
        }
    }

    /// Which inputs the operation writes (indices into its input list). Only parameters may be
    /// written.
    pub fn writes(&self) -> &'static [usize] {
        match self {
            Op::Adam(_) => &[0, 2, 3],
            Op::MovingAverage { .. } => &[0],
            _ => &[],
        }
    }
}

/// Shape and type of what `op` yields on inputs of these shapes and types, or what is wrong with them.
/// `Input`, `Param`, `Fill` and `Random` carry their shape in the node and do not come here.
pub(super) fn infer(op: &Op, inputs: &[(Shape, DType)]) -> Result<(Shape, DType), String> {
    let shape = |i: usize| inputs.get(i).map(|x| x.0).ok_or_else(|| format!("input {i} is missing"));
    let want = |ok: bool, message: String| if ok { Ok(()) } else { Err(message) };
    let indices_at: Option<usize> = match op {
        Op::Gather => Some(1),
        Op::GatherBackward { .. } => Some(0),
        _ => None,
    };
    for (i, (_, dtype)) in inputs.iter().enumerate() {
        let needed = if indices_at == Some(i) { DType::Index } else { DType::Real };
        want(*dtype == needed, format!("input {i} holds {dtype:?} elements, {needed:?} needed"))?;
    }
    let real = |s: Shape| Ok((s, DType::Real));
    let epilogue = |epilogue: &Epilogue, y: Shape| -> Result<(), String> {
        let mut next = 2;
        if epilogue.bias {
            let b = shape(next)?;
            want(b == Shape::vector(y.c()), format!("bias is {b}, {} needed", Shape::vector(y.c())))?;
            next += 1;
        }
        if epilogue.residual {
            let r = shape(next)?;
            want(r == y, format!("residual is {r}, {y} needed"))?;
            next += 1;
        }
        want(inputs.len() == next, format!("{} inputs given, {next} needed", inputs.len()))
    };
    match op {
        Op::Input { .. } | Op::Param { .. } | Op::Fill { .. } | Op::Random { .. } => {
            Err("a source has no inputs to infer from".into())
        }
        Op::Conv2d { conv, epilogue: e } => {
            let (x, w) = (shape(0)?, shape(1)?);
            let [kh, kw, ci, co] = w.0;
            check_conv(conv, x.c(), ci, co)?;
            want(
                x.h() + conv.pad[0] + conv.pad[2] >= kh && x.w() + conv.pad[1] + conv.pad[3] >= kw,
                format!("input {x} is smaller than the {kh}×{kw} kernel"),
            )?;
            let y = Shape::new(x.n(), conv.out_h(x.h(), kh), conv.out_w(x.w(), kw), co);
            epilogue(e, y)?;
            real(y)
        }
        Op::ConvTranspose { conv, h, w: width, epilogue: e } => {
            let (x, w) = (shape(0)?, shape(1)?);
            let [kh, kw, ci, co] = w.0;
            let cin = ci * conv.groups;
            check_conv(conv, cin, ci, co)?;
            want(co == x.c(), format!("weight {w} yields {co} channels, input {x} has {}", x.c()))?;
            let fits = *h + conv.pad[0] + conv.pad[2] >= kh
                && *width + conv.pad[1] + conv.pad[3] >= kw
                && conv.out_h(*h, kh) == x.h()
                && conv.out_w(*width, kw) == x.w();
            want(fits, format!("a convolution of {h}×{width} with {w} does not yield {x}"))?;
            let y = Shape::new(x.n(), *h, *width, cin);
            epilogue(e, y)?;
            real(y)
        }
        Op::ConvBackwardWeight { conv, kh, kw } => {
            let (x, dy) = (shape(0)?, shape(1)?);
            want(
                x.n() == dy.n() && conv.out_h(x.h(), *kh) == dy.h() && conv.out_w(x.w(), *kw) == dy.w(),
                format!("a convolution of {x} does not yield {dy}"),
            )?;
            check_conv(conv, x.c(), x.c() / conv.groups.max(1), dy.c())?;
            real(Shape::new(*kh, *kw, x.c() / conv.groups, dy.c()))
        }
        Op::MatMul { transpose_a, transpose_b, .. } => {
            let (a, b) = (shape(0)?, shape(1)?);
            let (m, k) = if *transpose_a { (a.c(), a.w()) } else { (a.w(), a.c()) };
            let (kb, n) = if *transpose_b { (b.c(), b.w()) } else { (b.w(), b.c()) };
            want(k == kb && a.n() == b.n() && a.h() == b.h(), format!("{a} and {b} do not multiply"))?;
            real(Shape::new(a.n(), a.h(), m, n))
        }
        Op::Unary(_) => real(shape(0)?),
        Op::UnaryBackward(_) => {
            let (x, dy) = (shape(0)?, shape(1)?);
            want(x == dy, format!("x is {x}, dy is {dy}"))?;
            real(x)
        }
        Op::Binary(_) => {
            let (a, b) = (shape(0)?, shape(1)?);
            a.broadcast(b).ok_or_else(|| format!("{a} and {b} do not stretch to one shape")).and_then(real)
        }
        Op::Reduce { axes, .. } => {
            let mut s = shape(0)?;
            want(!s.is_empty(), "nothing to reduce".into())?;
            for (axis, reduced) in axes.iter().enumerate() {
                if *reduced {
                    s.0[axis] = 1;
                }
            }
            real(s)
        }
        Op::Broadcast { shape: to } => {
            let x = shape(0)?;
            want(x.broadcast(*to) == Some(*to), format!("{x} does not stretch to {to}"))?;
            real(*to)
        }
        Op::SumSquares => {
            want(!inputs.is_empty(), "no inputs".into())?;
            real(Shape::SCALAR)
        }
        Op::Moments { norm } => {
            let x = shape(0)?;
            check_norm(*norm, x)?;
            real(norm.moments_shape(x))
        }
        Op::Normalize { norm, affine, .. } => {
            let (x, m) = (shape(0)?, shape(1)?);
            check_norm(*norm, x)?;
            want(m == norm.moments_shape(x), format!("moments are {m}, {} needed", norm.moments_shape(x)))?;
            if *affine {
                let v = Shape::vector(x.c());
                want(shape(2)? == v && shape(3)? == v, format!("gamma and beta must be {v}"))?;
            }
            real(x)
        }
        Op::NormalizeBackward { norm, affine, .. } => {
            let (x, m) = (shape(0)?, shape(1)?);
            let dy = shape(if *affine { 3 } else { 2 })?;
            want(m == norm.moments_shape(x) && dy == x, format!("x {x}, moments {m}, dy {dy}"))?;
            real(x)
        }
        Op::NormalizeParamGrad { norm, .. } => {
            let (x, m, dy) = (shape(0)?, shape(1)?, shape(2)?);
            want(m == norm.moments_shape(x) && dy == x, format!("x {x}, moments {m}, dy {dy}"))?;
            real(Shape::new(1, 1, 2, x.c()))
        }
        Op::Pool { window, .. } => real(pooled(shape(0)?, window)?),
        Op::PoolBackward { window, .. } => {
            let (x, dy) = (shape(0)?, shape(1)?);
            want(pooled(x, window)? == dy, format!("pooling {x} does not yield {dy}"))?;
            real(x)
        }
        Op::Resize { h, w, .. } | Op::ResizeBackward { h, w, .. } => {
            let x = shape(0)?;
            want(*h > 0 && *w > 0 && !x.is_empty(), "resize to or from nothing".into())?;
            real(Shape::new(x.n(), *h, *w, x.c()))
        }
        Op::Softmax => real(shape(0)?),
        Op::SoftmaxBackward => {
            want(shape(0)? == shape(1)?, "y and dy differ in shape".into())?;
            real(shape(0)?)
        }
        Op::CrossEntropy | Op::CrossEntropyBackward => {
            let (x, t) = (shape(0)?, shape(1)?);
            want(t == x.with(3, 1), format!("target is {t}, {} needed", x.with(3, 1)))?;
            real(if matches!(op, Op::CrossEntropy) { Shape::SCALAR } else { x })
        }
        Op::Attention(a) | Op::AttentionBackward(a) => {
            let x = shape(0)?;
            want(
                a.heads > 0 && x.c() % (3 * a.heads) == 0,
                format!("{x} does not split into q, k, v of {} heads", a.heads),
            )?;
            let y = x.with(3, x.c() / 3);
            if matches!(op, Op::Attention(_)) {
                return real(y);
            }
            want(shape(1)? == y, format!("dy must be {y}"))?;
            real(x)
        }
        Op::Concat { axis } => {
            let mut s = shape(0)?;
            want(*axis < 4, "there are four axes".into())?;
            for i in 1..inputs.len() {
                let x = shape(i)?;
                want(x.with(*axis, 0) == s.with(*axis, 0), format!("{x} does not line up with {s}"))?;
                s.0[*axis] += x.0[*axis];
            }
            real(s)
        }
        Op::Slice { axis, start, len } => {
            let x = shape(0)?;
            want(
                *axis < 4 && start + len <= x.0[*axis],
                format!("{start}+{len} of axis {axis} is outside {x}"),
            )?;
            real(x.with(*axis, *len))
        }
        Op::Pad { axis, before, after } => {
            let x = shape(0)?;
            want(*axis < 4, "there are four axes".into())?;
            real(x.with(*axis, x.0[*axis] + before + after))
        }
        Op::Reshape { shape: to } => {
            let x = shape(0)?;
            want(x.len() == to.len(), format!("{x} has {} elements, {to} {}", x.len(), to.len()))?;
            real(*to)
        }
        Op::Transpose { perm } => {
            let x = shape(0)?;
            let mut seen = *perm;
            seen.sort_unstable();
            want(seen == [0, 1, 2, 3], format!("{perm:?} is no permutation of four axes"))?;
            real(Shape(perm.map(|axis| x.0[axis])))
        }
        Op::TopK { k } => {
            let x = shape(0)?;
            want(x.h() * x.w() == 1 && *k >= 1 && *k <= x.c(), format!("no top {k} of {x}"))?;
            Ok((x.with(3, *k), DType::Index))
        }
        Op::Gather => {
            let (x, i) = (shape(0)?, shape(1)?);
            want(
                i.h() * i.w() == 1 && (i.n() == 1 || i.n() == x.n()),
                format!("indices {i} do not choose channels of {x}"),
            )?;
            real(x.with(3, i.c()))
        }
        Op::GatherBackward { channels } => {
            let (i, dy) = (shape(0)?, shape(1)?);
            want(i.c() == dy.c() && (i.n() == 1 || i.n() == dy.n()), format!("indices {i}, dy {dy}"))?;
            real(dy.with(3, *channels))
        }
        Op::Adam(_) => {
            let p = shape(0)?;
            for i in 1..4 {
                want(shape(i)? == p, format!("input {i} is {}, the parameter {p}", shape(i)?))?;
            }
            want(shape(4)? == Shape::vector(3) && shape(5)? == Shape::SCALAR, "rate or scale".into())?;
            real(Shape::EMPTY)
        }
        Op::MovingAverage { .. } => {
            want(shape(0)? == shape(1)?, format!("running {} and new {} differ", shape(0)?, shape(1)?))?;
            real(Shape::EMPTY)
        }
    }
}

fn check_conv(conv: &Conv, x_channels: usize, ci: usize, co: usize) -> Result<(), String> {
    if conv.stride == 0 || conv.groups == 0 {
        return Err("stride and groups start at 1".into());
    }
    if ci * conv.groups != x_channels || !co.is_multiple_of(conv.groups) {
        return Err(format!(
            "{x_channels} input channels in {} groups do not fit a weight of {ci} → {co}",
            conv.groups
        ));
    }
    Ok(())
}

fn check_norm(norm: Norm, x: Shape) -> Result<(), String> {
    match norm {
        Norm::Group(g) if g == 0 || !x.c().is_multiple_of(g) => {
            Err(format!("{} channels in {g} groups", x.c()))
        }
        _ if x.is_empty() => Err("nothing to normalise".into()),
        _ => Ok(()),
    }
}

fn pooled(x: Shape, window: &Window) -> Result<Shape, String> {
    let Window { size, stride, pad } = *window;
    if size == 0 || stride == 0 || pad * 2 > size || x.h() + 2 * pad < size || x.w() + 2 * pad < size {
        return Err(format!("a {size}×{size} window, stride {stride}, padding {pad} does not fit {x}"));
    }
    let out = |s: usize| (s + 2 * pad - size) / stride + 1;
    Ok(Shape::new(x.n(), out(x.h()), out(x.w()), x.c()))
}

impl From<(String, String)> for GraphError {
    fn from((node, message): (String, String)) -> Self {
        GraphError { node, message }
    }
}
