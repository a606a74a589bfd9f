//! Running one operation: by the specification, or by the fast path.

use super::fast::{
    Act as FastAct, Batch, ConvGeometry, ConvWeights, Epilogue as FastEpilogue, Mat, PackedConv,
    PackedTransposed, Padding, Pool as Threads, TransposedWeights, attention, conv2d, conv2d_backward_input,
    conv2d_backward_input_scratch, conv2d_backward_weight, conv2d_backward_weight_scratch, conv2d_scratch,
    gemm_batched, gemm_batched_scratch, norm, pointwise, spatial, split,
};
use super::memory::{Loc, Memory};
use super::reference::{self, conv::Tail};
use crate::engine::op::{self, Act, Conv, Epilogue, Op, Unary, Window};
use crate::engine::shape::Shape;

/// One operation with everything that running it needs.
#[derive(Debug)]
pub(super) struct Step {
    pub op: Op,
    pub inputs: Vec<Loc>,
    pub shapes: Vec<Shape>,
    pub out: Loc,
    pub shape: Shape,
    pub scratch: Loc,
    /// The weight in the order the kernel reads, for convolutions whose weight never changes.
    pub packed: Option<Packed>,
    pub name: String,
}

/// The operands of a step.
///
/// SAFETY of the accessors: the plan gives `out` and `scratch` memory that no input and no later-read
/// value shares while the step runs, parameters that a step writes are distinct from its other operands,
/// and `Program::run` has the whole memory exclusively. So the slices handed out here overlap only where
/// all are read.
struct Operands<'m> {
    step: &'m Step,
    memory: &'m Memory,
}

impl<'m> Operands<'m> {
    fn x(&self, i: usize) -> &'m [f32] {
        // SAFETY: see `Operands`.
        unsafe { self.memory.read(self.step.inputs[i]) }
    }

    fn shaped(&self, i: usize) -> (Shape, &'m [f32]) {
        (self.step.shapes[i], self.x(i))
    }

    fn indices(&self, i: usize) -> (Shape, &'m [u32]) {
        // SAFETY: see `Operands`.
        (self.step.shapes[i], unsafe { self.memory.read_indices(self.step.inputs[i]) })
    }

    fn param(&self, i: usize) -> &'m mut [f32] {
        // SAFETY: see `Operands`; only parameters are written (`Graph::apply` checks).
        unsafe { self.memory.write(self.step.inputs[i]) }
    }

    fn out(&self) -> &'m mut [f32] {
        // SAFETY: see `Operands`.
        unsafe { self.memory.write(self.step.out) }
    }

    fn out_indices(&self) -> &'m mut [u32] {
        // SAFETY: see `Operands`.
        unsafe { self.memory.write_indices(self.step.out) }
    }

    fn scratch(&self) -> &'m mut [f32] {
        // SAFETY: see `Operands`.
        unsafe { self.memory.write(self.step.scratch) }
    }

    fn scratch_indices(&self) -> &'m mut [u32] {
        // SAFETY: see `Operands`.
        unsafe { self.memory.write_indices(self.step.scratch) }
    }

    /// Bias and residual, which follow the first two inputs.
    fn tail(&self, epilogue: &Epilogue) -> (Option<&'m [f32]>, Option<&'m [f32]>) {
        let bias = epilogue.bias.then(|| self.x(2));
        let residual = epilogue.residual.then(|| self.x(2 + usize::from(epilogue.bias)));
        (bias, residual)
    }

    /// gamma and beta, which follow x and the moments.
    fn affine(&self, affine: bool) -> Option<(&'m [f32], &'m [f32])> {
        affine.then(|| (self.x(2), self.x(3)))
    }
}

/// Floats of scratch of the specification.
pub(super) fn reference_scratch_len(op: &Op, shapes: &[Shape]) -> usize {
    match op {
        Op::Attention(_) => shapes[0].h() * shapes[0].w(),
        Op::AttentionBackward(_) => 2 * shapes[0].h() * shapes[0].w(),
        Op::TopK { .. } => shapes[0].c(),
        Op::ResidualRank(_) => reference::residual::rank_scratch_len(shapes[0]),
        Op::AnomalyMap { .. } => 2 * shapes[0].with(3, 1).len(),
        Op::LargestMean { size } => reference::heatmap::windows(shapes[0], *size).len(),
        _ => 0,
    }
}

