//! The thread that draws heatmaps over frames and writes them as PNG: 20 to 60 ms a picture of two
//! megapixels, so neither the inference thread nor the verdict waits for it. It holds frames, so its
//! queue is short; a picture that does not fit is counted and left out, the verdict is not.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::Record;
use crate::config::LineName;
use crate::imaging::{FrameView, Heatmap, ImagingError, RgbImage, Roi, heatmap};
use crate::telemetry::{LineEvent, Output, OutputFault};

/// Pictures that may wait, all lines together. Each holds a slot of its camera.
const QUEUE: usize = 4;

/// Pixels that can be borrowed once the picture's turn comes.
pub trait Pixels: Send + Sync + 'static {
    fn view(&self) -> FrameView<'_>;
}

/// Pixels that several outputs want.
impl<P: Pixels> Pixels for Arc<P> {
    fn view(&self) -> FrameView<'_> {
        self.as_ref().view()
    }
}

/// One picture to make. `map` covers `roi`.
pub struct Job<P> {
    pub record: Record,
    pub picture: P,
    pub map: Heatmap,
    pub roi: Option<Roi>,
    pub latest: Arc<Latest>,
}

/// The path of a line's newest picture, for the status page.
#[derive(Debug, Default)]
pub struct Latest(Mutex<Option<PathBuf>>);

impl Latest {
    pub fn get(&self) -> Option<PathBuf> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    fn set(&self, path: PathBuf) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(path);
    }
}

/// The near end of the heatmap writer's queue. When the last one is dropped, the thread writes what it
/// has and ends.
pub struct HeatmapWriter<P> {
    queue: Sender<Job<P>>,
}

impl<P: Pixels> HeatmapWriter<P> {
    /// Maps come back over `spare` when they are written, to be used again.
    pub fn start(spare: Sender<Heatmap>) -> io::Result<(Self, JoinHandle<()>)> {
        let (queue, jobs) = bounded(QUEUE);
        let thread = std::thread::Builder::new()
            .name("heatmaps".to_owned())
            .spawn(move || Drawer::default().run(&jobs, &spare))?;
        Ok((HeatmapWriter { queue }, thread))
    }

    /// Never waits. Returns the job if the queue is full; that is counted.
    pub fn submit(&self, job: Job<P>) -> Result<(), Box<Job<P>>> {
        let lost = match self.queue.try_send(job) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => job,
        };
        lost.record.telemetry.emit(LineEvent::OutputFailed {
            output: Output::Heatmaps,
            fault: OutputFault::Full,
            detail: &"pictures come faster than they can be drawn and written",
        });
        Err(Box::new(lost))
    }

    pub fn waiting(&self) -> usize {
        self.queue.len()
    }
}

/// Draws, writes, and forgets the oldest.
struct Drawer {
    image: RgbImage,
    kept: Vec<Kept>,
}

impl Default for Drawer {
    fn default() -> Self {
        Drawer { image: RgbImage::new(0, 0), kept: Vec::new() }
    }
}

impl Drawer {
    fn run<P: Pixels>(&mut self, jobs: &Receiver<Job<P>>, spare: &Sender<Heatmap>) {
        for Job { record, picture, map, roi, latest } in jobs {
            let copied = self.image.copy_from(&picture.view());
            // The camera gets its slot back before the slow part.
            drop(picture);
            match copied.and_then(|()| self.draw(&record, &map, roi)) {
                Ok(Some(path)) => latest.set(path),
                Ok(None) => {}
                Err(error) => record.telemetry.emit(LineEvent::OutputFailed {
                    output: Output::Heatmaps,
                    fault: OutputFault::Write,
                    detail: &error,
                }),
            }
            // If nobody waits for spare maps any more, this one is let go.
            let _ = spare.try_send(map);
        }
    }

    fn draw(
        &mut self,
        record: &Record,
        map: &Heatmap,
        roi: Option<Roi>,
    ) -> Result<Option<PathBuf>, ImagingError> {
        let (Some(path), Some(folder)) = (record.heatmap_path(), &record.rules.heatmaps) else {
            return Ok(None);
        };
        let kept = self.kept(&folder.path, &record.rules.line);
        // Before the new one is written: a full disk is made room on first.
        kept.make_room(folder.keep);
        heatmap::write_png(&path, &heatmap::overlay(&self.image, map, roi))?;
        self.kept(&folder.path, &record.rules.line).paths.push_back(path.clone());
        Ok(Some(path))
    }

    fn kept(&mut self, folder: &Path, line: &LineName) -> &mut Kept {
        let at = self.kept.iter().position(|kept| kept.folder == folder && kept.line == *line);
        let at = at.unwrap_or_else(|| {
            self.kept.push(Kept::find(folder, line));
            self.kept.len() - 1
        });
        &mut self.kept[at]
    }
}

/// A line's pictures in a folder, oldest first.
struct Kept {
    folder: PathBuf,
    line: LineName,
    paths: VecDeque<PathBuf>,
}

