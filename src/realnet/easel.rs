//! Where training pictures are painted, a batch at a time: on the CPU, which is the specification, or on
//! the GPU that the program runs on, which gives the same numbers to the last bit.

use super::augment::{Step, Warp};
use super::error::RealnetError;
use super::masks::{Frame, Segment, Shapes};
use super::picture::{MEAN, Mask, Picture, STD, Stored};
use super::sources::{Base, Paint, Sources};
use crate::engine::cuda::augment as device;
use crate::engine::cuda::blend::UNIT;
use crate::engine::cuda::painter::{self, Change, Painter};
use crate::engine::cuda::perlin::{Figure, Outline};
use crate::engine::{Device, Program};

/// A picture in the making.
#[derive(Debug)]
pub struct Canvas {
    original: Picture,
    picture: Picture,
    /// Opacity per pixel before δ; above one half counts as anomalous.
    mask: Mask,
}

#[derive(Debug)]
pub enum Easel {
    Cpu {
        size: usize,
        canvases: Vec<Canvas>,
    },
    /// `feed`: how the program is told to take its input from the painter.
    Gpu {
        painter: Box<Painter>,
        feed: usize,
    },
}

impl Easel {
    /// For the pictures that `program`, compiled for `device`, takes as its input `image`, `batch` of
    /// `size`×`size` pixels.
    pub fn new(
        device: &Device,
        program: &mut Program,
        size: usize,
        batch: usize,
        sources: &Sources,
    ) -> Result<Self, RealnetError> {
        match (device.gpu(), program) {
            (Some(gpu), Program::Cuda(program)) => {
                let painter = Painter::new(gpu, device.priority(), size, batch, sources.clouds())?;
                let feed = program.attach_painter("image", &painter, MEAN, STD)?;
                Ok(Easel::Gpu { painter: Box::new(painter), feed })
            }
            _ => Ok(Self::on_cpu(size, batch)),
        }
    }

    pub fn on_cpu(size: usize, batch: usize) -> Self {
        let blank = || Picture::flat(size, [0.0; 3]);
        let canvas = |_| Canvas { original: blank(), picture: blank(), mask: Mask::empty(size) };
        Easel::Cpu { size, canvases: (0..batch).map(canvas).collect() }
    }

    pub fn size(&self) -> usize {
        match self {
            Easel::Cpu { size, .. } => *size,
            Easel::Gpu { painter, .. } => painter.size(),
        }
    }

    /// Draws outlines where there are shapes; of each, the pixels inside.
    pub fn outline(&mut self, shapes: &[Option<Shapes>]) -> Result<Vec<Option<usize>>, RealnetError> {
        match self {
            Easel::Cpu { canvases, .. } => {
                let fill = |(canvas, shapes): (&mut Canvas, &Option<Shapes>)| {
                    shapes.as_ref().map(|shapes| {
                        shapes.fill(&mut canvas.mask);
                        canvas.mask.area()
                    })
                };
                Ok(canvases.iter_mut().zip(shapes).map(fill).collect())
            }
            Easel::Gpu { painter, .. } => {
                let figures: Vec<Vec<Figure>> =
                    shapes.iter().map(|s| s.as_ref().map(figures).unwrap_or_default()).collect();
                let outlines: Vec<Option<Outline>> =
                    shapes.iter().zip(&figures).map(|(s, f)| s.as_ref().map(|s| outline(s, f))).collect();
                Ok(painter.outline(&outlines)?)
            }
        }
    }

    /// Blurs the outlines' edges; radius 0 leaves them hard.
    pub fn soften(&mut self, radii: &[usize]) -> Result<(), RealnetError> {
        match self {
            Easel::Cpu { canvases, .. } => {
                for (canvas, radius) in canvases.iter_mut().zip(radii).filter(|(_, r)| **r > 0) {
                    canvas.mask.blur(*radius);
                }
            }
            Easel::Gpu { painter, .. } => {
                let radii: Vec<u32> = radii.iter().map(|r| *r as u32).collect();
                painter.soften(&radii)?;
            }
        }
        Ok(())
    }

