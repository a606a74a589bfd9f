//! Outputs over the network against peers in this process: a PLC, web servers, and peers that send rubbish
//! or nothing. Real brokers and PLC servers are in `tests/outlets.rs`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::outlets::{LineStatus, Outlets};
use super::plc::{Memory, Plc, Wrote};
use super::{Outlet, Record, testing};
use crate::config::{self, Config};
use crate::model::Verdict;
use crate::telemetry::{Loss, OutletKind, OutletMeter, Telemetry};

const PATIENCE: Duration = Duration::from_secs(60);

struct Site {
    folder: tempfile::TempDir,
    telemetry: Telemetry,
    outlets: Arc<Outlets>,
    doors: Vec<Arc<dyn Outlet>>,
    /// Told of the line all the time, as the daemon does. `None`: its main thread hangs.
    status: Arc<Mutex<Option<LineStatus>>>,
}

impl Site {
    /// A line called `cam1` that runs, with these tables.
    fn new(tables: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let telemetry = Telemetry::new();
        let outlets = Arc::new(Outlets::new(telemetry.clone(), &configure(&folder, tables)));
        let status = Arc::new(Mutex::new(Some(LineStatus::Running)));
        let (told, telling) = (Arc::downgrade(&outlets), Arc::clone(&status));
        std::thread::spawn(move || {
            while let Some(outlets) = told.upgrade() {
                if let Some(status) = *telling.lock().unwrap() {
                    outlets.tell("cam1", status, None);
                }
                drop(outlets);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let mut site = Site { folder, telemetry, outlets, doors: Vec::new(), status };
        site.take_over(tables);
        site
    }

    fn tell(&self, status: Option<LineStatus>) {
        *self.status.lock().unwrap() = status;
    }

    fn take_over(&mut self, tables: &str) {
        let config = configure(&self.folder, tables);
        let staged = self.outlets.stage(&config).unwrap();
        self.doors = staged.of(&config.lines[0].name);
        self.outlets.commit(staged);
    }

    fn submit(&self, sequence: u64, verdict: Verdict) {
        let record = Record { sequence, verdict, ..testing::record() };
        self.doors.iter().for_each(|door| door.submit(&record));
    }

    fn meter(&self, kind: OutletKind) -> Arc<OutletMeter> {
        self.outlets.meter("cam1", kind).unwrap()
    }

    fn up(&self, line: &str, kind: &str) -> i64 {
        self.telemetry.metrics().output_up.with_label_values(&[line, kind]).get()
    }
}

fn configure(folder: &tempfile::TempDir, tables: &str) -> Config {
    let path = folder.path().join("c.toml");
    std::fs::write(folder.path().join("m"), "").unwrap();
    let (top, in_line) = tables.split_at(tables.find("[line.").unwrap_or(tables.len()));
    let line = "[[line]]\nname = \"cam1\"\nmodel = \"m\"\nsource = \"x\"\n";
    std::fs::write(&path, format!("{top}\n{line}{in_line}")).unwrap();
    config::load(&path).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn wait<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < until, "{what} never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[track_caller]
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    wait(what, || holds().then_some(()));
}

fn modbus(plc: &Plc, more: &str) -> String {
    format!("[line.modbus]\naddress = \"{}\"\ntimeout_ms = 5000\nheartbeat_ms = 20\n{more}\n", plc.address)
}

fn acknowledge(plc: &Plc, sequence: u16) {
    plc.memory().registers[8..10].copy_from_slice(&[0, sequence]);
}

/// Sequence and verdict code, as the PLC reads them.
fn shown(memory: &Memory) -> (u32, u16) {
    let words = memory.words();
    (u32::from(words[0]) << 16 | u32::from(words[1]), words[2])
}

#[test]
fn whoever_acts_on_a_new_sequence_finds_coils_and_registers_of_the_same_part() {
    let plc = Plc::start();
    let site = Site::new(&modbus(&plc, ""));
    wait_for("READY", || plc.memory().lamps() == [false, true, true]);
    for i in 0..60 {
        site.submit(70_000 + i, Verdict::ALL[i as usize % 5]);
        wait_for("the result", || shown(&plc.memory()).0 == 70_000 + i as u32);
    }
    let memory = plc.memory();
    let mut sequence = 0;
    for (wrote, lamps, words) in &memory.seen {
        assert_eq!(lamps[0], !lamps[1], "never both, never neither");
        let now = u32::from(words[0]) << 16 | u32::from(words[1]);
        if now != sequence {
            sequence = now;
            assert_eq!(*wrote, Wrote::Registers);
            assert_eq!(lamps[0], words[2] == 1, "{sequence}");
            assert_eq!(words[2], ((sequence - 70_000) % 5 + 1) as u16, "{sequence}");
            assert_eq!(f32::from_bits(u32::from(words[3]) << 16 | u32::from(words[4])), 1.5);
        }
    }
    assert_eq!(sequence, 70_059);
    drop(memory);
    wait_for("the accounts", || site.meter(OutletKind::Modbus).counts() == (60, 0, 0));
    assert_eq!(site.up("cam1", "modbus"), 1);
}

#[test]
fn ready_and_ok_go_off_when_the_line_cannot_judge_and_when_the_daemon_ends() {
    let plc = Plc::start();
    let site = Site::new(&modbus(&plc, ""));
    site.submit(1, Verdict::Good);
    wait_for("OK", || plc.memory().lamps() == [true, false, true]);
    let beat = plc.memory().registers[7];
    wait_for("a heartbeat", || plc.memory().registers[7] != beat);
    site.tell(Some(LineStatus::Stopping));
    wait_for("NG", || plc.memory().lamps() == [false, true, false]);
    site.tell(Some(LineStatus::Running));
    wait_for("READY", || plc.memory().lamps() == [false, true, true]);
    site.submit(2, Verdict::Good);
    wait_for("OK", || plc.memory().lamps() == [true, false, true]);
    assert!(site.outlets.close());
    let memory = plc.memory();
    assert_eq!((memory.lamps(), shown(&memory)), ([false, true, false], (2, 1)));
}

#[test]
fn what_was_told_long_ago_does_not_count() {
    let plc = Plc::start();
    let site = Site::new(&modbus(&plc, ""));
    wait_for("READY", || plc.memory().lamps()[2]);
    site.tell(None);
    wait_for("READY off", || plc.memory().lamps() == [false, true, false]);
    let stopped = plc.memory().registers[7];
    site.tell(Some(LineStatus::Running));
    wait_for("READY", || plc.memory().lamps()[2]);
    wait_for("a heartbeat", || plc.memory().registers[7] != stopped);
}

#[test]
fn with_handshake_the_next_result_waits_for_the_acknowledgement_and_the_newest_wins() {
    let plc = Plc::start();
    let site = Site::new(&modbus(&plc, "handshake = true\nack_timeout_ms = 600000"));
    let meter = site.meter(OutletKind::Modbus);
    site.submit(10, Verdict::Bad);
    wait_for("the first", || shown(&plc.memory()) == (10, 3));
    assert_eq!(plc.memory().words()[8..], [0xffff, 0xffff]);
    (11..15).for_each(|sequence| site.submit(sequence, Verdict::Good));
    let beat = plc.memory().registers[7];
    wait_for("heartbeats meanwhile", || plc.memory().registers[7].wrapping_sub(beat) > 2);
    assert_eq!((shown(&plc.memory()), meter.counts()), ((10, 3), (0, 0, 5)));
    // The acknowledgement of another part is none.
    acknowledge(&plc, 9);
    let beat = plc.memory().registers[7];
    wait_for("heartbeats meanwhile", || plc.memory().registers[7].wrapping_sub(beat) > 2);
    assert_eq!(shown(&plc.memory()), (10, 3));
    acknowledge(&plc, 10);
    wait_for("the newest", || shown(&plc.memory()) == (14, 1));
    assert_eq!((meter.counts(), meter.lost_by(Loss::Superseded)), ((1, 3, 1), 3));
    plc.memory().acknowledges = true;
    acknowledge(&plc, 14);
    for sequence in 20..30 {
        wait_for("the last", || meter.counts().2 == 0);
        site.submit(sequence, Verdict::Good);
    }
    wait_for("the accounts", || meter.counts() == (12, 3, 0));
}

#[test]
fn a_result_that_is_never_acknowledged_is_counted_and_makes_room_for_the_next() {
    let plc = Plc::start();
    let site = Site::new(&modbus(&plc, "handshake = true\nack_timeout_ms = 10"));
    for sequence in 1..4 {
        site.submit(sequence, Verdict::Good);
        wait_for("its loss", || site.meter(OutletKind::Modbus).lost_by(Loss::Unacknowledged) == sequence);
    }
    assert_eq!(shown(&plc.memory()), (3, 1));
    assert_eq!(site.meter(OutletKind::Modbus).counts(), (0, 3, 0));
}

#[test]
fn a_plc_that_refuses_is_told_of_once_and_tried_with_each_result() {
    let plc = Plc::start();
    plc.memory().exception = Some(2);
    let site = Site::new(&modbus(&plc, ""));
    (0..5).for_each(|sequence| {
        site.submit(sequence, Verdict::Good);
        wait_for("its loss", || site.meter(OutletKind::Modbus).lost_by(Loss::Refused) == sequence + 1);
    });
    assert_eq!(site.up("cam1", "modbus"), 0);
    plc.memory().exception = None;
    site.submit(5, Verdict::Good);
    wait_for("the result", || shown(&plc.memory()) == (5, 1));
    wait_for("up", || site.up("cam1", "modbus") == 1);
    assert_eq!((site.meter(OutletKind::Modbus).counts(), plc.memory().connections), ((1, 5, 0), 1));
}

#[test]
fn a_reload_keeps_what_is_the_same_and_replaces_what_is_not() {
    let (one, two) = (Plc::start(), Plc::start());
    let mut site = Site::new(&modbus(&one, ""));
    site.submit(1, Verdict::Good);
    wait_for("the result", || shown(&one.memory()) == (1, 1));
    site.take_over(&modbus(&one, ""));
    // Staged and given up, as by a reload that is refused.
    drop(site.outlets.stage(&configure(&site.folder, &modbus(&two, ""))).unwrap());
    site.submit(2, Verdict::Good);
    wait_for("the result", || shown(&one.memory()) == (2, 1));
    assert_eq!((one.memory().connections, two.memory().connections), (1, 0));
    site.take_over(&modbus(&two, ""));
    wait_for("the safe side at the old", || one.memory().lamps() == [false, true, false]);
    site.submit(3, Verdict::Good);
    wait_for("the result at the new", || shown(&two.memory()) == (3, 1));
    let old = one.memory();
    assert_eq!((old.connections, shown(&old)), (1, (2, 1)));
    drop(old);
    // Switched off: nothing is left of it.
    site.take_over("");
    wait_for("the safe side", || two.memory().lamps() == [false, true, false]);
    assert!(site.doors.is_empty() && !site.telemetry.scrape().contains("output_up{"));
}

/// A server that does `answer` with every connection, and counts them.
fn server(answer: impl Fn(TcpStream) + Send + Sync + 'static) -> (SocketAddr, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(0)));
    let (answer, counted) = (Arc::new(answer), Arc::clone(&count));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            *counted.lock().unwrap() += 1;
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || answer(stream));
        }
    });
    (address, count)
}

