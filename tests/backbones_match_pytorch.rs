//! Both backbones with formula weights against PyTorch (`tests/golden/make_backbones.py`).

use std::path::Path;

use inspectd::engine::cpu::Program;
use inspectd::engine::{Graph, Options, Shape, Threads};
use inspectd::nets::{self, Arch};
use inspectd::weights::{RawData, read_tensors};

const SEED: u64 = 1;
const SIZE: usize = 64;

/// The script's input: twice the stream called `image`.
fn image() -> Vec<f32> {
    let name = nets::formula_stream("image", SEED);
    (0..2 * SIZE * SIZE * 3).map(|i| name(i) as f32 * 2.0).collect()
}

fn compare(arch: Arch, options: Options) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/backbones.safetensors");
    let golden = read_tensors(&path).unwrap();
    let prefix = format!("{arch}/");
    let mut taps: Vec<String> = golden
        .keys()
        .filter_map(|key| key.strip_prefix(&prefix)?.strip_suffix("/norm").map(str::to_owned))
        .collect();
    taps.sort();
    assert!(taps.len() >= 4, "{taps:?}");
    let names: Vec<&str> = taps.iter().map(String::as_str).collect();

    let mut g = Graph::new();
    let input = g.input("image", Shape::new(2, SIZE, SIZE, 3));
    let values = nets::build(&mut g, arch, input, &names).unwrap();
    let outputs: Vec<_> = values.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let params = nets::random_weights(arch, SEED);
    let mut program = Program::compile(&g, &outputs, &params, &Threads::new(2), options).unwrap();
    program.input_mut("image").unwrap().copy_from_slice(&image());
    program.run();
    for tap in names {
        let of = |what: &str| golden[&format!("{arch}/{tap}/{what}")].clone();
        let [n, h, w, c] = program.output_shape(tap).unwrap().0;
        let RawData::Integer(shape) = of("shape").data else { panic!("{tap}: the shape is no integer") };
        assert_eq!(shape, [n as i64, c as i64, h as i64, w as i64], "{tap}");
        let found = program.output(tap).unwrap();
        // Position in N·C·H·W to element in N·H·W·C.
        let at = |nchw: usize| {
            let (rest, x) = (nchw / w, nchw % w);
            let (rest, y) = (rest / h, rest % h);
            found[((rest / c * h + y) * w + x) * c + rest % c]
        };
        let expected = of("values").into_reals();
        let sampled: Vec<f32> = (0..64).map(|i| at(i * found.len() / 64)).collect();
        let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let off: Vec<f32> = sampled.iter().zip(&expected).map(|(a, b)| a - b).collect();
        let relative = norm(&off) / norm(&expected);
        let whole = f64::from(of("norm").into_reals()[0]);
        let whole = (norm(found) - whole).abs() / whole;
        // Fifty layers of fp32 against double precision: about 5e-7 was measured, 1e-4 is promised.
        assert!(relative < 1e-5 && whole < 1e-5, "{arch} {tap} {options:?}: {relative:e}, norm {whole:e}");
    }
}

#[test]
fn efficientnet_lite0_equals_pytorch_block_by_block_on_the_plain_path() {
    compare(Arch::EfficientnetLite0, Options::REFERENCE);
}

#[test]
fn efficientnet_lite0_equals_pytorch_block_by_block_on_the_fast_path() {
    compare(Arch::EfficientnetLite0, Options::default());
}

#[test]
fn wide_resnet50_2_equals_pytorch_layer_by_layer_on_the_plain_path() {
    compare(Arch::WideResnet50_2, Options::REFERENCE);
}

#[test]
fn wide_resnet50_2_equals_pytorch_layer_by_layer_on_the_fast_path() {
    compare(Arch::WideResnet50_2, Options::default());
}
