//! Reverse-mode differentiation that appends backward nodes made of the same operations, so whatever
//! executes a graph also trains it.

use super::graph::{Graph, GraphError, Value};
use super::op::{Binary, Epilogue, Norm, Op, Reduce, Unary};
use super::shape::{DType, Shape};

/// Appends nodes that compute d`loss`/d`wrt[i]` and returns one value per entry, zeros where the loss
/// does not depend on it. `loss` must be a scalar. Fused epilogues are not differentiated: take
/// gradients before running the passes.
pub fn gradients(g: &mut Graph, loss: Value, wrt: &[Value]) -> Result<Vec<Value>, GraphError> {
    if g.shape(loss) != Shape::SCALAR {
        let node = g.node(loss).name.clone();
        return Err(GraphError { node, message: format!("a loss is a scalar, this is {}", g.shape(loss)) });
    }
    let forward = loss.index() + 1;
    let mut needed = vec![false; forward];
    for v in wrt.iter().filter(|v| v.index() < forward) {
        needed[v.index()] = true;
    }
    for i in 0..forward {
        let node = &g.nodes()[i];
        if node.inputs.iter().any(|v| needed[v.index()]) && node.dtype == DType::Real {
            needed[i] = true;
        }
    }
    let mut grads: Vec<Option<Value>> = vec![None; forward];
    if needed[loss.index()] {
        grads[loss.index()] = Some(g.fill(Shape::SCALAR, 1.0));
    }
    for i in (0..forward).rev() {
        let Some(dy) = grads[i] else { continue };
        if g.nodes()[i].inputs.is_empty() {
            continue;
        }
        let y = Value(i as u32);
        for (input, dx) in backward(g, y, dy, &needed)? {
            let slot = &mut grads[input.index()];
            *slot = Some(match *slot {
                Some(sum) => g.add(sum, dx)?,
                None => dx,
            });
        }
    }
    wrt.iter()
        .map(|v| match grads.get(v.index()).copied().flatten() {
            Some(grad) => Ok(grad),
            None => {
                let shape = g.shape(*v);
                Ok(g.fill(shape, 0.0))
            }
        })
        .collect()
}