    /// What is painted on.
    pub fn set_pictures(&mut self, pictures: &[&Stored]) -> Result<(), RealnetError> {
        match self {
            Easel::Cpu { canvases, .. } => {
                for (canvas, picture) in canvases.iter_mut().zip(pictures) {
                    picture.picture_into(&mut canvas.original);
                    canvas.picture.clone_from(&canvas.original);
                }
            }
            Easel::Gpu { painter, .. } => painter.set_pictures(pictures.iter().map(|p| &p.data[..]))?,
        }
        Ok(())
    }

    /// Paints, with an opacity, instead of what was painted before; of each, what changes.
    pub fn paint(&mut self, paints: &[Option<(Paint, f32)>]) -> Result<Vec<Option<Change>>, RealnetError> {
        match self {
            Easel::Cpu { canvases, .. } => {
                let one = |(canvas, paint): (&mut Canvas, &Option<(Paint, f32)>)| {
                    paint.as_ref().map(|(paint, opacity)| canvas.paint(paint, *opacity))
                };
                Ok(canvases.iter_mut().zip(paints).map(one).collect())
            }
            Easel::Gpu { painter, .. } => {
                let paints: Vec<_> = paints.iter().map(|p| p.as_ref().map(|(p, o)| paint(p, *o))).collect();
                Ok(painter.paint(&paints)?)
            }
        }
    }

    /// Opacity of every picture's paint.
    pub fn masks(&mut self) -> Result<Vec<Mask>, RealnetError> {
        match self {
            Easel::Cpu { canvases, .. } => Ok(canvases.iter().map(|c| c.mask.clone()).collect()),
            Easel::Gpu { painter, .. } => {
                let size = painter.size();
                let planes = painter.masks()?.chunks_exact((size * size).max(1));
                Ok(planes.map(|plane| Mask { size, data: plane.to_vec() }).collect())
            }
        }
    }

    #[cfg(test)]
    pub fn pictures(&self) -> Vec<Picture> {
        match self {
            Easel::Cpu { canvases, .. } => canvases.iter().map(|c| c.picture.clone()).collect(),
            Easel::Gpu { .. } => panic!("pictures stay on the GPU"),
        }
    }

    /// Runs the easel's program on what was painted.
    pub fn run(&mut self, program: &mut Program) -> Result<(), RealnetError> {
        match (self, program) {
            (Easel::Gpu { feed, .. }, Program::Cuda(program)) => program.run_fed(*feed, &[])?,
            (Easel::Cpu { canvases, size }, program) => {
                let image = program.input_mut("image")?;
                for (canvas, out) in canvases.iter().zip(image.chunks_exact_mut(*size * *size * 3)) {
                    canvas.picture.normalised_into(out);
                }
                program.run()?;
            }
            (Easel::Gpu { .. }, Program::Cpu(_)) => unreachable!("painters are made for programs on a GPU"),
        }
        Ok(())
    }
}

impl Canvas {
    fn paint(&mut self, paint: &Paint, opacity: f32) -> Change {
        let paint = paint.picture(self.picture.size);
        let mut change = Change::default();
        let pixels = self.picture.pixels_mut().zip(self.original.pixels()).zip(paint.pixels());
        for (((to, from), p), m) in pixels.zip(&self.mask.data).filter(|(_, m)| **m > 0.0) {
            let alpha = opacity * m;
            for c in 0..3 {
                let difference = alpha * (p[c] - from[c]);
                to[c] = from[c] + difference;
                change.changed += (difference.abs() * UNIT) as u64;
            }
            change.weight += 3 * (m * UNIT) as u64;
        }
        change
    }
}

