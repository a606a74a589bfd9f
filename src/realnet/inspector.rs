//! A taught model, compiled and ready to judge frames.

use std::sync::Arc;

use super::error::{MAX_INPUT, RealnetError};
use super::frames::{Frames, MOST, Part};
use super::initial::fill_missing;
use super::network::{judgement, judgement_of, selection_name};
use super::score::{Fusion, Place, Raw, raw};
use super::spec::NetSpec;
use crate::engine::{Device, Gpu, Options, ParamStore, PinnedPages, Program, ProgramError, Tensor};
use crate::imaging::{FrameView, Roi};
use crate::model::{Model, Preset, Thresholds};
use crate::nets::random_weights;
use crate::pages::Pages;

/// Owns a compiled inference program and its buffers; one per device and line.
#[derive(Debug)]
pub struct Inspector {
    core: Core,
    /// Programs for several pictures at once, the largest first.
    wide: Vec<Wide>,
    /// Scores of the last `judge_some`, and the maps of those that have one, one after the other.
    scores: Vec<Result<f32, RealnetError>>,
    maps: Vec<f32>,
    thresholds: Thresholds,
    score: f32,
    device: String,
    gpu: Option<Gpu>,
    /// The memory that frames of each line come from.
    pinned: Vec<(usize, PinnedPages)>,
}

/// The network for several pictures in one run of a GPU.
#[derive(Debug)]
struct Wide {
    pictures: usize,
    program: Program,
    frames: Frames,
}

/// What the network says of one picture. `map` holds `map_width * map_height` probabilities in
/// [0, 1], row-major, and covers the region of interest.
#[derive(Debug)]
pub struct Judgement<'a> {
    pub score: f32,
    pub map_width: usize,
    pub map_height: usize,
    pub map: &'a [f32],
}

impl Inspector {
    /// Compiles for `device`, whose threads include the caller's.
    pub fn new(model: &Model, device: &Device) -> Result<Self, RealnetError> {
        Self::for_several(model, device, 1)
    }

    /// As `new`; a GPU will judge up to `most` frames at once (1, 2 or 4), for which the parameters are there
    /// once. The CPU judges them one by one.
    pub fn for_several(model: &Model, device: &Device, most: usize) -> Result<Self, RealnetError> {
        let (width, height) = (model.meta.input_width, model.meta.input_height);
        if width != height || width == 0 || width % 32 != 0 || width > MAX_INPUT {
            return Err(RealnetError::InputSize { width, height });
        }
        let spec = NetSpec { input: width, ..NetSpec::of(model.meta.preset) };
        let core = Core::new(spec, &model.params, device)?;
        Self::of(core, &model.params, model.thresholds(), device, most)
    }

    /// Nothing but random weights: its scores mean nothing, its time is a taught one's. For
    /// `inspectd bench`.
    pub fn untaught(preset: Preset, device: &Device) -> Result<Self, RealnetError> {
        let spec = NetSpec::of(preset);
        let params = untaught_params(&spec)?;
        let core = Core::new(spec, &params, device)?;
        Self::of(core, &params, Thresholds { unsure: 0.0, bad: 1.0 }, device, 1)
    }

    pub(super) fn of(
        core: Core,
        params: &ParamStore,
        thresholds: Thresholds,
        device: &Device,
        most: usize,
    ) -> Result<Self, RealnetError> {
        let mut wide = Vec::new();
        if let Program::Cuda(one) = &core.program {
            for pictures in [MOST, 2].into_iter().filter(|pictures| *pictures <= most) {
                let (g, outputs) = judgement_of(&core.spec, pictures)?;
                let program =
                    one.compile_beside(&g, &outputs, params, device.priority(), Options::default())?;
                let program = Program::Cuda(Box::new(program));
                wide.push(Wide { pictures, program, frames: Frames::default() });
            }
        }
        let most = most.clamp(1, MOST);
        Ok(Inspector {
            scores: Vec::with_capacity(most),
            maps: Vec::with_capacity(if most > 1 { most * core.spec.input.pow(2) } else { 0 }),
            core,
            wide,
            thresholds,
            score: f32::NAN,
            device: device.name().to_owned(),
            gpu: device.gpu().cloned(),
            pinned: vec![],
        })
    }

