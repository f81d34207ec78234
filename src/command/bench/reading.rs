//! What the figures say, in plain words: which mode costs what, and when one would choose which.
//!
//! In: results. Out: paragraphs. Always: a number in them is a median of this run; two modes are said to differ only where
//! their runs do not overlap; what no benchmark can measure (coupling, schema changes, fan-out, consistency) is said to be
//! of how the modes work.

use super::figure::Figure;
use super::mode::Mode;
use super::results::{Results, State};

const KAFKA: [Mode; 2] = [Mode::KafkaExactlyOnce, Mode::KafkaAtLeastOnce];

/// Paragraphs, the caveats first.
pub fn of(results: &Results) -> Vec<String> {
    let mut said = Vec::new();
    if cfg!(debug_assertions) && !results.is_empty() {
        said.push(
            "This walgate is a debug build: its figures show that the benchmark works, not how fast Walgate is. Build with --release to compare."
                .to_owned(),
        );
    }
    if let State::Partial(reason) = &results.state {
        said.push(format!("The results are partial ({reason}); what is said below is of what was measured."));
    }
    if results.runs_most() == Some(1) {
        said.push("Each mode ran once: how far its runs lie apart is not known, so no mode is called faster than another.".to_owned());
    }
    for told in &results.workloads {
        let workload = &told.name;
        let steady = told.steady_changes_per_second;
        let paragraphs = [
            speed(results, workload),
            cost(results, workload),
            latency(results, workload, steady),
            burst(results, workload),
            room(results, workload),
        ];
        said.extend(paragraphs.into_iter().flatten());
    }
    if !results.is_empty() {
        said.extend(choosing(results));
    }
    said
}

/// The modes that have a figure, with their medians, best first.
fn ranked(results: &Results, workload: &str, figure: Figure, is_more_better: bool) -> Vec<(Mode, f64)> {
    let modes = results.modes(workload).into_iter().filter(|mode| *mode != Mode::Nobody);
    let mut found: Vec<(Mode, f64)> =
        modes.filter_map(|mode| Some((mode, results.median(workload, mode, figure)?))).collect();
    found.sort_by(|(_, a), (_, b)| if is_more_better { b.total_cmp(a) } else { a.total_cmp(b) });
    found
}

/// How many times as much of a figure the one has as the other: none where their runs overlap, or where one has only one.
fn ratio(results: &Results, workload: &str, figure: Figure, one: Mode, other: Mode) -> Option<f64> {
    let (a, b) = (results.spread(workload, one, figure)?, results.spread(workload, other, figure)?);
    if a.runs.min(b.runs) < 2 {
        return None;
    }
    let is_apart = a.least > b.most || b.least > a.most;
    (is_apart && b.median > 0.0).then(|| a.median / b.median)
}

/// `replicate 120000/s, native 80000/s`
fn listed(ranked: &[(Mode, f64)], text: impl Fn(f64) -> String) -> String {
    ranked
        .iter()
        .map(|(mode, value)| format!("{} {}", mode.name(), text(*value)))
        .collect::<Vec<_>>()
        .join(", ")
}

/// `1.7 times as fast as native`; none where nothing can be said.
fn compared(
    results: &Results,
    workload: &str,
    figure: Figure,
    one: Mode,
    other: Mode,
    what: &str,
) -> Option<String> {
    let runs = |mode| results.spread(workload, mode, figure).map(|spread| spread.runs);
    if runs(one)?.min(runs(other)?) < 2 {
        return None;
    }
    Some(match ratio(results, workload, figure, one, other) {
        Some(ratio) => format!("{} has {ratio:.2} times the {what} of {}", one.name(), other.name()),
        None => format!("between {} and {} the runs show no difference in {what}", one.name(), other.name()),
    })
}

fn speed(results: &Results, workload: &str) -> Option<String> {
    let ranked = ranked(results, workload, Figure::Throughput, true);
    if ranked.is_empty() {
        return None;
    }
    let mut text =
        format!("{workload}, a backlog: {} changes/s", listed(&ranked, |value| format!("{value:.0}")));
    let pairs = [
        (Mode::Replicate, Mode::Native),
        (Mode::Replicate, Mode::Pglogical),
        (Mode::KafkaExactlyOnce, Mode::KafkaAtLeastOnce),
        (Mode::KafkaAtLeastOnce, Mode::Recvlogical),
        (Mode::Both, Mode::Replicate),
    ];
    let said: Vec<String> = pairs
        .into_iter()
        .filter_map(|(one, other)| compared(results, workload, Figure::Throughput, one, other, "speed"))
        .collect();
    if !said.is_empty() {
        text += &format!("; {}", said.join("; "));
    }
    Some(text + ".")
}

