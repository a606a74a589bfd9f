//! The archive's thread: owns the database, writes what the relay hands it, in batches, and tidies up while
//! nobody waits. When the disk takes nothing it keeps what it is given and tries again each second.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use jiff::Timestamp;

use super::Entry;
use super::relay::Shared;
use super::retention::Step;
use super::store::{Imaged, Store, StoreError};
use crate::telemetry::{Event, LineEvent, Output, OutputFault, Telemetry};

/// Rows that wait in memory for a disk that takes none.
const PENDING: usize = 4096;
/// Messages that one transaction takes at most.
const BATCH: usize = 256;
/// Between attempts while the disk takes nothing.
const RETRY: Duration = Duration::from_secs(1);
/// Between looks at the limits.
const RETAIN: Duration = Duration::from_secs(30);
/// Tidied is even while verdicts come without a pause.
const TIDY: Duration = Duration::from_secs(5);
/// News of pictures whose rows have not come yet.
const EARLY: usize = 64;

/// What the archive's thread is told.
pub(super) enum Message {
    /// The batch of this number; they come in order.
    Rows(u64, Arc<Vec<Entry>>),
    Imaged(Imaged),
    /// A picture found no room on the disk.
    NoRoom,
}

/// How far the archive's thread has come.
#[derive(Default)]
pub(super) struct Progress {
    /// The last batch that it is done with, and whether that is written.
    done: Mutex<(u64, bool)>,
    moved: Condvar,
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, (u64, bool)> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, batch: u64, written: bool) {
        *self.lock() = (batch, written);
        self.moved.notify_all();
    }

    pub fn get(&self) -> u64 {
        self.lock().0
    }

    /// Waits until `batch` is written. False if it cannot be, or that takes longer than `limit`.
    pub fn wait(&self, batch: u64, limit: Duration) -> bool {
        let waited = self.moved.wait_timeout_while(self.lock(), limit, |(done, _)| *done < batch);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.0 >= batch && state.1
    }
}

pub(super) struct Writer {
    store: Store,
    shared: Arc<Shared>,
    telemetry: Telemetry,
    pending: VecDeque<Entry>,
    images: Vec<Imaged>,
    /// The last batch that was taken.
    batch: u64,
    failing: Option<Failing>,
    retain_at: Instant,
    room_at: Instant,
    look_at: Instant,
    tidy_by: Instant,
    no_room: bool,
}

struct Failing {
    retry_at: Instant,
    since: Instant,
}

impl Writer {
    pub fn new(store: Store, shared: Arc<Shared>, telemetry: Telemetry) -> Self {
        let now = Instant::now();
        Writer {
            store,
            shared,
            telemetry,
            pending: VecDeque::new(),
            images: Vec::new(),
            batch: 0,
            failing: None,
            retain_at: now,
            room_at: now,
            look_at: now + RETRY,
            tidy_by: now + TIDY,
            no_room: false,
        }
    }

