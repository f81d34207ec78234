//! Parking: a table that its replica cannot follow is left out of the stream, with its reason, while the others go on;
//! and how it comes back.
//!
//! Comes in: an attempt's error that belongs to tables, what is stored, the definitions on both sides. Goes out: states
//! of tables, which the next attempt's start stores with the checkpoint before it streams. Always holds: nothing in
//! flight survives the error, so a parked table is left out from the stored checkpoint on, and the other tables get
//! every transaction whole; what a parked table missed comes by a copy and in no other way (EXACTLY_ONCE.md, last
//! section). A copy is tried when a definition on either side is another one than when the table was parked, and
//! seldom without that, for reasons that lie in rows. DESIGN section 6, "Table errors".

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tokio_postgres::types::ToSql;

use super::tables::{MatchedTable, rule_of};
use super::{Pipeline, replica_url};
use crate::config::OnTableError;
use crate::error::{Error, Fault, Result};
use crate::lsn::Lsn;
use crate::pipeline::start::selection_of;
use crate::pipeline::status::ParkedTable;
use crate::sink::checkpoint::{Parked, TableState};
use crate::wal::catalog;
use crate::wal::client::{Client, classify, connect};

/// What mends a table whose error does not say.
const REMEDY: &str =
    "mend what the reason names; the table comes back by itself, or at once by `walgate resync`";
/// A table whose definitions stay is tried again after this long: each try is a copy, during which the stream waits ...
const RETRY_TIME: Duration = Duration::from_secs(600);
/// ... and after twice as long each time, so often: up to five hours.
const RETRY_DOUBLINGS_MAX: u32 = 5;
/// A replica that does not answer is asked another time.
const ASK_TIME_MAX: Duration = Duration::from_secs(5);

/// The table $1 of the source, as far as it may decide whether its rows fit.
const SOURCE_DEFINITION: &str = "\
SELECT pg_catalog.concat_ws(E'\\n', n.nspname, c.relname, c.relkind, c.relreplident, c.relpersistence, c.relacl, \
  (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull, \
          a.attgenerated, a.attcollation, t.typnotnull, ARRAY(SELECT e.enumlabel FROM pg_catalog.pg_enum e \
          WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder)), E'\\n' ORDER BY a.attnum) \
   FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
  (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', i.indexrelid, i.indkey, i.indisprimary, i.indisreplident, \
          i.indimmediate, i.indisvalid), E'\\n' ORDER BY i.indexrelid) \
   FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisunique)) \
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1";
/// The table $1.$2 of the replica: columns, types, constraints, indexes, triggers, rights, and its file, which is another
/// one after TRUNCATE. No row: it is missing.
const REPLICA_DEFINITION: &str = "\
WITH root AS (SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
              WHERE n.nspname = $1 AND c.relname = $2), \
     part AS (SELECT oid FROM root UNION SELECT t.relid FROM root, LATERAL pg_catalog.pg_partition_tree(root.oid) t), \
     kind AS (SELECT DISTINCT t.oid, t.typbasetype, t.typnotnull FROM part \
              JOIN pg_catalog.pg_attribute a ON a.attrelid = part.oid AND a.attnum > 0 AND NOT a.attisdropped \
              JOIN pg_catalog.pg_type t ON t.oid = a.atttypid) \
SELECT pg_catalog.string_agg(what, E'\\n' ORDER BY what) FROM ( \
  SELECT pg_catalog.concat_ws(' ', 'c', c.oid, c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity, \
         c.relowner, c.relacl, n.nspacl, pg_catalog.pg_relation_filenode(c.oid)) AS what \
  FROM part JOIN pg_catalog.pg_class c ON c.oid = part.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
  UNION ALL \
  SELECT pg_catalog.concat_ws(' ', 'a', a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull, \
         a.attgenerated, a.attidentity, a.attacl) \
  FROM part JOIN pg_catalog.pg_attribute a ON a.attrelid = part.oid AND a.attnum > 0 AND NOT a.attisdropped \
  UNION ALL \
  SELECT pg_catalog.concat_ws(' ', 'f', f.oid, f.condeferrable, f.convalidated, pg_catalog.pg_get_constraintdef(f.oid)) \
  FROM pg_catalog.pg_constraint f WHERE f.conrelid IN (SELECT oid FROM part) OR f.confrelid IN (SELECT oid FROM part) \
     OR f.contypid IN (SELECT oid FROM kind) \
  UNION ALL \
  SELECT pg_catalog.concat_ws(' ', 'i', i.indisvalid, pg_catalog.pg_get_indexdef(i.indexrelid)) \
  FROM part JOIN pg_catalog.pg_index i ON i.indrelid = part.oid \
  UNION ALL \
  SELECT pg_catalog.concat_ws(' ', 'g', g.tgenabled, pg_catalog.pg_get_triggerdef(g.oid), p.prosrc) \
  FROM part JOIN pg_catalog.pg_trigger g ON g.tgrelid = part.oid AND NOT g.tgisinternal \
  JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid \
  UNION ALL \
  SELECT pg_catalog.concat_ws(' ', 't', kind.oid, kind.typnotnull, kind.typbasetype, \
         ARRAY(SELECT e.enumlabel FROM pg_catalog.pg_enum e WHERE e.enumtypid = kind.oid ORDER BY e.enumsortorder)) \
  FROM kind) AS whats";