fn cost(results: &Results, workload: &str) -> Option<String> {
    let ranked = ranked(results, workload, Figure::CpuAll, false);
    let ((cheapest, least), (dearest, most)) = (ranked.first()?, ranked.last()?);
    if cheapest == dearest {
        return None;
    }
    let share = |mode: Mode| {
        let parts = [
            ("the source", Figure::CpuSource),
            ("the reader", Figure::CpuReader),
            ("the broker", Figure::CpuBroker),
            ("the target", Figure::CpuTarget),
        ];
        let most = parts
            .into_iter()
            .filter_map(|(name, figure)| Some((name, results.median(workload, mode, figure)?)))
            .max_by(|(_, a), (_, b)| a.total_cmp(b));
        most.map_or_else(String::new, |(name, value)| format!(", most of it, {value:.2} s, of {name}"))
    };
    Some(format!(
        "{workload}, what a million changes cost in processor time, all processes together: least {} with {least:.2} s{}; most {} with {most:.2} s{}.",
        cheapest.name(),
        share(*cheapest),
        dearest.name(),
        share(*dearest)
    ))
}

fn latency(results: &Results, workload: &str, rate: Option<u64>) -> Option<String> {
    let ranked = ranked(results, workload, Figure::LatencyP99, false);
    if ranked.is_empty() {
        return None;
    }
    let with_median = ranked
        .iter()
        .map(|(mode, p99)| {
            let p50 = results.median(workload, *mode, Figure::LatencyP50).unwrap_or(f64::NAN);
            format!("{} {p50:.1} / {p99:.1} ms", mode.name())
        })
        .collect::<Vec<_>>();
    Some(format!(
        "{workload}, from commit to visible at {} changes/s, p50 / p99: {}. The source's own commit is in all of them.",
        rate.unwrap_or_default(),
        with_median.join(", ")
    ))
}

fn burst(results: &Results, workload: &str) -> Option<String> {
    let alone = results.median(workload, Mode::Nobody, Figure::SourceRate)?;
    let ranked = ranked(results, workload, Figure::SourceRate, true);
    if ranked.is_empty() || alone <= 0.0 {
        return None;
    }
    let shares = listed(&ranked, |value| format!("{:.0} %", value / alone * 100.0));
    let caught_up: Vec<String> = self::ranked(results, workload, Figure::CatchUp, false)
        .iter()
        .map(|(mode, seconds)| format!("{} {seconds:.1} s", mode.name()))
        .collect();
    Some(format!(
        "{workload}, a burst: the source's own clients made {alone:.0} transactions/s without a consumer; of these there were left with {shares}. Behind its end were {}. Where everything runs on one machine this is mostly the processors being shared.",
        caught_up.join(", ")
    ))
}

fn room(results: &Results, workload: &str) -> Option<String> {
    let ranked = ranked(results, workload, Figure::Stored, false);
    let wire = self::ranked(results, workload, Figure::WireSource, false);
    if ranked.is_empty() && wire.is_empty() {
        return None;
    }
    let bytes = |value: f64| format!("{value:.0}");
    let mut parts = Vec::new();
    if !ranked.is_empty() {
        parts.push(format!("stored at the destination: {}", listed(&ranked, bytes)));
    }
    if !wire.is_empty() {
        parts.push(format!("on the wire from the source: {}", listed(&wire, bytes)));
    }
    Some(format!(
        "{workload}, bytes a change: {}. Events carry their envelope, and stay until their retention ends; rows replace each other.",
        parts.join("; ")
    ))
}

fn choosing(results: &Results) -> Vec<String> {
    let names: Vec<&str> = results.workloads.iter().map(|told| told.name.as_str()).collect();
    let wins = |one: Mode, other: Mode, figure: Figure| {
        let ratios = names.iter().filter_map(|name| ratio(results, name, figure, one, other));
        ratios
            .fold((0, 0), |(more, less), ratio| if ratio > 1.0 { (more + 1, less) } else { (more, less + 1) })
    };
    let mut said = Vec::new();
    for kafka in KAFKA {
        let (faster, slower) = wins(Mode::Replicate, kafka, Figure::Throughput);
        if faster + slower > 0 {
            said.push(format!(
                "Events or rows, by these figures: rows into one replica drained faster than {} under {faster} of the workloads where the runs tell, slower under {slower}.",
                kafka.name()
            ));
            break;
        }
    }
    said.extend(CHOOSING.map(str::to_owned));
    said
}

