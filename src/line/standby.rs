//! A line that computes on a GPU, with the CPU behind it: the frame on which the device fails is judged
//! by the CPU, as are all that follow until the device is back. It is opened anew in the background, ever
//! less often. A driver's error outlives the context it happened in as long as any line holds on to that,
//! so a device that several lines share is back when the last of them has let go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded};

use super::{Judge, Problem};
use crate::imaging::{FrameView, Roi};
use crate::model::Thresholds;
use crate::pages::Pages;
use crate::realnet::{Inspector, Judgement, RealnetError};
use crate::telemetry::{Event, Telemetry};

/// From a failure to the first attempt, doubling with every attempt up to the last.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What judges on one device. A trait, so that failing devices can be had without one.
pub trait Opinion: Send {
    fn thresholds(&self) -> Thresholds;
    fn look(&mut self, frame: &FrameView<'_>, roi: Option<Roi>) -> Result<(), RealnetError>;
    /// Frames of `line` lie in this memory. A device that copies from it may make it its own.
    fn meet(&mut self, line: usize, pages: &Arc<Pages>) -> Result<(), RealnetError> {
        let _ = (line, pages);
        Ok(())
    }
    /// Of the last look.
    fn last(&self) -> Result<Judgement<'_>, RealnetError>;
    /// The device by its own name.
    fn device(&self) -> String;
}

impl Opinion for Inspector {
    fn thresholds(&self) -> Thresholds {
        Inspector::thresholds(self)
    }

    fn look(&mut self, frame: &FrameView<'_>, roi: Option<Roi>) -> Result<(), RealnetError> {
        self.judge(frame, roi).map(drop)
    }

    fn meet(&mut self, line: usize, pages: &Arc<Pages>) -> Result<(), RealnetError> {
        self.pin(line, pages)
    }

    fn last(&self) -> Result<Judgement<'_>, RealnetError> {
        Inspector::last(self)
    }

    fn device(&self) -> String {
        Inspector::device(self).to_owned()
    }
}

/// The device's part: there, or on its way back.
enum State<O> {
    Up(O),
    Waiting { until: Instant, wait: Duration },
    Opening { answer: Receiver<Result<O, RealnetError>>, wait: Duration },
}

/// Whose device it is that events speak of.
struct Report {
    line: String,
    device: String,
    telemetry: Telemetry,
}

impl Report {
    fn emit<'a>(&'a self, event: impl FnOnce(&'a str, &'a str) -> Event<'a>) {
        self.telemetry.emit(event(&self.line, &self.device));
    }

    /// Without pinned memory copies take longer, and that is all.
    fn introduce(&self, opinion: &mut impl Opinion, number: usize, pages: &Arc<Pages>) {
        if let Err(error) = opinion.meet(number, pages) {
            self.emit(|line, device| Event::NotPinned { line, device, error: &error });
        }
    }
}

/// A judge on a device with one on the CPU behind it.
pub struct Guarded<O: Opinion> {
    report: Report,
    state: State<O>,
    standby: O,
    /// The memory of each line's frames, for a device that comes back.
    met: Vec<(usize, Arc<Pages>)>,
    reopen: Box<dyn Fn() -> Receiver<Result<O, RealnetError>> + Send>,
}