/// The contributions of one node to its inputs' gradients; inputs that nobody asked for are left out.
fn backward(g: &mut Graph, y: Value, dy: Value, needed: &[bool]) -> Result<Vec<(Value, Value)>, GraphError> {
    let node = g.node(y).clone();
    let x = &node.inputs;
    let wanted = |i: usize| x.get(i).is_some_and(|v| needed[v.index()]);
    let undefined =
        |why: &str| GraphError { node: node.name.clone(), message: format!("no gradient: {why}") };
    let mut out = Vec::new();
    match &node.op {
        Op::Input { .. } | Op::Param { .. } | Op::Fill { .. } | Op::Random { .. } => {}
        Op::Conv2d { conv, epilogue } | Op::ConvTranspose { conv, epilogue, .. } => {
            if *epilogue != (Epilogue { bias: epilogue.bias, ..Default::default() }) {
                return Err(undefined("the epilogue is fused already; differentiate first"));
            }
            let (xs, ws) = (g.shape(x[0]), g.shape(x[1]));
            let transposed = matches!(node.op, Op::ConvTranspose { .. });
            if wanted(0) {
                let epilogue = Epilogue::default();
                let op = if transposed {
                    Op::Conv2d { conv: *conv, epilogue }
                } else {
                    Op::ConvTranspose { conv: *conv, h: xs.h(), w: xs.w(), epilogue }
                };
                out.push((x[0], g.apply(op, &[dy, x[1]])?));
            }
            if wanted(1) {
                let op = Op::ConvBackwardWeight { conv: *conv, kh: ws.n(), kw: ws.h() };
                let pair = if transposed { [dy, x[0]] } else { [x[0], dy] };
                out.push((x[1], g.apply(op, &pair)?));
            }
            if wanted(2) {
                out.push((x[2], g.reduce(Reduce::Sum, dy, [true, true, true, false])?));
            }
        }
        Op::ConvBackwardWeight { .. } => return Err(undefined("second derivatives of convolutions")),
        Op::MatMul { transpose_a, transpose_b, alpha } => {
            let mut product = |a: Value, b: Value, ta: bool, tb: bool| {
                g.apply(Op::MatMul { transpose_a: ta, transpose_b: tb, alpha: *alpha }, &[a, b])
            };
            let (a, b) = (x[0], x[1]);
            if wanted(0) {
                let da = if *transpose_a {
                    product(b, dy, *transpose_b, true)?
                } else {
                    product(dy, b, false, !transpose_b)?
                };
                out.push((a, da));
            }
            if wanted(1) {
                let db = if *transpose_b {
                    product(dy, a, true, *transpose_a)?
                } else {
                    product(a, dy, !transpose_a, false)?
                };
                out.push((b, db));
            }
        }
        Op::Unary(Unary::Affine { factor, .. }) => out.push((x[0], g.scale(dy, *factor)?)),
        Op::Unary(unary) => out.push((x[0], g.apply(Op::UnaryBackward(*unary), &[x[0], dy])?)),
        Op::Binary(binary) => {
            let (a, b) = (x[0], x[1]);
            let (da, db) = match binary {
                Binary::Add => (Some(dy), Some(dy)),
                Binary::Sub => (Some(dy), if wanted(1) { Some(g.scale(dy, -1.0)?) } else { None }),
                Binary::Mul => (
                    if wanted(0) { Some(g.mul(dy, b)?) } else { None },
                    if wanted(1) { Some(g.mul(dy, a)?) } else { None },
                ),
                Binary::Div => {
                    let da = g.binary(Binary::Div, dy, b)?;
                    let db = if wanted(1) {
                        let t = g.mul(da, y)?;
                        Some(g.scale(t, -1.0)?)
                    } else {
                        None
                    };
                    (Some(da), db)
                }
                Binary::Max | Binary::Min => return Err(undefined("max and min of two tensors")),
            };
            for (i, (input, d)) in [(a, da), (b, db)].into_iter().enumerate() {
                if let (true, Some(d)) = (wanted(i), d) {
                    let to = g.shape(input);
                    out.push((input, sum_to(g, d, to)?));
                }
            }
        }
        Op::Reduce { reduce, .. } => {
            let xs = g.shape(x[0]);
            let dy = match reduce {
                Reduce::Sum => dy,
                Reduce::Mean => {
                    let factor = node.shape.len() as f32 / xs.len() as f32;
                    g.scale(dy, factor)?
                }
                Reduce::Max | Reduce::Min => return Err(undefined("max and min over axes")),
            };
            out.push((x[0], g.apply(Op::Broadcast { shape: xs }, &[dy])?));
        }
        Op::Broadcast { .. } => {
            let to = g.shape(x[0]);
            out.push((x[0], sum_to(g, dy, to)?));
        }
        Op::SumSquares => {
            for (i, &input) in x.iter().enumerate() {
                if wanted(i) {
                    let twice = g.scale(input, 2.0)?;
                    out.push((input, g.mul(twice, dy)?));
                }
            }
        }
        // Moments are differentiated together with the Normalize that uses them.
        Op::Moments { .. } => return Err(undefined("moments used outside a norm")),
        Op::Normalize { norm, eps, affine, act } => {
            if *act != super::op::Act::None {
                return Err(undefined("the activation is fused already; differentiate first"));
            }
            let (norm, eps, affine) = (*norm, *eps, *affine);
            let through_moments = matches!(&g.node(x[1]).op, Op::Moments { norm: n } if *n == norm)
                && g.node(x[1]).inputs[0] == x[0];
            if !through_moments && needed[x[1].index()] {
                return Err(undefined("moments of another tensor than the one normalised"));
            }
            if wanted(0) {
                let inputs: Vec<_> = if affine { vec![x[0], x[1], x[2], dy] } else { vec![x[0], x[1], dy] };
                let op = Op::NormalizeBackward { norm, eps, affine, through_moments };
                out.push((x[0], g.apply(op, &inputs)?));
            }
            if affine && (wanted(2) || wanted(3)) {
                let both = g.apply(Op::NormalizeParamGrad { norm, eps }, &[x[0], x[1], dy])?;
                for (row, input) in [(0, x[2]), (1, x[3])] {
                    if wanted(2 + row) {
                        out.push((input, g.slice(both, 2, row, 1)?));
                    }
                }
            }
        }
        Op::NormalizeBackward { .. } | Op::NormalizeParamGrad { .. } => {
            return Err(undefined("second derivatives of norms"));
        }
        Op::Pool { pool, window } => {
            let op = Op::PoolBackward { pool: *pool, window: *window };
            out.push((x[0], g.apply(op, &[x[0], dy])?));
        }
        Op::Resize { resize, .. } => {
            let s = g.shape(x[0]);
            out.push((x[0], g.apply(Op::ResizeBackward { resize: *resize, h: s.h(), w: s.w() }, &[dy])?));
        }
        Op::ResizeBackward { resize, .. } => {
            let s = g.shape(x[0]);
            out.push((x[0], g.apply(Op::Resize { resize: *resize, h: s.h(), w: s.w() }, &[dy])?));
        }
        Op::Softmax => out.push((x[0], g.apply(Op::SoftmaxBackward, &[y, dy])?)),
        Op::CrossEntropy => {
            if wanted(1) {
                return Err(undefined("cross-entropy by its target"));
            }
            out.push((x[0], g.apply(Op::CrossEntropyBackward, &[x[0], x[1], dy])?));
        }
        Op::Attention(attention) => {
            out.push((x[0], g.apply(Op::AttentionBackward(*attention), &[x[0], dy])?))
        }
        Op::UnaryBackward(_)
        | Op::PoolBackward { .. }
        | Op::SoftmaxBackward
        | Op::CrossEntropyBackward
        | Op::AttentionBackward(_) => return Err(undefined("second derivatives")),
        Op::Concat { axis } => {
            let mut start = 0;
            for (i, &input) in x.iter().enumerate() {
                let len = g.shape(input).0[*axis];
                if wanted(i) {
                    out.push((input, g.slice(dy, *axis, start, len)?));
                }
                start += len;
            }
        }
        Op::Slice { axis, start, len } => {
            let after = g.shape(x[0]).0[*axis] - start - len;
            out.push((x[0], g.apply(Op::Pad { axis: *axis, before: *start, after }, &[dy])?));
        }
        Op::Pad { axis, before, .. } => {
            let len = g.shape(x[0]).0[*axis];
            out.push((x[0], g.slice(dy, *axis, *before, len)?));
        }
        Op::Reshape { .. } => {
            let shape = g.shape(x[0]);
            out.push((x[0], g.reshape(dy, shape)?));
        }
        Op::Transpose { perm } => {
            let mut inverse = [0; 4];
            for (i, p) in perm.iter().enumerate() {
                inverse[*p] = i;
            }
            out.push((x[0], g.transpose(dy, inverse)?));
        }
        Op::TopK { .. } => {}
        Op::Gather => {
            let channels = g.shape(x[0]).c();
            out.push((x[0], g.apply(Op::GatherBackward { channels }, &[x[1], dy])?));
        }
        Op::GatherBackward { .. } => out.push((x[1], g.gather(dy, x[0])?)),
        Op::ResidualRank(_) | Op::ResidualGather(_) => {
            return Err(undefined("residual planes are chosen without their stack only to judge"));
        }
        Op::LogitDifference | Op::AnomalyMap { .. } | Op::LargestMean { .. } => {
            return Err(undefined("maps and their scores are made only to judge"));
        }
        Op::Adam(_) | Op::MovingAverage { .. } => {}
    }
    out.retain(|(input, _)| needed[input.index()]);
    Ok(out)
}

/// Undoes a stretch: sums over the axes along which `to` has size 1.
fn sum_to(g: &mut Graph, d: Value, to: Shape) -> Result<Value, GraphError> {
    let from = g.shape(d);
    if from == to {
        return Ok(d);
    }
    let axes = std::array::from_fn(|axis| to.0[axis] == 1 && from.0[axis] != 1);
    g.reduce(Reduce::Sum, d, axes)
}

/// True where a norm's moments are those of the batch at hand.
pub(super) fn is_batch_norm_by_parameter(g: &Graph, normalize: Value) -> bool {
    let node = g.node(normalize);
    matches!(node.op, Op::Normalize { norm: Norm::Batch, .. })
        && node.inputs.get(1).is_some_and(|m| matches!(g.node(*m).op, Op::Param { .. }))
}
