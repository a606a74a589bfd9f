//! `inspectd judge`: one JSON line per picture.

use std::path::PathBuf;

use super::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model, as written by `inspectd teach`
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// Pictures, and folders of pictures
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
    /// Write each picture with its heatmap laid over it, as PNG, into this folder
    #[arg(long, value_name = "DIR")]
    pub heatmaps: Option<PathBuf>,
    /// Write each raw anomaly map as 16-bit PNG (value = 65535 p) into this folder
    #[arg(long, value_name = "DIR")]
    pub maps: Option<PathBuf>,
    /// JSON lines even on a terminal
    #[arg(long)]
    pub json: bool,
}

pub fn run(_args: Args) -> Result<(), Failure> {
    Err(Failure::say(Exit::Unavailable, "`inspectd judge` is not built yet"))
}
