//! A replica's sequences, brought forward to those of the source, which an external reader cannot see in the WAL.
//!
//! Comes in: where a sequence of the source stands, and the column that draws from it. Goes out: the replica's sequence
//! of the same column, with its value a margin past the source's; or why not. Always holds: a value is only ever moved in
//! the direction of the increment, in one statement that looks and sets, so that it does not matter who else does the
//! same. (PostgreSQL has no lock for a sequence. Between the look and the setval lie microseconds: two of ours that meet
//! in them both leave a value past what the source had when they read it.) Manual: "Sequence Manipulation Functions",
//! pg_sequence, pg_depend.

use crate::error::{Error, Result};
use crate::wal::client::{Client, classify};
use crate::wal::sequence::{SequenceState, SourceSequence};
use crate::wal::sql::{quote_ident, quote_qualified};
use crate::wal::sqlstate::sqlstate_of;

/// $1, $2, $3: schema, table and column; $4, $5: schema and name of the source's sequence. The column's own sequence
/// (serial, identity), else the one that its default draws from, else one of the source's name that no column owns.
const COUNTERPART: &str = "\
WITH own AS (SELECT a.attrelid, a.attnum FROM pg_catalog.pg_attribute a \
  JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
  WHERE n.nspname = $1 AND c.relname = $2 AND a.attname = $3 AND NOT a.attisdropped), \
owned AS (SELECT d.objid, d.refobjid, d.refobjsubid FROM pg_catalog.pg_depend d \
  WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
  AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0) \
SELECT n.nspname::text, s.relname::text, q.seqincrement, q.seqmin, q.seqmax, q.seqcycle, \
  pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_sequence_privilege(s.oid, 'SELECT') \
  AND pg_catalog.has_sequence_privilege(s.oid, 'UPDATE'), CURRENT_USER::text \
FROM (SELECT o.objid AS oid, 1 AS rank FROM owned o JOIN own ON own.attrelid = o.refobjid AND own.attnum = o.refobjsubid \
  UNION ALL SELECT d.refobjid, 2 FROM own \
  JOIN pg_catalog.pg_attrdef f ON f.adrelid = own.attrelid AND f.adnum = own.attnum \
  JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND d.objid = f.oid \
    AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
  UNION ALL SELECT c.oid, 3 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace \
  WHERE cn.nspname = $4 AND c.relname = $5 AND NOT EXISTS (SELECT FROM owned o WHERE o.objid = c.oid)) found \
JOIN pg_catalog.pg_class s ON s.oid = found.oid AND s.relkind = 'S' \
JOIN pg_catalog.pg_sequence q ON q.seqrelid = s.oid JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace \
ORDER BY found.rank LIMIT 1";

/// A sequence of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaSequence {
    schema: String,
    name: String,
    increment: i64,
    min: i64,
    max: i64,
    cycles: bool,
    /// The role may read and set it.
    may_set: bool,
    role: String,
}

/// What became of a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Brought {
    /// It has this value now.
    Forward(i64),
    /// It has the last value that it can have, since the margin reaches past that; one that cycles goes on from there.
    ToItsEnd(i64),
    /// It was there already, or past it.
    Ahead,
    /// It was left as it is: why, and the remedy.
    Refused(String, String),
}

/// A value to be set: as `setval` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Aim {
    value: i64,
    /// The value itself is used: the next one is an increment further.
    is_called: bool,
    is_cut: bool,
}

impl ReplicaSequence {
    /// The sequence of the column `column` of the replica's table, or one of the same name as `source`.
    ///
    /// # Errors
    /// As the connection.
    pub async fn of_column(
        client: &Client,
        (schema, table, column): (&str, &str, &str),
        source: &SourceSequence,
    ) -> Result<Option<ReplicaSequence>> {
        let row = client
            .query_opt(COUNTERPART, &[&schema, &table, &column, &source.schema, &source.name])
            .await
            .map_err(classify)?;
        Ok(row.map(|row| ReplicaSequence {
            schema: row.get(0),
            name: row.get(1),
            increment: row.get(2),
            min: row.get(3),
            max: row.get(4),
            cycles: row.get(5),
            may_set: row.get(6),
            role: row.get(7),
        }))
    }

    /// `schema.name`.
    pub fn display_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// What it takes to let the role set it; `None`: it may.
    pub fn missing_grant(&self) -> Option<String> {
        (!self.may_set).then(|| {
            format!(
                "on the replica: GRANT USAGE ON SCHEMA {} TO {role}; GRANT SELECT, UPDATE ON SEQUENCE {} TO {role};",
                quote_ident(&self.schema),
                quote_qualified(&self.schema, &self.name),
                role = quote_ident(&self.role)
            )
        })
    }

