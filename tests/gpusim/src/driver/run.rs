//! Runs what streams hold, one unit at a time, whenever a caller waits for something.
//!
//! Nothing runs between calls: a copy that nobody waits for has not happened. When somebody waits, work
//! of all streams runs in an order drawn from the seed, as far as events and the legacy stream's rules
//! leave it open, until what is waited for is done. Work that has to run before other work but was not
//! told so will, with some seed, run after it.
//!
//! Two locks, always taken in this order: [`device`], which whoever runs work holds while it runs, and
//! [`state`], which is held for moments only, so that other threads may go on queuing.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};
use std::io::Write;
use std::sync::{Mutex, MutexGuard, OnceLock};

use super::context::{Context, FIRST_HANDLE, Ticket};
use super::device::{Device, Fault};
use super::inject::Kind;
use super::settings::{Chance, Sequence, Settings};
use super::status::*;
use super::work::{Handle, Host, Work};

/// Gets one line of JSON for each kernel run.
pub type CountersCallback = unsafe extern "C" fn(line: *const c_char, data: *mut c_void);

pub struct State {
    pub settings: Settings,
    pub chance: Chance,
    pub context: Option<Context>,
    pub initialized: bool,
    next_handle: Handle,
    kernels_run: u64,
    listener: Option<(CountersCallback, usize)>,
}

impl State {
    fn new(settings: Settings) -> Self {
        let chance = Chance::new(settings.seed);
        State {
            settings,
            chance,
            context: None,
            initialized: false,
            next_handle: FIRST_HANDLE,
            kernels_run: 0,
            listener: None,
        }
    }

    pub fn handle(&mut self) -> Handle {
        // Multiples of 16, as pointers would be.
        self.next_handle += 16;
        self.next_handle
    }

    /// The context, if this thread has made it current and it still works.
    pub fn live(&mut self) -> Answer<&mut Context> {
        let context = self.current()?;
        match context.fault {
            Some(status) => Err(status),
            None => Ok(context),
        }
    }

    /// The context, if this thread has made it current.
    pub fn current(&mut self) -> Answer<&mut Context> {
        if IN_CALLBACK.get() {
            return Err(NOT_PERMITTED);
        }
        if !self.initialized {
            return Err(NOT_INITIALIZED);
        }
        let current = CURRENT.get();
        match &mut self.context {
            Some(context) if context.handle == current => Ok(context),
            _ if current == 0 => Err(INVALID_CONTEXT),
            _ => Err(CONTEXT_IS_DESTROYED),
        }
    }

    pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        self.settings.set(key, value)?;
        if key == "SEED" {
            self.chance = Chance::new(self.settings.seed);
            self.kernels_run = 0;
        }
        Ok(())
    }

    pub fn listen(&mut self, listener: Option<CountersCallback>, data: usize) {
        self.listener = listener.map(|l| (l, data));
    }
}

thread_local! {
    /// The context that is current in this thread, 0 for none.
    pub static CURRENT: Cell<Handle> = const { Cell::new(0) };
    /// A host function runs in this thread; it may not call the driver.
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

pub fn state() -> MutexGuard<'static, State> {
    static STATE: OnceLock<Mutex<State>> = OnceLock::new();
    let state = STATE.get_or_init(|| Mutex::new(State::new(Settings::from_env())));
    // A panic in the simulator ends its call with an error; the state stays usable to report it.
    state.lock().unwrap_or_else(|e| e.into_inner())
}

pub fn device() -> MutexGuard<'static, Device> {
    static DEVICE: OnceLock<Mutex<Device>> = OnceLock::new();
    DEVICE.get_or_init(|| Mutex::new(Device::default())).lock().unwrap_or_else(|e| e.into_inner())
}

/// Waits until so many entries of each of the streams are done.
pub fn wait_for(targets: &[(Handle, u64)]) -> Answer {
    state().live_then_shuffle()?;
    loop {
        let mut device = device();
        let mut s = state();
        let context = s.live()?;
        if targets.iter().all(|(stream, count)| context.reached(*stream, *count)) {
            return Ok(());
        }
        if !step(&mut device, s)? {
            eprintln!("simulated GPU: nothing can run, yet something is waited for: a bug of the simulator");
            return Err(UNKNOWN);
        }
    }
}

/// Whether it is done; if not, a little more of what is queued is done now.
pub fn poll(targets: &[(Handle, u64)]) -> Answer {
    let mut device = device();
    let mut s = state();
    let context = s.live()?;
    if targets.iter().all(|(stream, count)| context.reached(*stream, *count)) {
        return Ok(());
    }
    step(&mut device, s)?;
    Err(NOT_READY)
}

impl State {
    fn live_then_shuffle(&mut self) -> Answer {
        self.live()?;
        if let Some(context) = &mut self.context {
            context.shuffle(&mut self.chance);
        }
        Ok(())
    }
}

/// Runs one unit of work of any stream; `false` if none can.
fn step(device: &mut Device, mut s: MutexGuard<'static, State>) -> Answer<bool> {
    let State { settings, chance, context, .. } = &mut *s;
    let Some(context) = context else { return Err(INVALID_CONTEXT) };
    let sequence = settings.sequence;
    let Some(ticket) = context.pick(sequence, chance) else { return Ok(false) };
    let result = match check_host_memory(context, &ticket.work) {
        Ok(()) => match injected(settings, &ticket.work) {
            Some(status) => Err(Fault { status, text: "a planned failure".to_owned() }),
            None => {
                let seed = chance.next();
                let plan = Plan { sequence, seed, check: settings.check, threads: settings.threads };
                drop(s);
                let result = execute(device, &ticket, plan);
                s = state();
                result
            }
        },
        Err(fault) => Err(fault),
    };
    conclude(&mut s, &ticket, result)
}