impl Kept {
    /// Pictures of earlier runs count as well. Names sort by time.
    fn find(folder: &Path, line: &LineName) -> Self {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.file_name().and_then(|n| n.to_str()).is_some_and(|n| is_ours(n, line.as_str()))
            })
            .collect();
        paths.sort();
        Kept { folder: folder.to_owned(), line: line.clone(), paths: paths.into() }
    }

    /// Removes the oldest until there is room for one more of `keep`.
    fn make_room(&mut self, keep: usize) {
        while self.paths.len() >= keep.max(1) {
            let Some(oldest) = self.paths.pop_front() else { return };
            // Somebody else may have removed it; what cannot be removed is not tried for ever.
            if let Err(error) = std::fs::remove_file(&oldest)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %oldest.display(), %error, "An old heatmap cannot be removed.");
            }
        }
    }
}

/// Whether `name` is one that [`Record::heatmap_path`] gives for `line`: nothing else is ever removed.
fn is_ours(name: &str, line: &str) -> bool {
    let Some(rest) = name.strip_suffix(".png").and_then(|n| n.strip_prefix(line)?.strip_prefix('_')) else {
        return false;
    };
    let mut parts = rest.split('_');
    let time = parts.next().is_some_and(|t| t.len() == 20 && t.ends_with('Z') && t.as_bytes()[8] == b'T');
    let sequence = parts.next().is_some_and(|s| s.len() >= 8 && s.bytes().all(|b| b.is_ascii_digit()));
    let verdict = parts.next().is_some_and(|v| ["good", "unsure", "bad"].contains(&v));
    time && sequence && verdict && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outputs::testing;

    struct Grey([u8; 48]);

    impl Pixels for Grey {
        fn view(&self) -> FrameView<'_> {
            FrameView::rgb(&self.0, 4, 4)
        }
    }

    fn job(record: Record, latest: &Arc<Latest>) -> Job<Grey> {
        let map = Heatmap { width: 2, height: 2, data: vec![0.0, 1.0, 0.0, 0.0] };
        Job { record, picture: Grey([90; 48]), map, roi: None, latest: Arc::clone(latest) }
    }

    #[test]
    fn pictures_are_bounded_in_number_and_the_oldest_of_this_line_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let name = |n: &str| folder.path().join(n);
        for other in ["cam1_notes.png", "cam10_20200101T000000.000Z_00000001_bad.png", "b.txt"] {
            std::fs::write(name(other), "").unwrap();
        }
        std::fs::write(name("cam1_20200101T000000.000Z_00000001_bad.png"), "").unwrap();
        let (spare, returned) = bounded(8);
        let (writer, thread) = HeatmapWriter::start(spare).unwrap();
        let latest = Arc::new(Latest::default());
        for sequence in 0..4 {
            let record = Record { sequence, ..testing::record_with_heatmaps(folder.path(), 2) };
            let mut next = Some(job(record, &latest));
            // The queue holds four, so these all fit, whatever the thread's speed.
            assert!(writer.submit(next.take().unwrap()).is_ok());
        }
        drop(writer);
        thread.join().unwrap();
        let mut left: Vec<String> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "b.txt",
                "cam10_20200101T000000.000Z_00000001_bad.png",
                "cam1_20261124T093045.123Z_00000002_bad.png",
                "cam1_20261124T093045.123Z_00000003_bad.png",
                "cam1_notes.png",
            ]
        );
        assert_eq!(latest.get().unwrap(), name("cam1_20261124T093045.123Z_00000003_bad.png"));
        assert_eq!(returned.len(), 4, "maps come back");
    }

    #[test]
    fn a_folder_that_went_away_is_counted_and_stops_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        let record = testing::record_with_heatmaps(&gone, 2);
        std::fs::remove_dir(&gone).unwrap();
        let (spare, _returned) = bounded(8);
        let (writer, thread) = HeatmapWriter::start(spare).unwrap();
        let latest = Arc::new(Latest::default());
        assert!(writer.submit(job(record.clone(), &latest)).is_ok());
        drop(writer);
        thread.join().unwrap();
        assert_eq!(record.telemetry.metrics.output_failed(Output::Heatmaps, OutputFault::Write).get(), 1);
        assert_eq!(latest.get(), None);
    }

    #[test]
    fn only_names_that_we_give_are_ours() {
        let ours = "cam1_20261124T093045.123Z_00000007_bad.png";
        assert!(is_ours(ours, "cam1"));
        for other in [
            "cam2_20261124T093045.123Z_00000007_bad.png",
            "cam1_20261124T093045.123Z_00000007_late.png",
            "cam1_20261124T093045.123Z_00000007_bad.png.tmp",
            "cam1_20261124T093045.123Z_x_bad.png",
            "cam1.png",
            "cam1_ü.png",
        ] {
            assert!(!is_ours(other, "cam1"), "{other}");
        }
    }
}
