//! Figures, and what they say about the goals of the issue.
//!
//! In: one figure a run, by name. Out: Markdown that reads well on a terminal too. Always: a median stands with
//! all the figures that it is of; a goal whose figures were not measured is left out, never guessed.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::{Result, Settings, goals};

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

    /// Writes it to `target/bench/figures.md`.
    pub fn write(&self) -> Result<PathBuf> {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().ok_or("no target folder")?;
        let path = target.join("bench").join("figures.md");
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
        let goals = goals::of(self);
        write_table(
            &mut out,
            &["what", "measured", "at least", "aim", "verdict"],
            goals.into_iter().map(goals::Goal::cells),
        );
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

    /// The median of a figure's runs, if it was measured.
    pub fn median(&self, name: &str) -> Option<f64> {
        let series = self.series.iter().find(|series| series.name == name)?;
        let [_, median, _] = spread(&series.values);
        Some(median)
    }

    /// The largest value of all series in whose names this is.
    pub fn most(&self, part: &str) -> Option<f64> {
        let series = self.series.iter().filter(|series| series.name.contains(part));
        series.flat_map(|series| &series.values).copied().reduce(f64::max)
    }

    /// How many times as fast `name` is as `base`, by the medians of their times.
    pub fn speed_ratio(&self, name: &str, base: &str) -> Option<f64> {
        Some(self.median(base)? / self.median(name)?)
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
