//! The training loop: cached features of normals and of blends, one compiled step, a rate that falls
//! along whichever runs out first, iterations or time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::blend::blend;
use super::draw::{Draw, Purpose, stream};
use super::easel::Easel;
use super::error::RealnetError;
use super::initial::fill_missing;
use super::network::{ADAM_PREFIX, features, train_step};
use super::picture::{Mask, Picture, Stored};
use super::sources::Sources;
use super::spec::{NetSpec, Target};
use super::time_is_up;
use crate::engine::{Device, Options, ParamStore, Program};

/// A cell counts as anomalous where the mask covers more than this share of it.
const CELL_COVER: f32 = 0.25;
/// Every second cached normal is brighter or darker by up to this share, as lamps drift.
const BRIGHTNESS: f32 = 0.05;
/// Blends in the ring before the first step.
const FIRST_BLENDS: usize = 48;

/// Kept features of one picture, one tensor a scale.
type Features = Vec<Vec<f32>>;

/// A normal whose features are cached; blends are painted on exactly this picture.
#[derive(Debug)]
struct Normal {
    picture: Stored,
    features: Features,
}

#[derive(Debug)]
struct Blended {
    normal: usize,
    features: Features,
    target: Vec<f32>,
}

/// How far teaching is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    pub iteration: usize,
    /// Mean over the last iterations.
    pub loss: f32,
    pub reconstruction: f32,
    pub segmentation: f32,
    /// Share of the schedule that is done, [0, 1].
    pub done: f32,
    /// Estimated time left.
    pub left: Duration,
}

/// How the loop ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ended {
    pub iterations: usize,
    pub loss: f32,
    /// Time ended it, or the caller.
    pub early: bool,
}

#[derive(Debug)]
pub struct Trainer<'a> {
    spec: &'a NetSpec,
    seed: u64,
    pictures: &'a [Stored],
    sources: &'a Sources,
    extractor: Program,
    /// Paints what the extractor looks at.
    easel: Easel,
    step: Program,
    normals: Vec<Normal>,
    ring: VecDeque<Blended>,
    painted: u32,
    loss_scale: LossScale,
}

impl<'a> Trainer<'a> {
    /// `params`: the backbone, the chosen channels and their moments. From `until` on, as few pictures as
    /// a batch needs are cached.
    pub fn new(
        spec: &'a NetSpec,
        seed: u64,
        pictures: &'a [Stored],
        sources: &'a Sources,
        params: &ParamStore,
        device: &Device,
        until: Option<Instant>,
    ) -> Result<Self, RealnetError> {
        let (g, outputs) = features(spec, spec.fresh)?;
        let named: Vec<_> = outputs.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        let mut extractor = Program::compile(&g, &named, params, device, Options::default())?;
        let easel = Easel::new(device, &mut extractor, spec.input, spec.fresh, sources)?;
        let train = train_step(spec)?;
        let mut start = ParamStore::new();
        fill_missing(&train.graph, seed, &mut start);
        let step = Program::compile(&train.graph, &train.outputs, &start, device, Options::default())?;
        let mut trainer = Trainer {
            spec,
            seed,
            pictures,
            sources,
            extractor,
            easel,
            step,
            normals: vec![],
            ring: VecDeque::new(),
            painted: 0,
            loss_scale: LossScale::of(device),
        };
        trainer.cache_normals(until)?;
        while trainer.ring.is_empty()
            || trainer.ring.len() < FIRST_BLENDS.min(spec.ring) && !time_is_up(until)
        {
            trainer.paint()?;
        }
        Ok(trainer)
    }

    /// Runs pictures through the backbone, `fresh` at a time.
    fn extract(&mut self, pictures: &[Picture]) -> Result<Vec<Features>, RealnetError> {
        let fresh = self.spec.fresh;
        let len = self.spec.input * self.spec.input * 3;
        let mut all = Vec::with_capacity(pictures.len());
        for batch in pictures.chunks(fresh) {
            let image = self.extractor.input_mut("image")?;
            for (picture, out) in batch.iter().zip(image.chunks_exact_mut(len)) {
                picture.normalised_into(out);
            }
            self.extractor.run()?;
            for i in 0..batch.len() {
                all.push(self.extracted(i)?);
            }
        }
        Ok(all)
    }

    /// Features of picture `i` of the batch that the extractor has just looked at.
    fn extracted(&self, i: usize) -> Result<Features, RealnetError> {
        let mut one = vec![];
        for scale in 0..self.spec.scales.len() {
            let data = self.extractor.output(&format!("kept.{scale}"))?;
            let share = data.len() / self.spec.fresh;
            one.push(data[i * share..][..share].to_vec());
        }
        Ok(one)
    }

