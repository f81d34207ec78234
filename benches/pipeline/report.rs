//! Figures, and what they say about the goals of the issue.
//!
//! In: one figure a run, by name. Out: Markdown that reads well on a terminal too. Always: a median stands with
//! all the figures that it is of; a goal whose figures were not measured is left out, never guessed.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::contender::Kind;
use crate::{Result, Settings};

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Time.
    Seconds,
    /// Latency.
    Milliseconds,
    /// A rate.
    PerSecond,
    /// Memory.
    Mebibytes,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Seconds => "s",
            Unit::Milliseconds => "ms",
            Unit::PerSecond => "/s",
            Unit::Mebibytes => "MiB",
        }
    }

    fn text(self, value: f64) -> String {
        match self {
            Unit::PerSecond => format!("{value:.0}"),
            Unit::Mebibytes => format!("{value:.1}"),
            Unit::Seconds | Unit::Milliseconds => format!("{value:.2}"),
        }
    }
}

/// The figures of one name, in the order of the runs.
struct Series {
    name: String,
    unit: Unit,
    values: Vec<f64>,
}

/// All that was measured.
pub struct Report {
    command: String,
    size: String,
    machine: Vec<(String, String)>,
    series: Vec<Series>,
}

/// A line of the table.
struct Goal {
    what: String,
    figures: Vec<f64>,
    at_least: &'static [f64],
    aim: &'static [f64],
    more_is_better: bool,
    unit: &'static str,
}

impl Report {
    /// An empty one.
    pub fn new(settings: &Settings, machine: Vec<(String, String)>) -> Report {
        let arguments: Vec<String> =
            std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
        let size = format!(
            "{} rows, {} single-row transactions, {} runs of each; latency at {} transactions/s for {} s",
            settings.rows,
            settings.transactions(),
            settings.runs,
            settings.rate,
            settings.seconds
        );
        let command = format!("scripts/bench {}", arguments.join(" "));
        Report { command: command.trim().to_owned(), size, machine, series: Vec::new() }
    }

