//! The shapes that are measured, with what is asked of each.

use super::{Bound, Products};
use crate::engine::cuda::preprocess::{Geometry, Pixels};
use crate::engine::philox::Stream;
use crate::engine::*;

/// Name of the input of indices, where a case has one.
pub(super) const INDICES: &str = "indices";

pub(super) struct Case {
    pub name: &'static str,
    pub bound: Bound,
    pub graph: Graph,
    pub y: Value,
    pub params: ParamStore,
    pub products: Option<Products>,
    pub indices: Option<Vec<u32>>,
    /// The least bytes where operands and result once is not what the operation needs.
    pub paper_bytes: Option<u64>,
}

fn s(n: usize, h: usize, w: usize, c: usize) -> Shape {
    Shape::new(n, h, w, c)
}

pub(super) fn random(shape: Shape, seed: u64) -> Tensor {
    let mut rng = Stream::new(seed, 0, 0, 41).rng();
    Tensor::new(shape, (0..shape.len()).map(|_| rng.range(-1.0, 1.0)).collect())
}

/// An operation on inputs of the given shapes.
fn case(
    name: &'static str,
    bound: Bound,
    shapes: &[Shape],
    f: impl FnOnce(&mut Graph, &[Value]) -> GraphResult,
) -> Result<Case, GraphError> {
    let mut graph = Graph::new();
    let inputs: Vec<Value> =
        shapes.iter().enumerate().map(|(i, s)| graph.input(&format!("x{i}"), *s)).collect();
    let y = f(&mut graph, &inputs)?;
    // What `f` adds under a name is a parameter.
    let mut params = ParamStore::new();
    let named: Vec<(String, Shape)> = graph.params().map(|(n, v)| (n.to_owned(), graph.shape(v))).collect();
    for (i, (name, shape)) in named.into_iter().enumerate() {
        let mut tensor = random(shape, 100 + i as u64);
        tensor.data.iter_mut().for_each(|v| *v = v.abs() + 0.5);
        params.insert(name, tensor);
    }
    Ok(Case { name, bound, graph, y, params, products: None, indices: None, paper_bytes: None })
}

fn conv(name: &'static str, x: Shape, k: usize, co: usize, conv: Conv) -> Result<Case, GraphError> {
    let bound = if conv.groups == 1 { Bound::TILES } else { Bound::STREAM };
    let mut case = case(name, bound, &[x], |g, v| {
        let w = g.param("w", s(k, k, x.c() / conv.groups, co))?;
        let b = g.param("b", Shape::vector(co))?;
        g.conv2d(v[0], w, Some(b), conv)
    })?;
    let y = case.graph.shape(case.y);
    case.products = (conv.groups == 1).then_some(Products {
        m: (y.n() * y.h() * y.w()) as u64,
        n: co as u64,
        k: (k * k * x.c()) as u64,
        batch: 1,
    });
    Ok(case)
}

