//! `inspectd forward`: one network on given tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::device::DeviceArg;
use super::import::{parse_arch, weights_failure};
use super::{Exit, Failure, OrExit};
use crate::engine::{Graph, Options, Priority, Program, ProgramError, Shape};
use crate::nets;
use crate::weights::{self, RawData, WeightsError};

/// Elements of one input: 64 pictures of 1024×1024.
const MAX_ELEMENTS: usize = 64 * 1024 * 1024 * 3;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The network, e.g. efficientnet_lite0 or wide_resnet50_2
    #[arg(long, value_name = "NAME")]
    pub arch: String,
    /// Its weights: ours, .pth or .safetensors
    #[arg(long, value_name = "FILE")]
    pub weights: PathBuf,
    /// safetensors with `image`, N×3×H×W float32, already normalised
    #[arg(long, value_name = "IN.safetensors")]
    pub input: PathBuf,
    /// Where to write the taps, each N×C×H×W float32
    #[arg(long, value_name = "OUT.safetensors")]
    pub out: PathBuf,
    #[command(flatten)]
    pub device: DeviceArg,
    /// Run the plain specification of every operation instead of the fast path
    #[arg(long)]
    pub reference: bool,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let arch = parse_arch(&args.arch)?;
    let device = args.device.open(Priority::High)?;
    let (shape, image) = read_image(&args.input)?;
    let params = nets::load_weights(&args.weights, arch)
        .map_err(|error| weights_failure(error, arch, &args.weights))?;

    let mut g = Graph::new();
    let input = g.input("image", shape);
    let taps = nets::build(&mut g, arch, input, arch.default_taps()).or_exit(Exit::Data)?;
    let outputs: Vec<_> = taps.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let options = if args.reference { Options::REFERENCE } else { Options::default() };
    let mut program = Program::compile(&g, &outputs, &params, &device, options).map_err(running)?;
    nchw_to_nhwc(&image, shape, program.input_mut("image").or_exit(Exit::Internal)?);
    program.run().map_err(running)?;

    let mut written = vec![];
    for (name, _) in &taps {
        let shape = program.output_shape(name).or_exit(Exit::Internal)?;
        let mut data = vec![0.0; shape.len()];
        nhwc_to_nchw(program.output(name).or_exit(Exit::Internal)?, shape, &mut data);
        written.push((name.as_str(), vec![shape.n(), shape.c(), shape.h(), shape.w()], data));
    }
    let tensors: Vec<_> =
        written.iter().map(|(name, shape, data)| (*name, shape.clone(), data.as_slice())).collect();
    let metadata = BTreeMap::from([("arch".to_owned(), arch.name().to_owned())]);
    weights::write_tensors(&args.out, &tensors, &metadata).or_exit(Exit::CantCreate)
}

fn running(error: ProgramError) -> Failure {
    let exit = match &error {
        ProgramError::Device(_) | ProgramError::Unsupported(_) => Exit::Unavailable,
        _ => Exit::Internal,
    };
    Failure::new(exit, error)
}

/// `image` of the input file, N×3×H×W, and the shape it takes in the network.
fn read_image(path: &Path) -> Result<(Shape, Vec<f32>), Failure> {
    let hint = "safetensors.torch.save_file({\"image\": x.float().contiguous()}, FILE) with x of N×3×H×W";
    let mut tensors = weights::read_tensors(path).map_err(|error| {
        let exit = match &error {
            WeightsError::Missing { .. } => Exit::NoInput,
            WeightsError::Read { .. } => Exit::Io,
            _ => Exit::Data,
        };
        Failure::new(exit, error).hint(hint)
    })?;
    let wrong = |what: String| Failure::say(Exit::Data, format!("{}: {what}", path.display())).hint(hint);
    let Some(image) = tensors.remove("image") else {
        let names = tensors.keys().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(wrong(format!("there is no tensor `image`, only: {names}")));
    };
    let &[n, 3, h, w] = image.shape.as_slice() else {
        return Err(wrong(format!("`image` has shape {:?}, N×3×H×W is needed", image.shape)));
    };
    if image.is_empty() || image.len() > MAX_ELEMENTS {
        let limits = format!("1 to {MAX_ELEMENTS} elements");
        return Err(wrong(format!("`image` has shape {:?}; {limits} are needed", image.shape)));
    }
    match image.data {
        RawData::Real(data) => Ok((Shape::new(n, h, w, 3), data)),
        RawData::Integer(_) => Err(wrong(format!("`image` is of type {:?}, float32 is needed", image.dtype))),
    }
}

