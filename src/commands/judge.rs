//! `inspectd judge`: one JSON line per picture.
//!
//! A picture that cannot be read gets an error on stderr and the others are still judged; the exit code
//! is then 65 (or 66 where all that went wrong is that something is not there). An output that cannot be
//! written ends the command.

use std::collections::HashSet;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::device::DeviceArg;
use super::inspect::{Judge, Opinion, create_folder, picture_failure, progress};
use super::{Exit, Failure};
use crate::eval::page::verdict_name;
use crate::imaging::{RgbImage, heatmap, list_images, read_image};
use crate::model::{Thresholds, Verdict};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model, as written by `inspectd teach`
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    #[command(flatten)]
    pub device: DeviceArg,
    /// Pictures, and folders of pictures
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
    /// Write each picture with its heatmap laid over it, as PNG, into this folder
    #[arg(long, value_name = "DIR")]
    pub heatmaps: Option<PathBuf>,
    /// Write each raw anomaly map as 16-bit PNG (value = 65535 p) into this folder
    #[arg(long, value_name = "DIR")]
    pub maps: Option<PathBuf>,
    /// JSON lines even on a terminal
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let mut judge = Judge::open(&args.model, args.device)?;
    let thresholds = judge.thresholds();
    let terminal = std::io::stdout().is_terminal();
    let mut session = Session {
        thresholds,
        heatmaps: args.heatmaps.as_deref(),
        maps: args.maps.as_deref(),
        lines: if terminal && !args.json { Lines::Text } else { Lines::Json },
        out: std::io::stdout().lock(),
        complain: |failure: &Failure| {
            let _ = write!(std::io::stderr().lock(), "{failure}");
        },
        // On a terminal the lines themselves are the progress.
        bar_hidden: terminal,
    };
    session.judge_all(&args.paths, |image| judge.opinion(image))
}

/// One line of output.
#[derive(Debug, Serialize)]
struct Line<'a> {
    path: &'a str,
    score: f32,
    verdict: Verdict,
    /// A score at or above this is bad.
    threshold: f32,
    /// From the decoded picture to its score, milliseconds.
    ms: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lines {
    Json,
    Text,
}

/// A picture to judge, and the name its outputs get below their folder.
#[derive(Debug, PartialEq, Eq)]
struct Job {
    path: PathBuf,
    name: PathBuf,
}

struct Session<'a, W, C> {
    thresholds: Thresholds,
    heatmaps: Option<&'a Path>,
    maps: Option<&'a Path>,
    lines: Lines,
    out: W,
    complain: C,
    bar_hidden: bool,
}

