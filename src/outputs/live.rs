//! What the page shows as it happens: the last verdicts of each line, and the newest picture, with its heatmap and
//! without, while somebody looks.
//!
//! | constraint | value |
//! |---|---|
//! | verdicts kept | 1000 per line, and as long as the daemon runs |
//! | pictures made | none while nobody looks; else at most 8 a second per line, 1280 pixels wide at most |
//! | who waits | nobody: a picture that comes while one is drawn is not shown, a reader who is slow misses verdicts |

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use serde::Serialize;
use tokio::sync::broadcast;

use super::{PartId, Pixels, Record};
use crate::imaging::{Heatmap, RgbImage, Roi, heatmap};
use crate::model::{Thresholds, Verdict};

/// Verdicts kept per line.
pub const HISTORY: usize = 1000;

/// Maps that pictures hold: one is drawn, one waits.
pub const MAPS: usize = 2;

/// How long after the last question a line counts as looked at.
const INTEREST: Duration = Duration::from_secs(5);

/// Between two pictures of a line.
const PACE: Duration = Duration::from_millis(125);

const LARGEST_WIDTH: usize = 1280;

/// Verdicts that a slow reader may be behind before it misses some.
const BEHIND: usize = 256;

/// A verdict as the page shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    #[serde(serialize_with = "as_text")]
    pub line: Arc<str>,
    pub sequence: u64,
    pub part_id: Option<PartId>,
    /// Milliseconds since 1970.
    pub captured_at: i64,
    pub verdict: Verdict,
    pub score: Option<f32>,
    pub thresholds: Thresholds,
}

fn as_text<S: serde::Serializer>(text: &Arc<str>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(text)
}

/// The newest picture of a line as JPEG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub sequence: u64,
    pub plain: Vec<u8>,
    pub heat: Vec<u8>,
}

/// One line.
#[derive(Debug)]
struct LiveLine {
    name: Arc<str>,
    history: Mutex<VecDeque<Point>>,
    shown: Mutex<Option<Arc<Shown>>>,
    /// When somebody last asked, and when the last picture was begun: milliseconds since `start`, plus 1.
    asked: AtomicU64,
    begun: AtomicU64,
}

/// What is shown of all lines.
#[derive(Debug)]
pub struct Live {
    start: Instant,
    lines: Vec<LiveLine>,
    events: broadcast::Sender<Point>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    pub fn new<'a>(lines: impl IntoIterator<Item = &'a str>, start: Instant) -> Self {
        let line = |name: &str| LiveLine {
            name: name.into(),
            history: Mutex::new(VecDeque::with_capacity(HISTORY)),
            shown: Mutex::default(),
            asked: AtomicU64::new(0),
            begun: AtomicU64::new(0),
        };
        let lines = lines.into_iter().map(line).collect();
        Live { start, lines, events: broadcast::channel(BEHIND).0 }
    }

    fn stamp(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_millis() as u64 + 1
    }

    fn within(&self, stamp: u64, limit: Duration, now: Instant) -> bool {
        stamp > 0 && self.stamp(now).saturating_sub(stamp) < limit.as_millis() as u64
    }

    fn line(&self, name: &str) -> Option<&LiveLine> {
        self.lines.iter().find(|line| *line.name == *name)
    }

    /// Takes a verdict of the line with this number.
    pub fn judged(&self, line: usize, record: &Record) {
        let Some(line) = self.lines.get(line) else { return };
        let point = Point {
            line: Arc::clone(&line.name),
            sequence: record.sequence,
            part_id: record.part_id,
            captured_at: record.captured_at.as_millisecond(),
            verdict: record.verdict,
            score: record.score.filter(|score| score.is_finite()),
            thresholds: record.rules.thresholds,
        };
        let mut history = lock(&line.history);
        if history.len() == HISTORY {
            history.pop_front();
        }
        history.push_back(point.clone());
        drop(history);
        // Nobody listens, mostly.
        let _ = self.events.send(point);
    }

    /// The last verdicts of a line, oldest first, at most `n`.
    pub fn history(&self, line: &str, n: usize) -> Option<Vec<Point>> {
        let history = lock(&self.line(line)?.history);
        let skip = history.len().saturating_sub(n);
        Some(history.iter().skip(skip).cloned().collect())
    }

    /// Verdicts of all lines from now on.
    pub fn listen(&self) -> broadcast::Receiver<Point> {
        self.events.subscribe()
    }

    /// The newest picture of a line, if there is one.
    pub fn picture(&self, line: &str, now: Instant) -> Option<Arc<Shown>> {
        let line = self.line(line)?;
        line.asked.store(self.stamp(now), Relaxed);
        lock(&line.shown).clone()
    }

    /// Whether a picture of this line should be made now.
    pub fn wants_picture(&self, line: usize, now: Instant) -> bool {
        self.lines.get(line).is_some_and(|line| {
            self.within(line.asked.load(Relaxed), INTEREST, now)
                && !self.within(line.begun.load(Relaxed), PACE, now)
        })
    }
}

