//! The desk alone, with a clock that the tests turn.

use super::*;
use crate::line::testing::{FakePicture, Random};

const MS: Duration = Duration::from_millis(1);

fn terms(queue: usize, policy: DropPolicy, deadline_ms: u32) -> Terms {
    Terms { queue, policy, deadline: (deadline_ms > 0).then_some(MS * deadline_ms), triggered: None }
}

fn late(desk: &mut Desk<FakePicture>, now: Instant) -> Vec<(usize, u64)> {
    let mut found = Vec::new();
    desk.expire(now, |id, _| found.push((id.line, id.sequence)));
    found
}

#[test]
fn a_full_queue_drops_by_policy() {
    let start = Instant::now();
    for (policy, gone, first) in [(DropPolicy::Oldest, 0, 1), (DropPolicy::Newest, 2, 0)] {
        let mut desk = Desk::new([terms(2, policy, 0)]);
        let pictures = (0..3).map(|n| FakePicture::new(n, start + MS * n as u32));
        let dropped: Vec<u64> = pictures.filter_map(|p| desk.arrive(0, p)).map(|p| p.sequence()).collect();
        assert_eq!(dropped, [gone], "{policy:?}");
        assert_eq!(desk.next_frame().map(|(_, p)| p.sequence()), Some(first), "{policy:?}");
        assert_eq!(desk.counts(0).queue_full, 1);
        assert!(desk.counts(0).balances());
    }
}

#[test]
fn a_blocking_line_accepts_only_what_fits() {
    let mut desk = Desk::new([terms(1, DropPolicy::Block, 0), terms(1, DropPolicy::Oldest, 0)]);
    assert!(desk.accepts(0));
    desk.arrive(0, FakePicture::new(0, Instant::now()));
    desk.arrive(1, FakePicture::new(0, Instant::now()));
    assert!(!desk.accepts(0), "the camera has to wait");
    assert!(desk.accepts(1), "a line that drops takes all");
    desk.next_frame();
    assert!(desk.accepts(0));
    assert!(!desk.accepts(7), "there is no such line");
}

#[test]
fn the_nearest_deadline_is_judged_first_and_lines_without_one_last() {
    let start = Instant::now();
    let mut desk = Desk::new([
        terms(2, DropPolicy::Oldest, 0),
        terms(2, DropPolicy::Oldest, 500),
        terms(2, DropPolicy::Oldest, 50),
    ]);
    desk.arrive(0, FakePicture::new(0, start));
    desk.arrive(1, FakePicture::new(0, start));
    desk.arrive(2, FakePicture::new(0, start + MS * 10));
    let mut order = Vec::new();
    while let Some((line, _)) = desk.next_frame() {
        order.push(line);
        assert!(desk.next_frame().is_none(), "one at a time");
        let id = desk.returned().unwrap();
        desk.settle(id, Verdict::Good);
    }
    assert_eq!(order, [2, 1, 0]);
}

#[test]
fn frames_of_lines_that_share_a_judge_go_out_together_the_most_urgent_first_and_lines_in_turn() {
    let start = Instant::now();
    let mut desk = Desk::new([500, 100, 300, 50].map(|deadline| terms(4, DropPolicy::Oldest, deadline)));
    let shared = Some(Company { key: 1, most: 4 });
    for line in [0, 1, 2] {
        desk.join(line, shared);
    }
    // Three of line 0, one of line 2 and one of a line with a judge of its own.
    for (line, n) in [(0, 0), (0, 1), (0, 2), (2, 0), (3, 0)] {
        desk.arrive(line, FakePicture::new(n, start));
    }
    let together = |desk: &mut Desk<FakePicture>| {
        let mut out: Vec<(usize, u64)> =
            desk.next_frame().map(|(line, p)| (line, p.sequence())).into_iter().collect();
        while let Some((line, p)) = desk.next_beside() {
            out.push((line, p.sequence()));
        }
        assert!(desk.next_frame().is_none(), "while others are judged");
        for _ in &out {
            let id = desk.returned().unwrap();
            desk.settle(id, Verdict::Good);
        }
        assert!(desk.next_beside().is_none(), "nothing is judged that it could go beside");
        out
    };
    assert_eq!(together(&mut desk), [(3, 0)]);
    // Line 2 is the most urgent, then each line has its turn; line 1 has nothing and nobody waits for it.
    assert_eq!(together(&mut desk), [(2, 0), (0, 0), (0, 1), (0, 2)]);
    for line in [0, 1, 2] {
        desk.arrive(line, FakePicture::new(9, start));
        desk.arrive(line, FakePicture::new(10, start));
    }
    assert_eq!(together(&mut desk), [(1, 9), (2, 9), (0, 9), (1, 10)]);
    assert!((0..4).all(|line| desk.counts(line).balances()));
}

