//! Taking over a changed configuration while running: read → validate → diff → plan → load models → apply, all
//! or nothing. Up to the turn-over nothing that runs is touched. All of it happens on a thread of its own, so
//! that models may take their time while lines are judged and the watchdog is fed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use super::camera::StopCamera;
use super::conductor::{Control, Turnover};
use super::desk::Terms;
use super::shared::{CameraTerms, Lines};
use super::supply::{FileStamp, ModelFacts, Supplier};
use super::{Judge, Problem};
use crate::config::{self, Change, Config, ConfigError, LineConfig, Plan, diff};
use crate::model::Thresholds;
use crate::outputs::{Outlet, Outlets, Rules, Staged};
use crate::telemetry::Reload;

/// How long a camera that is replaced may take to stop: 9 s were seen with GigE Vision.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// How long its last frame may take to be taken.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// What is in force: what a reload starts from, and what it ends in.
#[derive(Clone)]
pub struct InForce {
    pub config: Config,
    /// For each line.
    pub models: Vec<ModelFacts>,
}

/// The running cameras' ends, by line. `None` where there is none: between two, or one that did not start.
#[derive(Default)]
pub struct Cameras(Mutex<Vec<Option<StopCamera>>>);

impl Cameras {
    pub fn new(cameras: Vec<StopCamera>) -> Self {
        Cameras(Mutex::new(cameras.into_iter().map(Some).collect()))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<StopCamera>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn take(&self, line: usize) -> Option<StopCamera> {
        self.lock().get_mut(line)?.take()
    }

    fn put(&self, line: usize, camera: StopCamera) {
        if let Some(place) = self.lock().get_mut(line) {
            *place = Some(camera);
        }
    }

    fn is_missing(&self, line: usize) -> bool {
        self.lock().get(line).is_none_or(Option::is_none)
    }
}

/// A configuration that can be taken over.
pub struct Ready {
    pub next: InForce,
    /// For each line, in the order of the running configuration.
    pub rules: Vec<Arc<Rules>>,
    /// For each line whose model is another.
    pub judges: Vec<Option<Box<dyn Judge>>>,
    /// To be committed once the rules are in force.
    pub outlets: Staged,
    pub plan: Plan,
}

/// Reads the configuration anew and makes all that it needs. The error says why it is not taken over.
pub fn prepare<P: 'static>(
    path: &Path,
    current: &InForce,
    supplier: &dyn Supplier<P>,
    outlets: &Outlets,
) -> Result<Ready, (Reload, String)> {
    let new = config::load_with(path, &|line| supplier.examine(line)).map_err(|error| match error {
        ConfigError::Mistakes(mistakes) => (Reload::Invalid, format!("\n{mistakes}")),
        unreadable => (Reload::Invalid, format!("{unreadable}.")),
    })?;
    let mut plan = Plan::of(diff(&current.config, &new));
    if plan.needs_restart() {
        return Err((Reload::NeedsRestart, plan.to_string()));
    }
    // The same lines are there, perhaps in another order. The running order is kept: threads count by it.
    let mut lines: Vec<LineConfig> = new.lines;
    lines.sort_by_key(|line| current.config.lines.iter().position(|other| other.name == line.name));
    let config = Config { lines, ..new };

    let stamps: Vec<Option<FileStamp>> = config.lines.iter().map(|line| FileStamp::of(&line.model)).collect();
    let unread: Vec<usize> = (0..config.lines.len())
        .filter(|&i| {
            config.lines[i].model != current.config.lines[i].model || stamps[i] != current.models[i].stamp
        })
        .collect();
    let asked: Vec<&LineConfig> = unread.iter().map(|&i| &config.lines[i]).collect();
    let made = match asked.is_empty() {
        true => Vec::new(),
        false => supplier.judges(&config.daemon, &asked).map_err(|no| (Reload::Failed, format!("{no}.")))?,
    };
    let mut models = current.models.clone();
    let mut judges: Vec<Option<Box<dyn Judge>>> = config.lines.iter().map(|_| None).collect();
    for (i, made) in unread.into_iter().zip(made) {
        let (line, before) = (&config.lines[i], &models[i].hash);
        if made.hash != *before {
            if line.model == current.config.lines[i].model {
                let (from, to) = (before.clone(), made.hash.clone());
                plan.hot.push(Change::ModelFile { line: line.name.clone(), from, to });
            }
            models[i].hash = made.hash;
            models[i].thresholds = made.judge.thresholds();
            judges[i] = Some(made.judge);
        }
        models[i].stamp = stamps[i];
    }
    let config_hash = config.hash().to_string();
    let outlets = outlets.stage(&config).map_err(|error| (Reload::Failed, format!("{error}.")))?;
    let rules = config
        .lines
        .iter()
        .zip(&models)
        .map(|(line, model)| rules(line, model, &config_hash, outlets.of(&line.name)).map(Arc::new));
    let rules = rules.collect::<Result<Vec<_>, _>>().map_err(|why| (Reload::Failed, why))?;
    Ok(Ready { next: InForce { config, models }, rules, judges, outlets, plan })
}

/// One reload, from the file to the last camera.
pub struct Errand<P> {
    pub path: PathBuf,
    pub current: InForce,
    pub supplier: Arc<dyn Supplier<P>>,
    pub control: Sender<Control<P>>,
    pub lines: Arc<Lines>,
    pub cameras: Arc<Cameras>,
    pub outlets: Arc<Outlets>,
}

