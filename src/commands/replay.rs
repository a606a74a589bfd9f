//! `inspectd replay`: judges a part of the archive again and says whether the same comes out.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use serde_json::json;

use super::archive::{open, part};
use super::check::refusal;
use super::device::DeviceArg;
use super::{Exit, Failure, OrExit};
use crate::archive::{PartKey, Row, Still};
use crate::config::{self, Config};
use crate::engine::Priority;
use crate::model::{Model, Thresholds, Verdict};
use crate::outputs::FrameHash;
use crate::realnet::Inspector;
use crate::telemetry::verdict_label;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Number of the part in the archive, or its name, as its heatmap's file has it
    #[arg(value_name = "PART")]
    pub part: PartKey,
    /// The daemon's configuration, TOML: where the archive is, and the line's model and thresholds
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Judge by this model and its thresholds, and not by the line's
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceArg,
    /// How far the scores may lie apart and still count as equal
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub within: f32,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// One side of the comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Side {
    score: Option<f32>,
    verdict: Verdict,
    thresholds: Thresholds,
    frame_hash: Option<String>,
    model_hash: String,
    config_hash: String,
}

/// Exit 0 if score and verdict come out as they were, from the same pixels; 1 if not.
pub fn run(args: Args) -> Result<(), Failure> {
    let config = config::load(&args.config).map_err(|error| refusal(&args.config, error))?;
    let Some(archive) = &config.archive else {
        let message = format!("{} names no archive", args.config.display());
        return Err(Failure::say(Exit::Config, message)
            .hint("folder = \"/var/lib/inspectd/archive\" under [archive]"));
    };
    let row = part(&open(&archive.folder)?, &args.part)?;
    let still = picture(&row)?;
    let now = judge_again(&args, &config, &row, &still)?;
    let then = Side {
        score: row.score,
        verdict: row.verdict,
        thresholds: row.thresholds,
        frame_hash: row.frame_hash.clone(),
        model_hash: row.model_hash.clone(),
        config_hash: row.config_hash.clone(),
    };
    let same = Same::of(&then, &now, args.within);
    let printed = match args.json {
        true => writeln!(
            io::stdout(),
            "{}",
            json!({ "id": row.id, "part": row.name(), "then": then, "now": now,
            "equal": same.all(), "score_equal": same.score, "verdict_equal": same.verdict, "frame_equal": same.frame,
            "model_equal": then.model_hash == now.model_hash, "config_equal": then.config_hash == now.config_hash })
        ),
        false => io::stdout().write_all(text(&row, &then, &now, &same).as_bytes()),
    };
    printed.map_err(Failure::stdout)?;
    if same.all() {
        return Ok(());
    }
    let why = if then.model_hash == now.model_hash { "" } else { ": the model is another" };
    Err(Failure::say(Exit::Differs, format!("the part is not judged as it was{why}")))
}

/// What has to be the same.
struct Same {
    score: bool,
    verdict: bool,
    frame: bool,
}

impl Same {
    fn of(then: &Side, now: &Side, within: f32) -> Self {
        let score = match (then.score, now.score) {
            (Some(then), Some(now)) => then == now || (then - now).abs() <= within,
            (None, None) => true,
            _ => false,
        };
        Same { score, verdict: then.verdict == now.verdict, frame: then.frame_hash == now.frame_hash }
    }

    fn all(&self) -> bool {
        self.score && self.verdict && self.frame
    }
}

/// The frame as it was captured.
fn picture(row: &Row) -> Result<Still, Failure> {
    let Some(path) = &row.image else {
        let message = format!("the archive has no picture of {}", row.name());
        return Err(
            Failure::say(Exit::NoInput, message).hint("inspectd archive list --with-image --config FILE")
        );
    };
    Still::read(path).map_err(|error| {
        let exit = match error.kind() {
            io::ErrorKind::NotFound => Exit::NoInput,
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Exit::Data,
            _ => Exit::Io,
        };
        let error =
            anyhow::Error::new(error).context(format!("the picture {} cannot be read", path.display()));
        Failure::new(exit, error)
    })
}

fn judge_again(args: &Args, config: &Config, row: &Row, still: &Still) -> Result<Side, Failure> {
    let line = config.lines.iter().find(|line| line.name.as_str() == row.line);
    let path: &Path = match (&args.model, line) {
        (Some(model), _) => model,
        (None, Some(line)) => &line.model,
        (None, None) => {
            let message = format!("{} has no line \"{}\" any more", args.config.display(), row.line);
            return Err(Failure::say(Exit::NoInput, message).hint("--model FILE says what to judge by"));
        }
    };
    let unusable = || format!("the model {} cannot be used", path.display());
    let model = Model::load(path).map_err(|error| {
        let exit = if error.is_missing() { Exit::NoInput } else { Exit::Data };
        Failure::new(exit, anyhow::Error::new(error).context(unusable()))
    })?;
    let device = args.device.open(Priority::High)?;
    let mut inspector = Inspector::new(&model, &device).with_context(unusable).or_exit(Exit::Data)?;
    let own = model.thresholds();
    let thresholds = match (&args.model, line) {
        (None, Some(line)) => Thresholds {
            unsure: line.thresholds.unsure.unwrap_or(own.unsure),
            bad: line.thresholds.bad.unwrap_or(own.bad),
        },
        _ => own,
    };
    // What the model cannot judge is unjudged, as in the daemon.
    let score = inspector.judge(&still.view(), row.roi).map(|judgement| judgement.score).ok();
    Ok(Side {
        // In the archive as in JSON: what is not a number is none.
        score: score.filter(|score| !score.is_nan()),
        verdict: score.map_or(Verdict::Unjudged, |score| thresholds.verdict(score)),
        thresholds,
        frame_hash: Some(FrameHash::of(&still.view()).to_string()),
        model_hash: model.hash(),
        config_hash: config.hash().to_string(),
    })
}

fn text(row: &Row, then: &Side, now: &Side, same: &Same) -> String {
    let score = |side: &Side| side.score.map_or("none".to_owned(), |score| score.to_string());
    let hash = |hash: &Option<String>| hash.clone().unwrap_or("none".to_owned());
    let thresholds = |side: &Side| format!("{} / {}", side.thresholds.unsure, side.thresholds.bad);
    let verdict = |side: &Side| verdict_label(side.verdict).to_owned();
    let rows = [
        ("score", score(then), score(now), same.score),
        ("verdict", verdict(then), verdict(now), same.verdict),
        ("thresholds", thresholds(then), thresholds(now), then.thresholds == now.thresholds),
        ("frame", hash(&then.frame_hash), hash(&now.frame_hash), same.frame),
        ("model", then.model_hash.clone(), now.model_hash.clone(), then.model_hash == now.model_hash),
        (
            "configuration",
            then.config_hash.clone(),
            now.config_hash.clone(),
            then.config_hash == now.config_hash,
        ),
    ];
    let mut text = format!("part {}, {}\n{:14} {:22} {:22}\n", row.id, row.name(), "", "then", "now");
    for (what, then, now, equal) in rows {
        let equal = if equal { "equal" } else { "differs" };
        text.push_str(&format!("{what:14} {then:22} {now:22} {equal}\n"));
    }
    text
}
