//! What is asked of Walgate, and whether it was measured so.
//!
//! In: the report's figures. Out: a line for each goal, in the order of docs/performance.md. Always: a goal whose
//! figures were not measured is left out, never guessed.

use crate::contender::Kind;
use crate::report::Report;
use crate::{claims, replica};

/// A goal, and the figures measured for it.
pub struct Goal {
    /// In words.
    pub what: String,
    figures: Vec<f64>,
    at_least: &'static [f64],
    aim: &'static [f64],
    more_is_better: bool,
    unit: &'static str,
}

/// Floor and aim, of as many figures as the goal has.
type Limits = [&'static [f64]; 2];

/// All goals whose figures are there.
pub fn of(report: &Report) -> Vec<Goal> {
    let mut goals = Vec::new();
    events(report, &mut goals);
    replicas(report, &mut goals);
    claim_checks(report, &mut goals);
    goals
}

fn events(report: &Report, goals: &mut Vec<Goal>) {
    let mut goal = |what: &str, figures: Option<Vec<f64>>, limits: Limits, more_is_better, unit| {
        goals.extend(Goal::new(what, figures, limits, more_is_better, unit));
    };
    let [recvlogical, alo, eo] =
        [Kind::Recvlogical, Kind::AtLeastOnce, Kind::ExactlyOnce].map(|kind| kind.to_string());
    let ratio = |scenario: &str, of: &str, to: &str| {
        let ratio = report.speed_ratio(&format!("{scenario}: {of}"), &format!("{scenario}: {to}"));
        ratio.map(|ratio| vec![ratio])
    };
    let figures =
        |names: &[String]| -> Option<Vec<f64>> { names.iter().map(|name| report.median(name)).collect() };

    let what = "backlog of bulk rows, at-least-once, against pg_recvlogical";
    goal(what, ratio("bulk", &alo, &recvlogical), [&[0.9], &[1.0]], true, "x");
    let what = "the same with exactly-once, against at-least-once";
    goal(what, ratio("bulk", &eo, &alo), [&[0.85], &[0.95]], true, "x");
    let what = "backlog of single-row transactions, at-least-once, against pg_recvlogical";
    goal(what, ratio("small", &alo, &recvlogical), [&[1.3], &[2.5]], true, "x");
    for kind in [&alo, &eo] {
        let cpu = figures(&[format!("bulk: CPU per 1M events, {kind}")]);
        goal(&format!("CPU per 1M events, {kind}"), cpu, [&[4.0], &[1.5]], false, "s");
    }
    let peak = report.most(": peak memory,");
    goal("peak memory of all runs to Kafka", peak.map(|peak| vec![peak]), [&[128.0], &[48.0]], false, "MiB");
    let limits: [Limits; 2] = [[&[10.0, 40.0], &[3.0, 10.0]], [&[30.0, 80.0], &[8.0, 35.0]]];
    for (kind, limits) in [&alo, &eo].into_iter().zip(limits) {
        let latency = figures(&[format!("latency p50, {kind}"), format!("latency p99, {kind}")]);
        goal(&format!("latency to the consumer, p50 / p99, {kind}"), latency, limits, false, "ms");
    }
    for kind in [&alo, &eo] {
        let rate = figures(&[format!("snapshot: {kind}")]);
        goal(&format!("snapshot to Kafka, {kind}"), rate, [&[100_000.0], &[250_000.0]], true, "rows/s");
    }
}

fn replicas(report: &Report, goals: &mut Vec<Goal>) {
    let [walgate, native, _] = replica::names();
    let backlogs: [(&str, &str, Limits); 4] = [
        ("bulk", "inserts in transactions of 100k rows", [&[1.2], &[1.6]]),
        ("small", "single-row insert transactions", [&[2.0], &[3.0]]),
        ("updates", "single-row updates by key", [&[1.3], &[2.5]]),
        ("one-update", "one transaction of updates", [&[1.5], &[3.0]]),
    ];
    for (scenario, what, limits) in backlogs {
        let (of, to) = (replica::series(scenario, walgate), replica::series(scenario, native));
        let what = format!("replica: {what}, against the native subscription");
        let ratio = report.speed_ratio(&of, &to).map(|ratio| vec![ratio]);
        goals.extend(Goal::new(&what, ratio, limits, true, "x"));
    }
    let [of, to] = [walgate, replica::PSQL].map(|name| replica::series("copy", name));
    let ratio = report.speed_ratio(&of, &to).map(|ratio| vec![ratio]);
    goals.extend(Goal::new(
        "replica: initial copy, against psql COPY to COPY",
        ratio,
        [&[0.9], &[1.5]],
        true,
        "x",
    ));
    let lag = report.median(&replica::series("lag p99", walgate)).map(|lag| vec![lag]);
    goals.extend(Goal::new("replica: lag p99, commit to visible", lag, [&[50.0], &[10.0]], false, "ms"));
    let peak = report.most(": peak memory of walgate").map(|peak| vec![peak]);
    goals.extend(Goal::new("replica: peak memory of all runs", peak, [&[128.0], &[48.0]], false, "MiB"));
}

fn claim_checks(report: &Report, goals: &mut Vec<Goal>) {
    let mut goal = |what: &str, figures: Option<Vec<f64>>, limits: Limits, more_is_better, unit| {
        goals.extend(Goal::new(what, figures, limits, more_is_better, unit));
    };
    let [aws, rclone, _, columns] = claims::WAYS;
    for (client, name) in [(aws, "aws s3 cp"), (rclone, "rclone")] {
        // The same bytes: a whole event has a third more of them.
        let ratio = report.speed_ratio(columns, client).map(|ratio| vec![ratio]);
        goal(&format!("claim checks: rows of 2 MB against {name}"), ratio, [&[0.7], &[1.0]], true, "x");
    }
    for kind in Kind::DELIVERIES {
        let rate = report.median(&claims::mixed_series(kind)).map(|rate| vec![rate]);
        let what = format!("claim checks: small events while 1 row in 100 is 1 MB, {kind}");
        goal(&what, rate, [&[10_000.0], &[30_000.0]], true, "events/s");
    }
    let memory = |series| report.median(series).map(|peak| vec![peak]);
    let limits: Limits = [&[320.0], &[128.0]];
    let what = "claim checks: peak memory, one transaction of small rows";
    goal(what, memory(claims::SMALL), [&[128.0], &[64.0]], false, "MiB");
    let what = "claim checks: peak memory, rows of 30 MB, a transaction each";
    goal(what, memory(claims::LARGE), limits, false, "MiB");
    let what = "claim checks: peak memory, rows of 30 MB, one transaction";
    goal(what, memory(claims::LARGE_IN_ONE), limits, false, "MiB");
}

impl Goal {
    fn new(
        what: &str,
        figures: Option<Vec<f64>>,
        [at_least, aim]: Limits,
        more_is_better: bool,
        unit: &'static str,
    ) -> Option<Goal> {
        Some(Goal { what: what.to_owned(), figures: figures?, at_least, aim, more_is_better, unit })
    }

    /// A line of the table: what, measured, floor, aim, verdict.
    pub fn cells(self) -> Vec<String> {
        let (figures, at_least, aim) =
            (self.texts(&self.figures), self.texts(self.at_least), self.texts(self.aim));
        let verdict = self.verdict().to_owned();
        vec![self.what, figures, at_least, aim, verdict]
    }

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