/// Runs a step as the specification says.
pub(super) fn run_reference(step: &Step, memory: &Memory) {
    let o = Operands { step, memory };
    match &step.op {
        Op::Input { .. } | Op::Param { .. } | Op::Fill { .. } => {}
        Op::Conv2d { conv, epilogue } => {
            let (bias, residual) = o.tail(epilogue);
            let tail = Tail { bias, residual, act: epilogue.act };
            reference::conv::conv2d(conv, o.shaped(0), o.shaped(1), step.shape, o.out(), tail);
        }
        Op::ConvTranspose { conv, epilogue, .. } => {
            let (bias, residual) = o.tail(epilogue);
            let tail = Tail { bias, residual, act: epilogue.act };
            reference::conv::conv_transpose(conv, o.shaped(0), o.shaped(1), step.shape, o.out(), tail);
        }
        Op::ConvBackwardWeight { conv, .. } => {
            reference::conv::conv_backward_weight(conv, o.shaped(0), o.shaped(1), step.shape, o.out());
        }
        Op::MatMul { transpose_a, transpose_b, alpha } => {
            let transpose = (*transpose_a, *transpose_b);
            reference::conv::matmul(o.shaped(0), o.x(1), transpose, *alpha, step.shape, o.out());
        }
        Op::Unary(unary) => reference::elementwise::unary(*unary, o.x(0), o.out()),
        Op::UnaryBackward(unary) => reference::elementwise::unary_backward(*unary, o.x(0), o.x(1), o.out()),
        Op::Binary(binary) => {
            reference::elementwise::binary(*binary, o.shaped(0), o.shaped(1), step.shape, o.out());
        }
        Op::Reduce { reduce, .. } => {
            reference::elementwise::reduce(*reduce, o.shaped(0), step.shape, o.out());
        }
        Op::Broadcast { .. } => reference::elementwise::broadcast(o.shaped(0), step.shape, o.out()),
        Op::SumSquares => {
            let mut sum = 0.0;
            for i in 0..step.inputs.len() {
                reference::elementwise::add_squares(o.x(i), &mut sum);
            }
            o.out()[0] = sum as f32;
        }
        Op::Moments { norm } => reference::norm::moments(*norm, o.shaped(0), o.out()),
        Op::Normalize { norm, eps, affine, act } => {
            reference::norm::normalize(*norm, *eps, o.shaped(0), o.x(1), o.affine(*affine), *act, o.out());
        }
        Op::NormalizeBackward { norm, eps, affine, through_moments } => {
            let (gamma, dy) = gamma_and_gradient(&o, *affine);
            reference::norm::normalize_backward(
                *norm,
                *eps,
                *through_moments,
                o.shaped(0),
                o.x(1),
                gamma,
                dy,
                o.out(),
            );
        }
        Op::NormalizeParamGrad { norm, eps } => {
            reference::norm::normalize_param_grad(*norm, *eps, o.shaped(0), o.x(1), o.x(2), o.out());
        }
        Op::Pool { pool, window } => {
            reference::spatial::pool(*pool, window, o.shaped(0), step.shape, o.out())
        }
        Op::PoolBackward { pool, window } => {
            reference::spatial::pool_backward(*pool, window, o.shaped(0), o.shaped(1), o.out());
        }
        Op::Resize { resize, .. } => reference::spatial::resize(*resize, o.shaped(0), step.shape, o.out()),
        Op::ResizeBackward { resize, .. } => {
            reference::spatial::resize_backward(*resize, o.shaped(0), step.shape, o.out());
        }
        Op::AnomalyMap { resize, .. } => {
            reference::heatmap::map(*resize, o.shaped(0), step.shape, o.out(), o.scratch());
        }
        Op::LargestMean { size } => {
            reference::heatmap::largest_mean(*size, o.shaped(0), o.out(), o.scratch());
        }
        Op::Attention(a) => reference::attention::attention(a, o.shaped(0), o.out(), o.scratch()),
        Op::AttentionBackward(a) => {
            reference::attention::attention_backward(a, o.shaped(0), o.x(1), o.out(), o.scratch());
        }
        _ => run_plain(&o),
    }
}

fn gamma_and_gradient<'m>(o: &Operands<'m>, affine: bool) -> (Option<&'m [f32]>, &'m [f32]) {
    if affine { (Some(o.x(2)), o.x(3)) } else { (None, o.x(2)) }
}

