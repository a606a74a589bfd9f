//! The daemon and those that its verdicts are for: a Modbus/TCP server (pymodbus) and an MQTT broker
//! (mosquitto), killed and started again while it runs; and what they see when the daemon stops, hangs, dies
//! or cannot judge. `scripts/setup.sh --only peers` installs them.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

mod http;
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
        let mut inspectd = Command::new(env!("CARGO_BIN_EXE_inspectd"));
        inspectd.args(["serve", "--config"]).arg(self.path("c.toml")).stdout(Stdio::null()).stderr(log);
        inspectd.env("RUST_BACKTRACE", "0").env_remove("INSPECTD_LOG").env_remove("NOTIFY_SOCKET");
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

/// A PLC by pymodbus.
struct Plc {
    port: u16,
    log: PathBuf,
    server: Option<Process>,
}

/// What the PLC has after a write.
#[derive(Clone, Debug)]
struct Shown {
    nanos: i64,
    /// OK, NG, READY.
    coils: [bool; 3],
    registers: [u64; 10],
}

impl Shown {
    fn sequence(&self) -> u64 {
        self.registers[0] << 16 | self.registers[1]
    }

    fn heartbeat(&self) -> u64 {
        self.registers[7]
    }
}

impl Plc {
    fn start(site: &Site) -> Self {
        let mut plc = Plc { port: free_port(), log: site.path("plc"), server: None };
        plc.run();
        plc
    }

    fn run(&mut self) {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let library = here.join("third_party/pymodbus");
        assert!(library.is_dir(), "there is no {}\n{PEERS}", library.display());
        let began = self.shown().len();
        let mut python = Command::new("python3");
        python.arg(here.join("tests/peers/modbus_server.py")).arg(self.port.to_string()).arg(&self.log);
        self.server = Some(Process::start(python.env("PYTHONPATH", library), "python3"));
        wait_for("the PLC", || self.shown().len() > began);
    }

    fn kill(&mut self) {
        self.server.take().unwrap().kill();
    }

    fn shown(&self) -> Vec<Shown> {
        let of = |line: Value| Shown {
            nanos: line["t"].as_i64().unwrap(),
            coils: serde_json::from_value(line["coils"].clone()).unwrap(),
            registers: serde_json::from_value(line["registers"].clone()).unwrap(),
        };
        json_lines(&self.log).into_iter().map(of).collect()
    }

    fn now(&self) -> Shown {
        self.shown().pop().unwrap()
    }

    #[track_caller]
    fn wait(&self, what: &str, holds: impl Fn(&Shown) -> bool) -> Shown {
        wait(what, || Some(self.now()).filter(&holds))
    }

    fn table(&self) -> String {
        format!(
            "[line.modbus]\naddress = \"127.0.0.1:{}\"\ntimeout_ms = 2000\nheartbeat_ms = 50\n",
            self.port
        )
    }
}

#[test]
fn a_plc_that_dies_and_comes_back_gets_results_again_and_none_of_them_torn() {
    let site = Site::new();
    let mut plc = Plc::start(&site);
    site.configure("", CAMERA, &plc.table());
    let (daemon, address) = site.start();
    plc.wait("results", |shown| shown.coils == [true, false, true] && shown.sequence() > 40);
    plc.kill();
    let up =
        |up: i64| wait_for("the gauge", || metric(&get(&address, "/metrics"), "output_up", "modbus") == up);
    up(0);
    let lost = || metric(&get(&address, "/metrics"), "outputs_failed_total", "modbus");
    wait_for("losses", || lost() > 10);
    let before = plc.shown().len();
    plc.run();
    up(1);
    wait_for("results", || {
        plc.shown()[before..].iter().filter(|s| s.coils[0] && s.sequence() > 0).count() > 20
    });
    assert_balanced(&address, "modbus");
    let metrics = get(&address, "/metrics");
    assert_eq!(metric(&metrics, "frames_dropped_total", "cam"), 0, "the line never noticed");

    daemon.signal("TERM");
    plc.wait("the safe side", |shown| shown.coils == [false, true, false]);
    let mut daemon = daemon;
    assert_eq!(wait("the end", || daemon.0.try_wait().unwrap()).code(), Some(0), "{}", site.log());
    let log = site.log();
    assert_eq!(log.matches("The PLC takes no verdicts").count(), 1, "{log}");
    assert_eq!(log.matches("The PLC takes verdicts again").count(), 1, "{log}");

    // Whoever acts on a new sequence finds coils and registers of the same part.
    let shown = plc.shown();
    let verdicts = site.verdicts();
    let mut latencies = Vec::new();
    for pair in shown.windows(2) {
        let [before, after] = pair else { continue };
        if after.registers[2] == 1 && after.sequence() != before.sequence() {
            assert_eq!(after.coils[..2], [true, false], "{after:?}");
            let verdict = verdicts.iter().find(|v| v["sequence"] == after.sequence()).unwrap();
            let score = f32::from_bits((after.registers[3] << 16 | after.registers[4]) as u32);
            assert_eq!(verdict["score"].as_f64().unwrap() as f32, score);
            let captured: jiff::Timestamp = verdict["captured_at"].as_str().unwrap().parse().unwrap();
            latencies.push((after.nanos - captured.as_nanosecond() as i64) as f64 / 1e6);
        }
    }
    latencies.sort_by(f64::total_cmp);
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    println!(
        "frame -> sequence in the PLC on loopback, {} frames: p50 {:.1} ms, p99 {:.1} ms (capture times are cut \
         to 1 ms; debug build)",
        latencies.len(),
        at(0.5),
        at(0.99)
    );
}