/// A table that an attempt's error asks to be parked.
#[derive(Clone, Debug)]
pub struct Parking {
    /// Its OID on the source.
    pub oid: u32,
    /// `schema.table` on the source.
    pub name: String,
    /// See [`Fault`].
    pub fault: Fault,
    reason: String,
    remedy: Option<String>,
}

/// The tables that are parked because of an attempt's error; `None`: it stops the pipeline.
pub fn asked_for(pipeline: &Pipeline, error: &Error) -> Option<Vec<Parking>> {
    let replica = pipeline.replica.as_ref()?;
    let known = pipeline.status.read().parked_tables;
    let parking = |part: &Error| {
        let of = part.table().filter(|_| part.is_definite())?;
        let known = known.iter().find(|parked| parked.oid == of.oid);
        let may = match known {
            // It goes on all the same: parking it does not help.
            Some(parked) if !parked.is_tried => false,
            // What was parked is tried, whatever parked it.
            Some(_) => true,
            None => replica.on_table_error == OnTableError::Park || of.fault != Fault::Rows,
        };
        may.then(|| Parking {
            oid: of.oid,
            name: of.name.clone(),
            fault: of.fault,
            reason: part.chain(),
            remedy: part.hint().map(str::to_owned),
        })
    };
    error.parts().into_iter().map(parking).collect()
}

/// The states that change before an attempt does anything else: of tables that are parked now, and of parked ones that a
/// copy tries to bring back.
///
/// # Errors
/// As the connections.
pub async fn states(
    pipeline: &Pipeline,
    source: &Client,
    taken: &[MatchedTable],
    stored: &BTreeMap<u32, TableState>,
    parking: &[Parking],
) -> Result<Vec<TableState>> {
    let is_parked = |oid: &u32| stored.get(oid).is_some_and(|state| state.parked().is_some());
    let is_asked = |oid: u32| parking.iter().find(|one| one.oid == oid);
    let concerned: Vec<&MatchedTable> =
        taken.iter().filter(|one| is_parked(&one.table.oid) || is_asked(one.table.oid).is_some()).collect();
    if concerned.is_empty() {
        return Ok(Vec::new());
    }
    let replica = connect_replica(pipeline).await?;
    let mut changed = Vec::new();
    for matched in concerned {
        let definition = definition(pipeline, source, &replica, matched).await?;
        let known = stored.get(&matched.table.oid);
        match (is_asked(matched.table.oid), known.and_then(|state| Some((state, state.parked()?)))) {
            (Some(parking), _) => changed.push(park(matched, known, parking, definition)),
            (None, Some((state, parked))) if is_due(parked, &definition) => {
                changed.push(try_again(state, parked, definition));
            }
            (None, _) => {}
        }
    }
    Ok(changed)
}

/// The states that change of tables that are not taken any more: parked ones, and those of which the replica refuses what
/// is left in the stream.
pub fn gone(
    taken: &[MatchedTable],
    stored: &BTreeMap<u32, TableState>,
    parking: &[Parking],
) -> Vec<TableState> {
    let is_taken = |oid: u32| taken.iter().any(|one| one.table.oid == oid);
    let gone = stored.values().filter(|state| !is_taken(state.oid));
    gone.filter_map(|state| leave_out(state, parking.iter().find(|one| one.oid == state.oid))).collect()
}