#[test]
fn each_of_the_frames_that_are_judged_together_is_late_by_itself() {
    let start = Instant::now();
    let mut desk = Desk::new([terms(4, DropPolicy::Oldest, 100), terms(4, DropPolicy::Oldest, 40)]);
    for line in [0, 1] {
        desk.join(line, Some(Company { key: 1, most: 2 }));
        desk.arrive(line, FakePicture::new(5, start));
    }
    assert_eq!(desk.next_frame().map(|(line, _)| line), Some(1));
    assert_eq!(desk.next_beside().map(|(line, _)| line), Some(0));
    assert_eq!(desk.next_deadline(), Some(start + MS * 40));
    assert_eq!(late(&mut desk, start + MS * 41), [(1, 5)]);
    assert_eq!(desk.next_deadline(), Some(start + MS * 100));
    assert_eq!(desk.returned(), None, "it has its verdict");
    let id = desk.returned().unwrap();
    desk.settle(id, Verdict::Bad);
    assert_eq!((id.line, desk.is_idle()), (0, true));
    assert!((0..2).all(|line| desk.counts(line).balances() && desk.counts(line).in_flight == 0));
}

#[test]
fn a_frame_that_waits_past_its_deadline_is_late_at_the_deadline_and_not_before() {
    let start = Instant::now();
    let mut desk = Desk::new([terms(4, DropPolicy::Oldest, 100)]);
    desk.arrive(0, FakePicture::new(7, start));
    desk.arrive(0, FakePicture::new(8, start + MS * 30));
    assert_eq!(desk.next_deadline(), Some(start + MS * 100));
    assert_eq!(late(&mut desk, start + MS * 99), []);
    assert_eq!(late(&mut desk, start + MS * 100), [(0, 7)]);
    assert_eq!(desk.next_deadline(), Some(start + MS * 130));
    assert_eq!(desk.next_frame().map(|(_, p)| p.sequence()), Some(8), "the late one is not judged");
}

#[test]
fn a_judgement_that_comes_after_late_is_discarded() {
    let start = Instant::now();
    let mut desk = Desk::new([terms(4, DropPolicy::Oldest, 100)]);
    desk.arrive(0, FakePicture::new(7, start));
    desk.next_frame();
    assert_eq!(late(&mut desk, start + MS * 100), [(0, 7)]);
    assert_eq!(late(&mut desk, start + MS * 101), [], "once");
    assert_eq!(desk.next_deadline(), None);
    assert_eq!(desk.returned(), None);
    assert_eq!(desk.counts(0).verdicts, [0, 0, 0, 1, 0]);
    assert!(desk.counts(0).balances());
}

#[test]
fn a_damaged_frame_is_unjudged_at_once_and_takes_nobodys_place() {
    let mut desk = Desk::new([terms(1, DropPolicy::Oldest, 100)]);
    desk.arrive(0, FakePicture::new(0, Instant::now()));
    let id = desk.arrive_damaged(0, &FakePicture::new(1, Instant::now())).unwrap();
    assert_eq!((id.line, id.sequence), (0, 1));
    let counts = desk.counts(0);
    assert_eq!((counts.received, counts.verdicts, counts.in_flight), (2, [0, 0, 0, 0, 1], 1));
    assert!(counts.balances());
    assert_eq!(desk.next_frame().map(|(_, p)| p.sequence()), Some(0));
}

#[test]
fn clearing_counts_what_waited_and_what_was_judged() {
    let mut desk = Desk::new([terms(4, DropPolicy::Oldest, 100)]);
    for n in 0..3 {
        desk.arrive(0, FakePicture::new(n, Instant::now()));
    }
    desk.next_frame();
    assert_eq!(desk.clear(), 3);
    assert_eq!(desk.returned(), None, "a judgement after the end has no one to tell");
    assert_eq!(desk.counts(0).shutdown, 3);
    assert!(desk.counts(0).balances() && desk.is_idle());
}