#[test]
fn the_heartbeat_stands_still_when_the_daemon_hangs_and_when_it_dies() {
    let site = Site::new();
    let plc = Plc::start(&site);
    site.configure("", CAMERA, &plc.table());
    let (daemon, _) = site.start();
    let moving = |what| {
        let first = plc.wait(what, |shown| shown.coils[2]).heartbeat();
        plc.wait(what, |shown| shown.heartbeat() != first);
    };
    let standing = || {
        // Twenty times as long as it may take: a PLC that waits for three beats has noticed.
        std::thread::sleep(Duration::from_millis(50));
        let first = plc.now();
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            assert_eq!(plc.now().heartbeat(), first.heartbeat());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    moving("a heartbeat");
    daemon.signal("STOP");
    standing();
    daemon.signal("CONT");
    moving("a heartbeat after the hang");
    daemon.kill();
    standing();
    // Started anew, it begins on the safe side.
    let before = plc.shown().len();
    let (_daemon, _) = site.start();
    let first = wait("the first write", || plc.shown().get(before).cloned());
    assert!(!first.coils[0] && first.coils[1], "{first:?}");
    moving("a heartbeat of the next");
}

#[test]
fn what_cannot_be_judged_is_never_ok() {
    let site = Site::new();
    let plc = Plc::start(&site);
    // No time to judge: late.
    site.configure("", &CAMERA.replace("deadline_ms = 0", "deadline_ms = 1"), &plc.table());
    let (daemon, _) = site.start();
    plc.wait("a late part", |shown| shown.registers[2] == 4 && shown.coils[1]);
    daemon.kill();
    // A camera that is not there: not ready.
    let gone = "source = \"filesrc location=/nonexistent.raw ! rawvideoparse width=64 height=64 format=rgb\"\n\
        stall_timeout_ms = 300";
    site.configure("", gone, &plc.table());
    let before = plc.shown().len();
    let (_daemon, _) = site.start();
    let beats = |from: usize| plc.shown()[from..].iter().map(Shown::heartbeat).collect::<BTreeSet<_>>().len();
    let off =
        wait("READY off", || plc.shown()[before..].iter().rposition(|s| s.coils == [false, true, false]));
    wait_for("a heartbeat all the same", || beats(before + off) > 3);
    assert!(plc.shown()[before..].iter().all(|shown| !shown.coils[0]));
}

/// A broker, and a door to it that the test opens and closes. It never forgets that it was asked.
struct Broker {
    port: u16,
    config: PathBuf,
    server: Option<Process>,
    door: u16,
    open: Arc<AtomicBool>,
}

impl Broker {
    fn start(site: &Site) -> Self {
        let (port, config) = (free_port(), site.path("mosquitto.conf"));
        let text = format!("listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n");
        std::fs::write(&config, text).unwrap();
        let open = Arc::new(AtomicBool::new(true));
        let door = relay(port, Arc::clone(&open));
        let mut broker = Broker { port, config, server: None, door, open };
        broker.run();
        broker
    }

    fn run(&mut self) {
        let mut mosquitto = Command::new("mosquitto");
        mosquitto.arg("-c").arg(&self.config).stderr(Stdio::null()).stdout(Stdio::null());
        self.server = Some(Process::start(&mut mosquitto, "mosquitto"));
        wait_for("the broker", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    fn kill(&mut self) {
        self.server.take().unwrap().kill();
    }

    /// Listens to all topics: `retained topic text`, in the order in which they came.
    fn listen(&self) -> Ears {
        let mut sub = Command::new("mosquitto_sub");
        sub.args(["-p", &self.port.to_string(), "-t", "plant/#", "-t", "ready", "-q", "1", "-F", "%r %t %p"]);
        let mut process = Process::start(sub.stdout(Stdio::piped()), "mosquitto_sub");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (out, hears) = (process.0.stdout.take().unwrap(), Arc::clone(&heard));
        std::thread::spawn(move || {
            BufReader::new(out)
                .lines()
                .map_while(Result::ok)
                .for_each(|line| hears.lock().unwrap().push(line));
        });
        let ears = Ears { heard, _process: process };
        // It listens once it hears what the test itself says.
        wait_for("its own message", || {
            let mut publish = Command::new("mosquitto_pub");
            publish.args(["-p", &self.port.to_string(), "-t", "ready", "-m", "yes"]);
            assert!(publish.status().unwrap().success());
            ears.heard.lock().unwrap().iter().any(|line| line == "0 ready yes")
        });
        ears
    }
}

struct Ears {
    heard: Arc<Mutex<Vec<String>>>,
    _process: Process,
}

impl Ears {
    fn of(&self, topic: &str) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        heard
            .iter()
            .filter_map(|line| line.split_once(&format!(" {topic} ")))
            .map(|(_, text)| text.to_owned())
            .collect()
    }

    fn sequences(&self) -> BTreeSet<u64> {
        let of = |text: String| serde_json::from_str::<Value>(&text).unwrap()["sequence"].as_u64().unwrap();
        self.of("plant/cam/verdict").into_iter().map(of).collect()
    }
}

/// Passes connections on to `port` while `open`.
fn relay(port: u16, open: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let far = TcpStream::connect(("127.0.0.1", port));
            let (true, Ok(far)) = (open.load(SeqCst), far) else { continue };
            for (mut from, mut to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
    own
}

#[test]
fn a_broker_that_dies_and_comes_back_gets_every_verdict_and_knows_who_is_there() {
    let site = Site::new();
    let mut broker = Broker::start(&site);
    let first = broker.listen();
    let mqtt = format!("[mqtt]\nbroker = \"mqtt://127.0.0.1:{}\"\nprefix = \"plant\"\n", broker.door);
    site.configure(&mqtt, CAMERA, "");
    let (daemon, address) = site.start();
    wait_for("verdicts", || first.sequences().len() > 20);
    assert_eq!(first.of("plant/status"), ["online"]);
    let states = || first.of("plant/cam/state");
    wait_for("a state", || {
        states().last().is_some_and(|text| text.contains("\"state\":\"running\",\"ready\":true"))
    });

    broker.open.store(false, SeqCst);
    broker.kill();
    wait_for("down", || metric(&get(&address, "/metrics"), "output_up", "mqtt") == 0);
    let waiting = || metric(&get(&address, "/metrics"), "queue_depth", "queue=\"mqtt\"");
    wait_for("a queue", || waiting() > 20);
    broker.run();
    let second = broker.listen();
    broker.open.store(true, SeqCst);
    wait_for("all that waited", || {
        metric(&get(&address, "/metrics"), "output_up", "mqtt") == 1 && waiting() < 5
    });
    assert_balanced(&address, "mqtt");
    assert_eq!(metric(&get(&address, "/metrics"), "outputs_failed_total", "mqtt"), 0);
    assert_eq!(metric(&get(&address, "/metrics"), "frames_dropped_total", "cam"), 0);

    let mut daemon = daemon;
    daemon.signal("TERM");
    assert_eq!(wait("the end", || daemon.0.try_wait().unwrap()).code(), Some(0), "{}", site.log());
    wait_for("offline", || second.of("plant/status") == ["online", "offline"]);
    assert!(second.of("plant/cam/state").last().unwrap().contains("\"state\":\"stopping\",\"ready\":false"));
    let all: BTreeSet<u64> = site.verdicts().iter().map(|v| v["sequence"].as_u64().unwrap()).collect();
    let heard: BTreeSet<u64> = first.sequences().union(&second.sequences()).copied().collect();
    assert_eq!(heard, all, "none was lost");
    let text: Value = serde_json::from_str(&second.of("plant/cam/verdict")[0]).unwrap();
    assert_eq!(site.verdicts().iter().find(|v| v["sequence"] == text["sequence"]), Some(&text));
    let log = site.log();
    assert_eq!(log.matches("The MQTT broker takes no verdicts").count(), 1, "{log}");

    // Whoever comes later is told what holds: it is retained.
    let third = broker.listen();
    wait_for("what is retained", || third.of("plant/status") == ["offline"]);
    assert!(third.of("plant/cam/verdict").is_empty());
    // A daemon that dies says nothing; the broker does.
    let (daemon, _) = site.start();
    wait_for("online", || third.of("plant/status") == ["offline", "online"]);
    daemon.kill();
    wait_for("the will", || third.of("plant/status") == ["offline", "online", "offline"]);
}
