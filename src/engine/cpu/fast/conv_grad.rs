//! Convolution, NHWC: the gradients, and with them the transposed convolution.
//!
//! ```text
//! pub fn conv2d_backward_input (pool, &g, weights: TransposedWeights, dy, dx, &Epilogue, scratch)
//! pub fn conv2d_backward_weight(pool, &g, x, dy, dw, accumulate: bool, scratch)
//! conv2d_backward_input_scratch(pool, &g, packed), conv2d_backward_weight_scratch(pool, &g)   floats
//! ```
//!
//! The input's gradient splits by the output's phase: the pixels of dx with (row mod stride, column mod stride) =
//! (p, q) see a fixed subset of the taps, and for them dx is an ordinary stride-1 convolution of dy with
//! those taps in reverse order and the channels' roles exchanged. So no work is spent on zeros between
//! pixels, and the epilogue applies as in the forward pass.
//!
//! The weights' gradient is patchesᵀ · dy. Its inner dimension, all pixels of the batch, is long, so it
//! is split into parts that are summed in a fixed order; their number follows from the geometry alone.

use std::ops::Range;

use super::buffer::{AlignedBuf, Shared, aligned};
use super::conv::patches;
use super::depthwise_grad::{depthwise_backward_input, depthwise_backward_weight};
use super::epilogue::{Act, Epilogue};
use super::geometry::{Algo, ConvGeometry, pick_algo};
use super::kernel::Layout;
use super::pack::{Panels, Patches, Source};
use super::product::{Blocks, K_BLOCK, LANE_SCRATCH, Product, Rows, lane_scratch, run_products};
use super::simd::Isa;
use super::threads::Pool;

/// Weights `[kh, kw, cin/groups, cout]` of a transposed convolution that don't change, packed once.
#[derive(Debug, Clone)]
pub struct PackedTransposed {
    geometry: ConvGeometry,
    isa: Isa,
    data: AlignedBuf,
}

/// The weights of a call of [`conv2d_backward_input`].
#[derive(Debug, Clone, Copy)]
pub enum TransposedWeights<'a> {
    Packed(&'a PackedTransposed),
    /// `[kh, kw, cin/groups, cout]`, as for the forward convolution.
    Raw(&'a [f32]),
}

impl PackedTransposed {
    /// # Panics
    /// If the weights' length isn't what the geometry says.
    pub fn new(isa: Isa, g: &ConvGeometry, weights: &[f32]) -> Self {
        g.check();
        assert_eq!(weights.len(), g.weight_len(), "weights of {g:?}");
        let mut data = AlignedBuf::zeroed(transposed_len(isa, g));
        if pick_algo(g) == Algo::Depthwise {
            data.as_mut_slice().copy_from_slice(weights);
        } else {
            pack(&Pool::with_isa(1, isa), g, weights, Shared::new(data.as_mut_slice()));
        }
        Self { geometry: *g, isa, data }
    }
}

/// Floats of all phases' packed weights: every tap belongs to exactly one phase.
fn transposed_len(isa: Isa, g: &ConvGeometry) -> usize {
    match pick_algo(g) {
        Algo::Depthwise => g.weight_len(),
        _ => g.groups * Panels::new(isa, g.kh * g.kw * g.cout / g.groups, g.cin / g.groups).len(),
    }
}

/// One phase along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Phase {
    /// Pixels of dx: phase, phase + stride, …
    phase: usize,
    count: usize,
    /// Taps first_tap, first_tap + stride, …
    first_tap: usize,
    taps: usize,
    /// The stride-1 convolution over dy starts at -before.
    before: isize,
}

