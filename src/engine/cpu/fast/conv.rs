//! Convolution, NHWC: forward.
//!
//! ```text
//! PackedConv::new(isa, &geometry, weights)                      constant weights, once
//! pub fn conv2d(pool, &geometry, weights: ConvWeights, x, y, &Epilogue, scratch)
//! pub fn conv2d_scratch(pool, &geometry, packed: bool) -> usize   floats
//! ```
//! `ConvWeights::Raw` serves weights that change from call to call (training): they are packed into
//! scratch, which costs about 1/(n·oh·ow) of the convolution times a small factor.

use super::buffer::{Shared, aligned};
use super::depthwise::depthwise;
use super::epilogue::Epilogue;
use super::gemm::{Mat, PackedB};
use super::geometry::{Algo, ConvGeometry, pick_algo};
use super::kernel::Layout;
use super::pack::{Panels, Patches, Source};
use super::product::{LANE_SCRATCH, Product, Rows, lane_scratch, run_products};
use super::simd::Isa;
use super::threads::Pool;

/// Weights in the order in which the chosen algorithm reads them.
#[derive(Debug, Clone)]
pub struct PackedConv {
    geometry: ConvGeometry,
    isa: Isa,
    weights: Packed,
}

#[derive(Debug, Clone)]
enum Packed {
    /// One matrix for each group.
    Gemm(Vec<PackedB>),
    /// As given: `[kh, kw, 1, c]` already has channels innermost.
    Depthwise(Vec<f32>),
}