/// What decides the order within a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub sequence: Sequence,
    pub seed: u64,
    pub check: bool,
    pub threads: usize,
}

fn injected(settings: &mut Settings, work: &Work) -> Option<Status> {
    let kind = match work {
        Work::Kernel(_) => Kind::LaunchSticky,
        Work::Upload { .. } | Work::Download { .. } | Work::Copy { .. } => Kind::CopySticky,
        _ => return None,
    };
    settings.fail.count(kind).err()
}

/// A copy's pinned memory is still the allocation that was meant. Freeing takes the device's lock, so it
/// stays so while the copy runs.
fn check_host_memory(context: &Context, work: &Work) -> Result<(), Fault> {
    let (host, bytes, what) = match work {
        Work::Upload { from, bytes, .. } => (from, *bytes, "reads"),
        Work::Download { to, bytes, .. } => (to, *bytes, "writes"),
        _ => return Ok(()),
    };
    match host {
        Host::Pinned { address, pin } if context.pin(*address, bytes) != Some(*pin) => Err(Fault {
            status: ILLEGAL_ADDRESS,
            text: format!(
                "a queued copy {what} {bytes} bytes of pinned memory at {address:#x} that was freed meanwhile"
            ),
        }),
        _ => Ok(()),
    }
}

fn conclude(s: &mut State, ticket: &Ticket, result: Result<Option<String>, Fault>) -> Answer<bool> {
    match result {
        Ok(counters) => {
            if let Some(context) = &mut s.context {
                context.finish(ticket);
                if let Work::Free(address) = ticket.work {
                    context.release(address);
                }
            }
            if let (Work::Upload { from, bytes, .. }, Some(path)) = (&ticket.work, &s.settings.copies) {
                let pinned = matches!(from, Host::Pinned { .. });
                append(path, "GPUSIM_COPIES", &format!("{{\"pinned\":{pinned},\"bytes\":{bytes}}}"));
            }
            if let Some(line) = counters {
                s.kernels_run += 1;
                report(s, line);
            }
            Ok(true)
        }
        Err(fault) => {
            let seed = s.settings.seed;
            let order = match s.settings.sequence {
                Sequence::Random => format!("GPUSIM_SEED={seed}"),
                Sequence::Forward => "GPUSIM_ORDER=forward".to_owned(),
                Sequence::Reverse => "GPUSIM_ORDER=reverse".to_owned(),
            };
            let status = fault.status;
            let name = describe(status).map_or("", |(name, _)| name.to_str().unwrap_or_default());
            eprintln!("simulated GPU: {}", fault.text);
            eprintln!("simulated GPU: the context is lost: {name} ({status}); {order} shows it again");
            if let Some(context) = &mut s.context {
                context.lose(status);
            }
            Err(status)
        }
    }
}

fn report(s: &State, line: String) {
    if let Some(path) = &s.settings.counters {
        append(path, "GPUSIM_COUNTERS", &line);
    }
    if let Some((listener, data)) = s.listener
        && let Ok(line) = CString::new(line)
    {
        // SAFETY: whoever installed the listener vouches for it and its data until it is taken off.
        unsafe { listener(line.as_ptr(), data as *mut c_void) }
    }
}

fn append(path: &str, key: &str, line: &str) {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    if let Err(e) = file.and_then(|mut f| writeln!(f, "{line}")) {
        eprintln!("simulated GPU: {key}: {path}: {e}");
    }
}

/// Runs the work. For a kernel, its counters as a line of JSON.
fn execute(device: &mut Device, ticket: &Ticket, plan: Plan) -> Result<Option<String>, Fault> {
    match &ticket.work {
        Work::Kernel(call) => return device.launch(call, ticket.stream, plan).map(Some),
        Work::Fill { to, value, width, count } => device.fill(*to, *value, *width, *count)?,
        Work::Upload { to, from, bytes } => match from {
            Host::Staged(data) => device.write(*to, data)?,
            Host::Pinned { address, .. } | Host::Pageable { address } => {
                // SAFETY: pinned memory was found still pinned, and is kept so by the device's lock;
                // nobody may write it while a copy reads it, as with a real driver.
                let data = unsafe { std::slice::from_raw_parts(*address as *const u8, *bytes) };
                device.write(*to, data)?;
            }
        },
        Work::Download { to, from, bytes } => {
            let address = match to {
                Host::Staged(_) => return Ok(None),
                Host::Pinned { address, .. } | Host::Pageable { address } => *address,
            };
            // SAFETY: as above; a pageable destination belongs to a call that has not returned.
            let data = unsafe { std::slice::from_raw_parts_mut(address as *mut u8, *bytes) };
            device.read(*from, data, plan.check)?;
        }
        Work::Copy { to, from, bytes } => device.copy(*to, *from, *bytes)?,
        Work::Free(address) => device.free(*address)?,
        Work::Callback(callback) => {
            IN_CALLBACK.set(true);
            // SAFETY: the caller of cuLaunchHostFunc vouches for function and data.
            unsafe { (callback.function)(callback.data) };
            IN_CALLBACK.set(false);
        }
        Work::Record { .. } | Work::Nothing => {}
    }
    Ok(None)
}
