//! `inspectd archive`: looks into the archive, while the daemon writes to it or without one; keeps what people say
//! of parts, and makes pictures of those parts the next lesson.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::{Subcommand, ValueEnum};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::check::refusal;
use super::inspect::{create_folder, picture_failure};
use super::{Exit, Failure};
use crate::archive::{Filter, PartKey, Review, Row, Still, Store, StoreError};
use crate::config;
use crate::imaging::{FrameView, RgbImage, Roi, heatmap};
use crate::model::Verdict;
use crate::telemetry::{VERDICTS, verdict_label, verdict_of};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List parts, newest first
    List(ListArgs),
    /// Show all that is known of a part
    Show(ShowArgs),
    /// Keep what a person says of a part
    Review(ReviewArgs),
    /// Copy reviewed parts into a data set that `teach` and `eval` take
    Export(ExportArgs),
}

/// Where the archive is.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// The daemon's configuration, which names the archive
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The archive's folder
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    place: Place,
    /// Only of these lines
    #[arg(long, value_name = "NAME")]
    line: Vec<String>,
    /// Only these verdicts: good, unsure, bad, late, unjudged
    #[arg(long, value_name = "VERDICT", value_parser = verdict)]
    verdict: Vec<Verdict>,
    /// Only the part that the plant calls so
    #[arg(long, value_name = "ID")]
    part_id: Option<String>,
    /// Only from then on: 2026-11-24, or 2026-11-24T09:30:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Only before then
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// Only parts that a person has looked at
    #[arg(long)]
    reviewed: bool,
    /// Only parts that nobody has looked at
    #[arg(long, conflicts_with = "reviewed")]
    unreviewed: bool,
    /// Only parts with a picture
    #[arg(long)]
    with_image: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// Number of the part, or its name
    #[arg(value_name = "PART")]
    part: PartKey,
    #[command(flatten)]
    place: Place,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Opinion {
    /// The verdict was right
    Confirm,
    /// The part was good
    FalseAlarm,
    /// It cannot be said
    Unsure,
    /// Take back what was said
    None,
}

#[derive(Debug, clap::Args)]
struct ReviewArgs {
    /// Number of the part, or its name
    #[arg(value_name = "PART")]
    part: PartKey,
    /// What is said of its verdict
    #[arg(value_enum)]
    opinion: Opinion,
    /// Who says it
    #[arg(long, value_name = "NAME")]
    by: String,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct ExportArgs {
    /// The folder to make: train/good for parts that are known to be good, test/defect for those that are not
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Parts of this line; needed where the archive has several
    #[arg(long, value_name = "NAME")]
    line: Option<String>,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::List(args) => list(args),
        Command::Show(args) => show(args),
        Command::Review(args) => review(args),
        Command::Export(args) => export(args),
    }
}

fn verdict(text: &str) -> Result<Verdict, String> {
    let all: Vec<&str> = VERDICTS.iter().map(|(_, label)| *label).collect();
    verdict_of(text).ok_or_else(|| format!("one of {}", all.join(", ")))
}

fn time(text: &str) -> Result<Timestamp, String> {
    let midnight = |day: Date| TimeZone::UTC.to_timestamp(day.at(0, 0, 0, 0));
    let day = || text.parse::<Date>().and_then(midnight);
    text.parse()
        .or_else(|_| day())
        .map_err(|_| "a time such as 2026-11-24 or 2026-11-24T09:30:00Z".to_owned())
}

impl Place {
    fn folder(&self) -> Result<PathBuf, Failure> {
        let Some(path) = &self.config else { return Ok(self.folder.clone().unwrap_or_default()) };
        let config = config::load(path).map_err(|error| refusal(path, error))?;
        config.archive.map(|archive| archive.folder).ok_or_else(|| {
            let message = format!("{} names no archive", path.display());
            Failure::say(Exit::Config, message).hint("folder = \"/var/lib/inspectd/archive\" under [archive]")
        })
    }
}

