//! Whole networks on the simulated GPU, held against the CPU: one judgement, and steps of training.

use super::draw::{Draw, Purpose, stream};
use super::initial::fill_missing;
use super::inspector::{Core, Inspector};
use super::network::{ADAM_PREFIX, TrainStep, feature_shape, judgement, selection_name, train_step};
use super::spec::NetSpec;
use crate::engine::cuda::simulator::gpu;
use crate::engine::{Device, Graph, Op, Options, ParamStore, Program, Tensor, Threads, Value, passes};
use crate::imaging::{FrameView, PixelFormat, Plane, Roi};
use crate::model::{Preset, Thresholds};
use crate::nets::random_weights;

const SIDE: usize = 64;

/// ‖a − b‖ / ‖b‖
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let apart: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let size: f64 = b.iter().map(|b| f64::from(*b).powi(2)).sum();
    (apart / size.max(1e-30)).sqrt()
}

fn devices() -> [Device; 2] {
    [Device::from(Threads::new(2)), Device::on(gpu())]
}

fn spec() -> NetSpec {
    NetSpec { input: SIDE, ..NetSpec::of(Preset::Small) }
}

/// Starting values, but nothing starts at zero, where it would keep silent.
fn params(g: &Graph, outputs: &[Value], seed: u64) -> ParamStore {
    let spec = spec();
    let mut all = random_weights(spec.backbone, seed);
    for (index, scale) in spec.scales.iter().enumerate() {
        let first = (0..scale.keep).map(|channel| channel as f32).collect();
        all.insert(selection_name(index), Tensor::vector(first));
    }
    fill_missing(g, seed, &mut all);
    let mut draw = stream(seed, 1, 0, Purpose::Initial);
    let silent = |(name, t): (&str, &Tensor)| {
        (!name.starts_with(ADAM_PREFIX) && t.data.iter().all(|v| *v == 0.0)).then(|| name.to_owned())
    };
    for name in all.iter().filter_map(silent).collect::<Vec<_>>() {
        let shape = all.get(&name).unwrap().shape;
        let width = 1.0 / (shape.n() * shape.h() * shape.w()).max(16) as f32;
        all.insert(name, Tensor::new(shape, normals(&mut draw, shape.len(), width.sqrt())));
    }
    passes::settle_weights(g, &mut all, outputs);
    all
}

fn normals(draw: &mut Draw, len: usize, deviation: f32) -> Vec<f32> {
    (0..len).map(|_| draw.normal() * deviation).collect()
}

#[test]
fn a_whole_judgement_is_the_same_on_the_gpu() {
    let (g, outputs) = judgement(&spec()).unwrap();
    let kept: Vec<Value> = outputs.iter().map(|o| o.1).collect();
    for seed in [1, 2] {
        let params = params(&g, &kept, seed);
        let image = normals(&mut stream(seed, 2, 0, Purpose::Initial), SIDE * SIDE * 3, 1.0);
        let [cpu, gpu] = devices().map(|device| {
            let mut p = Program::compile(&g, &outputs, &params, &device, Options::default()).unwrap();
            p.input_mut("image").unwrap().copy_from_slice(&image);
            p.run().unwrap();
            p
        });
        for (name, _) in &outputs {
            let (want, got) = (cpu.output(name).unwrap(), gpu.output(name).unwrap());
            let error = distance(got, want);
            let mean = want.iter().sum::<f32>() / want.len() as f32;
            assert!(want.iter().any(|v| (v - mean).abs() > 1e-3), "{name} says nothing");
            // Some 60 stores round to fp16, 2⁻¹¹/√3 of each element at most; they add up as a random walk.
            assert!(error < 5e-3, "seed {seed}: {name} differs by {error:.1e}");
        }
    }
}