/// Operations whose plain form is also the fast one: they move memory, or are too small to matter.
fn run_plain(o: &Operands) {
    let step = o.step;
    match &step.op {
        Op::Random { distribution, purpose } => {
            reference::layout::random(*distribution, *purpose, o.indices(0).1, step.shape, o.out());
        }
        Op::Softmax => reference::loss::softmax(step.shape.c(), o.x(0), o.out()),
        Op::SoftmaxBackward => reference::loss::softmax_backward(step.shape.c(), o.x(0), o.x(1), o.out()),
        Op::CrossEntropy => o.out()[0] = reference::loss::cross_entropy(step.shapes[0].c(), o.x(0), o.x(1)),
        Op::CrossEntropyBackward => {
            reference::loss::cross_entropy_backward(step.shape.c(), o.x(0), o.x(1), o.x(2)[0], o.out());
        }
        Op::Concat { axis } => {
            let mut start = 0;
            for i in 0..step.inputs.len() {
                reference::layout::place(*axis, start, o.shaped(i), step.shape, o.out());
                start += step.shapes[i].0[*axis];
            }
        }
        Op::Slice { axis, start, .. } => {
            reference::layout::slice(*axis, *start, o.shaped(0), step.shape, o.out());
        }
        Op::Pad { axis, before, .. } => {
            o.out().fill(0.0);
            reference::layout::place(*axis, *before, o.shaped(0), step.shape, o.out());
        }
        Op::Reshape { .. } => o.out().copy_from_slice(o.x(0)),
        Op::Transpose { perm } => reference::layout::transpose(*perm, o.shaped(0), step.shape, o.out()),
        Op::TopK { k } => {
            let (shape, keys) = o.shaped(0);
            reference::layout::top_k(shape.c(), *k, keys, o.scratch_indices(), o.out_indices());
        }
        Op::Gather => reference::layout::gather(o.shaped(0), o.indices(1), o.out()),
        Op::GatherBackward { channels } => {
            reference::layout::gather_backward(o.indices(0), o.shaped(1), *channels, o.out());
        }
        Op::ResidualRank(residual) => {
            reference::residual::rank(residual, o.shaped(0), o.x(1), o.out(), o.scratch());
        }
        Op::ResidualGather(residual) => {
            let scale = |i: usize| (o.step.shapes[1 + 2 * i], o.x(1 + 2 * i), o.x(2 + 2 * i));
            let scales = o.step.inputs.len() / 2;
            let indices = o.indices(0);
            reference::residual::gather(residual, indices, scales, scale, o.out());
        }
        Op::LogitDifference => reference::heatmap::difference(o.x(0), o.out()),
        Op::Adam(adam) => {
            let (grad, rate, scale) = (o.x(1), o.x(4), o.x(5)[0]);
            reference::optim::adam(adam, o.param(0), grad, o.param(2), o.param(3), rate, scale);
        }
        Op::MovingAverage { momentum, variance_factor } => {
            reference::optim::moving_average(*momentum, *variance_factor, o.param(0), o.x(1));
        }
        _ => unreachable!("`{}` has its arm in both executors", step.op.name()),
    }
}

fn geometry(conv: &Conv, x: Shape, w: Shape) -> ConvGeometry {
    let [top, left, bottom, right] = conv.pad;
    ConvGeometry {
        n: x.n(),
        h: x.h(),
        w: x.w(),
        cin: x.c(),
        kh: w.n(),
        kw: w.h(),
        cout: w.c(),
        stride: conv.stride,
        pad: Padding { top, left, bottom, right },
        groups: conv.groups,
    }
}

fn fast_epilogue<'m>(o: &Operands<'m>, epilogue: &Epilogue) -> FastEpilogue<'m> {
    let (bias, residual) = o.tail(epilogue);
    let act = match epilogue.act {
        Act::None => FastAct::None,
        Act::Relu => FastAct::Relu,
        Act::Relu6 => FastAct::Relu6,
        Act::Silu => FastAct::Silu,
    };
    FastEpilogue { bias, residual, accumulate: false, act }
}

/// A weight in the order the kernel reads, for convolutions whose weight never changes.
#[derive(Debug)]
pub(super) enum Packed {
    Conv(PackedConv),
    Transposed(PackedTransposed),
}