/// Any order of events, with judgements slow and fast: the books balance after every step, no frame
/// has two ends, and no frame is late before its time or much after it.
#[test]
fn the_books_balance_after_every_step_of_any_history() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let mut now = Instant::now();
        let policies = [DropPolicy::Oldest, DropPolicy::Newest, DropPolicy::Block];
        let terms: Vec<Terms> = (0..1 + random.below(3))
            .map(|_| terms(1 + random.below(4), policies[random.below(3)], random.below(2) as u32 * 20))
            .collect();
        let mut desk = Desk::new(terms.clone());
        for line in 0..terms.len() {
            let shared = random.below(3) > 0;
            desk.join(line, shared.then_some(Company { key: 1, most: 3 }));
        }
        let mut sequence = 0;
        let mut ends = std::collections::BTreeMap::new();
        let mut end = |line: usize, sequence: u64, how: &'static str| {
            let before = ends.insert((line, sequence), how);
            assert_eq!(before, None, "seed {seed}: frame {sequence} has a second end, {how}");
        };
        for _ in 0..300 {
            match random.below(6) {
                5 => {
                    let id = desk.arrive_damaged(0, &FakePicture::new(sequence, now)).unwrap();
                    end(id.line, id.sequence, "unjudged");
                    sequence += 1;
                }
                0 | 1 => {
                    let line = random.below(terms.len());
                    if desk.accepts(line) {
                        if let Some(gone) = desk.arrive(line, FakePicture::new(sequence, now)) {
                            end(line, gone.sequence(), "dropped");
                        }
                        sequence += 1;
                    }
                }
                2 => {
                    if desk.next_frame().is_some() {
                        while desk.next_beside().is_some() {}
                    }
                }
                3 => {
                    while desk.is_judging() {
                        if let Some(id) = desk.returned() {
                            desk.settle(id, Verdict::Good);
                            end(id.line, id.sequence, "judged");
                        }
                    }
                }
                _ => {
                    now += MS * random.below(15) as u32;
                    desk.expire(now, |id, _| {
                        let age = now - id.captured_at;
                        // Time advances by less than 15 ms between two calls.
                        assert!(age >= MS * 20 && age < MS * 35, "seed {seed}: late at {age:?}");
                        end(id.line, id.sequence, "late");
                    });
                }
            }
            for (line, terms) in terms.iter().enumerate() {
                assert!(desk.counts(line).balances(), "seed {seed}: {:?}", desk.counts(line));
                assert!(desk.waiting(line) <= terms.queue, "seed {seed}");
            }
        }
        desk.clear();
        let settled: u64 = (0..terms.len()).map(|line| desk.counts(line).settled()).sum();
        assert_eq!(settled, sequence, "seed {seed}: every frame has its end");
    }
}

fn triggered(queue: usize, within_ms: u32) -> Terms {
    Terms { triggered: Some(MS * within_ms), ..terms(queue, DropPolicy::Oldest, 100) }
}

#[test]
fn the_next_frame_after_a_trigger_is_the_part_and_all_others_are_nobodys() {
    let start = Instant::now();
    let mut desk = Desk::new([triggered(4, 200)]);
    assert!(desk.arrive(0, FakePicture::new(0, start)).is_some(), "before any trigger");
    desk.arm(Trigger::new(0, "one", start + MS * 10));
    desk.arm(Trigger::new(0, "two", start + MS * 25));
    assert!(!desk.is_idle(), "a part has yet to get its frame");
    assert!(desk.arrive(0, FakePicture::new(1, start + MS * 9)).is_some(), "captured before the trigger");
    assert!(desk.arrive(0, FakePicture::new(2, start + MS * 20)).is_none());
    let damaged = desk.arrive_damaged(0, &FakePicture::new(3, start + MS * 30)).unwrap();
    assert_eq!((damaged.sequence, damaged.part.unwrap().as_str()), (3, "two"));
    assert_eq!(desk.arrive_damaged(0, &FakePicture::new(4, start + MS * 31)), None);
    desk.next_frame();
    let id = desk.returned().unwrap();
    assert_eq!((id.sequence, id.part.unwrap().as_str()), (2, "one"));
    desk.settle(id, Verdict::Good);
    let counts = desk.counts(0);
    assert_eq!((counts.received, counts.not_triggered, counts.verdicts), (5, 3, [1, 0, 0, 0, 1]));
    assert!(counts.balances() && desk.is_idle());
}

