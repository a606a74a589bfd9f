//! What holds when a verdict is given: thresholds, where it goes, and what it can be recomputed from.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::{Outlet, OutputError};
use crate::config::{HeatmapsOf, LineName, OutputsConfig, Sink};
use crate::imaging::Roi;
use crate::model::{Thresholds, Verdict};

/// The rules of one line between two reloads. Shared: a verdict carries the rules that it was given by,
/// so a reload never mixes old and new, and files close when their last verdict is written.
#[derive(Debug)]
pub struct Rules {
    pub line: LineName,
    /// The part of the picture that is judged.
    pub roi: Option<Roi>,
    pub thresholds: Thresholds,
    pub model_hash: String,
    pub config_hash: String,
    pub verdicts: Option<Arc<VerdictFile>>,
    pub heatmaps: Option<HeatmapFolder>,
    pub outlets: Vec<Arc<dyn Outlet>>,
}

/// Where a line's pictures go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeatmapFolder {
    pub path: PathBuf,
    pub of: HeatmapsOf,
    pub keep: usize,
}

impl Rules {
    /// Opens what `config` names. Opening creates files and folders but writes nothing, so rules that
    /// are made and not taken over leave the outputs as they were.
    pub fn open(
        line: LineName,
        config: &OutputsConfig,
        thresholds: Thresholds,
        model_hash: String,
        config_hash: String,
    ) -> Result<Self, OutputError> {
        let verdicts = match &config.verdicts {
            Sink::Off => None,
            Sink::Stdout => Some(Arc::new(VerdictFile::stdout())),
            Sink::File(path) => Some(Arc::new(VerdictFile::open(path)?)),
        };
        let heatmaps = match &config.heatmaps {
            None => None,
            Some(path) => {
                std::fs::create_dir_all(path)
                    .map_err(|source| OutputError::Folder { path: path.clone(), source })?;
                let (of, keep) = (config.heatmaps_of, config.heatmaps_keep);
                Some(HeatmapFolder { path: path.clone(), of, keep })
            }
        };
        Ok(Rules {
            line,
            roi: None,
            thresholds,
            model_hash,
            config_hash,
            verdicts,
            heatmaps,
            outlets: Vec::new(),
        })
    }

    /// Whether a verdict drives anything at all.
    pub fn drive_anything(&self) -> bool {
        self.verdicts.is_some() || !self.outlets.is_empty()
    }

    /// Whether a part with this verdict gets a picture. A part that was not judged has no heatmap to show.
    pub fn wants_heatmap(&self, verdict: Verdict) -> bool {
        self.heatmaps.as_ref().is_some_and(|folder| match verdict {
            Verdict::Bad => true,
            Verdict::Unsure => folder.of != HeatmapsOf::Bad,
            Verdict::Good => folder.of == HeatmapsOf::All,
            Verdict::Late | Verdict::Unjudged => false,
        })
    }
}

/// A file of JSON lines, appended to. Each line is one write, so readers see whole lines.
#[derive(Debug)]
pub struct VerdictFile {
    to: To,
    /// The last write stopped half-way: the next begins on a new line.
    torn: AtomicBool,
}

#[derive(Debug)]
enum To {
    Stdout,
    File { path: PathBuf, file: File },
}

impl VerdictFile {
    pub fn stdout() -> Self {
        VerdictFile { to: To::Stdout, torn: AtomicBool::new(false) }
    }

    pub fn open(path: &Path) -> Result<Self, OutputError> {
        let failed = |source| OutputError::File { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        Ok(VerdictFile { to: To::File { path: path.to_owned(), file }, torn: AtomicBool::new(false) })
    }

    /// Appends `line`, which ends in a newline.
    pub fn write(&self, line: &[u8]) -> io::Result<()> {
        let result = match &self.to {
            To::Stdout => {
                let mut out = io::stdout().lock();
                self.write_to(&mut out, line).and_then(|()| out.flush())
            }
            To::File { file, .. } => self.write_to(&mut &*file, line),
        };
        let name = self.name();
        result.map_err(|error| io::Error::new(error.kind(), format!("{name} cannot be written: {error}")))
    }

    fn write_to(&self, out: &mut impl Write, line: &[u8]) -> io::Result<()> {
        if self.torn.load(Relaxed) {
            out.write_all(b"\n")?;
        }
        self.torn.store(true, Relaxed);
        out.write_all(line)?;
        self.torn.store(false, Relaxed);
        Ok(())
    }

    fn name(&self) -> String {
        match &self.to {
            To::Stdout => "standard output".to_owned(),
            To::File { path, .. } => path.display().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes, then is full.
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            let n = data.len().min(self.room);
            self.bytes.extend_from_slice(&data[..n]);
            self.room -= n;
            if n == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(n) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn after_a_full_disk_the_next_verdict_begins_on_a_line_of_its_own() {
        let file = VerdictFile::stdout();
        let mut disk = Disk { bytes: Vec::new(), room: 12 };
        file.write_to(&mut disk, b"{\"n\":1}\n").unwrap();
        assert!(file.write_to(&mut disk, b"{\"n\":2}\n").is_err());
        assert!(file.write_to(&mut disk, b"{\"n\":3}\n").is_err(), "still full");
        disk.room = 100;
        file.write_to(&mut disk, b"{\"n\":4}\n").unwrap();
        file.write_to(&mut disk, b"{\"n\":5}\n").unwrap();
        assert_eq!(String::from_utf8_lossy(&disk.bytes), "{\"n\":1}\n{\"n\"\n{\"n\":4}\n{\"n\":5}\n");
    }

    #[test]
    fn pictures_are_made_of_what_the_configuration_names() {
        use Verdict::{Bad, Good, Unsure};
        let folder = tempfile::tempdir().unwrap();
        for (of, wanted) in [
            (HeatmapsOf::Bad, &[Bad][..]),
            (HeatmapsOf::UnsureAndBad, &[Unsure, Bad]),
            (HeatmapsOf::All, &[Good, Unsure, Bad]),
        ] {
            let config = OutputsConfig {
                verdicts: Sink::Off,
                heatmaps: Some(folder.path().join("new/maps")),
                heatmaps_of: of,
                heatmaps_keep: 1,
            };
            let thresholds = Thresholds { unsure: 0.0, bad: 1.0 };
            let rules =
                Rules::open(LineName::new("a"), &config, thresholds, String::new(), String::new()).unwrap();
            for verdict in Verdict::ALL {
                assert_eq!(rules.wants_heatmap(verdict), wanted.contains(&verdict), "{of:?} {verdict:?}");
            }
        }
        assert!(folder.path().join("new/maps").is_dir());
    }
}