#[test]
fn frames_of_several_cameras_in_one_run_are_judged_as_one_by_one() {
    let (g, outputs) = judgement(&spec()).unwrap();
    let kept: Vec<Value> = outputs.iter().map(|o| o.1).collect();
    let params = params(&g, &kept, 3);
    let device = Device::on(gpu());
    let core = Core::new(spec(), &params, &device).unwrap();
    let thresholds = Thresholds { unsure: 0.0, bad: 1.0 };
    let mut inspector = Inspector::of(core, &params, thresholds, &device, 4).unwrap();
    assert!(inspector.most() == 4 && inspector.keeps_parameters_once());

    let mut draw = stream(4, 2, 0, Purpose::Initial);
    let mut noise = |len: usize| (0..len).map(|_| draw.below(256) as u8).collect::<Vec<u8>>();
    let (a, b, c, d) = (noise(80 * 60 * 3), noise(40 * 30), noise(80 * 60 * 3), noise(50 * 64 * 4));
    let frame = |format, width, height, data, stride| FrameView {
        format,
        width,
        height,
        planes: [Plane { data, stride }, Plane::default(), Plane::default()],
    };
    let region = Some(Roi { x: 8, y: 5, width: 37, height: 51 });
    let parts = [
        (frame(PixelFormat::Rgb, 80, 60, &a, 240), None),
        (frame(PixelFormat::Gray8, 40, 30, &b, 40), None),
        (frame(PixelFormat::Rgb, 80, 60, &c, 240), region),
        (frame(PixelFormat::Bgrx, 50, 64, &d, 200), None),
    ];
    let alone: Vec<(f32, Vec<f32>)> = parts
        .iter()
        .map(|(frame, roi)| inspector.judge(frame, *roi).map(|j| (j.score, j.map.to_vec())).unwrap())
        .collect();
    let outside = (parts[0].0, Some(Roi { x: 79, y: 0, width: 37, height: 51 }));
    // In one run; in a run of two and one of one; one that cannot be judged among others.
    for chosen in [&[0, 1, 2, 3][..], &[3, 0, 2], &[0, 9]] {
        let some: Vec<_> = chosen.iter().map(|i| *parts.get(*i).unwrap_or(&outside)).collect();
        inspector.judge_some(&some).unwrap();
        for (at, which) in chosen.iter().enumerate() {
            let judged = inspector.judged(at).unwrap();
            let Some((score, map)) = alone.get(*which) else {
                assert!(judged.is_err_and(|error| error.to_string().contains("region")), "{chosen:?}");
                continue;
            };
            let judged = judged.unwrap();
            let apart = distance(judged.map, map);
            println!("{chosen:?} {at}: {} for {score}, map {apart:.1e}", judged.score);
            // Sums are cut otherwise in larger products: what fp16 rounds otherwise for it is bounded as above.
            assert!(
                apart < 5e-3 && (judged.score - score).abs() < 5e-3 * score.abs().max(1.0),
                "{chosen:?} {at}"
            );
        }
        assert!(inspector.judged(chosen.len()).is_none());
    }
}

/// Relative to the larger of the two, how close the closest two neighbours in rank are that both are chosen
/// or of which one is. Below what rounding does to a key, the two devices may swap their planes.
fn closest(keys: &[f32], channels: usize, chosen: usize) -> f32 {
    let mut closest = f32::MAX;
    for picture in keys.chunks_exact(channels) {
        let mut sorted = picture.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for pair in sorted[..=chosen].windows(2) {
            closest = closest.min((pair[0] - pair[1]) / pair[0].abs());
        }
    }
    closest
}

/// A network in training, on one batch.
struct Pupil {
    spec: NetSpec,
    step: TrainStep,
    /// What the residual planes are ranked by, and how many of each are chosen.
    keys: Vec<(Value, usize)>,
    start: ParamStore,
}

impl Pupil {
    fn new() -> Self {
        let mut spec = spec();
        spec.optimiser.batch = 2;
        let step = train_step(&spec).unwrap();
        let outputs: Vec<Value> = step.outputs.iter().map(|o| o.1).collect();
        let start = params(&step.graph, &outputs, 1);
        let ranks = step.graph.nodes().iter().filter_map(|node| match node.op {
            Op::TopK { k } => Some((node.inputs[0], k)),
            _ => None,
        });
        Pupil { keys: ranks.collect(), spec, step, start }
    }

    fn program(&self, device: &Device) -> Program {
        let names: Vec<String> = (0..self.keys.len()).map(|i| format!("keys.{i}")).collect();
        let mut outputs = self.step.outputs.clone();
        outputs.extend(names.iter().map(String::as_str).zip(self.keys.iter().map(|k| k.0)));
        Program::compile(&self.step.graph, &outputs, &self.start, device, Options::default()).unwrap()
    }

    fn fill(&self, p: &mut Program, batch: u32) {
        let mut draw = stream(5, batch, 0, Purpose::Batch);
        for (i, scale) in self.spec.scales.iter().enumerate() {
            let len = feature_shape(&self.spec, scale, self.spec.optimiser.batch).len();
            let normal = normals(&mut draw, len, 1.0);
            // What is painted on a picture changes some of its features.
            let presented: Vec<f32> =
                normal.iter().map(|v| if draw.chance(0.2) { v + draw.normal() } else { *v }).collect();
            p.input_mut(&format!("normal.{i}")).unwrap().copy_from_slice(&normal);
            p.input_mut(&format!("presented.{i}")).unwrap().copy_from_slice(&presented);
        }
        for v in p.input_mut("target").unwrap() {
            *v = f32::from(draw.chance(0.3));
        }
    }

