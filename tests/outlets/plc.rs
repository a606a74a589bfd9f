//! What a PLC sees.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::http::get;
use super::{CAMERA, PEERS, Process, Site, assert_balanced, free_port, json_lines, metric, wait, wait_for};

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