/// How a reload ended.
pub struct Outcome {
    pub result: Reload,
    pub detail: String,
    /// What is in force now, if that changed.
    pub next: Option<InForce>,
}

impl<P: Send + 'static> Errand<P> {
    pub fn run(self) -> Outcome {
        let ready = match prepare(&self.path, &self.current, self.supplier.as_ref(), &self.outlets) {
            Ok(ready) => ready,
            Err((result, detail)) => return Outcome { result, detail, next: None },
        };
        let Ready { next, rules, judges, outlets, plan } = ready;
        let terms = next.config.lines.iter().map(Terms::of).collect();
        let (done, turned) = bounded(1);
        let told = self.control.send(Control::Turn(Turnover { rules, terms, judges, done }));
        // However long the frame takes that is being judged: a judgement that hangs stops the daemon anyway.
        let Ok(replaced) = told.map_err(drop).and_then(|()| turned.recv().map_err(drop)) else {
            let detail = "the daemon is ending".to_owned();
            return Outcome { result: Reload::Failed, detail, next: None };
        };
        drop(replaced);
        self.outlets.commit(outlets);
        let faults = self.restart_cameras(&next, &plan);
        let (result, detail) = match (faults.is_empty(), plan.is_empty()) {
            (true, true) => (Reload::Unchanged, String::new()),
            (true, false) => (Reload::Applied, plan.to_string()),
            (false, _) => (Reload::NoCamera, faults.join("; ")),
        };
        Outcome { result, detail, next: Some(next) }
    }

    /// All at once: a camera that takes long to stop delays no other.
    fn restart_cameras(&self, next: &InForce, plan: &Plan) -> Vec<String> {
        let restarted: Vec<usize> = (0..next.config.lines.len())
            .filter(|&i| plan.restarts(&next.config.lines[i].name) || self.cameras.is_missing(i))
            .collect();
        std::thread::scope(|scope| {
            let restarts: Vec<_> = restarted
                .iter()
                .map(|&i| {
                    let line = &next.config.lines[i];
                    (line, scope.spawn(move || self.restart_camera(i, line)))
                })
                .collect();
            let ended = restarts.into_iter().map(|(line, thread)| (line, thread.join()));
            let fault = |(line, result): (&LineConfig, std::thread::Result<Result<(), Problem>>)| match result
            {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("line {}: {error}", line.name)),
                Err(_) => Some(format!("line {}: the thread that starts its camera failed", line.name)),
            };
            ended.filter_map(fault).collect()
        })
    }

    fn restart_camera(&self, i: usize, line: &LineConfig) -> Result<(), Problem> {
        let Some(shared) = self.lines.lines.get(i) else { return Ok(()) };
        let (closed, last_taken) = bounded(1);
        self.control.send(Control::Expect { line: i, closed }).map_err(|_| "the daemon is ending")?;
        let ended = match self.cameras.take(i) {
            None => true,
            Some(stop) => match stop(STOP_LIMIT) {
                Ok(()) => last_taken.recv_timeout(CLOSE_LIMIT).is_ok(),
                Err(error) => {
                    tracing::warn!(line = line.name.as_str(), %error, "A camera that is replaced did not stop.");
                    false
                }
            },
        };
        if self.lines.state().name == "stopping" {
            return Ok(());
        }
        let first = shared.snapshot(Instant::now()).camera.captured;
        let camera = self.supplier.camera(line, first)?;
        shared.follow(camera.view, ended, CameraTerms::of(line, Instant::now()));
        self.cameras.put(i, camera.stop);
        self.control
            .send(Control::Attach { line: i, frames: camera.frames })
            .map_err(|_| "the daemon is ending")?;
        Ok(())
    }
}

/// The rules of a line: the configuration's thresholds over the model's, and its outputs opened.
pub fn rules(
    line: &LineConfig,
    model: &ModelFacts,
    config_hash: &str,
    outlets: Vec<Arc<dyn Outlet>>,
) -> Result<Rules, String> {
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
        .map(|rules| Rules { roi: line.roi, outlets, ..rules })
        .map_err(|error| format!("line {}: {error}", line.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::testing::{FakePicture, FakeSupplier};
    use crate::telemetry::Telemetry;

    struct Site {
        folder: tempfile::TempDir,
        current: InForce,
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
            let config = config::load(&folder.path().join("c.toml")).unwrap();
            let thresholds = Thresholds { unsure: 1.0, bad: 2.0 };
            let stamp = FileStamp::of(&folder.path().join("m"));
            let facts = ModelFacts { hash: "h".into(), thresholds, stamp };
            Site { folder, current: InForce { config, models: vec![facts.clone(), facts] } }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn reload(&self, text: &str) -> Result<Ready, (Reload, String)> {
            std::fs::write(self.path("c.toml"), text).unwrap();
            let outlets = Outlets::new(Telemetry::new(), &self.current.config);
            prepare::<FakePicture>(&self.path("c.toml"), &self.current, &FakeSupplier::default(), &outlets)
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
        assert_eq!(ready.rules[0].config_hash, ready.next.config.hash().to_string());
        assert_ne!(ready.next.config.hash(), site.current.config.hash());
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
        let outlets = Outlets::new(Telemetry::new(), &site.current.config);
        let path = site.path("c.toml");
        let gone = prepare::<FakePicture>(&path, &site.current, &FakeSupplier::default(), &outlets);
        let gone = gone.err().unwrap();
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
        assert_eq!(ready.next.config.lines[0].name.as_str(), "a");
    }
}