impl<W: Write, C: FnMut(&Failure)> Session<'_, W, C> {
    fn judge_all(
        &mut self,
        paths: &[PathBuf],
        mut opinion: impl FnMut(&RgbImage) -> Result<Opinion, Failure>,
    ) -> Result<(), Failure> {
        let outputs: Vec<&Path> = self.heatmaps.into_iter().chain(self.maps).collect();
        for folder in &outputs {
            create_folder(folder)?;
        }
        let (jobs, mut failures) = jobs(paths, &outputs);
        refuse_overwriting(&jobs, &outputs)?;
        let total = jobs.len() + failures.len();
        if total == 1 && failures.len() == 1 {
            return Err(failures.remove(0));
        }
        failures.iter().for_each(&mut self.complain);

        let bar = progress(jobs.len(), self.bar_hidden);
        for job in &jobs {
            match read_image(&job.path) {
                Ok(image) => {
                    let opinion = opinion(&image)?;
                    self.write_pictures(job, &image, &opinion)?;
                    self.print(&job.path, &opinion).map_err(Failure::stdout)?;
                }
                Err(error) => {
                    let failure = picture_failure(error);
                    if total == 1 {
                        return Err(failure);
                    }
                    bar.suspend(|| (self.complain)(&failure));
                    failures.push(failure);
                }
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        self.out.flush().map_err(Failure::stdout)?;

        let missing_only = failures.iter().all(|f| f.exit() == Exit::NoInput);
        let exit = if missing_only { Exit::NoInput } else { Exit::Data };
        match failures.len() {
            0 => Ok(()),
            n => Err(Failure::say(exit, format!("{n} of {total} could not be judged; the others were"))),
        }
    }

    fn write_pictures(&self, job: &Job, image: &RgbImage, opinion: &Opinion) -> Result<(), Failure> {
        let target = |folder: &Path| {
            let path = folder.join(&job.name);
            if let Some(parent) = path.parent() {
                create_folder(parent)?;
            }
            Ok(path)
        };
        if let Some(folder) = self.heatmaps {
            let overlay = heatmap::overlay(image, &opinion.map, None);
            heatmap::write_png(&target(folder)?, &overlay).map_err(picture_failure)?;
        }
        if let Some(folder) = self.maps {
            let map = opinion.map.resized(image.width, image.height);
            heatmap::write_map_png16(&target(folder)?, &map).map_err(picture_failure)?;
        }
        Ok(())
    }

    fn print(&mut self, path: &Path, opinion: &Opinion) -> std::io::Result<()> {
        let path = path.to_string_lossy();
        let verdict = self.thresholds.verdict(opinion.score);
        match self.lines {
            Lines::Json => {
                let line = Line {
                    path: &path,
                    score: opinion.score,
                    verdict,
                    threshold: self.thresholds.bad,
                    ms: (opinion.ms * 1e3).round() / 1e3,
                };
                serde_json::to_writer(&mut self.out, &line)?;
                writeln!(self.out)
            }
            Lines::Text => {
                let name = verdict_name(verdict);
                writeln!(self.out, "{name:6} {:10.4} {:8.1} ms  {path}", opinion.score, opinion.ms)
            }
        }
    }
}

/// All pictures below `paths` but for those in the output folders, each with an output name of its own:
/// where it lies below the folder that was named, as PNG.
fn jobs(paths: &[PathBuf], outputs: &[&Path]) -> (Vec<Job>, Vec<Failure>) {
    let outputs: Vec<PathBuf> = outputs.iter().filter_map(|p| p.canonicalize().ok()).collect();
    let (mut jobs, mut failures, mut taken) = (Vec::new(), Vec::new(), HashSet::new());
    for named in paths {
        let found = match list_images(named) {
            Ok(found) => found,
            Err(error) => {
                failures.push(picture_failure(error));
                continue;
            }
        };
        let folder = named.canonicalize().ok().filter(|p| p.is_dir());
        for path in found {
            let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
            // What an earlier run wrote is no part. A folder named itself is meant.
            let written = |output: &PathBuf| {
                folder.as_ref().is_some_and(|f| f != output && output.starts_with(f))
                    && whole.starts_with(output)
            };
            if outputs.iter().any(written) {
                continue;
            }
            let below = match &folder {
                Some(_) => path.strip_prefix(named).unwrap_or(&path),
                None => Path::new(path.file_name().unwrap_or(path.as_os_str())),
            };
            let name = free_name(below, &mut taken);
            jobs.push(Job { path, name });
        }
    }
    (jobs, failures)
}

/// `a/b.jpg` → `a/b.png`; if that is taken `a/b.jpg.png`, then `a/b-2.png` and so on.
fn free_name(below: &Path, taken: &mut HashSet<PathBuf>) -> PathBuf {
    let full = below.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stem = below.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let spelt_out = (!full.to_lowercase().ends_with(".png")).then(|| format!("{full}.png"));
    let plain = std::iter::once(format!("{stem}.png")).chain(spelt_out);
    let numbered = (2u64..).map(|n| format!("{stem}-{n}.png"));
    plain
        .chain(numbered)
        .map(|name| below.with_file_name(name))
        .find(|name| taken.insert(name.clone()))
        .unwrap_or_else(|| below.into())
}

fn refuse_overwriting(jobs: &[Job], outputs: &[&Path]) -> Result<(), Failure> {
    let whole = |path: &Path| path.canonicalize().ok();
    if let [a, b] = outputs
        && whole(a) == whole(b)
    {
        let message = "--heatmaps and --maps name the same folder; their files have the same names";
        return Err(Failure::say(Exit::Usage, message).hint("--heatmaps out/heatmaps --maps out/maps"));
    }
    let inputs: HashSet<PathBuf> = jobs.iter().filter_map(|job| whole(&job.path)).collect();
    for job in jobs {
        for folder in outputs {
            if whole(&folder.join(&job.name)).is_some_and(|target| inputs.contains(&target)) {
                let message = format!("{} would be overwritten by its heatmap", job.path.display());
                return Err(Failure::say(Exit::Usage, message).hint("name another folder for the output"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::Heatmap;
    use crate::imaging::heatmap::write_png;

    fn folder_of(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            if name.contains("broken") {
                std::fs::write(path, b"\x89PNG\r\n\x1a\nnot really").unwrap();
            } else {
                write_png(&path, &RgbImage { width: 9, height: 7, data: vec![80; 9 * 7 * 3] }).unwrap();
            }
        }
        folder
    }

    struct Outcome {
        result: Result<(), Failure>,
        lines: String,
        complaints: Vec<String>,
    }

    fn judged(paths: &[PathBuf], heatmaps: Option<&Path>, maps: Option<&Path>) -> Outcome {
        let mut complaints = Vec::new();
        let mut out = Vec::new();
        let mut session = Session {
            thresholds: Thresholds { unsure: 1.0, bad: 2.0 },
            heatmaps,
            maps,
            lines: Lines::Json,
            out: &mut out,
            complain: |f: &Failure| complaints.push(f.to_string()),
            bar_hidden: true,
        };
        let map = Heatmap { width: 2, height: 2, data: vec![0.0, 0.0, 0.0, 1.0] };
        let result = session.judge_all(paths, |_| Ok(Opinion { score: 2.5, map: map.clone(), ms: 1.23456 }));
        Outcome { result, lines: String::from_utf8(out).unwrap(), complaints }
    }

    #[test]
    fn a_picture_gives_one_json_line_with_the_five_fields_in_order() {
        let folder = folder_of(&["a.png"]);
        let path = folder.path().join("a.png");
        let outcome = judged(std::slice::from_ref(&path), None, None);
        outcome.result.unwrap();
        let want = format!(
            "{{\"path\":\"{}\",\"score\":2.5,\"verdict\":\"bad\",\"threshold\":2.0,\"ms\":1.235}}\n",
            path.display()
        );
        assert_eq!(outcome.lines, want);
    }

    #[test]
    fn a_broken_picture_is_told_and_the_others_are_judged() {
        let folder = folder_of(&["a.png", "broken.png", "c.png"]);
        let outcome = judged(&[folder.path().into()], None, None);
        assert_eq!(outcome.lines.lines().count(), 2);
        assert_eq!(outcome.complaints.len(), 1);
        assert!(outcome.complaints[0].contains("broken.png"), "{:?}", outcome.complaints);
        assert_eq!(outcome.result.unwrap_err().exit(), Exit::Data);
    }

    #[test]
    fn one_picture_that_fails_is_told_once() {
        let folder = folder_of(&["broken.png"]);
        let outcome = judged(&[folder.path().join("broken.png")], None, None);
        assert!(outcome.complaints.is_empty());
        assert_eq!(outcome.result.unwrap_err().exit(), Exit::Data);
        let outcome = judged(&[folder.path().join("none.png")], None, None);
        assert!(outcome.complaints.is_empty());
        assert_eq!(outcome.result.unwrap_err().exit(), Exit::NoInput);
    }

    #[test]
    fn a_missing_path_beside_a_good_one_ends_in_66_and_the_good_one_is_judged() {
        let folder = folder_of(&["a.png"]);
        let paths = [folder.path().join("none"), folder.path().join("a.png")];
        let outcome = judged(&paths, None, None);
        assert_eq!(outcome.lines.lines().count(), 1);
        assert_eq!(outcome.result.unwrap_err().exit(), Exit::NoInput);
    }

    #[test]
    fn outputs_keep_relative_names_are_unique_and_have_the_pictures_size() {
        let folder = folder_of(&["in/x/a.png", "in/y/a.png", "in/y/b.bmp.png", "other/a.png"]);
        std::fs::copy(folder.path().join("in/x/a.png"), folder.path().join("in/x/a.ppm")).unwrap();
        let (heat, maps) = (folder.path().join("heat"), folder.path().join("raw/maps"));
        let paths = ["in", "other/a.png", "in/x/a.png"].map(|p| folder.path().join(p));
        let outcome = judged(&paths, Some(&heat), Some(&maps));
        outcome.result.unwrap();
        for root in [&heat, &maps] {
            let names: Vec<String> = list_images(root)
                .unwrap()
                .iter()
                .map(|p| p.strip_prefix(root).unwrap().to_str().unwrap().to_owned())
                .collect();
            assert_eq!(
                names,
                ["a-2.png", "a.png", "x/a.png", "x/a.ppm.png", "y/a.png", "y/b.bmp.png"].map(String::from)
            );
        }
        let map = image::open(maps.join("x/a.png")).unwrap();
        assert_eq!((map.width(), map.height(), map.color()), (9, 7, image::ColorType::L16));
        let map = map.into_luma16();
        assert_eq!((map.get_pixel(0, 0).0, map.get_pixel(8, 6).0), ([0], [65535]));
        let over = read_image(&heat.join("y/a.png")).unwrap();
        assert_eq!((over.width, over.height), (9, 7));
    }

    #[test]
    fn an_earlier_runs_heatmaps_are_not_judged() {
        let folder = folder_of(&["a.png", "heat/a.png"]);
        let outcome = judged(&[folder.path().into()], Some(&folder.path().join("heat")), None);
        outcome.result.unwrap();
        assert_eq!(outcome.lines.lines().count(), 1);
    }

    #[test]
    fn a_picture_is_never_overwritten_by_its_heatmap() {
        let folder = folder_of(&["a.png"]);
        let before = std::fs::read(folder.path().join("a.png")).unwrap();
        let outcome = judged(&[folder.path().into()], Some(folder.path()), None);
        assert_eq!(outcome.result.unwrap_err().exit(), Exit::Usage);
        assert_eq!(std::fs::read(folder.path().join("a.png")).unwrap(), before);
        let out = folder.path().join("out");
        let outcome = judged(&[folder.path().join("a.png")], Some(&out), Some(&out));
        assert_eq!(outcome.result.unwrap_err().exit(), Exit::Usage);
    }

    #[test]
    fn an_output_folder_that_cannot_be_made_is_an_error_before_any_work() {
        let folder = folder_of(&["a.png"]);
        let under_a_file = folder.path().join("a.png/heat");
        let outcome = judged(&[folder.path().into()], Some(&under_a_file), None);
        assert_eq!(outcome.result.unwrap_err().exit(), Exit::CantCreate);
        assert!(outcome.lines.is_empty());
    }
}
