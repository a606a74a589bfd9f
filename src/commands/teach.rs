//! `inspectd teach`: from a folder of good parts to a model file.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::device::DeviceArg;
use super::eval::dataset_failure;
use super::import::weights_failure;
use super::inspect::{Output, picture_failure};
use super::{Exit, Failure, OrExit};
use crate::engine::{ParamStore, Priority};
use crate::eval::teaching_images;
use crate::imaging::list_images;
use crate::model::{
    Backbone, Calibration, CalibrationRule, Model, ModelMeta, Preset, Training, calibrate, hex, params_sha256,
};
use crate::nets::{Arch, load_weights};
use crate::realnet::{Lesson, MAX_INPUT, NetSpec, RealnetError, Stage, Taught, teach};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of pictures of good parts, or an MVTec category (its train/good is used then)
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,
    /// Where to write the model
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// small: EfficientNet-Lite0 features, made for CPUs and small boards; lean: the paper's wiring at a
    /// quarter of the width; realnet: the paper's network on WideResNet50-2
    #[arg(long, value_name = "small|lean|realnet", default_value_t = Preset::Small)]
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
    /// Side of the network's square input in pixels, a multiple of 32 [default: the preset's]
    #[arg(long, value_name = "PIXELS", value_parser = input_side)]
    pub input: Option<usize>,
    #[command(flatten)]
    pub device: DeviceArg,
    /// Progress and result as JSON lines
    #[arg(long)]
    pub json: bool,
}

fn input_side(text: &str) -> Result<usize, String> {
    let side: usize = text.parse().map_err(|_| format!("`{text}` is not a whole number"))?;
    match side {
        64..=MAX_INPUT if side.is_multiple_of(32) => Ok(side),
        _ => Err(format!("must be a multiple of 32 from 64 to {MAX_INPUT}")),
    }
}

pub fn run(args: Args) -> Result<(), Failure> {
    let started = Instant::now();
    let limit = args.minutes.map(minutes).transpose()?;
    let images = teaching_images(&args.images).map_err(dataset_failure)?;
    let textures = match &args.textures {
        Some(folder) => list_images(folder).map_err(picture_failure)?,
        None => vec![],
    };
    // An unwritable place is told before the work, not after it.
    Output::create(&args.out)?;
    let spec = NetSpec::of(args.preset);
    let spec = NetSpec { input: args.input.unwrap_or(spec.input), ..spec };
    let backbone = backbone(spec.backbone)?;
    let device = args.device.open(Priority::Low)?;
    let images_sha256 = hash_files(&images)?;

    let lesson = Lesson {
        spec: spec.clone(),
        seed: args.seed,
        deadline: limit.map(|limit| started + limit),
        device,
        textures,
    };
    let stop = stop_on_signal()?;
    let mut reporter = Reporter::new(args.json);
    let taught = teach(&images, &backbone, &lesson, |stage| {
        reporter.show(stage);
        !stop.load(Ordering::Relaxed)
    });
    reporter.finish();
    let taught = taught.map_err(|e| teaching_failure(e, &args))?;

    let calibration = calibrate(&taught.held_out, &CalibrationRule::default()).or_exit(Exit::Data)?;
    let training = Training {
        seed: args.seed,
        iterations: taught.ended.iterations as u64,
        seconds: started.elapsed().as_secs_f32(),
        images: taught.trained_on as u64,
        images_sha256,
        loss: taught.ended.loss,
        stopped_early: taught.ended.early,
    };
    let model = Model {
        meta: ModelMeta {
            preset: args.preset,
            backbone: Backbone { arch: spec.backbone.name().into(), sha256: params_sha256(backbone.iter()) },
            input_width: spec.input,
            input_height: spec.input,
            calibration,
            training,
            created_at: jiff::Timestamp::now().to_string(),
            inspectd_version: env!("CARGO_PKG_VERSION").into(),
            settings: Default::default(),
        },
        params: taught.params.clone(),
    };
    let unsaved = || format!("the model cannot be saved as {}", args.out.display());
    model.save(&args.out).with_context(unsaved).or_exit(Exit::CantCreate)?;
    summary(&args, &model, &taught, stop.load(Ordering::Relaxed)).map_err(Failure::stdout)
}

