//! Frames as they enter a program: prepared on the CPU by `imaging::Preprocessor`, or copied to the GPU
//! as they are and prepared there with the same filter tables.

use bytemuck::cast_slice;

use super::error::RealnetError;
use crate::engine::Program;
use crate::engine::cuda::feed::Addresses;
use crate::engine::cuda::preprocess::{Geometry, Pixels, launch};
use crate::imaging::{Axis, FrameView, PixelFormat, Preprocessor, Roi, normalisation};

/// Frame geometries that are kept prepared for each picture of the input; lines of several cameras take turns.
const PREPARED: usize = 8;
/// Pictures that a program judges at once, at most.
pub const MOST: usize = 4;

/// A frame and its region of interest, or all of it.
pub type Part<'f> = (FrameView<'f>, Option<Roi>);

/// What decides how a frame is prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    format: PixelFormat,
    width: usize,
    height: usize,
    strides: [usize; 3],
    roi: Option<Roi>,
    /// The picture of the input, where it holds several.
    picture: Option<usize>,
}

#[derive(Debug)]
enum How {
    Cpu(Preprocessor),
    /// A feed of the program, and the bytes of its planes.
    Gpu {
        feed: usize,
        planes: [usize; 3],
    },
}

impl Key {
    fn of((frame, roi): &Part<'_>, picture: Option<usize>) -> Key {
        let strides = frame.planes.map(|plane| plane.stride);
        Key { format: frame.format, width: frame.width, height: frame.height, strides, roi: *roi, picture }
    }
}

/// Runs a program whose input `image` is N×side×side×3 on frames of any geometry.
#[derive(Debug, Default)]
pub struct Frames {
    prepared: Vec<(Key, How)>,
}

impl Frames {
    /// Allocates nothing once a geometry was seen.
    pub fn run(
        &mut self,
        program: &mut Program,
        side: usize,
        frame: &FrameView<'_>,
        roi: Option<Roi>,
    ) -> Result<(), RealnetError> {
        let at = self.at(program, side, frame, Key::of(&(*frame, roi), None))?;
        let (_, how) = &mut self.prepared[at];
        match (how, program) {
            (How::Gpu { feed, planes }, Program::Cuda(program)) => {
                program.run_fed(*feed, &used(frame, *planes)[..frame.format.planes()])?;
            }
            (How::Cpu(preprocessor), program) => {
                preprocessor.run(frame, program.input_mut("image")?)?;
                program.run()?;
            }
            (How::Gpu { .. }, Program::Cpu(_)) => unreachable!("feeds are made for programs on a GPU"),
        }
        Ok(())
    }

    /// Runs a program on a GPU whose input holds as many pictures as there are `frames`, at most `MOST`. Allocates
    /// nothing once their geometries were seen at their places.
    pub fn run_some(
        &mut self,
        program: &mut Program,
        side: usize,
        frames: &[Part<'_>],
    ) -> Result<(), RealnetError> {
        let mut pictures = [(0, [[].as_slice(); 3]); MOST];
        for (picture, (part, fed)) in frames.iter().zip(&mut pictures).enumerate() {
            let at = self.at(program, side, &part.0, Key::of(part, Some(picture)))?;
            if let (_, How::Gpu { feed, planes }) = &self.prepared[at] {
                *fed = (*feed, used(&part.0, *planes));
            }
        }
        match program {
            Program::Cuda(program) => Ok(program.run_with(&pictures[..frames.len().min(MOST)])?),
            Program::Cpu(_) => unreachable!("the CPU judges one picture at a time"),
        }
    }

    /// Where what a frame needs is prepared.
    fn at(
        &mut self,
        program: &mut Program,
        side: usize,
        frame: &FrameView<'_>,
        key: Key,
    ) -> Result<usize, RealnetError> {
        frame.check()?;
        match self.prepared.iter().position(|(known, _)| *known == key) {
            Some(at) => Ok(at),
            None => self.prepare(program, side, frame, key),
        }
    }

    fn prepare(
        &mut self,
        program: &mut Program,
        side: usize,
        frame: &FrameView<'_>,
        key: Key,
    ) -> Result<usize, RealnetError> {
        // Checks sizes and the region, for both.
        let preprocessor = Preprocessor::new(frame.width, frame.height, key.roi, side, side)?;
        let how = match program {
            Program::Cpu(_) => How::Cpu(preprocessor),
            Program::Cuda(program) => {
                let roi = preprocessor.roi();
                let mut planes = [0; 3];
                for (index, bytes) in planes.iter_mut().enumerate().take(frame.format.planes()) {
                    let (row, rows) = frame.format.plane_size(index, frame.width, frame.height);
                    // The last row may end without its padding.
                    *bytes = frame.planes[index].stride * (rows - 1) + row;
                }
                let rows = Axis::new(roi.height, side);
                let columns = Axis::new(roi.width, side);
                let starts = |axis: &Axis| axis.start.iter().map(|s| *s as i32).collect::<Vec<i32>>();
                let (y0, x0) = (starts(&rows), starts(&columns));
                let (a, b) = normalisation();
                let geometry = Geometry {
                    pixels: pixels(frame.format),
                    pitches: key.strides,
                    width: frame.width,
                    height: frame.height,
                    x: roi.x,
                    y: roi.y,
                    taps: [rows.taps, columns.taps],
                    out_width: side,
                    out_height: side,
                    a,
                    b,
                };
                let tables: [&[u8]; 4] = [
                    cast_slice(&y0),
                    cast_slice(&rows.weights),
                    cast_slice(&x0),
                    cast_slice(&columns.weights),
                ];
                let used = &planes[..frame.format.planes()];
                let launch = |at: &Addresses| launch(&geometry, at);
                let feed = match key.picture {
                    None => program.attach("image", used, &tables, launch)?,
                    Some(picture) => program.attach_picture("image", picture, used, &tables, launch)?,
                };
                How::Gpu { feed, planes }
            }
        };
        // Of this place: the others' may be wanted for the same run.
        let mut same =
            self.prepared.iter().enumerate().filter(|(_, (other, _))| other.picture == key.picture);
        let oldest = same.next().map(|(at, _)| at);
        if let Some(oldest) = oldest.filter(|_| same.count() + 1 >= PREPARED) {
            let (_, oldest) = self.prepared.remove(oldest);
            if let (How::Gpu { feed, .. }, Program::Cuda(program)) = (oldest, program) {
                program.detach(feed)?;
            }
        }
        self.prepared.push((key, how));
        Ok(self.prepared.len() - 1)
    }
}

/// The bytes of a frame's planes that a feed takes.
fn used<'f>(frame: &FrameView<'f>, planes: [usize; 3]) -> [&'f [u8]; 3] {
    let mut data = [[].as_slice(); 3];
    for ((data, plane), bytes) in data.iter_mut().zip(&frame.planes).zip(planes) {
        *data = &plane.data[..bytes];
    }
    data
}

