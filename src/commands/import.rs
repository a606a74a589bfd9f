//! `inspectd import`: PyTorch or safetensors weights to our own file.

use std::path::{Path, PathBuf};

use super::{Exit, Failure, OrExit};
use crate::nets::{self, Arch, NetError};
use crate::weights::WeightsError;

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

pub fn run(args: Args) -> Result<(), Failure> {
    let arch = parse_arch(&args.arch)?;
    let params =
        nets::load_weights(&args.from, arch).map_err(|error| weights_failure(error, arch, &args.from))?;
    nets::save_weights(&args.out, arch, &params).map_err(|error| weights_failure(error, arch, &args.out))?;
    let written = format!(
        "{}: {} parameters of {arch} in {} tensors, sha256 {}\n",
        args.out.display(),
        params.scalars(),
        params.len(),
        &crate::model::params_sha256(params.iter())[..16],
    );
    std::io::Write::write_all(&mut std::io::stdout().lock(), written.as_bytes()).map_err(Failure::stdout)
}

/// The network of that name, or a usage error that lists the names.
pub fn parse_arch(name: &str) -> Result<Arch, Failure> {
    name.parse().or_exit(Exit::Usage)
}

/// An exit code and what to type for weights that cannot be read or written.
pub fn weights_failure(error: NetError, arch: Arch, path: &Path) -> Failure {
    let exit = match &error {
        NetError::File(WeightsError::Missing { .. }) => Exit::NoInput,
        NetError::File(WeightsError::Read { .. }) => Exit::Io,
        NetError::File(WeightsError::Write { .. }) => Exit::CantCreate,
        NetError::File(_) | NetError::Weights { .. } | NetError::OtherArch { .. } => Exit::Data,
        NetError::UnknownArch { .. } | NetError::UnknownTap { .. } => Exit::Usage,
        NetError::Graph(_) => Exit::Internal,
    };
    let hint = match &error {
        NetError::File(WeightsError::Missing { .. }) if arch == Arch::EfficientnetLite0 => {
            Some("scripts/setup.sh, which fetches the default weights".to_owned())
        }
        NetError::Weights { .. } => {
            let others = Arch::ALL.into_iter().filter(|other| *other != arch).map(Arch::name);
            Some(format!("--arch {}, if the file is that network's", others.collect::<Vec<_>>().join(" or ")))
        }
        NetError::OtherArch { found, .. } => Some(format!("--arch {found}")),
        _ => None,
    };
    let error = match error {
        // These name their file themselves.
        NetError::File(error) => anyhow::Error::new(error),
        error => anyhow::Error::new(error).context(format!("{} cannot be used", path.display())),
    };
    let failure = Failure::new(exit, error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