/// Peers that are none, by name.
fn hostile() -> Vec<(&'static str, SocketAddr)> {
    let keep = |mut stream: TcpStream| drop(std::io::copy(&mut stream, &mut std::io::sink()));
    let silent = server(keep).0;
    let closing = server(drop).0;
    let rubbish = server(move |mut stream| {
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut noise = [0u8; 1000];
        for _ in 0..200 {
            for byte in &mut noise {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (random >> 56) as u8;
            }
            if stream.write_all(&noise).is_err() {
                return;
            }
        }
        keep(stream);
    })
    .0;
    // Begins as each protocol would: a Modbus header with a length of 0, an MQTT CONNACK, an HTTP head.
    let teasing = server(move |mut stream| {
        let mut question = [0; 512];
        let n = stream.read(&mut question).unwrap_or(0);
        let answer: Vec<u8> = match question.get(..n) {
            Some([0x10, ..]) => [&[0x20, 2, 0, 0][..], &[0x40, 2, 0xff, 0xff].repeat(50)].concat(),
            Some([b'P', ..]) => b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nx".to_vec(),
            _ => vec![question[0], question[1], 0, 0, 0, 0, 1],
        };
        let _ = stream.write_all(&answer);
        keep(stream);
    })
    .0;
    vec![("silent", silent), ("closing", closing), ("rubbish", rubbish), ("teasing", teasing)]
}

