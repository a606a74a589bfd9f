//! The whole daemon with fake cameras and fake judges. Nothing sleeps for a fixed time: tests wait for
//! what they expect, and fail if it does not come.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use serde_json::Value;

use super::Counts;
use super::company::Partner;
use super::daemon::{Command, Daemon, RunError, StartError, start};
use super::shared::Lines;
use super::testing::{FakeCamera, FakeJudge, FakePicture, FakeSupplier, Recipe};
use crate::config::{self, Config};
use crate::model::Thresholds;
use crate::outputs::http::Board;
use crate::telemetry::Telemetry;

struct Site {
    folder: tempfile::TempDir,
}

/// A daemon on a thread, as `inspectd serve` has it on the main thread.
struct Running {
    commands: Sender<Command>,
    lines: Arc<Lines>,
    supplier: Arc<FakeSupplier>,
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
        let supplier = Arc::new(FakeSupplier::default());
        let put = |judge: Recipe| {
            supplier.put_judge("m", judge);
            supplier.put_camera()
        };
        let hands = judges.into_iter().map(put).collect();
        let works = Arc::<FakeSupplier>::clone(&supplier);
        let daemon = start(config, self.path("c.toml"), works, Telemetry::new(), None);
        (run(daemon.unwrap_or_else(|e| panic!("{e}")), supplier), hands)
    }

    fn verdicts(&self, line: &str) -> Vec<Value> {
        read(&self.path(&format!("{line}.jsonl")))
    }
}

