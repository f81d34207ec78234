//! What is shown while it runs: a bar on a terminal, a line for each thing that is through elsewhere; always on stderr.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const MOVE_TIME: Duration = Duration::from_millis(100);

/// The display.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Of nothing yet.
    pub fn new() -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{spinner:.green} {bar:30} {pos}/{len} {elapsed} {msg}");
            bar.set_style(style.expect("the template is right"));
            bar.enable_steady_tick(MOVE_TIME);
            bar
        });
        Progress { bar }
    }

    /// So many things are to be done.
    pub fn expect(&self, count: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(count);
        }
    }

    /// What is being done now.
    pub fn doing(&self, what: impl Into<String>) {
        match &self.bar {
            Some(bar) => bar.set_message(what.into()),
            None => self.say(what.into() + " ..."),
        }
    }

    /// One of them is through.
    pub fn done(&self, line: impl AsRef<str>) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
        self.say(line);
    }

    /// Prints a line that stays.
    pub fn say(&self, line: impl AsRef<str>) {
        let print = || {
            let _ = writeln!(std::io::stderr().lock(), "bench: {}", line.as_ref());
        };
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Ends the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