/// From i = o·stride - pad + tap: tap ≡ i + pad (mod stride), and o falls by one as tap rises by stride.
fn phases(size: usize, kernel: usize, stride: usize, pad: usize) -> impl Iterator<Item = Phase> + Clone {
    (0..stride.min(size)).map(move |phase| {
        let first_tap = (phase + pad) % stride;
        let taps = if first_tap < kernel { (kernel - first_tap).div_ceil(stride) } else { 0 };
        let newest = ((phase + pad) / stride) as isize;
        Phase {
            phase,
            count: (size - phase).div_ceil(stride),
            first_tap,
            taps,
            before: taps as isize - 1 - newest,
        }
    })
}

/// The 2-D phases, each with the offset of its packed weights within a group's.
fn phases_2d(isa: Isa, g: &ConvGeometry) -> impl Iterator<Item = (Phase, Phase, Panels, usize)> {
    let g = *g;
    let (ci, co) = (g.cin / g.groups, g.cout / g.groups);
    let mut offset = 0;
    phases(g.h, g.kh, g.stride, g.pad.top)
        .flat_map(move |y| phases(g.w, g.kw, g.stride, g.pad.left).map(move |x| (y, x)))
        .map(move |(y, x)| {
            let panels = Panels::new(isa, y.taps * x.taps * co, ci);
            let at = offset;
            offset += panels.len();
            (y, x, panels, at)
        })
}

/// Writes the phases' weights: rows (tap y, tap x, output channel) in reverse order of taps, columns
/// input channels.
fn pack(pool: &Pool, g: &ConvGeometry, w: &[f32], dst: Shared<f32>) {
    let (ci, co) = (g.cin / g.groups, g.cout / g.groups);
    let group_len = transposed_len(pool.isa(), g) / g.groups;
    let count = Panels::new(pool.isa(), 1, ci).count();
    pool.run(g.groups * count, &|task| {
        let (group, panel) = (task / count, task % count);
        for (py, px, panels, offset) in phases_2d(pool.isa(), g) {
            for ty in 0..py.taps {
                for tx in 0..px.taps {
                    let ky = py.first_tap + g.stride * (py.taps - 1 - ty);
                    let kx = px.first_tap + g.stride * (px.taps - 1 - tx);
                    let source = &w[(ky * g.kw + kx) * ci * g.cout + group * co..];
                    let row = (ty * px.taps + tx) * co;
                    // SAFETY: this task's group and panel; all phases fit `transposed_len`.
                    unsafe {
                        let dst = dst.ptr().add(group * group_len + offset);
                        panels.fill(panel, row, co, source, g.cout, true, dst);
                    }
                }
            }
        }
    });
}

/// Floats of scratch that [`conv2d_backward_input`] needs.
pub fn conv2d_backward_input_scratch(pool: &Pool, g: &ConvGeometry, packed: bool) -> usize {
    match pick_algo(g) {
        Algo::Depthwise => 0,
        _ if packed => lane_scratch(pool),
        _ => lane_scratch(pool) + transposed_len(pool.isa(), g),
    }
}