fn read(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn run(daemon: Daemon<FakePicture>, supplier: Arc<FakeSupplier>) -> Running {
    let (commands, receiver) = bounded(8);
    let lines = daemon.lines();
    Running { commands, lines, supplier, thread: std::thread::spawn(move || daemon.run(&receiver)) }
}

/// A judge that never waits.
fn swift() -> Recipe {
    Box::new(|| Ok(Box::new(FakeJudge::new(None))))
}

/// A judge that waits for a token before each frame, and the hand that gives tokens.
fn gated() -> (Recipe, Sender<()>) {
    let (token, gate) = bounded(100);
    (Box::new(|| Ok(Box::new(FakeJudge::new(Some(gate))))), token)
}

impl Running {
    fn reloads(&self, result: &str) -> u64 {
        self.lines.telemetry.metrics().config_reloads.with_label_values(&[result]).get()
    }

    /// Asks for a reload of the file as it stands.
    fn reload(&self) {
        self.commands.send(Command::Reload).unwrap();
    }

    /// Reloads and waits for that result.
    fn reload_to(&self, result: &str) {
        let before = self.reloads(result);
        self.reload();
        until(result, || self.reloads(result) > before);
    }

    fn counts(&self, line: usize) -> Counts {
        self.lines.lines[line].publish().counts
    }

    /// Waits until `holds` does.
    fn wait(&self, line: usize, what: &str, holds: impl Fn(Counts) -> bool) {
        until(&format!("{what}: {:?}", self.counts(line)), || holds(self.counts(line)));
    }

    fn end(self) -> (Result<(), RunError>, Arc<Lines>) {
        (self.thread.join().unwrap(), self.lines)
    }
}

/// Waits until `holds` does.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < limit, "{what} never came");
        std::thread::yield_now();
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
fn a_damaged_frame_is_a_part_that_is_unjudged_at_once_and_never_good() {
    let site = Site::new();
    let (judge, token) = gated();
    let (running, cameras) = site.start(site.configure("", &["deadline_ms = 0"]), vec![judge]);
    cameras[0].capture();
    running.wait(0, "the frame is there", |c| c.received == 1);
    cameras[0].capture_damaged();
    // While the frame before it is still being judged.
    running.wait(0, "the damaged one has its verdict", |c| c.verdicts[4] == 1);
    assert_eq!(running.counts(0).in_flight, 1);
    drop((token, cameras));
    let (_, lines) = running.end();
    let verdicts = site.verdicts("a");
    let seen = verdicts.iter().map(|v| (v["sequence"].as_u64().unwrap(), v["verdict"].as_str().unwrap()));
    assert_eq!(seen.collect::<Vec<_>>(), [(1, "unjudged"), (0, "good")]);
    assert_eq!(verdicts[0]["reason"], "damaged");
    assert!(verdicts[0]["score"].is_null() && verdicts[0]["frame_hash"].is_null());
    assert_eq!(unbalanced(&lines), 0);
}

#[test]
fn a_triggered_part_carries_its_name_to_its_verdict_and_one_without_a_frame_is_late() {
    let site = Site::new();
    let keys = "[line.trigger]\nmode = \"software\"\nframe_within_ms = 20";
    let (running, cameras) = site.start(site.configure("", &[keys]), vec![swift()]);
    cameras[0].capture();
    running.wait(0, "a frame that nobody asked for is dropped", |c| c.not_triggered == 1);
    // Nobody captures a frame for this one.
    running.lines.trigger("a", Some("lost".parse().unwrap())).unwrap();
    running.wait(0, "it is missed", |c| c.missed == 1);
    // However slow this machine is: triggers are fired until a frame comes in time.
    while running.counts(0).verdicts[0] == 0 {
        let before = running.counts(0);
        running.lines.trigger("a", Some("found".parse().unwrap())).unwrap();
        cameras[0].capture();
        running.wait(0, "the frame or the end of its time", |c| {
            c.settled() + c.missed > before.settled() + before.missed
        });
    }
    assert!(running.lines.trigger("b", None).is_err());
    drop(cameras);
    let (_, lines) = running.end();
    let verdicts = site.verdicts("a");
    let lost = &verdicts[0];
    assert_eq!((&lost["part_id"], &lost["verdict"]), (&"lost".into(), &"late".into()));
    assert_eq!((&lost["reason"], &lost["sequence"]), (&"no_frame".into(), &1.into()));
    assert!(lost["latency_ms"].as_f64().unwrap() >= 20.0);
    let found = verdicts.iter().find(|v| v["verdict"] == "good").unwrap();
    assert_eq!(found["part_id"], "found");
    let sequences: std::collections::BTreeSet<u64> =
        verdicts.iter().map(|v| v["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences.len(), verdicts.len(), "no number is given twice");
    assert_eq!(unbalanced(&lines), 0);
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
    let reload = |text: &str, result: &str| {
        std::fs::write(site.path("c.toml"), text).unwrap();
        running.reload_to(result);
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
    reload(&stricter.replace("[daemon]", "[daemon]\nthreads = 3").replace("1.5", "9.5"), "needs_restart");
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
fn a_model_taught_anew_takes_its_place_between_two_frames() {
    let site = Site::new();
    let (first, token) = gated();
    let (running, cameras) = site.start(site.configure("", &["deadline_ms = 0"]), vec![first]);
    for n in 1..=3 {
        cameras[0].capture();
        running.wait(0, "the frame is there", |c| c.received == n);
    }
    // The new model calls everything bad. It is ready while a frame is judged by the old one.
    let strict = Thresholds { unsure: -2.0, bad: -1.0 };
    let (ready, made) = bounded(1);
    let judge: Recipe = Box::new(move || {
        ready.send(()).unwrap();
        Ok(Box::new(FakeJudge { thresholds: strict, ..FakeJudge::new(None) }))
    });
    running.supplier.put_judge("new", judge);
    std::fs::write(site.path("model"), "taught anew").unwrap();
    let applied = running.reloads("applied");
    running.reload();
    made.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(running.counts(0).settled(), 0, "the frame is still being judged");
    // From here on nothing waits at the gate; which of the next two frames is the new model's is open.
    drop(token);
    until("the new model", || running.reloads("applied") > applied);
    cameras[0].capture();
    running.wait(0, "all are judged", |c| c.settled() == 4);
    // The same file once more is no news, and no judge is made.
    running.reload_to("unchanged");
    drop(cameras);
    let (result, lines) = running.end();
    assert_eq!((result, unbalanced(&lines)), (Ok(()), 0));
    let verdicts = site.verdicts("a");
    let seen: Vec<_> = verdicts
        .iter()
        .map(|v| {
            (
                v["verdict"].as_str().unwrap(),
                v["model_hash"].as_str().unwrap(),
                v["thresholds"]["bad"].as_f64(),
            )
        })
        .collect();
    let turn = seen.iter().position(|(_, model, _)| *model == "new").unwrap();
    assert!((1..=3).contains(&turn), "{seen:?}");
    assert!(seen[..turn].iter().all(|v| *v == ("good", "m", Some(200.0))), "{seen:?}");
    assert!(seen[turn..].iter().all(|v| *v == ("bad", "new", Some(-1.0))), "{seen:?}");
    let text = lines.telemetry.scrape();
    assert!(text.contains("inspectd_model_info{line=\"a\",version=\"new\"} 1"), "{text}");
    assert!(!text.contains("version=\"m\""), "{text}");
}

#[test]
fn a_model_that_cannot_be_used_refuses_the_reload_and_the_old_one_judges_on() {
    let site = Site::new();
    let (running, cameras) = site.start(site.configure("", &[""]), vec![swift()]);
    running.supplier.put_judge("bad", Box::new(|| Err("it is for another preset".into())));
    std::fs::write(site.path("model"), "not a model").unwrap();
    running.reload_to("failed");
    cameras[0].capture();
    running.wait(0, "it is judged", |c| c.verdicts[0] == 1);
    drop(cameras);
    running.end().0.unwrap();
    assert_eq!(site.verdicts("a")[0]["model_hash"], "m");
}

#[test]
fn another_source_restarts_the_camera_of_its_line_and_no_other() {
    let site = Site::new();
    let keys = "drop = \"block\"\ndeadline_ms = 0";
    let (running, cameras) = site.start(site.configure("", &[keys, keys]), vec![swift(), swift()]);
    for _ in 0..5 {
        cameras.iter().for_each(FakeCamera::capture);
    }
    let next = running.supplier.put_camera();
    let text = std::fs::read_to_string(site.path("c.toml")).unwrap();
    std::fs::write(site.path("c.toml"), text.replacen("\"fake\"", "\"other\"", 1)).unwrap();
    running.reload_to("applied");
    assert!(cameras[0].is_stopped() && !cameras[1].is_stopped());
    assert_eq!(running.supplier.first_frames(), [0, 0, 5], "numbers go on where they were");
    next.capture();
    cameras[1].capture();
    running.wait(0, "frames of the new camera are judged", |c| c.settled() == 6);
    running.wait(1, "and of the other line", |c| c.settled() == 6);
    let text = running.lines.telemetry.scrape();
    for line in ["a", "b"] {
        let captured = format!("inspectd_frames_captured_total{{line=\"{line}\"}} 6");
        assert!(text.contains(&captured), "{captured} in\n{text}");
    }
    drop((cameras, next));
    let (result, lines) = running.end();
    assert_eq!((result, unbalanced(&lines)), (Ok(()), 0));
}

#[test]
fn a_camera_that_does_not_start_leaves_the_others_and_is_tried_by_the_next_reload() {
    let site = Site::new();
    let (running, cameras) = site.start(site.configure("", &["", ""]), vec![swift(), swift()]);
    let text = std::fs::read_to_string(site.path("c.toml")).unwrap();
    std::fs::write(site.path("c.toml"), text.replacen("\"fake\"", "\"other\"", 1)).unwrap();
    running.reload_to("no_camera");
    cameras[1].capture();
    running.wait(1, "the other line goes on", |c| c.settled() == 1);
    let next = running.supplier.put_camera();
    running.reload_to("unchanged");
    next.capture();
    running.wait(0, "the line is back", |c| c.settled() == 1);
    drop((cameras, next));
    let (result, lines) = running.end();
    assert_eq!((result, unbalanced(&lines)), (Ok(()), 0));
}

#[test]
fn reloads_by_the_hundred_lose_no_frame() {
    let site = Site::new();
    let keys = "drop = \"block\"\ndeadline_ms = 0";
    let (running, cameras) = site.start(site.configure("", &[keys]), vec![swift()]);
    let good = std::fs::read_to_string(site.path("c.toml")).unwrap();
    let other = format!("{good}heatmaps_keep = 7\n");
    let mut frames = 0;
    for n in 0..200 {
        let (text, result) = match n % 4 {
            0 => (good.clone(), if n == 0 { "unchanged" } else { "applied" }),
            2 => (other.clone(), "applied"),
            _ => (format!("{good}nonsense = 1\n"), "invalid"),
        };
        std::fs::write(site.path("c.toml"), text).unwrap();
        let before = running.reloads(result);
        running.reload();
        until(result, || {
            cameras[0].capture();
            frames += 1;
            running.reloads(result) > before
        });
    }
    drop(cameras);
    let (result, lines) = running.end();
    assert_eq!((result, unbalanced(&lines)), (Ok(()), 0));
    let counts = lines.lines[0].publish().counts;
    assert_eq!((counts.received, counts.settled()), (frames, frames));
    assert_eq!(counts.verdicts.iter().sum::<u64>(), frames);
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
    let supplier = FakeSupplier::default();
    supplier.put_judge("m", swift());
    supplier.put_judge("m", bad);
    let error = start(config, site.path("c.toml"), Arc::new(supplier), Telemetry::new(), None).err().unwrap();
    assert_eq!(error.to_string(), "line b: the model cannot be used: it is for another preset");
}

#[test]
fn a_camera_that_cannot_be_built_is_an_error_at_start_with_its_line() {
    let site = Site::new();
    let config = site.configure("", &[""]);
    let supplier = FakeSupplier::default();
    supplier.put_judge("m", swift());
    let error = start(config, site.path("c.toml"), Arc::new(supplier), Telemetry::new(), None).err().unwrap();
    assert!(matches!(error, StartError::Camera { .. }));
    assert_eq!(error.to_string(), "line a: there is no element `fake`");
}

#[test]
fn frames_of_lines_with_one_model_are_judged_together_and_each_has_its_own_verdict() {
    let site = Site::new();
    let config = site.configure("device = \"cuda:0\"\nbatch = 4", &["queue = 5", "queue = 5"]);
    let ((token, gate), (given, heard)) = (bounded(100), bounded(100));
    let judge = FakeJudge { given: Some(given), ..FakeJudge::new(Some(gate)) };
    let partner = Partner::new(Box::new(judge), 4);
    let known = partner.known();
    let second: Recipe = Box::new(move || Ok(Box::new(known.partner().ok_or("the first line has gone")?)));
    let (running, cameras) = site.start(config, vec![Box::new(|| Ok(Box::new(partner))), second]);
    // The first goes by itself: nobody waits for company. Meanwhile others come.
    cameras[0].capture();
    assert_eq!(heard.recv_timeout(Duration::from_secs(10)), Ok(1));
    for n in 2..=4 {
        cameras[0].capture();
        running.wait(0, "it waits", |c| c.received == n);
    }
    for n in 1..=2 {
        cameras[1].capture();
        running.wait(1, "it waits", |c| c.received == n);
    }
    (0..6).for_each(|_| token.send(()).unwrap());
    running.wait(0, "all are judged", |c| c.settled() == 4);
    running.wait(1, "all are judged", |c| c.settled() == 2);
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), [4, 1]);
    drop(cameras);
    let (result, lines) = running.end();
    assert_eq!((result, unbalanced(&lines)), (Ok(()), 0));
    for (line, count) in [("a", 4), ("b", 2)] {
        let of = |key: &str| -> Vec<f64> {
            site.verdicts(line).iter().map(|v| v[key].as_f64().unwrap()).collect()
        };
        // A frame's number is its score.
        assert_eq!(of("sequence"), (0..count).map(f64::from).collect::<Vec<_>>());
        assert_eq!(of("sequence"), of("score"), "line {line}");
    }
}
