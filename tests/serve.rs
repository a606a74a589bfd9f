//! The daemon as systemd and an operator see it: the real binary, GStreamer's test pictures, signals,
//! HTTP, exit codes. Waits for what it expects, and fails if it does not come.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

mod daemon;
mod http;
mod untaught;

use http::get;

/// Long enough for a debug build on a loaded machine; a good run waits for a small part of it.
const PATIENCE: Duration = Duration::from_secs(120);

struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let site = Site { folder: tempfile::tempdir().unwrap() };
        untaught::model().save(&site.path("part.safetensors")).unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn configure(&self, text: &str) {
        std::fs::write(self.path("c.toml"), text).unwrap();
    }

    fn command(&self, command: &str) -> Command {
        daemon::inspectd(&[command], &self.path("c.toml"))
    }

    fn run(&self, command: &str) -> Output {
        self.command(command).output().unwrap()
    }
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// Asks until `find` finds something.
fn wait<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < until, "{what} never came");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A daemon with a systemd of our own; killed when the test fails.
struct Daemon {
    child: Child,
    notify: UnixDatagram,
}

impl Daemon {
    fn start(site: &Site) -> Self {
        let socket = site.path("notify");
        let notify = UnixDatagram::bind(&socket).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        let log = std::fs::File::create(site.path("log")).unwrap();
        let child = site
            .command("serve")
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", "900000")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Daemon { child, notify }
    }

