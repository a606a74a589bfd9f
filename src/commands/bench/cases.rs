//! What `inspectd bench` times: shapes of the real networks.

use std::path::Path;

use crate::commands::{Exit, Failure, OrExit};
use crate::engine::cpu::Program;
use crate::engine::{
    Attention, Conv, Device, Epilogue, Graph, GraphResult, Op, Options, ParamStore, QkvLayout, Shape, Tensor,
    Threads, Value,
};
use crate::imaging::RgbImage;
use crate::model::{Model, Preset};
use crate::nets::{self, Arch};
use crate::realnet::Inspector;

/// One thing to time.
#[derive(Clone, Copy, Debug)]
pub enum Case {
    Op(OpCase),
    /// A backbone up to its deepest tap, one image of this side.
    Net(Arch, usize),
    /// A 640×480 RGB frame through preprocessing and network to its judgement.
    Line(Preset),
}

#[derive(Clone, Copy, Debug)]
pub enum OpCase {
    Conv(ConvCase),
    /// 4×4, stride 2, padding 1: doubles the size. Height, width, channels in and out.
    Transpose(usize, usize, usize),
    /// Of the convolution, with respect to its input and its weights, for a batch.
    GradInput(ConvCase),
    GradWeight(ConvCase),
    /// Square.
    MatMul(usize),
    /// Tokens (a square image), heads, channels per head.
    Attention(usize, usize, usize),
}

#[derive(Clone, Copy, Debug)]
pub struct ConvCase {
    batch: usize,
    size: usize,
    cin: usize,
    cout: usize,
    kernel: usize,
    stride: usize,
    depthwise: bool,
}

/// A case made ready: what to run, its plain counterpart, and its multiply-adds.
pub struct Prepared {
    pub run: Box<Run>,
    pub reference: Option<Program>,
    pub macs: Option<usize>,
}

pub type Run = dyn FnMut() -> Result<(), Failure>;

const fn conv(size: usize, cin: usize, cout: usize, kernel: usize, stride: usize) -> ConvCase {
    ConvCase { batch: 1, size, cin, cout, kernel, stride, depthwise: false }
}

const fn depthwise(size: usize, channels: usize, kernel: usize, stride: usize) -> ConvCase {
    ConvCase { depthwise: true, ..conv(size, channels, channels, kernel, stride) }
}

const fn batch(batch: usize, case: ConvCase) -> ConvCase {
    ConvCase { batch, ..case }
}

pub fn all() -> Vec<Case> {
    use OpCase::{Attention, Conv, GradInput, GradWeight, MatMul, Transpose};
    let ops = [
        // WideResNet50-2 at 256²
        Conv(conv(256, 3, 64, 7, 2)),
        Conv(conv(64, 128, 128, 3, 1)),
        Conv(conv(32, 256, 256, 3, 1)),
        Conv(conv(16, 512, 512, 3, 1)),
        Conv(conv(8, 1024, 1024, 3, 1)),
        Conv(conv(64, 256, 256, 3, 2)),
        Conv(conv(64, 256, 128, 1, 1)),
        Conv(conv(32, 512, 256, 1, 1)),
        Conv(conv(16, 1024, 512, 1, 1)),
        Conv(conv(16, 1024, 2048, 1, 2)),
        // EfficientNet-Lite0 at 256²
        Conv(conv(256, 3, 32, 3, 2)),
        Conv(conv(128, 16, 96, 1, 1)),
        Conv(conv(64, 144, 24, 1, 1)),
        Conv(conv(16, 112, 672, 1, 1)),
        Conv(conv(8, 1152, 192, 1, 1)),
        Conv(depthwise(128, 96, 3, 2)),
        Conv(depthwise(64, 144, 3, 1)),
        Conv(depthwise(16, 672, 5, 1)),
        // The reconstruction nets, and one small enough for a test
        Conv(conv(8, 64, 64, 1, 1)),
        Transpose(16, 128, 64),
        GradInput(batch(8, conv(32, 64, 64, 3, 1))),
        GradWeight(batch(8, conv(32, 64, 64, 3, 1))),
        MatMul(512),
        Attention(256, 4, 64),
    ];
    let nets = Arch::ALL.map(|arch| Case::Net(arch, 256));
    ops.map(Case::Op).into_iter().chain(nets).chain([Case::Line(Preset::Small)]).collect()
}

