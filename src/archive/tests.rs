//! The archive as its users see it: what was written is found, in time and in order, whatever the disk does.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::Connection;

use super::retention::Limits;
use super::store::Imaged;
use super::*;
use crate::config::LineName;
use crate::imaging::Roi;
use crate::model::Verdict;
use crate::outputs::{Rules, testing};

const DAY: SignedDuration = SignedDuration::from_hours(24);

fn start() -> Timestamp {
    "2026-11-24T09:30:45.123Z".parse().unwrap()
}

/// The `n`-th part of a line, a second after the one before it.
fn entry(line: &str, n: u64, verdict: Verdict) -> Entry {
    let record = testing::record();
    let rules = Rules { line: LineName::new(line), ..rules(&record.rules) };
    let captured_at = start() + SignedDuration::from_secs(n as i64);
    let score = (verdict != Verdict::Late).then_some(n as f32 * 0.1);
    Entry {
        record: Record { rules: Arc::new(rules), sequence: n, captured_at, verdict, score, ..record },
        image: false,
    }
}

/// A copy without outputs.
fn rules(of: &Rules) -> Rules {
    Rules {
        line: of.line.clone(),
        roi: of.roi,
        thresholds: of.thresholds,
        model_hash: of.model_hash.clone(),
        config_hash: of.config_hash.clone(),
        verdicts: None,
        heatmaps: None,
        outlets: Vec::new(),
    }
}

fn open(folder: &Path) -> Store {
    Store::open(folder, false).unwrap().0
}

fn write(store: &mut Store, entries: &[Entry]) {
    assert_eq!(store.write(entries.iter(), &[]).unwrap(), []);
}

/// A picture in the archive, of so many bytes in all.
fn add_image(store: &mut Store, folder: &Path, entry: &Entry, bytes: u64) {
    let Record { rules, captured_at, sequence, .. } = &entry.record;
    let [image, heatmap] = image_paths(folder, rules.line.as_str(), *captured_at, *sequence);
    std::fs::create_dir_all(image.parent().unwrap()).unwrap();
    std::fs::write(image, vec![0; bytes as usize - 1]).unwrap();
    std::fs::write(heatmap, [0]).unwrap();
    assert_eq!(store.write([].iter(), &[Imaged::of(&entry.record, Some(bytes))]).unwrap(), []);
}

fn files(folder: &Path) -> usize {
    walkdir::WalkDir::new(folder.join(IMAGES))
        .into_iter()
        .filter(|e| e.as_ref().unwrap().path().is_file())
        .count()
}

#[test]
fn a_row_holds_all_that_its_verdict_can_be_given_again_by() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let mut bad = entry("cam1", 7, Verdict::Bad);
    let roi = Some(Roi { x: 1, y: 2, width: 30, height: 40 });
    bad.record.rules = Arc::new(Rules { roi, ..rules(&bad.record.rules) });
    bad.record.part_id = Some("A 17".parse().unwrap());
    let mut late = entry("cam1", 8, Verdict::Late);
    late.record.reason = Some(crate::outputs::Reason::Deadline);
    let mut strange = entry("cam1", 9, Verdict::Bad);
    strange.record.score = Some(f32::NAN);
    write(&mut store, &[bad.clone(), late.clone(), strange]);
    // By another connection, while the first is open.
    let reader = Store::read(folder.path()).unwrap();
    let row = reader.find(&PartKey::Number(1)).unwrap().unwrap();
    assert_eq!((row.line.as_str(), row.sequence, row.captured_at), ("cam1", 7, bad.record.captured_at));
    assert_eq!(
        (row.verdict, row.score, row.thresholds),
        (Verdict::Bad, Some(7.0 * 0.1), bad.record.rules.thresholds)
    );
    assert_eq!(row.latency, Duration::from_micros(12_345));
    assert_eq!(
        (row.frame_hash.as_deref(), row.roi, row.image.as_ref()),
        (Some("00000000000000ff"), roi, None)
    );
    assert_eq!((row.model_hash.as_str(), row.config_hash.as_str()), ("m0", "c0"));
    assert_eq!(row.part_id.as_deref(), Some("A 17"));
    let of_part = Filter { part_id: row.part_id.clone(), ..Filter::default() };
    assert_eq!(reader.list(&of_part, 9).unwrap(), std::slice::from_ref(&row));
    let name = row.name();
    assert_eq!(name, "cam1_20261124T093052.123Z_00000007");
    for text in
        [name.clone(), format!("{name}.png"), format!("/maps/{name}_bad.png"), format!("{name}_heatmap.png")]
    {
        assert_eq!(reader.find(&text.parse().unwrap()).unwrap().as_ref(), Some(&row), "{text}");
    }
    let row = reader.find(&PartKey::Number(2)).unwrap().unwrap();
    assert_eq!((row.verdict, row.reason.as_deref(), row.score), (Verdict::Late, Some("deadline"), None));
    assert_eq!(row.roi, None);
    assert_eq!(reader.find(&PartKey::Number(3)).unwrap().unwrap().score, None, "not a number");
    assert_eq!(reader.find(&PartKey::Number(4)).unwrap(), None);
    for text in ["", "cam1", "cam1_x_1", "_20261124T093052.123Z_1", "cam1_20261324T093052.123Z_1", "../x"] {
        assert!(text.parse::<PartKey>().is_err(), "{text}");
    }
}

