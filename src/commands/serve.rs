//! `inspectd serve`: the daemon.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use crossbeam_channel::{Receiver, bounded};
use jiff::Timestamp;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::check::{refusal, source_complaints};
use super::device::{all_processors, open};
use super::{Exit, Failure, OrExit};
use crate::archive::ArchiveError;
use crate::capture::{CaptureError, Frame};
use crate::config::{self, Complaint, DaemonConfig, InForceRecord, LineConfig, LogFormat};
use crate::engine::{Device, DeviceName, Priority, ProgramError, Threads};
use crate::imaging::RgbImage;
use crate::line::camera::Camera;
use crate::line::company::{Known, Partner};
use crate::line::daemon::{Command, StartError, start};
use crate::line::standby::{Guarded, Users};
use crate::line::{InForce, Judge, Made, NoJudge, Problem, Supplier, camera};
use crate::model::{Model, ModelError};
use crate::outputs::http::Server;
use crate::realnet::{Inspector, RealnetError};
use crate::telemetry::{Telemetry, logging};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration, TOML
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let examine = |line: &LineConfig| source_complaints(line);
    let config = config::load_with(&args.config, &examine).map_err(|error| refusal(&args.config, error))?;
    start_logging(&config.daemon);
    if config.daemon.batch > 1 && config.daemon.device == DeviceName::Cpu {
        tracing::warn!(
            batch = config.daemon.batch,
            "The CPU judges one frame at a time: `batch` is for GPUs."
        );
    }
    // Before anything that takes time: a SIGTERM during the start must not be lost.
    let commands = listen_for_signals().context("signals cannot be received").or_exit(Exit::Unavailable)?;
    let listener = match config.daemon.http {
        None => None,
        Some(address) => Some(Server::bind(address).map_err(|error| taken(address, error))?),
    };
    let telemetry = Telemetry::new();
    let works = Arc::new(Works {
        telemetry: telemetry.clone(),
        config_file: args.config.clone(),
        state_dir: state_dir(&config.daemon),
        shared: Mutex::default(),
    });
    let address_file = state_dir(&config.daemon).map(|folder| folder.join("http_address"));
    let daemon = start(config, args.config, works, telemetry, listener).map_err(not_started)?;
    let written = match (address_file, daemon.address()) {
        (Some(path), Some(address)) => write_address(&path, address).then_some(path),
        _ => None,
    };
    let result = daemon.run(&commands).or_exit(Exit::Internal);
    if let Some(path) = written {
        // A stale address is harmless; the next start replaces it.
        let _ = std::fs::remove_file(path);
    }
    result
}

fn start_logging(config: &DaemonConfig) {
    let format = match config.log_format {
        LogFormat::Auto => logging::detect(),
        LogFormat::Text => logging::Format::Text,
        LogFormat::Json => logging::Format::Json,
        LogFormat::Journald => logging::Format::Journald,
    };
    logging::init(format, &config.log_level);
}

/// SIGTERM and SIGINT stop, SIGHUP reloads.
fn listen_for_signals() -> std::io::Result<Receiver<Command>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let (sender, commands) = bounded(16);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in &mut signals {
            let command = match signal {
                SIGHUP => Command::Reload,
                SIGINT => Command::Stop("SIGINT"),
                _ => Command::Stop("SIGTERM"),
            };
            // Sixteen unanswered signals say all that can be said.
            let _ = sender.try_send(command);
        }
    })?;
    Ok(commands)
}

/// Models from files, cameras from GStreamer.
struct Works {
    telemetry: Telemetry,
    config_file: PathBuf,
    state_dir: Option<PathBuf>,
    /// Judges that lines share, by their model's hash, and whom they judge for.
    shared: Mutex<BTreeMap<String, (Known, Users)>>,
}

impl Supplier<Frame> for Works {
    fn judges(&self, daemon: &DaemonConfig, lines: &[&LineConfig]) -> Result<Vec<Made>, NoJudge> {
        let threads = match daemon.threads {
            0 => all_processors(),
            n => n,
        };
        let mut loaded: BTreeMap<&Path, Arc<Model>> = BTreeMap::new();
        let mut made = Vec::new();
        for line in lines {
            let no_judge = |source: Problem| NoJudge { line: line.name.clone(), source };
            let model = match loaded.get(line.model.as_path()) {
                Some(model) => Arc::clone(model),
                None => {
                    let model = Arc::new(Model::load(&line.model).map_err(|error| no_judge(error.into()))?);
                    loaded.insert(&line.model, Arc::clone(&model));
                    model
                }
            };
            let hash = model.hash();
            let judge = self.judge(line.name.as_str(), model, daemon, threads).map_err(no_judge)?;
            made.push(Made { hash, judge });
        }
        Ok(made)
    }