    /// Moves it to `margin` increments past where the source's stands, unless it is there already.
    ///
    /// # Errors
    /// As the connection; what the server refuses is no error but [`Brought::Refused`].
    pub async fn bring_forward(
        &self,
        client: &Client,
        source: SequenceState,
        margin: Option<u64>,
    ) -> Result<Brought> {
        let name = quote_qualified(&self.schema, &self.name);
        if let Some(grant) = self.missing_grant() {
            return Ok(Brought::Refused(format!("role {} may not set it", self.role), grant));
        }
        if source.increment.signum() != self.increment.signum() {
            let message = "it runs in the opposite direction of the source's".to_owned();
            let remedy = format!("on the replica: ALTER SEQUENCE {name} INCREMENT BY {};", source.increment);
            return Ok(Brought::Refused(message, remedy));
        }
        let Some(aim) = self.aim(source, margin) else { return Ok(Brought::Ahead) };
        let is_behind = if source.increment > 0 { "last_value < $2" } else { "last_value > $2" };
        let statement = format!(
            "SELECT pg_catalog.setval($1::text::pg_catalog.regclass, $2, $3) FROM {name} \
             WHERE {is_behind} OR last_value = $2 AND NOT is_called AND $3"
        );
        match client.query_opt(&statement, &[&name, &aim.value, &aim.is_called]).await {
            Ok(Some(_)) if aim.is_cut && !self.cycles => Ok(Brought::ToItsEnd(aim.value)),
            Ok(Some(_)) => Ok(Brought::Forward(aim.value)),
            Ok(None) => Ok(Brought::Ahead),
            Err(error) => refused(classify(error), "see the server's message, then `walgate sync-sequences`"),
        }
    }

    /// Where it should be; `None`: before its first value, so that it is past that whatever it is.
    fn aim(&self, source: SequenceState, margin: Option<u64>) -> Option<Aim> {
        // A session of the source may hold a whole cache of values: that is the least that it moves by.
        let margin = i128::from(margin.unwrap_or_else(|| source.default_margin()));
        let increment = i128::from(source.increment);
        // What was not called yet is itself the next value: one increment less of it is used.
        let (steps, is_called) = match (source.is_called, margin) {
            (true, _) => (margin, true),
            (false, 0) => (0, false),
            (false, _) => (margin - 1, true),
        };
        let value = i128::from(source.last_value) + steps * increment;
        let (first, last) = if increment > 0 { (self.min, self.max) } else { (self.max, self.min) };
        let (first, last) = (i128::from(first), i128::from(last));
        if (value - first) * increment.signum() < 0 {
            return None;
        }
        let is_cut = (value - last) * increment.signum() > 0;
        let value = if is_cut { last } else { value };
        let value = i64::try_from(value).expect("within the sequence's bounds");
        Some(Aim { value, is_called: is_called || is_cut, is_cut })
    }
}

/// What the server says of one sequence is no fault of the others; a connection that is gone is.
fn refused(error: Error, remedy: &str) -> Result<Brought> {
    match sqlstate_of(&error) {
        Some(_) => Ok(Brought::Refused(error.chain(), error.hint().unwrap_or(remedy).to_owned())),
        None => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(increment: i64, min: i64, max: i64) -> ReplicaSequence {
        let (schema, name, role) = ("s".into(), "n".into(), "r".into());
        ReplicaSequence { schema, name, increment, min, max, cycles: false, may_set: true, role }
    }

    fn source(last_value: i64, is_called: bool, increment: i64, cache: i64) -> SequenceState {
        SequenceState { last_value, is_called, increment, cache }
    }

    fn aim(of: &ReplicaSequence, source: SequenceState, margin: Option<u64>) -> Option<(i64, bool, bool)> {
        of.aim(source, margin).map(|aim| (aim.value, aim.is_called, aim.is_cut))
    }

    #[test]
    fn the_next_value_is_a_margin_past_the_sources_next() {
        let up = replica(1, 1, i64::MAX);
        assert_eq!(aim(&up, source(42, true, 1, 1), Some(10)), Some((52, true, false)));
        assert_eq!(aim(&up, source(42, false, 1, 1), Some(10)), Some((51, true, false)));
        assert_eq!(aim(&up, source(42, false, 1, 1), Some(0)), Some((42, false, false)));
        assert_eq!(aim(&up, source(42, true, 1, 1), None), Some((1042, true, false)));
        assert_eq!(aim(&up, source(42, true, 5, 1), Some(10)), Some((92, true, false)), "in increments");
        assert_eq!(aim(&up, source(0, true, 1, 5000), None), Some((5000, true, false)), "a whole cache");
    }

    #[test]
    fn it_runs_down_where_the_source_does() {
        let down = replica(-1, -100, -1);
        assert_eq!(aim(&down, source(-10, true, -2, 1), Some(5)), Some((-20, true, false)));
        assert_eq!(aim(&down, source(-90, true, -2, 1), Some(50)), Some((-100, true, true)));
        assert_eq!(aim(&down, source(50, true, -1, 1), Some(5)), None, "before its first value");
    }

    #[test]
    fn what_passes_the_end_is_cut() {
        let small = replica(1, 1, 100);
        assert_eq!(aim(&small, source(95, true, 1, 1), Some(10)), Some((100, true, true)));
        assert_eq!(aim(&small, source(90, true, 1, 1), Some(10)), Some((100, true, false)));
        assert_eq!(aim(&small, source(200, false, 1, 1), Some(0)), Some((100, true, true)));
        let all = replica(i64::MAX, i64::MIN, i64::MAX);
        assert_eq!(
            aim(&all, source(i64::MAX, true, i64::MAX, 1), Some(u64::MAX)),
            Some((i64::MAX, true, true))
        );
    }
}
