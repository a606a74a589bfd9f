use super::*;
use crate::engine::cuda::simulator::gpu;
use crate::engine::cuda::{Priority, Program};
use crate::engine::{Graph, Options, ParamStore, Tensor};

const LIMITS: Limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 163 << 10 };

fn shapes() -> Vec<(Norm, Shape)> {
    let mut all = vec![];
    for (n, h, w) in [(1, 1, 1), (2, 5, 7), (1, 64, 64), (16, 32, 32), (4, 256, 256)] {
        for c in [1, 2, 3, 5, 8, 24, 40, 64, 96, 320, 1000, 2048, 4104] {
            let x = Shape::new(n, h, w, c);
            let groups = (1..=c).filter(|g| c.is_multiple_of(*g)).map(Norm::Group);
            all.extend([Norm::Batch, Norm::Layer].into_iter().chain(groups).map(|norm| (norm, x)));
        }
    }
    all
}

#[test]
fn tiles_are_whole_groups_that_start_at_whole_vectors_and_fit_a_block() {
    for (norm, x) in shapes() {
        for channels in [SECTOR, LINE] {
            for view in [View::new(norm, x), View::new(norm, x).per_channel()] {
                let view = view.pick_tile(channels);
                assert!(view.tile <= MAX_GROUPS, "{norm:?} {x}: {view:?}");
                assert!((view.tile * view.width()).is_multiple_of(view.vector()), "{norm:?} {x}: {view:?}");
                // The kernels let a thread leave its vector only in a tile of one group.
                assert!(view.tile == 1 || view.tile_vectors() <= BLOCK, "{norm:?} {x}: {view:?}");
            }
        }
    }
}

#[test]
fn chunks_cover_all_rows_and_none_is_empty() {
    for (norm, x) in shapes() {
        let view = View::new(norm, x);
        for view in [view.pick_tile(LINE).pick_chunks(&LIMITS), view.by_rows(norm).elementwise(&LIMITS)] {
            assert!(view.chunks * view.chunk_rows >= view.rows, "{norm:?} {x}: {view:?}");
            assert!((view.chunks - 1) * view.chunk_rows < view.rows, "{norm:?} {x}: {view:?}");
        }
    }
}

#[test]
fn a_reduction_of_one_large_picture_gives_every_multiprocessor_work() {
    let view = View::new(Norm::Group(32), Shape::new(1, 256, 256, 128));
    let view = view.pick_tile(LINE).pick_chunks(&LIMITS);
    assert!(view.outer * view.chunks * view.tiles() >= LIMITS.multiprocessors as usize, "{view:?}");
}

#[test]
fn small_pictures_are_normalised_in_one_launch_and_large_single_ones_are_not() {
    let fused = |x: Shape| {
        let norm = Norm::Group(32);
        let typed = |shape, storage| Typed { shape, storage };
        let m = typed(norm.moments_shape(x), Storage::F32);
        let x = typed(x, Storage::F16);
        let moments = Task { op: &Op::Moments { norm }, inputs: &[x], out: m, limits: LIMITS };
        let op = Op::Normalize { norm, eps: 1e-5, affine: false, act: Act::Silu };
        lower_fused(&moments, &Task { op: &op, inputs: &[x, m], out: x, limits: LIMITS })
    };
    let launch = &fused(Shape::new(4, 32, 32, 256)).unwrap().launches[0];
    assert_eq!((launch.kernel, launch.grid), ("group_norm_fused_v8", [4, 16, 1]));
    assert_eq!(launch.shared, 32 * 32 * 16 * 2);
    assert_eq!(fused(Shape::new(1, 256, 256, 128)), None);
}

/// fp32 numbers around 100 with deviation 0.1, whose E[x²] − E[x]² would be off by tens of percents: the
/// squares are 10⁴ and rounded by up to 5e-4, the variance is 1e-2.
#[test]
fn the_variance_survives_a_mean_a_thousand_times_the_deviation() {
    for (norm, x) in [
        (Norm::Batch, Shape::new(2, 33, 31, 5)),
        (Norm::Batch, Shape::new(1, 90, 90, 24)),
        (Norm::Group(4), Shape::new(2, 30, 30, 64)),
        (Norm::Group(4), Shape::new(2, 10, 10, 24)),
        (Norm::Layer, Shape::new(1, 3, 5, 768)),
        (Norm::Layer, Shape::new(1, 3, 5, 99)),
    ] {
        let mut state = 1u32;
        let data: Vec<f32> = (0..x.len())
            .map(|_| {
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                100.0 + 0.2 * 1.732 * ((state >> 8) as f32 / (1 << 24) as f32 - 0.5)
            })
            .collect();
        let mut want = vec![0.0; norm.moments_shape(x).len()];
        crate::engine::cpu::reference::norm::moments(norm, (x, &data), &mut want);
        let mut g = Graph::new();
        let p = g.param("x", x).unwrap();
        let m = g.moments(norm, p).unwrap();
        let mut params = ParamStore::new();
        params.insert("x", Tensor::new(x, data));
        let options = Options::default();
        let mut program =
            Program::compile(&g, &[("m", m)], &params, &gpu(), Priority::High, options).unwrap();
        program.run().unwrap();
        for (i, (got, want)) in program.output("m").unwrap().iter().zip(&want).enumerate() {
            // The mean: some ten roundings of 2⁻²⁴ each. The variance: distances of up to 0.35 from
            // the first value, rounded at 100 not at all, their squares at most 12 variances: 2⁻²⁴·12·10,
            // twice that where the square of the mean distance is taken off.
            assert!((got - want).abs() <= 1.5e-5 * want.abs(), "{norm:?} {x}: [{i}] {got}, not {want}");
        }
    }
}