    fn camera(&self, line: &LineConfig, first: u64) -> Result<Camera<Frame>, Problem> {
        camera::start(line, first)
    }

    fn examine(&self, line: &LineConfig) -> Vec<Complaint> {
        source_complaints(line)
    }

    fn in_force(&self, InForce { config, models }: &InForce) {
        let Some(folder) = &self.state_dir else { return };
        let hashes = config.lines.iter().map(|line| &line.name).zip(models.iter().map(|m| m.hash.as_str()));
        let since = format!("{:.0}", Timestamp::now());
        let record = InForceRecord::new(&self.config_file, since, config, hashes);
        if let Err(error) = record.and_then(|record| record.write(folder)) {
            tracing::warn!(folder = %folder.display(), %error, "What is in force is not written down for `inspectd plan`.");
        }
    }
}

impl Works {
    /// Compiles the model for the CPU and, where the configuration names one, for a GPU before it. Where a GPU judges
    /// several frames at once, lines of the same model share their judge.
    fn judge(
        &self,
        line: &str,
        model: Arc<Model>,
        daemon: &DaemonConfig,
        threads: usize,
    ) -> Result<Box<dyn Judge>, Problem> {
        let (device, batch, hash) = (daemon.device, daemon.batch, model.hash());
        let name = device.to_string();
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, users)) = shared.get(&hash)
            && let Some(partner) = known.partner()
        {
            users.add(line, &name, &self.telemetry);
            return Ok(Box::new(partner));
        }
        let standby = warm(&model, &Device::from(Threads::new(threads)), 1)?;
        if device == DeviceName::Cpu {
            return Ok(Box::new(standby));
        }
        let open =
            move || warm(&model, &open(device, threads, Priority::High).map_err(ProgramError::from)?, batch);
        let judge = Guarded::new(line, &name, standby, open, self.telemetry.clone(), Instant::now());
        if batch == 1 {
            return Ok(Box::new(judge));
        }
        let users = judge.users();
        let partner = Partner::new(Box::new(judge), batch);
        shared.retain(|_, (known, _)| known.partner().is_some());
        shared.insert(hash, (partner.known(), users));
        Ok(Box::new(partner))
    }
}

/// Judges one black picture, so that the first part finds everything in memory.
fn warm(model: &Model, device: &Device, batch: usize) -> Result<Inspector, RealnetError> {
    let mut inspector = Inspector::for_several(model, device, batch)?;
    let (width, height) = inspector.input_size();
    let black = RgbImage::new(width, height);
    inspector.judge(&black.view(), None)?;
    for n in 2..=batch {
        inspector.judge_some(&vec![(black.view(), None); n])?;
    }
    Ok(inspector)
}

fn taken(address: SocketAddr, error: std::io::Error) -> Failure {
    let error = anyhow::Error::new(error).context(format!("HTTP cannot be served on {address}"));
    Failure::new(Exit::Unavailable, error)
        .hint(format!("http = \"{}:0\" under [daemon] takes a free port", address.ip()))
}

fn not_started(error: StartError) -> Failure {
    let exit = match &error {
        StartError::Judge(no_judge) => {
            let missing = no_judge.source.downcast_ref::<ModelError>().is_some_and(ModelError::is_missing);
            let exit = if missing { Exit::NoInput } else { Exit::Data };
            return Failure::new(exit, error).hint("inspectd teach --images DIR --out FILE");
        }
        StartError::Rules(_) | StartError::Token { .. } => Exit::Config,
        StartError::Archive(ArchiveError::Store(_)) => {
            return Failure::new(Exit::CantCreate, error).hint("folder = \"ANOTHER\" under [archive]");
        }
        StartError::Archive(ArchiveError::Thread { .. }) => Exit::Unavailable,
        StartError::Camera { source, .. } => match source.downcast_ref::<CaptureError>() {
            Some(CaptureError::Config { .. } | CaptureError::Fragment { .. }) => Exit::Config,
            _ => Exit::Unavailable,
        },
        StartError::Thread { .. } => Exit::Unavailable,
    };
    Failure::new(exit, error)
}

/// As configured, else as systemd says.
pub(super) fn state_dir(config: &DaemonConfig) -> Option<PathBuf> {
    config.state_dir.clone().or_else(|| {
        let folders = std::env::var_os("STATE_DIRECTORY")?;
        std::env::split_paths(&folders).next()
    })
}

/// Whether the address was written. If not, that is told and the daemon runs all the same.
fn write_address(path: &Path, address: SocketAddr) -> bool {
    let write = || -> std::io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        writeln!(file, "{address}")?;
        file.persist(path)?;
        Ok(())
    };
    write()
        .inspect_err(
            |error| tracing::warn!(path = %path.display(), %error, "The HTTP address is not written."),
        )
        .is_ok()
}