#[test]
fn hostile_peers_hold_nobody_up_and_every_verdict_is_accounted_for() {
    for (name, address) in hostile() {
        let site = Site::new(&format!(
            "[mqtt]\nbroker = \"mqtt://{address}\"\n\
             [line.modbus]\naddress = \"{address}\"\ntimeout_ms = 50\nheartbeat_ms = 20\n\
             [line.webhook]\nurl = \"http://{address}/x\"\nof = \"all\"\ntimeout_ms = 50\n"
        ));
        assert_eq!(site.doors.len(), 3);
        let n = 2000;
        let mut took: Vec<Duration> = (0..n)
            .map(|sequence| {
                let began = Instant::now();
                site.submit(sequence, Verdict::Bad);
                let took = began.elapsed();
                // As fast as a line may be, so that attempts of the outputs fall between.
                if sequence % 100 == 0 {
                    std::thread::sleep(Duration::from_millis(5));
                }
                took
            })
            .collect();
        took.sort();
        let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
        println!("{name}: a verdict to three outputs takes {median:?}, at most {worst:?}");
        // Had it waited for a peer, it would have waited for a timeout of 50 ms.
        assert!(median < Duration::from_millis(1), "{name}: {median:?}");
        let meters = [OutletKind::Modbus, OutletKind::Mqtt, OutletKind::Webhook].map(|kind| site.meter(kind));
        wait_for("the first losses", || meters[0].counts().1 > 0);
        for meter in &meters {
            // In this order: what waits can only become sent or lost meanwhile.
            let balance = || {
                let (sent, lost, waiting) = meter.counts();
                sent + lost + waiting as u64 == n
            };
            wait_for("a balance", balance);
        }
        let began = Instant::now();
        assert!(site.outlets.close(), "{name}: an output did not end");
        assert!(began.elapsed() < Duration::from_secs(4), "{name}");
        for meter in &meters {
            let (sent, lost, waiting) = meter.counts();
            assert_eq!((sent + lost, waiting), (n, 0), "{name}: {meter:?}");
        }
    }
}

