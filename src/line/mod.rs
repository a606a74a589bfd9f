//! The running daemon: lines, deadlines, verdicts, reload, shutdown.
//!
//! | constraint | value |
//! |---|---|
//! | frames that wait to be judged | `queue` per line; full: `drop` says who gives way, counted |
//! | frames judged at once | 1 per device, nearest deadline first; up to `batch` where lines share a model on a GPU |
//! | a part past its deadline | verdict late at the deadline, even while another frame is judged |
//! | who allocates per frame | nobody on the inference thread |
//! | who waits for an output | nobody (see `outputs`) |
//! | ledger | captured = verdicts + dropped(reason) + in flight, per line; checked every second and at the end |
//! | reload | prepared on a thread of its own, in force between two frames; all or nothing |
//! | watchdog | fed while the threads that all lines share make progress |
//!
//! Threads and what passes between them: see [`daemon`]. All frames meet at one place, the desk, which
//! is a plain value ([`Desk`]) and is tested as one.

pub mod camera;
pub mod company;
mod conductor;
pub mod daemon;
mod desk;
mod health;
mod heart;
mod judge;
mod ledger;
mod notify;
mod reload;
mod shared;
pub mod standby;
mod supply;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod trigger;

pub use desk::{Counts, Desk, FrameId, Picture, Terms};
pub use judge::Judge;
pub use reload::InForce;
pub use supply::{FileStamp, Made, ModelFacts, NoJudge, Supplier};

/// What went wrong in another room, or in a fake of one.
pub type Problem = Box<dyn std::error::Error + Send + Sync>;