    /// The next message that holds `what`; those before it are passed over, except for those in `never`.
    fn hear(&self, what: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let n = self.notify.recv(&mut buffer).unwrap_or_else(|e| panic!("{what} never came: {e}"));
            let message = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if message.contains(what) {
                return message;
            }
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    fn end(mut self) -> Option<i32> {
        wait("the end", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already ended, if all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sum of the samples of a metric for a line.
fn metric(text: &str, name: &str, line: &str) -> u64 {
    let start = format!("inspectd_{name}{{line=\"{line}\"");
    let samples = text.lines().filter(|sample| sample.starts_with(&start));
    samples.map(|sample| sample.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

fn assert_balanced(metrics: &str, line: &str) {
    let sum = metric(metrics, "verdicts_total", line)
        + metric(metrics, "frames_dropped_total", line)
        + metric(metrics, "frames_in_flight", line);
    assert_eq!(metric(metrics, "frames_captured_total", line), sum, "{metrics}");
    assert_eq!(metric(metrics, "ledger_unbalanced_total", line), 0);
}

const FILES: &str = "drop = \"block\"\ndeadline_ms = 0\non_eos = \"stop\"";

#[test]
fn a_stream_that_ends_is_judged_to_its_last_frame_and_the_daemon_ends_with_0() {
    let site = Site::new();
    site.configure(&format!(
        "[daemon]\nhttp = \"off\"\nlog_format = \"json\"\n\
         [[line]]\nname = \"a\"\nmodel = \"part.safetensors\"\n{FILES}\n\
         source = \"videotestsrc num-buffers=12 ! video/x-raw,format=GRAY8,width=320,height=240\"\n\
         [line.outputs]\nheatmaps = \"maps\"\nheatmaps_of = \"all\"\nheatmaps_keep = 5\n\
         [[line]]\nname = \"b\"\nmodel = \"part.safetensors\"\n{FILES}\nroi = [8, 8, 64, 64]\n\
         source = \"videotestsrc num-buffers=7 ! video/x-raw,format=NV12,width=96,height=80\"\n"
    ));
    let output = site.run("serve");
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{log}");
    let verdicts = json_lines(&String::from_utf8_lossy(&output.stdout));
    for (line, frames) in [("a", 12), ("b", 7)] {
        let of_line: Vec<&Value> = verdicts.iter().filter(|v| v["line"] == line).collect();
        let sequences: Vec<u64> = of_line.iter().map(|v| v["sequence"].as_u64().unwrap()).collect();
        assert_eq!(sequences, (0..frames).collect::<Vec<_>>(), "{log}");
        for verdict in of_line {
            assert!(["good", "unsure", "bad"].contains(&verdict["verdict"].as_str().unwrap()), "{verdict}");
            assert!(verdict["score"].is_number(), "{verdict}");
            for hash in ["model_hash", "config_hash", "frame_hash"] {
                assert_eq!(verdict[hash].as_str().unwrap().len(), 16, "{verdict}");
            }
        }
    }
    let pictures = std::fs::read_dir(site.path("maps")).unwrap().count();
    assert!((1..=5).contains(&pictures), "{pictures} heatmaps");
    // The log is JSON, and says nothing of a fault.
    let errors: Vec<Value> = json_lines(&log).into_iter().filter(|l| l["level"] == "ERROR").collect();
    let lost_pictures = |l: &Value| l["output"] == "heatmaps";
    assert!(errors.iter().all(lost_pictures), "{errors:?}");
}

#[test]
fn systemd_and_an_operator_see_a_daemon_start_reload_and_stop() {
    let site = Site::new();
    let text = "[daemon]\nhttp = \"127.0.0.1:0\"\nstate_dir = \"state\"\n\
        [[line]]\nname = \"cam\"\nmodel = \"part.safetensors\"\n\
        source = \"videotestsrc is-live=true ! video/x-raw,format=RGB,width=64,height=64,framerate=10/1\"\n\
        [line.outputs]\nverdicts = \"v.jsonl\"\n[line.thresholds]\n";
    let with = |thresholds: &str| format!("{text}{thresholds}\n");
    site.configure(&with("unsure = 1e6\nbad = 1e7"));
    let daemon = Daemon::start(&site);
    let ready = daemon.hear("READY=1");
    let address = std::fs::read_to_string(site.path("state/http_address")).unwrap();
    let address = address.trim();
    assert!(
        metric(&get(address, "/metrics"), "frames_captured_total", "cam") > 0,
        "ready with the first frame"
    );
    assert!(ready.contains(&format!("STATUS=1 line, http://{address}/")), "{ready}");
    daemon.hear("WATCHDOG=1");

    let verdicts = |want: &str| {
        wait(want, || {
            let text = std::fs::read_to_string(site.path("v.jsonl")).ok()?;
            let whole = &text[..text.rfind('\n')? + 1];
            json_lines(whole).into_iter().rev().find(|v| v["verdict"] == want)
        })
    };
    let before = verdicts("good");
    let health = get(address, "/healthz");
    assert!(health.starts_with("HTTP/1.1 200") && health.contains("\"ok\":true"), "{health}");
    assert!(get(address, "/status").contains("<td>cam<td>runs"));
    assert_balanced(&get(address, "/metrics"), "cam");

    // Thresholds are taken over while it runs.
    site.configure(&with("unsure = -1e7\nbad = -1e6"));
    daemon.signal("HUP");
    assert!(daemon.hear("RELOADING=1").contains("MONOTONIC_USEC="));
    daemon.hear("READY=1");
    let after = verdicts("bad");
    assert_ne!(before["config_hash"], after["config_hash"]);

    // What a reload would do can be asked first.
    site.configure(&with("unsure = 0.5").replace("width=64", "width=32"));
    let plan = String::from_utf8_lossy(&site.run("plan").stdout).into_owned();
    for part in [
        "hot     line cam: thresholds.unsure  -10000000 → 0.5",
        "hot     line cam: thresholds.bad     -1000000 → nothing",
        "camera  line cam: source",
        "A reload would take over 2 changes between two frames and 1 change by starting the line's camera anew.",
    ] {
        assert!(plan.contains(part), "{part} in\n{plan}");
    }

    // A mistake changes nothing, is counted, and the log says where it is.
    site.configure(&with("unsure = 1e6\nbda = 1e7"));
    daemon.signal("HUP");
    daemon.hear("RELOADING=1");
    assert!(daemon.hear("READY=1").contains("the last reload was refused"));
    // Nor does what would need a restart.
    site.configure(&with("unsure = 1e6\nbad = 1e7").replace("[daemon]", "[daemon]\nthreads = 1"));
    daemon.signal("HUP");
    daemon.hear("RELOADING=1");
    daemon.hear("READY=1");
    assert_eq!(verdicts("bad")["config_hash"], after["config_hash"]);
    // Another source starts the camera anew; frames are numbered on.
    site.configure(&with("unsure = 1e6\nbad = 1e7").replace("width=64", "width=32"));
    daemon.signal("HUP");
    daemon.hear("RELOADING=1");
    daemon.hear("READY=1");
    let latest = wait("a verdict of the other source", || {
        let latest = verdicts("good");
        (latest["config_hash"] != before["config_hash"]).then_some(latest)
    });
    assert!(latest["sequence"].as_u64() > after["sequence"].as_u64(), "{latest} after {after}");
    let metrics = get(address, "/metrics");
    for (result, times) in [("applied", 2), ("invalid", 1), ("needs_restart", 1)] {
        let sample = format!("inspectd_config_reloads_total{{result=\"{result}\"}} {times}");
        assert!(metrics.contains(&sample), "{sample}");
    }
    assert!(metrics.contains(&format!("config_hash_info{{hash={}}} 1", latest["config_hash"])));
    assert_balanced(&metrics, "cam");

    daemon.signal("TERM");
    daemon.hear("STOPPING=1");
    assert_eq!(daemon.end(), Some(0));
    let log = std::fs::read_to_string(site.path("log")).unwrap();
    assert!(log.contains("`bda` is not a key of [line.thresholds]"), "{log}");
    assert!(!log.contains("does not balance"), "{log}");
    assert!(!site.path("state/http_address").exists(), "the address ends with the daemon");
}

#[test]
fn a_camera_that_is_not_there_keeps_the_daemon_up_and_unhealthy() {
    let site = Site::new();
    site.configure(
        "[daemon]\nhttp = \"127.0.0.1:0\"\nstate_dir = \"state\"\n\
         [[line]]\nname = \"gone\"\nmodel = \"part.safetensors\"\nstall_timeout_ms = 300\n\
         source = \"filesrc location=/nonexistent.raw ! rawvideoparse width=64 height=64 format=rgb\"\n\
         [line.outputs]\nverdicts = \"off\"\n",
    );
    let started = Instant::now();
    let daemon = Daemon::start(&site);
    daemon.hear("READY=1");
    assert!(started.elapsed() > Duration::from_secs(5), "ready waits for a first frame, but not for ever");
    let address = std::fs::read_to_string(site.path("state/http_address")).unwrap();
    let health = wait("a 503 that says why", || {
        let health = get(address.trim(), "/healthz");
        (health.starts_with("HTTP/1.1 503") && health.contains("last fault")).then_some(health)
    });
    assert!(health.contains("no frame for"), "{health}");
    daemon.hear("STATUS=1 line, http://");
    // A new process would not bring the camera back, so systemd is not asked for one.
    daemon.hear("WATCHDOG=1");
    daemon.hear("WATCHDOG=1");
    assert!(metric(&get(address.trim(), "/metrics"), "camera_restarts_total", "gone") > 0);
    daemon.signal("INT");
    assert_eq!(daemon.end(), Some(0));
}

fn refused(site: &Site, command: &str) -> String {
    let output = site.run(command);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    String::from_utf8_lossy(&output.stderr).replace(&site.folder.path().display().to_string(), "")
}

#[test]
fn check_and_serve_refuse_the_same_configurations_with_78() {
    let site = Site::new();
    site.configure(
        "[[line]]\nname = \"a\"\nmodel = \"part.safetensor\"\nsource = \"videotstsrc\"\nque = 3\n",
    );
    let told = refused(&site, "check");
    assert_eq!(told, refused(&site, "serve"));
    assert!(told.contains("2 mistakes in /c.toml"), "{told}");
    assert!(told.contains("/c.toml:3:9: the model /part.safetensor cannot be read"), "{told}");
    assert!(
        told.contains(
            "/c.toml:5:1: `que` is not a key of [[line]]\n    5 | que = 3\n      | ^^^\n  try: queue"
        ),
        "{told}"
    );
    // What GStreamer says comes once the rest is right.
    site.configure("[[line]]\nname = \"a\"\nmodel = \"part.safetensors\"\nsource = \"videotstsrc\"\n");
    let told = refused(&site, "serve");
    assert!(told.contains("/c.toml:4:10:") && told.contains("`videotestsrc`"), "{told}");
    assert_eq!(told, refused(&site, "check"));
}

#[test]
fn check_prints_json_for_machines() {
    let site = Site::new();
    let check = |text: &str| {
        site.configure(text);
        let output = site.command("check").arg("--json").output().unwrap();
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap())
    };
    let (code, report) =
        check("[[line]]\nname = \"a\"\nmodel = \"part.safetensors\"\nsource = \"videotestsrc\"\n");
    assert_eq!((code, &report["ok"], &report["lines"][0]), (Some(0), &true.into(), &"a".into()));
    let (code, report) = check("[daemon]\nthread = 1\n");
    assert_eq!((code, &report["ok"]), (Some(78), &false.into()));
    let error = &report["errors"][0];
    assert_eq!((&error["line"], &error["column"], &error["help"]), (&2.into(), &1.into(), &"threads".into()));
}

#[test]
fn a_port_that_is_taken_is_told_with_what_to_write_instead() {
    let site = Site::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    site.configure(&format!(
        "[daemon]\nhttp = \"{}\"\n[[line]]\nname = \"a\"\nmodel = \"part.safetensors\"\nsource = \"videotestsrc\"\n",
        taken.local_addr().unwrap()
    ));
    let output = site.run("serve");
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("http = \"127.0.0.1:0\""));
}

#[test]
fn a_model_that_is_cut_off_is_data_that_cannot_be_used() {
    let site = Site::new();
    let whole = std::fs::read(site.path("part.safetensors")).unwrap();
    std::fs::write(Path::new(&site.path("part.safetensors")), &whole[..whole.len() - 3]).unwrap();
    site.configure("[[line]]\nname = \"a\"\nmodel = \"part.safetensors\"\nsource = \"videotestsrc\"\n");
    assert_eq!(site.run("serve").status.code(), Some(65));
    let told = refused(&site, "check");
    assert!(told.contains("/c.toml:3:9:"), "{told}");
}