fn minutes(m: f64) -> Result<Duration, Failure> {
    // A year: beyond it the clock's arithmetic means nothing.
    if m.is_finite() && m > 0.0 && m < 525_600.0 {
        return Ok(Duration::from_secs_f64(m * 60.0));
    }
    Err(Failure::say(Exit::Usage, format!("--minutes {m} is no length of time")).hint("--minutes 5"))
}

/// Where weights are looked for, first found first used.
pub fn weights_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("INSPECTD_WEIGHTS").map(PathBuf::from).into_iter().collect();
    folders.push("weights".into());
    if let Some(prefix) =
        std::env::current_exe().ok().as_deref().and_then(Path::parent).and_then(Path::parent)
    {
        folders.push(prefix.join("share/inspectd/weights"));
    }
    folders.extend(["/var/lib/inspectd/weights".into(), "/usr/share/inspectd/weights".into()]);
    folders
}

fn backbone(arch: Arch) -> Result<ParamStore, Failure> {
    let names = ["safetensors", "pth"].map(|extension| format!("{}.{extension}", arch.name()));
    let folders = weights_folders();
    let candidates = folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name)));
    let Some(path) = candidates.into_iter().find(|path| path.is_file()) else {
        let looked: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
        let message = format!(
            "there are no weights of {}: neither {} nor {} is in {}",
            arch.name(),
            names[0],
            names[1],
            looked.join(", ")
        );
        let hint = match arch {
            Arch::EfficientnetLite0 => {
                "scripts/setup.sh --only weights, or set INSPECTD_WEIGHTS to their folder".into()
            }
            _ => format!("inspectd import --from YOUR.pth --arch {} --out weights/{}", arch.name(), names[0]),
        };
        return Err(Failure::say(Exit::NoInput, message).hint(hint));
    };
    load_weights(&path, arch).map_err(|e| weights_failure(e, arch, &path))
}

fn hash_files(paths: &[PathBuf]) -> Result<String, Failure> {
    let mut hasher = Sha256::new();
    for path in paths {
        let unreadable = || format!("{} cannot be read", path.display());
        let bytes = std::fs::read(path).with_context(unreadable).or_exit(Exit::Io)?;
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(&bytes);
    }
    Ok(hex(&hasher.finalize()))
}

/// A flag that the first Ctrl-C or SIGTERM raises; the second ends the process as usual.
fn stop_on_signal() -> Result<Arc<AtomicBool>, Failure> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&flag))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
            .context("signals cannot be handled")
            .or_exit(Exit::Internal)?;
    }
    Ok(flag)
}

fn teaching_failure(error: RealnetError, args: &Args) -> Failure {
    match error {
        RealnetError::Imaging(e) => {
            picture_failure(e).hint("take this picture out or replace it, then teach again")
        }
        RealnetError::TooFewPictures { .. } => {
            let more = format!("put more pictures of good parts into {}", args.images.display());
            Failure::new(Exit::Data, error).hint(more)
        }
        RealnetError::OneColour { .. } => Failure::new(Exit::Data, error)
            .hint(format!("look at the pictures in {}: is the camera covered?", args.images.display())),
        RealnetError::StoppedEarly => {
            Failure::new(Exit::Unavailable, error).hint("give it more time: --minutes 5")
        }
        RealnetError::Diverged { .. } => Failure::new(Exit::Internal, error)
            .hint(format!("another seed: --seed {}", args.seed.wrapping_add(1))),
        _ => Failure::new(Exit::Internal, error),
    }
}

/// Shows progress: a bar on a terminal, JSON lines, or a line to the log every ten seconds.
struct Reporter {
    how: How,
    last: Option<(&'static str, Instant)>,
}

enum How {
    Bar(ProgressBar),
    Json,
    Lines,
}

impl Reporter {
    fn new(json: bool) -> Self {
        let how = if json {
            How::Json
        } else if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(1000);
            if let Ok(style) = ProgressStyle::with_template("{prefix:>12} {bar:40} {percent:>3} %  {msg}") {
                bar.set_style(style);
            }
            How::Bar(bar)
        } else {
            How::Lines
        };
        Reporter { how, last: None }
    }