/// Shapes of the networks, scaled to what an interpreter runs in a second or two.
pub(super) fn cases() -> Result<Vec<Case>, GraphError> {
    let map = s(1, 32, 32, 64);
    let twice = [map, map];
    let mut all = vec![
        conv("conv 1×1, 40 to 240", s(1, 28, 28, 40), 1, 240, Conv::new(1, 0))?,
        conv("conv 1×1, 240 to 40", s(1, 28, 28, 240), 1, 40, Conv::new(1, 0))?,
        conv("conv 3×3, 64 to 64", s(1, 24, 24, 64), 3, 64, Conv::new(1, 1))?,
        conv("conv 3×3 stride 2, 64 to 128", s(1, 24, 24, 64), 3, 128, Conv::new(2, 1))?,
        conv("conv 3×3 stride 2, 3 to 32", s(1, 64, 64, 3), 3, 32, Conv::new(2, 1))?,
        conv("depthwise 3×3, 96", s(1, 28, 28, 96), 3, 96, Conv::grouped(1, 1, 96))?,
        conv("depthwise 5×5 stride 2, 96", s(1, 28, 28, 96), 5, 96, Conv::grouped(2, 2, 96))?,
    ];
    let mut product =
        case("product 256×64 · 64×256", Bound::TILES, &[s(1, 1, 256, 64), s(1, 1, 64, 256)], |g, v| {
            g.matmul(v[0], v[1], false, false)
        })?;
    product.products = Some(Products { m: 256, n: 256, k: 64, batch: 1 });
    all.push(product);
    all.extend([
        case("SiLU", Bound::STREAM, &[map], |g, v| g.unary(Unary::Silu, v[0]))?,
        case("sum of two", Bound::STREAM, &twice, |g, v| g.add(v[0], v[1]))?,
        case("sum with a number per channel", Bound::STREAM, &[map, s(1, 1, 1, 64)], |g, v| {
            g.add(v[0], v[1])
        })?,
        case("group norm, 32 groups", Bound::STREAM, &[map], |g, v| g.group_norm(v[0], 32, 1e-5, "n"))?,
        case("layer norm, 192", Bound::STREAM, &[s(1, 1, 256, 192)], |g, v| {
            let m = g.moments(Norm::Layer, v[0])?;
            g.normalize(Norm::Layer, 1e-5, v[0], m, None)
        })?,
        case("maximum pool 3×3 stride 2", Bound::STREAM, &[map], |g, v| {
            g.pool(Pool::Max, v[0], Window { size: 3, stride: 2, pad: 1 })
        })?,
        case("average pool 3×3", Bound::STREAM, &[map], |g, v| {
            g.pool(Pool::Avg, v[0], Window { size: 3, stride: 1, pad: 1 })
        })?,
        case("resize ×2, nearest", Bound::STREAM, &[map], |g, v| g.resize(Resize::Nearest, v[0], 64, 64))?,
        case("resize ×2, bilinear", Bound::STREAM, &[map], |g, v| g.resize(Resize::Bilinear, v[0], 64, 64))?,
        case("mean of each channel", Bound::STREAM, &[map], |g, v| {
            g.reduce(Reduce::Mean, v[0], [false, true, true, false])
        })?,
        case("mean of each pixel", Bound::STREAM, &[map], |g, v| {
            g.reduce(Reduce::Mean, v[0], [false, false, false, true])
        })?,
        case("softmax over 64", Bound::STREAM, &[map], |g, v| g.softmax(v[0]))?,
        case("concat of channels", Bound::STREAM, &twice, |g, v| g.concat(3, v))?,
        case("transpose to planes", Bound::STREAM, &[map], |g, v| g.transpose(v[0], [0, 3, 1, 2]))?,
        case("attention, 4 heads of 32, 128 tokens", ATTENTION, &[s(1, 1, 128, 384)], |g, v| {
            g.attention(v[0], Attention { heads: 4, layout: QkvLayout::Blocks, causal: false })
        })?,
    ]);
    all.extend(gradients()?);
    all.extend(residuals()?);
    let stem = "2 bytes a lane of pixels of 6 bytes: a step of two pixels leaves sectors half used";
    for case in &mut all {
        if case.name == "conv 3×3 stride 2, 3 to 32" {
            case.bound = Bound::TILES.looser(1.5, 0.65, stem);
        }
    }
    Ok(all)
}

const PARTS: &str = "blocks write partial sums, which a second launch adds: a small map is cut into more";

const GROUPS: Bound = Bound::STREAM.looser(
    1.8,
    0.65,
    "the sums of a group stand before any of its elements: x and dy are read twice, moments of narrow groups in pieces",
);

const ATTENTION_BACKWARD: Bound = Bound::STREAM.looser(
    3.4,
    0.9,
    "statistics, queries and keys are three passes, so that no sum crosses blocks; bound by arithmetic",
);

const PLANES: Bound =
    Bound::STREAM.looser(1.25, 0.4, "a plane is a channel: two bytes of each sector of a pixel");

const ATTENTION: Bound = Bound::STREAM.looser(
    1.6,
    0.9,
    "keys and values are read again for each 64 queries: bound by arithmetic, not by memory",
);

