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

#[cfg(test)]
mod tests {
    use super::*;

    fn import(from: &Path, arch: &str, out: &Path) -> Result<(), Failure> {
        run(Args { from: from.to_owned(), arch: arch.to_owned(), out: out.to_owned() })
    }

    #[test]
    fn imported_weights_can_be_imported_again() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a"), folder.path().join("b"));
        let arch = Arch::EfficientnetLite0;
        nets::save_weights(&first, arch, &nets::random_weights(arch, 1)).unwrap();
        import(&first, "efficientnet_lite0", &second).unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
    }

    #[test]
    fn each_failure_has_its_exit_code_says_what_to_type_and_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/weights");
        let lite = "efficientnet_lite0";
        for (from, arch, exit, says) in [
            (golden.join("zip.pth"), "resnet18", Exit::Usage, "known are efficientnet_lite0"),
            (golden.join("none.pth"), lite, Exit::NoInput, "scripts/setup.sh"),
            (golden.join("zip.pth"), lite, Exit::Data, "`_conv_stem.weight` is missing"),
            (golden.join("zip.pth"), lite, Exit::Data, "try: --arch wide_resnet50_2"),
            (
                golden.join("zip_attack.pth"),
                lite,
                Exit::Data,
                "would run `posix.system`; nothing was executed",
            ),
            (golden.join("../palette.png"), lite, Exit::Data, "no weights file"),
        ] {
            let failure = import(&from, arch, &out).unwrap_err();
            assert_eq!(failure.exit(), exit, "{failure}");
            assert!(failure.to_string().contains(says), "{failure}");
            assert!(!out.exists(), "{failure}");
        }
        let weights = folder.path().join("w");
        let arch = Arch::EfficientnetLite0;
        nets::save_weights(&weights, arch, &nets::random_weights(arch, 1)).unwrap();
        let failure = import(&weights, lite, &folder.path().join("no/folder/out")).unwrap_err();
        assert_eq!(failure.exit(), Exit::CantCreate, "{failure}");
    }
}
