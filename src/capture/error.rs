//! What can go wrong when a camera is set up. Faults of a running camera are not errors: they are
//! logged, counted by [`RestartReason`](super::RestartReason) and answered by a restart.

use std::io;
use std::time::Duration;

/// Why a camera could not be set up or stopped.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(
        "GStreamer could not be started: {message}. Install it with: \
         sudo apt install gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
    )]
    Init { message: String },

    #[error("camera `{camera}`: {field} {problem}")]
    Config { camera: String, field: &'static str, problem: String },

    /// `hint` says what to type.
    #[error("camera `{camera}`: there is no GStreamer element `{element}`. {hint}")]
    MissingElement { camera: String, element: String, hint: String },

    /// `hint` says what to type.
    #[error("camera `{camera}`: the source `{fragment}` is not a pipeline: {message}. {hint}")]
    Fragment { camera: String, fragment: String, message: String, hint: String },

    #[error(
        "camera `{camera}`: no memory for {slots} slots of {slot_bytes} bytes: {source}. \
         Lower `slots`, or the picture's size in the source's caps"
    )]
    Slots { camera: String, slots: usize, slot_bytes: usize, source: io::Error },

    #[error(
        "camera `{camera}`: its thread could not be started: {source}. Check the limit on threads (TasksMax=)"
    )]
    Thread { camera: String, source: io::Error },

    #[error(
        "camera `{camera}` did not stop within {limit:?}: its driver is still busy. \
         It is left behind; a camera that was unplugged may need up to 10 s"
    )]
    StopTimeout { camera: String, limit: Duration },
}