/// The packed weight (input 1) of a convolution; None for other operations.
pub(super) fn pack(
    op: &Op,
    shapes: &[Shape],
    out: Shape,
    weight: &[f32],
    threads: &Threads,
) -> Option<Packed> {
    let isa = threads.isa();
    match op {
        Op::Conv2d { conv, .. } => {
            Some(Packed::Conv(PackedConv::new(isa, &geometry(conv, shapes[0], shapes[1]), weight)))
        }
        Op::ConvTranspose { conv, .. } => {
            Some(Packed::Transposed(PackedTransposed::new(isa, &geometry(conv, out, shapes[1]), weight)))
        }
        _ => None,
    }
}

/// Floats of scratch of the fast path. Whether the weight is packed is not known yet: room for both.
pub(super) fn scratch_len(op: &Op, shapes: &[Shape], out: Shape, threads: &Threads) -> usize {
    match op {
        Op::Conv2d { conv, .. } => conv2d_scratch(threads, &geometry(conv, shapes[0], shapes[1]), false),
        Op::ConvTranspose { conv, .. } => {
            conv2d_backward_input_scratch(threads, &geometry(conv, out, shapes[1]), false)
        }
        Op::ConvBackwardWeight { conv, .. } => {
            conv2d_backward_weight_scratch(threads, &geometry(conv, shapes[0], out))
        }
        Op::MatMul { transpose_a, .. } => {
            let k = if *transpose_a { shapes[0].w() } else { shapes[0].c() };
            gemm_batched_scratch(threads, out.c(), k)
        }
        Op::Reduce { .. } => pointwise::reduce_scratch(shapes[0], out),
        Op::Moments { norm } => norm::scratch(*norm, shapes[0]),
        Op::Normalize { norm, .. }
        | Op::NormalizeBackward { norm, .. }
        | Op::NormalizeParamGrad { norm, .. } => norm::scratch(*norm, shapes[0]),
        Op::Attention(a) => attention::attention_scratch(threads, a, shapes[0], false),
        Op::AttentionBackward(a) => attention::attention_scratch(threads, a, shapes[0], true),
        _ => reference_scratch_len(op, shapes),
    }
}

