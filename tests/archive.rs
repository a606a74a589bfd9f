//! The archive of the real daemon: killed at any moment, on a disk that takes no more, and read by the commands
//! that replay, list, review and export. `KILLS=200 SEED=7 cargo test --test archive kill_9` makes a campaign.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use inspectd::archive::{DATABASE, Still};
use inspectd::archive::{Filter, Store, part_name};
use inspectd::outputs::FrameHash;
use serde_json::Value;

mod daemon;
mod untaught;

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
        std::fs::write(self.path("c.toml"), format!("[daemon]\nhttp = \"off\"\n{text}")).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        daemon::inspectd(arguments, &self.path("c.toml"))
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must end well, and reads the JSON lines that it prints.
    fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn archive(&self) -> Store {
        Store::read(&self.path("archive")).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// What the verdicts in a file name: a part each.
fn published(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
    let name = |line: &str| {
        let json: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let at = json["captured_at"].as_str().unwrap().parse().unwrap();
        part_name(json["line"].as_str().unwrap(), at, json["sequence"].as_u64().unwrap())
    };
    whole.lines().map(name).collect()
}

/// SplitMix64: the seed is printed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[test]
fn every_verdict_that_was_published_is_in_the_archive_after_kill_9() {
    let site = Site::new();
    let kills = setting("KILLS").unwrap_or(3);
    let seed = setting("SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let mut random = Random(seed);
    let line = |name: &str, rate: u32| {
        format!(
            "[[line]]\nname = \"{name}\"\nmodel = \"part.safetensors\"\nsource = \"videotestsrc is-live=true pattern=snow ! \
             video/x-raw,format=NV12,width=64,height=64,framerate={rate}/1\"\n[line.outputs]\nverdicts = \"v.jsonl\"\n"
        )
    };
    // A minute is for ever here: no verdict goes out without its row, however busy the machine.
    site.configure(&format!(
        "[archive]\nfolder = \"archive\"\nimages = \"all\"\nwait_ms = 60000\n{}{}",
        line("a", 20),
        line("b", 7)
    ));
    let (socket, file) = (site.path("notify"), site.path("v.jsonl"));
    let notify = UnixDatagram::bind(&socket).unwrap();
    notify.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut slowest = Duration::ZERO;
    let mut before = 0;
    for kill in 0..kills {
        let log = std::fs::File::create(site.path("log")).unwrap();
        let began = Instant::now();
        let mut serve = site.command(&["serve"]);
        let mut child =
            serve.env("NOTIFY_SOCKET", &socket).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut buffer = [0; 4096];
        loop {
            let n = notify
                .recv(&mut buffer)
                .unwrap_or_else(|e| panic!("seed {seed}, kill {kill}: not ready: {e}"));
            if String::from_utf8_lossy(&buffer[..n]).contains("READY=1") {
                break;
            }
        }
        slowest = slowest.max(began.elapsed());
        let until = Instant::now() + PATIENCE;
        while published(&file).len() == before {
            assert!(Instant::now() < until, "seed {seed}, kill {kill}: no verdict came");
            std::thread::sleep(Duration::from_millis(5));
        }
        // Not a wait for anything: the moment of death is the test's input.
        std::thread::sleep(Duration::from_micros(random.below(700_000)));
        child.kill().unwrap();
        child.wait().unwrap();

        let names = published(&file);
        before = names.len();
        let rows = site.archive().list(&Filter::default(), 1_000_000).unwrap();
        let kept: HashSet<String> = rows.iter().map(|row| row.name()).collect();
        let lost: Vec<&String> = names.iter().filter(|name| !kept.contains(*name)).collect();
        assert!(lost.is_empty(), "seed {seed}, kill {kill}: published and not in the archive: {lost:?}");
        assert_eq!(kept.len(), rows.len(), "seed {seed}, kill {kill}: no part is there twice");
        let db = rusqlite::Connection::open(site.path("archive").join(DATABASE)).unwrap();
        let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok", "seed {seed}, kill {kill}");
        let log = std::fs::read_to_string(site.path("log")).unwrap();
        // On a busy machine a picture may find its queue full, which is counted; nothing else may go wrong.
        let fault =
            |line: &&str| line.contains("ERROR") && !line.contains("output=\"images\" reason=\"full\"");
        assert_eq!(log.lines().find(fault), None, "seed {seed}, kill {kill}: {log}");
    }
    // What rows say of pictures is so: opened for writing, the archive has settled its accounts.
    drop(Store::open(&site.path("archive"), false).unwrap());
    let filter = Filter { with_image: true, ..Filter::default() };
    let mut pictures = 0;
    for row in site.archive().list(&filter, 100).unwrap() {
        let still = Still::read(row.image.as_ref().unwrap()).unwrap();
        assert_eq!(Some(FrameHash::of(&still.view()).to_string()), row.frame_hash, "{}", row.name());
        pictures += 1;
    }
    assert!(pictures > 0);
    println!("seed {seed}: {kills} kills, {before} verdicts published and kept, slowest start {slowest:?}");
    // A debug build takes half a second on a machine that builds beside it.
    assert!(slowest <= Duration::from_secs(5), "seed {seed}: a start took {slowest:?}");
}

/// A daemon that has judged a few frames of noise and ended, all of them bad.
fn judged(site: &Site, frames: u32) {
    site.configure(&format!(
        "[archive]\nfolder = \"archive\"\n[[line]]\nname = \"cam\"\nmodel = \"part.safetensors\"\ndrop = \"block\"\n\
         deadline_ms = 0\non_eos = \"stop\"\nroi = [8, 16, 64, 48]\nslots = 32\nsource = \"videotestsrc pattern=snow \
         num-buffers={frames} ! video/x-raw,format=NV12,width=98,height=81,framerate=5/1\"\nsync = true\n\
         [line.outputs]\nverdicts = \"v.jsonl\"\n[line.thresholds]\nunsure = -1e6\nbad = -1e5\n"
    ));
    let output = site.run(&["serve"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_part_is_judged_again_and_comes_out_the_same() {
    let site = Site::new();
    judged(&site, 5);
    let listed = site.json(&["archive", "list", "--json", "--with-image"]);
    assert!(!listed.is_empty(), "{}", std::fs::read_to_string(site.path("v.jsonl")).unwrap());
    let part = &listed[0];
    let name = part["part"].as_str().unwrap().to_owned();
    for key in [part["id"].to_string(), name.clone(), format!("{name}_bad.png")] {
        let replayed = &site.json(&["replay", &key, "--json"])[0];
        assert_eq!(replayed["equal"], true, "{replayed}");
        assert_eq!(replayed["then"], replayed["now"], "{replayed}");
        assert_eq!(replayed["then"]["score"], part["score"]);
    }
    // Other thresholds: the same score is another verdict.
    let text = std::fs::read_to_string(site.path("c.toml")).unwrap();
    std::fs::write(site.path("c.toml"), text.replace("-1e6", "1e6").replace("-1e5", "1e7")).unwrap();
    let output = site.run(&["replay", &name]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = |what: &str| told.lines().find(|line| line.starts_with(what)).unwrap().to_owned();
    assert!(line("verdict").contains("good") && line("verdict").ends_with("differs"), "{told}");
    assert!(line("score").ends_with("equal") && line("model").ends_with("equal"), "{told}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("not judged as it was"));
    // A picture that was changed is not the frame that was judged; one that is gone is told.
    let image = PathBuf::from(part["image"].as_str().unwrap());
    let other = listed.iter().find(|other| other["part"] != part["part"]).unwrap();
    std::fs::copy(other["image"].as_str().unwrap(), &image).unwrap();
    let output = site.run(&["replay", &name, "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &json["frame_equal"]), (Some(1), &false.into()), "{json}");
    std::fs::remove_file(&image).unwrap();
    assert_eq!(site.run(&["replay", &name]).status.code(), Some(66));
    assert_eq!(site.run(&["replay", "999999"]).status.code(), Some(66));
    assert_eq!(site.run(&["replay", "nonsense"]).status.code(), Some(64));
}

#[test]
fn reviewed_parts_become_the_next_lesson() {
    let site = Site::new();
    judged(&site, 5);
    let listed = site.json(&["archive", "list", "--json", "--with-image"]);
    assert!(listed.len() >= 3, "{listed:?}");
    let id = |i: usize| listed[i]["id"].to_string();
    let out = site.path("next");
    let export = ["archive", "export", "--out", out.to_str().unwrap()];
    assert_eq!(site.run(&export).status.code(), Some(66), "nothing is reviewed yet");
    for (i, opinion) in [(0, "false_alarm"), (1, "confirm"), (2, "unsure")] {
        site.json(&["archive", "review", &id(i), opinion, "--by", "Ada"]);
    }
    let shown = &site.json(&["archive", "show", &id(0), "--json"])[0];
    assert_eq!((&shown["review"], &shown["reviewer"]), (&"false_alarm".into(), &"Ada".into()), "{shown}");
    assert_eq!(site.json(&["archive", "list", "--json", "--reviewed"]).len(), 3);
    let output = site.run(&export);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut found = BTreeMap::new();
    for (folder, i) in [("train/good", 0), ("test/defect", 1)] {
        let path = out.join(folder).join(format!("{}.png", listed[i]["part"].as_str().unwrap()));
        let picture = image::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        found.insert(folder, (picture.width(), picture.height()));
        assert_eq!(std::fs::read_dir(out.join(folder)).unwrap().count(), 1);
    }
    assert!(found.values().all(|size| *size == (64, 48)), "the region that was judged: {found:?}");
    assert_eq!(site.run(&export).status.code(), Some(73), "what is there is not mixed with");
}

#[test]
fn a_disk_that_takes_no_more_stops_no_line_and_is_shouted() {
    let site = Site::new();
    site.configure(
        "[archive]\nfolder = \"archive\"\nimages = \"all\"\n[[line]]\nname = \"cam\"\nmodel = \"part.safetensors\"\n\
         drop = \"block\"\ndeadline_ms = 0\non_eos = \"stop\"\nsource = \"videotestsrc num-buffers=80 ! \
         video/x-raw,format=RGB,width=64,height=64\"\n",
    );
    // No file may grow beyond 200 KB; the signal that would say so is ignored, so writes fail as on a full disk.
    let script = "trap '' XFSZ; ulimit -f 400; exec \"$0\" serve --config \"$1\"";
    let output = Command::new("dash")
        .args(["-c", script, env!("CARGO_BIN_EXE_inspectd")])
        .arg(site.path("c.toml"))
        .env("RUST_BACKTRACE", "0")
        .env_remove("INSPECTD_LOG")
        .env_remove("NOTIFY_SOCKET")
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 80, "{log}");
    assert!(log.contains("The archive takes nothing, and inspection goes on without it"), "{log}");
    let rows = site.archive().list(&Filter::default(), 999).unwrap().len();
    assert!((1..80).contains(&rows), "{rows} rows");
}

#[test]
fn somebody_elses_database_keeps_the_daemon_from_starting_and_is_left_alone() {
    let site = Site::new();
    site.configure(
        "[archive]\nfolder = \"archive\"\n[[line]]\nname = \"cam\"\nmodel = \"part.safetensors\"\nsource = \"videotestsrc\"\n",
    );
    std::fs::create_dir(site.path("archive")).unwrap();
    let path = site.path("archive").join(DATABASE);
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let before = std::fs::read(&path).unwrap();
    let output = site.run(&["serve"]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(73), "{log}");
    assert!(log.contains("is a database, but not an archive of inspectd"), "{log}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}
