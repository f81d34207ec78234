//! `check`: outbox tables: columns and types, inserts that are published, and the rights that removing rows takes.
//!
//! Comes in: a matched table whose rule says `mode = "outbox"`. Goes out: findings (docs/outbox.md).

use super::report::{Report, Severity};
use super::source::SourceView;
use super::tables::rule_name;
use crate::config::{Cleanup, OutboxRule};
use crate::error::Result;
use crate::pipeline::tables::MatchedTable;
use crate::route::outbox::columns::Columns;
use crate::route::value::TypeCatalog;
use crate::wal::client::classify;
use crate::wal::sql::quote_ident;

/// Of the tables $1: which rights to remove rows the role lacks, and which triggers or foreign keys watch it.
const RIGHTS: &str = "SELECT c.oid, pg_catalog.has_table_privilege(c.oid, 'SELECT'), \
pg_catalog.has_table_privilege(c.oid, 'DELETE'), pg_catalog.has_any_column_privilege(c.oid, 'UPDATE') \
FROM pg_catalog.pg_class c WHERE c.oid = ANY ($1)";

/// Whether the table has the columns that it needs; if not, everything that is wrong is in the report.
pub fn examine(matched: &MatchedTable, rule: &OutboxRule, types: &TypeCatalog, report: &Report) -> bool {
    let (table, name) = (matched.as_sent(), rule_name(&matched.table));
    let Err(misfits) = Columns::find(rule, &table.relation(), types) else { return true };
    for misfit in misfits {
        let key = format!("{}.{}", matched.rule.key_path, misfit.key);
        let message = format!("table {name}: {}", misfit.message);
        report.add_about(Severity::Fault, &key, std::slice::from_ref(&name), message, misfit.remedy);
    }
    false
}

/// What the whole of them needs besides: an identity, so that updates are seen; rights, where rows are removed.
pub async fn all(view: &SourceView, report: &Report) -> Result<()> {
    let outboxes = view.tables.iter().filter_map(|one| Some((one, one.rule.outbox.as_ref()?)));
    let cleaned = outboxes.filter(|(_, outbox)| outbox.cleanup == Cleanup::Delete);
    let cleaned: Vec<&MatchedTable> = cleaned.map(|(one, _)| one).collect();
    for one in &cleaned {
        let name = rule_name(&one.table);
        if one.table.is_partitioned {
            report.add_about(
                Severity::Fault,
                &format!("{}.cleanup", one.rule.key_path),
                std::slice::from_ref(&name),
                format!("table {name} is partitioned: its rows are not removed one by one"),
                "write cleanup = \"keep\", and drop old partitions; or partitions = \"leaf\"",
            );
        }
    }
    let oids: Vec<u32> = cleaned.iter().map(|one| one.table.oid).collect();
    let role = quote_ident(&view.server.role);
    for row in view.client.query(RIGHTS, &[&oids]).await.map_err(classify)? {
        let (oid, may_select, may_delete, may_lock): (u32, bool, bool, bool) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        let Some(one) = cleaned.iter().find(|one| one.table.oid == oid) else { continue };
        let rights = [(may_select, "SELECT"), (may_delete, "DELETE"), (may_lock, "UPDATE")];
        let lacks: Vec<&str> = rights.iter().filter(|(has, _)| !has).map(|(_, right)| *right).collect();
        if lacks.is_empty() {
            continue;
        }
        let name = rule_name(&one.table);
        report.add_about(
            Severity::Fault,
            &format!("{}.cleanup", one.rule.key_path),
            std::slice::from_ref(&name),
            format!(
                "role {} may not remove rows of {name}: it lacks {} (UPDATE is what FOR UPDATE SKIP LOCKED takes; nothing is updated)",
                view.server.role,
                lacks.join(", ")
            ),
            format!(
                "GRANT {} ON {} TO {role};\nor write cleanup = \"keep\"",
                lacks.join(", "),
                one.table.sql_name()
            ),
        );
    }
    Ok(())
}
