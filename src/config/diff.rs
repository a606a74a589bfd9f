//! From two configurations to a plan: what changed, and what it costs to take it over.

use std::fmt;

use super::keys::{Key, Reload};
use super::meant::{Config, LineName, Settings};
use super::raw::Value;

/// One difference between two configurations.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// `line` is `None` for keys of tables beside the lines.
    Key {
        line: Option<LineName>,
        key: &'static Key,
        from: Option<Value>,
        to: Option<Value>,
    },
    LineAdded(LineName),
    LineRemoved(LineName),
    /// The same lines in another order. Costs nothing.
    Reordered,
    /// The file of the line's model was written anew.
    ModelFile {
        line: LineName,
        from: String,
        to: String,
    },
}

impl Change {
    pub fn reload(&self) -> Reload {
        match self {
            Change::Key { key, .. } => key.reload,
            Change::LineAdded(_) | Change::LineRemoved(_) => Reload::Daemon,
            Change::Reordered | Change::ModelFile { .. } => Reload::Hot,
        }
    }
}

impl Change {
    /// The values of a key before and after, for people to see: without the passwords of URLs.
    pub fn shown(&self) -> (Option<String>, Option<String>) {
        let show = |value: &Option<Value>| value.as_ref().map(|value| redact(&value.to_string()));
        match self {
            Change::Key { from, to, .. } => (show(from), show(to)),
            _ => (None, None),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = self.shown();
        let or_nothing = |value: Option<String>| value.unwrap_or_else(|| "nothing".to_owned());
        match self {
            Change::Key { line, key, .. } => {
                match line {
                    Some(line) => write!(f, "line {line}: ")?,
                    None => write!(f, "{}: ", key.section.name())?,
                }
                write!(f, "{} from {} to {}", key.name, or_nothing(from), or_nothing(to))
            }
            Change::LineAdded(name) => write!(f, "line {name} was added"),
            Change::LineRemoved(name) => write!(f, "line {name} was removed"),
            Change::Reordered => write!(f, "the order of the lines"),
            Change::ModelFile { line, from, to } => {
                write!(f, "line {line}: the model in the file from {from} to {to}")
            }
        }
    }
}

/// Hides user and password of URLs.
fn redact(text: &str) -> String {
    let mut parts = text.split("://");
    let mut shown = parts.next().unwrap_or("").to_owned();
    for part in parts {
        let authority = part.find(['/', ' ', '"', '!']).unwrap_or(part.len());
        shown.push_str("://");
        match part[..authority].rfind('@') {
            Some(at) => shown.push_str(&format!("***{}", &part[at..])),
            None => shown.push_str(part),
        }
    }
    shown
}

/// Differences, lines matched by name; in the order of the new file.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    settings(None, &old.settings, &new.settings, &mut changes);
    for line in &new.lines {
        match old.lines.iter().find(|other| other.name == line.name) {
            Some(before) => settings(Some(&line.name), &before.settings, &line.settings, &mut changes),
            None => changes.push(Change::LineAdded(line.name.clone())),
        }
    }
    for line in &old.lines {
        if new.lines.iter().all(|other| other.name != line.name) {
            changes.push(Change::LineRemoved(line.name.clone()));
        }
    }
    let order = |config: &Config, other: &Config| -> Vec<LineName> {
        let common = |name: &&LineName| other.lines.iter().any(|line| line.name == **name);
        config.lines.iter().map(|line| &line.name).filter(common).cloned().collect()
    };
    if order(old, new) != order(new, old) {
        changes.push(Change::Reordered);
    }
    changes
}

fn settings(line: Option<&LineName>, old: &Settings, new: &Settings, changes: &mut Vec<Change>) {
    // Both come from the one table, so they hold the same keys in the same order.
    for ((key, from), (_, to)) in old.iter().zip(new) {
        if from != to {
            changes.push(Change::Key { line: line.cloned(), key, from: from.clone(), to: to.clone() });
        }
    }
}

/// What a reload has to do. All of it, or nothing.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Plan {
    /// Taken over between two frames.
    pub hot: Vec<Change>,
    /// The cameras of these lines are started anew.
    pub restart_line: Vec<Change>,
    /// The daemon would have to be started anew.
    pub restart_daemon: Vec<Change>,
}

impl Plan {
    pub fn of(changes: Vec<Change>) -> Plan {
        let mut plan = Plan::default();
        for change in changes {
            match change.reload() {
                Reload::Hot => plan.hot.push(change),
                Reload::Line => plan.restart_line.push(change),
                Reload::Daemon => plan.restart_daemon.push(change),
            }
        }
        plan
    }

    pub fn is_empty(&self) -> bool {
        self.hot.is_empty() && self.restart_line.is_empty() && self.restart_daemon.is_empty()
    }

    /// Whether the camera of `line` has to be started anew.
    pub fn restarts(&self, line: &LineName) -> bool {
        let of = |change: &Change| matches!(change, Change::Key { line: Some(of), .. } if of == line);
        self.restart_line.iter().any(of)
    }

    /// Whether anything cannot be taken over while running.
    pub fn needs_restart(&self) -> bool {
        !self.restart_daemon.is_empty()
    }
}

/// The changes, most costly first, separated by semicolons.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.restart_daemon.iter().chain(&self.restart_line).chain(&self.hot);
        for (i, change) in all.enumerate() {
            write!(f, "{}{change}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}
