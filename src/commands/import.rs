//! `inspectd import`: PyTorch or safetensors weights to our own file.

use std::path::PathBuf;

use super::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// PyTorch .pth or .safetensors weights; data only, nothing in them is executed
    #[arg(long, value_name = "FILE")]
    pub from: PathBuf,
    /// The network they belong to, e.g. efficientnet_lite0 or wide_resnet50_2
    #[arg(long, value_name = "NAME")]
    pub arch: String,
    /// Where to write the converted weights (safetensors)
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

pub fn run(_args: Args) -> Result<(), Failure> {
    Err(Failure::say(Exit::Unavailable, "`inspectd import` is not built yet"))
}
