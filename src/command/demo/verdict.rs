//! The demo's last words: equal or not, with the figures.
//!
//! In: what was committed, what was folded, how they compare. Out: lines of the story, and the verdict.

use super::check::Comparison;
use super::consumer::Fold;
use super::progress::{Progress, grouped, milliseconds, percentile};
use super::workload::Committed;

/// When the pipeline was dead, in microseconds since 1970.
#[derive(Debug, Default)]
pub struct Outage {
    /// Killed.
    pub from: u64,
    /// Streaming again.
    pub until: u64,
}

/// The verdict; true: everything is equal.
pub fn tell(
    progress: &Progress,
    committed: &Committed,
    fold: &Fold,
    comparisons: &[Comparison],
    mut lags: Vec<(u64, u64)>,
    outage: &Outage,
) -> bool {
    for comparison in comparisons {
        progress.say(line_of(comparison));
        for example in &comparison.examples {
            progress.say(format!("      {example}"));
        }
    }
    for fault in &fold.faults {
        progress.say(format!("  FAULT: {fault}"));
    }
    let is_equal = fold.faults.is_empty() && comparisons.iter().all(|comparison| comparison.differences == 0);
    let changes = committed.changes.values().sum::<u64>();
    let rows = comparisons.iter().map(|comparison| comparison.rows as u64).sum::<u64>();
    let events = comparisons.iter().flat_map(|comparison| comparison.ops.values()).sum::<u64>();
    progress.say(if is_equal {
        format!(
            "EQUAL: {} events, folded by key, give exactly the {} rows of the {} tables.\n  {} committed transactions made {} changes ({} of them key changes, two events each);\n  each came exactly once, across the crash; {} transactions were rolled back and left no trace.",
            grouped(events),
            grouped(rows),
            comparisons.len(),
            grouped(committed.transactions),
            grouped(changes - committed.key_changes),
            grouped(committed.key_changes),
            grouped(committed.rolled_back)
        )
    } else {
        "DIFFERENT: the events do not add up to the source's tables; see above. This is a bug: please report it with this output"
            .to_owned()
    });
    // What was not yet durable when the pipeline was killed, or was committed until it came back, tells of the crash.
    let waited = |(at, lag): &(u64, u64)| at + lag > outage.from && *at < outage.until;
    let longest = lags.iter().filter(|one| waited(one)).map(|(_, lag)| *lag).max().unwrap_or_default();
    lags.retain(|one| !waited(one));
    if let (Some(p50), Some(p99)) = (percentile(&mut lags, 50), percentile(&mut lags, 99)) {
        progress.say(format!(
            "from commit to a consumer that reads only what is durable: p50 {}, p99 {}; at most {} for changes that met the dead pipeline",
            milliseconds(p50),
            milliseconds(p99),
            milliseconds(longest)
        ));
    }
    is_equal
}

fn line_of(comparison: &Comparison) -> String {
    let ops: Vec<String> =
        comparison.ops.iter().map(|(op, count)| format!("{} {op}", grouped(*count))).collect();
    let verdict = match comparison.differences {
        0 if comparison.is_keyless => "equal (no key: compared as a multiset)".to_owned(),
        0 => "equal".to_owned(),
        count => format!("DIFFERENT ({})", grouped(count as u64)),
    };
    format!(
        "  {:<24} {:>8} rows  {verdict}; events: {}",
        comparison.table,
        grouped(comparison.rows as u64),
        ops.join(", ")
    )
}
