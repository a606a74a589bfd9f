//! Where log lines go and how they look.

use std::fmt;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people: time, level, sentence, fields.
    Text,
    /// One JSON object a line.
    Json,
    /// A priority that journald understands, and no time, because journald has its own.
    Journald,
}

/// Journald if standard error goes there, else text.
pub fn detect() -> Format {
    let journal = std::env::var("JOURNAL_STREAM").ok();
    let stderr = std::fs::metadata("/proc/self/fd/2").ok().map(|meta| (meta.dev(), meta.ino()));
    if is_journal(journal.as_deref(), stderr) { Format::Journald } else { Format::Text }
}

/// sd_journal_stream(3): the variable is inherited, so device and inode have to be compared.
fn is_journal(variable: Option<&str>, stderr: Option<(u64, u64)>) -> bool {
    variable.is_some() && variable == stderr.map(|(dev, ino)| format!("{dev}:{ino}")).as_deref()
}

/// Sends log lines from `level` on to standard error. `$INSPECTD_LOG` wins over `level`.
/// Does nothing if logging is set up already.
pub fn init(format: Format, level: &str) {
    let filter = match std::env::var("INSPECTD_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::new(text),
        _ => EnvFilter::new(level),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let done = match format {
        Format::Text => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().flatten_event(true).with_target(false).try_init(),
        Format::Journald => builder.with_ansi(false).event_format(JournaldFormat).try_init(),
    };
    if done.is_err() {
        tracing::debug!("Logging was set up before; it stays as it is.");
    }
}

/// `<6>sentence field=value`, sd-daemon(3).
struct JournaldFormat;

impl<S, N> FormatEvent<S, N> for JournaldFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        let mut text = String::new();
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        // One event is one journal entry: a sentence over several lines keeps its priority on each.
        let more = format!("\n<{}>", priority(*event.metadata().level()));
        writeln!(writer, "{}", text.replace('\n', &more))
    }
}

fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_recognised_by_device_and_inode() {
        assert!(is_journal(Some("8:1234"), Some((8, 1234))));
        assert!(!is_journal(Some("8:1234"), Some((8, 99))), "redirected since");
        assert!(!is_journal(None, Some((8, 1234))));
        assert!(!is_journal(Some("8:1234"), None));
    }
}