/// A convolution's gradient by `x` (`of_x`) or by its weight.
fn conv_backward(
    name: &'static str,
    x: Shape,
    k: usize,
    co: usize,
    conv: Conv,
    of_x: bool,
) -> Result<Case, GraphError> {
    let (oh, ow) = (conv.out_h(x.h(), k), conv.out_w(x.w(), k));
    let dy = s(x.n(), oh, ow, co);
    let bound = if conv.groups == 1 { Bound::TILES } else { Bound::STREAM };
    let depthwise = conv.groups > 1;
    // A convolution's gradient by the weight writes partial sums, which a second launch adds.
    let bound = if depthwise && !of_x { Bound::STREAM.looser(1.5, 0.9, PARTS) } else { bound };
    let mut made = match of_x {
        true => case(name, bound, &[dy], |g, v| {
            let w = g.param("w", s(k, k, x.c() / conv.groups, co))?;
            let epilogue = Epilogue::default();
            g.apply(Op::ConvTranspose { conv, h: x.h(), w: x.w(), epilogue }, &[v[0], w])
        })?,
        false => {
            case(name, bound, &[x, dy], |g, v| g.apply(Op::ConvBackwardWeight { conv, kh: k, kw: k }, v))?
        }
    };
    let pixels = (dy.n() * dy.h() * dy.w()) as u64;
    made.products = match (depthwise, of_x) {
        (true, _) => None,
        // By x: each pixel of x takes the taps that meet it, k·k/stride² of them.
        (false, true) => Some(Products {
            m: (x.n() * x.h() * x.w()) as u64,
            n: x.c() as u64,
            k: (k * k * co / (conv.stride * conv.stride)) as u64,
            batch: 1,
        }),
        (false, false) => Some(Products { m: (k * k * x.c()) as u64, n: co as u64, k: pixels, batch: 1 }),
    };
    Ok(made)
}

fn gradients() -> Result<Vec<Case>, GraphError> {
    let map = s(1, 32, 32, 64);
    let twice = [map, map];
    let pooled = Window { size: 3, stride: 2, pad: 1 };
    let kept = Window { size: 3, stride: 1, pad: 1 };
    let back = |name, bound: Bound, norm: Norm, shape: Shape| {
        case(name, bound, &[shape, shape], |g, v| {
            let m = g.moments(norm, v[0])?;
            let op = Op::NormalizeBackward { norm, eps: 1e-5, affine: false, through_moments: true };
            g.apply(op, &[v[0], m, v[1]])
        })
    };
    let adam = Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let mut all = vec![
        conv_backward("conv 3×3, 64 to 64, by x", s(1, 24, 24, 64), 3, 64, Conv::new(1, 1), true)?,
        conv_backward("conv 3×3, 64 to 64, by weight", s(1, 24, 24, 64), 3, 64, Conv::new(1, 1), false)?,
        conv_backward("depthwise 3×3, 96, by x", s(1, 28, 28, 96), 3, 96, Conv::grouped(1, 1, 96), true)?,
        conv_backward(
            "depthwise 5×5 stride 2, 96, by x",
            s(1, 28, 28, 96),
            5,
            96,
            Conv::grouped(2, 2, 96),
            true,
        )?,
        conv_backward(
            "depthwise 3×3, 96, by weight",
            s(1, 28, 28, 96),
            3,
            96,
            Conv::grouped(1, 1, 96),
            false,
        )?,
        back("group norm, 32 groups, backward", GROUPS, Norm::Group(32), map)?,
        back("layer norm, 192, backward", Bound::STREAM, Norm::Layer, s(1, 1, 256, 192))?,
        case("maximum pool 3×3 stride 2, backward", Bound::STREAM, &[map, s(1, 16, 16, 64)], |g, v| {
            g.apply(Op::PoolBackward { pool: Pool::Max, window: pooled }, v)
        })?,
        case("average pool 3×3, backward", Bound::STREAM, &twice, |g, v| {
            g.apply(Op::PoolBackward { pool: Pool::Avg, window: kept }, v)
        })?,
        case("resize ×2, nearest, backward", Bound::STREAM, &[s(1, 64, 64, 64)], |g, v| {
            g.apply(Op::ResizeBackward { resize: Resize::Nearest, h: 32, w: 32 }, v)
        })?,
        case("resize ×2, bilinear, backward", Bound::STREAM, &[s(1, 64, 64, 64)], |g, v| {
            g.apply(Op::ResizeBackward { resize: Resize::Bilinear, h: 32, w: 32 }, v)
        })?,
        case("SiLU, backward", Bound::STREAM, &twice, |g, v| g.apply(Op::UnaryBackward(Unary::Silu), v))?,
        case("softmax over 64, backward", Bound::STREAM, &twice, |g, v| g.apply(Op::SoftmaxBackward, v))?,
        case(
            "attention, 4 heads of 32, 128 tokens, backward",
            ATTENTION_BACKWARD,
            &[s(1, 1, 128, 384), s(1, 1, 128, 128)],
            |g, v| {
                g.apply(
                    Op::AttentionBackward(Attention { heads: 4, layout: QkvLayout::Blocks, causal: false }),
                    v,
                )
            },
        )?,
    ];
    let mut step = case("Adam", Bound::STREAM, &[map, s(1, 1, 1, 3), Shape::SCALAR], |g, v| {
        let w = g.param("w", map)?;
        g.adam(w, v[0], v[1], v[2], adam, "adam")
    })?;
    // fp32 parameter and both moments in and out, the gradient in.
    step.paper_bytes = Some((map.len() * (4 * 6 + 2)) as u64);
    all.push(step);
    Ok(all)
}