/// The gradient of a convolution `g` with respect to its input:
/// `dx[n, h, w, cin] = epilogue(Σ dy[n, oh, ow, cout] · w)`.
///
/// As a transposed convolution: `dy` is the input, `dx` the output, `g` describes the convolution that
/// leads back, e.g. 4×4, stride 2, padding 1 from 2H×2W to H×W to double the size; weights are
/// `[kh, kw, channels of dx, channels of dy]`. Bias and activation of the epilogue act on dx.
///
/// # Panics
/// If a slice's length isn't what the geometry says.
pub fn conv2d_backward_input(
    pool: &Pool,
    g: &ConvGeometry,
    weights: TransposedWeights,
    dy: &[f32],
    dx: &mut [f32],
    epilogue: &Epilogue,
    scratch: &mut [f32],
) {
    g.check();
    assert_eq!(dy.len(), g.output_len(), "dy of {g:?}");
    assert_eq!(dx.len(), g.input_len(), "dx of {g:?}");
    epilogue.check(g.cin, dx.len());
    let isa = pool.isa();
    match weights {
        TransposedWeights::Packed(p) => {
            let q = &p.geometry;
            let same = (q.kh, q.kw, q.cin, q.cout, q.groups) == (g.kh, g.kw, g.cin, g.cout, g.groups);
            assert!(
                same && (q.stride, q.pad) == (g.stride, g.pad) && p.isa == isa,
                "packed for {q:?}, not {g:?}"
            );
        }
        TransposedWeights::Raw(w) => assert_eq!(w.len(), g.weight_len(), "weights of {g:?}"),
    }
    if dx.is_empty() {
        return;
    }
    if pick_algo(g) == Algo::Depthwise {
        let w = match weights {
            TransposedWeights::Packed(p) => p.data.as_slice(),
            TransposedWeights::Raw(w) => w,
        };
        return depthwise_backward_input(pool, g, w, dy, dx, epilogue);
    }
    let (lanes, rest) = aligned(scratch).split_at_mut(pool.threads() * LANE_SCRATCH);
    let b = match weights {
        TransposedWeights::Packed(p) => p.data.as_ptr(),
        TransposedWeights::Raw(w) => {
            assert!(rest.len() >= transposed_len(isa, g), "scratch is too small for {g:?}");
            pack(pool, g, w, Shared::new(rest));
            rest.as_ptr()
        }
    };
    let (ci, co) = (g.cin / g.groups, g.cout / g.groups);
    let group_len = transposed_len(isa, g) / g.groups;
    let out = Shared::new(dx);
    let bias = Shared::from_const(epilogue.bias);
    let residual = Shared::from_const(epilogue.residual);
    for group in 0..g.groups {
        for (py, px, panels, offset) in phases_2d(isa, g) {
            let source = Patches {
                x: dy,
                h: g.oh(),
                w: g.ow(),
                pixel: g.cout,
                first: group * co,
                channels: co,
                kh: py.taps,
                kw: px.taps,
                stride: 1,
                top: py.before,
                left: px.before,
                out_h: py.count,
                out_w: px.count,
            };
            let product = Product {
                isa,
                m: g.n * py.count * px.count,
                a: Source::Patches(source),
                layout: Layout::Rows,
                panels,
                b: b.wrapping_add(group * group_len + offset),
                b_first: 0,
                c: out.offset(group * ci),
                rows: Rows {
                    per_line: px.count,
                    lines: py.count,
                    first: (py.phase * g.w + px.phase) * g.cin,
                    pixel: g.stride * g.cin,
                    line: g.stride * g.w * g.cin,
                    image: g.h * g.w * g.cin,
                },
                bias: bias.offset(group * ci),
                residual: residual.offset(group * ci),
                accumulate: epilogue.accumulate,
                act: epilogue.act,
            };
            // SAFETY: phases and groups write disjoint parts of dx, inside it by the phases' counts.
            unsafe { run_products(pool, &[product], Shared::new(lanes)) };
        }
    }
}

/// Columns of dw that a task owns, so that its part of dy (256 pixels) stays in the second-level cache.
const COLUMNS: usize = 256;
/// Floats of a lane: a block of patches and a block of dy.
const WEIGHT_LANE: usize = LANE_SCRATCH + K_BLOCK * COLUMNS;
/// Tasks that the gradient of small weights is split into at least, if there are pixels enough. A constant,
/// because the split decides the order of additions.
const PARTS: usize = 8;

struct WeightPlan {
    blocks: Blocks,
    column_tasks: usize,
    parts: usize,
    pixels: usize,
}

impl WeightPlan {
    fn new(isa: Isa, g: &ConvGeometry) -> Self {
        let (m, n) = (g.kh * g.kw * g.cin / g.groups, g.cout / g.groups);
        let pixels = g.n * g.oh() * g.ow();
        let columns = Panels::new(isa, K_BLOCK, n.min(COLUMNS));
        let blocks = Blocks::new(isa, m, &columns, PARTS);
        let blocks = Blocks { panels: columns.count(), n_tasks: 1, ..blocks };
        let column_tasks = n.div_ceil(COLUMNS);
        let tasks = blocks.m_tasks * column_tasks * g.groups;
        let parts = PARTS.div_ceil(tasks).min(pixels.div_ceil(2 * K_BLOCK)).max(1);
        Self { blocks, column_tasks, parts, pixels }
    }

