//! `inspectd check`: says whether a configuration would be accepted, by everyone who has to accept it:
//! the table of keys, the file system, GStreamer, and the models.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Exit, Failure};
use crate::capture::{self, CaptureError};
use crate::config::{self, Complaint, ConfigError, LineConfig};
use crate::model::{Model, Thresholds};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration, TOML
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Exit 0, or 78 with every mistake that was found.
pub fn run(args: Args) -> Result<(), Failure> {
    let loaded = config::load_with(&args.config, &complaints);
    if args.json {
        let report = match &loaded {
            Ok(config) => json!({
                "ok": true,
                "config_hash": config.hash().to_string(),
                "lines": config.lines.iter().map(|line| line.name.as_str()).collect::<Vec<_>>(),
                "errors": [],
            }),
            Err(ConfigError::Mistakes(mistakes)) => json!({ "ok": false, "errors": mistakes.0 }),
            Err(error) => {
                json!({ "ok": false, "errors": [{ "file": args.config, "message": error.to_string() }] })
            }
        };
        writeln!(std::io::stdout(), "{report}").map_err(Failure::stdout)?;
    }
    match loaded {
        Ok(config) => {
            if !args.json {
                let names: Vec<&str> = config.lines.iter().map(|line| line.name.as_str()).collect();
                let noun = if names.len() == 1 { "line" } else { "lines" };
                let text = format!("{} is good ({noun}: {})", args.config.display(), names.join(", "));
                writeln!(std::io::stdout(), "{text}").map_err(Failure::stdout)?;
            }
            Ok(())
        }
        Err(error) => Err(refusal(&args.config, error)),
    }
}

/// How a refused configuration ends `check` and `serve`.
pub(super) fn refusal(path: &Path, error: ConfigError) -> Failure {
    match error {
        ConfigError::Mistakes(mistakes) => {
            let n = mistakes.0.len();
            let noun = if n == 1 { "mistake" } else { "mistakes" };
            Failure::say(Exit::Config, format!("{n} {noun} in {}\n\n{mistakes}", path.display()))
        }
        unreadable => Failure::new(Exit::Config, unreadable)
            .hint("inspectd check --config FILE, where FILE is like config/inspectd.toml".to_owned()),
    }
}

/// What GStreamer and the model have against a line.
pub(super) fn complaints(line: &LineConfig) -> Vec<Complaint> {
    source_complaints(line).into_iter().chain(model_complaints(line)).collect()
}

/// What GStreamer has against the line's source.
pub(super) fn source_complaints(line: &LineConfig) -> Vec<Complaint> {
    let Err(error) = capture::check_fragment(line.name.as_str(), &line.source) else { return Vec::new() };
    let help = match &error {
        CaptureError::MissingElement { hint, .. } | CaptureError::Fragment { hint, .. } => Some(hint.clone()),
        _ => None,
    };
    vec![Complaint { key: "source", message: error.to_string(), help }]
}

/// What the line's model has against it.
fn model_complaints(line: &LineConfig) -> Vec<Complaint> {
    match Model::load(&line.model) {
        Err(error) => vec![Complaint { key: "model", message: error.to_string(), help: None }],
        Ok(model) => threshold_complaint(line, model.thresholds()).into_iter().collect(),
    }
}

fn threshold_complaint(line: &LineConfig, own: Thresholds) -> Option<Complaint> {
    let unsure = line.thresholds.unsure.unwrap_or(own.unsure);
    let bad = line.thresholds.bad.unwrap_or(own.bad);
    (unsure > bad).then(|| Complaint {
        key: if line.thresholds.unsure.is_some() { "thresholds.unsure" } else { "thresholds.bad" },
        message: format!("unsure = {unsure} would be above bad = {bad}"),
        help: Some(format!("set both; the model's own are unsure = {} and bad = {}", own.unsure, own.bad)),
    })
}
