//! What was measured so far: figures of each run, curves, what was left out and what failed.
//!
//! Always: it is whole at any moment, so that an interrupted benchmark still tells what it has; nothing in it is derived
//! from fewer runs than it says.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};

use super::figure::Figure;
use super::mode::Mode;

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Everything that was asked for and could be measured.
    Complete,
    /// The rest failed or was stopped; why.
    Partial(String),
}

/// A workload, as its backlogs were.
#[derive(Clone, Debug, Serialize)]
pub struct Told {
    /// As it is called.
    pub name: String,
    /// What it is.
    pub about: String,
    /// Changes of each backlog.
    pub changes: Vec<u64>,
    /// Transactions of each.
    pub transactions: Vec<u64>,
    /// WAL of each.
    pub wal_bytes: Vec<u64>,
    /// Changes a second of the steady load.
    pub steady_changes_per_second: Option<u64>,
}

/// What was not measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Under this workload, or under all.
    pub workload: Option<String>,
    /// This, of that mode or in general.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// The lag through a burst, of one run.
#[derive(Clone, Debug, Serialize)]
pub struct LagCurve {
    /// Its workload.
    pub workload: String,
    /// Its mode.
    pub mode: &'static str,
    /// Seconds from the beginning of the burst, and the largest lag of a tenth of a second, in ms.
    pub points: Vec<(f64, f64)>,
    /// How long the burst was.
    pub burst_seconds: f64,
}

/// Least, median and most, of so many runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// How many there were.
    pub runs: usize,
    /// Of the runs.
    pub least: f64,
    /// Of the runs.
    pub median: f64,
    /// Of the runs.
    pub most: f64,
}

/// See the module.
#[derive(Debug)]
pub struct Results {
    /// How it ended.
    pub state: State,
    /// As it was typed.
    pub command: String,
    /// Names and values.
    pub machine: Vec<(String, String)>,
    /// In the order in which they were measured.
    pub workloads: Vec<Told>,
    /// What was not measured, with its reason.
    pub left_out: Vec<LeftOut>,
    /// What failed, with its reason.
    pub failed: Vec<LeftOut>,
    /// Lag through bursts.
    pub lag_curves: Vec<LagCurve>,
    runs: BTreeMap<(String, Mode, Figure), Vec<f64>>,
    latencies: BTreeMap<(String, Mode), Histogram<u64>>,
}

impl Results {
    /// Without any.
    pub fn new(command: String) -> Results {
        Results {
            state: State::Partial("it has not ended".to_owned()),
            command,
            machine: Vec::new(),
            workloads: Vec::new(),
            left_out: Vec::new(),
            failed: Vec::new(),
            lag_curves: Vec::new(),
            runs: BTreeMap::new(),
            latencies: BTreeMap::new(),
        }
    }

    /// Adds a run's figure.
    pub fn add(&mut self, workload: &str, mode: Mode, figure: Figure, value: f64) {
        self.runs.entry((workload.to_owned(), mode, figure)).or_default().push(value);
    }

    /// Adds a run's latencies, in microseconds.
    pub fn add_latencies(&mut self, workload: &str, mode: Mode, latencies: Histogram<u64>) {
        match self.latencies.get_mut(&(workload.to_owned(), mode)) {
            // Both are of the same precision and grow.
            Some(known) => known.add(&latencies).expect("a histogram that grows takes all values"),
            None => {
                self.latencies.insert((workload.to_owned(), mode), latencies);
            }
        }
    }

    /// A mode failed under a workload.
    pub fn fail(&mut self, workload: &str, what: &str, reason: String) {
        self.failed.push(LeftOut { workload: Some(workload.to_owned()), what: what.to_owned(), reason });
    }

    /// Of the runs of a figure, if there are any.
    pub fn spread(&self, workload: &str, mode: Mode, figure: Figure) -> Option<Spread> {
        self.runs.get(&(workload.to_owned(), mode, figure)).map(|runs| spread(runs))
    }

    /// The median, if it was measured.
    pub fn median(&self, workload: &str, mode: Mode, figure: Figure) -> Option<f64> {
        self.spread(workload, mode, figure).map(|spread| spread.median)
    }

    /// The modes that have a figure under a workload, in their order.
    pub fn modes(&self, workload: &str) -> Vec<Mode> {
        let of_workload = self.runs.keys().filter(|(name, ..)| name == workload);
        let mut modes: Vec<Mode> = of_workload.map(|(_, mode, _)| *mode).collect();
        modes.dedup();
        modes
    }