fn figures(shapes: &Shapes) -> Vec<Figure> {
    let frame = |frame: Frame| frame.map(|at| at as i32);
    match shapes {
        Shapes::Noise(_) => vec![],
        Shapes::Strokes(segments) => {
            let one = |s: &Segment| Figure::segment(s.a, s.v, s.norm, s.square, frame(s.frame));
            segments.iter().map(one).collect()
        }
        Shapes::Ellipses(ellipses) => {
            ellipses.iter().map(|e| Figure::ellipse(e.centre, e.axes, e.sin, e.cos, frame(e.frame))).collect()
        }
    }
}

fn outline<'a>(shapes: &'a Shapes, figures: &'a [Figure]) -> Outline<'a> {
    match shapes {
        Shapes::Noise(n) => Outline::Noise { lattice: &n.lattice, cells: n.cells, sin: n.sin, cos: n.cos },
        Shapes::Strokes(_) => Outline::Strokes(figures),
        Shapes::Ellipses(_) => Outline::Ellipses(figures),
    }
}

fn warp(w: &Warp) -> device::Warp {
    device::Warp { sin: w.sin, cos: w.cos, shift: w.shift }
}

fn paint<'a>(paint: &'a Paint<'a>, opacity: f32) -> painter::Paint<'a> {
    let base = match &paint.base {
        Base::Rolled(source, roll) => {
            device::Base::Rolled { source: &source.data, shift: roll.shift, mirror: roll.mirror }
        }
        Base::Warped(source, by) => device::Base::Warped { source: &source.data, warp: warp(by) },
        Base::Flat(colour) => device::Base::Flat(*colour),
        Base::Toned(source, tables) => device::Base::Toned { source: &source.data, tables },
        Base::Cloud { index, offset, colours, .. } => {
            device::Base::Cloud { plane: *index, offset: *offset, colours: *colours }
        }
    };
    let steps = paint.steps.iter().map(step).collect();
    painter::Paint { base, steps, grey: paint.grey, opacity }
}

