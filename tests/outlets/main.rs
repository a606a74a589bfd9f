//! The daemon and those that its verdicts are for: a Modbus/TCP server (pymodbus) and an MQTT broker
//! (mosquitto), killed and started again while it runs; and what they see when the daemon stops, hangs, dies
//! or cannot judge. `scripts/setup.sh --only peers` installs them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

mod broker;
#[path = "../daemon/mod.rs"]
mod daemon;
#[path = "../http/mod.rs"]
mod http;
mod plc;
#[path = "../untaught/mod.rs"]
mod untaught;

use http::get;

const PATIENCE: Duration = Duration::from_secs(120);
const PEERS: &str = "type: scripts/setup.sh --only peers";

/// Asks until `find` finds something.
#[track_caller]
fn wait<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < until, "{what} never came");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    wait(what, || holds().then_some(()));
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A process that ends with the test.
struct Process(Child);

impl Process {
    fn start(command: &mut Command, missing: &str) -> Self {
        Process(command.spawn().unwrap_or_else(|error| panic!("{missing}: {error}\n{PEERS}")))
    }

    fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended, if all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder with a model, a configuration and a daemon's traces.
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

    /// A line `cam` at 20 frames a second whose parts are all good, with these keys and tables beside.
    fn configure(&self, top: &str, line: &str, tables: &str) {
        let text = format!(
            "[daemon]\nhttp = \"127.0.0.1:0\"\nstate_dir = \"state\"\n{top}\n\
             [[line]]\nname = \"cam\"\nmodel = \"part.safetensors\"\n{line}\n\
             [line.thresholds]\nunsure = 1e6\nbad = 1e7\n\
             [line.outputs]\nverdicts = \"v.jsonl\"\n{tables}\n"
        );
        std::fs::write(self.path("c.toml"), text).unwrap();
    }

    fn start(&self) -> (Process, String) {
        let _ = std::fs::remove_file(self.path("state/http_address"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let mut inspectd = daemon::inspectd(&["serve"], &self.path("c.toml"));
        inspectd.stdout(Stdio::null()).stderr(log);
        let daemon = Process::start(&mut inspectd, "inspectd");
        let address = wait("the daemon", || std::fs::read_to_string(self.path("state/http_address")).ok());
        (daemon, address.trim().to_owned())
    }

    fn verdicts(&self) -> Vec<Value> {
        json_lines(&self.path("v.jsonl"))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }
}

const CAMERA: &str = "source = \"videotestsrc is-live=true ! \
    video/x-raw,format=GRAY8,width=64,height=64,framerate=20/1\"\ndeadline_ms = 0\nqueue = 100\nslots = 110";

/// Whole lines only.
fn json_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// Sum of the samples of a metric with this in their labels.
fn metric(text: &str, name: &str, label: &str) -> i64 {
    let start = format!("inspectd_{name}{{");
    let samples = text.lines().filter(|sample| sample.starts_with(&start) && sample.contains(label));
    samples.map(|sample| sample.rsplit(' ').next().unwrap().parse::<i64>().unwrap()).sum()
}

/// Every verdict was sent to the output, lost for a reason, or waits.
fn assert_balanced(address: &str, output: &str) {
    let stage = format!("stage=\"{output}\"");
    let balance = || {
        let metrics = get(address, "/metrics");
        let accounts = metric(&metrics, "outputs_sent_total", &stage)
            + metric(&metrics, "outputs_failed_total", &stage)
            + metric(&metrics, "queue_depth", &format!("queue=\"{output}\""));
        // The verdict is counted just before it is submitted.
        (0..=1).contains(&(metric(&metrics, "verdicts_total", "line=\"cam\"") - accounts))
    };
    wait_for("a balance", balance);
    let metrics = get(address, "/metrics");
    assert_eq!(metric(&metrics, "ledger_unbalanced_total", "line=\"cam\""), 0);
}
