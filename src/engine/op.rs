//! The closed set of operations. What each computes is specified by its plain implementation in
//! `cpu/reference`; what shape it yields is in `infer`.

use super::shape::Shape;

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

/// How residuals become planes of one grid: e = (f − f̂)² of every scale, resized to h×w.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Residual {
    /// ln(1 + e) instead of e.
    pub log: bool,
    /// Not `Area`.
    pub resize: Resize,
    pub h: usize,
    pub w: usize,
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

    /// f, f̂: N×1×2×C, row 0 of axis 2 the maximum over the grid of each resized residual plane, row 1 the
    /// mean. Has no gradient.
    ResidualRank(Residual),
    /// indices N×1×1×k or 1×1×1×k, f₀, f̂₀, f₁, f̂₁, …: N×h×w×k, the chosen residual planes in that order.
    /// Indices count through the channels of all scales. Has no gradient.
    ResidualGather(Residual),

    /// logits N×H×W×2: N×H×W×1, the second less the first. Has no gradient.
    LogitDifference,
    /// logits N×H×W×2: N×h×w×1, the softmax's second channel, resized (not `Area`). Has no gradient.
    AnomalyMap { resize: Resize, h: usize, w: usize },
    /// x N×H×W×1: N×1×1×1, the largest mean of a size×size window inside each picture; not a number where one is
    /// none. Has no gradient.
    LargestMean { size: usize },

    /// param, grad, m, v, rate (1×1×1×3: lr, 1−beta1^t, 1−beta2^t), scale (scalar, on the gradient).
    /// Writes param, m, v; none of them where `scale` is 0 or not finite (so a step whose gradients
    /// left the range of their storage is skipped), and no element whose new v would not be finite.
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
            Op::ResidualRank(_) => "residual_rank",
            Op::ResidualGather(_) => "residual_gather",
            Op::LogitDifference => "logit_difference",
            Op::AnomalyMap { .. } => "anomaly_map",
            Op::LargestMean { .. } => "largest_mean",
            Op::Adam(_) => "adam",
            Op::MovingAverage { .. } => "moving_average",
        }
    }

    /// The parameter that it is, if it is one.
    pub fn param_name(&self) -> Option<&str> {
        match self {
            Op::Param { name } => Some(name),
            _ => None,
        }
    }

    /// Whether its value is there before a run begins.
    pub fn is_source(&self) -> bool {
        matches!(self, Op::Input { .. } | Op::Param { .. } | Op::Fill { .. })
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