/// A picture to show. `map` covers `roi`.
pub struct Job<P> {
    pub line: usize,
    pub sequence: u64,
    pub picture: P,
    pub map: Heatmap,
    pub roi: Option<Roi>,
}

/// The near end of the thread that makes pictures to look at. When it is dropped, the thread ends.
pub struct Viewer<P> {
    live: Arc<Live>,
    queue: Sender<Job<P>>,
}

impl<P: Pixels> Viewer<P> {
    /// Maps come back over `spare`.
    pub fn start(live: Arc<Live>, spare: Sender<Heatmap>) -> io::Result<(Self, JoinHandle<()>)> {
        let (queue, jobs) = bounded(1);
        let shown = Arc::clone(&live);
        let thread =
            std::thread::Builder::new().name("live".to_owned()).spawn(move || run(&shown, &jobs, &spare))?;
        Ok((Viewer { live, queue }, thread))
    }

    /// Takes a verdict of the line with this number.
    pub fn judged(&self, line: usize, record: &Record) {
        self.live.judged(line, record);
    }

    /// Whether a picture of this line would be shown.
    pub fn wants(&self, line: usize, now: Instant) -> bool {
        self.queue.is_empty() && self.live.wants_picture(line, now)
    }

    /// Never waits. Gives the map back if there is no room.
    pub fn submit(&self, job: Job<P>, now: Instant) -> Option<Heatmap> {
        if let Some(line) = self.live.lines.get(job.line) {
            line.begun.store(self.live.stamp(now), Relaxed);
        }
        match self.queue.try_send(job) {
            Ok(()) => None,
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => Some(job.map),
        }
    }
}

fn run<P: Pixels>(live: &Live, jobs: &Receiver<Job<P>>, spare: &Sender<Heatmap>) {
    let mut image = RgbImage::new(0, 0);
    for Job { line, sequence, picture, map, roi } in jobs {
        let copied = image.copy_from(&picture.view());
        // The camera gets its slot back before the slow part.
        drop(picture);
        let drawn = copied.map_err(|error| error.to_string()).and_then(|()| draw(&image, &map, roi));
        match (drawn, live.lines.get(line)) {
            (Ok((plain, heat)), Some(line)) => {
                *lock(&line.shown) = Some(Arc::new(Shown { sequence, plain, heat }));
            }
            (Err(error), Some(line)) => {
                tracing::debug!(line = &*line.name, error, "A picture cannot be shown.");
            }
            (_, None) => {}
        }
        // If nobody waits for spare maps any more, this one is let go.
        let _ = spare.try_send(map);
    }
}

/// The picture and the picture under its heatmap, as JPEG.
fn draw(image: &RgbImage, map: &Heatmap, roi: Option<Roi>) -> Result<(Vec<u8>, Vec<u8>), String> {
    let step = image.width.div_ceil(LARGEST_WIDTH).max(1);
    let small = shrink(image, step);
    let roi = roi.map(|roi| Roi {
        x: roi.x / step,
        y: roi.y / step,
        width: (roi.width / step).max(1),
        height: (roi.height / step).max(1),
    });
    Ok((jpeg(&small)?, jpeg(&heatmap::overlay(&small, map, roi))?))
}

/// Means of blocks of `step` by `step` pixels; what is left over at the right and below is cut off.
fn shrink(image: &RgbImage, step: usize) -> RgbImage {
    if step == 1 {
        return image.clone();
    }
    let mut small = RgbImage::new(image.width / step, image.height / step);
    let area = (step * step) as u32;
    for y in 0..small.height {
        for x in 0..small.width {
            for channel in 0..3 {
                let rows = (0..step).map(|dy| ((y * step + dy) * image.width + x * step) * 3 + channel);
                let sum: u32 =
                    rows.flat_map(|at| (0..step).map(move |dx| u32::from(image.data[at + dx * 3]))).sum();
                small.data[(y * small.width + x) * 3 + channel] = ((sum + area / 2) / area) as u8;
            }
        }
    }
    small
}

