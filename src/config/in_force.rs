//! What the daemon has in force, written down for `inspectd plan`: the configuration as it was read, not as its
//! file may look by now, and the models that were in use.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::keys::Section;
use super::meant::{Config, LineName, Settings};
use super::{ConfigError, understand};

/// Name of the record in the daemon's state folder.
pub const IN_FORCE_FILE: &str = "in_force.json";

/// The record. Sources may hold passwords, so the file is its owner's alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Absolute path of the configuration file.
    pub file: PathBuf,
    /// When it was taken over.
    pub since: String,
    /// Every key with what holds for it.
    pub settings: String,
    /// Hash of each line's model.
    pub models: BTreeMap<String, String>,
}

impl Record {
    pub fn new<'a>(
        file: &Path,
        since: String,
        config: &Config,
        models: impl IntoIterator<Item = (&'a LineName, &'a str)>,
    ) -> io::Result<Self> {
        let models = models.into_iter().map(|(line, hash)| (line.to_string(), hash.to_owned())).collect();
        Ok(Record { file: std::path::absolute(file)?, since, settings: to_toml(config), models })
    }

    /// Replaces what `folder` holds; it is written whole or not at all.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer_pretty(&file, self)?;
        file.persist(folder.join(IN_FORCE_FILE))?;
        Ok(())
    }

    pub fn read(path: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The configuration again. Looks at no file that it names.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let base = self.file.parent().unwrap_or(Path::new("/"));
        understand(&self.settings, &self.file, base, None).map_err(ConfigError::Mistakes)
    }
}

/// A file that means the same: every key that has a value, as it was typed.
fn to_toml(config: &Config) -> String {
    let mut text = String::new();
    for &section in Section::TOP {
        table(&mut text, section, &config.settings);
    }
    for line in &config.lines {
        table(&mut text, Section::Line, &line.settings);
        for &section in Section::IN_LINE {
            table(&mut text, section, &line.settings);
        }
    }
    text
}

fn table(text: &mut String, section: Section, settings: &Settings) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{}", section.header());
    for (key, value) in settings.iter().filter(|(key, _)| key.section == section) {
        if let Some(value) = value {
            let _ = writeln!(text, "{} = {value}", key.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{diff, example};

    #[test]
    fn the_record_means_what_the_file_meant() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        let text = example()
            .replace("drop = \"oldest\"", "drop = \"newest\"\nroi = [1, 2, 30, 40]")
            .replace("# unsure = 0.8", "unsure = 0.25")
            .replace("videotestsrc", "filesrc location=\\\"a b\\\\c\\\" ! decodebin");
        let config = understand(&text, &file, folder.path(), None).unwrap_or_else(|e| panic!("{e}"));
        let models = [(&config.lines[0].name, "abc")];
        let record = Record::new(&file, "now".into(), &config, models).unwrap();
        record.write(&folder.path().join("state")).unwrap();
        let read = Record::read(&folder.path().join("state").join(IN_FORCE_FILE)).unwrap();
        assert_eq!(read, record);
        let again = read.config().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((again.hash(), again.lines[0].roi), (config.hash(), config.lines[0].roi));
        assert_eq!(diff(&config, &again), []);
        assert_eq!(read.models["cam1"], "abc");
        use std::os::unix::fs::PermissionsExt;
        let meta = std::fs::metadata(folder.path().join("state").join(IN_FORCE_FILE)).unwrap();
        assert_eq!(meta.permissions().mode() & 0o077, 0, "it may hold passwords of cameras");
    }

    #[test]
    fn a_record_that_is_cut_off_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(IN_FORCE_FILE);
        std::fs::write(&path, "{\"file\": \"/etc").unwrap();
        assert!(Record::read(&path).is_err());
    }
}