#[test]
fn a_trigger_without_a_frame_is_late_with_a_number_of_its_own() {
    let start = Instant::now();
    let mut desk = Desk::new([triggered(4, 200)]);
    let late = |desk: &mut Desk<FakePicture>, now| {
        let mut found = Vec::new();
        desk.expire(now, |id, why| found.push((id.sequence, id.part.unwrap().to_string(), why)));
        found
    };
    desk.arrive(0, FakePicture::new(0, start));
    for (name, at) in [("lost", 10), ("found", 150)] {
        desk.arm(Trigger::new(0, name, start + MS * at));
    }
    assert_eq!(desk.next_deadline(), Some(start + MS * 210));
    assert_eq!(late(&mut desk, start + MS * 209), []);
    assert_eq!(late(&mut desk, start + MS * 210), [(1, "lost".to_owned(), Reason::NoFrame)]);
    // The camera's frame number 1 comes after it, so it is number 2.
    desk.arrive(0, FakePicture::new(1, start + MS * 220));
    assert_eq!(late(&mut desk, start + MS * 320), [(2, "found".to_owned(), Reason::Deadline)]);
    let counts = desk.counts(0);
    assert_eq!((counts.missed, counts.verdicts[Verdict::Late as usize], counts.received), (1, 1, 2));
    assert!(counts.balances() && desk.is_idle());
}

#[test]
fn triggers_that_are_open_when_software_no_longer_triggers_are_late_at_once() {
    let start = Instant::now();
    let mut desk = Desk::new([triggered(4, 60_000)]);
    desk.arm(Trigger::new(0, "left", start));
    desk.renew(0, terms(4, DropPolicy::Oldest, 100));
    assert_eq!(late(&mut desk, start), [(0, 0)]);
    assert!(desk.arrive(0, FakePicture::new(0, start)).is_none(), "every frame is a part again");
    desk.arm(Trigger::new(0, "more", start));
    desk.clear();
    assert_eq!(desk.counts(0).missed, 2);
}

/// Frames of each line at its rate, one judged at a time, for 20 s. What became of each line's frames.
fn overload(lines: &[(u32, Terms)], judge: Duration) -> Vec<Counts> {
    let start = Instant::now();
    let mut desk = Desk::new(lines.iter().map(|(_, terms)| *terms));
    let (mut sequence, mut busy_until) = (0, start);
    for ms in 0..20_000 {
        let now = start + MS * ms;
        for (line, (period_ms, _)) in lines.iter().enumerate() {
            if ms % period_ms == 0 {
                desk.arrive(line, FakePicture::new(sequence, now));
                sequence += 1;
            }
        }
        desk.expire(now, |_, _| {});
        if now >= busy_until {
            if let Some(id) = desk.returned() {
                desk.settle(id, Verdict::Good);
            }
            if desk.next_frame().is_some() {
                busy_until = now + judge;
            }
        }
    }
    (0..lines.len()).map(|line| desk.counts(line)).collect()
}

#[test]
fn under_overload_a_fast_line_with_a_short_deadline_does_not_starve_slow_ones() {
    // 100, 5 and 2 frames a second where 50 can be judged.
    let oldest = DropPolicy::Oldest;
    let lines = [(10, terms(2, oldest, 50)), (200, terms(2, oldest, 500)), (500, terms(2, oldest, 0))];
    let counts = overload(&lines, MS * 20);
    assert_eq!(counts[1].verdicts[0] + counts[1].in_flight, 100, "{:?}", counts[1]);
    assert_eq!(counts[2].verdicts[0] + counts[2].in_flight, 40, "{:?}", counts[2]);
    // What they leave over: 50 - 7 a second.
    assert!(counts[0].verdicts[0] >= 20 * 42, "{:?}", counts[0]);
    assert!(counts.iter().all(Counts::balances));
}

#[test]
fn lines_that_all_ask_for_too_much_get_equal_shares() {
    let lines = [(10, 50), (15, 300), (30, 0), (7, 100)]
        .map(|(period, deadline)| (period, terms(2, DropPolicy::Oldest, deadline)));
    let judged: Vec<u64> = overload(&lines, MS * 20).iter().map(|counts| counts.verdicts[0]).collect();
    // 50 a second for 20 s, by four.
    assert!(judged.iter().all(|n| (245..=255).contains(n)), "{judged:?}");
}