/// Whether an attempt that starts now would try a parked table again.
///
/// # Errors
/// As the connections.
pub async fn is_any_due(
    pipeline: &Pipeline,
    source: &Client,
    stored: &BTreeMap<u32, TableState>,
) -> Result<bool> {
    let parked: Vec<u32> =
        stored.values().filter(|state| state.parked().is_some()).map(|state| state.oid).collect();
    if parked.is_empty() {
        return Ok(false);
    }
    let look = async {
        let replica = connect_replica(pipeline).await?;
        let tables = catalog::tables(source, Some(&parked)).await?;
        for matched in super::tables::taken_of(pipeline, tables, &[]) {
            let definition = definition(pipeline, source, &replica, &matched).await?;
            let parked = stored.get(&matched.table.oid).and_then(TableState::parked);
            if parked.is_some_and(|parked| is_due(parked, &definition)) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let unanswered = |_| Err(Error::transient("the replica did not answer in time"));
    tokio::time::timeout(ASK_TIME_MAX, look).await.unwrap_or_else(unanswered)
}

/// What `status` says of states of tables: those that are parked, and those that are tried.
pub fn shown<'s>(states: impl IntoIterator<Item = &'s TableState>) -> Vec<ParkedTable> {
    let shown = states.into_iter().filter_map(|state| {
        let parked = state.parked.as_ref().filter(|parked| !parked.definition.is_empty())?;
        Some(ParkedTable {
            oid: state.oid,
            table: format!("{}.{}", state.schema, state.table),
            reason: parked.reason.clone(),
            remedy: parked.remedy.clone(),
            since: parked.since,
            is_tried: parked.is_tried,
        })
    });
    shown.collect()
}

/// A table that is not there any more: what is left of it in the stream must not hold up the others, and nobody has to
/// bring it back. `None`: it is as it should be.
fn leave_out(state: &TableState, asked: Option<&Parking>) -> Option<TableState> {
    let parked = match (&state.parked, asked) {
        (Some(parked), None) if parked.definition.is_empty() => return None,
        (Some(parked), None) => Parked { definition: String::new(), ..parked.clone() },
        (None, None) => return None,
        (_, Some(parking)) => {
            let table = format!("{}.{}", state.schema, state.table);
            tracing::warn!(table, "what is left of a table that is gone is left out: {}", parking.reason);
            Parked {
                reason: parking.reason.clone(),
                remedy: None,
                since: now(),
                definition: String::new(),
                tries: 0,
                retry_at: now(),
                is_tried: false,
            }
        }
    };
    Some(TableState { parked: Some(parked), ..state.undone() })
}

fn park(
    matched: &MatchedTable,
    known: Option<&TableState>,
    parking: &Parking,
    definition: String,
) -> TableState {
    let table = &matched.table;
    let before = known.and_then(|state| state.parked.as_ref());
    // How often it was tried counts for as long as nothing has changed.
    let tries = before.filter(|parked| parked.definition == definition).map_or(0, |parked| parked.tries);
    let parked = Parked {
        reason: parking.reason.clone(),
        remedy: Some(parking.remedy.clone().unwrap_or_else(|| REMEDY.to_owned())),
        since: before.map_or_else(now, |parked| parked.since),
        tries,
        retry_at: now() + retry_time(tries).as_secs(),
        definition,
        is_tried: false,
    };
    tracing::warn!(
        table = table.display_name(),
        remedy = parked.remedy,
        "parked: it gets no changes until a copy brings it back: {}",
        parked.reason
    );
    // Of what was never copied, nothing is said of the replica's table: its rows are not ours to remove.
    let never = TableState {
        oid: table.oid,
        schema: table.schema.clone(),
        table: table.name.clone(),
        key: table.primary_key.clone(),
        selection: None,
        root: table.root.clone(),
        copied_at: Lsn::ZERO,
        done: false,
        rows: 0,
        ranges: None,
        parked: None,
        shape: None,
    };
    TableState { parked: Some(parked), ..known.map_or(never, TableState::undone) }
}

fn try_again(state: &TableState, parked: &Parked, definition: String) -> TableState {
    let is_changed = parked.definition != definition;
    let tries = if is_changed { 0 } else { parked.tries + 1 };
    tracing::info!(
        table = format!("{}.{}", state.schema, state.table),
        is_changed,
        tries,
        "parked table: a copy tries to bring it back"
    );
    TableState {
        parked: Some(Parked { definition, tries, is_tried: true, ..parked.clone() }),
        ..state.undone()
    }
}

fn is_due(parked: &Parked, definition: &str) -> bool {
    parked.definition != definition || now() >= parked.retry_at
}

fn retry_time(tries: u32) -> Duration {
    RETRY_TIME * (1 << tries.min(RETRY_DOUBLINGS_MAX))
}

async fn connect_replica(pipeline: &Pipeline) -> Result<Client> {
    let replica = pipeline.replica.as_ref().expect("only a replica's tables are parked");
    // Not under the pipeline's own name: by that a successor ends the sessions of its predecessor.
    connect(&replica_url(replica)?, "walgate parking")
        .await
        .map_err(|error| error.context(format_args!("replica {}", replica.name)))
}

/// A fingerprint of all that decides whether the table's rows fit, on both sides.
async fn definition(
    pipeline: &Pipeline,
    source: &Client,
    replica: &Client,
    matched: &MatchedTable,
) -> Result<String> {
    let table = &matched.table;
    let rule = rule_of(pipeline, table).unwrap_or(&matched.rule);
    let (schema, name) = rule.target_name(&table.schema, &table.name);
    let here = text(source, SOURCE_DEFINITION, &[&table.oid]).await?;
    let there = text(replica, REPLICA_DEFINITION, &[&schema, &name]).await?;
    let mut hash = Sha256::new();
    for part in [here, there, selection_of(pipeline, rule, table).unwrap_or_default()] {
        hash.update(part);
        hash.update([0]);
    }
    Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

async fn text(client: &Client, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<String> {
    let row = client.query_opt(query, parameters).await.map_err(classify)?;
    Ok(row.and_then(|row| row.get::<_, Option<String>>(0)).unwrap_or_default())
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_tried_when_a_definition_changes_and_seldom_else() {
        let parked = |retry_at| Parked {
            reason: "a check".into(),
            remedy: None,
            since: 1,
            definition: "d".into(),
            tries: 0,
            retry_at,
            is_tried: false,
        };
        assert!(is_due(&parked(now() + 600), "another"));
        assert!(!is_due(&parked(now() + 600), "d"));
        assert!(is_due(&parked(now()), "d"));
        assert_eq!([0, 1, 5, 50].map(|tries| retry_time(tries).as_secs() / 60), [10, 20, 320, 320]);
    }
}
