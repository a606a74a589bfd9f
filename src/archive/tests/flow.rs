//! From the verdict thread through the archive to the outputs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use jiff::SignedDuration;
use rusqlite::Connection;

use super::{entry, open, rules, start, write};
use crate::archive::*;
use crate::config::{ArchiveConfig, HeatmapsOf};
use crate::imaging::{FrameView, Heatmap};
use crate::model::Verdict;
use crate::outputs::{FrameHash, Outlet, Pixels, Rules, VerdictWriter, testing};
use crate::telemetry::{Output, OutputFault, Telemetry};

struct Grey;

impl Pixels for Grey {
    fn view(&self) -> FrameView<'_> {
        FrameView::rgb(&[90; 48], 4, 4)
    }
}

fn config(folder: &Path) -> ArchiveConfig {
    ArchiveConfig {
        folder: folder.to_owned(),
        images: HeatmapsOf::UnsureAndBad,
        good_sample: 0,
        keep: Duration::from_secs(1 << 40),
        keep_bytes: u64::MAX / 4,
        wait: Duration::from_secs(60),
        power_safe: false,
    }
}

/// Looks each verdict up in the archive the moment it is published.
#[derive(Debug)]
struct Witness {
    folder: std::path::PathBuf,
    published: AtomicUsize,
    found: AtomicUsize,
}

impl Witness {
    fn new(folder: &Path) -> Arc<Self> {
        Arc::new(Witness { folder: folder.to_owned(), published: 0.into(), found: 0.into() })
    }
}

impl Outlet for Witness {
    fn submit(&self, record: &Record) {
        let key = part_name(record.rules.line.as_str(), record.captured_at, record.sequence).parse().unwrap();
        let found = Store::read(&self.folder).ok().and_then(|store| store.find(&key).ok().flatten());
        self.found.fetch_add(found.is_some().into(), SeqCst);
        self.published.fetch_add(1, SeqCst);
    }
}

struct Bench {
    archive: Archive<Grey>,
    threads: Vec<std::thread::JoinHandle<()>>,
    witness: Arc<Witness>,
    record: Record,
}

fn bench(config: &ArchiveConfig) -> Bench {
    let telemetry = Telemetry::new();
    let (outputs, thread) = VerdictWriter::start().unwrap();
    let (spare, _) = bounded::<Heatmap>(8);
    let (archive, mut threads) = Archive::start(config, outputs, spare, &telemetry).unwrap();
    threads.push(thread);
    let witness = Witness::new(&config.folder);
    let record = testing::record();
    let outlets: Vec<Arc<dyn Outlet>> = vec![witness.clone()];
    let record = Record { rules: Arc::new(Rules { outlets, ..rules(&record.rules) }), ..record };
    Bench { archive, threads, witness, record }
}

impl Bench {
    fn submit(&self, n: u64, image: bool) {
        let captured_at = start() + SignedDuration::from_millis(n as i64);
        let record = Record { sequence: n, captured_at, ..self.record.clone() };
        if image {
            let map = Heatmap { width: 2, height: 2, data: vec![0.5; 4] };
            assert!(self.archive.submit_image(record.clone(), Arc::new(Grey), Some(map)).0);
        }
        assert!(self.archive.submit(record, image).is_ok());
    }

    fn failed(&self, output: Output, fault: OutputFault) -> u64 {
        self.record.telemetry.metrics.output_failed(output, fault).get()
    }

    fn published(&self) -> usize {
        self.witness.published.load(SeqCst)
    }

    /// Waits until `holds` does.
    fn wait(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(Instant::now() < until, "{what} never came");
            std::thread::yield_now();
        }
    }

    fn end(self) -> (Arc<Witness>, Record) {
        drop(self.archive);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        (self.witness, self.record)
    }
}

#[test]
fn a_verdict_is_in_the_archive_before_any_output_hears_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(&config(folder.path()));
    (0..300).for_each(|n| bench.submit(n, n % 100 == 0));
    let (witness, record) = bench.end();
    assert_eq!((witness.published.load(SeqCst), witness.found.load(SeqCst)), (300, 300));
    let store = Store::read(folder.path()).unwrap();
    let with_image = store.list(&Filter { with_image: true, ..Filter::default() }, 999).unwrap();
    assert_eq!(with_image.iter().map(|row| row.sequence).collect::<Vec<_>>(), [200, 100, 0]);
    for row in with_image {
        let still = Still::read(row.image.as_ref().unwrap()).unwrap();
        assert_eq!(FrameHash::of(&still.view()), FrameHash::of(&Grey.view()));
        assert!(row.heatmap().is_some());
    }
    for fault in OutputFault::ALL {
        assert_eq!(record.telemetry.metrics.output_failed(Output::Archive, fault).get(), 0, "{fault:?}");
    }
}

#[derive(Debug, Default)]
struct Counter(AtomicUsize);

