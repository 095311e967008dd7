//! What a person sees: a bar while bytes arrive, a line per step, a line per fallback. Standard error only.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// Bars, steps and reasons: there is a terminal.
    Progress,
    /// Reasons only.
    Reasons,
    /// Nothing but the error at the end.
    Nothing,
}

/// Standard error, as far as this run uses it.
#[derive(Debug)]
pub struct Screen {
    shown: Shown,
    bar: ProgressBar,
}

impl Screen {
    /// Shows progress on a terminal, reasons elsewhere, and nothing if `quiet`.
    pub fn new(quiet: bool) -> Self {
        let shown = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Shown::Nothing,
            (false, true) => Shown::Progress,
            (false, false) => Shown::Reasons,
        };
        let bar = if shown == Shown::Progress { ProgressBar::no_length() } else { ProgressBar::hidden() };
        bar.set_style(ProgressStyle::default_spinner());
        if shown == Shown::Progress {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self { shown, bar }
    }

    /// Whether git's own progress is wanted.
    pub fn is_terminal(&self) -> bool {
        self.shown == Shown::Progress
    }

    /// Starts the bar of a download of so many bytes.
    pub fn download(&self, total: u64) {
        self.bar.set_message("snapshot");
        let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}";
        self.bar
            .set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.bar.set_length(total);
        self.bar.set_position(0);
    }

    /// Moves the bar.
    pub fn received(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Shows what is being done.
    pub fn step(&self, what: &'static str) {
        self.bar.set_style(ProgressStyle::default_spinner());
        self.bar.set_message(what);
    }

    /// Leaves the terminal to git's own progress.
    pub fn give_way(&self) {
        self.bar.disable_steady_tick();
        self.bar.set_style(ProgressStyle::default_spinner());
        self.bar.finish_and_clear();
    }

    /// Says in one line why something is done otherwise than planned.
    pub fn note(&self, line: &str) {
        if self.shown != Shown::Nothing {
            self.bar.suspend(|| print(line));
        }
    }

    /// Says why there is no clone.
    pub fn fail(&self, line: &str) {
        self.bar.finish_and_clear();
        print(line);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Writes one line, whatever the text holds: a server's words do not steer the terminal.
fn print(line: &str) {
    let plain: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    // Nobody reads it when standard error is closed.
    let _ = writeln!(std::io::stderr().lock(), "git-tarn: {plain}");
}