    /// Of the figure with the most runs, how many.
    pub fn runs_most(&self) -> Option<usize> {
        self.runs.values().map(Vec::len).max()
    }

    /// Whether anything was measured.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// All of it, with the reading.
    pub fn json(&self, reading: &[String]) -> Value {
        let (state, reason) = match &self.state {
            State::Complete => ("complete", None),
            State::Partial(reason) => ("partial", Some(reason)),
        };
        let measured: Vec<Value> = self
            .runs
            .iter()
            .map(|((workload, mode, figure), runs)| {
                let Spread { least, median, most, .. } = spread(runs);
                json!({
                    "workload": workload, "mode": mode.name(), "figure": figure,
                    "median": median, "least": least, "most": most, "runs": runs,
                })
            })
            .collect();
        let figures: Vec<Value> = Figure::ALL
            .iter()
            .map(|figure| {
                json!({
                    "figure": figure, "name": figure.name().trim(), "unit": figure.unit().name(), "how": figure.how(),
                })
            })
            .collect();
        let latencies: Vec<Value> = self
            .latencies
            .iter()
            .map(|((workload, mode), histogram)| {
                json!({
                    "workload": workload, "mode": mode.name(), "count": histogram.len(),
                    "points": latency_points(histogram),
                })
            })
            .collect();
        json!({
            "format": 1,
            "state": state,
            "reason": reason,
            "command": self.command,
            "machine": self.machine.iter().map(|(name, value)| json!([name, value])).collect::<Vec<_>>(),
            "workloads": self.workloads,
            "figures": figures,
            "measured": measured,
            "latency_curves": latencies,
            "lag_curves": self.lag_curves,
            "left_out": self.left_out,
            "failed": self.failed,
            "reading": reading,
        })
    }
}

/// Percentiles, and the latencies in ms that so many do not exceed: as far as there are values beyond them.
fn latency_points(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    const PERCENTILES: [f64; 14] =
        [1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9, 99.95, 99.99];
    let beyond = |percentile: f64| as_f64(histogram.len()) * (100.0 - percentile) / 100.0;
    let known = PERCENTILES.into_iter().filter(|percentile| beyond(*percentile) >= 1.0);
    let mut points: Vec<(f64, f64)> = known
        .map(|percentile| (percentile, milliseconds(histogram.value_at_percentile(percentile))))
        .collect();
    points.push((100.0, milliseconds(histogram.max())));
    points
}

/// Of microseconds.
pub fn milliseconds(microseconds: u64) -> f64 {
    as_f64(microseconds) / 1000.0
}

/// Exact up to 2^53, which no count here comes near.
pub fn as_f64(count: u64) -> f64 {
    const TWO_TO_32: f64 = 4_294_967_296.0;
    let half = |bits: u64| f64::from(u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(u32::MAX));
    half(count >> 32) * TWO_TO_32 + half(count)
}

/// Least, median and most of at least one value.
pub fn spread(values: &[f64]) -> Spread {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let at = |place: usize| sorted.get(place).copied().unwrap_or(f64::NAN);
    Spread {
        runs: values.len(),
        least: at(0),
        median: f64::midpoint(at(last / 2), at(last.div_ceil(2))),
        most: at(last),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers_of_runs() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Spread { runs: 3, least: 1.0, median: 2.0, most: 3.0 });
        assert_eq!(spread(&[4.0, 1.0]), Spread { runs: 2, least: 1.0, median: 2.5, most: 4.0 });
    }

    #[test]
    fn shows_no_percentile_that_nothing_lies_beyond() {
        let mut histogram = Histogram::new(3).expect("three digits");
        for value in 1..=150_u64 {
            histogram.record(value * 1000).expect("it grows");
        }
        let points = latency_points(&histogram);
        assert_eq!(points.last().map(|(percentile, _)| *percentile), Some(100.0));
        assert!(points.iter().any(|(percentile, _)| (percentile - 99.0).abs() < 1e-9));
        assert!(
            !points.iter().any(|(percentile, _)| *percentile > 99.4 && *percentile < 100.0),
            "{points:?}"
        );
    }

    #[test]
    fn is_whole_at_any_moment() {
        let mut results = Results::new("walgate bench".to_owned());
        results.add("bulk", Mode::Replicate, Figure::Throughput, 10.0);
        let json = results.json(&[]);
        assert_eq!(json["state"], "partial");
        assert_eq!(json["measured"][0]["figure"], "throughput");
        assert_eq!(json["measured"][0]["median"], 10.0);
    }
}
