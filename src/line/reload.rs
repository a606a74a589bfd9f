//! Taking over a changed configuration while running: read → validate → diff → plan → apply, all or
//! nothing. Up to `apply` nothing that runs is touched.

use std::path::Path;
use std::sync::Arc;

use crate::config::{self, Config, ConfigError, LineConfig, Plan, diff};
use crate::model::Thresholds;
use crate::outputs::Rules;
use crate::telemetry::Reload;

/// What is known of a line's model.
#[derive(Clone, Debug)]
pub struct ModelFacts {
    pub hash: String,
    /// The model's own.
    pub thresholds: Thresholds,
}

/// A configuration that can be taken over.
pub struct Ready {
    pub config: Config,
    /// For each line, in the order of the running configuration.
    pub rules: Vec<Arc<Rules>>,
    pub plan: Plan,
}

/// Reads the configuration anew. The error says why it is not taken over.
pub fn prepare(path: &Path, current: &Config, models: &[ModelFacts]) -> Result<Ready, (Reload, String)> {
    let new = config::load(path).map_err(|error| match error {
        ConfigError::Mistakes(mistakes) => (Reload::Invalid, format!("\n{mistakes}")),
        unreadable => (Reload::Invalid, format!("{unreadable}.")),
    })?;
    let plan = Plan::of(diff(current, &new));
    if plan.needs_restart() {
        return Err((Reload::NeedsRestart, plan.to_string()));
    }
    let config_hash = new.hash().to_string();
    let rules = current.lines.iter().zip(models).map(|(line, model)| {
        // The plan needs no restart, so the same lines are there, perhaps in another order.
        let line = new.lines.iter().find(|other| other.name == line.name).unwrap_or(line);
        rules(line, model, &config_hash).map(Arc::new)
    });
    let rules = rules.collect::<Result<Vec<_>, _>>().map_err(|why| (Reload::Failed, why))?;
    // The running order is kept: it is what the threads count by.
    let mut lines: Vec<LineConfig> = new.lines;
    lines.sort_by_key(|line| current.lines.iter().position(|other| other.name == line.name));
    Ok(Ready { config: Config { lines, ..new }, rules, plan })
}

