//! The whole daemon with fake cameras and fake judges. Nothing sleeps for a fixed time: tests wait for
//! what they expect, and fail if it does not come.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use serde_json::Value;

use super::daemon::{Command, Daemon, Part, RunError, StartError, start};
use super::shared::Lines;
use super::testing::{FakeCamera, FakeJudge, FakePicture};
use super::{Counts, Recipe};
use crate::config::{self, Config};
use crate::outputs::http::Board;
use crate::telemetry::Telemetry;

struct Site {
    folder: tempfile::TempDir,
}

/// A daemon on a thread, as `inspectd serve` has it on the main thread.
struct Running {
    commands: Sender<Command>,
    lines: Arc<Lines>,
    thread: JoinHandle<Result<(), RunError>>,
}

impl Site {
    fn new() -> Self {
        Site { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Configuration of lines `a`, `b`, … with these keys each.
    fn configure(&self, daemon: &str, lines: &[&str]) -> Config {
        std::fs::write(self.path("model"), "").unwrap();
        let mut text = format!("[daemon]\nhttp = \"off\"\n{daemon}\n");
        for (name, keys) in ('a'..).zip(lines) {
            text.push_str(&format!(
                "[[line]]\nname = \"{name}\"\nmodel = \"model\"\nsource = \"fake\"\n{keys}\n"
            ));
            if !keys.contains("[line.outputs]") {
                text.push_str("[line.outputs]\n");
            }
            if !keys.contains("verdicts") {
                text.push_str(&format!("verdicts = \"{name}.jsonl\"\n"));
            }
        }
        std::fs::write(self.path("c.toml"), text).unwrap();
        config::load(&self.path("c.toml")).unwrap_or_else(|error| panic!("{error}"))
    }

    fn start(&self, config: Config, judges: Vec<Recipe>) -> (Running, Vec<FakeCamera>) {
        let (parts, hands): (Vec<_>, Vec<_>) = judges.into_iter().map(part).unzip();
        let path = self.path("c.toml");
        let daemon = start(config, path, parts, Telemetry::new(), None).unwrap_or_else(|e| panic!("{e}"));
        (run(daemon), hands)
    }

    fn verdicts(&self, line: &str) -> Vec<Value> {
        read(&self.path(&format!("{line}.jsonl")))
    }
}

fn read(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn part(judge: Recipe) -> (Part<FakePicture>, FakeCamera) {
    let (hand, camera) = FakeCamera::new();
    (Part { model_hash: "m".into(), judge, camera: Box::new(|_| Ok(camera)) }, hand)
}

fn run(daemon: Daemon) -> Running {
    let (commands, receiver) = bounded(8);
    let lines = daemon.lines();
    Running { commands, lines, thread: std::thread::spawn(move || daemon.run(&receiver)) }
}

/// A judge that never waits.
fn swift() -> Recipe {
    Box::new(|| Ok(Box::new(FakeJudge { gate: None, map: vec![0.5; 4] })))
}

/// A judge that waits for a token before each frame, and the hand that gives tokens.
fn gated() -> (Recipe, Sender<()>) {
    let (token, gate) = bounded(100);
    (Box::new(|| Ok(Box::new(FakeJudge { gate: Some(gate), map: vec![0.5; 4] }))), token)
}

impl Running {
    fn counts(&self, line: usize) -> Counts {
        self.lines.lines[line].publish().counts
    }

    /// Waits until `holds` does.
    fn wait(&self, line: usize, what: &str, holds: impl Fn(Counts) -> bool) {
        let until = Instant::now() + Duration::from_secs(10);
        while !holds(self.counts(line)) {
            assert!(Instant::now() < until, "{what}: {:?}", self.counts(line));
            std::thread::yield_now();
        }
    }

    fn end(self) -> (Result<(), RunError>, Arc<Lines>) {
        (self.thread.join().unwrap(), self.lines)
    }
}

fn unbalanced(lines: &Lines) -> u64 {
    lines.lines.iter().map(|line| line.telemetry.metrics.ledger_unbalanced.get()).sum()
}

#[test]
fn when_every_source_has_ended_the_daemon_ends_with_a_verdict_for_each_frame() {
    let site = Site::new();
    let keys = "drop = \"block\"\ndeadline_ms = 0";
    let (running, cameras) = site.start(site.configure("", &[keys, keys]), vec![swift(), swift()]);
    for _ in 0..250 {
        cameras.iter().for_each(FakeCamera::capture);
    }
    drop(cameras);
    let (result, lines) = running.end();
    assert_eq!(result, Ok(()));
    for (i, name) in ["a", "b"].into_iter().enumerate() {
        let counts = lines.lines[i].publish().counts;
        assert_eq!(counts.verdicts, [100, 100, 50, 0, 0]);
        let verdicts = site.verdicts(name);
        let sequences: Vec<u64> = verdicts.iter().map(|v| v["sequence"].as_u64().unwrap()).collect();
        assert_eq!(sequences, (0..250).collect::<Vec<_>>());
        assert_eq!(verdicts[249]["verdict"], "bad");
        assert_eq!(verdicts[249]["score"], 249.0);
        assert_eq!(verdicts[249]["thresholds"]["bad"], 200.0);
        assert_eq!(verdicts[249]["frame_hash"].as_str().unwrap().len(), 16);
    }
    assert_eq!(unbalanced(&lines), 0);
}

#[test]
fn a_slow_judge_and_a_full_queue_drop_by_policy_and_the_books_balance() {
    for (policy, judged) in [("oldest", [0, 3, 4]), ("newest", [0, 1, 2])] {
        let site = Site::new();
        let (judge, token) = gated();
        let keys = format!("drop = \"{policy}\"\nqueue = 2\ndeadline_ms = 0");
        let (running, cameras) = site.start(site.configure("", &[&keys]), vec![judge]);
        cameras[0].capture();
        // The first frame has to be with the judge before the queue fills behind it.
        running.wait(0, "the first frame is there", |c| c.received == 1);
        for n in 2..=5 {
            cameras[0].capture();
            running.wait(0, "the next frame is there", |c| c.received == n);
        }
        assert_eq!(running.counts(0).queue_full, 2, "{policy}");
        let text = running.lines.telemetry.scrape();
        for sample in [
            "inspectd_frames_captured_total{line=\"a\"} 5",
            "inspectd_frames_dropped_total{line=\"a\",reason=\"queue_full\"} 2",
            "inspectd_frames_in_flight{line=\"a\"} 3",
        ] {
            assert!(text.contains(sample), "{sample} in\n{text}");
        }
        drop(token);
        drop(cameras);
        let (_, lines) = running.end();
        let sequences: Vec<u64> =
            site.verdicts("a").iter().map(|v| v["sequence"].as_u64().unwrap()).collect();
        assert_eq!(sequences, judged, "{policy}");
        assert_eq!(unbalanced(&lines), 0);
    }
}

#[test]
fn parts_are_late_in_time_while_the_judge_is_stuck_and_its_answer_is_discarded() {
    let site = Site::new();
    let (judge, token) = gated();
    let (running, cameras) = site.start(site.configure("", &["deadline_ms = 30"]), vec![judge]);
    cameras[0].capture();
    cameras[0].capture();
    running.wait(0, "both parts are late", |c| c.verdicts[3] == 2);
    assert!(running.lines.health().ok, "late verdicts are progress");
    drop(token);
    cameras[0].capture();
    running.wait(0, "the next part is judged", |c| c.verdicts[0] == 1);
    drop(cameras);
    let (_, lines) = running.end();
    let metrics = &lines.lines[0].telemetry.metrics;
    assert_eq!((metrics.deadline_misses.get(), metrics.judgements_discarded.get()), (2, 1));
    let verdicts = site.verdicts("a");
    assert_eq!(verdicts[0]["verdict"], "late");
    assert_eq!(verdicts[0]["reason"], "deadline");
    let latency = verdicts[0]["latency_ms"].as_f64().unwrap();
    // At the deadline, and not when the judge was done; the upper bound allows for a loaded machine.
    assert!((30.0..5000.0).contains(&latency), "{latency}");
    assert_eq!(unbalanced(&lines), 0);
}

#[test]
fn a_frame_that_cannot_be_judged_is_unjudged_and_says_why() {
    let site = Site::new();
    let (running, cameras) = site.start(site.configure("", &["drop = \"block\""]), vec![swift()]);
    for _ in 0..=255 {
        cameras[0].capture();
    }
    drop(cameras);
    let (_, lines) = running.end();
    let last = site.verdicts("a").pop().unwrap();
    assert_eq!((&last["verdict"], &last["reason"]), (&"unjudged".into(), &"judge_failed".into()));
    assert_eq!(lines.lines[0].telemetry.metrics.judge_failures.get(), 1);
}

#[test]
fn stopping_judges_what_is_in_flight() {
    let site = Site::new();
    let (judge, token) = gated();
    let (running, cameras) = site.start(site.configure("", &["deadline_ms = 0"]), vec![judge]);
    for n in 1..=3 {
        cameras[0].capture();
        running.wait(0, "the frame is there", |c| c.received == n);
    }
    running.commands.send(Command::Stop("a test")).unwrap();
    drop(cameras);
    for _ in 0..3 {
        token.send(()).unwrap();
    }
    let (result, lines) = running.end();
    assert_eq!(result, Ok(()));
    assert_eq!(lines.lines[0].publish().counts.verdicts, [3, 0, 0, 0, 0]);
    assert_eq!(site.verdicts("a").len(), 3);
}

#[test]
fn stopping_with_a_stuck_judge_ends_at_the_limit_and_accounts_for_every_frame() {
    let site = Site::new();
    let (judge, _token) = gated();
    let config = site.configure("drain_ms = 20", &["deadline_ms = 0"]);
    let (running, cameras) = site.start(config, vec![judge]);
    for n in 1..=3 {
        cameras[0].capture();
        running.wait(0, "the frame is there", |c| c.received == n);
    }
    running.commands.send(Command::Stop("a test")).unwrap();
    let (result, lines) = running.end();
    assert_eq!(result, Ok(()));
    let counts = lines.lines[0].publish().counts;
    assert_eq!((counts.shutdown, counts.in_flight), (3, 0));
    assert_eq!(unbalanced(&lines), 0);
}

#[test]
fn a_second_stop_does_not_wait_for_the_limit() {
    let site = Site::new();
    let (judge, _token) = gated();
    let config = site.configure("drain_ms = 600000", &["deadline_ms = 0"]);
    let (running, cameras) = site.start(config, vec![judge]);
    cameras[0].capture();
    running.wait(0, "the frame is there", |c| c.received == 1);
    running.commands.send(Command::Stop("a test")).unwrap();
    running.commands.send(Command::Stop("impatience")).unwrap();
    let (result, lines) = running.end();
    assert_eq!(result, Ok(()));
    assert_eq!(lines.lines[0].publish().counts.shutdown, 1);
}

#[test]
fn a_reload_changes_the_next_verdict_and_a_refused_one_changes_nothing() {
    let site = Site::new();
    let (running, cameras) = site.start(site.configure("", &[""]), vec![swift()]);
    let reloads =
        |result: &str| running.lines.telemetry.metrics().config_reloads.with_label_values(&[result]).get();
    let reload = |text: &str, result: &str| {
        let before = reloads(result);
        std::fs::write(site.path("c.toml"), text).unwrap();
        running.commands.send(Command::Reload).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while reloads(result) == before {
            assert!(Instant::now() < until, "{result} never came");
            std::thread::yield_now();
        }
    };
    let text = std::fs::read_to_string(site.path("c.toml")).unwrap();
    let stricter = format!("{text}[line.thresholds]\nunsure = 0.5\nbad = 1.5\n");
    let judge_one = |n: u64| {
        cameras[0].capture();
        running.wait(0, "it is judged", |c| c.settled() == n);
    };
    judge_one(1);
    reload(&stricter, "applied");
    judge_one(2);
    reload(&stricter.replace("bad = 1.5", "bad = 0.1"), "invalid");
    reload(&stricter.replace("\"fake\"", "\"other\"").replace("1.5", "9.5"), "needs_restart");
    judge_one(3);
    reload(&stricter, "unchanged");
    drop(cameras);
    running.end().0.unwrap();
    let verdicts = site.verdicts("a");
    let seen: Vec<_> = verdicts.iter().map(|v| v["verdict"].as_str().unwrap()).collect();
    assert_eq!(seen, ["good", "unsure", "bad"]);
    assert_ne!(verdicts[0]["config_hash"], verdicts[1]["config_hash"]);
    assert_eq!(verdicts[1]["config_hash"], verdicts[2]["config_hash"]);
}

#[test]
fn a_bad_part_gets_a_picture_whose_path_is_in_its_verdict() {
    let site = Site::new();
    let keys =
        "drop = \"block\"\n[line.thresholds]\nunsure = 1\nbad = 2\n[line.outputs]\nheatmaps = \"maps\"";
    let (running, cameras) = site.start(site.configure("", &[keys]), vec![swift()]);
    for _ in 0..3 {
        cameras[0].capture();
    }
    drop(cameras);
    let (_, lines) = running.end();
    let verdicts = site.verdicts("a");
    assert!(verdicts[0]["heatmap"].is_null());
    for verdict in &verdicts[1..] {
        assert!(Path::new(verdict["heatmap"].as_str().unwrap()).is_file(), "{verdict}");
    }
    assert_eq!(lines.heatmap("a").unwrap().to_str(), verdicts[2]["heatmap"].as_str());
}

#[test]
fn outputs_that_cannot_be_written_stop_no_line() {
    let site = Site::new();
    let keys = "drop = \"block\"\n[line.outputs]\nverdicts = \"/dev/full\"";
    let (running, cameras) = site.start(site.configure("", &[keys]), vec![swift()]);
    for _ in 0..10 {
        cameras[0].capture();
    }
    drop(cameras);
    let (result, lines) = running.end();
    assert_eq!(result, Ok(()));
    assert_eq!(lines.lines[0].publish().counts.verdicts[0], 10);
    let text = lines.telemetry.scrape();
    assert!(
        text.contains("inspectd_outputs_failed_total{line=\"a\",reason=\"write\",stage=\"verdicts\"} 10")
    );
}

#[test]
fn a_model_that_cannot_be_used_is_an_error_at_start_with_its_line() {
    let site = Site::new();
    let config = site.configure("", &["", ""]);
    let bad: Recipe = Box::new(|| Err("it is for another preset".into()));
    let (parts, _hands): (Vec<_>, Vec<_>) = [swift(), bad].into_iter().map(part).unzip();
    let error = start(config, site.path("c.toml"), parts, Telemetry::new(), None).err().unwrap();
    assert_eq!(error.to_string(), "line b: the model cannot be used: it is for another preset");
}

#[test]
fn a_camera_that_cannot_be_built_is_an_error_at_start_with_its_line() {
    let site = Site::new();
    let config = site.configure("", &[""]);
    let no_camera = Part::<FakePicture> {
        model_hash: "m".into(),
        judge: swift(),
        camera: Box::new(|_| Err("there is no element `fake`".into())),
    };
    let error = start(config, site.path("c.toml"), vec![no_camera], Telemetry::new(), None).err().unwrap();
    assert!(matches!(error, StartError::Camera { .. }));
    assert_eq!(error.to_string(), "line a: there is no element `fake`");
}
