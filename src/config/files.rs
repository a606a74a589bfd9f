//! The files that a configuration names: are they there, can they be written? Looking changes nothing.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::diagnostic::Diagnostics;
use super::keys::Section;
use super::meant::resolve;
use super::raw::{RawConfig, RawSection, Value};

/// Looks at the files that the configuration names.
pub fn check(claims: &[FileClaim], out: &mut Diagnostics<'_>) {
    for claim in claims {
        if let Some((message, help)) = claim.problem() {
            out.add(claim.span.clone(), &claim.key, message, Some(help));
        }
    }
}

/// A file or folder that must be there or must be writable.
#[derive(Debug)]
pub struct FileClaim {
    pub path: PathBuf,
    pub span: Range<usize>,
    pub key: String,
    pub wants: Wants,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    Model,
    /// A file with a password, a token or certificates.
    Secret,
    WritableFolder,
    WritableFile,
}

/// The files that `raw` names, before it is consumed by [`mean`](super::meant::mean).
pub fn claims(raw: &RawConfig, base: &Path) -> Vec<FileClaim> {
    let mut claims = Vec::new();
    let mut claim = |section: &RawSection, name: &str, wants: Wants| {
        if let (Some(Value::Text(text)), span) = section.get(name)
            && !(wants == Wants::WritableFile && matches!(text.as_str(), "-" | "off"))
        {
            claims.push(FileClaim { path: resolve(base, text), span, key: section.path_of(name), wants });
        }
    };
    claim(raw.top.section(Section::Daemon), "state_dir", Wants::WritableFolder);
    claim(raw.top.section(Section::Archive), "folder", Wants::WritableFolder);
    claim(raw.top.section(Section::Mqtt), "password_file", Wants::Secret);
    claim(raw.top.section(Section::Mqtt), "ca_file", Wants::Secret);
    for line in &raw.lines {
        claim(line.section(Section::Line), "model", Wants::Model);
        claim(line.section(Section::Outputs), "verdicts", Wants::WritableFile);
        claim(line.section(Section::Outputs), "heatmaps", Wants::WritableFolder);
        claim(line.section(Section::Webhook), "token_file", Wants::Secret);
    }
    claims
}

impl FileClaim {
    /// What is wrong with it and what to type, if anything.
    fn problem(&self) -> Option<(String, String)> {
        let path = self.path.display();
        match self.wants {
            Wants::Model => match std::fs::File::open(&self.path).and_then(|file| file.metadata()) {
                Ok(meta) if meta.is_dir() => {
                    Some((format!("the model {path} is a folder"), "the .safetensors file in it".to_owned()))
                }
                Ok(_) => None,
                Err(error) => Some((
                    format!("the model {path} cannot be read: {error}"),
                    format!("inspectd teach --images DIR --out {path}"),
                )),
            },
            Wants::Secret => match std::fs::File::open(&self.path).and_then(|file| file.metadata()) {
                Ok(meta) if meta.is_file() => None,
                Ok(_) => Some((format!("{path} is not a file"), "the path of a file".to_owned())),
                Err(error) => Some((
                    format!("{path} cannot be read: {error}"),
                    format!("sudo install -m 600 -o inspectd FILE {path}"),
                )),
            },
            Wants::WritableFolder => folder_problem(&self.path)
                .map(|why| (why, format!("sudo mkdir -p {path} && sudo chown $USER {path}"))),
            Wants::WritableFile => {
                if self.path.is_dir() {
                    return Some((format!("{path} is a folder"), format!("{path}/verdicts.jsonl")));
                }
                if self.path.exists() {
                    return std::fs::OpenOptions::new().append(true).open(&self.path).err().map(|error| {
                        (format!("{path} cannot be written: {error}"), format!("sudo chown $USER {path}"))
                    });
                }
                let parent = self.path.parent().unwrap_or(Path::new("/"));
                folder_problem(parent)
                    .map(|why| (why, format!("sudo mkdir -p {0} && sudo chown $USER {0}", parent.display())))
            }
        }
    }
}

/// Why files cannot be made in `folder`, which may still have to be made itself. Checking makes no
/// folder and leaves nothing behind.
fn folder_problem(folder: &Path) -> Option<String> {
    let there = folder.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    if !there.is_dir() {
        return Some(format!("{} is not a folder", there.display()));
    }
    tempfile::tempfile_in(there).err().map(|error| format!("{} cannot be written: {error}", there.display()))
}
