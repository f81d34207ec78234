//! The report for people: aligned, with sizes and times as one says them.

use std::fmt::Write;

use super::{PipelineReport, Process, Report};
use crate::pipeline::status::{ParkedTable, Reading};
use crate::wal::slot::SlotState;
use crate::wal::timestamp::Timestamp;

/// The whole report.
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    for pipeline in &report.pipelines {
        let _ = writeln!(
            text,
            "{}  {} ({}) -> {}",
            pipeline.pipeline, pipeline.source, pipeline.source_address, pipeline.sink
        );
        for (name, value) in lines(pipeline) {
            let _ = writeln!(text, "  {name:<14}{value}");
        }
    }
    if !report.orphaned_slots.is_empty() {
        text.push_str("slots with this prefix that no pipeline of this file owns\n");
        for slot in &report.orphaned_slots {
            let _ = writeln!(
                text,
                "  {}  database {}, {}, retains {}",
                slot.name,
                slot.database.as_deref().unwrap_or("-"),
                slot_words(slot),
                slot.retained_wal_bytes.map_or_else(unknown, size)
            );
        }
    }
    text
}

fn lines(report: &PipelineReport) -> Vec<(&'static str, String)> {
    let mut lines = vec![("state", state(report))];
    lines.push(("slot", report.slot.as_ref().map_or_else(|| "none".to_owned(), slot_words)));
    lines.push(("retained WAL", report.retained_wal_bytes.map_or_else(unknown, size)));
    lines.push(("confirmed", report.confirmed_lsn.map_or_else(unknown, |lsn| lsn.to_string())));
    let lag = report.lag_bytes.map_or_else(unknown, |bytes| size(i64::try_from(bytes).unwrap_or(i64::MAX)));
    lines.push((
        "lag",
        report.lag_seconds.map_or_else(|| lag.clone(), |seconds| format!("{lag}, {seconds:.1} s")),
    ));
    lines.push(("tables", tables(report)));
    if let Some(copy) = &report.snapshot {
        let ranges =
            if copy.ranges > 0 { format!(", {} ranges of the key", copy.ranges) } else { String::new() };
        lines.push((
            "copying",
            format!(
                "{} of {} tables, {} of about {} rows{ranges}",
                copy.tables_done, copy.tables, copy.rows, copy.rows_estimated
            ),
        ));
    }
    if !report.tables_without_identity.is_empty() {
        let names = report.tables_without_identity.join(", ");
        lines.push(("no identity", format!("{names}: updates and deletes are not seen")));
    }
    if report.parked_tables.is_empty() {
        lines.push(("parked", "none".to_owned()));
    }
    lines.extend(report.parked_tables.iter().map(|table| ("parked", parked(table))));
    if let (Some(events), Some(restarts)) = (report.events, report.restarts) {
        lines.push(("events", format!("{events} since the process began, {restarts} restarts")));
    }
    if let Some(error) = &report.hub_error {
        lines.push(("hub", format!("cannot be read: {error}")));
    }
    lines.push(("last error", report.last_error.clone().unwrap_or_else(|| "none".to_owned())));
    lines
}

fn state(report: &PipelineReport) -> String {
    let holder = report.holder.as_ref().map_or_else(String::new, |holder| format!(" ({holder})"));
    match report.process {
        Some(Process::Here) if report.state == crate::pipeline::status::State::Standby => {
            format!("standby here, running elsewhere{holder}")
        }
        Some(Process::Here) if report.reader == Some(Reading::Sql) => {
            format!("{}, a backlog by SQL", report.state)
        }
        Some(Process::Here) => report.state.to_string(),
        Some(Process::Elsewhere) => format!("{}, running elsewhere{holder}", report.state),
        None => report.state.to_string(),
    }
}

fn slot_words(slot: &SlotState) -> String {
    let wal = slot.wal_status.as_deref().unwrap_or("invalid");
    let reason = slot.invalidation_reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
    match (slot.is_active, slot.active_pid) {
        (true, Some(pid)) => format!("{wal}{reason}, active (pid {pid})"),
        (true, None) => format!("{wal}{reason}, active"),
        (false, _) => format!("{wal}{reason}, not active"),
    }
}

fn tables(report: &PipelineReport) -> String {
    match (report.tables, report.tables_copied) {
        (Some(all), Some(copied)) => {
            let rows = report.rows_copied.unwrap_or(0);
            format!("{copied} of {all} copied, {rows} rows")
        }
        (Some(all), None) => format!("{all}"),
        _ => unknown(),
    }
}

fn parked(parked: &ParkedTable) -> String {
    let since =
        Timestamp::from_unix_micros(i64::try_from(parked.since).unwrap_or(0).saturating_mul(1_000_000));
    let tried = if parked.is_tried { ", a copy tries to bring it back" } else { "" };
    let remedy = parked.remedy.as_ref().map_or_else(String::new, |remedy| format!(" (remedy: {remedy})"));
    format!("{} since {since}{tried}: {}{remedy}", parked.table, parked.reason)
}

fn unknown() -> String {
    "unknown".to_owned()
}

/// Bytes with three digits or so.
#[allow(clippy::cast_precision_loss)]
fn size(bytes: i64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().expect("the list is not empty");
    while value >= 1024.0
        && let Some(next) = units.next()
    {
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_one_says_them() {
        for (bytes, said) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (16 << 20, "16.0 MiB"),
            (3 << 40, "3.0 TiB"),
            (i64::MAX, "8192.0 PiB"),
        ] {
            assert_eq!(size(bytes), said);
        }
    }
}
