//! What `judge` and `eval` share: a model made ready to judge pictures from files, and output files.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressStyle};

use super::device::DeviceArg;
use super::{Exit, Failure, OrExit};
use crate::engine::Priority;
use crate::imaging::{Heatmap, ImagingError, RgbImage};
use crate::model::{Model, Thresholds};
use crate::realnet::Inspector;

/// What a model says of one picture.
#[derive(Clone, Debug)]
pub struct Opinion {
    pub score: f32,
    pub map: Heatmap,
    /// From the decoded picture to its score.
    pub ms: f64,
}

/// A model, compiled for this machine.
#[derive(Debug)]
pub struct Judge {
    inspector: Inspector,
}

impl Judge {
    pub fn open(model: &Path, device: DeviceArg) -> Result<Self, Failure> {
        let device = device.open(Priority::High)?;
        let teach = "inspectd teach --images DIR --out FILE";
        if !model.try_exists().unwrap_or(true) {
            let message = format!("the model {} does not exist", model.display());
            return Err(Failure::say(Exit::NoInput, message).hint(teach));
        }
        let unusable = || format!("the model {} cannot be used", model.display());
        let loaded = Model::load(model)
            .with_context(unusable)
            .map_err(|e| Failure::new(Exit::Data, e).hint(format!("teach it again: {teach}")))?;
        let inspector = Inspector::new(&loaded, &device).with_context(unusable).or_exit(Exit::Data)?;
        Ok(Judge { inspector })
    }

    pub fn thresholds(&self) -> Thresholds {
        self.inspector.thresholds()
    }

    pub fn input_size(&self) -> (usize, usize) {
        self.inspector.input_size()
    }

    pub fn opinion(&mut self, image: &RgbImage) -> Result<Opinion, Failure> {
        let start = Instant::now();
        let judgement = self.inspector.judge(&image.view(), None).or_exit(Exit::Internal)?;
        let ms = start.elapsed().as_secs_f64() * 1e3;
        let map = Heatmap {
            width: judgement.map_width,
            height: judgement.map_height,
            data: judgement.map.to_vec(),
        };
        Ok(Opinion { score: judgement.score, map, ms })
    }
}

/// The failure that a picture file causes.
pub fn picture_failure(error: ImagingError) -> Failure {
    let exit = match &error {
        error if error.is_missing() => Exit::NoInput,
        ImagingError::Read { .. } => Exit::Io,
        ImagingError::Write { .. } => Exit::CantCreate,
        ImagingError::Encode { .. } => Exit::Internal,
        _ => Exit::Data,
    };
    Failure::new(exit, error)
}

/// A file that appears whole under its name, or not at all. Opened before the work begins, so that an
/// unwritable place is told at once.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    file: tempfile::NamedTempFile,
}

impl Output {
    pub fn create(path: &Path) -> Result<Self, Failure> {
        use std::os::unix::fs::PermissionsExt;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if path.is_dir() {
            let message = format!("{} is a folder; a file is to be written there", path.display());
            return Err(Failure::say(Exit::CantCreate, message));
        }
        let file = tempfile::Builder::new()
            .prefix(".")
            .suffix(".tmp")
            .permissions(std::fs::Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(|e| cannot_create(path, e))?;
        Ok(Output { path: path.into(), file })
    }

    pub fn finish(mut self, bytes: &[u8]) -> Result<(), Failure> {
        use std::io::Write;
        self.file.write_all(bytes).map_err(|e| cannot_create(&self.path, e))?;
        self.file.persist(&self.path).map_err(|e| cannot_create(&self.path, e.error))?;
        Ok(())
    }
}

/// Makes the folder and those above it.
pub fn create_folder(path: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(path).map_err(|e| cannot_create(path, e))
}

fn cannot_create(path: &Path, error: std::io::Error) -> Failure {
    let error = anyhow!(error).context(format!("{} cannot be created", path.display()));
    Failure::new(Exit::CantCreate, error).hint("name a folder that exists and that you may write to")
}

/// A bar on stderr where a person watches it, nothing elsewhere.
pub fn progress(pictures: usize, hidden: bool) -> ProgressBar {
    if hidden || pictures < 2 || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(pictures as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40.cyan} {pos}/{len}  {per_sec}  {eta} left") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
