//! The binary as tests start it: with a configuration, and with nothing that the tests' own surroundings say to a
//! daemon.

use std::path::Path;
use std::process::Command;

/// `inspectd ARGUMENTS --config CONFIG`.
pub fn inspectd(arguments: &[&str], config: &Path) -> Command {
    let mut inspectd = Command::new(env!("CARGO_BIN_EXE_inspectd"));
    inspectd.args(arguments).arg("--config").arg(config).env("RUST_BACKTRACE", "0");
    for name in ["INSPECTD_LOG", "STATE_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM"] {
        inspectd.env_remove(name);
    }
    inspectd
}