/// A web server that gives these answers in turn, the last one for ever, and keeps what it was asked.
fn web(answers: &'static [&'static str]) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&asked);
    let (address, _) = server(move |stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut stream = stream;
        loop {
            let (mut head, mut line) = (String::new(), String::new());
            while {
                line.clear();
                reader.read_line(&mut line).unwrap_or(0) > 2
            } {
                head.push_str(&line);
            }
            let length = head
                .lines()
                .find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.trim().parse().ok());
            let Some(length) = length else { return };
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let at = {
                let mut kept = kept.lock().unwrap();
                kept.push(head + &String::from_utf8(body).unwrap());
                kept.len() - 1
            };
            let answer = answers[at.min(answers.len() - 1)];
            if answer.is_empty() {
                // Too slow: the other side gives up.
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
                return;
            }
            if write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 2\r\n\r\nok").is_err() {
                return;
            }
        }
    });
    (address, asked)
}

#[test]
fn a_webhook_posts_the_json_with_its_token_and_tries_again() {
    let (address, asked) = web(&["200 OK", "503 Busy", "500 Oh", "204 None"]);
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "gehe1m\nnot this\n").unwrap();
    let mut site =
        Site::new(&format!("[line.webhook]\nurl = \"http://{address}/a?b\"\ntoken_file = {token:?}\n"));
    let meter = site.meter(OutletKind::Webhook);
    site.submit(0, Verdict::Good);
    site.submit(1, Verdict::Bad);
    wait_for("the first", || meter.counts() == (1, 0, 0));
    site.submit(2, Verdict::Unsure);
    wait_for("the second", || meter.counts() == (2, 0, 0));
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 4, "the second was tried three times");
    assert!(asked[0].starts_with("POST /a?b HTTP/1.1\r\n"), "{}", asked[0]);
    assert!(asked[0].to_lowercase().contains("authorization: bearer gehe1m\r\n"), "{}", asked[0]);
    let body: serde_json::Value = serde_json::from_str(asked[3].lines().last().unwrap()).unwrap();
    assert_eq!((&body["sequence"], &body["verdict"]), (&2.into(), &"unsure".into()));
    // The token's file is read with each reload; the same path may hold another.
    std::fs::write(&token, "other").unwrap();
    let tables = format!("[line.webhook]\nurl = \"http://{address}/a?b\"\ntoken_file = {token:?}\n");
    drop(asked);
    site.take_over(&tables);
    assert!(!Arc::ptr_eq(&meter, &site.meter(OutletKind::Webhook)), "it is another output");
    std::fs::write(&token, "\n").unwrap();
    let why = site.outlets.stage(&configure(&site.folder, &tables)).expect_err("no token").to_string();
    assert!(why.contains("visible ASCII") && !why.contains("gehe1m"), "{why}");
}

