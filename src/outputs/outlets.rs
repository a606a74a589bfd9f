//! Which outputs over the network there are: started, kept over a reload, and ended.
//!
//! | constraint | value |
//! |---|---|
//! | threads | one per `[line.modbus]`, one per `[line.webhook]`, one for `[mqtt]` |
//! | a reload | outputs whose settings are the same keep their connection and queue |
//! | a refused reload | touches none: new outputs connect only once they are in force |
//! | an output that was replaced | sends what it has within [`END_LIMIT`]; its successor waits for it |

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use jiff::Timestamp;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};

use super::outlet::{Door, END_LIMIT, Far, Link, Near, Overflow, queue};
use super::{Outlet, OutputError, modbus, mqtt, webhook};
use crate::config::{Config, LineName, ModbusConfig, MqttConfig, OfVerdicts, WebhookConfig};
use crate::telemetry::{OutletKind, OutletMeter, Telemetry};

/// Longer first lines of a file with a password or a token are refused.
const LONGEST_SECRET: usize = 4096;
/// A thread of an output that failed begins anew after so long.
const ANEW: Duration = Duration::from_secs(5);
/// What is told of a line holds for so long: then whoever tells is taken for hung.
const STALE: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LineStatus {
    Starting,
    Running,
    /// It makes no progress.
    Sick,
    /// Its source has ended.
    Ended,
    Stopping,
}

/// What the outputs know of a line beside its verdicts.
#[derive(Clone, Debug)]
pub(super) struct LineState {
    pub status: LineStatus,
    /// As a clause; when it began.
    pub why: Option<String>,
    pub since: Timestamp,
    told: Instant,
}

impl LineState {
    /// Parts can be judged, as far as is known.
    pub fn is_ready(&self) -> bool {
        self.status == LineStatus::Running && self.is_fresh()
    }

    /// Whoever tells is alive.
    pub fn is_fresh(&self) -> bool {
        self.told.elapsed() < STALE
    }
}

/// The states of all lines.
#[derive(Debug)]
pub(super) struct States {
    pub lines: Vec<(LineName, watch::Sender<LineState>)>,
    /// Counts changes of any.
    pub changes: watch::Sender<u64>,
}

impl States {
    fn new(lines: impl Iterator<Item = LineName>) -> Self {
        let state = || {
            let (status, since, told) = (LineStatus::Starting, Timestamp::now(), Instant::now());
            watch::Sender::new(LineState { status, why: None, since, told })
        };
        States { lines: lines.map(|line| (line, state())).collect(), changes: watch::Sender::new(0) }
    }

    pub fn of(&self, line: &LineName) -> watch::Receiver<LineState> {
        match self.lines.iter().find(|(name, _)| name == line) {
            Some((_, state)) => state.subscribe(),
            // Nobody tells of it, so it is never ready.
            None => States::new([line.clone()].into_iter()).lines.remove(0).1.subscribe(),
        }
    }

    fn tell(&self, line: &str, status: LineStatus, why: Option<&str>) {
        let Some((_, state)) = self.lines.iter().find(|(name, _)| name.as_str() == line) else { return };
        let changed = state.send_if_modified(|state| {
            state.told = Instant::now();
            let changed = state.status != status;
            if changed {
                (state.status, state.why, state.since) = (status, why.map(str::to_owned), Timestamp::now());
            }
            changed
        });
        if changed {
            self.changes.send_modify(|n| *n += 1);
        }
    }
}

/// A password or a token. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(String);

impl Secret {
    pub fn reveal(&self) -> &str {
        &self.0
    }