    /// Every picture once as it is (as far as `normals` reaches), then again at another brightness.
    fn cache_normals(&mut self, until: Option<Instant>) -> Result<(), RealnetError> {
        let all = self.pictures.len();
        let mut draw = stream(self.seed, 0, 0, Purpose::Normals);
        let mut order = draw.permutation(all);
        let plain = all.min(self.spec.normals.div_ceil(2));
        let total = (2 * plain).min(self.spec.normals);
        order.truncate(plain);
        let mut batch = vec![];
        for i in 0..total {
            if !self.normals.is_empty() && batch.is_empty() && time_is_up(until) {
                break;
            }
            let mut picture = self.pictures[order[i % plain]].picture();
            if i >= plain {
                let factor = draw.range(1.0 - BRIGHTNESS, 1.0 + BRIGHTNESS);
                picture.data.iter_mut().for_each(|v| *v = (*v * factor).min(1.0));
            }
            // Blends start from the stored bytes, so the cached features must too.
            batch.push(Stored::from_picture(&picture));
            if batch.len() == self.spec.fresh || i + 1 == total {
                let pictures: Vec<_> = batch.iter().map(Stored::picture).collect();
                let features = self.extract(&pictures)?;
                let new = batch.drain(..).zip(features);
                self.normals.extend(new.map(|(picture, features)| Normal { picture, features }));
            }
        }
        Ok(())
    }

    /// Paints `fresh` blends into the ring.
    fn paint(&mut self) -> Result<(), RealnetError> {
        let mut draws: Vec<Draw> =
            (0..self.spec.fresh as u32).map(|i| stream(self.seed, self.painted, i, Purpose::Blend)).collect();
        self.painted += 1;
        let chosen: Vec<usize> = draws.iter_mut().map(|draw| draw.below(self.normals.len())).collect();
        let pictures: Vec<&Stored> = chosen.iter().map(|at| &self.normals[*at].picture).collect();
        let (easel, spec) = (&mut self.easel, &self.spec.blends);
        blend(easel, &mut draws, &pictures, self.pictures, self.sources, spec)?;
        easel.run(&mut self.extractor)?;
        let masks = easel.masks()?;
        for (i, (normal, mask)) in chosen.into_iter().zip(&masks).enumerate() {
            if self.ring.len() >= self.spec.ring {
                self.ring.pop_front();
            }
            let (features, target) = (self.extracted(i)?, target(self.spec, mask));
            self.ring.push_back(Blended { normal, features, target });
        }
        Ok(())
    }

    fn fill_batch(&mut self, draw: &mut Draw) -> Result<(), RealnetError> {
        let batch = self.spec.optimiser.batch;
        let chosen: Vec<(usize, Option<usize>)> = (0..batch)
            .map(|_| match draw.chance(0.5) && !self.ring.is_empty() {
                true => {
                    let at = draw.below(self.ring.len());
                    (self.ring[at].normal, Some(at))
                }
                false => (draw.below(self.normals.len()), None),
            })
            .collect();
        for scale in 0..self.spec.scales.len() {
            for presented in [true, false] {
                let name = format!("{}.{scale}", if presented { "presented" } else { "normal" });
                let input = self.step.input_mut(&name)?;
                let share = input.len() / batch;
                for (out, (normal, at)) in input.chunks_exact_mut(share).zip(&chosen) {
                    let source = match at {
                        Some(at) if presented => &self.ring[*at].features,
                        _ => &self.normals[*normal].features,
                    };
                    out.copy_from_slice(&source[scale]);
                }
            }
        }
        let target = self.step.input_mut("target")?;
        let share = target.len() / batch;
        for (out, (_, at)) in target.chunks_exact_mut(share).zip(&chosen) {
            match at {
                Some(at) => out.copy_from_slice(&self.ring[*at].target),
                None => out.fill(0.0),
            }
        }
        Ok(())
    }

    /// Trains until the iterations are done, `deadline` has come, or `go_on` says no.
    pub fn run(
        &mut self,
        deadline: Option<Instant>,
        mut go_on: impl FnMut(&Progress) -> bool,
    ) -> Result<Ended, RealnetError> {
        let o = self.spec.optimiser;
        let started = Instant::now();
        let budget = deadline.map(|d| d.saturating_duration_since(started).as_secs_f32().max(1e-3));
        let mut smooth: Option<[f32; 3]> = None;
        let mut iteration = 0;
        while iteration < o.iterations {
            let elapsed = started.elapsed().as_secs_f32();
            // The same number of iterations in the same time or less gives the same rates, and so the
            // same model, on every machine.
            let by_count = iteration as f32 / o.iterations as f32;
            let by_time = budget.map_or(0.0, |b| elapsed / b);
            // The next iteration takes what the others took on average; one there always is.
            let next = elapsed / iteration.max(1) as f32;
            if iteration > 0 && budget.is_some_and(|b| elapsed + next >= b) {
                break;
            }
            let done = by_count.max(by_time).min(1.0);
            self.paint()?;
            self.fill_batch(&mut stream(self.seed, iteration as u32, 0, Purpose::Batch))?;
            let t = iteration as i32 + 1;
            let rate = o.rate * schedule(iteration, done, o.warm_up, o.final_share);
            let corrections = o.betas.map(|b| 1.0 - b.powi(t));
            self.step.input_mut("rate")?.copy_from_slice(&[rate, corrections[0], corrections[1]]);
            self.step.input_mut("loss_scale")?.fill(self.loss_scale.value());
            self.step.run()?;
            let norm = self.step.output("gradient_norm")?.first().copied();
            self.loss_scale.after(norm.is_some_and(f32::is_finite));
            iteration += 1;

            let mut now = [0.0; 3];
            for (v, name) in now.iter_mut().zip(["loss", "reconstruction", "segmentation"]) {
                *v = self.step.output(name)?.first().copied().unwrap_or(f32::NAN);
            }
            if !now[0].is_finite() {
                return Err(RealnetError::Diverged { iteration, loss: now[0] });
            }
            let mean = match smooth {
                None => now,
                Some(old) => std::array::from_fn(|i| old[i] + 0.05 * (now[i] - old[i])),
            };
            smooth = Some(mean);
            let elapsed = started.elapsed().as_secs_f32();
            let by_count = (o.iterations - iteration) as f32 * elapsed / iteration as f32;
            let left = budget.map_or(by_count, |b| by_count.min(b - elapsed)).max(0.0);
            let progress = Progress {
                iteration,
                loss: mean[0],
                reconstruction: mean[1],
                segmentation: mean[2],
                done,
                left: Duration::from_secs_f32(left),
            };
            if !go_on(&progress) {
                break;
            }
        }
        let loss = smooth.map_or(f32::NAN, |s| s[0]);
        Ok(Ended { iterations: iteration, loss, early: iteration < o.iterations })
    }