/// The rules of a line: the configuration's thresholds over the model's, and its outputs opened.
pub fn rules(line: &LineConfig, model: &ModelFacts, config_hash: &str) -> Result<Rules, String> {
    let thresholds = Thresholds {
        unsure: line.thresholds.unsure.unwrap_or(model.thresholds.unsure),
        bad: line.thresholds.bad.unwrap_or(model.thresholds.bad),
    };
    if thresholds.unsure > thresholds.bad {
        let Thresholds { unsure, bad } = thresholds;
        let own = model.thresholds;
        return Err(format!(
            "line {}: unsure = {unsure} is above bad = {bad}. The model's own are unsure = {} and bad = {}; \
             set both in [line.thresholds]",
            line.name, own.unsure, own.bad
        ));
    }
    Rules::open(line.name.clone(), &line.outputs, thresholds, model.hash.clone(), config_hash.to_owned())
        .map_err(|error| format!("line {}: {error}", line.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Site {
        folder: tempfile::TempDir,
        current: Config,
        models: Vec<ModelFacts>,
    }

    const TWO_LINES: &str = "\
[[line]]
name = \"a\"
model = \"m\"
source = \"videotestsrc\"
[line.outputs]
verdicts = \"a.jsonl\"

[[line]]
name = \"b\"
model = \"m\"
source = \"videotestsrc\"
[line.outputs]
verdicts = \"off\"
";

    impl Site {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("m"), "").unwrap();
            std::fs::write(folder.path().join("c.toml"), TWO_LINES).unwrap();
            let current = config::load(&folder.path().join("c.toml")).unwrap();
            let facts = ModelFacts { hash: "h".into(), thresholds: Thresholds { unsure: 1.0, bad: 2.0 } };
            Site { folder, current, models: vec![facts.clone(), facts] }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn reload(&self, text: &str) -> Result<Ready, (Reload, String)> {
            std::fs::write(self.path("c.toml"), text).unwrap();
            prepare(&self.path("c.toml"), &self.current, &self.models)
        }

        fn refused(&self, text: &str) -> (Reload, String) {
            self.reload(text).err().expect("it should be refused")
        }
    }

    #[test]
    fn thresholds_and_outputs_are_taken_over() {
        let site = Site::new();
        let ready = site
            .reload(&format!("{}[line.thresholds]\nbad = 1.5\n", TWO_LINES.replace("a.jsonl", "new.jsonl")))
            .unwrap();
        assert_eq!(ready.plan.hot.len(), 2, "{}", ready.plan);
        let thresholds: Vec<_> =
            ready.rules.iter().map(|r| (r.thresholds.unsure, r.thresholds.bad)).collect();
        assert_eq!(thresholds, [(1.0, 2.0), (1.0, 1.5)]);
        assert_eq!(ready.rules[0].config_hash, ready.config.hash().to_string());
        assert_ne!(ready.config.hash(), site.current.hash());
        assert!(site.path("new.jsonl").exists());
        assert!(ready.rules[1].verdicts.is_none());
    }

    #[test]
    fn one_change_that_needs_a_restart_refuses_all_and_opens_nothing() {
        let site = Site::new();
        let text = TWO_LINES.replace("a.jsonl", "new.jsonl").replace("name = \"b\"", "name = \"c\"");
        let (result, why) = site.refused(&text);
        assert_eq!(result, Reload::NeedsRestart);
        assert!(why.starts_with("line c was added; line b was removed; line a: verdicts from"), "{why}");
        assert!(!site.path("new.jsonl").exists());
        let (result, why) = site.refused(&format!("[daemon]\nthreads = 3\n{TWO_LINES}"));
        assert_eq!((result, why.as_str()), (Reload::NeedsRestart, "daemon: threads from 0 to 3"));
    }

    #[test]
    fn a_mistake_refuses_all_with_its_place() {
        let site = Site::new();
        let (result, why) = site.refused(&TWO_LINES.replace("verdicts = \"off\"", "verdict = \"off\""));
        assert_eq!(result, Reload::Invalid);
        assert!(why.contains("c.toml:13:1: `verdict` is not a key of [line.outputs]"), "{why}");
        assert!(why.contains("try: verdicts"), "{why}");
        std::fs::remove_file(site.path("c.toml")).unwrap();
        let gone = prepare(&site.path("c.toml"), &site.current, &site.models).err().unwrap();
        assert_eq!(gone.0, Reload::Invalid);
        assert!(gone.1.contains("c.toml cannot be read"), "{}", gone.1);
    }

    #[test]
    fn a_threshold_on_the_wrong_side_of_the_models_own_is_refused() {
        let site = Site::new();
        let (result, why) = site.refused(&format!("{TWO_LINES}[line.thresholds]\nunsure = 2.5\n"));
        assert_eq!(result, Reload::Failed);
        assert!(
            why.contains("line b: unsure = 2.5 is above bad = 2") && why.contains("The model's own"),
            "{why}"
        );
    }

    #[test]
    fn the_same_file_again_is_an_empty_plan_with_outputs_opened_anew() {
        let site = Site::new();
        std::fs::remove_file(site.path("a.jsonl")).ok();
        let ready = site.reload(TWO_LINES).unwrap();
        assert!(ready.plan.is_empty());
        assert!(site.path("a.jsonl").exists(), "logrotate moved it away; it is made anew");
    }

    #[test]
    fn lines_in_another_order_keep_their_rules() {
        let site = Site::new();
        let (a, b) = TWO_LINES.split_at(TWO_LINES.find("\n[[line]]").unwrap() + 1);
        let ready = site.reload(&format!("{b}{a}")).unwrap();
        assert_eq!(ready.rules[0].line.as_str(), "a");
        assert_eq!(ready.config.lines[0].name.as_str(), "a");
    }
}
