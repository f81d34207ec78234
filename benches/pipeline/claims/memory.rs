//! The peak memory of the walgate process while claims are on: many small rows in one transaction, and few very large
//! ones.
//!
//! For memory one run must do. The small rows are those of the other scenarios, five times as many; the large ones are
//! 30 MB of bytea, which PostgreSQL sends in twice their size and whose events have a third more. Events are whole and
//! exactly-once, `limits` the defaults.

use super::store::Store;
use super::{far_side, write};
use crate::contender::{Contender, Kind};
use crate::report::{Report, Unit};
use crate::servers::{Database, Session};
use crate::{Result, Settings, say, settle, table};

/// The series of one transaction of small rows.
pub const SMALL: &str = "claims-memory: one transaction of small rows";
/// The series of large rows, a transaction each.
pub const LARGE: &str = "claims-memory: large rows, a transaction each";
/// The series of large rows in one transaction.
pub const LARGE_IN_ONE: &str = "claims-memory: large rows in one transaction";

/// So many times as many small rows as `--rows` says.
const SMALL_TIMES: u64 = 5;
/// Of the rows of a backlog, one is large.
const ROWS_FOR_ONE: u64 = 10_000;
/// In pieces of 16 bytes: 30 MB.
const LARGE_PIECES: u64 = 1_875_000;

/// See the module.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let store = Store::start()?;
    let rows = settings.rows * SMALL_TIMES;
    let database = Database::new("claims_memory_small")?;
    table::create(database.session())?;
    one_run((SMALL, rows, 0), 0, &database, &store, report, |session| table::insert(session, 1, rows))?;
    drop(database);

    let rows = settings.rows.div_ceil(ROWS_FOR_ONE);
    for (nth, series, commit) in [(1, LARGE, "COMMIT"), (2, LARGE_IN_ONE, "NULL")] {
        let database = Database::new(&format!("claims_memory_{nth}"))?;
        create_large(database.session(), commit)?;
        one_run((series, rows, rows), nth, &database, &store, report, |session| {
            session.run(&format!("CALL insert_large({rows})"))
        })?;
    }
    Ok(())
}

fn create_large(session: &Session, commit: &str) -> Result<()> {
    session.run(&format!(
        "CREATE TABLE {name} (id bigint PRIMARY KEY, photo bytea NOT NULL) WITH (autovacuum_enabled = false); \
        ALTER TABLE {name} ALTER photo SET STORAGE EXTERNAL; CREATE PUBLICATION {name} FOR TABLE {name}; \
        CREATE PROCEDURE insert_large(last bigint) LANGUAGE plpgsql AS $$ DECLARE photo bytea; BEGIN \
        SELECT string_agg(decode(md5(i::text), 'hex'), '') INTO photo FROM generate_series(1, {LARGE_PIECES}) i; \
        FOR i IN 1..last LOOP INSERT INTO {name} VALUES (i, photo); {commit}; END LOOP; END $$",
        name = table::NAME
    ))
}

fn one_run(
    (series, rows, large): (&str, u64, u64),
    nth: u64,
    database: &Database,
    store: &Store,
    report: &mut Report,
    insert: impl Fn(&Session) -> Result<()>,
) -> Result<()> {
    let contender = Contender::new(database, "claims_memory", Kind::ExactlyOnce, nth)?
        .with_configuration(&store.section());
    contender.prepare(database)?;
    write(database.session(), &format!("{series}: {rows} rows"), insert)?;
    settle()?;
    let taken = contender.read_backlog("0/0")?;
    contender.expect_events(rows)?;
    if large > 0 {
        let claimed = far_side::each(&contender, store, |_| Ok(()))?;
        if claimed != large {
            return Err(format!("{series}: {claimed} of {large} rows were claimed").into());
        }
    }
    contender.forget()?;
    store.clear()?;
    report.add_memory(series.to_owned(), taken.memory_peak_bytes);
    report.add(format!("{series}, time"), Unit::Seconds, taken.seconds);
    say(format_args!("{series}: {} MiB, {:.2} s", taken.memory_peak_bytes >> 20, taken.seconds));
    Ok(())
}