    /// The pixels of a part, whole blocks of k.
    fn part(&self, part: usize) -> Range<usize> {
        let blocks = self.pixels.div_ceil(K_BLOCK);
        let at = |p: usize| (blocks * p / self.parts * K_BLOCK).min(self.pixels);
        at(part)..at(part + 1)
    }
}

/// Floats of scratch that [`conv2d_backward_weight`] needs.
pub fn conv2d_backward_weight_scratch(pool: &Pool, g: &ConvGeometry) -> usize {
    if pick_algo(g) == Algo::Depthwise {
        return 0;
    }
    let plan = WeightPlan::new(pool.isa(), g);
    let partial = if plan.parts > 1 { plan.parts * g.weight_len() } else { 0 };
    pool.threads() * WEIGHT_LANE + partial + 16
}

/// The gradient of a convolution with respect to its weights:
/// `dw[kh, kw, cin/groups, cout] (+)= Σ_pixels x · dy`. The same bits whatever the number of threads.
///
/// # Panics
/// If a slice's length isn't what the geometry says.
pub fn conv2d_backward_weight(
    pool: &Pool,
    g: &ConvGeometry,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    accumulate: bool,
    scratch: &mut [f32],
) {
    g.check();
    assert_eq!(x.len(), g.input_len(), "x of {g:?}");
    assert_eq!(dy.len(), g.output_len(), "dy of {g:?}");
    assert_eq!(dw.len(), g.weight_len(), "dw of {g:?}");
    if pick_algo(g) == Algo::Depthwise {
        return depthwise_backward_weight(pool, g, x, dy, dw, accumulate);
    }
    let isa = pool.isa();
    let plan = WeightPlan::new(isa, g);
    let co = g.cout / g.groups;
    let (lanes, partial) = aligned(scratch).split_at_mut(pool.threads() * WEIGHT_LANE);
    let split = plan.parts > 1;
    assert!(!split || partial.len() >= plan.parts * dw.len(), "scratch is too small for {g:?}");
    let lanes = Shared::new(lanes);
    let out = if split { Shared::new(partial) } else { Shared::new(dw) };
    let len = g.weight_len();
    let per_group = plan.blocks.m_tasks * plan.column_tasks;
    pool.run_lanes(plan.parts * g.groups * per_group, &|task, lane| {
        let (part, rest) = (task / (g.groups * per_group), task % (g.groups * per_group));
        let (group, rest) = (rest / per_group, rest % per_group);
        let (block, columns) = (rest / plan.column_tasks, rest % plan.column_tasks);
        let first = columns * COLUMNS;
        let n = (co - first).min(COLUMNS);
        let channel = group * co + first;
        let a = if pick_algo(g) == Algo::Pointwise {
            Source::Matrix { data: x, stride: g.cin }
        } else {
            Source::Patches(patches(g, x, group))
        };
        let pixels = plan.part(part);
        for k0 in pixels.clone().step_by(K_BLOCK) {
            let k1 = (k0 + K_BLOCK).min(pixels.end);
            let panels = Panels::new(isa, k1 - k0, n);
            // SAFETY: the lane's scratch is this thread's; (part, group, block, columns) is a part of the
            // output that no other task writes.
            unsafe {
                let scratch = lanes.ptr().add(lane * WEIGHT_LANE);
                let b = scratch.add(LANE_SCRATCH);
                for panel in 0..panels.count() {
                    panels.fill(panel, 0, k1 - k0, &dy[k0 * g.cout + channel..], g.cout, false, b);
                }
                let product = Product {
                    isa,
                    m: g.kh * g.kw * g.cin / g.groups,
                    a,
                    layout: Layout::Cols,
                    panels,
                    b,
                    b_first: k0,
                    c: out.ptr().add(part * len * usize::from(split) + channel),
                    rows: Rows::linear(g.cout),
                    bias: std::ptr::null(),
                    residual: std::ptr::null(),
                    accumulate: k0 > pixels.start || (accumulate && !split),
                    act: Act::None,
                };
                let blocks = Blocks { panels: panels.count(), ..plan.blocks };
                product.run(&blocks, block, k0..k1, scratch);
            }
        }
    });
    if plan.pixels == 0 && !accumulate {
        dw.fill(0.0);
    } else if split {
        sum_parts(pool, partial, plan.parts, dw, accumulate);
    }
}