impl ConvCase {
    fn name(&self) -> String {
        let ConvCase { size, cin, cout, kernel, stride, .. } = *self;
        let kind = if self.depthwise { "depthwise" } else { "conv" };
        let stride = if stride > 1 { format!("s{stride}") } else { String::new() };
        let out = if cin == cout { String::new() } else { format!("-{cout}") };
        let batch = if self.batch > 1 { format!("{}x", self.batch) } else { String::new() };
        format!("{kind}{kernel}x{kernel}{stride}/{batch}{size}x{size}x{cin}{out}")
    }

    fn conv(&self) -> Conv {
        Conv::grouped(self.stride, self.kernel / 2, if self.depthwise { self.cin } else { 1 })
    }

    fn x(&self) -> Shape {
        Shape::new(self.batch, self.size, self.size, self.cin)
    }

    fn w(&self) -> Shape {
        let cin = if self.depthwise { 1 } else { self.cin };
        Shape::new(self.kernel, self.kernel, cin, self.cout)
    }

    fn y(&self) -> Shape {
        let size = self.conv().out_h(self.size, self.kernel);
        Shape::new(self.batch, size, size, self.cout)
    }

    fn macs(&self) -> usize {
        self.y().len() * self.w().len() / self.cout
    }
}

impl OpCase {
    fn name(&self) -> String {
        match self {
            Self::Conv(case) => case.name(),
            Self::Transpose(size, cin, cout) => format!("conv_transpose4x4s2/{size}x{size}x{cin}-{cout}"),
            Self::GradInput(case) => case.name().replacen('/', "_grad_input/", 1),
            Self::GradWeight(case) => case.name().replacen('/', "_grad_weight/", 1),
            Self::MatMul(n) => format!("matmul/{n}x{n}x{n}"),
            Self::Attention(tokens, heads, dim) => format!("attention/{tokens}x{heads}x{dim}"),
        }
    }

    fn macs(&self) -> usize {
        match *self {
            Self::Conv(case) | Self::GradInput(case) | Self::GradWeight(case) => case.macs(),
            Self::Transpose(size, cin, cout) => size * size * 16 * cin * cout,
            Self::MatMul(n) => n * n * n,
            Self::Attention(tokens, heads, dim) => 2 * tokens * tokens * heads * dim,
        }
    }

    fn append(&self, g: &mut Graph) -> GraphResult {
        match *self {
            Self::Conv(case) => {
                let (x, w) = (g.input("x", case.x()), g.param("w", case.w())?);
                let bias = g.param("bias", Shape::vector(case.cout))?;
                g.conv2d(x, w, Some(bias), case.conv())
            }
            Self::Transpose(size, cin, cout) => {
                let x = g.input("x", Shape::new(1, size, size, cin));
                let w = g.param("w", Shape::new(4, 4, cout, cin))?;
                g.conv_transpose2d(x, w, None, Conv::new(2, 1))
            }
            // In training the weights change, so here they are inputs and get packed in every run.
            Self::GradInput(case) => {
                let (w, dy) = (g.input("w", case.w()), g.input("dy", case.y()));
                let op = Op::ConvTranspose {
                    conv: case.conv(),
                    h: case.size,
                    w: case.size,
                    epilogue: Epilogue::default(),
                };
                g.apply(op, &[dy, w])
            }
            Self::GradWeight(case) => {
                let (x, dy) = (g.input("x", case.x()), g.input("dy", case.y()));
                g.apply(
                    Op::ConvBackwardWeight { conv: case.conv(), kh: case.kernel, kw: case.kernel },
                    &[x, dy],
                )
            }
            Self::MatMul(n) => {
                let (a, b) = (g.input("a", Shape::new(1, 1, n, n)), g.input("b", Shape::new(1, 1, n, n)));
                g.matmul(a, b, false, false)
            }
            Self::Attention(tokens, heads, dim) => {
                let side = tokens.isqrt();
                let qkv = g.input("qkv", Shape::new(1, side, side, 3 * heads * dim));
                g.attention(qkv, Attention { heads, layout: QkvLayout::PerHead, causal: false })
            }
        }
    }
}

impl Case {
    pub fn name(&self) -> String {
        match self {
            Self::Op(op) => format!("op/{}", op.name()),
            Self::Net(arch, size) => format!("net/{arch}/{size}"),
            Self::Line(preset) => format!("line/{preset}/256"),
        }
    }

