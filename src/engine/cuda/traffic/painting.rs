//! What painting moves. Its host decides between launches, so that each kernel is a row of its own.

use super::{Bound, Row, TrafficError, counted};
use crate::engine::cuda::augment::{Base, Step};
use crate::engine::cuda::painter::{Paint, Painter};
use crate::engine::cuda::perlin::{Figure, Outline};
use crate::engine::cuda::{Gpu, Priority, Program};
use crate::engine::{Graph, Options, ParamStore, ProgramError, Shape, Unary};

const SIDE: usize = 128;
const BATCH: usize = 2;
const PIXELS: u64 = (SIDE * SIDE * BATCH) as u64;

pub(super) struct Wanted {
    pub name: &'static str,
    kernel: &'static str,
    pub bound: Bound,
    /// Bytes of each pixel that its launches read and write.
    bytes: u64,
    launches: usize,
}

const fn row(name: &'static str, kernel: &'static str, bytes: u64) -> Wanted {
    Wanted { name, kernel, bound: Bound::STREAM, bytes, launches: 1 }
}

const fn looser(wanted: Wanted, ratio: f64, sectors: f64, why: &'static str) -> Wanted {
    Wanted { bound: Bound::STREAM.looser(ratio, sectors, why), ..wanted }
}

pub(super) const WANTED: [Wanted; 9] = [
    looser(
        row("outline of noise", "outline", 1),
        6.0,
        0.1,
        "a byte is written; plan and gradients are asked for by every warp, a few bytes each, and lie in the cache",
    ),
    row("soft edge, radius 3", "soften", 5),
    row("paint, a picture rolled", "base", 15),
    looser(
        row("extremes of three channels", "levels", 12),
        1.15,
        0.3,
        "a block a channel, every third number: twice in ten augmentations, of pictures that lie in L2",
    ),
    looser(
        row("box mean along rows", "rows", 24),
        1.15,
        0.28,
        "a running sum goes along a row: lanes are a row apart; the CPU's rounding wants it so",
    ),
    row("box mean along columns", "columns", 24),
    // Brightness and contrast read and write the paint; sharpness reads the box mean as well.
    Wanted { launches: 3, ..row("brightness, sharpness, contrast", "step", 24 + 36 + 24) },
    row("how much paint changes", "change", 19),
    row("blend into an input", "blend", 25),
];

fn paint(painter: &mut Painter) -> Result<(), ProgramError> {
    let (side, lattice) = (SIDE as f32, [[1.0, 0.0]; 25]);
    let noise = Outline::Noise { lattice: &lattice, cells: [4, 4], sin: 0.0, cos: 1.0 };
    painter.outline(&[Some(noise); BATCH])?;
    // Everywhere, so that nothing is left out under the mask.
    let frame = [0, SIDE as i32, 0, SIDE as i32];
    let all = [Figure::ellipse([side / 2.0; 2], [side * 2.0; 2], 0.0, 1.0, frame)];
    painter.outline(&[Some(Outline::Ellipses(&all)); BATCH])?;
    painter.soften(&[3; BATCH])?;
    let picture: Vec<u8> = (0..SIDE * SIDE * 3).map(|i| (i * 31 % 251) as u8).collect();
    painter.set_pictures([picture.as_slice(); BATCH].into_iter())?;
    let base = Base::Rolled { source: &picture, shift: [32, 5], mirror: [false; 2] };
    let steps = vec![Step::Brightness { factor: 0.9, offset: 0.1 }, Step::Sharpness(0.5), Step::Contrast];
    let paint = Some(Paint { base, steps, grey: false, opacity: 0.7 });
    painter.paint(&[paint.clone(), paint])?;
    Ok(())
}

pub(super) fn measure(gpu: &Gpu) -> Result<Vec<Row>, TrafficError> {
    let failed = |error: ProgramError| TrafficError::Program { case: "painting", error };
    let clouds = [vec![0.5; SIDE * SIDE]];
    let mut painter = Painter::new(gpu, Priority::Low, SIDE, BATCH, &clouds).map_err(failed)?;
    let stream = painter.stream_number();
    let (done, mut runs) = counted(gpu, stream, || paint(&mut painter)).ok_or(TrafficError::NotCounted)?;
    done.map_err(failed)?;

    let mut graph = Graph::new();
    let image = graph.input("image", Shape::new(BATCH, SIDE, SIDE, 3));
    let y = graph.unary(Unary::Silu, image)?;
    let (params, options) = (ParamStore::new(), Options::default());
    let mut program =
        Program::compile(&graph, &[("y", y)], &params, gpu, Priority::Low, options).map_err(failed)?;
    let feed = program.attach_painter("image", &painter, [0.5; 3], [0.25; 3]).map_err(failed)?;
    let stream = program.stream_number();
    let (done, more) = counted(gpu, stream, || program.run_fed(feed, &[])).ok_or(TrafficError::NotCounted)?;
    done.map_err(failed)?;
    runs.extend(more);

    let measured = |wanted: &Wanted| {
        let mut row = Row::new(wanted.name, wanted.bound);
        row.paper_bytes = wanted.bytes * PIXELS;
        row.minimum_bytes = row.paper_bytes;
        // The first of the outlines is the noise.
        runs.iter()
            .filter(|run| run.kernel == wanted.kernel)
            .take(wanted.launches)
            .for_each(|run| row.add(run));
        match row.kernels.len() == wanted.launches {
            true => Ok(row),
            false => Err(TrafficError::Lost {
                case: wanted.name,
                counted: row.kernels.len(),
                planned: wanted.launches,
            }),
        }
    };
    WANTED.iter().map(measured).collect()
}
