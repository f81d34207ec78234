//! The table of all scenarios and the rows in it: about 180 bytes each, as text.
//!
//! Always: the same rows for the same numbers; no autovacuum, which would come in the middle of a measurement.

use crate::Result;
use crate::servers::Session;

/// The name as a literal, for `concat!`.
macro_rules! name {
    () => {
        "bench"
    };
}
pub(crate) use name;

/// The table's name, and its publication's.
pub const NAME: &str = name!();

const TRANSACTION_ROWS: u64 = 100_000;

/// Makes table and publication.
pub fn create(session: &Session) -> Result<()> {
    create_table(session)?;
    session
        .run(&format!("CREATE PUBLICATION {NAME} FOR TABLE {NAME} WITH (publish_via_partition_root = true)"))
}

/// Makes the table.
pub fn create_table(session: &Session) -> Result<()> {
    session.run(&format!(
        "CREATE TABLE {NAME} (id bigint PRIMARY KEY, a int NOT NULL, b text NOT NULL, c timestamptz NOT NULL, \
        d numeric(14,4) NOT NULL) WITH (autovacuum_enabled = false)"
    ))
}

/// Inserts rows number `first` to `last`, in one transaction.
pub fn insert(session: &Session, first: u64, last: u64) -> Result<()> {
    session.run(&format!(
        "INSERT INTO {NAME} SELECT {} FROM generate_series({first}::bigint, {last}) i",
        values()
    ))
}

/// Inserts rows number 1 to `rows`, in transactions of 100k rows.
pub fn insert_in_bulk(session: &Session, rows: u64) -> Result<()> {
    let mut first = 1;
    while first <= rows {
        let last = rows.min(first + TRANSACTION_ROWS - 1);
        insert(session, first, last)?;
        first = last + 1;
    }
    Ok(())
}

/// Inserts rows number 1 to `count`, a transaction each.
pub fn insert_one_by_one(session: &Session, count: u64) -> Result<()> {
    session.run(&format!(
        "CREATE PROCEDURE insert_one_by_one(last bigint) LANGUAGE plpgsql AS $$ BEGIN \
        FOR i IN 1..last LOOP INSERT INTO {NAME} SELECT {}; COMMIT; END LOOP; END $$",
        values()
    ))?;
    session.run(&format!("CALL insert_one_by_one({count})"))
}

/// Updates `count` rows of as many, a transaction each, in no order of their keys.
pub fn update_one_by_one(session: &Session, count: u64) -> Result<()> {
    session.run(&format!(
        "CREATE PROCEDURE update_one_by_one(last bigint) LANGUAGE plpgsql AS $$ BEGIN \
        FOR i IN 1..last LOOP UPDATE {NAME} SET a = a + 1, d = d + 1 WHERE id = i::bigint * 7919 % last + 1; COMMIT; \
        END LOOP; END $$"
    ))?;
    session.run(&format!("CALL update_one_by_one({count})"))
}

/// Updates all rows, in one transaction.
pub fn update_all(session: &Session) -> Result<()> {
    session.run(&format!("UPDATE {NAME} SET a = a + 1, d = d + 1"))
}

/// The mean size of a row, in bytes of its columns' texts.
pub fn row_bytes(session: &Session) -> Result<String> {
    session.value(&format!(
        "SELECT round(avg(octet_length(id::text) + octet_length(a::text) + octet_length(b) \
        + octet_length(c::text) + octet_length(d::text)))::int FROM (SELECT * FROM {NAME} ORDER BY id DESC LIMIT 10000) t"
    ))
}

/// The columns of row number `i`.
fn values() -> &'static str {
    "i, (i::bigint * 7919 % 1000000)::int, \
    md5(i::text) || md5((i + 1)::text) || md5((i + 2)::text) || md5((i + 3)::text), \
    timestamptz '2026-11-21 04:55:30.123456+00' + i * interval '1 second', (i % 1000000) / 100.0"
}
