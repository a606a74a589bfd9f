//! What is learnt before training: how strong each feature channel is in normals, which channels show
//! anomalies, and which patches normals have.

use std::time::Instant;

use super::afs::Selection;
use super::bank::Candidates;
use super::blend::blend;
use super::draw::{Purpose, stream};
use super::easel::Easel;
use super::error::RealnetError;
use super::network::{BANK_USUAL, distances, moments_name, selection_name, survey};
use super::picture::Stored;
use super::sources::Sources;
use super::spec::{BankSpec, NetSpec};
use super::time_is_up;
use crate::engine::{Device, Options, ParamStore, Pool, Program, Shape, Tensor, Window};

/// Normals that the channels' mean and deviation are taken from.
const STATISTICS_PICTURES: usize = 64;
/// Added to the deviation: a channel that is constant in normals must not become infinitely loud.
const DEVIATION_FLOOR: f64 = 1e-3;
/// Normals whose patches are candidates for the bank.
const BANK_PICTURES: usize = 400;
const MOST_SET_APART: usize = 48;
/// Blends whose changes are scaled together in feature selection.
const SELECTION_BATCH: usize = 16;
/// However little time there is, this many normals are looked at, and one batch of blends.
const LEAST_PICTURES: usize = 8;
const CLAMP: f32 = 8.0;

/// Mean and deviation of one channel.
type Moments = Vec<(f64, f64)>;

/// Runs the survey and adds `afs.indexes.…`, `features.….moments` and `bank.…` to `params`.
/// `go_on(done)` is asked after every picture with the share done; false ends with `StoppedEarly`. From
/// `until` on, fewer pictures must do: half of the time is for normals, the rest for blends.
#[allow(clippy::too_many_arguments)]
pub fn run(
    spec: &NetSpec,
    seed: u64,
    pictures: &[Stored],
    sources: &Sources,
    params: &mut ParamStore,
    device: &Device,
    until: Option<Instant>,
    mut go_on: impl FnMut(f32) -> bool,
) -> Result<(), RealnetError> {
    let half = until.map(|until| Instant::now() + until.saturating_duration_since(Instant::now()) / 2);
    let (g, outputs) = survey(spec, 1)?;
    let named: Vec<_> = outputs.iter().map(|(n, v)| (n.as_str(), *v)).collect();
    let mut program = Program::compile(&g, &named, params, device, Options::default())?;

    let order = stream(seed, 0, 0, Purpose::Select).permutation(pictures.len());
    let statistics = order.len().min(STATISTICS_PICTURES);
    let banked = if spec.bank.is_some() { order.len().min(BANK_PICTURES) } else { statistics };
    // These give the bank nothing, so that they can say how far normals usually are from it.
    let set_apart = (banked / 4).min(MOST_SET_APART);
    let selects = spec.scales.iter().any(|s| s.keep < s.channels);
    let blends = if selects { spec.selection_pictures } else { 0 };
    let work = (banked + 2 * blends) as f32;
    let mut done = 0.0;
    let mut looked_at_one = || {
        done += 1.0;
        if go_on(done / work) { Ok(()) } else { Err(RealnetError::StoppedEarly) }
    };

    let mut sums: Vec<Vec<(f64, f64)>> = spec.scales.iter().map(|s| vec![(0.0, 0.0); s.channels]).collect();
    let mut candidates = spec.bank.as_ref().map(|b| Candidates::new(seed, b.channels(), banked - set_apart));
    let mut looked = 0;
    for (i, at) in order.iter().take(banked).enumerate() {
        if i >= LEAST_PICTURES.max(set_apart + 1) && time_is_up(half) {
            break;
        }
        looked += 1;
        look(&mut program, &pictures[*at])?;
        looked_at_one()?;
        if let Some(candidates) = candidates.as_mut().filter(|_| i >= set_apart) {
            candidates.add(program.output("patches")?);
        }
        if i < statistics {
            for (index, sums) in sums.iter_mut().enumerate() {
                add_squares(program.output(&format!("tap.{index}"))?, sums);
            }
        }
    }
    let statistics = statistics.min(looked);
    let moments: Vec<Moments> = spec
        .scales
        .iter()
        .zip(&sums)
        .map(|(scale, sums)| {
            let side = spec.input / scale.stride;
            let n = (statistics * side * side).max(1) as f64;
            let one = |(sum, squares): &(f64, f64)| {
                let mean = sum / n;
                let variance = (squares / n - mean * mean).max(0.0);
                (mean, variance.sqrt() + DEVIATION_FLOOR)
            };
            sums.iter().map(one).collect()
        })
        .collect();

    let mut selections: Vec<_> = spec.scales.iter().map(|s| Selection::new(s.channels)).collect();
    let mut easel = Easel::new(device, &mut program, spec.input, 1, sources)?;
    let mut left = blends;
    let mut painted = 0;
    while left > 0 && (left == blends || !time_is_up(until)) {
        let batch = left.min(SELECTION_BATCH);
        left -= batch;
        let mut features = vec![[vec![], vec![]]; spec.scales.len()];
        let mut coverages = vec![vec![]; spec.scales.len()];
        for _ in 0..batch {
            let mut draw = stream(seed, painted, 0, Purpose::Select);
            painted += 1;
            let normal = &pictures[draw.below(pictures.len())];
            blend(&mut easel, std::slice::from_mut(&mut draw), &[normal], pictures, sources, &spec.blends)?;
            easel.run(&mut program)?;
            looked_at_one()?;
            append_taps(&program, &mut features, 0)?;
            look(&mut program, normal)?;
            looked_at_one()?;
            append_taps(&program, &mut features, 1)?;
            for mask in easel.masks()? {
                for (scale, coverages) in spec.scales.iter().zip(&mut coverages) {
                    coverages.extend(mask.coverage(spec.input / scale.stride));
                }
            }
        }
        for (index, [blended, normal]) in features.iter_mut().enumerate() {
            if spec.standardise {
                standardise(blended, &moments[index]);
                standardise(normal, &moments[index]);
            }
            selections[index].add(blended, normal, &coverages[index]);
        }
    }

    for (index, scale) in spec.scales.iter().enumerate() {
        let best = match scale.keep < scale.channels {
            true => selections[index].best(scale.keep),
            false => (0..scale.channels).collect(),
        };
        if scale.keep < scale.channels {
            let indices = best.iter().map(|c| *c as f32).collect();
            params.insert(selection_name(index), Tensor::vector(indices));
        }
        if spec.standardise {
            let of_best: Vec<_> = best.iter().map(|c| moments[index][*c]).collect();
            let means = of_best.iter().map(|m| m.0 as f32);
            let data = means.chain(of_best.iter().map(|m| (m.1 * m.1) as f32)).collect();
            params.insert(moments_name(index), Tensor::new(Shape::new(1, 1, 2, scale.keep), data));
        }
    }
    if let (Some(bank), Some(candidates)) = (&spec.bank, candidates) {
        candidates.into_params(bank.vectors, device.threads().threads(), params);
        let apart: Vec<_> = order.iter().take(set_apart).map(|at| &pictures[*at]).collect();
        let usual = usual_distance(spec, bank, &apart, params, device)?;
        params.insert(BANK_USUAL, usual);
    }
    Ok(())
}

