//! What systemd is told, and what it wants to hear: readiness, reloads, the watchdog, a status line.

use std::time::Duration;

use sd_notify::NotifyState;

/// Speaks to `$NOTIFY_SOCKET`; does nothing where there is none.
#[derive(Debug, Default)]
pub struct Notifier {
    status: String,
}

impl Notifier {
    /// How often the watchdog wants to be fed, if there is one: at half of its time at the latest.
    pub fn watchdog() -> Option<Duration> {
        sd_notify::watchdog_enabled().map(|limit| limit / 3)
    }

    pub fn ready(&mut self, status: &str) {
        send(&[NotifyState::Ready, NotifyState::Status(status)]);
        self.status = status.to_owned();
    }

    /// A reload begins; [`ready`](Self::ready) ends it. Time and message go together, as later systemd
    /// versions (Type=notify-reload) want it.
    pub fn reloading(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => send(&[NotifyState::Reloading, now]),
            Err(_) => send(&[NotifyState::Reloading]),
        }
    }

    pub fn stopping(&mut self) {
        send(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    }

    pub fn feed(&mut self) {
        send(&[NotifyState::Watchdog]);
    }

    /// Says `status` if it is news.
    pub fn status(&mut self, status: &str) {
        if self.status != status {
            send(&[NotifyState::Status(status)]);
            self.status = status.to_owned();
        }
    }
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd cannot be told.");
    }
}