    /// Runs until nobody sends more.
    pub fn run(mut self, messages: &Receiver<Message>) {
        self.telemetry.emit(Event::ArchiveWell { down_for: None });
        self.gauge();
        loop {
            let now = Instant::now();
            let wake = self.retain_at.min(self.look_at);
            match messages.recv_timeout(wake.saturating_duration_since(now)) {
                Ok(message) => {
                    self.take(message);
                    let more = std::iter::from_fn(|| messages.try_recv().ok()).take(BATCH);
                    more.for_each(|message| self.take(message));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let now = Instant::now();
            self.settle(now);
            if messages.is_empty() || now >= self.tidy_by {
                self.tidy_by = now + TIDY;
                self.tidy(now);
            }
        }
        self.flush(Instant::now(), true);
        while let Some(entry) = self.pending.pop_front() {
            lose(&entry, &"the daemon ends and the archive still takes nothing");
        }
        self.shared.progress.set(u64::MAX, false);
    }

    fn settle(&mut self, now: Instant) {
        self.flush(now, false);
        self.shared.progress.set(self.batch, self.failing.is_none());
    }

    /// One turn of [`run`](Writer::run), at a time that a test chooses.
    #[cfg(test)]
    pub fn step(&mut self, rows: Option<(u64, Vec<Entry>)>, now: Instant) {
        if let Some((batch, entries)) = rows {
            self.take(Message::Rows(batch, Arc::new(entries)));
        }
        self.settle(now);
    }

    #[cfg(test)]
    pub fn store(&self) -> &Store {
        &self.store
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Rows(batch, entries) => {
                self.batch = batch;
                self.pending.extend(entries.iter().cloned());
            }
            Message::Imaged(imaged) => self.images.push(imaged),
            Message::NoRoom => self.no_room = true,
        }
        while self.pending.len() > PENDING {
            if let Some(entry) = self.pending.pop_front() {
                lose(&entry, &"the archive cannot be written, and memory keeps no more");
            }
        }
    }

    /// Writes what there is, unless the last attempt failed just now.
    fn flush(&mut self, now: Instant, last: bool) {
        let early = self.failing.as_ref().is_some_and(|failing| now < failing.retry_at);
        if (self.pending.is_empty() && self.images.is_empty() && self.failing.is_none()) || (early && !last) {
            return;
        }
        match self.store.write(self.pending.iter(), &self.images) {
            Ok(mut homeless) => {
                self.pending.clear();
                let excess = homeless.len().saturating_sub(EARLY);
                homeless.drain(..excess);
                self.images = homeless;
                if let Some(Failing { since, .. }) = self.failing.take() {
                    self.telemetry.emit(Event::ArchiveWell { down_for: Some(since.elapsed()) });
                }
            }
            Err(error) => self.failed(&error, now),
        }
    }

    fn failed(&mut self, error: &StoreError, now: Instant) {
        self.no_room |= error.is_full();
        let since = self.failing.as_ref().map_or(now, |failing| failing.since);
        self.failing = Some(Failing { retry_at: now + RETRY, since });
        self.look_at = now + RETRY;
        if error.is_corrupt() {
            match self.store.replace() {
                Ok(aside) => {
                    self.telemetry.emit(Event::ArchiveSetAside { to: &aside, error });
                    self.failing = Some(Failing { retry_at: now, since });
                    self.look_at = now;
                    return;
                }
                Err(error) => return self.telemetry.emit(Event::ArchiveFailed { error: &error }),
            }
        }
        self.telemetry.emit(Event::ArchiveFailed { error });
    }

    /// What can wait until nobody else does.
    fn tidy(&mut self, now: Instant) {
        if let Err(error) = self.store.checkpoint() {
            self.failed(&error, now);
        }
        if now >= self.look_at {
            self.look_at = now + RETRY;
            if !self.store.is_in_place() {
                let gone = "it was moved or removed while it was written to; a new one is begun";
                self.telemetry.emit(Event::ArchiveFailed { error: &gone });
                match self.store.reopen() {
                    Ok(()) => self.telemetry.emit(Event::ArchiveWell { down_for: Some(Duration::ZERO) }),
                    Err(error) => self.failed(&error, now),
                }
            }
        }
        if self.no_room && now >= self.room_at {
            self.no_room = false;
            self.room_at = now + RETRY;
            // What fails here fails again with the next row, and is told then.
            let _ = self.store.make_room();
            self.gauge();
        }
        if now >= self.retain_at {
            self.retain_at = now + RETAIN;
            let limits = self.shared.terms().limits();
            match self.store.retain(&limits, Timestamp::now()) {
                Ok(Step { more: true, .. }) => self.retain_at = now,
                Ok(_) => {}
                Err(error) => self.failed(&error, now),
            }
            self.gauge();
        }
    }

    fn gauge(&self) {
        let bytes = &self.telemetry.metrics().archive_bytes;
        bytes.with_label_values(&["images"]).set(self.store.image_bytes as i64);
        if let Ok(database) = self.store.database_bytes() {
            bytes.with_label_values(&["database"]).set(database as i64);
        }
    }
}

/// Counts a row that never gets into the archive.
pub(super) fn lose(entry: &Entry, detail: &dyn std::fmt::Display) {
    let (output, fault) = (Output::Archive, OutputFault::Write);
    entry.record.telemetry.emit(LineEvent::OutputFailed { output, fault, detail });
}