/// Runs a step by the fast path.
pub(super) fn run(step: &Step, memory: &Memory, threads: &Threads) {
    let o = Operands { step, memory };
    match &step.op {
        Op::Input { .. } | Op::Param { .. } | Op::Fill { .. } => {}
        Op::Conv2d { conv, epilogue } => {
            let g = geometry(conv, step.shapes[0], step.shapes[1]);
            let weights = match &step.packed {
                Some(Packed::Conv(packed)) => ConvWeights::Packed(packed),
                _ => ConvWeights::Raw(o.x(1)),
            };
            conv2d(threads, &g, weights, o.x(0), o.out(), &fast_epilogue(&o, epilogue), o.scratch());
        }
        Op::ConvTranspose { conv, epilogue, .. } => {
            let g = geometry(conv, step.shape, step.shapes[1]);
            let weights = match &step.packed {
                Some(Packed::Transposed(packed)) => TransposedWeights::Packed(packed),
                _ => TransposedWeights::Raw(o.x(1)),
            };
            let epilogue = fast_epilogue(&o, epilogue);
            conv2d_backward_input(threads, &g, weights, o.x(0), o.out(), &epilogue, o.scratch());
        }
        Op::ConvBackwardWeight { conv, .. } => {
            let g = geometry(conv, step.shapes[0], step.shape);
            conv2d_backward_weight(threads, &g, o.x(0), o.x(1), o.out(), false, o.scratch());
        }
        Op::MatMul { transpose_a, transpose_b, alpha } => {
            matmul(&o, threads, *transpose_a, *transpose_b, *alpha)
        }
        Op::Unary(unary) => pointwise::unary(threads, *unary, o.x(0), o.out()),
        Op::UnaryBackward(unary) => pointwise::unary_backward(threads, *unary, o.x(0), o.x(1), o.out()),
        Op::Binary(binary) => {
            pointwise::binary(threads, *binary, o.shaped(0), o.shaped(1), step.shape, o.out());
        }
        Op::Reduce { reduce, .. } => {
            pointwise::reduce(threads, *reduce, o.shaped(0), step.shape, o.out(), o.scratch());
        }
        Op::Broadcast { .. } => pointwise::broadcast(threads, o.shaped(0), step.shape, o.out()),
        Op::SumSquares => {
            let sum: f64 = (0..step.inputs.len()).map(|i| pointwise::squares(threads, o.x(i))).sum();
            o.out()[0] = sum as f32;
        }
        Op::Moments { norm } => norm::moments(threads, *norm, o.shaped(0), o.out(), o.scratch()),
        Op::Normalize { norm, eps, affine, act } => {
            let affine = o.affine(*affine);
            norm::normalize(threads, *norm, *eps, o.shaped(0), o.x(1), affine, *act, o.out(), o.scratch());
        }
        Op::NormalizeBackward { norm, eps, affine, through_moments } => {
            let (gamma, dy) = gamma_and_gradient(&o, *affine);
            let (x, moments) = (o.shaped(0), o.x(1));
            norm::normalize_backward(
                threads,
                *norm,
                *eps,
                *through_moments,
                x,
                moments,
                gamma,
                dy,
                o.out(),
                o.scratch(),
            );
        }
        Op::NormalizeParamGrad { norm, eps } => {
            norm::normalize_param_grad(
                threads,
                *norm,
                *eps,
                o.shaped(0),
                o.x(1),
                o.x(2),
                o.out(),
                o.scratch(),
            );
        }
        Op::Pool { pool, window } => spatial::pool(threads, *pool, window, o.shaped(0), step.shape, o.out()),
        Op::PoolBackward { pool, window } => {
            spatial::pool_backward(threads, *pool, window, o.shaped(0), o.shaped(1), o.out());
        }
        Op::Resize { resize, .. } => spatial::resize(threads, *resize, o.shaped(0), step.shape, o.out()),
        Op::ResizeBackward { resize, .. } => {
            spatial::resize_backward(threads, *resize, o.shaped(0), step.shape, o.out());
        }
        Op::AnomalyMap { resize, .. } => {
            let (logits, small) = (o.shaped(0), step.shapes[0].with(3, 1));
            let (differences, rest) = o.scratch().split_at_mut(small.len());
            let probabilities = &mut rest[..small.len()];
            reference::heatmap::difference(logits.1, differences);
            pointwise::unary(threads, Unary::Sigmoid, differences, probabilities);
            spatial::resize(threads, *resize, (small, probabilities), step.shape, o.out());
        }
        Op::LargestMean { size } => {
            let means = reference::heatmap::windows(step.shapes[0], *size);
            let window = Window { size: *size, stride: 1, pad: 0 };
            let scratch = &mut o.scratch()[..means.len()];
            spatial::pool(threads, op::Pool::Avg, &window, o.shaped(0), means, scratch);
            reference::heatmap::largest(means, scratch, o.out());
        }
        Op::Attention(a) => attention::attention(threads, a, o.shaped(0), o.out(), o.scratch()),
        Op::AttentionBackward(a) => {
            attention::attention_backward(threads, a, o.shaped(0), o.x(1), o.out(), o.scratch());
        }
        Op::Adam(adam) => {
            let (grad, rate, scale) = (o.x(1), o.x(4), o.x(5)[0]);
            split::with_isa(threads.isa(), || {
                reference::optim::adam(adam, o.param(0), grad, o.param(2), o.param(3), rate, scale);
            });
        }
        _ => run_plain(&o),
    }
}

fn matmul(o: &Operands, threads: &Threads, transpose_a: bool, transpose_b: bool, alpha: f32) {
    let ((a_shape, a), (b_shape, b), c) = (o.shaped(0), o.shaped(1), o.step.shape);
    let k = if transpose_a { a_shape.w() } else { a_shape.c() };
    let mat = |data, shape: Shape, transposed| Mat { data, stride: shape.c(), transposed };
    let steps = |s: Shape| [s.h() * s.w() * s.c(), s.w() * s.c()];
    let (a_steps, b_steps, c_steps) = (steps(a_shape), steps(b_shape), steps(c));
    let batch = Batch { outer: c.n(), inner: c.h(), a: a_steps, b: b_steps, c: c_steps };
    let (a, b) = (mat(a, a_shape, transpose_a), mat(b, b_shape, transpose_b));
    let plain = FastEpilogue::default();
    gemm_batched(threads, c.w(), c.c(), k, &batch, a, b, o.out(), c.c(), &plain, o.scratch());
    if alpha != 1.0 {
        o.out().iter_mut().for_each(|v| *v *= alpha);
    }
}
