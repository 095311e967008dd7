//! Logs: on standard error, as text or as JSON lines. An event is one line, whatever its texts hold: clients and upstreams
//! have their say in some of them.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, IsTerminal, Write},
};

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, filter::ParseError};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging what `filter` lets through, such as `info` or `info,tarn_agent::mirror=debug`.
///
/// # Errors
/// The filter has no meaning.
pub fn start(filter: &str, format: LogFormat) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(filter)?;
    let colours =
        if format == LogFormat::Text && io::stderr().is_terminal() { Colours::Yes } else { Colours::No };
    let writer = move || OneLine { inner: io::stderr(), format, colours };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Text => builder.with_ansi(colours == Colours::Yes).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Whether lines have the escape sequences of terminals; those that a text holds are escaped by the formatter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colours {
    Yes,
    No,
}

/// Writes each event as one line. The formatter hands over an event at a time.
struct OneLine<W> {
    inner: W,
    format: LogFormat,
    colours: Colours,
}

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.inner.write_all(&one_line(event, self.format, self.colours))?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The event with all its control characters escaped but for the line feed at its end: also those of two bytes, U+0080 to
/// U+009F, what else ends a line for some readers, U+2028 and U+2029, and what turns the order of a line round where it is
/// shown. In JSON they are escaped as JSON has it.
fn one_line(event: &[u8], format: LogFormat, colours: Colours) -> Cow<'_, [u8]> {
    let (text, end) = event.strip_suffix(b"\n").map_or((event, ""), |text| (text, "\n"));
    let text = String::from_utf8_lossy(text);
    let breaks = |c: char| {
        let colour = c == '\u{1b}' && colours == Colours::Yes;
        (c.is_control() && !colour) || reorders(c)
    };
    if !text.contains(breaks) {
        return Cow::Borrowed(event);
    }
    let mut line = String::with_capacity(event.len() + 16);
    for c in text.chars() {
        match format {
            _ if !breaks(c) => line.push(c),
            LogFormat::Text => line.extend(c.escape_default()),
            // All of them are below U+10000. Writing to a String cannot fail.
            LogFormat::Json => drop(write!(line, "\\u{:04x}", u32::from(c))),
        }
    }
    line.push_str(end);
    Cow::Owned(line.into_bytes())
}

/// Whether a character ends a line, or changes the direction of the text after it: without being a control character.
fn reorders(c: char) -> bool {
    matches!(
        c,
        '\u{2028}' | '\u{2029}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const HOSTILE: &str = "x\n2026-01-01T00:00:00Z  INFO tarn_agent::audit: served caller=\"forged\"\r\u{1b}[2K\u{85}\u{2028}\u{202e}\u{2066}\u{0}";

    #[test]
    fn no_text_of_others_begins_a_line_in_any_format() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let memory = Memory::default();
            let inner = memory.clone();
            let writer = move || OneLine { inner: inner.clone(), format, colours: Colours::No };
            let builder = tracing_subscriber::fmt().with_writer(writer);
            let log = || {
                tracing::info!(shown = %HOSTILE, debugged = ?HOSTILE, text = HOSTILE, "{HOSTILE}");
                tracing::info!("next");
            };
            match format {
                LogFormat::Text => tracing::subscriber::with_default(builder.with_ansi(false).finish(), log),
                LogFormat::Json => {
                    tracing::subscriber::with_default(builder.json().flatten_event(true).finish(), log);
                }
            }
            let written = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
            assert_eq!(written.lines().count(), 2, "{written}");
            let plain = |c: char| c == '\n' || !(c.is_control() || reorders(c));
            assert!(written.chars().all(plain), "{written:?}");
            assert!(written.contains("forged"), "it is told all the same");
            if format == LogFormat::Json {
                let event: serde_json::Value = serde_json::from_str(written.lines().next().unwrap()).unwrap();
                for field in ["message", "shown", "text"] {
                    assert_eq!(event[field], HOSTILE, "another text");
                }
            }
        }
    }

    #[test]
    fn colours_of_a_terminal_stay() {
        let event = b"\x1b[2mtime\x1b[0m line\n";
        assert_eq!(&*one_line(event, LogFormat::Text, Colours::Yes), event);
        assert_eq!(&*one_line(event, LogFormat::Text, Colours::No), b"\\u{1b}[2mtime\\u{1b}[0m line\n");
    }
}