impl<O: Opinion + 'static> Guarded<O> {
    /// `open` is called at once and after every failure, then on a thread of its own.
    pub fn new(
        line: &str,
        device: &str,
        standby: O,
        open: impl Fn() -> Result<O, RealnetError> + Clone + Send + 'static,
        telemetry: Telemetry,
        now: Instant,
    ) -> Self {
        let first = open();
        let reopen = move || {
            let (sender, answer) = bounded(1);
            let open = open.clone();
            // Without a thread the answer is that nobody sends one, and the next attempt comes.
            let _ = std::thread::Builder::new().name("device".to_owned()).spawn(move || {
                // Whoever asked may be gone.
                let _ = sender.send(open());
            });
            answer
        };
        let waiting = State::Waiting { until: now + FIRST_WAIT, wait: FIRST_WAIT };
        let report = Report { line: line.to_owned(), device: device.to_owned(), telemetry };
        let mut guarded = Guarded { report, state: waiting, standby, met: vec![], reopen: Box::new(reopen) };
        match first {
            Ok(opinion) => guarded.up(opinion),
            Err(error) => guarded.failed(&error, now),
        }
        guarded
    }

    fn up(&mut self, mut opinion: O) {
        let name = opinion.device();
        self.report.emit(|line, device| Event::DeviceUp { line, device, name: &name });
        for (number, pages) in &self.met {
            self.report.introduce(&mut opinion, *number, pages);
        }
        self.state = State::Up(opinion);
    }

    fn failed(&mut self, error: &RealnetError, now: Instant) {
        self.report.emit(|line, device| Event::DeviceFailed { line, device, error });
        // Lets go of the broken context.
        self.state = State::Waiting { until: now + FIRST_WAIT, wait: FIRST_WAIT };
    }

    /// Moves the device's return along; never waits.
    fn mind(&mut self, now: Instant) {
        match &self.state {
            State::Up(_) => {}
            State::Waiting { until, wait } if now >= *until => {
                let wait = *wait;
                self.state = State::Opening { answer: (self.reopen)(), wait };
            }
            State::Waiting { .. } => {}
            State::Opening { answer, wait } => {
                let wait = (*wait * 2).min(LONGEST_WAIT);
                match answer.try_recv() {
                    Ok(Ok(opinion)) => self.up(opinion),
                    Ok(Err(error)) => {
                        let still = |line, device| Event::DeviceStillDown { line, device, error: &error };
                        self.report.emit(still);
                        self.state = State::Waiting { until: now + wait, wait };
                    }
                    Err(TryRecvError::Disconnected) => {
                        self.state = State::Waiting { until: now + wait, wait };
                    }
                    Err(TryRecvError::Empty) => {}
                }
            }
        }
    }

    fn judge_at(
        &mut self,
        frame: &FrameView<'_>,
        roi: Option<Roi>,
        now: Instant,
    ) -> Result<Judgement<'_>, RealnetError> {
        self.mind(now);
        if let State::Up(opinion) = &mut self.state {
            match opinion.look(frame, roi) {
                Ok(()) => {}
                Err(error) if error.is_device() => self.failed(&error, now),
                Err(error) => return Err(error),
            }
        }
        if let State::Up(opinion) = &self.state {
            return opinion.last();
        }
        self.standby.look(frame, roi)?;
        self.standby.last()
    }
}

