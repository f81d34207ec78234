//! The results as text for a terminal: for each workload a table of the backlog and one of the load.
//!
//! In: results, complete or not. Out: lines. Always: a partial result says so first; what was left out or failed stands
//! below with its reason; a figure that was not measured is a dash, never a guess.

use std::fmt::Write;

use super::figure::Figure;
use super::mode::Mode;
use super::results::{Results, Spread, State, Told};

/// A column: its head, and the figure in it; with the spread or without.
type Column = (&'static str, Figure, bool);

const BACKLOG: [Column; 9] = [
    ("changes/s", Figure::Throughput, true),
    ("CPU s/1M: all", Figure::CpuAll, true),
    ("source", Figure::CpuSource, false),
    ("reader", Figure::CpuReader, false),
    ("broker", Figure::CpuBroker, false),
    ("target", Figure::CpuTarget, false),
    ("reader MiB", Figure::MemoryReader, true),
    ("wire B", Figure::WireSource, false),
    ("stored B", Figure::Stored, false),
];
const LOAD: [Column; 8] = [
    ("p50 ms", Figure::LatencyP50, true),
    ("p99 ms", Figure::LatencyP99, true),
    ("p99.9", Figure::LatencyP999, false),
    ("WAL MiB", Figure::RetainedSteady, false),
    ("burst: source txn/s", Figure::SourceRate, true),
    ("lag ms", Figure::LagPeak, true),
    ("caught up s", Figure::CatchUp, false),
    ("WAL MiB", Figure::RetainedBurst, false),
];

/// All of it.
pub fn text(results: &Results, reading: &[String]) -> String {
    let mut out = String::new();
    if let State::Partial(reason) = &results.state {
        let _ = writeln!(out, "PARTIAL RESULTS: {reason}\n");
    }
    for (name, value) in &results.machine {
        let _ = writeln!(out, "{name}: {value}");
    }
    for told in &results.workloads {
        let _ = writeln!(out, "\n{}: {}", told.name, told.about);
        let _ = writeln!(out, "{}", backlog_of(told));
        part(&mut out, "backlog", results, &told.name, &BACKLOG);
        let steady =
            told.steady_changes_per_second.map_or_else(String::new, |rate| format!(", {rate} changes/s"));
        part(&mut out, &format!("steady load{steady}"), results, &told.name, &LOAD);
    }
    for (title, list) in [("left out", &results.left_out), ("failed", &results.failed)] {
        if !list.is_empty() {
            let _ = writeln!(out, "\n{title}:");
        }
        for one in list {
            let of = one.workload.as_ref().map_or_else(String::new, |workload| format!(" under {workload}"));
            let _ = writeln!(out, "  {}{of}: {}", one.what, one.reason);
        }
    }
    if !results.is_empty() {
        let _ = writeln!(
            out,
            "\nmedians of the runs, least and most in parentheses; how each was measured: --json, --report"
        );
    }
    if !reading.is_empty() {
        let _ = writeln!(out, "\nwhat the figures say:");
    }
    for paragraph in reading {
        let _ = writeln!(out, "  - {paragraph}");
    }
    out
}

/// `backlogs measured: 3, each of 100000 changes in 1 transactions, 24 MiB of WAL`
pub fn backlog_of(told: &Told) -> String {
    let range = |values: &[u64]| {
        let (least, most) = (values.iter().min().copied(), values.iter().max().copied());
        match (least, most) {
            (Some(least), Some(most)) if least != most => format!("{least} to {most}"),
            (Some(least), _) => least.to_string(),
            _ => "no".to_owned(),
        }
    };
    let mebibytes: Vec<u64> = told.wal_bytes.iter().map(|bytes| bytes >> 20).collect();
    format!(
        "backlogs measured: {}, each of {} changes in {} transactions, {} MiB of WAL",
        told.changes.len(),
        range(&told.changes),
        range(&told.transactions),
        range(&mebibytes)
    )
}

fn part(out: &mut String, title: &str, results: &Results, workload: &str, columns: &[Column]) {
    let modes: Vec<Mode> = results
        .modes(workload)
        .into_iter()
        .filter(|mode| {
            columns.iter().any(|(_, figure, _)| results.median(workload, *mode, *figure).is_some())
        })
        .collect();
    if modes.is_empty() {
        return;
    }
    let used: Vec<&Column> = columns
        .iter()
        .filter(|(_, figure, _)| modes.iter().any(|mode| results.median(workload, *mode, *figure).is_some()))
        .collect();
    let mut lines = vec![vec![title.to_owned()]];
    if let Some(head) = lines.first_mut() {
        head.extend(used.iter().map(|(name, ..)| (*name).to_owned()));
    }
    for mode in modes {
        let mut line = vec![mode.name().to_owned()];
        line.extend(used.iter().map(|(_, figure, with_spread)| {
            results
                .spread(workload, mode, *figure)
                .map_or_else(|| "-".to_owned(), |spread| cell(*figure, spread, *with_spread))
        }));
        lines.push(line);
    }
    write_aligned(out, &lines);
}

fn cell(figure: Figure, spread: Spread, with_spread: bool) -> String {
    let text = |value| figure.unit().text(value);
    let (least, median, most) = (text(spread.least), text(spread.median), text(spread.most));
    match with_spread && least != most {
        true => format!("{median} ({least}-{most})"),
        false => median,
    }
}

/// The first column to the left, the others to the right.
fn write_aligned(out: &mut String, lines: &[Vec<String>]) {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for line in lines {
        for (nth, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = match nth {
                0 => write!(out, "  {cell:<width$}"),
                _ => write!(out, "  {cell:>width$}"),
            };
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_that_it_is_partial_and_what_is_missing() {
        let mut results = Results::new("walgate bench".to_owned());
        results.state = State::Partial("interrupted".to_owned());
        results.workloads.push(Told {
            name: "bulk".to_owned(),
            about: "inserts".to_owned(),
            changes: vec![10, 12],
            transactions: vec![2, 2],
            wal_bytes: vec![1 << 20, 1 << 20],
            steady_changes_per_second: None,
        });
        for value in [100.0, 300.0, 200.0] {
            results.add("bulk", Mode::Replicate, Figure::Throughput, value);
        }
        results.add("bulk", Mode::Native, Figure::CpuAll, 1.5);
        results.fail("bulk", "pglogical", "it is not there".to_owned());
        let text = text(&results, &["one thing".to_owned()]);
        assert!(text.starts_with("PARTIAL RESULTS: interrupted\n"), "{text}");
        for part in [
            "200 (100-300)",
            "backlogs measured: 2, each of 10 to 12 changes in 2 transactions, 1 MiB of WAL",
            "pglogical under bulk: it is not there",
            "- one thing",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let native = text.lines().find(|line| line.trim_start().starts_with("native")).expect("a line");
        assert_eq!(native.split_whitespace().collect::<Vec<_>>(), ["native", "-", "1.50"]);
    }
}