/// The weights of a call.
#[derive(Debug, Clone, Copy)]
pub enum ConvWeights<'a> {
    Packed(&'a PackedConv),
    /// `[kh, kw, cin/groups, cout]`
    Raw(&'a [f32]),
}

impl PackedConv {
    /// Packs `[kh, kw, cin/groups, cout]`. Valid for any batch size and image size.
    ///
    /// # Panics
    /// If `weights` has another length than the geometry says.
    pub fn new(isa: Isa, g: &ConvGeometry, weights: &[f32]) -> Self {
        g.check();
        assert_eq!(weights.len(), g.weight_len(), "weights of {g:?}");
        let weights = match pick_algo(g) {
            Algo::Depthwise => Packed::Depthwise(weights.to_vec()),
            Algo::Pointwise | Algo::Implicit => {
                let (k, n) = (g.kh * g.kw * g.cin / g.groups, g.cout / g.groups);
                let group = |i: usize| PackedB::new(isa, k, n, Mat::new(&weights[i * n..], g.cout));
                Packed::Gemm((0..g.groups).map(group).collect())
            }
        };
        Self { geometry: *g, isa, weights }
    }

    fn check(&self, isa: Isa, g: &ConvGeometry) {
        let p = &self.geometry;
        let same = (p.kh, p.kw, p.cin, p.cout, p.groups) == (g.kh, g.kw, g.cin, g.cout, g.groups);
        assert!(self.isa == isa && same && pick_algo(p) == pick_algo(g), "packed for {p:?}, used for {g:?}");
    }
}

/// Floats of scratch that [`conv2d`] needs.
pub fn conv2d_scratch(pool: &Pool, g: &ConvGeometry, packed: bool) -> usize {
    match pick_algo(g) {
        Algo::Depthwise => 0,
        Algo::Pointwise | Algo::Implicit if packed => lane_scratch(pool),
        Algo::Pointwise | Algo::Implicit => lane_scratch(pool) + g.groups * group_panels(pool.isa(), g).len(),
    }
}

fn group_panels(isa: Isa, g: &ConvGeometry) -> Panels {
    Panels::new(isa, g.kh * g.kw * g.cin / g.groups, g.cout / g.groups)
}

/// `y = epilogue(conv(x, weights))`; bias per output channel, residual of y's shape.
/// `scratch`: [`conv2d_scratch`] floats, contents irrelevant.
///
/// # Panics
/// If a slice's length isn't what the geometry says, or the weights were packed for another one.
pub fn conv2d(
    pool: &Pool,
    g: &ConvGeometry,
    weights: ConvWeights,
    x: &[f32],
    y: &mut [f32],
    epilogue: &Epilogue,
    scratch: &mut [f32],
) {
    g.check();
    assert_eq!(x.len(), g.input_len(), "x of {g:?}");
    assert_eq!(y.len(), g.output_len(), "y of {g:?}");
    epilogue.check(g.cout, y.len());
    match weights {
        ConvWeights::Packed(packed) => packed.check(pool.isa(), g),
        ConvWeights::Raw(raw) => assert_eq!(raw.len(), g.weight_len(), "weights of {g:?}"),
    }
    if y.is_empty() {
        return;
    }
    match (pick_algo(g), weights) {
        (Algo::Depthwise, ConvWeights::Raw(w)) => depthwise(pool, g, w, x, y, epilogue),
        (Algo::Depthwise, ConvWeights::Packed(PackedConv { weights: Packed::Depthwise(w), .. })) => {
            depthwise(pool, g, w, x, y, epilogue);
        }
        (_, weights) => as_product(pool, g, weights, x, y, epilogue, scratch),
    }
}

fn as_product(
    pool: &Pool,
    g: &ConvGeometry,
    weights: ConvWeights,
    x: &[f32],
    y: &mut [f32],
    epilogue: &Epilogue,
    scratch: &mut [f32],
) {
    let panels = group_panels(pool.isa(), g);
    let (lanes, rest) = aligned(scratch).split_at_mut(pool.threads() * LANE_SCRATCH);
    if let ConvWeights::Raw(raw) = weights {
        assert!(rest.len() >= g.groups * panels.len(), "scratch is too small for {g:?}");
        let out = Shared::new(rest);
        let count = panels.count();
        pool.run(g.groups * count, &|task| {
            let (group, panel) = (task / count, task % count);
            // SAFETY: every task has its own group and panel of `rest`.
            unsafe {
                let dst = out.ptr().add(group * panels.len());
                panels.fill(panel, 0, panels.k, &raw[group * panels.n..], g.cout, false, dst);
            }
        });
    }
    let y_base = Shared::new(y);
    let bias = Shared::from_const(epilogue.bias);
    let residual = Shared::from_const(epilogue.residual);
    for group in 0..g.groups {
        let b = match weights {
            ConvWeights::Packed(PackedConv { weights: Packed::Gemm(b), .. }) => b[group].data.as_ptr(),
            _ => rest[group * panels.len()..].as_ptr(),
        };
        let first = group * panels.n;
        let a = if pick_algo(g) == Algo::Pointwise {
            Source::Matrix { data: x, stride: g.cin }
        } else {
            Source::Patches(patches(g, x, group))
        };
        let product = Product {
            isa: pool.isa(),
            m: g.n * g.oh() * g.ow(),
            a,
            layout: Layout::Rows,
            panels,
            b,
            b_first: 0,
            c: y_base.ptr().wrapping_add(first),
            rows: Rows::linear(g.cout),
            bias: bias.offset(first),
            residual: residual.offset(first),
            accumulate: epilogue.accumulate,
            act: epilogue.act,
        };
        // SAFETY: lengths were checked against the geometry; y is borrowed exclusively, and a group
        // writes only its own channels.
        unsafe { run_products(pool, &[product], Shared::new(lanes)) };
    }
}

/// The patches that group `group` of a convolution sees.
pub(super) fn patches<'a>(g: &ConvGeometry, x: &'a [f32], group: usize) -> Patches<'a> {
    let channels = g.cin / g.groups;
    Patches {
        x,
        h: g.h,
        w: g.w,
        pixel: g.cin,
        first: group * channels,
        channels,
        kh: g.kh,
        kw: g.kw,
        stride: g.stride,
        top: g.pad.top as isize,
        left: g.pad.left as isize,
        out_h: g.oh(),
        out_w: g.ow(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::epilogue::Act;
    use super::super::geometry::Padding;
    use super::super::naive::{Exact, Rng, each_mac, poisoned};
    use super::*;

    fn check(pool: &Pool, g: &ConvGeometry, seed: u64) {
        let mut rng = Rng(seed);
        let (x, w) = (rng.vec(g.input_len()), rng.vec(g.weight_len()));
        let (bias, residual) = (rng.vec(g.cout), rng.vec(g.output_len()));
        let options = rng.next();
        let accumulate = options & 1 > 0;
        let e = Epilogue {
            bias: (options & 2 > 0).then_some(&bias[..]),
            residual: (options & 4 > 0).then_some(&residual[..]),
            accumulate,
            act: [Act::None, Act::Relu, Act::Relu6, Act::LeakyRelu(0.2), Act::Silu]
                [(options >> 3) as usize % 5],
        };
        let before = if accumulate { rng.vec(g.output_len()) } else { poisoned(g.output_len()) };
        let mut want = Exact::zero(g.output_len(), g.kh * g.kw * g.cin / g.groups);
        each_mac(g, |xi, wi, yi| want.add(yi, x[xi], w[wi]));
        want.finish(&e, &before, g.cout);
        let packed = PackedConv::new(pool.isa(), g, &w);
        for weights in [ConvWeights::Packed(&packed), ConvWeights::Raw(&w)] {
            let mut y = before.clone();
            let mut scratch = poisoned(conv2d_scratch(pool, g, matches!(weights, ConvWeights::Packed(_))));
            conv2d(pool, g, weights, &x, &mut y, &e, &mut scratch);
            want.assert_close(&y, &format!("{:?} seed {seed} {g:?} {e:?}", pool.isa()));
        }
    }

    #[test]
    fn convolutions_of_every_kind_equal_the_plain_loop() {
        for isa in Isa::available() {
            let pool = Pool::with_isa(2, isa);
            let mut seed = 0;
            for k in [1, 2, 3, 4, 5, 7] {
                for stride in [1, 2, 3] {
                    for pad in [0, 1, k / 2, k] {
                        for (h, w, cin, cout) in [(9, 7, 3, 5), (8, 11, 17, 33), (k, k, 1, 16)] {
                            seed += 1;
                            check(&pool, &ConvGeometry::new(2, h, w, cin, k, cout, stride, pad), seed);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn one_sided_padding_and_oblong_kernels_and_groups_equal_the_plain_loop() {
        let base = ConvGeometry::new(2, 10, 13, 12, 3, 18, 2, 0);
        let tensorflow = Padding { top: 0, left: 0, bottom: 1, right: 1 };
        for isa in Isa::available() {
            let pool = Pool::with_isa(2, isa);
            for (i, groups) in [1, 2, 3, 6].into_iter().enumerate() {
                for (j, (kh, kw)) in [(3, 3), (1, 5), (4, 2), (1, 1)].into_iter().enumerate() {
                    for (l, pad) in [Padding::all(0), Padding::all(1), tensorflow].into_iter().enumerate() {
                        let g = ConvGeometry { kh, kw, pad, groups, ..base };
                        check(&pool, &g, (i * 100 + j * 10 + l) as u64);
                    }
                }
            }
        }
    }

    #[test]
    fn depthwise_convolutions_equal_the_plain_loop() {
        for isa in Isa::available() {
            let pool = Pool::with_isa(2, isa);
            let lanes = isa.lanes();
            let mut seed = 1000;
            for k in [3, 5, 2] {
                for stride in [1, 2] {
                    for pad in [0, k / 2] {
                        for c in [2, lanes - 1, lanes, lanes + 1, 3 * lanes] {
                            for (h, w) in [(k, k), (7, 12), (9, 5)] {
                                if h < k || w < k {
                                    continue;
                                }
                                seed += 1;
                                check(&pool, &ConvGeometry::depthwise(2, h, w, c, k, stride, pad), seed);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn shapes_of_the_real_networks_equal_the_plain_loop() {
        let tensorflow = Padding { top: 0, left: 0, bottom: 1, right: 1 };
        let shapes = [
            // WideResNet50-2, the 256² input's lines shortened
            ConvGeometry::new(1, 6, 128, 3, 7, 64, 2, 3),
            ConvGeometry::new(1, 4, 64, 64, 1, 256, 1, 0),
            ConvGeometry::new(1, 8, 8, 256, 3, 64, 1, 1),
            ConvGeometry::new(1, 8, 8, 128, 1, 96, 2, 0),
            // EfficientNet-Lite0
            ConvGeometry { pad: tensorflow, ..ConvGeometry::new(1, 8, 64, 3, 3, 32, 2, 0) },
            ConvGeometry::new(1, 8, 8, 672, 1, 112, 1, 0),
            ConvGeometry { pad: tensorflow, ..ConvGeometry::depthwise(1, 16, 32, 96, 3, 2, 0) },
            ConvGeometry::depthwise(1, 8, 8, 1152, 5, 1, 2),
        ];
        for isa in Isa::available() {
            let pool = Pool::with_isa(2, isa);
            for (i, g) in shapes.iter().enumerate() {
                check(&pool, g, 2000 + i as u64);
            }
        }
    }
}