    /// Adds the figure of one run.
    pub fn add(&mut self, name: String, unit: Unit, value: f64) {
        match self.series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.values.push(value),
            None => self.series.push(Series { name, unit, values: vec![value] }),
        }
    }

    /// Adds a peak of memory.
    pub fn add_memory(&mut self, name: String, bytes: u64) {
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
        self.add(name, Unit::Mebibytes, f64::from(kib) / 1024.0);
    }

    /// Writes it to `target/bench/issue3.md`.
    pub fn write(&self) -> Result<PathBuf> {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().ok_or("no target folder")?;
        let path = target.join("bench").join("issue3.md");
        std::fs::create_dir_all(target.join("bench"))?;
        std::fs::write(&path, self.markdown())?;
        Ok(path)
    }

    /// All of it.
    pub fn markdown(&self) -> String {
        let mut out = format!("`{}`: {}\n\n", self.command, self.size);
        let machine = self.machine.iter().map(|(name, value)| vec![name.clone(), value.clone()]);
        write_table(&mut out, &["", ""], machine);
        out.push('\n');
        let goals = self.goals();
        let goals = goals.iter().map(|goal| {
            vec![
                goal.what.clone(),
                goal.texts(&goal.figures),
                goal.texts(goal.at_least),
                goal.texts(goal.aim),
                goal.verdict().to_owned(),
            ]
        });
        write_table(&mut out, &["what", "measured", "at least", "aim", "verdict"], goals);
        out.push('\n');
        let series = self.series.iter().map(|series| {
            let unit = series.unit;
            let each: Vec<String> = series.values.iter().map(|value| unit.text(*value)).collect();
            let [least, median, most] = spread(&series.values).map(|value| unit.text(value));
            vec![
                series.name.clone(),
                format!("{median} {}", unit.name()),
                format!("{least} to {most}"),
                each.join(", "),
            ]
        });
        write_table(&mut out, &["figure", "median", "spread", "runs, in their order"], series);
        out
    }

    fn median(&self, name: &str) -> Option<f64> {
        let series = self.series.iter().find(|series| series.name == name)?;
        let [_, median, _] = spread(&series.values);
        Some(median)
    }

    /// How many times as fast `name` is as `base`, by the medians of their times.
    fn speed_ratio(&self, name: &str, base: &str) -> Option<f64> {
        Some(self.median(base)? / self.median(name)?)
    }

    /// The table of issue 3.
    fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        let mut goal =
            |what: String, figures: Option<Vec<f64>>, limits: [&'static [f64]; 2], better, unit| {
                let Some(figures) = figures else { return };
                let [at_least, aim] = limits;
                goals.push(Goal { what, figures, at_least, aim, more_is_better: better, unit });
            };
        let [recvlogical, alo, eo] =
            [Kind::Recvlogical, Kind::AtLeastOnce, Kind::ExactlyOnce].map(|kind| kind.to_string());
        let ratio = |scenario: &str, of: &str, to: &str| {
            let ratio = self.speed_ratio(&format!("{scenario}: {of}"), &format!("{scenario}: {to}"));
            ratio.map(|ratio| vec![ratio])
        };
        let figures =
            |names: &[String]| -> Option<Vec<f64>> { names.iter().map(|name| self.median(name)).collect() };

        let what = "backlog of bulk rows, at-least-once, against pg_recvlogical";
        goal(what.to_owned(), ratio("bulk", &alo, &recvlogical), [&[0.9], &[1.0]], true, "x");
        let what = "the same with exactly-once, against at-least-once";
        goal(what.to_owned(), ratio("bulk", &eo, &alo), [&[0.85], &[0.95]], true, "x");
        let what = "backlog of single-row transactions, at-least-once, against pg_recvlogical";
        goal(what.to_owned(), ratio("small", &alo, &recvlogical), [&[1.3], &[2.5]], true, "x");
        for kind in [&alo, &eo] {
            let cpu = figures(&[format!("bulk: CPU per 1M events, {kind}")]);
            goal(format!("CPU per 1M events, {kind}"), cpu, [&[4.0], &[1.5]], false, "s");
        }
        let memory = self.series.iter().filter(|series| series.name.contains("peak memory"));
        let peak = memory.flat_map(|series| &series.values).copied().reduce(f64::max);
        let what = "peak memory of all these runs";
        goal(what.to_owned(), peak.map(|peak| vec![peak]), [&[128.0], &[48.0]], false, "MiB");
        let limits: [[&'static [f64]; 2]; 2] = [[&[10.0, 40.0], &[3.0, 10.0]], [&[30.0, 80.0], &[8.0, 35.0]]];
        for (kind, limits) in [&alo, &eo].into_iter().zip(limits) {
            let latency = figures(&[format!("latency p50, {kind}"), format!("latency p99, {kind}")]);
            goal(format!("latency to the consumer, p50 / p99, {kind}"), latency, limits, false, "ms");
        }
        for kind in [&alo, &eo] {
            let rate = figures(&[format!("snapshot: {kind}")]);
            goal(format!("snapshot to Kafka, {kind}"), rate, [&[100_000.0], &[250_000.0]], true, "rows/s");
        }
        goals
    }
}

impl Goal {
    fn meets(&self, limits: &[f64]) -> bool {
        self.figures
            .iter()
            .zip(limits)
            .all(|(figure, limit)| if self.more_is_better { figure >= limit } else { figure <= limit })
    }

    fn verdict(&self) -> &'static str {
        if self.meets(self.aim) {
            "PASS, aim reached"
        } else if self.meets(self.at_least) {
            "PASS, below the aim"
        } else {
            "FAIL, below the floor"
        }
    }

    fn texts(&self, values: &[f64]) -> String {
        let digits = usize::from(values.iter().all(|value| *value < 1000.0)) * 2;
        let texts: Vec<String> = values.iter().map(|value| format!("{value:.digits$}")).collect();
        format!("{} {}", texts.join(" / "), self.unit)
    }
}

/// Least, median and most.
fn spread(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let at = |place: usize| sorted.get(place).copied().unwrap_or(f64::NAN);
    [at(0), f64::midpoint(at(last / 2), at(last.div_ceil(2))), at(last)]
}

/// A table whose columns are as wide as their widest cell.
fn write_table(out: &mut String, head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let mut lines: Vec<Vec<String>> = vec![head.iter().map(|&cell| cell.to_owned()).collect()];
    lines.extend(rows);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
    let rule = widths.iter().map(|width| "-".repeat(*width)).collect();
    lines.insert(1, rule);
    for line in lines {
        for (cell, width) in line.iter().zip(&widths) {
            write!(out, "| {cell:width$} ").expect("a String takes every text");
        }
        out.push_str("|\n");
    }
}