#[test]
fn what_a_server_declines_is_lost_at_once_and_redirects_are_not_followed() {
    let (elsewhere, others) = server(drop);
    let redirect: &'static str = format!("302 Found\r\nLocation: http://{elsewhere}/").leak();
    for (answers, asked_for) in
        [(vec![redirect].leak(), 1), (vec!["404 No"].leak(), 1), (vec!["500 Oh"].leak(), 3)]
    {
        let (address, asked) = web(answers);
        let site = Site::new(&format!("[line.webhook]\nurl = \"http://{address}\"\n"));
        site.submit(1, Verdict::Bad);
        wait_for("its loss", || site.meter(OutletKind::Webhook).lost_by(Loss::Refused) == 1);
        assert_eq!(asked.lock().unwrap().len(), asked_for, "{answers:?}");
        assert_eq!(site.up("cam1", "webhook"), 0);
    }
    assert_eq!(*others.lock().unwrap(), 0);
}

#[test]
fn a_server_that_is_too_slow_costs_its_timeout_and_the_verdict() {
    let (address, _) = web(&[""]);
    let site = Site::new(&format!("[line.webhook]\nurl = \"http://{address}\"\ntimeout_ms = 20\n"));
    site.submit(1, Verdict::Bad);
    wait_for("its loss", || site.meter(OutletKind::Webhook).lost_by(Loss::Timeout) == 1);
}

#[test]
fn a_password_is_nowhere_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "gehe1m\n").unwrap();
    let tables =
        format!("[mqtt]\nbroker = \"mqtt://127.0.0.1:1\"\nusername = \"me\"\npassword_file = {file:?}\n");
    let site = Site::new(&tables);
    let staged = site.outlets.stage(&configure(&site.folder, &tables)).unwrap();
    let shown = format!("{staged:?} {:?} {}", site.doors, site.telemetry.scrape());
    assert!(!shown.contains("gehe1m"), "{shown}");
}