/// Quality 85, colours at half resolution: what a picture to look at needs.
pub fn jpeg(image: &RgbImage) -> Result<Vec<u8>, String> {
    let (width, height) = (image.width, image.height);
    let format = turbojpeg::PixelFormat::RGB;
    let source = turbojpeg::Image { pixels: image.data.as_slice(), width, pitch: width * 3, height, format };
    let bytes = turbojpeg::compress(source, 85, turbojpeg::Subsamp::Sub2x2).map_err(|e| e.to_string())?;
    Ok(bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::FrameView;
    use crate::outputs::testing;

    struct Grey(Vec<u8>, usize, usize);

    impl Pixels for Grey {
        fn view(&self) -> FrameView<'_> {
            FrameView::rgb(&self.0, self.1, self.2)
        }
    }

    fn job(line: usize, width: usize, height: usize) -> Job<Grey> {
        let map = Heatmap { width: 2, height: 2, data: vec![0.0, 1.0, 0.0, 0.0] };
        Job { line, sequence: 7, picture: Grey(vec![90; width * height * 3], width, height), map, roi: None }
    }

    #[test]
    fn the_history_keeps_the_last_thousand_and_tells_listeners() {
        let live = Live::new(["a", "cam1"], Instant::now());
        let mut listener = live.listen();
        for sequence in 0..1200 {
            live.judged(1, &Record { sequence, score: Some(sequence as f32), ..testing::record() });
        }
        live.judged(0, &Record { score: Some(f32::NAN), ..testing::record() });
        let history = live.history("cam1", usize::MAX).unwrap();
        assert_eq!((history.len(), history[0].sequence), (HISTORY, 200));
        assert_eq!(live.history("cam1", 2).unwrap().last().unwrap().sequence, 1199);
        assert_eq!(live.history("a", 9).unwrap()[0].score, None, "not a number is no JSON");
        assert!(live.history("b", 9).is_none());
        // 1201 were sent and 256 are kept for those that are behind.
        assert!(matches!(listener.try_recv(), Err(broadcast::error::TryRecvError::Lagged(n)) if n >= 900));
        assert_eq!(&*listener.try_recv().unwrap().line, "cam1");
    }

    #[test]
    fn pictures_are_made_while_somebody_looks_and_not_more_often_than_they_can_be_seen() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let live = Arc::new(Live::new(["a", "b"], start));
        let (spare, back) = bounded(2);
        let (viewer, thread) = Viewer::start(Arc::clone(&live), spare).unwrap();
        assert!(!viewer.wants(0, at(0)), "nobody looks");
        assert_eq!(live.picture("a", at(0)), None);
        assert!(viewer.wants(0, at(1)) && !viewer.wants(1, at(1)), "only what was asked for");
        assert!(!viewer.wants(0, at(5001)), "they have gone");
        live.picture("a", at(6000));
        assert!(viewer.submit(job(0, 3000, 20), at(6001)).is_none());
        back.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(!viewer.wants(0, at(6100)) && viewer.wants(0, at(6126)), "8 a second");
        let shown = live.picture("a", at(6200)).unwrap();
        assert_eq!(shown.sequence, 7);
        let size =
            |jpeg: &[u8]| turbojpeg::read_header(jpeg).map(|header| (header.width, header.height)).unwrap();
        assert_eq!((size(&shown.plain), size(&shown.heat)), ((1000, 6), (1000, 6)));
        assert_ne!(shown.plain, shown.heat);
        drop(viewer);
        thread.join().unwrap();
    }

    #[test]
    fn shrinking_takes_the_mean_of_each_block() {
        let mut image = RgbImage::new(5, 3);
        for (i, byte) in image.data.iter_mut().enumerate() {
            *byte = i as u8;
        }
        let small = shrink(&image, 2);
        assert_eq!((small.width, small.height), (2, 1));
        // Of the first block's reds: 0, 3, 15, 18.
        assert_eq!(small.data[..3], [9, 10, 11]);
    }
}