    fn read(path: &Path) -> Result<Self, OutputError> {
        let failed = |source| OutputError::Secret { path: path.to_owned(), source };
        let bytes = std::fs::read(path).map_err(failed)?;
        let line = bytes.split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or(&[]);
        let visible = line.iter().all(|byte| (b' '..=b'~').contains(byte));
        if line.is_empty() || line.len() > LONGEST_SECRET || !visible {
            let why = format!("its first line must be 1 to {LONGEST_SECRET} visible ASCII characters");
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        Ok(Secret(String::from_utf8_lossy(line).into_owned()))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// All that an output depends on: if it is the same, the output is.
#[derive(Clone, Debug, PartialEq)]
enum Spec {
    Modbus { line: LineName, config: ModbusConfig },
    Webhook { line: LineName, config: WebhookConfig, token: Option<Secret> },
    Mqtt { config: MqttConfig, password: Option<Secret>, ca: Option<Vec<u8>> },
}

impl Spec {
    fn all(config: &Config) -> Result<Vec<Spec>, OutputError> {
        let secret = |path: &Option<std::path::PathBuf>| match path {
            Some(path) => Secret::read(path).map(Some),
            None => Ok(None),
        };
        let mut all = Vec::new();
        if let Some(config) = &config.mqtt {
            let (password, ca) = (secret(&config.password_file)?, mqtt::authorities(config)?);
            all.push(Spec::Mqtt { config: config.clone(), password, ca });
        }
        for line in &config.lines {
            if let Some(config) = &line.modbus {
                all.push(Spec::Modbus { line: line.name.clone(), config: config.clone() });
            }
            if let Some(config) = &line.webhook {
                let token = secret(&config.token_file)?;
                all.push(Spec::Webhook { line: line.name.clone(), config: config.clone(), token });
            }
        }
        Ok(all)
    }

    fn kind(&self) -> OutletKind {
        match self {
            Spec::Modbus { .. } => OutletKind::Modbus,
            Spec::Webhook { .. } => OutletKind::Webhook,
            Spec::Mqtt { .. } => OutletKind::Mqtt,
        }
    }

    /// `None`: it serves all.
    fn line(&self) -> Option<&LineName> {
        match self {
            Spec::Modbus { line, .. } | Spec::Webhook { line, .. } => Some(line),
            Spec::Mqtt { .. } => None,
        }
    }

    fn of(&self) -> OfVerdicts {
        match self {
            Spec::Modbus { .. } | Spec::Mqtt { .. } => OfVerdicts::All,
            Spec::Webhook { config, .. } => config.of,
        }
    }

    fn queue(&self) -> (Near, Far) {
        match self {
            Spec::Modbus { .. } => queue(modbus::QUEUE, Overflow::Oldest),
            Spec::Webhook { .. } => queue(webhook::QUEUE, Overflow::Newest),
            Spec::Mqtt { .. } => queue(mqtt::QUEUE, Overflow::Newest),
        }
    }

    fn address(&self) -> String {
        match self {
            Spec::Modbus { config, .. } => config.address.to_string(),
            Spec::Webhook { config, .. } => config.url.text.clone(),
            Spec::Mqtt { config, .. } => config.broker.text.clone(),
        }
    }

    fn run(&self, runtime: &Runtime, far: &mut Far, link: &mut Link, states: &States) {
        match self {
            Spec::Modbus { line, config } => runtime.block_on(async {
                let overdue = far.overdue();
                tokio::select! {
                    () = modbus::run(config, far, link, states.of(line)) => {}
                    () = overdue => {}
                }
            }),
            Spec::Webhook { config, token, .. } => {
                webhook::run(runtime, config, token.as_ref(), far, link);
            }
            Spec::Mqtt { config, password, ca } => {
                runtime.block_on(mqtt::run(config, password.as_ref(), ca.as_deref(), far, link, states));
            }
        }
    }
}

/// An output and its thread.
#[derive(Debug)]
struct Running {
    spec: Spec,
    near: Near,
    /// Of its line, or of every line.
    meters: Vec<(LineName, Arc<OutletMeter>)>,
    /// Taken once it is in force. Holds the ends of those that it replaces.
    begin: Option<oneshot::Sender<Vec<Receiver<()>>>>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
}

impl Running {
    fn start(spec: Spec, telemetry: &Telemetry, states: &Arc<States>) -> Result<Self, OutputError> {
        let (near, far) = spec.queue();
        let meter = |line: &LineName| {
            let meter = OutletMeter::new(telemetry.metrics(), line.as_str(), spec.kind());
            (line.clone(), Arc::new(meter))
        };
        let meters = match spec.line() {
            Some(line) => vec![meter(line)],
            None => states.lines.iter().map(|(line, _)| meter(line)).collect(),
        };
        let (begin, begun) = oneshot::channel();
        let (end, ended) = bounded(0);
        let (own, telemetry, states) = (spec.clone(), telemetry.clone(), Arc::clone(states));
        let name = match spec.line() {
            Some(line) => format!("{} {line}", spec.kind().label()),
            None => spec.kind().label().to_owned(),
        };
        let failed = |source| OutputError::Thread { name: spec.kind().label(), source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(failed)?;
        std::thread::Builder::new()
            .name(name)
            .spawn(move || live(&own, &runtime, far, begun, telemetry, &states, end))
            .map_err(failed)?;
        Ok(Running { spec, near, meters, begin: Some(begin), ended })
    }

    fn door(&self, line: &LineName) -> Option<Arc<dyn Outlet>> {
        let (_, meter) = self.meters.iter().find(|(name, _)| name == line)?;
        Some(Arc::new(Door { near: self.near.clone(), meter: Arc::clone(meter), of: self.spec.of() }))
    }
}

/// The thread of an output.
fn live(
    spec: &Spec,
    runtime: &Runtime,
    mut far: Far,
    begun: oneshot::Receiver<Vec<Receiver<()>>>,
    telemetry: Telemetry,
    states: &States,
    // Dropped last: whoever waits for it may rely on the rest.
    _end: Sender<()>,
) {
    // Never in force: the reload was refused.
    let Ok(before) = begun.blocking_recv() else { return far.end() };
    let until = Instant::now() + END_LIMIT + END_LIMIT;
    for ended in before {
        // Both ways the wait is over.
        let _ = ended.recv_deadline(until);
    }
    let line = spec.line().map_or("", LineName::as_str);
    let mut link = Link::new(&far, telemetry, line, spec.kind(), spec.address());
    loop {
        // What peers send goes through other people's parsers. If one of them fails, this output begins
        // anew and all others never notice.
        let run = || spec.run(runtime, &mut far, &mut link, states);
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            Ok(()) => break,
            Err(_) => link.down(&"its thread failed; this is a fault of inspectd"),
        }
        if runtime.block_on(far.pause(ANEW)) {
            break;
        }
    }
    far.end();
}

/// All outputs over the network.
pub struct Outlets {
    telemetry: Telemetry,
    states: Arc<States>,
    /// `None`: the daemon is ending.
    running: Mutex<Option<Vec<Running>>>,
}

/// Outputs of a configuration that is not in force yet. Dropped, they end and nobody has heard of them.
#[derive(Debug)]
pub struct Staged(Vec<Slot>);

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a handful of them, for as long as a reload takes")]
enum Slot {
    /// It runs already.
    Kept {
        at: usize,
        doors: Vec<(LineName, Arc<dyn Outlet>)>,
    },
    New(Running),
}

impl Outlets {
    pub fn new(telemetry: Telemetry, config: &Config) -> Self {
        let states = States::new(config.lines.iter().map(|line| line.name.clone()));
        Outlets { telemetry, states: Arc::new(states), running: Mutex::new(Some(Vec::new())) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes ready what `config` names and does not run yet.
    pub fn stage(&self, config: &Config) -> Result<Staged, OutputError> {
        let running = self.lock();
        let running = running.as_deref().unwrap_or_default();
        let slot = |spec: Spec| match running.iter().enumerate().find(|(_, running)| running.spec == spec) {
            Some((at, running)) => {
                let door = |(line, _): &(LineName, _)| Some((line.clone(), running.door(line)?));
                Ok(Slot::Kept { at, doors: running.meters.iter().filter_map(door).collect() })
            }
            None => Running::start(spec, &self.telemetry, &self.states).map(Slot::New),
        };
        Ok(Staged(Spec::all(config)?.into_iter().map(slot).collect::<Result<_, _>>()?))
    }

    /// Call it once the rules with the staged outputs are in force: new ones begin, and those that no
    /// rules hold any more end.
    pub fn commit(&self, staged: Staged) {
        let mut guard = self.lock();
        let Some(running) = guard.as_mut() else { return };
        let mut old: Vec<Option<Running>> = std::mem::take(running).into_iter().map(Some).collect();
        let mut fresh = Vec::new();
        for slot in staged.0 {
            match slot {
                Slot::Kept { at, .. } => running.extend(old.get_mut(at).and_then(Option::take)),
                Slot::New(running) => fresh.push(running),
            }
        }
        let old: Vec<Running> = old.into_iter().flatten().collect();
        old.iter().for_each(|running| running.near.close());
        let same = |one: &Running, other: &Running| {
            (one.spec.kind(), one.spec.line()) == (other.spec.kind(), other.spec.line())
        };
        for gone in old.iter().filter(|gone| !fresh.iter().any(|new| same(gone, new))) {
            let labels = [gone.spec.line().map_or("", LineName::as_str), gone.spec.kind().label()];
            // Fails if it never began.
            let _ = self.telemetry.metrics().output_up.remove_label_values(&labels);
        }
        for mut new in fresh {
            let before =
                old.iter().filter(|other| same(&new, other)).map(|other| other.ended.clone()).collect();
            if let Some(begin) = new.begin.take() {
                // The thread waits for nothing else.
                let _ = begin.send(before);
            }
            running.push(new);
        }
    }

    /// What is known of a line now. To be told at least once a second: what was told long ago does not
    /// count, and the heartbeat stops.
    pub fn tell(&self, line: &str, status: LineStatus, why: Option<&str>) {
        self.states.tell(line, status, why);
    }

    /// Lets all send what they have and ends them. False if one did not end in time.
    pub fn close(&self) -> bool {
        let running = self.lock().take().unwrap_or_default();
        running.iter().for_each(|running| running.near.close());
        let until = Instant::now() + END_LIMIT + Duration::from_secs(1);
        let gone = |running: &Running| {
            running.ended.recv_deadline(until) == Err(crossbeam_channel::RecvTimeoutError::Disconnected)
        };
        running.iter().map(gone).fold(true, |all, one| all & one)
    }

    /// Sent, lost and waiting of a line's output.
    #[cfg(test)]
    pub(super) fn meter(&self, line: &str, kind: OutletKind) -> Option<Arc<OutletMeter>> {
        let running = self.lock();
        let running = running.iter().flatten().find(|running| {
            running.spec.kind() == kind && running.spec.line().is_none_or(|own| own.as_str() == line)
        })?;
        running.meters.iter().find(|(name, _)| name.as_str() == line).map(|(_, meter)| Arc::clone(meter))
    }
}

impl Drop for Outlets {
    fn drop(&mut self) {
        self.lock().iter().flatten().for_each(|running| running.near.close());
    }
}

impl Staged {
    /// What the rules of a line hold.
    pub fn of(&self, line: &LineName) -> Vec<Arc<dyn Outlet>> {
        let door = |slot: &Slot| match slot {
            Slot::Kept { doors, .. } => {
                doors.iter().find(|(name, _)| name == line).map(|(_, door)| Arc::clone(door))
            }
            Slot::New(running) => running.door(line),
        };
        self.0.iter().filter_map(door).collect()
    }
}
