//! `inspectd teach`: from a folder of good parts to a model file.

use std::path::PathBuf;

use clap::ValueEnum;

use super::{Exit, Failure};

/// Which network to teach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// EfficientNet-Lite0 features; made for CPUs and small boards
    Small,
    /// The paper's wiring at a quarter of the width
    Lean,
    /// The paper's network on WideResNet50-2
    Realnet,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of pictures of good parts, or an MVTec category (its train/good is used then)
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,
    /// Where to write the model
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    #[arg(long, value_enum, default_value_t = Preset::Small)]
    pub preset: Preset,
    /// Same seed, same pictures, same model
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Stop after this many minutes at the latest, with a usable model
    #[arg(long, value_name = "M")]
    pub minutes: Option<f64>,
    /// Folder of texture pictures to make training anomalies from
    #[arg(long, value_name = "DIR")]
    pub textures: Option<PathBuf>,
    /// Progress and result as JSON lines
    #[arg(long)]
    pub json: bool,
}

pub fn run(_args: Args) -> Result<(), Failure> {
    Err(Failure::say(Exit::Unavailable, "`inspectd teach` is not built yet"))
}
