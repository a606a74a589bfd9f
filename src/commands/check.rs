//! `inspectd check`: says whether a configuration would be accepted.

use std::io::Write;
use std::path::PathBuf;

use serde_json::json;

use super::{Exit, Failure};
use crate::config::{self, ConfigError};

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
    let loaded = config::load(&args.config);
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
                let text = format!("{}: good (lines: {})", args.config.display(), names.join(", "));
                writeln!(std::io::stdout(), "{text}").map_err(Failure::stdout)?;
            }
            Ok(())
        }
        Err(error) => Err(refusal(&args.config, error)),
    }
}

/// How a refused configuration ends `check` and `serve`.
pub fn refusal(path: &std::path::Path, error: ConfigError) -> Failure {
    match error {
        ConfigError::Mistakes(mistakes) => {
            let n = mistakes.0.len();
            let noun = if n == 1 { "mistake" } else { "mistakes" };
            Failure::say(Exit::Config, format!("{n} {noun} in {}\n\n{mistakes}", path.display()))
                .hint(format!("inspectd check --config {}, after mending them", path.display()))
        }
        unreadable => Failure::new(Exit::Config, unreadable)
            .hint("inspectd check --config FILE; config/inspectd.toml is an example".to_owned()),
    }
}
