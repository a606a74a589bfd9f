//! What all outputs over the network share: the queue from the verdict thread to the output's own thread,
//! and the accounts: a verdict that was submitted is sent, lost for a reason, or waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::{Notify, watch};

use super::{Outlet, Record};
use crate::config::OfVerdicts;
use crate::model::Verdict;
use crate::telemetry::{Event, Loss, OutletKind, OutletMeter, Telemetry};

/// How long an output that is ended may take to send what it has.
pub const END_LIMIT: Duration = Duration::from_secs(2);

/// A verdict in a queue.
#[derive(Debug)]
pub(super) struct Item {
    pub record: Record,
    pub ticket: Ticket,
}

/// A verdict's place in the accounts. One that is dropped, by whatever way, counts as lost.
#[derive(Debug)]
pub(super) struct Ticket {
    meter: Arc<OutletMeter>,
    since: Instant,
    settled: bool,
}

impl Ticket {
    fn new(meter: &Arc<OutletMeter>) -> Self {
        meter.submitted();
        Ticket { meter: Arc::clone(meter), since: Instant::now(), settled: false }
    }

    pub fn sent(mut self) {
        self.settled = true;
        self.meter.sent(self.since.elapsed());
    }

    pub fn lost(mut self, loss: Loss, detail: &dyn std::fmt::Display) {
        self.settled = true;
        self.meter.lost(loss, detail);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.settled {
            self.meter.lost(Loss::Shutdown, &"the output was ended");
        }
    }
}

/// Who gives way when the queue is full.
#[derive(Clone, Copy, Debug)]
pub(super) enum Overflow {
    Oldest,
    Newest,
}

#[derive(Debug)]
struct Shared {
    wake: Notify,
    closed: watch::Sender<bool>,
    /// The thread has looked into the queue for the last time.
    ended: AtomicBool,
}

/// The verdict thread's end of the queue.
#[derive(Clone, Debug)]
pub(super) struct Near {
    queue: Sender<Item>,
    oldest: Receiver<Item>,
    shared: Arc<Shared>,
    overflow: Overflow,
}

/// The output thread's end.
#[derive(Debug)]
pub(super) struct Far {
    queue: Receiver<Item>,
    shared: Arc<Shared>,
    closed: watch::Receiver<bool>,
}

pub(super) fn queue(size: usize, overflow: Overflow) -> (Near, Far) {
    let (sender, receiver) = bounded(size);
    let (closed, closing) = watch::channel(false);
    let shared = Arc::new(Shared { wake: Notify::new(), closed, ended: AtomicBool::new(false) });
    let near = Near { queue: sender, oldest: receiver.clone(), shared: Arc::clone(&shared), overflow };
    (near, Far { queue: receiver, shared, closed: closing })
}

impl Near {
    /// Never waits.
    fn submit(&self, record: &Record, meter: &Arc<OutletMeter>) {
        let mut item = Item { record: record.clone(), ticket: Ticket::new(meter) };
        while let Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) = self.queue.try_send(item)
        {
            match self.overflow {
                Overflow::Newest => {
                    return back.ticket.lost(Loss::Full, &"the other side is slower than the line");
                }
                Overflow::Oldest => {
                    if let Ok(old) = self.oldest.try_recv() {
                        old.ticket.lost(Loss::Superseded, &"the other side is slower than the line");
                    }
                    item = back;
                }
            }
        }
        self.shared.wake.notify_one();
        if self.shared.ended.load(SeqCst) {
            // Records hold the rules that hold this queue: left in it, they would keep each other for ever.
            while self.oldest.try_recv().is_ok() {}
        }
    }

    /// The output sends what it has, within [`END_LIMIT`], and ends.
    pub fn close(&self) {
        self.shared.closed.send_replace(true);
    }
}

impl Far {
    /// The next verdict, or `None` if the output is to end and there is none.
    pub async fn next(&mut self) -> Option<Item> {
        loop {
            let closed = *self.closed.borrow_and_update();
            if let Ok(item) = self.queue.try_recv() {
                return Some(item);
            }
            if closed {
                return None;
            }
            tokio::select! {
                () = self.shared.wake.notified() => {}
                _ = self.closed.changed() => {}
            }
        }
    }