fn step(step: &Step) -> device::Step<'_> {
    match step {
        Step::Tables(tables) => device::Step::Tables(tables),
        Step::Brightness { factor, offset } => device::Step::Brightness { factor: *factor, offset: *offset },
        Step::Sharpness(amount) => device::Step::Sharpness(*amount),
        Step::Colour { hue, saturation } => device::Step::Colour { hue: *hue, saturation: *saturation },
        Step::Solarise(threshold) => device::Step::Solarise(*threshold),
        Step::Posterise(levels) => device::Step::Posterise(*levels),
        Step::Invert => device::Step::Invert,
        Step::Contrast => device::Step::Contrast,
        Step::Equalise => device::Step::Equalise,
        Step::Rotate(by) => device::Step::Rotate(warp(by)),
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::augment::{Augmentation, Roll};
    use super::super::blend::{BlendSpec, blend};
    use super::super::draw::{Draw, Purpose, stream};
    use super::super::masks::{Ellipse, Kind, ShapeMix};
    use super::super::sources::SourceMix;
    use super::*;
    use crate::engine::cuda::simulator::gpu;
    use crate::engine::{Graph, Options, ParamStore, Shape, Threads, Unary};

    fn draw(image: u32) -> Draw {
        stream(31, 0, image, Purpose::Blend)
    }

    fn normals(count: u32, size: usize, grey: bool) -> Vec<Stored> {
        let one = |i| {
            let mut draw = stream(1, 7, i, Purpose::Textures);
            let mut p = Picture::flat(size, [0.0; 3]);
            for v in p.pixels_mut() {
                *v = [0; 3].map(|_| 0.5 + 0.2 * draw.normal());
                if grey {
                    *v = [v[0]; 3];
                }
            }
            Stored::from_picture(&p)
        };
        (0..count).map(one).collect()
    }

    /// A program that hands back what it is given, and an easel in front of it.
    struct Studio {
        program: Program,
        easel: Easel,
    }

    impl Studio {
        fn new(device: &Device, size: usize, batch: usize, sources: &Sources) -> Self {
            let mut g = Graph::new();
            let image = g.input("image", Shape::new(batch, size, size, 3));
            let same = g.unary(Unary::Affine { factor: 1.0, offset: 0.0 }, image).unwrap();
            let (params, options) = (ParamStore::new(), Options::default());
            let mut program = Program::compile(&g, &[("y", same)], &params, device, options).unwrap();
            let easel = Easel::new(device, &mut program, size, batch, sources).unwrap();
            Studio { program, easel }
        }

        fn both(size: usize, batch: usize, sources: &Sources) -> [Self; 2] {
            [Device::from(Threads::new(1)), Device::on(gpu())].map(|d| Studio::new(&d, size, batch, sources))
        }

        fn seen(&mut self) -> Vec<f32> {
            self.easel.run(&mut self.program).unwrap();
            self.program.output("y").unwrap().to_vec()
        }
    }

    /// The GPU's network reads fp16, and nothing else may differ.
    fn assert_same(what: &str, [cpu, gpu]: &mut [Studio; 2]) {
        assert!(cpu.easel.masks().unwrap() == gpu.easel.masks().unwrap(), "{what}: other masks");
        let (want, got) = (cpu.seen(), gpu.seen());
        for (i, (w, g)) in want.iter().zip(&got).enumerate() {
            assert_eq!(f16::from_f32(*w).to_f32(), *g, "{what}: element {i}");
        }
    }

    /// Every pixel, so that nothing of the paint stays hidden.
    fn everywhere(size: usize) -> Shapes {
        let (centre, axes) = ([size as f32 / 2.0; 2], [size as f32 * 2.0; 2]);
        Shapes::Ellipses(vec![Ellipse { centre, axes, sin: 0.0, cos: 1.0, frame: [0, size, 0, size] }])
    }

    #[test]
    fn outlines_and_their_soft_edges_are_the_cpus_to_the_last_bit() {
        // A block's 256 pixels and another's 128 columns end within a picture, at its end, or beyond.
        for size in [3, 16, 31, 64, 100, 130] {
            let sources = Sources::new(1, &normals(1, size, false), vec![], SourceMix::INDUSTRIAL);
            let [mut cpu, mut gpu] = Studio::both(size, 4, &sources);
            for image in 0..12 {
                let mut draws = [0, 1, 2, 3].map(|i| draw(4 * image + i));
                let kinds = [Kind::Noise, Kind::Strokes, Kind::Ellipses, Kind::Noise];
                let mut shapes: Vec<_> = draws
                    .iter_mut()
                    .zip(kinds)
                    .map(|(draw, kind)| Some(Shapes::draw(draw, kind, size)))
                    .collect();
                let want = cpu.easel.outline(&shapes).unwrap();
                assert_eq!(want, gpu.easel.outline(&shapes).unwrap(), "areas of {size}, {image}");
                // One is drawn again, the others stay.
                shapes.iter_mut().for_each(|s| *s = None);
                shapes[1] = Some(Shapes::draw(&mut draws[1], Kind::Noise, size));
                let want = cpu.easel.outline(&shapes).unwrap();
                assert_eq!(want, gpu.easel.outline(&shapes).unwrap(), "areas of {size}, {image}");
                let radii = [0, 1, 2, 3].map(|i| (i + image as usize) % 4);
                cpu.easel.soften(&radii).unwrap();
                gpu.easel.soften(&radii).unwrap();
                let (want, got) = (cpu.easel.masks().unwrap(), gpu.easel.masks().unwrap());
                assert!(want == got, "{size}, {image}: other masks");
            }
        }
    }

    #[test]
    fn every_augmentation_and_every_source_is_the_cpus_to_the_last_bit() {
        for size in [5, 16, 33] {
            for grey in [false, true] {
                let normals = normals(2, size, grey);
                let sources = Sources::new(1, &normals, vec![], SourceMix::INDUSTRIAL);
                let mut studios = Studio::both(size, 2, &sources);
                for studio in &mut studios {
                    let all = [Some(everywhere(size)), Some(everywhere(size))];
                    assert_eq!(studio.easel.outline(&all).unwrap(), [Some(size * size); 2]);
                    studio.easel.soften(&[0, 0]).unwrap();
                    studio.easel.set_pictures(&[&normals[0], &normals[1]]).unwrap();
                }
                let mut check = |what: &str, paints: [Option<(Paint, f32)>; 2]| {
                    let [cpu, gpu] = &mut studios;
                    let (want, got) = (cpu.easel.paint(&paints).unwrap(), gpu.easel.paint(&paints).unwrap());
                    assert_eq!(want, got, "{what}, {size}");
                    assert_same(what, &mut studios);
                };
                for augmentation in Augmentation::ALL {
                    for image in 0..4 {
                        let what = format!("{augmentation:?} {image}");
                        let mut draw = draw(image);
                        // Twice, for other buffers, after nothing, one or two others.
                        let mut paint = |others: u32| {
                            let base = Base::Rolled(&normals[0], Roll::draw(&mut draw, size));
                            let mut steps = vec![];
                            steps.extend((0..others).filter_map(|_| Augmentation::Colour.draw(&mut draw)));
                            steps.extend(augmentation.draw(&mut draw));
                            Some((Paint { base, steps, grey }, draw.range(0.3, 1.0)))
                        };
                        check(&what, [paint(image % 3), paint((image + 1) % 3)]);
                        // One stays as it was.
                        check(&what, [None, paint(0)]);
                    }
                }
                // Each source, as often as it takes.
                let mut seen = [false; 5];
                for image in 0..80 {
                    let mut draw = draw(1000 + image);
                    let mut paint = || {
                        let paint = sources.paint(&mut draw, &normals[1], &normals);
                        seen[match paint.base {
                            Base::Rolled(..) => 0,
                            Base::Warped(..) => 1,
                            Base::Flat(_) => 2,
                            Base::Toned(..) => 3,
                            Base::Cloud { .. } => 4,
                        }] = true;
                        Some((paint, 0.7))
                    };
                    check(&format!("source {image}"), [paint(), paint()]);
                }
                assert_eq!(seen, [true; 5]);
            }
        }
    }

    #[test]
    fn a_batch_of_blends_enters_a_network_as_the_cpus_does_and_none_depends_on_its_neighbours() {
        let mixes = [(ShapeMix::INDUSTRIAL, SourceMix::INDUSTRIAL), (ShapeMix::PERLIN, SourceMix::TEXTURES)];
        for (size, (shapes, mix)) in [64, 40].into_iter().zip(mixes) {
            let normals = normals(3, size, false);
            let sources = Sources::new(1, &normals, vec![], mix);
            let spec = BlendSpec { shapes, sources: mix, min_opacity: 0.3 };
            let mut studios = Studio::both(size, 3, &sources);
            let mut alone = Easel::on_cpu(size, 1);
            for batch in 0..12 {
                let draws = [0, 1, 2].map(|i| draw(100 + 3 * batch + i));
                let pictures = [&normals[0], &normals[1], &normals[2]];
                for studio in &mut studios {
                    blend(&mut studio.easel, &mut draws.clone(), &pictures, &normals, &sources, &spec)
                        .unwrap();
                }
                assert_same(&format!("batch {batch} of {size}"), &mut studios);
                for i in 0..3 {
                    let (draw, picture) = (&mut [draws[i].clone()], &pictures[i..=i]);
                    blend(&mut alone, draw, picture, &normals, &sources, &spec).unwrap();
                    assert!(alone.pictures()[0] == studios[0].easel.pictures()[i], "batch {batch}, {i}");
                }
            }
        }
    }
}