#[test]
fn pages_hold_every_part_once_newest_first_and_filters_hold() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let verdict = |n: u64| match n % 50 {
        0 => Verdict::Bad,
        1 => Verdict::Late,
        _ => Verdict::Good,
    };
    let entries: Vec<Entry> =
        (0..2000).map(|n| entry(if n % 2 == 0 { "even" } else { "odd" }, n, verdict(n))).collect();
    write(&mut store, &entries);
    let mut filter = Filter::default();
    let mut seen = Vec::new();
    loop {
        let page = store.list(&filter, 300).unwrap();
        let Some(last) = page.last() else { break };
        filter.before = Some((last.captured_at, last.id));
        seen.extend(page.iter().map(|row| row.sequence));
    }
    assert_eq!(seen, (0..2000).rev().collect::<Vec<_>>());
    let count = |filter: &Filter| store.list(filter, 10_000).unwrap().len();
    assert_eq!(count(&Filter { verdicts: vec![Verdict::Bad], ..Filter::default() }), 40);
    assert_eq!(count(&Filter { lines: vec!["odd".into()], ..Filter::default() }), 1000);
    assert_eq!(count(&Filter { lines: vec!["none'; --".into()], ..Filter::default() }), 0);
    let since = Some(start() + SignedDuration::from_secs(1990));
    assert_eq!(count(&Filter { since, ..Filter::default() }), 10);
    assert_eq!(count(&Filter { until: since, verdicts: vec![Verdict::Late], ..Filter::default() }), 40);
    for reviewed in [Some(true), Some(false)] {
        let filter = Filter { reviewed, with_image: true, ..Filter::default() };
        assert_eq!(count(&filter), 0);
    }
    assert_eq!(count(&Filter { part_id: Some("A 17".into()), ..Filter::default() }), 0);
    let scores = store.scores("even", 1000).unwrap();
    // None of the late ones, which are odd anyway.
    assert_eq!(scores.len(), 1000);
    assert_eq!((scores[0].1, scores[999].1), (1998.0 * 0.1, 0.0));
    assert_eq!(store.scores("odd", 5).unwrap().len(), 5);
    assert_eq!(store.scores("nobody", 5).unwrap(), []);
}

#[test]
fn what_a_person_says_of_a_part_is_kept_and_can_be_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let entries: Vec<Entry> =
        (0..4).map(|n| entry("a", n, if n < 3 { Verdict::Bad } else { Verdict::Good })).collect();
    write(&mut store, &entries);
    // Beside the daemon's own connection.
    let page = Store::review(folder.path()).unwrap();
    for (id, review) in
        [(1, Review::Confirm), (2, Review::FalseAlarm), (3, Review::Unsure), (4, Review::Confirm)]
    {
        assert!(page.set_review(id, Some(review), "Ada").unwrap());
    }
    assert!(!page.set_review(99, Some(Review::Confirm), "Ada").unwrap());
    let row = |id| store.find(&PartKey::Number(id)).unwrap().unwrap();
    let known: Vec<_> = (1..=4).map(|id| (row(id).is_known_good(), row(id).is_known_bad())).collect();
    assert_eq!(known, [(false, true), (true, false), (false, false), (true, false)]);
    assert_eq!((row(2).review, row(2).reviewer.as_deref()), (Some(Review::FalseAlarm), Some("Ada")));
    assert!(row(2).reviewed_at.is_some());
    assert_eq!(store.list(&Filter { reviewed: Some(true), ..Filter::default() }, 9).unwrap().len(), 4);
    assert!(page.set_review(2, None, "Ada").unwrap());
    assert_eq!((row(2).review, row(2).reviewed_at, row(2).reviewer), (None, None, None));
    assert_eq!(store.list(&Filter { reviewed: Some(false), ..Filter::default() }, 9).unwrap().len(), 1);
}

#[test]
fn a_damaged_archive_is_moved_aside_with_its_pictures_and_another_begun() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let one = entry("a", 1, Verdict::Bad);
    write(&mut store, std::slice::from_ref(&one));
    add_image(&mut store, folder.path(), &one, 100);
    drop(store);
    std::fs::write(
        folder.path().join(DATABASE),
        b"this is no database, but long enough for a header".repeat(99),
    )
    .unwrap();
    let (store, aside) = Store::open(folder.path(), false).unwrap();
    let aside = aside.unwrap();
    assert!(std::fs::read(&aside).unwrap().starts_with(b"this is no database"));
    assert_eq!(store.list(&Filter::default(), 9).unwrap(), []);
    assert_eq!(files(folder.path()), 0);
    let kept = |name: &str| name.starts_with("images.damaged-");
    assert!(
        std::fs::read_dir(folder.path()).unwrap().any(|e| kept(e.unwrap().file_name().to_str().unwrap()))
    );
    drop(store);
    assert_eq!(Store::open(folder.path(), false).unwrap().1, None, "the new one is whole");
}