/// Opens an archive for reading.
pub(super) fn open(folder: &Path) -> Result<Store, Failure> {
    Store::read(folder).map_err(unreadable)
}

fn unreadable(error: StoreError) -> Failure {
    let exit = match &error {
        StoreError::Missing { .. } => Exit::NoInput,
        StoreError::Foreign { .. }
        | StoreError::Newer { .. }
        | StoreError::Older { .. }
        | StoreError::Content { .. } => Exit::Data,
        corrupt if corrupt.is_corrupt() => Exit::Data,
        _ => Exit::Io,
    };
    Failure::new(exit, error)
}

/// The part, which must be there.
pub(super) fn part(store: &Store, key: &PartKey) -> Result<Row, Failure> {
    store.find(key).map_err(unreadable)?.ok_or_else(|| {
        Failure::say(Exit::NoInput, format!("the archive has no part {key}"))
            .hint("inspectd archive list --config FILE")
    })
}

fn to_json(row: &Row) -> Value {
    json!({
        "id": row.id,
        "part": row.name(),
        "line": row.line,
        "sequence": row.sequence,
        "part_id": row.part_id,
        "captured_at": format!("{:.3}", row.captured_at),
        "verdict": row.verdict,
        "reason": row.reason,
        "score": row.score,
        "thresholds": row.thresholds,
        "roi": row.roi.map(|Roi { x, y, width, height }| [x, y, width, height]),
        "latency_ms": row.latency.as_secs_f64() * 1e3,
        "frame_hash": row.frame_hash,
        "model_hash": row.model_hash,
        "config_hash": row.config_hash,
        "image": row.image,
        "heatmap": row.heatmap(),
        "review": row.review,
        "reviewed_at": row.reviewed_at.map(|at| format!("{at:.3}")),
        "reviewer": row.reviewer,
    })
}

fn list(args: ListArgs) -> Result<(), Failure> {
    let store = open(&args.place.folder()?)?;
    let filter = Filter {
        lines: args.line,
        verdicts: args.verdict,
        part_id: args.part_id,
        since: args.since,
        until: args.until,
        reviewed: match (args.reviewed, args.unreviewed) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        },
        with_image: args.with_image,
        before: None,
    };
    let mut out = io::stdout().lock();
    for row in store.list(&filter, args.limit).map_err(unreadable)? {
        let line = match args.json {
            true => to_json(&row).to_string(),
            false => {
                let score = row.score.map_or("–".to_owned(), |score| format!("{score:.4}"));
                let image = if row.image.is_some() { "picture" } else { "" };
                let review = row.review.map_or("", Review::label);
                let (id, verdict, name) = (row.id, verdict_label(row.verdict), row.name());
                format!("{id:>9}  {verdict:8} {score:>10}  {name}  {image:7}  {review}").trim_end().to_owned()
            }
        };
        writeln!(out, "{line}").map_err(Failure::stdout)?;
    }
    Ok(())
}

fn show(args: ShowArgs) -> Result<(), Failure> {
    let store = open(&args.place.folder()?)?;
    let json = to_json(&part(&store, &args.part)?);
    let mut out = io::stdout().lock();
    let written = match (args.json, &json) {
        (false, Value::Object(fields)) => {
            let shown = fields.iter().filter(|(_, value)| !value.is_null());
            shown
                .map(|(name, value)| (name, value.as_str().map_or(value.to_string(), str::to_owned)))
                .try_for_each(|(name, value)| writeln!(out, "{name:12} {value}"))
        }
        _ => writeln!(out, "{json}"),
    };
    written.map_err(Failure::stdout)
}

fn review(args: ReviewArgs) -> Result<(), Failure> {
    let store = Store::review(&args.place.folder()?).map_err(unreadable)?;
    let row = part(&store, &args.part)?;
    let review = match args.opinion {
        Opinion::Confirm => Some(Review::Confirm),
        Opinion::FalseAlarm => Some(Review::FalseAlarm),
        Opinion::Unsure => Some(Review::Unsure),
        Opinion::None => None,
    };
    store.set_review(row.id, review, &args.by).map_err(unreadable)?;
    Ok(())
}

