//! How a command ends: exit codes after sysexits(3), and the one shape of an error message.
//!
//! A failure prints as
//!
//! ```text
//! error: model.safetensors cannot be read: it ends after 12 of 96 bytes of header
//!   because: unexpected end of file
//!   try: inspectd teach --images DIR --out model.safetensors
//! ```

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

/// Exit codes after sysexits(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The reader of our output went away (`inspectd judge … | head -1`): an end, not an error.
    ReaderGone = 0,
    /// A comparison came out unequal, as in diff(1).
    Differs = 1,
    /// The command line is wrong.
    Usage = 64,
    /// An image or a model is corrupt or of the wrong kind.
    Data = 65,
    /// What should be read is not there.
    NoInput = 66,
    /// Something that is needed (a device, a plugin, a camera) is not available.
    Unavailable = 69,
    /// A fault of ours.
    Internal = 70,
    /// An output cannot be created.
    CantCreate = 73,
    /// Reading or writing failed half-way.
    Io = 74,
    /// The configuration is wrong.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a command failed: the exit code, the error with its causes, and what to type next.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    error: anyhow::Error,
    hint: Option<String>,
}

impl Failure {
    /// From an error value; its sources are printed as causes.
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Failure { exit, error: error.into(), hint: None }
    }

    /// From a sentence.
    pub fn say(exit: Exit, message: impl fmt::Display + fmt::Debug + Send + Sync + 'static) -> Self {
        Failure { exit, error: anyhow::Error::msg(message), hint: None }
    }

    /// What to type instead; printed as `try: …`.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// For a write to stdout: a closed pipe ends the command quietly, anything else is an I/O error.
    pub fn stdout(error: std::io::Error) -> Self {
        let exit = match error.kind() {
            std::io::ErrorKind::BrokenPipe => Exit::ReaderGone,
            _ => Exit::Io,
        };
        Failure::new(exit, anyhow::Error::new(error).context("standard output cannot be written"))
    }

    /// Prints to stderr and gives the code to end with.
    pub fn report(&self) -> ExitCode {
        if self.exit != Exit::ReaderGone {
            // stderr may be closed too; there is nobody left to tell then.
            let _ = write!(std::io::stderr().lock(), "{self}");
        }
        self.exit.into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = self.error.to_string();
        writeln!(f, "error: {told}")?;
        for cause in self.error.chain().skip(1) {
            let cause = cause.to_string();
            // Many errors already quote their source; once is enough.
            if !told.contains(&cause) {
                writeln!(f, "  because: {cause}")?;
                told = cause;
            }
        }
        match &self.hint {
            Some(hint) => writeln!(f, "  try: {hint}"),
            None => Ok(()),
        }
    }
}

/// `result.or_exit(Exit::Data)?`
pub trait OrExit<T> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(exit, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_failure_prints_what_happened_why_and_what_to_type() {
        let cause: Result<(), _> = Err(std::io::Error::other("the disk is on fire"));
        let error = cause.context("the map /tmp/a.png cannot be written").unwrap_err();
        let failure = Failure::new(Exit::CantCreate, error).hint("inspectd judge --maps DIR");
        assert_eq!(
            failure.to_string(),
            "error: the map /tmp/a.png cannot be written\n  because: the disk is on fire\n  try: inspectd judge --maps DIR\n"
        );
        assert_eq!(failure.exit(), Exit::CantCreate);
    }

    #[test]
    fn a_cause_that_the_message_already_quotes_is_not_repeated() {
        let inner: Result<(), _> = Err(std::io::Error::other("end of file"));
        let error = inner.context("a.png is corrupt: end of file").unwrap_err();
        assert_eq!(Failure::new(Exit::Data, error).to_string(), "error: a.png is corrupt: end of file\n");
    }

    #[test]
    fn a_closed_pipe_is_an_end_and_not_an_error() {
        let gone = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(Failure::stdout(gone).exit(), Exit::ReaderGone);
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert_eq!(Failure::stdout(full).exit(), Exit::Io);
    }
}
