//! The thread that appends verdicts to their files. A slow disk or a reader that went to sleep stops
//! this thread and no other: its queue fills, and verdicts that do not fit are counted and lost.

use std::io;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::Record;
use crate::telemetry::{LineEvent, Output, OutputFault};

/// Verdicts that may wait for the disk: 20 s of a line with 50 frames a second. Under 200 KB.
const QUEUE: usize = 1024;

/// The near end of the verdict writer's queue. When the last one is dropped, the thread writes what it
/// has and ends.
#[derive(Clone, Debug)]
pub struct VerdictWriter {
    queue: Sender<Record>,
}

impl VerdictWriter {
    pub fn start() -> io::Result<(Self, JoinHandle<()>)> {
        let (queue, records) = bounded(QUEUE);
        let thread =
            std::thread::Builder::new().name("verdicts".to_owned()).spawn(move || write(&records))?;
        Ok((VerdictWriter { queue }, thread))
    }

    /// To the line's outlets and to its file. Never waits.
    pub fn publish(&self, record: Record) {
        for outlet in &record.rules.outlets {
            outlet.submit(&record);
        }
        if record.rules.verdicts.is_some() {
            self.submit(record);
        }
    }

    /// Never waits.
    pub fn submit(&self, record: Record) {
        let lost = match self.queue.try_send(record) {
            Ok(()) => return,
            Err(TrySendError::Full(record) | TrySendError::Disconnected(record)) => record,
        };
        lost.telemetry.emit(LineEvent::OutputFailed {
            output: Output::Verdicts,
            fault: OutputFault::Full,
            detail: &"the disk, or the reader of standard output, is slower than the line",
        });
    }

    pub fn waiting(&self) -> usize {
        self.queue.len()
    }
}

fn write(records: &Receiver<Record>) {
    let mut text = Vec::with_capacity(1024);
    for record in records {
        let Some(file) = &record.rules.verdicts else { continue };
        text.clear();
        let written = record.write_json(&mut text).map_err(io::Error::from).and_then(|()| file.write(&text));
        if let Err(error) = written {
            record.telemetry.emit(LineEvent::OutputFailed {
                output: Output::Verdicts,
                fault: OutputFault::Write,
                detail: &error,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{HeatmapsOf, OutputsConfig, Sink};
    use crate::outputs::testing;
    use std::path::Path;

    fn to(path: &Path) -> OutputsConfig {
        OutputsConfig {
            verdicts: Sink::File(path.to_owned()),
            heatmaps: None,
            heatmaps_of: HeatmapsOf::Bad,
            heatmaps_keep: 1,
        }
    }

    #[test]
    fn verdicts_are_appended_in_order_and_all_written_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/v.jsonl");
        let (writer, thread) = VerdictWriter::start().unwrap();
        for sequence in 0..100 {
            writer.submit(Record { sequence, ..testing::record_to(&to(&path)) });
        }
        drop(writer);
        thread.join().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let sequences: Vec<u64> = text
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["sequence"].as_u64().unwrap()
            })
            .collect();
        assert_eq!(sequences, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_disk_is_counted_and_stops_nobody() {
        let (writer, thread) = VerdictWriter::start().unwrap();
        let record = testing::record_to(&to(Path::new("/dev/full")));
        for _ in 0..3 {
            writer.submit(record.clone());
        }
        drop(writer);
        thread.join().unwrap();
        let failed = record.telemetry.metrics.output_failed(Output::Verdicts, OutputFault::Write);
        assert_eq!(failed.get(), 3);
    }

    #[test]
    fn a_queue_that_nobody_empties_fills_and_counts() {
        let (queue, _records) = bounded(2);
        let writer = VerdictWriter { queue };
        let record = testing::record();
        for _ in 0..5 {
            writer.submit(record.clone());
        }
        assert_eq!(record.telemetry.metrics.output_failed(Output::Verdicts, OutputFault::Full).get(), 3);
    }
}