impl Outlet for Counter {
    fn submit(&self, _: &Record) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_verdict_passes_the_archive_in_a_fraction_of_the_time_that_it_may_wait() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = bench(&config(folder.path()));
    let counter = Arc::new(Counter::default());
    let outlets: Vec<Arc<dyn Outlet>> = vec![counter.clone()];
    bench.record.rules = Arc::new(Rules { outlets, ..rules(&bench.record.rules) });
    let mut times = Vec::new();
    for n in 0..400 {
        let start = Instant::now();
        bench.submit(n, false);
        bench.wait("the verdict", || counter.0.load(SeqCst) > n as usize);
        times.push(start.elapsed());
    }
    times.sort();
    let (median, p99) = (times[200], times[396]);
    println!("from verdict to output by way of the archive: p50 {median:?}, p99 {p99:?}");
    // The default of wait_ms.
    assert!(median < Duration::from_millis(50), "{median:?}");
}

#[test]
fn an_archive_can_be_read_where_nothing_can_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("with space?#%");
    write(&mut open(&place), &[entry("a", 1, Verdict::Bad)]);
    let uri = crate::archive::files::immutable_uri(&place.join(DATABASE));
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_URI;
    let db = Connection::open_with_flags(uri, flags).unwrap();
    let n: i64 = db.query_row("SELECT count(*) FROM parts", [], |row| row.get(0)).unwrap();
    assert_eq!(n, 1);
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 2, "no -wal, no -shm");
}

#[test]
fn a_verdict_waits_no_longer_than_it_may_and_the_archive_catches_up() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(&ArchiveConfig { wait: Duration::from_millis(20), ..config(folder.path()) });
    let blocker = Connection::open(folder.path().join(DATABASE)).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    for n in 0..3 {
        bench.submit(n, false);
        bench.wait("the verdict", || bench.published() == n as usize + 1);
    }
    assert_eq!(bench.witness.found.load(SeqCst), 0, "somebody holds the database");
    assert_eq!(bench.failed(Output::Archive, OutputFault::Slow), 3);
    blocker.execute_batch("COMMIT").unwrap();
    bench.wait("the rows", || {
        Store::read(folder.path()).unwrap().list(&Filter::default(), 9).unwrap().len() == 3
    });
    bench.end();
}

#[test]
fn a_full_disk_is_told_loses_nothing_for_a_while_and_mends_itself() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let telemetry = Telemetry::new();
    let entries: Vec<Entry> = (0..2000).map(|n| entry("a", n, Verdict::Bad)).collect();
    let pages: i64 = store.db.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    store.limit_pages(pages + 4);
    let shared = Arc::new(crate::archive::relay::Shared::new(Terms::of(&config(folder.path()))));
    let mut writer = crate::archive::writer::Writer::new(store, Arc::clone(&shared), telemetry.clone());
    let now = Instant::now();
    writer.step(Some((1, entries.clone())), now);
    assert!(!shared.progress.wait(1, Duration::ZERO), "not written");
    assert_eq!(shared.progress.get(), 1, "but nobody waits for it");
    assert!(telemetry.archive_fault().unwrap().contains("full"), "{:?}", telemetry.archive_fault());
    assert!(telemetry.scrape().contains("inspectd_archive_up{stage=\"archive\"} 0"));
    writer.store().limit_pages(100_000);
    writer.step(None, now + Duration::from_millis(10));
    assert!(telemetry.archive_fault().is_some(), "not tried again at once");
    writer.step(None, now + Duration::from_secs(2));
    assert_eq!(telemetry.archive_fault(), None);
    assert_eq!(writer.store().list(&Filter::default(), 9999).unwrap().len(), 2000);
    // More than memory keeps: the oldest are lost, and counted.
    writer.store().limit_pages(1);
    let more: Vec<Entry> = (0..3).flat_map(|_| entries.iter().cloned()).collect();
    writer.step(Some((2, more)), now + Duration::from_secs(4));
    let lost: u64 = entries
        .iter()
        .map(|e| e.record.telemetry.metrics.output_failed(Output::Archive, OutputFault::Write).get())
        .sum();
    assert_eq!(lost, 6000 - 4096);
}

#[test]
fn a_database_that_goes_bad_while_it_is_written_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(&config(folder.path()));
    bench.submit(0, false);
    bench.wait("the first", || bench.published() == 1);
    // The WAL is what the next commit reads and writes.
    for name in [DATABASE.to_owned(), format!("{DATABASE}-wal"), format!("{DATABASE}-shm")] {
        let length = std::fs::metadata(folder.path().join(&name)).unwrap().len();
        std::fs::write(folder.path().join(&name), vec![0xa5; length as usize]).unwrap();
    }
    let mut n = 0;
    bench.wait("a row in a new archive", || {
        n += 1;
        let _ = bench.archive.submit(Record { sequence: n, ..bench.record.clone() }, false);
        Store::read(folder.path())
            .is_ok_and(|store| !store.list(&Filter::default(), 9).unwrap_or_default().is_empty())
    });
    let aside = |e: std::io::Result<std::fs::DirEntry>| {
        e.unwrap().file_name().to_str().unwrap().contains(".damaged-")
    };
    assert!(std::fs::read_dir(folder.path()).unwrap().any(aside));
    drop(bench.archive);
}