#[test]
fn somebody_elses_database_and_a_newer_one_are_refused_and_left_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(DATABASE);
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)")
        .unwrap();
    let before = std::fs::read(&path).unwrap();
    for error in [Store::open(folder.path(), false).err(), Store::read(folder.path()).err()] {
        assert!(matches!(error, Some(StoreError::Foreign { .. })), "{error:?}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(Store::read(folder.path()).err(), Some(StoreError::Missing { .. })));
    open(folder.path()).db.pragma_update(None, "user_version", 99).unwrap();
    let error = Store::open(folder.path(), false).err().unwrap();
    assert!(error.to_string().contains("written by a newer inspectd (its schema is 99"), "{error}");
}

#[test]
fn pictures_that_were_on_their_way_when_the_last_run_ended_arrived_or_did_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let entries: Vec<Entry> = (0..2).map(|n| Entry { image: true, ..entry("a", n, Verdict::Bad) }).collect();
    write(&mut store, &entries);
    let image = |store: &Store, id| store.find(&PartKey::Number(id)).unwrap().unwrap().image;
    assert_eq!((image(&store, 1), image(&store, 2)), (None, None), "not there yet");
    let [path, _] = image_paths(folder.path(), "a", entries[1].record.captured_at, 1);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "picture").unwrap();
    let half = path.with_file_name(".abc.tmp");
    std::fs::write(&half, "half a picture").unwrap();
    drop(store);
    let store = open(folder.path());
    assert_eq!((image(&store, 1), image(&store, 2)), (None, Some(path)));
    assert_eq!(store.image_bytes, 7);
    assert!(!half.exists(), "what was half written is removed");
}

#[test]
fn age_removes_rows_and_pictures_but_not_what_a_person_has_reviewed() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let mut entries: Vec<Entry> = (0..1300).map(|n| entry("a", n, Verdict::Bad)).collect();
    let young = entries.len();
    entries.extend((0..5).map(|n| {
        let mut young = entry("a", 5000 + n, Verdict::Bad);
        young.record.captured_at += DAY * 3;
        young
    }));
    write(&mut store, &entries);
    for n in [0, 1, 700, young] {
        add_image(&mut store, folder.path(), &entries[n], 100);
    }
    store.set_review(2, Some(Review::Confirm), "Ada").unwrap();
    let limits = Limits { age: Duration::from_secs(2 * 24 * 3600), bytes: u64::MAX };
    let now = start() + DAY * 3;
    let mut steps = 0;
    while store.retain(&limits, now).unwrap().more {
        steps += 1;
        assert!(steps < 10, "it comes to an end");
    }
    assert!(steps >= 3, "in steps: {steps}");
    let left: Vec<u64> = store.list(&Filter::default(), 99).unwrap().iter().map(|row| row.sequence).collect();
    assert_eq!(left, [5004, 5003, 5002, 5001, 5000, 1]);
    assert_eq!((store.image_bytes, files(folder.path())), (200, 4));
}

#[test]
fn bytes_remove_the_oldest_pictures_first_reviewed_ones_last_and_rows_after_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let entries: Vec<Entry> = (0..100).map(|n| entry("a", n, Verdict::Bad)).collect();
    write(&mut store, &entries);
    for entry in &entries {
        add_image(&mut store, folder.path(), entry, 1000);
    }
    for id in 1..=10 {
        store.set_review(id, Some(Review::FalseAlarm), "Ada").unwrap();
    }
    let rows_only = store.database_bytes().unwrap();
    let mut retain = |bytes: u64| {
        let limits = Limits { age: Duration::MAX, bytes };
        while store.retain(&limits, Timestamp::now()).unwrap().more {}
        let with_image = store.list(&Filter { with_image: true, ..Filter::default() }, 999).unwrap();
        (with_image.iter().map(|row| row.sequence).collect::<Vec<_>>(), store.image_bytes)
    };
    // The database itself stays within a page of its size.
    let (left, bytes) = retain(rows_only + 60_000);
    assert!((20_000..=60_000).contains(&bytes), "{bytes}");
    assert_eq!(left.len() as u64 * 1000, bytes);
    assert!(left.contains(&99) && left.contains(&0) && !left.contains(&10), "{left:?}");
    let (left, bytes) = retain(rows_only + 5_000);
    assert_eq!(bytes, 0, "{left:?}");
    assert_eq!(store.list(&Filter::default(), 999).unwrap().len(), 100);
    let limits = Limits { age: Duration::MAX, bytes: 0 };
    while store.retain(&limits, Timestamp::now()).unwrap().more {}
    assert_eq!(store.list(&Filter::default(), 999).unwrap().len(), 10, "the reviewed rows stay");
    assert_eq!(files(folder.path()), 0);
}

mod flow;
