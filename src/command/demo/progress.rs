//! What the demo prints: a story on stdout, and one moving line on a terminal or a plain line a second elsewhere.
//!
//! Nothing here decides anything. A reader that goes away (`| head`) is no error.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::consumer::Consumer;
use crate::pipeline::status::SharedStatus;

/// On a terminal the line moves so often; elsewhere there is one a second.
const MOVE_TIME: Duration = Duration::from_millis(100);
const LINE_TIME: Duration = Duration::from_secs(1);
const TEXT_CHARS_MAX: usize = 40;

/// The display.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    began: Instant,
}

impl Progress {
    /// Moving on a terminal, plain elsewhere.
    pub fn new() -> Progress {
        let is_terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        let bar = is_terminal.then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(
                ProgressStyle::with_template("{spinner:.green} {msg}").expect("the template is right"),
            );
            bar.enable_steady_tick(MOVE_TIME);
            bar
        });
        Progress { bar, began: Instant::now() }
    }

    /// Prints a line that stays.
    pub fn say(&self, line: impl AsRef<str>) {
        let print = || {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{}", line.as_ref());
            let _ = out.flush();
        };
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Time since the demo began.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Ends the moving line.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Waits for `work`, showing what it is.
    pub async fn while_waiting<T>(&self, what: &str, work: impl Future<Output = T>) -> T {
        match &self.bar {
            Some(bar) => bar.set_message(format!("{what} ...")),
            None => self.say(format!("{what} ...")),
        }
        work.await
    }

    /// Prints the events that are worth it and were not printed yet.
    pub fn show_samples(&self, consumer: &Consumer) {
        for sample in consumer.with_seen(|seen| std::mem::take(&mut seen.samples)) {
            self.say(pretty(&sample));
        }
    }

    /// Waits for `work`, showing how the events come.
    pub async fn while_events_come<T>(
        &self,
        phase: &str,
        consumer: &Consumer,
        status: &SharedStatus,
        work: impl Future<Output = T>,
    ) -> T {
        let mut ticks = tokio::time::interval(if self.bar.is_some() { MOVE_TIME } else { LINE_TIME });
        ticks.tick().await;
        let mut meter = Meter::new(consumer);
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = ticks.tick() => {
                    let line = meter.line(phase, consumer, status);
                    match &self.bar {
                        Some(bar) => bar.set_message(line),
                        None => self.say(format!("  {line}")),
                    }
                    self.show_samples(consumer);
                }
            }
        }
    }
}

/// Rates and lags between two looks.
struct Meter {
    events: u64,
    lags: usize,
    at: Instant,
    rate: u64,
    lag: String,
}

impl Meter {
    fn new(consumer: &Consumer) -> Meter {
        let (events, lags) = consumer.with_seen(|seen| (seen.events, seen.lags.len()));
        Meter { events, lags, at: Instant::now(), rate: 0, lag: "-".to_owned() }
    }

    fn line(&mut self, phase: &str, consumer: &Consumer, status: &SharedStatus) -> String {
        let elapsed = self.at.elapsed();
        // A rate over less than this only flickers.
        if elapsed >= LINE_TIME / 2 {
            let (events, mut lags) = consumer
                .with_seen(|seen| (seen.events, seen.lags.get(self.lags..).unwrap_or_default().to_vec()));
            let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
            self.rate = events.saturating_sub(self.events).saturating_mul(1000) / millis;
            self.events = events;
            self.lags += lags.len();
            self.lag = percentile(&mut lags, 50).map_or("-".to_owned(), milliseconds);
            self.at = Instant::now();
        }
        let state = status.read().state;
        let events = consumer.with_seen(|seen| seen.events);
        format!("{phase} ({state:?}): {} events, {}/s, lag {}", grouped(events), grouped(self.rate), self.lag)
    }
}

/// The lag, in microseconds, that `percent` of the changes do not exceed.
pub fn percentile(lags: &mut [(u64, u64)], percent: usize) -> Option<u64> {
    let at = (lags.len() * percent / 100).min(lags.len().checked_sub(1)?);
    let (_, (_, lag), _) = lags.select_nth_unstable_by_key(at, |(_, lag)| *lag);
    Some(*lag)
}

/// `4.2 ms`
pub fn milliseconds(micros: u64) -> String {
    if micros < 100_000 {
        format!("{}.{} ms", micros / 1000, micros % 1000 / 100)
    } else {
        format!("{} ms", micros / 1000)
    }
}

/// `1 234 567`
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// What is shown of an event, in this order; JSON as it was sent, for a parsed number may lose digits.
const SHOWN: [&str; 11] = [
    "id",
    "aggregate_id",
    "op",
    "occurred_at",
    "source",
    "data",
    "before",
    "unchanged",
    "moved_from",
    "moved_to",
    "claim",
];

/// An event over a few lines, long texts cut, without the fields that are null or empty.
pub fn pretty(event: &str) -> String {
    let Ok(fields) = serde_json::from_str::<BTreeMap<String, &RawValue>>(event) else {
        return event.to_owned();
    };
    let mut text = format!("    an event: {}", fields.get("type").map_or("", |kind| kind.get()));
    for name in SHOWN {
        match fields.get(name).map(|value| value.get()) {
            None | Some("null" | "[]") => {}
            Some(value) => text.push_str(&format!("\n      {name}: {}", cut(value))),
        }
    }
    text
}

/// The JSON text with its long strings cut.
fn cut(json: &str) -> String {
    let mut text = String::new();
    let mut string: Option<String> = None;
    let mut is_escaped = false;
    for c in json.chars() {
        match &mut string {
            None if c == '"' => string = Some(String::new()),
            None => text.push(c),
            Some(inside) if c == '"' && !is_escaped => {
                let length = inside.chars().count();
                if length > TEXT_CHARS_MAX {
                    let first: String = inside.chars().take(TEXT_CHARS_MAX / 2).collect();
                    *inside = format!("{first}... ({length} characters)");
                }
                text.push_str(&format!("\"{inside}\""));
                string = None;
            }
            Some(inside) => {
                is_escaped = c == '\\' && !is_escaped;
                inside.push(c);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            ["0", "999", "1 000", "1 234 567"],
            [0, 999, 1000, 1_234_567].map(grouped).each_ref().map(|t| t.as_str())
        );
        assert_eq!(milliseconds(4_250), "4.2 ms");
        assert_eq!(milliseconds(1_250_000), "1250 ms");
    }

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let mut lags: Vec<(u64, u64)> = (1..=100).rev().map(|lag| (0, lag)).collect();
        assert_eq!(percentile(&mut lags, 50), Some(51));
        assert_eq!(percentile(&mut lags, 99), Some(100));
        assert_eq!(percentile(&mut [], 50), None);
    }

    #[test]
    fn long_texts_are_cut_and_empty_fields_left_out() {
        let event = format!(
            r#"{{"v":1,"type":"orders.updated","before":null,"data":{{"scan":"{}"}}}}"#,
            "x".repeat(9600)
        );
        let text = pretty(&event);
        assert!(text.contains("orders.updated") && text.contains("(9600 characters)"), "{text}");
        assert!(!text.contains("before") && text.len() < 200, "{text}");
        assert_eq!(
            cut(r#"{"a":"\\","b":"\"","c":12345678901234567890.50}"#),
            r#"{"a":"\\","b":"\"","c":12345678901234567890.50}"#
        );
    }
}