    /// Registers the memory that frames of `line` come from with the GPU, if there is one, which then copies
    /// them straight out of it; what was registered for the line before is let go.
    pub fn pin(&mut self, line: usize, pages: &Arc<Pages>) -> Result<(), RealnetError> {
        let Some(gpu) = &self.gpu else { return Ok(()) };
        self.pinned.retain(|(other, _)| *other != line);
        self.pinned.push((line, gpu.pin(pages).map_err(ProgramError::from)?));
        Ok(())
    }

    /// The name of the device it computes on.
    pub fn device(&self) -> &str {
        &self.device
    }

    pub fn thresholds(&self) -> Thresholds {
        self.thresholds
    }

    /// Width and height of the network's input, pixels.
    pub fn input_size(&self) -> (usize, usize) {
        (self.core.spec.input, self.core.spec.input)
    }

    /// Judges the region of interest of one frame, or all of it. Allocates nothing once a frame size
    /// and region were seen.
    pub fn judge(&mut self, frame: &FrameView<'_>, roi: Option<Roi>) -> Result<Judgement<'_>, RealnetError> {
        let raw = self.core.raw(frame, roi)?;
        self.score = self.core.score(raw);
        self.last()
    }

    /// Judges several frames, on a GPU as many at once as it was compiled for; [`judged`](Self::judged) says what
    /// became of each. A frame that cannot be judged is no other's fault; an error of the device is everybody's:
    /// then none was judged. Allocates nothing once the frames' sizes and regions were seen at their places.
    pub fn judge_some(&mut self, frames: &[Part<'_>]) -> Result<(), RealnetError> {
        self.scores.clear();
        self.maps.clear();
        let judged = self.judge_all(frames);
        if judged.is_err() {
            self.scores.clear();
        }
        judged
    }

    fn judge_all(&mut self, mut frames: &[Part<'_>]) -> Result<(), RealnetError> {
        while let Some((first, others)) = frames.split_first() {
            let wide = self.wide.iter_mut().find(|wide| wide.pictures <= frames.len());
            let taken = match wide {
                None => 0,
                Some(wide) => match self.core.judge_with(wide, frames, &mut self.scores, &mut self.maps) {
                    Ok(()) => wide.pictures,
                    Err(error) if error.is_device() => return Err(error),
                    // One of them is at fault: by itself each hears its own.
                    Err(_) => 0,
                },
            };
            if taken > 0 {
                frames = &frames[taken..];
            } else {
                self.judge_one(first)?;
                frames = others;
            }
        }
        Ok(())
    }

    fn judge_one(&mut self, (frame, roi): &Part<'_>) -> Result<(), RealnetError> {
        let score = match self.core.raw(frame, *roi) {
            Ok(raw) => {
                self.maps.extend_from_slice(self.core.map()?);
                Ok(self.core.score(raw))
            }
            Err(error) if error.is_device() => return Err(error),
            Err(error) => Err(error),
        };
        self.scores.push(score);
        Ok(())
    }

    /// Frames that it judges at once, at most.
    pub fn most(&self) -> usize {
        self.wide.first().map_or(1, |wide| wide.pictures)
    }

    #[cfg(test)]
    pub(super) fn keeps_parameters_once(&self) -> bool {
        let Program::Cuda(one) = &self.core.program else { return true };
        let shares =
            |wide: &Wide| matches!(&wide.program, Program::Cuda(wide) if one.shares_params_with(wide));
        self.wide.iter().all(shares)
    }

    /// What the last `judge_some` says of frame `index`; `None` where there was no such frame.
    pub fn judged(&self, index: usize) -> Option<Result<Judgement<'_>, &RealnetError>> {
        let (side, score) = (self.core.spec.input, self.scores.get(index)?);
        let maps_before = self.scores[..index].iter().filter(|score| score.is_ok()).count();
        let map = || self.maps.chunks_exact(side * side).nth(maps_before).unwrap_or_default();
        let judgement =
            |score: &f32| Judgement { score: *score, map_width: side, map_height: side, map: map() };
        Some(score.as_ref().map(judgement))
    }

    /// The last judgement again.
    pub fn last(&self) -> Result<Judgement<'_>, RealnetError> {
        let side = self.core.spec.input;
        Ok(Judgement { score: self.score, map_width: side, map_height: side, map: self.core.map()? })
    }
}

fn untaught_params(spec: &NetSpec) -> Result<ParamStore, RealnetError> {
    let mut params = random_weights(spec.backbone, 1);
    for (index, scale) in spec.scales.iter().enumerate() {
        let first = (0..scale.keep).map(|channel| channel as f32).collect();
        params.insert(selection_name(index), Tensor::vector(first));
    }
    fill_missing(&judgement(spec)?.0, 1, &mut params);
    Ok(params)
}

/// The compiled network without thresholds, which teaching derives from its scores.
#[derive(Debug)]
pub(super) struct Core {
    spec: NetSpec,
    program: Program,
    fusion: Option<Fusion>,
    frames: Frames,
}

impl Core {
    pub fn new(spec: NetSpec, params: &ParamStore, device: &Device) -> Result<Self, RealnetError> {
        let (g, outputs) = judgement(&spec)?;
        let program = Program::compile(&g, &outputs, params, device, Options::default())?;
        Ok(Core { spec, program, fusion: Fusion::from_params(params), frames: Frames::default() })
    }