    pub fn prepare(&self, threads: &Threads, model: Option<&Path>) -> Result<Prepared, Failure> {
        match self {
            Self::Op(op) => {
                let mut g = Graph::new();
                let y = op.append(&mut g).or_exit(Exit::Internal)?;
                let params = random_params(&g);
                let mut program = compile(&g, &[("y", y)], &params, threads, Options::default())?;
                let mut reference = compile(&g, &[("y", y)], &params, threads, Options::REFERENCE)?;
                fill_inputs(&g, &mut program)?;
                fill_inputs(&g, &mut reference)?;
                let run = move || {
                    program.run();
                    Ok(())
                };
                Ok(Prepared { run: Box::new(run), reference: Some(reference), macs: Some(op.macs()) })
            }
            Self::Net(arch, size) => {
                let mut g = Graph::new();
                let image = g.input("image", Shape::new(1, *size, *size, 3));
                let deepest = arch.default_taps().last().copied().unwrap_or_default();
                let taps = nets::build(&mut g, *arch, image, &[deepest]).or_exit(Exit::Internal)?;
                let outputs: Vec<(&str, Value)> = taps.iter().map(|(name, v)| (name.as_str(), *v)).collect();
                let params = nets::random_weights(*arch, 1);
                let mut program = compile(&g, &outputs, &params, threads, Options::default())?;
                fill_inputs(&g, &mut program)?;
                let run = move || {
                    program.run();
                    Ok(())
                };
                Ok(Prepared { run: Box::new(run), reference: None, macs: Some(conv_macs(&g)) })
            }
            Self::Line(preset) => line(*preset, threads, model),
        }
    }
}

fn compile(
    g: &Graph,
    outputs: &[(&str, Value)],
    params: &ParamStore,
    threads: &Threads,
    options: Options,
) -> Result<Program, Failure> {
    Program::compile(g, outputs, params, threads, options).or_exit(Exit::Internal)
}

/// Multiply-adds of all convolutions of a graph; the rest of a backbone is below 1 %.
fn conv_macs(g: &Graph) -> usize {
    g.nodes()
        .iter()
        .filter(|node| matches!(node.op, Op::Conv2d { .. }))
        .map(|node| node.shape.len() * g.shape(node.inputs[1]).len() / node.shape.c())
        .sum()
}

/// In -0.5..0.5 and never near the denormals, which would be slow.
fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| next()).collect()
}

fn random_params(g: &Graph) -> ParamStore {
    let mut store = ParamStore::new();
    for (i, (name, value)) in g.params().enumerate() {
        let shape = g.shape(value);
        store.insert(name, Tensor::new(shape, noise(shape.len(), 1 + i as u32)));
    }
    store
}

fn fill_inputs(g: &Graph, program: &mut Program) -> Result<(), Failure> {
    for (i, node) in g.nodes().iter().enumerate() {
        if let Op::Input { name } = &node.op {
            let buffer = program.input_mut(name).or_exit(Exit::Internal)?;
            buffer.copy_from_slice(&noise(buffer.len(), 100 + i as u32));
        }
    }
    Ok(())
}

/// From the frame in memory to score and map, as an inference thread of the daemon does it.
fn line(preset: Preset, threads: &Threads, model: Option<&Path>) -> Result<Prepared, Failure> {
    let mut inspector = match model {
        Some(path) => {
            let model = Model::load(path).or_exit(Exit::Data)?;
            if model.meta.preset != preset {
                let message = format!("{} is of preset {}, not {preset}", path.display(), model.meta.preset);
                return Err(Failure::say(Exit::Data, message));
            }
            Inspector::new(&model, &Device::from(threads.clone())).or_exit(Exit::Data)?
        }
        None => Inspector::untaught(preset, &Device::from(threads.clone())).or_exit(Exit::Internal)?,
    };
    let (width, height) = (640, 480);
    let data = noise(width * height * 3, 7).into_iter().map(|x| ((x + 0.5) * 255.0) as u8).collect();
    let image = RgbImage { width, height, data };
    let run = move || inspector.judge(&image.view(), None).map(drop).or_exit(Exit::Internal);
    Ok(Prepared { run: Box::new(run), reference: None, macs: None })
}
