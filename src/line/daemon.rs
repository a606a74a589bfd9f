//! Starting all threads in order, minding them, and ending them in the reverse order.
//!
//! ```text
//! camera thread (one each) ─▶ verdict thread ◀─▶ inference thread
//!                                  ├─▶ (archive relay ─▶) verdict writer        http thread ─▶ board
//!                                  │                  └─▶ PLC, broker, webhook (one thread each)
//!                                  └─▶ heatmap writer        main thread: signals, reload, watchdog
//! ```

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::camera::{StopCamera, Succession, drop_reasons, restart_reasons};
use super::conductor::{Conductor, Control, End, Seat};
use super::desk::{Desk, Terms};
use super::heart::Heart;
use super::notify::Notifier;
use super::reload::{self, Cameras, Errand, InForce, Outcome};
use super::shared::{CameraTerms, LineShared, Lines, Published, State};
use super::supply::{FileStamp, ModelFacts, NoJudge, Supplier};
use super::trigger::Triggers;
use super::{Picture, Problem, judge, ledger};
use crate::archive::{self, Archive, ArchiveError};
use crate::config::{Config, LineConfig, LineName};
use crate::imaging::Heatmap;
use crate::outputs::access::Access;
use crate::outputs::http::Server;
use crate::outputs::live::{self, Live, Viewer};
use crate::outputs::{HeatmapWriter, Latest, LineStatus, Outlets, VerdictWriter};
use crate::page;
use crate::telemetry::{Event, LineEvent, LineMetrics, LineTelemetry, Reload, Telemetry};

/// Heatmaps in circulation: four wait to be drawn, one is drawn, one is filled, one is at hand.
const MAPS: usize = 7;

/// How long threads get to end after the drain's limit.
const GRACE: Duration = Duration::from_secs(2);

/// How long systemd is let wait for the first frame of every line. A camera that is unplugged must not keep
/// what depends on the daemon from starting.
const READY_GRACE: Duration = Duration::from_secs(5);

/// How often it is looked for.
const FIRST_FRAMES: Duration = Duration::from_millis(20);

/// How long a message to the verdict thread may take, which never waits itself.
const TELL_LIMIT: Duration = Duration::from_secs(5);

/// What the daemon is told while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Judge what is in flight, then end. A second one ends at once.
    Stop(&'static str),
    Reload,
}

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Judge(NoJudge),
    #[error("{0}")]
    Rules(String),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("the token of [daemon] token_file cannot be read from {path}: {source}", path = path.display())]
    Token { path: PathBuf, source: std::io::Error },
    #[error("line {line}: {source}")]
    Camera { line: LineName, source: Problem },
    #[error("the {name} thread cannot be started: {source}")]
    Thread { name: &'static str, source: std::io::Error },
}

/// Why the daemon ended other than by its own will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    #[error("the inference thread ended; this is a fault of inspectd")]
    WorkerGone,
    #[error("the verdict thread ended; this is a fault of inspectd")]
    ConductorGone,
}

/// All threads, running.
pub struct Daemon<P> {
    in_force: InForce,
    config_path: PathBuf,
    supplier: Arc<dyn Supplier<P>>,
    telemetry: Telemetry,
    lines: Arc<Lines>,
    cameras: Arc<Cameras>,
    stopping: Stopping,
    control: Sender<Control<P>>,
    end: Receiver<End>,
    threads: Vec<JoinHandle<()>>,
    server: Option<Server>,
    notifier: Notifier,
    archive: Option<archive::Handle>,
    told: Vec<Told>,
    /// The reload that is under way, and whether another was asked for meanwhile.
    reload: Option<Underway>,
    reload_again: bool,
    outlets: Arc<Outlets>,
}

struct Underway {
    outcome: Receiver<Outcome>,
    thread: JoinHandle<()>,
}

/// What the log says of a line so far.
#[derive(Clone, Copy, Default)]
struct Told {
    sick: bool,
    ended: bool,
}

