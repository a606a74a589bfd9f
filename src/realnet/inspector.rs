//! A taught model, compiled and ready to judge frames.

use std::sync::Arc;

use super::error::{MAX_INPUT, RealnetError};
use super::frames::Frames;
use super::initial::fill_missing;
use super::network::{judgement, selection_name};
use super::score::{Fusion, Raw, raw};
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
    thresholds: Thresholds,
    score: f32,
    device: String,
    gpu: Option<Gpu>,
    /// The memory that frames of each line come from.
    pinned: Vec<(usize, PinnedPages)>,
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
        let (width, height) = (model.meta.input_width, model.meta.input_height);
        if width != height || width == 0 || width % 32 != 0 || width > MAX_INPUT {
            return Err(RealnetError::InputSize { width, height });
        }
        let spec = NetSpec { input: width, ..NetSpec::of(model.meta.preset) };
        let core = Core::new(spec, &model.params, device)?;
        Ok(Inspector {
            core,
            thresholds: model.thresholds(),
            score: f32::NAN,
            device: device.name().to_owned(),
            gpu: device.gpu().cloned(),
            pinned: vec![],
        })
    }

    /// Nothing but random weights: its scores mean nothing, its time is a taught one's. For
    /// `inspectd bench`.
    pub fn untaught(preset: Preset, device: &Device) -> Result<Self, RealnetError> {
        let spec = NetSpec::of(preset);
        let params = untaught_params(&spec)?;
        let core = Core::new(spec, &params, device)?;
        Ok(Inspector {
            core,
            thresholds: Thresholds { unsure: 0.0, bad: 1.0 },
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
        raw(&self.spec, &self.program)
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
    use super::*;
    use crate::engine::Value;
    use crate::engine::cuda::launch::Limits;
    use crate::engine::cuda::schedule::Schedule;
    use crate::engine::passes;

    /// `lean` is `realnet`'s graph node for node, at a quarter of the width. 682 launches today: 260 are
    /// aimed at, for which split sums and norms have to join the launches before them, and concatenations
    /// to become places.
    #[test]
    fn launches_of_a_frame_of_the_papers_network_do_not_grow() {
        let spec = NetSpec::of(Preset::Lean);
        let params = untaught_params(&spec).unwrap();
        let (mut g, outputs) = judgement(&spec).unwrap();
        let kept: Vec<Value> = outputs.iter().map(|o| o.1).collect();
        let made = passes::optimise(&mut g, &params, &kept);
        let limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 166_912 };
        let schedule = Schedule::new(&g, &outputs, [&params, &made], limits).unwrap();
        let mut by_kind = std::collections::BTreeMap::<&str, usize>::new();
        for launch in schedule.steps.iter().flat_map(|s| &s.launches) {
            *by_kind.entry(launch.module).or_default() += 1;
        }
        assert!(schedule.launches() <= 682, "{}: {by_kind:?}", schedule.launches());
    }
}
