//! `check`: one rule against one of its tables: columns that are not there, keys that do not do.
//!
//! What a plan's compiler refuses one by one (`route::plan`), all at once and with the key it is about.

use std::cell::Cell;

use super::report::{Report, Severity};
use super::tables::rule_name;
use crate::config::ColumnSet;
use crate::pipeline::tables::MatchedTable;

/// Whether the rule fits the table; if not, every reason is in the report.
pub fn examine(matched: &MatchedTable, generated: &[String], report: &Report) -> bool {
    let (table, rule) = (&matched.table, &matched.rule);
    let name = rule_name(table);
    let sent = matched.published.as_ref().and_then(|published| published.columns.as_ref());
    let fits = Cell::new(true);
    let fault = |key: &str, message: String, remedy: String| {
        fits.set(false);
        let key = format!("{}.{key}", rule.key_path);
        report.add_about(Severity::Fault, &key, std::slice::from_ref(&name), message, remedy);
    };
    let list = match &rule.columns {
        ColumnSet::Except(_) => "exclude",
        ColumnSet::All | ColumnSet::Only(_) => "columns",
    };
    let none = Vec::new();
    let mentioned = [
        (list, rule.columns.named()),
        ("key", rule.key.as_deref().unwrap_or(&none)),
        ("aggregate_id", rule.aggregate_id.as_deref().unwrap_or(&none)),
    ];
    for (key, columns) in mentioned {
        for column in columns {
            if generated.contains(column) {
                fault(
                    key,
                    format!(
                        "table {name}: column \"{column}\" is generated, and the server does not send it"
                    ),
                    format!("remove \"{column}\" from {key}"),
                );
            } else if !table.columns.iter().any(|one| one.name == *column) {
                fault(
                    key,
                    format!("table {name}: column \"{column}\" does not exist"),
                    nearest(matched, column, key),
                );
            } else if sent.is_some_and(|sent| !sent.contains(column)) && key != "exclude" {
                fault(
                    key,
                    format!("table {name}: column \"{column}\" is not in the publication's column list"),
                    format!("add \"{column}\" to the publication's list, or remove it from {key}"),
                );
            }
        }
    }
    if !fits.get() {
        return false;
    }

    let identity = table.identity_columns();
    let default_key = match identity {
        Some(columns) if !columns.is_empty() => columns,
        _ => &table.primary_key,
    };
    let key = rule.key.as_deref().unwrap_or(default_key);
    let aggregate = rule.aggregate_id.as_deref().unwrap_or(key);
    let mut told: Vec<&String> = Vec::new();
    for column in key.iter().chain(aggregate) {
        if matches!(rule.columns, ColumnSet::Only(_))
            && !rule.columns.takes(column)
            && !told.contains(&column)
        {
            told.push(column);
            fault(
                "columns",
                format!("table {name}: the key's column \"{column}\" is not among the listed columns"),
                format!("add \"{column}\" to columns"),
            );
        }
    }
    let identity = identity.filter(|columns| !columns.is_empty());
    let outside: Vec<&String> =
        aggregate.iter().filter(|column| identity.is_some_and(|columns| !columns.contains(column))).collect();
    if let Some(first) = outside.first() {
        let which = if rule.aggregate_id.is_some() { "aggregate_id" } else { "key" };
        fault(
            which,
            format!(
                "table {name}: the aggregate id's column \"{first}\" is not in the replica identity, so a delete would not tell it"
            ),
            format!("ALTER TABLE {} REPLICA IDENTITY FULL;", table.sql_name()),
        );
    }
    fits.get()
}

/// What was meant, perhaps.
fn nearest(matched: &MatchedTable, column: &str, key: &str) -> String {
    let wanted = column.to_lowercase();
    let distance = |name: &String| strsim::damerau_levenshtein(&name.to_lowercase(), &wanted);
    let near = matched.table.columns.iter().map(|one| (distance(&one.name), &one.name)).min();
    match near {
        Some((0..=2, name)) => format!("did you mean \"{name}\"? names are case-sensitive"),
        _ => format!("correct the name in {key}, or remove it"),
    }
}