/// dw (+)= Σ parts, in their order.
fn sum_parts(pool: &Pool, partial: &[f32], parts: usize, dw: &mut [f32], accumulate: bool) {
    const CHUNK: usize = 4096;
    let len = dw.len();
    let out = Shared::new(dw);
    pool.run(len.div_ceil(CHUNK), &|task| {
        let range = task * CHUNK..((task + 1) * CHUNK).min(len);
        // SAFETY: each task has its own chunk of dw.
        let out = unsafe { std::slice::from_raw_parts_mut(out.ptr().add(range.start), range.len()) };
        if !accumulate {
            out.fill(0.0);
        }
        for part in 0..parts {
            let part = &partial[part * len..(part + 1) * len][range.clone()];
            out.iter_mut().zip(part).for_each(|(sum, &x)| *sum += x);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::geometry::Padding;
    use super::super::naive::{Exact, Rng, each_mac, poisoned};
    use super::*;

    fn check(pool: &Pool, g: &ConvGeometry, seed: u64) {
        let mut rng = Rng(seed);
        let (x, w, dy) = (rng.vec(g.input_len()), rng.vec(g.weight_len()), rng.vec(g.output_len()));
        let what = format!("{:?} seed {seed} {g:?}", pool.isa());
        let options = rng.next();
        let accumulate = options & 1 > 0;

        let (bias, residual) = (rng.vec(g.cin), rng.vec(g.input_len()));
        let e = Epilogue {
            bias: (options & 2 > 0).then_some(&bias[..]),
            residual: (options & 4 > 0).then_some(&residual[..]),
            accumulate,
            act: [Act::None, Act::Relu, Act::Silu][(options >> 3) as usize % 3],
        };
        let before = if accumulate { rng.vec(x.len()) } else { poisoned(x.len()) };
        let mut want = Exact::zero(x.len(), g.kh * g.kw * g.cout / g.groups);
        each_mac(g, |xi, wi, yi| want.add(xi, dy[yi], w[wi]));
        want.finish(&e, &before, g.cin);
        let packed = PackedTransposed::new(pool.isa(), g, &w);
        for weights in [TransposedWeights::Packed(&packed), TransposedWeights::Raw(&w)] {
            let raw = matches!(weights, TransposedWeights::Raw(_));
            let mut dx = before.clone();
            let mut scratch = poisoned(conv2d_backward_input_scratch(pool, g, !raw));
            conv2d_backward_input(pool, g, weights, &dy, &mut dx, &e, &mut scratch);
            want.assert_close(&dx, &format!("dx {what}"));
        }

        let before = if accumulate { rng.vec(w.len()) } else { poisoned(w.len()) };
        let mut want = Exact::zero(w.len(), g.n * g.oh() * g.ow());
        each_mac(g, |xi, wi, yi| want.add(wi, dy[yi], x[xi]));
        want.finish(&Epilogue { accumulate, ..Epilogue::default() }, &before, g.cout);
        let mut dw = before.clone();
        let mut scratch = poisoned(conv2d_backward_weight_scratch(pool, g));
        conv2d_backward_weight(pool, g, &x, &dy, &mut dw, accumulate, &mut scratch);
        want.assert_close(&dw, &format!("dw {what}"));
    }

    #[test]
    fn gradients_of_convolutions_of_every_kind_equal_the_plain_loop() {
        for isa in Isa::available() {
            let pool = Pool::with_isa(2, isa);
            let mut seed = 0;
            for k in [1, 2, 3, 4, 7] {
                for stride in [1, 2, 3] {
                    for pad in [0, 1, k / 2, k] {
                        for (h, w, cin, cout) in [(9, 7, 3, 5), (8, 11, 17, 33), (k, k, 1, 16)] {
                            seed += 1;
                            check(&pool, &ConvGeometry::new(2, h, w, cin, k, cout, stride, pad), seed);
                        }
                    }
                }
            }
            for groups in [2, 3, 6] {
                for (kh, kw) in [(3, 3), (1, 5), (1, 1)] {
                    let pad = Padding { top: 0, left: 1, bottom: 1, right: 0 };
                    let g =
                        ConvGeometry { kh, kw, pad, groups, ..ConvGeometry::new(2, 10, 13, 12, 3, 18, 2, 0) };
                    check(&pool, &g, (groups * 100 + kw) as u64);
                }
            }
            for (k, stride) in [(3, 1), (3, 2), (5, 2), (2, 3)] {
                check(
                    &pool,
                    &ConvGeometry::depthwise(2, 9, 8, 21, k, stride, k / 2),
                    (k * 10 + stride) as u64,
                );
            }
        }
    }

    #[test]
    fn shapes_of_the_reconstruction_nets_equal_the_plain_loop() {
        let shapes = [
            // 4×4 stride 2 padding 1: the transposed convolution that doubles the size
            ConvGeometry::new(2, 16, 16, 24, 4, 40, 2, 1),
            // more pixels than a block of k, and few weights: the sum over pixels is split
            ConvGeometry::new(1, 40, 40, 3, 3, 32, 1, 1),
            ConvGeometry::new(5, 16, 16, 64, 1, 33, 1, 0),
            // more columns than a task owns
            ConvGeometry::new(1, 5, 5, 4, 3, COLUMNS + 17, 1, 1),
        ];
        for isa in Isa::available() {
            let pool = Pool::with_isa(2, isa);
            for (i, g) in shapes.iter().enumerate() {
                check(&pool, g, 3000 + i as u64);
            }
        }
    }

    #[test]
    fn the_weights_gradient_does_not_depend_on_the_number_of_threads() {
        let g = ConvGeometry::new(2, 33, 31, 7, 3, 20, 1, 1);
        let mut rng = Rng(5);
        let (x, dy) = (rng.vec(g.input_len()), rng.vec(g.output_len()));
        assert!(WeightPlan::new(Isa::detect(), &g).parts > 1, "the shape must exercise the split");
        let run = |threads: usize| {
            let pool = Pool::new(threads);
            let mut dw = poisoned(g.weight_len());
            let mut scratch = poisoned(conv2d_backward_weight_scratch(&pool, &g));
            conv2d_backward_weight(&pool, &g, &x, &dy, &mut dw, false, &mut scratch);
            dw
        };
        let one = run(1);
        assert_eq!(one, run(2));
        assert_eq!(one, run(5));
    }

    #[test]
    fn every_tap_belongs_to_one_phase() {
        for (size, kernel, stride, pad) in
            [(8, 4, 2, 1), (9, 3, 2, 1), (7, 7, 3, 0), (5, 1, 2, 0), (12, 5, 1, 2)]
        {
            let all: Vec<Phase> = phases(size, kernel, stride, pad).collect();
            assert_eq!(all.iter().map(|p| p.count).sum::<usize>(), size);
            assert_eq!(all.iter().map(|p| p.taps).sum::<usize>(), kernel);
        }
    }
}
