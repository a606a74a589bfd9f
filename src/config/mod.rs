//! The configuration: `RawConfig` (as typed) → [`Config`] (as meant) → [`diff()`] → [`Plan`].
//!
//! | constraint | value |
//! |---|---|
//! | one table of keys | [`KEYS`]: parser, defaults, reload plan, example and error help are read from it |
//! | mistakes shown at once | all that can be found, each with line, column and what to write instead |
//! | unknown keys | refused |
//!
//! Absent on purpose: cameras, models, HTTP. This room reads text and looks whether files are there;
//! it opens nothing for good.

mod diagnostic;
mod diff;
mod files;
mod in_force;
mod keys;
mod meant;
mod outlets;
mod raw;
mod reference;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use diagnostic::Diagnostic;
pub use diff::{Change, Plan, diff};
pub use in_force::{IN_FORCE_FILE, Record as InForceRecord};
pub use keys::{KEYS, Key, Reload, Section};
pub use meant::{
    ArchiveConfig, Config, ConfigHash, DaemonConfig, DropPolicy, HeatmapsOf, LineConfig, LineName, LogFormat,
    OnEos, OutputsConfig, PictureTerms, SLOTS_BESIDE_QUEUE, Settings, Sink, ThresholdOverride, TriggerConfig,
    TriggerMode,
};
pub use outlets::{ModbusConfig, MqttConfig, OfVerdicts, Url, WebhookConfig};
pub use raw::Value;
use raw::{RawGroup, RawSection};
pub use reference::example;

/// Larger files are refused: a configuration of a hundred lines has 100 KB.
const LARGEST_FILE: u64 = 4 << 20;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration {path} cannot be read: {source}", path = path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Mistakes(Mistakes),
}

/// At least one mistake, in the order of the file.
#[derive(Debug)]
pub struct Mistakes(pub Vec<Diagnostic>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.0.iter().enumerate() {
            write!(f, "{}{diagnostic}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

/// What another room finds wrong with a line: a source that GStreamer does not know, say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Below the line: `source`, `thresholds.bad`.
    pub key: &'static str,
    pub message: String,
    pub help: Option<String>,
}

/// Another room's look at a line.
pub type Examine<'a> = dyn Fn(&LineConfig) -> Vec<Complaint> + 'a;

/// Reads, understands and checks a configuration file, with the files that it names.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    load_with(path, &|_| Vec::new())
}

/// As [`load`], and lets `examine` look at each line once the file has no other mistakes.
pub fn load_with(path: &Path, examine: &Examine<'_>) -> Result<Config, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    if size > LARGEST_FILE {
        let message = format!("it has {size} bytes, and more than {LARGEST_FILE} are refused");
        return Err(unreadable(std::io::Error::other(message)));
    }
    let text = std::io::read_to_string(file).map_err(unreadable)?;
    let absolute = std::path::absolute(path).map_err(unreadable)?;
    let base = absolute.parent().unwrap_or(Path::new("/"));
    understand(&text, path, base, Some(examine)).map_err(ConfigError::Mistakes)
}

/// Understands `text`, shown as `file` in messages, with relative paths starting at `base`.
/// With `examine` it also looks at the files that the text names, and at each line.
fn understand(
    text: &str,
    file: &Path,
    base: &Path,
    examine: Option<&Examine<'_>>,
) -> Result<Config, Mistakes> {
    let mut out = diagnostic::Diagnostics::new(file, text);
    let raw = raw::read(text, &mut out);
    if examine.is_some() {
        files::check(&files::claims(&raw, base), &mut out);
    }
    let sections = raw.lines.iter().flat_map(RawGroup::sections);
    let places: Vec<(String, Range<usize>)> = sections.flat_map(RawSection::places).collect();
    let config = meant::mean(raw, base, text, &mut out);
    if let Some(examine) = examine.filter(|_| out.is_empty()) {
        for (i, line) in config.lines.iter().enumerate() {
            for Complaint { key, message, help } in examine(line) {
                let path = format!("line[{i}].{key}");
                let place = places.iter().find(|(at, _)| *at == path).map_or(0..0, |(_, span)| span.clone());
                out.add(place, &path, message, help);
            }
        }
    }
    if out.is_empty() { Ok(config) } else { Err(Mistakes(out.into_sorted())) }
}