    fn show(&mut self, stage: &Stage) {
        let (name, share) = match stage {
            Stage::Reading { share } => ("reading", *share),
            Stage::Surveying { share } => ("surveying", *share),
            Stage::Training(progress) => ("training", progress.done),
            Stage::Calibrating { share } => ("calibrating", *share),
        };
        let every = if matches!(self.how, How::Json) { 2 } else { 10 };
        let due =
            self.last.is_none_or(|(stage, at)| stage != name || at.elapsed() >= Duration::from_secs(every));
        if due {
            self.last = Some((name, Instant::now()));
        }
        match &self.how {
            How::Bar(bar) => {
                bar.set_prefix(name);
                bar.set_position((share * 1000.0) as u64);
                bar.set_message(match stage {
                    Stage::Training(p) => format!("loss {:.3}, {} s left", p.loss, p.left.as_secs()),
                    _ => String::new(),
                });
            }
            How::Json if due => {
                let mut line = json!({ "event": "progress", "stage": name, "share": share });
                if let Stage::Training(p) = stage {
                    line["iteration"] = json!(p.iteration);
                    line["loss"] = json!(p.loss);
                    line["seconds_left"] = json!(p.left.as_secs_f32());
                }
                // Who closed our output wants no progress; the result's line tells of it.
                let _ = writeln!(std::io::stdout().lock(), "{line}");
            }
            How::Lines if due => {
                let percent = share * 100.0;
                let line = match stage {
                    Stage::Training(p) => format!(
                        "{name}: {percent:.0} %, iteration {}, loss {:.3}, {} s left",
                        p.iteration,
                        p.loss,
                        p.left.as_secs()
                    ),
                    _ => format!("{name}: {percent:.0} %"),
                };
                let _ = writeln!(std::io::stderr().lock(), "{line}");
            }
            How::Json | How::Lines => {}
        }
    }

    fn finish(&self) {
        if let How::Bar(bar) = &self.how {
            bar.finish_and_clear();
        }
    }
}

fn summary(args: &Args, model: &Model, taught: &Taught, interrupted: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let (c, t) = (&model.meta.calibration, &model.meta.training);
    if args.json {
        let line = json!({
            "event": "done", "model": args.out, "hash": model.hash(), "preset": model.meta.preset, "seed": t.seed,
            "images": t.images, "held_out": c.n, "iterations": t.iterations, "seconds": t.seconds, "loss": t.loss,
            "stopped_early": t.stopped_early, "interrupted": interrupted,
            "unsure": c.thresholds.unsure, "bad": c.thresholds.bad,
            "false_alarm_rate_bound": c.false_alarm_rate_bound,
            "false_alarm_rate_upper_95": c.false_alarm_rate_upper_95,
        });
        return writeln!(out, "{line}");
    }
    if interrupted {
        writeln!(out, "Interrupted: what was learnt so far is saved.")?;
    }
    let early = if taught.ended.early && !interrupted { ", until time was up" } else { "" };
    writeln!(
        out,
        "{}: preset {}, taught on {} pictures in {:.0} s ({} iterations{early}).",
        args.out.display(),
        model.meta.preset,
        t.images,
        t.seconds,
        t.iterations
    )?;
    writeln!(out, "{}", promise(c))
}

/// What the thresholds promise, in a sentence or two.
fn promise(c: &Calibration) -> String {
    let percent = |rate: f32| format!("{:.1} %", rate * 100.0);
    let mut text = format!(
        "Unsure from score {:.3}, bad from {:.3}: of good parts at most {} are called bad on average ({} held-out \
         pictures; below {} with 95 % confidence).",
        c.thresholds.unsure,
        c.thresholds.bad,
        percent(c.false_alarm_rate_bound),
        c.n,
        percent(c.false_alarm_rate_upper_95)
    );
    if c.extrapolated {
        text.push_str(&format!(
            "\n{} held-out pictures cannot support {}: give more good pictures to promise that.",
            c.n,
            percent(c.target_false_alarm_rate)
        ));
    }
    text
}