impl<O: Opinion + 'static> Judge for Guarded<O> {
    fn thresholds(&self) -> Thresholds {
        self.standby.thresholds()
    }

    fn judge(&mut self, frame: &FrameView<'_>, roi: Option<Roi>) -> Result<Judgement<'_>, Problem> {
        self.judge_at(frame, roi, Instant::now()).map_err(Problem::from)
    }

    fn meet(&mut self, line: usize, pages: &Arc<Pages>) {
        self.met.retain(|(other, _)| *other != line);
        self.met.push((line, Arc::clone(pages)));
        if let State::Up(opinion) = &mut self.state {
            self.report.introduce(opinion, line, pages);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::engine::{DeviceError, ProgramError};

    /// Which pages each judge was told of, in order.
    type Met = Arc<Mutex<Vec<(usize, Arc<Pages>)>>>;

    /// Says `score` until it has looked `good` times, then fails as a device does. Pins all but one page.
    struct Fake {
        score: f32,
        good: u32,
        met: Met,
    }

    fn broken() -> RealnetError {
        RealnetError::Compile(ProgramError::Device(DeviceError::NoDriver))
    }

    impl Opinion for Fake {
        fn thresholds(&self) -> Thresholds {
            Thresholds { unsure: 0.5, bad: 0.6 }
        }

        fn look(&mut self, _: &FrameView<'_>, _: Option<Roi>) -> Result<(), RealnetError> {
            self.good = self.good.checked_sub(1).ok_or_else(broken)?;
            Ok(())
        }

        fn meet(&mut self, line: usize, pages: &Arc<Pages>) -> Result<(), RealnetError> {
            self.met.lock().unwrap().push((line, Arc::clone(pages)));
            if pages.region().1 == Pages::size() { Err(broken()) } else { Ok(()) }
        }

        fn last(&self) -> Result<Judgement<'_>, RealnetError> {
            Ok(Judgement { score: self.score, map_width: 0, map_height: 0, map: &[] })
        }

        fn device(&self) -> String {
            "a fake".to_owned()
        }
    }

    const CPU: f32 = 1.0;
    const GPU: f32 = 2.0;

    /// Opens succeed from the n-th on, each good for two looks.
    fn guarded(opens: &Arc<AtomicU32>, from: u32, now: Instant) -> Guarded<Fake> {
        met_by(opens, from, now, &Arc::default())
    }

    /// `met`: the memory that those on the device were told of.
    fn met_by(opens: &Arc<AtomicU32>, from: u32, now: Instant, met: &Met) -> Guarded<Fake> {
        let (opens, met) = (Arc::clone(opens), Arc::clone(met));
        let open = move || match opens.fetch_add(1, Ordering::SeqCst) + 1 >= from {
            true => Ok(Fake { score: GPU, good: 2, met: Arc::clone(&met) }),
            false => Err(broken()),
        };
        let standby = Fake { score: CPU, good: u32::MAX, met: Arc::default() };
        Guarded::new("a", "cuda:0", standby, open, Telemetry::new(), now)
    }

    fn score(guarded: &mut Guarded<Fake>, now: Instant) -> f32 {
        let frame = FrameView::rgb(&[7; 48], 4, 4);
        guarded.judge_at(&frame, None, now).map(|j| j.score).unwrap()
    }

    /// Waits for an attempt that was begun to end, by the channel it answers on.
    fn answered(guarded: &Guarded<Fake>) {
        if let State::Opening { answer, .. } = &guarded.state {
            while answer.is_empty() {
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn the_frame_on_which_the_device_fails_is_judged_by_the_cpu_and_the_device_comes_back() {
        let (opens, start) = (Arc::default(), Instant::now());
        let mut guarded = guarded(&opens, 1, start);
        assert_eq!((score(&mut guarded, start), score(&mut guarded, start)), (GPU, GPU));
        assert_eq!(score(&mut guarded, start), CPU);
        assert!(
            guarded.report.telemetry.device_fault("a").unwrap().starts_with("cuda:0 failed, the CPU judges")
        );
        // Not before its time.
        assert_eq!(score(&mut guarded, start + FIRST_WAIT / 2), CPU);
        assert_eq!(opens.load(Ordering::SeqCst), 1);
        assert_eq!(score(&mut guarded, start + FIRST_WAIT), CPU);
        answered(&guarded);
        assert_eq!(score(&mut guarded, start + FIRST_WAIT), GPU);
        assert_eq!(guarded.report.telemetry.device_fault("a"), None);
        assert_eq!(opens.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_device_that_is_back_is_told_of_the_memory_in_use_and_one_that_cannot_pin_it_judges_on() {
        let (opens, start, met) = (Arc::default(), Instant::now(), Arc::default());
        let mut guarded = met_by(&opens, 1, start, &met);
        let [small, old, new] = [1, 2, 3].map(|pages| Pages::new(pages * Pages::size()).unwrap());
        for (line, pages) in [(0, &old), (1, &small), (0, &new)] {
            guarded.meet(line, pages);
        }
        assert_eq!((score(&mut guarded, start), score(&mut guarded, start)), (GPU, GPU));
        assert_eq!(Arc::strong_count(&old), 2, "here and in the list of this test");
        met.lock().unwrap().clear();
        assert_eq!(score(&mut guarded, start), CPU);
        assert_eq!(score(&mut guarded, start + FIRST_WAIT), CPU);
        answered(&guarded);
        assert_eq!(score(&mut guarded, start + FIRST_WAIT), GPU);
        let met = met.lock().unwrap();
        assert!(met.iter().map(|m| m.0).eq([1, 0]) && Arc::ptr_eq(&met[1].1, &new), "{met:?}");
    }

    #[test]
    fn a_device_that_is_not_there_at_the_start_is_tried_ever_less_often() {
        let (opens, start) = (Arc::default(), Instant::now());
        let mut guarded = guarded(&opens, 1000, start);
        let mut tried = vec![];
        for second in 0..400u64 {
            let before = opens.load(Ordering::SeqCst);
            assert_eq!(score(&mut guarded, start + Duration::from_secs(second)), CPU);
            answered(&guarded);
            if opens.load(Ordering::SeqCst) > before {
                tried.push(second);
            }
        }
        // After 1 s, then at least 2, 4, … 60 s and one frame later each.
        assert_eq!(tried[..4], [1, 4, 9, 18]);
        assert!(tried.windows(2).all(|w| w[1] - w[0] <= 62), "{tried:?}");
    }
}
