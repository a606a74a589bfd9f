//! Between the verdict thread and the outputs: hands each verdict to the archive first, and passes it on when it
//! is in there, or when `wait_ms` is over. Nobody waits for the disk longer than that; while the archive is
//! behind, nobody waits at all.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::retention::Limits;
use super::writer::{Message, Progress, Writer};
use super::{Entry, Store, StoreError, images};
use crate::config::{ArchiveConfig, HeatmapsOf};
use crate::imaging::Heatmap;
use crate::model::Verdict;
use crate::outputs::{Pixels, Record, VerdictWriter};
use crate::telemetry::{Event, LineEvent, Output, OutputFault, Telemetry};

/// Verdicts on their way to the archive.
const QUEUE: usize = 1024;
/// Verdicts that go into the archive together.
const BATCH: usize = 256;
/// Pictures on their way. Each holds a slot of its camera until its turn.
const IMAGES: usize = 4;
/// Heatmaps that its pictures may hold at once.
pub const MAPS: usize = IMAGES + 1;

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the {name} thread cannot be started: {source}")]
    Thread { name: &'static str, source: std::io::Error },
}

/// What a reload may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub images: HeatmapsOf,
    /// One in so many good parts; 0: none.
    pub good_sample: u64,
    pub wait: Duration,
    pub keep: Duration,
    pub keep_bytes: u64,
}

impl Terms {
    pub fn of(config: &ArchiveConfig) -> Self {
        let ArchiveConfig { images, good_sample, wait, keep, keep_bytes, .. } = *config;
        Terms { images, good_sample, wait, keep, keep_bytes }
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { age: self.keep, bytes: self.keep_bytes }
    }

    /// Whether a judged part's picture is kept.
    pub fn wants_image(&self, verdict: Verdict, sequence: u64) -> bool {
        match verdict {
            Verdict::Bad | Verdict::Unjudged => true,
            Verdict::Unsure => self.images != HeatmapsOf::Bad,
            Verdict::Good => {
                self.images == HeatmapsOf::All
                    || self.good_sample > 0 && sequence.is_multiple_of(self.good_sample)
            }
            Verdict::Late => false,
        }
    }
}

pub(super) struct Shared {
    terms: Mutex<Terms>,
    pub progress: Progress,
}

impl Shared {
    pub fn new(terms: Terms) -> Self {
        Shared { terms: Mutex::new(terms), progress: Progress::default() }
    }

    pub fn terms(&self) -> MutexGuard<'_, Terms> {
        self.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sets terms while the archive runs.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    pub fn set(&self, terms: Terms) {
        *self.0.terms() = terms;
    }
}

/// The verdict thread's end. When it is dropped, the threads write what they have and end.
pub struct Archive<P> {
    shared: Arc<Shared>,
    verdicts: Sender<Entry>,
    images: Sender<images::Job<P>>,
}

impl<P: Pixels> Archive<P> {
    /// Opens the archive and starts its threads. Verdicts go on to `outputs`, maps come back over `spare`.
    pub fn start(
        config: &ArchiveConfig,
        outputs: VerdictWriter,
        spare: Sender<Heatmap>,
        telemetry: &Telemetry,
    ) -> Result<(Self, Vec<JoinHandle<()>>), ArchiveError> {
        let (store, aside) = Store::open(&config.folder, config.power_safe)?;
        if let Some(to) = aside {
            let error = "the file was damaged";
            telemetry.emit(Event::ArchiveSetAside { to: &to, error: &error });
        }
        telemetry.emit(Event::ArchiveOpened { folder: &config.folder });
        let shared = Arc::new(Shared::new(Terms::of(config)));
        let (verdicts, entries) = bounded(QUEUE);
        let (images, jobs) = bounded(IMAGES);
        let (rows, messages) = bounded(QUEUE);
        let (folder, power_safe): (PathBuf, bool) = (config.folder.clone(), config.power_safe);
        let writer = Writer::new(store, Arc::clone(&shared), telemetry.clone());
        let relay = Relay { rows: rows.clone(), shared: Arc::clone(&shared), outputs, batch: 0 };
        let threads = vec![
            spawn("archive relay", move || relay.run(&entries))?,
            spawn("archive images", move || images::run(&folder, power_safe, &jobs, &rows, &spare))?,
            spawn("archive", move || writer.run(&messages))?,
        ];
        Ok((Archive { shared, verdicts, images }, threads))
    }

    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// Whether the picture of a judged part is kept.
    pub fn wants_image(&self, record: &Record) -> bool {
        self.shared.terms().wants_image(record.verdict, record.sequence)
    }

    /// Never waits. False if the picture has to be left out; that is counted. The map then comes back in the second.
    pub fn submit_image(
        &self,
        record: Record,
        picture: Arc<P>,
        map: Option<Heatmap>,
    ) -> (bool, Option<Heatmap>) {
        let job = match self.images.try_send(images::Job { record, picture, map }) {
            Ok(()) => return (true, None),
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => job,
        };
        job.record.telemetry.emit(LineEvent::OutputFailed {
            output: Output::Images,
            fault: OutputFault::Full,
            detail: &"pictures come faster than the archive can write them",
        });
        (false, job.map)
    }

    /// Never waits. Gives the verdict back if it does not fit; that is counted. It has to go out without.
    #[expect(clippy::result_large_err, reason = "a box would be allocated for each part")]
    pub fn submit(&self, record: Record, image: bool) -> Result<(), Record> {
        let entry = match self.verdicts.try_send(Entry { record, image }) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(entry) | TrySendError::Disconnected(entry)) => entry,
        };
        lost_full(&entry.record);
        Err(entry.record)
    }
}

fn spawn(name: &'static str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, ArchiveError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    thread.map_err(|source| ArchiveError::Thread { name, source })
}

fn lost_full(record: &Record) {
    record.telemetry.emit(LineEvent::OutputFailed {
        output: Output::Archive,
        fault: OutputFault::Full,
        detail: &"verdicts come faster than the archive can take them",
    });
}

struct Relay {
    rows: Sender<Message>,
    shared: Arc<Shared>,
    outputs: VerdictWriter,
    /// The number of the last batch.
    batch: u64,
}

impl Relay {
    fn run(mut self, entries: &Receiver<Entry>) {
        while let Ok(first) = entries.recv() {
            let more = std::iter::from_fn(|| entries.try_recv().ok()).take(BATCH - 1);
            let batch: Vec<Entry> = std::iter::once(first).chain(more).collect();
            self.pass_on(Arc::new(batch));
        }
    }

    fn pass_on(&mut self, entries: Arc<Vec<Entry>>) {
        let message = Message::Rows(self.batch + 1, Arc::clone(&entries));
        if self.rows.try_send(message).is_err() {
            entries.iter().for_each(|entry| lost_full(&entry.record));
        } else {
            self.batch += 1;
            let behind = self.shared.progress.get() + 1 < self.batch;
            let limit = if behind { Duration::ZERO } else { self.shared.terms().wait };
            if !self.shared.progress.wait(self.batch, limit) {
                for entry in entries.iter() {
                    entry.record.telemetry.emit(LineEvent::OutputFailed {
                        output: Output::Archive,
                        fault: OutputFault::Slow,
                        detail: &"a verdict went out before it was in the archive, which was slower than wait_ms or cannot be written",
                    });
                }
            }
        }
        for entry in entries.iter() {
            self.outputs.publish(entry.record.clone());
        }
    }
}