/// Adds what the program has just said of every scale to the blends' (0) or the normals' (1) features.
fn append_taps(program: &Program, features: &mut [[Vec<f32>; 2]], side: usize) -> Result<(), RealnetError> {
    for (index, features) in features.iter_mut().enumerate() {
        features[side].extend_from_slice(program.output(&format!("tap.{index}"))?);
    }
    Ok(())
}

fn look(program: &mut Program, picture: &Stored) -> Result<(), RealnetError> {
    picture.picture().normalised_into(program.input_mut("image")?);
    Ok(program.run()?)
}

/// Mean distance at every position over pictures that gave the bank nothing, averaged over 3×3
/// neighbours as few pictures are noisy.
fn usual_distance(
    spec: &NetSpec,
    bank: &BankSpec,
    pictures: &[&Stored],
    params: &ParamStore,
    device: &Device,
) -> Result<Tensor, RealnetError> {
    let (mut g, far) = distances(spec, bank)?;
    let smooth = g.pool(Pool::Avg, far, Window { size: 3, stride: 1, pad: 1 })?;
    let mut program = Program::compile(&g, &[("distance", smooth)], params, device, Options::default())?;
    let mut mean = Tensor::zeros(g.shape(smooth));
    for picture in pictures {
        look(&mut program, picture)?;
        for (sum, d) in mean.data.iter_mut().zip(program.output("distance")?) {
            *sum += d / pictures.len() as f32;
        }
    }
    Ok(mean)
}

fn add_squares(features: &[f32], sums: &mut [(f64, f64)]) {
    for row in features.chunks_exact(sums.len()) {
        for (x, (sum, squares)) in row.iter().zip(sums.iter_mut()) {
            *sum += *x as f64;
            *squares += (*x as f64) * (*x as f64);
        }
    }
}

fn standardise(features: &mut [f32], moments: &Moments) {
    let scale: Vec<(f32, f32)> = moments.iter().map(|(m, d)| (*m as f32, (1.0 / d) as f32)).collect();
    for row in features.chunks_exact_mut(moments.len()) {
        for (x, (mean, factor)) in row.iter_mut().zip(&scale) {
            *x = ((*x - mean) * factor).clamp(-CLAMP, CLAMP);
        }
    }
}