    pub fn try_next(&self) -> Option<Item> {
        self.queue.try_recv().ok()
    }

    pub fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Comes when the output is to end.
    pub fn closing(&self) -> impl Future<Output = ()> + 'static {
        let mut closed = self.closed.clone();
        async move {
            // An error means that nobody could close it any more.
            let _ = closed.wait_for(|closed| *closed).await;
        }
    }

    /// Comes when the output has had its time to end.
    pub fn overdue(&self) -> impl Future<Output = ()> + 'static {
        let closing = self.closing();
        async {
            closing.await;
            tokio::time::sleep(END_LIMIT).await;
        }
    }

    /// Waits; true if the output is to end meanwhile.
    pub async fn pause(&self, time: Duration) -> bool {
        tokio::time::timeout(time, self.closing()).await.is_ok()
    }

    /// Waits, and loses what comes meanwhile; true if the output is to end.
    pub async fn lose(&mut self, time: Duration, why: &str) -> bool {
        let until = tokio::time::Instant::now() + time;
        loop {
            match tokio::time::timeout_at(until, self.next()).await {
                Err(_) => return false,
                Ok(None) => return true,
                Ok(Some(item)) => item.ticket.lost(Loss::Link, &why),
            }
        }
    }

    /// Loses what is left, and all that still comes.
    pub fn end(&self) {
        self.shared.ended.store(true, SeqCst);
        while self.queue.try_recv().is_ok() {}
    }
}

/// What a line's rules hold.
#[derive(Debug)]
pub(super) struct Door {
    pub near: Near,
    pub meter: Arc<OutletMeter>,
    pub of: OfVerdicts,
}

impl Outlet for Door {
    fn submit(&self, record: &Record) {
        let wanted = match record.verdict {
            Verdict::Good => self.of == OfVerdicts::All,
            Verdict::Unsure => self.of != OfVerdicts::Bad,
            Verdict::Bad | Verdict::Late | Verdict::Unjudged => true,
        };
        if wanted {
            self.near.submit(record, &self.meter);
        }
    }
}

const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A connection must have held for so long before a fault counts as the first one again.
const BACKOFF_RESET: Duration = Duration::from_secs(3);

/// Pauses between attempts: 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, … seconds, as for cameras.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    pub fn new() -> Self {
        Backoff(BACKOFF_FIRST)
    }

    /// The pause after a connection that held for `held`.
    pub fn pause_after(&mut self, held: Duration) -> Duration {
        if held >= BACKOFF_RESET {
            self.0 = BACKOFF_FIRST;
        }
        let pause = self.0;
        self.0 = (pause * 2).min(BACKOFF_MAX);
        pause
    }
}

/// Says once that the other side is down, and once that it is back. Says nothing more once the output is to
/// end: its successor has the word.
pub(super) struct Link {
    closed: watch::Receiver<bool>,
    telemetry: Telemetry,
    /// Empty where one connection serves all lines.
    line: String,
    kind: OutletKind,
    address: String,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    New,
    Up,
    Down(Instant),
}

impl Link {
    pub fn new(far: &Far, telemetry: Telemetry, line: &str, kind: OutletKind, address: String) -> Self {
        telemetry.metrics().output_up.with_label_values(&[line, kind.label()]).set(0);
        let closed = far.closed.clone();
        Link { closed, telemetry, line: line.to_owned(), kind, address, state: State::New }
    }

    /// Where there is no connection to make, nothing is wrong until a verdict is not taken.
    pub fn presume_up(&mut self) {
        self.telemetry.metrics().output_up.with_label_values(&[&self.line, self.kind.label()]).set(1);
    }

    pub fn up(&mut self) {
        let down_for = match self.state {
            _ if *self.closed.borrow() => return,
            State::Up => return,
            State::New => None,
            State::Down(since) => Some(since.elapsed()),
        };
        self.state = State::Up;
        let (line, address) = (self.line.as_str(), self.address.as_str());
        self.telemetry.emit(Event::OutletUp { line, outlet: self.kind, address, down_for });
    }