/// Starts everything: models first, because they take longest and fail most; cameras last, so that no
/// frame is captured that could not be judged.
pub fn start<P: Picture>(
    config: Config,
    config_path: PathBuf,
    supplier: Arc<dyn Supplier<P>>,
    telemetry: Telemetry,
    listener: Option<TcpListener>,
) -> Result<Daemon<P>, StartError> {
    let thread = |name| move |source| StartError::Thread { name, source };
    let access = Access::read(config.daemon.token_file.as_deref()).map_err(|source| {
        let path = config.daemon.token_file.clone().unwrap_or_default();
        StartError::Token { path, source }
    })?;
    let heart = Arc::new(Heart::new(Instant::now()));
    let stamps: Vec<Option<FileStamp>> = config.lines.iter().map(|line| FileStamp::of(&line.model)).collect();
    let asked: Vec<&LineConfig> = config.lines.iter().collect();
    let made = supplier.judges(&config.daemon, &asked).map_err(StartError::Judge)?;
    let mut models = Vec::new();
    let mut judges = Vec::new();
    let mut companies = Vec::new();
    for ((made, line), stamp) in made.into_iter().zip(&config.lines).zip(stamps) {
        models.push(ModelFacts { hash: made.hash, thresholds: made.judge.thresholds(), stamp });
        companies.push(made.judge.company());
        judges.push((made.judge, line.roi));
    }
    let worker = judge::start::<P>(judges, Arc::clone(&heart)).map_err(thread("inference"))?;
    let config_hash = config.hash().to_string();
    let outlets = Arc::new(Outlets::new(telemetry.clone(), &config));
    let staged = outlets.stage(&config).map_err(|error| StartError::Rules(error.to_string()))?;
    let rules = config
        .lines
        .iter()
        .zip(&models)
        .map(|(line, model)| reload::rules(line, model, &config_hash, staged.of(&line.name)).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()
        .map_err(StartError::Rules)?;

    // One more is filled for each frame that is judged beside another.
    let maps = MAPS + live::MAPS + config.daemon.batch - 1
        + if config.archive.is_some() { archive::MAPS } else { 0 };
    let (spare_sender, spare) = bounded(maps);
    let (verdicts, verdict_thread) = VerdictWriter::start().map_err(thread("verdict writer"))?;
    let mut threads = Vec::new();
    let mut archive = None;
    if let Some(config) = &config.archive {
        let (near, its) = Archive::start(config, verdicts.clone(), spare_sender.clone(), &telemetry)?;
        threads = its;
        archive = Some(near);
    }
    let live = Arc::new(Live::new(config.lines.iter().map(|line| line.name.as_str()), Instant::now()));
    let (viewer, live_thread) =
        Viewer::start(Arc::clone(&live), spare_sender.clone()).map_err(thread("live"))?;
    let (heatmaps, heatmap_thread) = HeatmapWriter::start(spare_sender).map_err(thread("heatmap writer"))?;

    let mut seats = Vec::new();
    let mut shared = Vec::new();
    let mut cameras: Vec<StopCamera> = Vec::new();
    for (line, rules) in config.lines.iter().zip(rules) {
        let camera = match supplier.camera(line, 0) {
            Ok(camera) => camera,
            Err(source) => {
                let started = config.lines.iter().map(|line| line.name.clone()).zip(cameras);
                await_stop(begin_stop(started, Duration::from_secs(1)));
                return Err(StartError::Camera { line: line.name.clone(), source });
            }
        };
        let metrics =
            LineMetrics::new(telemetry.metrics(), line.name.as_str(), &drop_reasons(), &restart_reasons());
        let line_shared = Arc::new(LineShared {
            telemetry: Arc::new(LineTelemetry::new(line.name.as_str(), metrics)),
            published: Mutex::new(Published::default()),
            camera: Succession::new(camera.view),
            terms: Mutex::new(CameraTerms::of(line, Instant::now())),
            latest: Arc::new(Latest::default()),
        });
        telemetry.emit(Event::LineStarted {
            line: line.name.as_str(),
            model: &rules.model_hash,
            thresholds: rules.thresholds,
        });
        cameras.push(camera.stop);
        shared.push(Arc::clone(&line_shared));
        seats.push(Seat::new(camera.frames, rules, line_shared));
    }

    let triggers = Triggers::new(&config.lines);
    let lines = Arc::new(Lines {
        triggers: triggers.clone(),
        lines: shared,
        heart: Arc::clone(&heart),
        state: Mutex::new(State { name: "starting", config_hash }),
        telemetry: telemetry.clone(),
        live,
        archive: config.archive.as_ref().map(|archive| archive.folder.clone()),
    });
    let mirrored = Arc::downgrade(&lines);
    telemetry.on_scrape(move |_| {
        if let Some(lines) = mirrored.upgrade() {
            lines.mirror();
        }
    });

    let (control, control_receiver) = bounded(8);
    let (end_sender, end) = bounded(1);
    let archive_handle = archive.as_ref().map(Archive::handle);
    let mut desk = Desk::new(config.lines.iter().map(Terms::of));
    for (line, company) in companies.into_iter().enumerate() {
        desk.join(line, company);
    }
    let conductor = Conductor {
        desk,
        seats,
        jobs: worker.jobs,
        done: worker.done,
        control: control_receiver,
        turnover: None,
        verdicts,
        archive,
        heatmaps,
        viewer,
        spare,
        maps: (0..maps).map(|_| Heatmap { width: 0, height: 0, data: Vec::new() }).collect(),
        heart,
        late: Vec::new(),
        triggers,
    };
    let conductor_thread = std::thread::Builder::new()
        .name("verdict".to_owned())
        .spawn(move || {
            // Nobody waits for the end if the main thread has gone.
            let _ = end_sender.send(conductor.run());
        })
        .map_err(thread("verdict"))?;
    let server = match listener {
        Some(listener) => {
            let page = page::router(&access);
            let board = Arc::<Lines>::clone(&lines);
            Some(Server::start(listener, board, access, page).map_err(thread("http"))?)
        }
        None => None,
    };
    if let Some(server) = &server {
        telemetry.emit(Event::Listening { address: server.address });
    }
    let told = vec![Told::default(); config.lines.len()];
    threads.extend([conductor_thread, worker.thread, verdict_thread, heatmap_thread, live_thread]);
    outlets.commit(staged);
    Ok(Daemon {
        in_force: InForce { config, models },
        config_path,
        supplier,
        telemetry,
        lines,
        cameras: Arc::new(Cameras::new(cameras)),
        stopping: Vec::new(),
        control,
        end,
        threads,
        server,
        notifier: Notifier::default(),
        archive: archive_handle,
        told,
        reload: None,
        reload_again: false,
        outlets,
    })
}

impl<P: Picture> Daemon<P> {
    /// Where HTTP is really served.
    pub fn address(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(|server| server.address)
    }

    /// Runs until every source has ended or [`Command::Stop`] comes.
    pub fn run(mut self, commands: &Receiver<Command>) -> Result<(), RunError> {
        self.lines.state().name = "running";
        self.supplier.in_force(&self.in_force);
        self.tell_outlets(Instant::now());
        let ready_by = Instant::now() + READY_GRACE;
        let mut first_frames = crossbeam_channel::tick(FIRST_FRAMES);
        let interval = Notifier::watchdog().unwrap_or(Duration::from_secs(1)).min(Duration::from_secs(1));
        let ticks = crossbeam_channel::tick(interval);
        let end = self.end.clone();
        let no_reload = crossbeam_channel::never();
        // If whoever gives commands goes away, the daemon runs on; a disconnected channel would spin.
        let never = crossbeam_channel::never();
        let mut commands = commands;
        let ended = loop {
            let reloaded = self.reload.as_ref().map_or(&no_reload, |reload| &reload.outcome).clone();
            select! {
                recv(commands) -> command => match command {
                    Ok(Command::Reload) => self.reload(),
                    Ok(Command::Stop(why)) => break self.drain(why, commands),
                    Err(_) => commands = &never,
                },
                recv(reloaded) -> outcome => self.reloaded(outcome.ok()),
                recv(end) -> end => break end.ok(),
                recv(ticks) -> _ => self.tick(),
                // READY would end a reload for systemd, too.
                recv(first_frames) -> _ => if self.reload.is_none()
                    && (self.has_first_frames() || Instant::now() >= ready_by)
                {
                    self.ready();
                    first_frames = crossbeam_channel::never();
                },
            }
        };
        self.finish(ended)
    }

    /// Whether every line has seen what it waits for. Triggered cameras may be silent, so they need not have
    /// given a frame.
    fn has_first_frames(&self) -> bool {
        self.lines.snapshots(Instant::now()).into_iter().all(|(line, snapshot)| {
            let triggered = line.terms().stall_timeout.is_none();
            snapshot.camera.captured > 0 || snapshot.published.ended || triggered
        })
    }

    fn ready(&mut self) {
        let config = self.lines.state().config_hash.clone();
        self.telemetry.emit(Event::Ready { lines: self.in_force.config.lines.len(), config: &config });
        let status = self.status();
        self.notifier.ready(&status);
    }

    /// Begins a reload; one that is under way has read the file already, so another follows it.
    fn reload(&mut self) {
        if self.reload.is_some() {
            self.reload_again = true;
            return;
        }
        self.notifier.reloading();
        let errand = Errand {
            path: self.config_path.clone(),
            current: self.in_force.clone(),
            supplier: Arc::clone(&self.supplier),
            control: self.control.clone(),
            lines: Arc::clone(&self.lines),
            cameras: Arc::clone(&self.cameras),
            outlets: Arc::clone(&self.outlets),
        };
        let (sender, outcome) = bounded(1);
        let thread = std::thread::Builder::new().name("reload".to_owned()).spawn(move || {
            // The daemon does not wait for it when it ends.
            let _ = sender.send(errand.run());
        });
        match thread {
            Ok(thread) => self.reload = Some(Underway { outcome, thread }),
            Err(error) => {
                let detail = format!("the reload thread cannot be started: {error}");
                self.conclude(Outcome { result: Reload::Failed, detail, next: None });
            }
        }
    }

    fn reloaded(&mut self, outcome: Option<Outcome>) {
        if let Some(Underway { thread, .. }) = self.reload.take() {
            // It has nothing left to do; a panic in it was printed already.
            let _ = thread.join();
        }
        let detail = || "the reload thread failed; this is a fault of inspectd".to_owned();
        self.conclude(outcome.unwrap_or_else(|| Outcome {
            result: Reload::Failed,
            detail: detail(),
            next: None,
        }));
        if std::mem::take(&mut self.reload_again) {
            self.reload();
        }
    }

    fn conclude(&mut self, Outcome { result, detail, next }: Outcome) {
        if let Some(next) = next {
            let hash = next.config.hash().to_string();
            let info = &self.telemetry.metrics().config_hash;
            info.reset();
            info.with_label_values(&[&hash]).set(1);
            self.lines.state().config_hash = hash;
            for ((line, before), now) in next.config.lines.iter().zip(&self.in_force.models).zip(&next.models)
            {
                if before.hash != now.hash {
                    let (line, thresholds) = (line.name.as_str(), now.thresholds);
                    let (from, to) = (before.hash.as_str(), now.hash.as_str());
                    self.telemetry.emit(Event::ModelReplaced { line, from, to, thresholds });
                }
            }
            if let (Some(archive), Some(config)) = (&self.archive, &next.config.archive) {
                archive.set(archive::Terms::of(config));
            }
            for (shared, line) in self.lines.lines.iter().zip(&next.config.lines) {
                shared.expect_pictures(line.camera_health);
            }
            self.lines.triggers.renew(&next.config.lines);
            self.in_force = next;
            self.supplier.in_force(&self.in_force);
        }
        self.telemetry.emit(Event::Reloaded { result, detail: &detail });
        let status = match result {
            Reload::Applied | Reload::Unchanged => self.status(),
            Reload::NoCamera => format!("{}; a camera did not start", self.status()),
            _ => format!("{}; the last reload was refused", self.status()),
        };
        self.notifier.ready(&status);
    }

    /// Once a second: health, watchdog, ledger.
    fn tick(&mut self) {
        let now = Instant::now();
        // The watchdog is for what only a new process can mend. A camera that is unplugged is restarted
        // by its own thread, and the other lines must not suffer from it.
        if self.lines.heart.arrest(now).is_none() {
            self.notifier.feed();
        }
        self.tell_outlets(now);
        for (i, (line, snapshot)) in self.lines.snapshots(now).into_iter().enumerate() {
            let name = line.telemetry.name.as_str();
            let now_told = Told { sick: snapshot.sick.is_some(), ended: snapshot.published.ended };
            let before = std::mem::replace(&mut self.told[i], now_told);
            match &snapshot.sick {
                Some(why) if !before.sick => self.telemetry.emit(Event::LineSick { line: name, why }),
                None if now_told.ended && !before.ended => {
                    self.telemetry.emit(Event::LineEnded { line: name })
                }
                None if before.sick => self.telemetry.emit(Event::LineWell { line: name }),
                _ => {}
            }
            let checked = ledger::check(&snapshot.published.counts, &snapshot.camera, line.terms().slots);
            if let Err(imbalance) = checked {
                line.telemetry.emit(LineEvent::LedgerUnbalanced { detail: &imbalance });
            }
        }
        let status = self.status();
        self.notifier.status(&status);
    }

    /// What the PLC, the broker and others are to know of the lines.
    fn tell_outlets(&self, now: Instant) {
        let stopping = self.lines.state().name == "stopping";
        for (line, snapshot) in self.lines.snapshots(now) {
            let status = match &snapshot.sick {
                _ if stopping => LineStatus::Stopping,
                Some(_) => LineStatus::Sick,
                None if snapshot.published.ended => LineStatus::Ended,
                None => LineStatus::Running,
            };
            self.outlets.tell(&line.telemetry.name, status, snapshot.sick.as_deref());
        }
    }

    fn status(&self) -> String {
        let mut status = match self.in_force.config.lines.len() {
            1 => "1 line".to_owned(),
            n => format!("{n} lines"),
        };
        if let Some(address) = self.address() {
            status.push_str(&format!(", http://{address}/"));
        }
        if let Some(fault) = self.telemetry.archive_fault() {
            status.push_str(&format!("; the archive takes nothing: {fault}"));
        }
        for (line, snapshot) in self.lines.snapshots(Instant::now()) {
            if let Some(why) = snapshot.sick {
                status.push_str(&format!("; {}: {why}", line.telemetry.name));
            }
            if let Some(fault) = self.telemetry.device_fault(&line.telemetry.name) {
                status.push_str(&format!("; {}: {fault}", line.telemetry.name));
            }
        }
        status
    }

    /// Stops the cameras and lets the frames in flight be judged. Another [`Command::Stop`] cuts it short.
    fn drain(&mut self, why: &'static str, commands: &Receiver<Command>) -> Option<End> {
        let limit = self.in_force.config.daemon.drain;
        let until = Instant::now() + limit;
        self.lines.state().name = "stopping";
        self.tell_outlets(Instant::now());
        self.notifier.stopping();
        self.telemetry.emit(Event::Draining { why, limit });
        self.tell(Control::Drain { until });
        self.stopping = self.stop_cameras();
        let overdue = crossbeam_channel::at(until + GRACE);
        let ticks = crossbeam_channel::tick(Duration::from_millis(200));
        let mut commands = Some(commands);
        loop {
            let never = crossbeam_channel::never();
            select! {
                recv(self.end) -> end => return end.ok(),
                recv(commands.unwrap_or(&never)) -> command => match command {
                    Ok(Command::Stop(_)) => self.tell(Control::Drain { until: Instant::now() }),
                    Ok(Command::Reload) => {}
                    Err(_) => commands = None,
                },
                recv(ticks) -> _ => {
                    // A reload may have started a camera just before it heard of the end.
                    let more = self.stop_cameras();
                    self.stopping.extend(more);
                    self.tell_outlets(Instant::now());
                    if self.lines.heart.arrest(Instant::now()).is_none() {
                        self.notifier.feed();
                    }
                }
                recv(overdue) -> _ => return None,
            }
        }
    }

    /// Stops all cameras that run, without waiting for it.
    fn stop_cameras(&self) -> Stopping {
        let lines = self.in_force.config.lines.iter().enumerate();
        let cameras = lines.filter_map(|(i, line)| Some((line.name.clone(), self.cameras.take(i)?)));
        begin_stop(cameras, self.in_force.config.daemon.drain)
    }

    fn tell(&self, control: Control<P>) {
        // The verdict thread takes its messages at once; if it is gone, `end` says so.
        let _ = self.control.send_timeout(control, TELL_LIMIT);
    }

    /// For tests: what is published of each line.
    #[cfg(test)]
    pub(super) fn lines(&self) -> Arc<Lines> {
        Arc::clone(&self.lines)
    }

    /// Ends what still runs, checks the ledgers for the last time.
    fn finish(mut self, ended: Option<End>) -> Result<(), RunError> {
        let told_to_stop = self.lines.state().name == "stopping";
        if !told_to_stop {
            self.lines.state().name = "stopping";
            self.notifier.stopping();
        }
        let rest = self.stop_cameras();
        let stopped = await_stop(rest) & await_stop(std::mem::take(&mut self.stopping));
        let left = match ended {
            Some(End::Finished) => 0,
            Some(End::Cut(left) | End::WorkerGone(left)) => left,
            None => 0,
        };
        if left > 0 {
            self.telemetry.emit(Event::DrainLimit { left });
        }
        if let Some(Underway { thread, .. }) = self.reload.take() {
            self.threads.push(thread);
        }
        // A thread that is stuck (a model, a disk) ends with the process.
        let until = Instant::now() + GRACE;
        let joined = self.threads.drain(..).map(|thread| join_until(thread, until)).fold(true, |a, b| a & b);
        if !self.outlets.close() {
            tracing::warn!("An output over the network did not end in time and is left behind.");
        }
        let mut frames = 0;
        for (i, (line, snapshot)) in self.lines.snapshots(Instant::now()).into_iter().enumerate() {
            frames += snapshot.camera.captured;
            if snapshot.published.ended && !self.told[i].ended && !told_to_stop {
                self.telemetry.emit(Event::LineEnded { line: &line.telemetry.name });
            }
            if stopped && joined {
                let checked = ledger::check_final(&snapshot.published.counts, &snapshot.camera);
                if let Err(imbalance) = checked {
                    line.telemetry.emit(LineEvent::LedgerUnbalanced { detail: &imbalance });
                }
            }
        }
        drop(self.server.take());
        self.telemetry.emit(Event::Stopped { frames });
        match ended {
            Some(End::Finished | End::Cut(_)) => Ok(()),
            Some(End::WorkerGone(_)) => Err(RunError::WorkerGone),
            None => Err(RunError::ConductorGone),
        }
    }
}

type Stopping = Vec<std::io::Result<JoinHandle<Result<(), Problem>>>>;

/// Stops all cameras at once, each within `limit`, without waiting for it.
fn begin_stop(cameras: impl IntoIterator<Item = (LineName, StopCamera)>, limit: Duration) -> Stopping {
    let stop = |(name, stop): (LineName, StopCamera)| {
        std::thread::Builder::new().name(format!("stop {name}")).spawn(move || stop(limit))
    };
    cameras.into_iter().map(stop).collect()
}

/// Waits until all cameras have stopped. False if one did not.
fn await_stop(threads: Stopping) -> bool {
    let mut all = true;
    for thread in threads {
        let result = match thread.map(JoinHandle::join) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err("the camera's thread failed".into()),
            Err(error) => Err(Problem::from(error)),
        };
        if let Err(error) = result {
            tracing::warn!(%error, "A camera did not stop.");
            all = false;
        }
    }
    all
}

/// Waits for a thread, at most until then. False if it still runs.
fn join_until(thread: JoinHandle<()>, until: Instant) -> bool {
    while !thread.is_finished() {
        if Instant::now() >= until {
            let name = thread.thread().name().unwrap_or("unnamed").to_owned();
            tracing::warn!(thread = name, "A thread did not end in time and is left behind.");
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    thread.join().is_ok()
}