/// Of how the modes work: nothing here is a figure.
const CHOOSING: [&str; 6] = [
    "Coupling (not measured, of how they work): a replica has the source's tables, and who reads it depends on them; events have an envelope with a stable form, and consumers need not know where a row lives. Choose events where other teams read, replicate where the same team does.",
    "Schema changes (not measured): an event carries the new columns at once and its consumers must bear that; a Walgate replica follows or parks the one table (`on_schema_change`); native replication and pglogical stop until the target's table is changed by hand.",
    "Fan-out (not measured here: one destination each): every replica has a slot and a reading of its own on the source; a topic is read any number of times at no cost to the source. From a few destinations of the same rows on, events are cheaper for the source.",
    "Consistency (not measured; what arrived was compared): a replica shows whole source transactions in commit order; events keep the order of each aggregate, and exactly-once holds for consumers that read committed. at-least-once may repeat events after a crash, with equal ids.",
    "Latency: where a reader must see a row within milliseconds, compare the p99 above; exactly-once to Kafka waits for a Kafka transaction, at-least-once does not.",
    "Storage: a replica keeps the rows as they are now, a topic every change until its retention ends, a slot that nobody reads all of the WAL since. `both` pays for two readings of the WAL.",
];

#[cfg(test)]
mod tests {
    use super::super::results::Told;
    use super::*;

    fn results(runs: &[(Mode, Figure, &[f64])]) -> Results {
        let mut results = Results::new("walgate bench".to_owned());
        results.state = State::Complete;
        results.workloads.push(Told {
            name: "bulk".to_owned(),
            about: String::new(),
            changes: vec![],
            transactions: vec![],
            wal_bytes: vec![],
            steady_changes_per_second: Some(1000),
        });
        for (mode, figure, values) in runs {
            values.iter().for_each(|value| results.add("bulk", *mode, *figure, *value));
        }
        results
    }

    #[test]
    fn says_no_difference_where_the_runs_overlap() {
        let apart = results(&[
            (Mode::Replicate, Figure::Throughput, &[200.0, 210.0]),
            (Mode::Native, Figure::Throughput, &[100.0, 105.0]),
        ]);
        let text = speed(&apart, "bulk").expect("there are figures");
        assert!(text.contains("replicate has 2.00 times the speed of native"), "{text}");
        assert!(text.contains("replicate 205, native 102 changes/s"), "{text}");
        let overlapping = results(&[
            (Mode::Replicate, Figure::Throughput, &[200.0, 90.0]),
            (Mode::Native, Figure::Throughput, &[100.0, 105.0]),
        ]);
        let text = speed(&overlapping, "bulk").expect("there are figures");
        assert!(text.contains("between replicate and native the runs show no difference in speed"), "{text}");
    }

    #[test]
    fn one_run_compares_nothing() {
        let results = results(&[
            (Mode::Replicate, Figure::Throughput, &[200.0]),
            (Mode::Native, Figure::Throughput, &[100.0]),
        ]);
        let text = speed(&results, "bulk").expect("there are figures");
        assert!(!text.contains("times") && !text.contains("difference"), "{text}");
        assert!(of(&results).iter().any(|text| text.contains("ran once")));
    }

    #[test]
    fn names_what_costs_most_and_where() {
        let results = results(&[
            (Mode::File, Figure::CpuAll, &[2.0]),
            (Mode::File, Figure::CpuSource, &[1.5]),
            (Mode::File, Figure::CpuReader, &[0.5]),
            (Mode::Native, Figure::CpuAll, &[6.0]),
            (Mode::Native, Figure::CpuTarget, &[4.0]),
            (Mode::Native, Figure::CpuSource, &[2.0]),
        ]);
        let text = cost(&results, "bulk").expect("there are figures");
        assert!(text.contains("least event-file with 2.00 s, most of it, 1.50 s, of the source"), "{text}");
        assert!(text.contains("most native with 6.00 s, most of it, 4.00 s, of the target"), "{text}");
    }

    #[test]
    fn of_nothing_it_says_nothing() {
        let mut empty = Results::new(String::new());
        empty.state = State::Complete;
        assert_eq!(of(&empty), Vec::<String>::new());
    }
}
