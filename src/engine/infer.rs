//! Shape inference: what an operation yields on inputs of given shapes and types, or what is wrong with
//! them.

use super::op::{Conv, Epilogue, Norm, Op, Residual, Resize, Window};
use super::shape::{DType, Shape};

/// Shape and type of what `op` yields on inputs of these shapes and types, or what is wrong with them.
/// `Input`, `Param`, `Fill` and `Random` carry their shape in the node and do not come here.
pub(super) fn infer(op: &Op, inputs: &[(Shape, DType)]) -> Result<(Shape, DType), String> {
    let shape = |i: usize| inputs.get(i).map(|x| x.0).ok_or_else(|| format!("input {i} is missing"));
    let want = |ok: bool, message: String| if ok { Ok(()) } else { Err(message) };
    let indices_at: Option<usize> = match op {
        Op::Gather => Some(1),
        Op::GatherBackward { .. } | Op::ResidualGather(_) => Some(0),
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
        Op::ResidualRank(residual) => {
            let (f, r) = (shape(0)?, shape(1)?);
            want(inputs.len() == 2 && f == r, format!("reconstruction {r} of features {f}"))?;
            check_residual(residual)?;
            real(Shape::new(f.n(), 1, 2, f.c()))
        }
        Op::ResidualGather(residual) => {
            let (indices, first) = (shape(0)?, shape(1)?);
            want(inputs.len() % 2 == 1, "a scale is features and their reconstruction".into())?;
            for i in (1..inputs.len()).step_by(2) {
                let (f, r) = (shape(i)?, shape(i + 1)?);
                want(f == r && f.n() == first.n(), format!("reconstruction {r} of features {f}"))?;
            }
            want(
                indices.h() * indices.w() == 1 && (indices.n() == 1 || indices.n() == first.n()),
                format!("indices {indices} do not choose planes of {} pictures", first.n()),
            )?;
            check_residual(residual)?;
            real(Shape::new(first.n(), residual.h, residual.w, indices.c()))
        }
        Op::LogitDifference => {
            let x = shape(0)?;
            want(x.c() == 2, format!("{x} holds no two logits"))?;
            real(x.with(3, 1))
        }
        Op::AnomalyMap { resize, h, w } => {
            let x = shape(0)?;
            want(x.c() == 2, format!("{x} holds no two logits"))?;
            want(*h > 0 && *w > 0 && !x.is_empty(), "resize to or from nothing".into())?;
            want(*resize != Resize::Area, "maps are interpolated, not averaged".into())?;
            real(Shape::new(x.n(), *h, *w, 1))
        }
        Op::LargestMean { size } => {
            let x = shape(0)?;
            want(x.c() == 1, format!("{x} is no map"))?;
            pooled(x, &Window { size: *size, stride: 1, pad: 0 })?;
            real(Shape::new(x.n(), 1, 1, 1))
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

fn check_residual(residual: &Residual) -> Result<(), String> {
    match residual.resize {
        Resize::Area => Err("residuals are interpolated, not averaged".into()),
        _ if residual.h == 0 || residual.w == 0 => Err("a grid has points".into()),
        _ => Ok(()),
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