fn pixels(format: PixelFormat) -> Pixels {
    match format {
        PixelFormat::Gray8 => Pixels::Gray8,
        PixelFormat::Rgb => Pixels::Rgb,
        PixelFormat::Bgr => Pixels::Bgr,
        PixelFormat::Bgrx => Pixels::Bgrx,
        PixelFormat::Nv12 => Pixels::Nv12,
        PixelFormat::I420 => Pixels::I420,
        PixelFormat::Yuy2 => Pixels::Yuy2,
        PixelFormat::Bayer(mosaic) => {
            let (x, y) = mosaic.red();
            Pixels::Bayer([x as u8, y as u8])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cuda::simulator::gpu;
    use crate::engine::philox::Stream;
    use crate::engine::{Device, Graph, Options, ParamStore, Shape, Threads, Unary};
    use crate::imaging::Plane;

    const SIDE: usize = 32;

    fn program(device: &Device) -> Program {
        let mut g = Graph::new();
        let image = g.input("image", Shape::new(1, SIDE, SIDE, 3));
        let same = g.unary(Unary::Affine { factor: 1.0, offset: 0.0 }, image).unwrap();
        Program::compile(&g, &[("y", same)], &ParamStore::new(), device, Options::default()).unwrap()
    }

    #[test]
    fn a_frame_of_any_format_size_and_region_enters_a_gpu_as_it_enters_the_cpu() {
        let mut on_cpu = program(&Device::from(Threads::new(1)));
        let mut on_gpu = program(&Device::on(gpu()));
        let (mut cpu, mut gpu) = (Frames::default(), Frames::default());
        let part = Some(Roi { x: 3, y: 5, width: 41, height: 30 });
        // Smaller than the input, larger, and more geometries than are kept.
        for (width, height, roi) in
            [(17, 9, None), (65, 50, part), (130, 77, None), (1, 3, None), (3, 1, None)]
        {
            for format in PixelFormat::ALL {
                let mut random = Stream::new(width as u64, 0, 0, 5).rng();
                let sizes = [0, 1, 2].map(|plane| format.plane_size(plane, width, height));
                // Rows with padding behind them.
                let data = sizes.map(|(row, rows)| -> Vec<u8> {
                    (0..(row + 5) * rows).map(|_| random.range(0.0, 256.0) as u8).collect()
                });
                let mut planes = [Plane::default(); 3];
                for (plane, (data, (row, _))) in planes.iter_mut().zip(data.iter().zip(sizes)) {
                    *plane = Plane { data, stride: row + 5 };
                }
                let frame = FrameView { format, width, height, planes };
                cpu.run(&mut on_cpu, SIDE, &frame, roi).unwrap();
                gpu.run(&mut on_gpu, SIDE, &frame, roi).unwrap();
                let (want, got) = (on_cpu.output("y").unwrap(), on_gpu.output("y").unwrap());
                for (w, g) in want.iter().zip(got) {
                    // |out| < 2.7: fp16 rounds to half of 2⁻⁹; the order of sums is far below.
                    assert!((w - g).abs() <= 1.01 / 1024.0, "{format:?} {width}×{height}: {w} {g}");
                }
            }
        }
    }
}