fn residuals() -> Result<Vec<Case>, GraphError> {
    let (features, grid, chosen) = (s(1, 16, 16, 64), 32, 16);
    let residual = Residual { log: false, resize: Resize::Bilinear, h: grid, w: grid };
    let rank = case("residual rank, 64 planes", Bound::STREAM, &[features; 2], |g, v| {
        g.residual_rank(residual, v[0], v[1])
    })?;
    let mut gather = case("residual gather, 16 of 64 planes", PLANES, &[features; 2], |g, v| {
        let indices = g.index_input(INDICES, s(1, 1, 1, chosen));
        g.residual_gather(residual, indices, &[(v[0], v[1])])
    })?;
    gather.indices = Some((0..chosen as u32).map(|i| i * 4 + 1).collect());
    // The chosen planes of both, once; the result; the indices.
    let halves = 2 * features.h() * features.w() * chosen + grid * grid * chosen;
    gather.paper_bytes = Some((2 * halves + 4 * chosen) as u64);
    Ok(vec![rank, gather])
}

/// A frame of one format, shrunk to a quarter of each side with windows of eight pixels.
pub(super) struct Frame {
    pub name: &'static str,
    pub bound: Bound,
    pub geometry: Geometry,
    /// Bytes of each plane.
    pub planes: Vec<usize>,
    /// First rows, row weights, first columns, column weights.
    pub tables: [Vec<u8>; 4],
}

pub(super) const SIDE: usize = 64;

pub(super) fn frames() -> Vec<Frame> {
    let (shrink, taps) = (4, 8);
    let source = SIDE * shrink;
    let first: Vec<i32> =
        (0..SIDE).map(|i| (i * shrink).saturating_sub(taps / 4).min(source - taps) as i32).collect();
    let weights = vec![1.0 / taps as f32; SIDE * taps];
    let bytes = |ints: &[i32]| bytemuck::cast_slice(ints).to_vec();
    let weight_bytes: Vec<u8> = bytemuck::cast_slice(&weights).to_vec();
    let half = source / 2;
    [
        ("preprocess GRAY8", Pixels::Gray8, vec![(source, source)]),
        ("preprocess RGB", Pixels::Rgb, vec![(3 * source, source)]),
        ("preprocess BGR", Pixels::Bgr, vec![(3 * source, source)]),
        ("preprocess BGRx", Pixels::Bgrx, vec![(4 * source, source)]),
        ("preprocess NV12", Pixels::Nv12, vec![(source, source), (source, half)]),
        ("preprocess I420", Pixels::I420, vec![(source, source), (half, half), (half, half)]),
        ("preprocess YUY2", Pixels::Yuy2, vec![(2 * source, source)]),
        ("preprocess Bayer", Pixels::Bayer([0, 0]), vec![(source, source)]),
    ]
    .into_iter()
    .map(|(name, pixels, planes)| {
        let mut pitches = [0; 3];
        pitches.iter_mut().zip(&planes).for_each(|(pitch, plane)| *pitch = plane.0);
        let taps = [taps; 2];
        let (out_width, out_height) = (SIDE, SIDE);
        Frame {
            name,
            bound: Bound::STREAM,
            geometry: Geometry {
                pixels,
                pitches,
                width: source,
                height: source,
                x: 0,
                y: 0,
                taps,
                out_width,
                out_height,
                a: [1.0; 3],
                b: [0.0; 3],
            },
            planes: planes.iter().map(|(pitch, rows)| pitch * rows).collect(),
            tables: [bytes(&first), weight_bytes.clone(), bytes(&first), weight_bytes.clone()],
        }
    })
    .collect()
}
