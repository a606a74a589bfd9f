//! A line that computes on a GPU, with the CPU behind it: the frame on which the device fails is judged
//! by the CPU, as are all that follow until the device is back. It is opened anew in the background, ever
//! less often. A driver's error outlives the context it happened in as long as any line holds on to that,
//! so a device that several lines share is back when the last of them has let go.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// Looks at several frames at once; an error is the device's, or everybody's. `seen` says more.
    fn look_at_some(&mut self, frames: &[(FrameView<'_>, Option<Roi>)]) -> Result<(), RealnetError>;
    /// What the last `look_at_some` saw in frame `index`.
    fn seen(&self, index: usize) -> Option<Result<Judgement<'_>, &RealnetError>>;
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

    fn look_at_some(&mut self, frames: &[(FrameView<'_>, Option<Roi>)]) -> Result<(), RealnetError> {
        self.judge_some(frames)
    }

    fn seen(&self, index: usize) -> Option<Result<Judgement<'_>, &RealnetError>> {
        self.judged(index)
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

/// The lines that a device judges, and its name while it is there.
#[derive(Clone, Default)]
pub struct Users(Arc<Mutex<(Vec<String>, Option<String>)>>);

impl Users {
    fn lock(&self) -> MutexGuard<'_, (Vec<String>, Option<String>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One line more, which hears what device it is on.
    pub fn add(&self, line: &str, device: &str, telemetry: &Telemetry) {
        let mut users = self.lock();
        // A reload asks anew for judges that it then finds to be the same.
        if users.0.iter().any(|known| known == line) {
            return;
        }
        users.0.push(line.to_owned());
        if let Some(name) = &users.1 {
            telemetry.emit(Event::DeviceUp { line, device, name });
        }
    }

    fn lines(&self) -> Vec<String> {
        self.lock().0.clone()
    }
}

/// Whose device it is that events speak of.
struct Report {
    users: Users,
    device: String,
    telemetry: Telemetry,
}

impl Report {
    /// Tells of every line that the device judges.
    fn emit(&self, event: impl Fn(&Telemetry, &str, &str)) {
        for line in self.users.lines() {
            event(&self.telemetry, &line, &self.device);
        }
    }

    /// Without pinned memory copies take longer, and that is all.
    fn introduce(&self, opinion: &mut impl Opinion, number: usize, pages: &Arc<Pages>) {
        if let Err(error) = opinion.meet(number, pages) {
            self.emit(|to, line, device| to.emit(Event::NotPinned { line, device, error: &error }));
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
        let users = Users::default();
        users.add(line, device, &telemetry);
        let report = Report { users, device: device.to_owned(), telemetry };
        let mut guarded = Guarded { report, state: waiting, standby, met: vec![], reopen: Box::new(reopen) };
        match first {
            Ok(opinion) => guarded.up(opinion),
            Err(error) => guarded.failed(&error, now),
        }
        guarded
    }

    /// Whom it judges for.
    pub fn users(&self) -> Users {
        self.report.users.clone()
    }

    fn up(&mut self, mut opinion: O) {
        let name = opinion.device();
        self.report.emit(|to, line, device| to.emit(Event::DeviceUp { line, device, name: &name }));
        self.report.users.lock().1 = Some(name);
        for (number, pages) in &self.met {
            self.report.introduce(&mut opinion, *number, pages);
        }
        self.state = State::Up(opinion);
    }

    fn failed(&mut self, error: &RealnetError, now: Instant) {
        self.report.users.lock().1 = None;
        self.report.emit(|to, line, device| to.emit(Event::DeviceFailed { line, device, error }));
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
                        self.report.emit(|to, line, device| {
                            to.emit(Event::DeviceStillDown { line, device, error: &error });
                        });
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

impl<O: Opinion + 'static> Guarded<O> {
    /// On the device at once; where that fails nothing was told of any of them, and the CPU judges one by one.
    fn judge_some_at(
        &mut self,
        frames: &[(FrameView<'_>, Option<Roi>)],
        now: Instant,
        each: &mut dyn FnMut(usize, Result<Judgement<'_>, Problem>),
    ) {
        self.mind(now);
        if let (State::Up(opinion), true) = (&mut self.state, frames.len() > 1) {
            match opinion.look_at_some(frames) {
                Ok(()) => {
                    for i in 0..frames.len() {
                        let seen = opinion.seen(i).unwrap_or(Err(&RealnetError::NotJudged));
                        each(i, seen.map_err(|error| error.to_string().into()));
                    }
                    return;
                }
                Err(error) if error.is_device() => self.failed(&error, now),
                Err(error) => {
                    let why = error.to_string();
                    (0..frames.len()).for_each(|i| each(i, Err(why.as_str().into())));
                    return;
                }
            }
        }
        for (i, (frame, roi)) in frames.iter().enumerate() {
            each(i, self.judge_at(frame, *roi, now).map_err(Problem::from));
        }
    }
}

impl<O: Opinion + 'static> Judge for Guarded<O> {
    fn thresholds(&self) -> Thresholds {
        self.standby.thresholds()
    }

    fn judge(&mut self, frame: &FrameView<'_>, roi: Option<Roi>) -> Result<Judgement<'_>, Problem> {
        self.judge_at(frame, roi, Instant::now()).map_err(Problem::from)
    }

    fn judge_some(
        &mut self,
        frames: &[(FrameView<'_>, Option<Roi>)],
        each: &mut dyn FnMut(usize, Result<Judgement<'_>, Problem>),
    ) {
        self.judge_some_at(frames, Instant::now(), each);
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
        some: usize,
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

        fn look_at_some(&mut self, frames: &[(FrameView<'_>, Option<Roi>)]) -> Result<(), RealnetError> {
            self.some = frames.len();
            self.look(&frames[0].0, None)
        }

        fn seen(&self, index: usize) -> Option<Result<Judgement<'_>, &RealnetError>> {
            (index < self.some).then(|| self.last().map_err(|_| &RealnetError::NotJudged))
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
            true => Ok(Fake { score: GPU, good: 2, met: Arc::clone(&met), some: 0 }),
            false => Err(broken()),
        };
        let standby = Fake { score: CPU, good: u32::MAX, met: Arc::default(), some: 0 };
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
    fn frames_that_a_device_fails_on_together_are_all_judged_by_the_cpu() {
        let (opens, start) = (Arc::default(), Instant::now());
        let mut guarded = guarded(&opens, 1, start);
        guarded.users().add("b", "cuda:0", &guarded.report.telemetry);
        let frames = [(FrameView::rgb(&[7; 48], 4, 4), None); 3];
        for expected in [GPU, GPU, CPU, CPU] {
            let mut scores = [0.0; 3];
            guarded.judge_some_at(&frames, start, &mut |i, judged| scores[i] = judged.unwrap().score);
            assert_eq!(scores, [expected; 3]);
        }
        // Every line whose frames they are hears of it.
        for line in ["a", "b"] {
            assert!(
                guarded.report.telemetry.device_fault(line).unwrap().starts_with("cuda:0 failed"),
                "{line}"
            );
        }
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
