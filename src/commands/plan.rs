//! `inspectd plan`: what a reload would do with a configuration, field by field, before anybody does it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::check::{complaints, refusal};
use super::serve::state_dir;
use super::{Exit, Failure};
use crate::config::{self, Change, Config, IN_FORCE_FILE, InForceRecord, Plan, Reload, diff};
use crate::model::Model;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The new configuration, TOML
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Compare with this configuration, and not with what the running daemon has in force
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// What is compared with.
struct Before {
    config: Config,
    /// Of each line, where it is known.
    models: Vec<(String, String)>,
    name: String,
}

/// What a reload would do with the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Would {
    Nothing,
    Apply,
    Refuse,
}

#[derive(Serialize)]
struct Row {
    /// `hot`, `camera` or `restart`.
    by: &'static str,
    /// The line, or none for tables beside the lines.
    line: Option<String>,
    what: String,
    from: Option<String>,
    to: Option<String>,
}

#[derive(Serialize)]
struct Report {
    in_force: String,
    would: Would,
    changes: Vec<Row>,
}

/// Exit 0 whatever a reload would do; 78 where the new configuration has mistakes.
pub fn run(args: Args) -> Result<(), Failure> {
    let new = config::load_with(&args.config, &complaints).map_err(|error| refusal(&args.config, error))?;
    let before = match &args.against {
        Some(path) => {
            let config = config::load(path).map_err(|error| refusal(path, error))?;
            Before { config, models: Vec::new(), name: path.display().to_string() }
        }
        None => in_force(&args.config, &new)?,
    };
    let mut changes = diff(&before.config, &new);
    changes.extend(model_files(&before, &new));
    let plan = Plan::of(changes);
    let report = Report {
        in_force: before.name,
        would: match (plan.is_empty(), plan.needs_restart()) {
            (true, _) => Would::Nothing,
            (_, true) => Would::Refuse,
            (_, false) => Would::Apply,
        },
        changes: plan.restart_daemon.iter().chain(&plan.restart_line).chain(&plan.hot).map(row).collect(),
    };
    let text = match args.json {
        true => serde_json::to_string(&report).map_err(io::Error::from).map_err(Failure::stdout)? + "\n",
        false => render(&report, &plan),
    };
    io::stdout().write_all(text.as_bytes()).map_err(Failure::stdout)
}

/// What the daemon of this configuration has written down.
fn in_force(path: &Path, new: &Config) -> Result<Before, Failure> {
    let hint = "inspectd plan --config NEW --against OLD compares two files; the daemon writes what it has in \
                force into its state_dir";
    let Some(folder) = state_dir(&new.daemon) else {
        let message = format!("{} names no state_dir, so what is in force is not known", path.display());
        return Err(Failure::say(Exit::NoInput, message).hint(hint));
    };
    let file = folder.join(IN_FORCE_FILE);
    let unknown = |error: anyhow::Error| {
        let message = format!("what is in force cannot be read from {}", file.display());
        Failure::new(Exit::NoInput, error.context(message)).hint(hint)
    };
    let record = InForceRecord::read(&file).map_err(|error| unknown(error.into()))?;
    let config = record.config().map_err(|error| unknown(error.into()))?;
    let name = format!("{}, since {}", record.file.display(), record.since);
    Ok(Before { config, models: record.models.into_iter().collect(), name })
}

/// Models that were taught anew under the same name.
fn model_files(before: &Before, new: &Config) -> Vec<Change> {
    let change = |line: &config::LineConfig| {
        let same = before.config.lines.iter().any(|old| old.name == line.name && old.model == line.model);
        let (_, from) = before.models.iter().find(|(name, _)| same && name == line.name.as_str())?;
        // It was read without a mistake just before.
        let to = Model::load(&line.model).ok()?.hash();
        (to != *from).then(|| Change::ModelFile { line: line.name.clone(), from: from.clone(), to })
    };
    new.lines.iter().filter_map(change).collect()
}

fn row(change: &Change) -> Row {
    let by = match change.reload() {
        Reload::Hot => "hot",
        Reload::Line => "camera",
        Reload::Daemon => "restart",
    };
    let whole = |line: &config::LineName, what: &str| Row {
        by,
        line: Some(line.to_string()),
        what: what.to_owned(),
        from: None,
        to: None,
    };
    match change {
        Change::Key { line, key, .. } => {
            let (from, to) = change.shown();
            Row { by, line: line.as_ref().map(ToString::to_string), what: key.path(), from, to }
        }
        Change::LineAdded(line) => whole(line, "the line is added"),
        Change::LineRemoved(line) => whole(line, "the line is removed"),
        Change::Reordered => {
            Row { by, line: None, what: "the order of the lines".to_owned(), from: None, to: None }
        }
        Change::ModelFile { line, from, to } => {
            Row { from: Some(from.clone()), to: Some(to.clone()), ..whole(line, "the model in its file") }
        }
    }
}

fn render(report: &Report, plan: &Plan) -> String {
    let mut text = format!("In force: {}\n", report.in_force);
    let what = |row: &Row| match &row.line {
        Some(line) => format!("line {line}: {}", row.what),
        None => row.what.clone(),
    };
    let width = report.changes.iter().map(|row| what(row).chars().count()).max().unwrap_or(0);
    for row in &report.changes {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        let values = match (&row.from, &row.to) {
            (None, None) => String::new(),
            (from, to) => format!("  {} → {}", shown(from), shown(to)),
        };
        text.push_str(format!("  {:<8}{:<width$}{values}", row.by, what(row)).trim_end());
        text.push('\n');
    }
    let changes = |n: usize| if n == 1 { "1 change".to_owned() } else { format!("{n} changes") };
    let (hot, camera, restart) = (plan.hot.len(), plan.restart_line.len(), plan.restart_daemon.len());
    text.push_str(&match report.would {
        Would::Nothing => "A reload would change nothing; it opens output files anew.\n".to_owned(),
        Would::Refuse => format!(
            "A reload would refuse all of it: {} needs `systemctl restart inspectd`.\n",
            changes(restart)
        ),
        Would::Apply => {
            let hot = (hot > 0).then(|| format!("{} between two frames", changes(hot)));
            let camera =
                (camera > 0).then(|| format!("{} by starting the line's camera anew", changes(camera)));
            let parts: Vec<String> = hot.into_iter().chain(camera).collect();
            format!("A reload would take over {}.\n", parts.join(" and "))
        }
    });
    text
}