/// Parts that are fetched at once.
const PAGE: usize = 500;

fn export(args: ExportArgs) -> Result<(), Failure> {
    let store = open(&args.place.folder()?)?;
    let lines = store.lines().map_err(unreadable)?;
    let line = match (args.line, lines.as_slice()) {
        (Some(line), _) if lines.contains(&line) => line,
        (None, [only]) => only.clone(),
        (named, _) => {
            let message = match named {
                Some(line) => format!("the archive has no line \"{line}\""),
                None => "the archive has several lines, and each has its own model".to_owned(),
            };
            return Err(
                Failure::say(Exit::Usage, message).hint(format!("--line {}", lines.join(", or --line ")))
            );
        }
    };
    if std::fs::read_dir(&args.out).is_ok_and(|mut entries| entries.next().is_some()) {
        let message = format!("{} is not empty", args.out.display());
        return Err(Failure::say(Exit::CantCreate, message).hint("--out DIR, a folder that is not there yet"));
    }
    let (good, defect) = (args.out.join("train/good"), args.out.join("test/defect"));
    let (mut n_good, mut n_defect, mut n_gone) = (0, 0, 0);
    let mut filter =
        Filter { lines: vec![line], reviewed: Some(true), with_image: true, ..Filter::default() };
    loop {
        let page = store.list(&filter, PAGE).map_err(unreadable)?;
        let Some(last) = page.last() else { break };
        filter.before = Some((last.captured_at, last.id));
        for row in &page {
            let (folder, n) = match (row.is_known_good(), row.is_known_bad()) {
                (true, _) => (&good, &mut n_good),
                (_, true) => (&defect, &mut n_defect),
                _ => continue,
            };
            match copy(row, folder) {
                Ok(()) => *n += 1,
                // Retention may have come before us.
                Err(failure) if failure.exit() == Exit::NoInput => n_gone += 1,
                Err(failure) => return Err(failure),
            }
        }
    }
    if n_good + n_defect == 0 {
        let message = "the archive has no picture of a part that a person has called good or bad";
        return Err(Failure::say(Exit::NoInput, message)
            .hint("inspectd archive review PART false_alarm --by NAME --config FILE"));
    }
    let gone = if n_gone > 0 { format!(", {n_gone} pictures are gone") } else { String::new() };
    let out = args.out.display();
    writeln!(
        io::stdout(),
        "{n_good} good parts in {out}/train/good, {n_defect} bad ones in {out}/test/defect{gone}"
    )
    .map_err(Failure::stdout)
}

/// The region that was judged, as RGB: what a model is taught on.
fn copy(row: &Row, folder: &Path) -> Result<(), Failure> {
    let Some(path) = &row.image else { return Ok(()) };
    let still = Still::read(path).map_err(|error| {
        let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NoInput } else { Exit::Data };
        Failure::new(exit, anyhow!(error).context(format!("the picture {} cannot be read", path.display())))
    })?;
    let image = region(&still.view(), row.roi).map_err(picture_failure)?;
    create_folder(folder)?;
    heatmap::write_png(&folder.join(format!("{}.png", row.name())), &image).map_err(picture_failure)
}

fn region(frame: &FrameView<'_>, roi: Option<Roi>) -> Result<RgbImage, crate::imaging::ImagingError> {
    let whole = RgbImage::from_frame(frame)?;
    let roi = Roi::resolve(roi, whole.width, whole.height)?;
    let mut cut = RgbImage::new(roi.width, roi.height);
    for (to, row) in
        cut.data.chunks_exact_mut(roi.width * 3).zip(whole.data.chunks_exact(whole.width * 3).skip(roi.y))
    {
        to.copy_from_slice(&row[roi.x * 3..(roi.x + roi.width) * 3]);
    }
    Ok(cut)
}