    pub fn set_fusion(&mut self, fusion: Fusion) {
        self.fusion = Some(fusion);
    }

    /// Runs the network on a frame.
    pub fn raw(&mut self, frame: &FrameView<'_>, roi: Option<Roi>) -> Result<Raw, RealnetError> {
        self.frames.run(&mut self.program, self.spec.input, frame, roi)?;
        raw(&self.spec, &self.program, Place::ONLY)
    }

    /// Runs the network on the first of `frames`, as many as the program takes, and adds their scores and maps.
    fn judge_with(
        &self,
        wide: &mut Wide,
        frames: &[Part<'_>],
        scores: &mut Vec<Result<f32, RealnetError>>,
        maps: &mut Vec<f32>,
    ) -> Result<(), RealnetError> {
        let Wide { pictures, program, frames: prepared } = wide;
        prepared.run_some(program, self.spec.input, &frames[..*pictures])?;
        maps.extend_from_slice(program.output("map")?);
        for picture in 0..*pictures {
            let raw = raw(&self.spec, program, Place { picture, of: *pictures })?;
            scores.push(Ok(self.score(raw)));
        }
        Ok(())
    }

    /// The model's score of a raw one: in deviations of normals where a bank has a say, else the head's.
    pub fn score(&self, raw: Raw) -> f32 {
        match (&self.spec.bank, &self.fusion) {
            (Some(_), Some(fusion)) => fusion.score(raw),
            _ => raw.head,
        }
    }

    /// The map of the last run.
    pub fn map(&self) -> Result<&[f32], RealnetError> {
        Ok(self.program.output("map")?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::cuda::launch::Limits;
    use crate::engine::cuda::schedule::Schedule;
    use crate::engine::passes;
    use crate::engine::{Shape, Tensor, Value};

    const A100: Limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 166_912 };

    /// Launches of a frame as it runs, by kernel, and how much larger its arena is than that of its operations
    /// as they come. The weights, all zero, decide nothing.
    fn launches(preset: Preset) -> (usize, String, f64) {
        let (mut g, outputs) = judgement(&NetSpec::of(preset)).unwrap();
        let mut params = ParamStore::new();
        let named: Vec<(String, Shape)> = g.params().map(|(n, v)| (n.to_owned(), g.shape(v))).collect();
        for (name, shape) in named {
            params.insert(name, Tensor::zeros(shape));
        }
        let kept: Vec<Value> = outputs.iter().map(|o| o.1).collect();
        let made = passes::optimise(&mut g, &params, &kept);
        let apart = Schedule::in_order(&g, &outputs, [&params, &made], A100).unwrap();
        let schedule = Schedule::new(&g, &outputs, [&params, &made], A100).unwrap();
        let mut by_kernel = BTreeMap::<&str, usize>::new();
        for run in &schedule.runs {
            let (_, launch) = schedule.launch(run.parts[0]).unwrap();
            *by_kernel.entry(launch.kernel).or_default() += 1;
        }
        let text = format!(
            "{preset:?}: {} launches, {} as they come; arena {} MB, {} MB as they come; {by_kernel:#?}",
            schedule.launches(),
            apart.launches(),
            schedule.arena_bytes >> 20,
            apart.arena_bytes >> 20
        );
        (schedule.launches(), text, schedule.arena_bytes as f64 / apart.arena_bytes as f64)
    }

    #[test]
    fn a_frame_takes_few_launches_whose_joining_costs_little_memory() {
        for (preset, most) in [(Preset::Small, 111), (Preset::Lean, 260), (Preset::Realnet, 260)] {
            let (launches, text, growth) = launches(preset);
            println!("{text}");
            assert!(launches <= most, "{text}");
            assert!(growth <= 1.5, "{text}");
        }
    }
}