    pub fn down(&mut self, error: &dyn std::fmt::Display) {
        if matches!(self.state, State::Down(_)) || *self.closed.borrow() {
            return;
        }
        self.state = State::Down(Instant::now());
        let (line, address) = (self.line.as_str(), self.address.as_str());
        self.telemetry.emit(Event::OutletDown { line, outlet: self.kind, address, error });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outputs::testing;
    use crate::telemetry::Metrics;

    fn door(size: usize, overflow: Overflow, of: OfVerdicts) -> (Door, Far) {
        let (near, far) = queue(size, overflow);
        let meter = Arc::new(OutletMeter::new(&Metrics::new(), "cam1", OutletKind::Modbus));
        (Door { near, meter, of }, far)
    }

    fn sequences(far: &Far) -> Vec<u64> {
        let mut found = Vec::new();
        while let Some(item) = far.try_next() {
            found.push(item.record.sequence);
            item.ticket.sent();
        }
        found
    }

    fn submit(door: &Door, n: u64) {
        (0..n).for_each(|sequence| door.submit(&Record { sequence, ..testing::record() }));
    }

    #[test]
    fn a_full_queue_loses_the_newest_or_the_oldest_and_the_accounts_balance() {
        for (overflow, kept, loss) in
            [(Overflow::Newest, [0, 1, 2], Loss::Full), (Overflow::Oldest, [4, 5, 6], Loss::Superseded)]
        {
            let (door, far) = door(3, overflow, OfVerdicts::All);
            submit(&door, 7);
            assert_eq!(door.meter.counts(), (0, 4, 3));
            assert_eq!(door.meter.lost_by(loss), 4);
            assert_eq!(sequences(&far), kept);
            assert_eq!(door.meter.counts(), (3, 4, 0));
        }
    }

    #[test]
    fn verdicts_go_to_those_who_asked_for_them_and_what_was_not_judged_goes_to_all() {
        let all = Verdict::ALL;
        for (of, wanted) in [(OfVerdicts::Bad, 3), (OfVerdicts::UnsureAndBad, 4), (OfVerdicts::All, 5)] {
            let (door, far) = door(8, Overflow::Newest, of);
            all.iter().for_each(|verdict| door.submit(&Record { verdict: *verdict, ..testing::record() }));
            assert_eq!(sequences(&far).len(), wanted, "{of:?}");
        }
    }

    #[test]
    fn a_closed_queue_is_emptied_first_and_what_comes_after_its_end_is_counted_as_lost() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (door, mut far) = door(8, Overflow::Newest, OfVerdicts::All);
        submit(&door, 2);
        door.near.close();
        runtime.block_on(async {
            far.next().await.unwrap().ticket.sent();
            drop(far.next().await.unwrap());
            assert!(far.next().await.is_none());
        });
        far.end();
        submit(&door, 3);
        assert_eq!(door.meter.counts(), (1, 4, 0));
        assert_eq!(door.meter.lost_by(Loss::Shutdown), 4);
    }

    #[test]
    fn whoever_waits_for_a_verdict_is_woken_by_it_and_by_the_end() {
        let (door, mut far) = door(8, Overflow::Newest, OfVerdicts::All);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut n = 0;
            while let Some(item) = runtime.block_on(far.next()) {
                item.ticket.sent();
                n += 1;
            }
            n
        });
        for sent in 1..=200 {
            submit(&door, 1);
            while door.meter.counts().0 < sent {
                std::thread::yield_now();
            }
        }
        door.near.close();
        assert_eq!(thread.join().unwrap(), 200);
    }

    #[test]
    fn pauses_double_to_a_limit_and_begin_anew_after_a_connection_that_held() {
        let mut backoff = Backoff::new();
        let pauses: Vec<u128> = (0..7).map(|_| backoff.pause_after(Duration::ZERO).as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.pause_after(BACKOFF_RESET), BACKOFF_FIRST);
    }
}