/// `shape` is that of the N·H·W·C side.
fn nchw_to_nhwc(source: &[f32], shape: Shape, out: &mut [f32]) {
    for_each_element(shape, |nhwc, nchw| out[nhwc] = source[nchw]);
}

fn nhwc_to_nchw(source: &[f32], shape: Shape, out: &mut [f32]) {
    for_each_element(shape, |nhwc, nchw| out[nchw] = source[nhwc]);
}

fn for_each_element(shape: Shape, mut visit: impl FnMut(usize, usize)) {
    let (pixels, channels) = (shape.h() * shape.w(), shape.c());
    for n in 0..shape.n() {
        for p in 0..pixels {
            for c in 0..channels {
                visit((n * pixels + p) * channels + c, (n * channels + c) * pixels + p);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::DeviceName;
    use crate::nets::Arch;

    fn args(folder: &Path) -> Args {
        Args {
            arch: "efficientnet_lite0".into(),
            weights: folder.join("w"),
            input: folder.join("in"),
            out: folder.join("out"),
            device: DeviceArg::default(),
            reference: false,
        }
    }

    #[test]
    fn taps_are_written_channels_first() {
        let folder = tempfile::tempdir().unwrap();
        let args = args(folder.path());
        let arch = Arch::EfficientnetLite0;
        nets::save_weights(&args.weights, arch, &nets::random_weights(arch, 1)).unwrap();
        let image: Vec<f32> = (0..2 * 3 * 64 * 32).map(|i| (i as f32 * 0.37).sin()).collect();
        weights::write_tensors(&args.input, &[("image", vec![2, 3, 64, 32], &image)], &BTreeMap::new())
            .unwrap();
        let out = args.out.clone();
        run(args).unwrap();
        let tensors = weights::read_tensors(&out).unwrap();
        let shapes: Vec<_> = tensors.iter().map(|(n, t)| (n.as_str(), t.shape.as_slice())).collect();
        let expected: [(&str, &[usize]); 4] = [
            ("block10", &[2, 112, 4, 2]),
            ("block15", &[2, 320, 2, 1]),
            ("block2", &[2, 24, 16, 8]),
            ("block4", &[2, 40, 8, 4]),
        ];
        assert_eq!(shapes, expected);
    }

    #[test]
    fn layouts_are_each_others_inverse() {
        let shape = Shape::new(2, 3, 4, 5);
        let source: Vec<f32> = (0..shape.len()).map(|i| i as f32).collect();
        let (mut there, mut back) = (vec![0.0; shape.len()], vec![0.0; shape.len()]);
        nchw_to_nhwc(&source, shape, &mut there);
        // Channel 1 of the first pixel lies one plane on in the source.
        assert_eq!(there[1], 12.0);
        nhwc_to_nchw(&there, shape, &mut back);
        assert_eq!(back, source);
    }

    #[test]
    fn what_cannot_be_run_is_said_with_its_exit_code() {
        let folder = tempfile::tempdir().unwrap();
        let exit = |change: fn(&mut Args)| {
            let mut args = args(folder.path());
            change(&mut args);
            run(args).unwrap_err().exit()
        };
        assert_eq!(exit(|a| a.arch = "lenet".into()), Exit::Usage);
        assert_eq!(exit(|a| a.device.device = DeviceName::Cuda(99)), Exit::Unavailable);
        assert_eq!(exit(|_| ()), Exit::NoInput);
        let write = |name: &str, shape: Vec<usize>| {
            let data = vec![0.0; shape.iter().product()];
            weights::write_tensors(&folder.path().join("in"), &[(name, shape, &data)], &BTreeMap::new())
                .unwrap();
        };
        write("picture", vec![1, 3, 32, 32]);
        assert_eq!(exit(|_| ()), Exit::Data);
        write("image", vec![1, 32, 32, 3]);
        assert_eq!(exit(|_| ()), Exit::Data);
        write("image", vec![1, 3, 0, 32]);
        assert_eq!(exit(|_| ()), Exit::Data);
        write("image", vec![1, 3, 32, 32]);
        assert_eq!(exit(|_| ()), Exit::NoInput); // the weights
        std::fs::write(folder.path().join("w"), "no weights").unwrap();
        assert_eq!(exit(|_| ()), Exit::Data);
    }
}