    fn run(&self, p: &mut Program, t: usize, loss_scale: f32) -> [f32; 2] {
        let o = &self.spec.optimiser;
        let [a, b] = o.betas.map(|b| 1.0 - b.powi(t as i32 + 1));
        let rate = o.rate * (t + 1) as f32 / o.warm_up as f32;
        p.input_mut("rate").unwrap().copy_from_slice(&[rate, a, b]);
        p.input_mut("loss_scale").unwrap().fill(loss_scale);
        p.run().unwrap();
        ["loss", "gradient_norm"].map(|name| p.output(name).unwrap()[0])
    }

    fn margin(&self, p: &Program) -> f32 {
        let margins = self.keys.iter().enumerate().map(|(i, (v, k))| {
            closest(p.output(&format!("keys.{i}")).unwrap(), self.step.graph.shape(*v).c(), *k)
        });
        margins.fold(f32::MAX, f32::min)
    }
}

/// What has been added to those parameters of the graph that `which` chooses.
fn moved(pupil: &Pupil, p: &Program, which: impl Fn(&str) -> bool) -> Vec<f32> {
    let now = p.export_params().unwrap();
    let names = pupil.step.graph.params().map(|(name, _)| name).filter(|name| which(name));
    let difference = |name: &str| {
        let (now, start) = (&now.get(name).unwrap().data, &pupil.start.get(name).unwrap().data);
        now.iter().zip(start).map(|(a, b)| a - b).collect::<Vec<f32>>()
    };
    names.flat_map(difference).collect()
}

#[test]
fn three_steps_of_training_learn_the_same_on_the_gpu() {
    let [cpu, gpu] = devices();
    let pupil = Pupil::new();
    let mut programs = [&cpu, &gpu].map(|device| pupil.program(device));
    // A batch whose ranks rounding does not change: a key is off by some 1e-3.
    let [on_cpu, _] = &mut programs;
    let batch = (0..200).find(|batch| {
        pupil.fill(on_cpu, *batch);
        pupil.run(on_cpu, 0, 1.0);
        pupil.margin(on_cpu) > 1.5e-3
    });
    let batch = batch.expect("a batch whose ranks are clear");
    *on_cpu = pupil.program(&cpu);
    for p in &mut programs {
        pupil.fill(p, batch);
    }
    // A rectifier lets through what it should not where rounding, 2⁻¹¹ a store or two, changes a sign:
    // some 8e-4 of the elements, √8e-4 = 3 % of a gradient, through three layers 5 %.
    let gradient = 0.05;
    // The first steps of Adam go by signs. Of a gradient that is off by ε a share ε/π has the wrong one,
    // and differs by twice a step.
    let change = (4.0 * gradient / std::f64::consts::PI).sqrt();
    for t in 0..3 {
        let [on_cpu, on_gpu] = &mut programs;
        let (want, got) = (pupil.run(on_cpu, t, 1.0), pupil.run(on_gpu, t, 4096.0));
        // At first only arithmetic differs, then parameters do, and ranks with them.
        let bounds = if t == 0 { [1e-3, 5e-3] } else { [1e-2, 3e-2] };
        for ((what, bound), (w, g)) in ["loss", "norm"].iter().zip(bounds).zip(want.iter().zip(&got)) {
            assert!(((w - g) / w).abs() < bound, "batch {batch}, step {t}: {what} {w}, on the GPU {g}");
        }
        let compare = |what: &str, which: &dyn Fn(&str) -> bool, bound: f64| {
            let error = distance(&moved(&pupil, on_gpu, which), &moved(&pupil, on_cpu, which));
            assert!(error < bound, "batch {batch}, step {t}: {what} differ by {error:.1e}");
        };
        if t == 0 {
            compare("gradients of the U-Nets", &|name| name.starts_with("adam.m.recon"), gradient);
            compare("gradients of the head", &|name| name.starts_with("adam.m.rrs"), gradient);
        }
        let trained = |name: &str| !name.starts_with(ADAM_PREFIX) && !name.ends_with(".moments");
        compare("steps", &trained, change);
    }
}