    /// What was trained, without the optimiser's state.
    pub fn into_params(self) -> Result<ParamStore, RealnetError> {
        let all = self.step.export_params()?;
        let mut kept = ParamStore::new();
        for (name, tensor) in all.iter().filter(|(name, _)| !name.starts_with(ADAM_PREFIX)) {
            kept.insert(name, tensor.clone());
        }
        Ok(kept)
    }
}

/// What gradients are multiplied by on their way back: fp16 reaches from 6e-8 to 65504, and a mean over
/// millions of elements has smaller ones. Grows while nothing overflows, shrinks when something did
/// (Micikevicius et al. 2018, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq)]
enum LossScale {
    /// fp32 needs none.
    One,
    Dynamic {
        value: f32,
        good: u32,
    },
}

impl LossScale {
    const FIRST: f32 = 4096.0;
    const LARGEST: f32 = 16_777_216.0;
    /// Good steps after which it is doubled.
    const PATIENCE: u32 = 100;

    fn of(device: &Device) -> Self {
        match device.gpu() {
            None => LossScale::One,
            Some(_) => LossScale::Dynamic { value: Self::FIRST, good: 0 },
        }
    }

    fn value(self) -> f32 {
        match self {
            LossScale::One => 1.0,
            LossScale::Dynamic { value, .. } => value,
        }
    }

    fn after(&mut self, finite: bool) {
        let LossScale::Dynamic { value, good } = self else { return };
        *good = if finite { *good + 1 } else { 0 };
        if !finite {
            *value = (*value / 2.0).max(1.0);
        } else if *good == Self::PATIENCE {
            *value = (*value * 2.0).min(Self::LARGEST);
            *good = 0;
        }
    }
}

/// Linear warm-up, then a cosine from 1 to `end` along `done`.
fn schedule(iteration: usize, done: f32, warm_up: usize, end: f32) -> f32 {
    let warm = ((iteration + 1) as f32 / warm_up.max(1) as f32).min(1.0);
    warm * (end + (1.0 - end) * 0.5 * (1.0 + (std::f32::consts::PI * done).cos()))
}

/// What the head should say of a blend: 0 or 1 per position.
fn target(spec: &NetSpec, mask: &Mask) -> Vec<f32> {
    let binary = |above: f32| move |v: &f32| (*v > above) as u8 as f32;
    match spec.target {
        Target::Cells => mask.coverage(spec.side()).iter().map(binary(CELL_COVER)).collect(),
        Target::Pixels => mask.data.iter().map(binary(0.5)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_scale_halves_after_an_overflow_and_doubles_after_long_peace() {
        let mut scale = LossScale::Dynamic { value: 4096.0, good: 99 };
        scale.after(false);
        assert_eq!(scale.value(), 2048.0);
        (0..99).for_each(|_| scale.after(true));
        assert_eq!(scale.value(), 2048.0);
        scale.after(true);
        assert_eq!(scale.value(), 4096.0);
        (0..20).for_each(|_| scale.after(false));
        assert_eq!(scale.value(), 1.0);
        let mut one = LossScale::of(&Device::from(crate::engine::Threads::new(1)));
        one.after(false);
        assert_eq!(one.value(), 1.0);
    }

    #[test]
    fn the_rate_warms_up_and_falls_along_a_cosine() {
        assert!((schedule(0, 0.0, 30, 0.02) - 1.0 / 30.0).abs() < 1e-6);
        assert!((schedule(30, 0.0, 30, 0.02) - 1.0).abs() < 1e-6);
        assert!((schedule(500, 0.5, 30, 0.02) - 0.51).abs() < 1e-6);
        assert!((schedule(999, 1.0, 30, 0.02) - 0.02).abs() < 1e-6);
        assert_eq!(schedule(999, 1.0, 0, 1.0), 1.0);
    }
}
