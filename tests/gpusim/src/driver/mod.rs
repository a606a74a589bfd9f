//! A stand-in for `libcuda.so.1` on top of the interpreter: the unmodified program, which loads the
//! driver by that name, runs on the simulated GPU.
//!
//! * `api_*`: the functions of the driver, by name. Each parses its arguments and does one thing.
//! * [`run`]: streams are lazy; when somebody waits, their work runs in a random order that events and
//!   the legacy stream's rules allow.
//! * [`context`], [`capture`]: streams, events, captures, graphs. [`work`]: what streams hold.
//! * [`inject`]: failures on demand. [`settings`]: what `GPUSIM_*` says.
//!
//! Handles are numbers, never reused: a stale one is an error, not a crash. A fault (and that includes
//! reads of uninitialised memory, races, copies of memory freed meanwhile) is told on stderr and loses
//! the context: every later call fails until the primary context is reset, or released by all and
//! retained anew.
//!
//! Beyond the driver's own functions the library has `gpusim_set`, `gpusim_fail` and `gpusim_counters`.

mod api_device;
mod api_memory;
mod api_module;
mod api_stream;
mod capture;
mod context;
mod device;
mod inject;
mod run;
mod settings;
mod status;
mod work;

pub use api_device::*;
pub use api_memory::*;
pub use api_module::*;
pub use api_stream::*;
pub use run::CountersCallback;

/// Exports functions of the driver: what their bodies answer becomes a `CUresult`, a panic (a bug of the
/// simulator) `CUDA_ERROR_UNKNOWN` instead of an unwinding through C.
macro_rules! driver {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[$doc])*
            /// # Safety
            /// Pointers have to be valid as the driver API's manual says.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $type),*) -> $crate::driver::Status {
                $crate::driver::answer(stringify!($name), move || $body)
            }
        )*
    };
}
use driver;
pub use status::Status;

fn answer(name: &str, call: impl FnOnce() -> status::Answer) -> Status {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)) {
        Ok(Ok(())) => status::SUCCESS,
        Ok(Err(status)) => {
            if std::env::var_os("GPUSIM_TRACE").is_some() {
                eprintln!("simulated GPU: {name} answers {status}");
            }
            status
        }
        Err(_) => {
            eprintln!("simulated GPU: {name} ended by a bug of the simulator");
            status::UNKNOWN
        }
    }
}

/// Writes a result where the caller wants it.
fn put<T>(to: *mut T, value: T) -> status::Answer {
    if to.is_null() {
        return Err(status::INVALID_VALUE);
    }
    // SAFETY: not null, and by the API's contract valid for writing a T.
    unsafe { to.write(value) };
    Ok(())
}

/// Tells the person what the bare code does not.
fn refuse<T>(status: Status, why: std::fmt::Arguments) -> status::Answer<T> {
    eprintln!("simulated GPU: {why}");
    Err(status)
}
