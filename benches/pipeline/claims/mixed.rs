//! A backlog of small rows, one in a hundred of them 1 MB: how many small events a second come past the large ones.
//!
//! Transactions have a hundred rows, the last of them the large one. The rows of an aggregate are far apart, small and
//! large ones; its events must come in their order all the same, which is looked at outside of the time measured.
//! Time is from the start of the process to its end.

use std::collections::BTreeMap;

use super::store::Store;
use super::{far_side, write};
use crate::backlog::per_second;
use crate::contender::{Contender, Kind};
use crate::report::{Report, Unit};
use crate::servers::Database;
use crate::{Result, Settings, say, settle, table};

/// Of these rows one is large, and they are one transaction.
const ROWS_FOR_ONE: u64 = 100;
/// The rows of the other scenarios' backlogs are so many times as many.
const SHARE: u64 = 10;
/// Row number n is of the aggregate n modulo this; a prime, so that each has large ones.
const AGGREGATES: u64 = 997;

/// The series of a delivery's small events a second.
pub fn series(kind: Kind) -> String {
    format!("claims-mixed: small events, {kind}")
}

/// See the module.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let large = settings.rows.div_ceil(SHARE * ROWS_FOR_ONE);
    let rows = large * ROWS_FOR_ONE;
    let (database, store, name) = (Database::new("claims_mixed")?, Store::start()?, table::NAME);
    let session = database.session();
    session.run(&format!(
        "CREATE TABLE {name} (aggregate int, n bigint, body text NOT NULL, PRIMARY KEY (aggregate, n)) \
        WITH (autovacuum_enabled = false); ALTER TABLE {name} ALTER body SET STORAGE EXTERNAL; \
        CREATE PUBLICATION {name} FOR TABLE {name}"
    ))?;
    let rule = "\n[[table]]\nname = \"public.*\"\naggregate_id = [\"aggregate\"]\n";
    let rounds: Vec<Vec<Contender>> = (0..=settings.runs)
        .map(|nth| {
            let contender = |&kind: &Kind| {
                let contender = Contender::new(&database, "claims_mixed", kind, nth)?
                    .with_configuration(&(store.section() + rule));
                contender.prepare(&database).map(|()| contender)
            };
            Kind::DELIVERIES.iter().map(contender).collect()
        })
        .collect::<Result<_>>()?;
    session.run(&format!(
        "CREATE PROCEDURE insert_mixed(last bigint) LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1..last LOOP \
        INSERT INTO {name} SELECT i % {AGGREGATES}, i, CASE WHEN i % {ROWS_FOR_ONE} = 0 THEN repeat(md5(i::text), 31250) \
        ELSE md5(i::text) || md5((i + 1)::text) || md5((i + 2)::text) || md5((i + 3)::text) END; \
        IF i % {ROWS_FOR_ONE} = 0 THEN COMMIT; END IF; END LOOP; END $$"
    ))?;
    write(session, &format!("claims-mixed: {rows} rows, {large} of them of 1 MB"), |session| {
        session.run(&format!("CALL insert_mixed({rows})"))
    })?;

    for (nth, round) in rounds.iter().enumerate() {
        for turn in 0..round.len() {
            let contender = round.get((turn + nth) % round.len()).expect("a remainder is in range");
            settle()?;
            let taken = contender.read_backlog("0/0")?;
            expect_in_order(contender, &store, rows, large)?;
            contender.forget()?;
            store.clear()?;
            let kind = contender.kind;
            if nth == 0 {
                say(format_args!("claims-mixed: {kind}, unmeasured, done"));
                continue;
            }
            let rate = per_second(rows - large, taken.seconds);
            say(format_args!(
                "claims-mixed, round {nth}: {kind}: {:.2} s, {rate:.0} small events/s",
                taken.seconds
            ));
            report.add(series(kind), Unit::PerSecond, rate);
            report.add(format!("claims-mixed: CPU, {kind}"), Unit::Seconds, taken.cpu_seconds);
            report.add_memory(format!("claims-mixed: memory, {kind}"), taken.memory_peak_bytes);
        }
    }
    Ok(())
}

/// An error when an aggregate's events are not all there, once, in the order of the source, or not as large as they should.
fn expect_in_order(contender: &Contender, store: &Store, rows: u64, large: u64) -> Result<()> {
    let mut aggregates: BTreeMap<u64, (i32, u64)> = BTreeMap::new();
    let mut events = 0;
    let claimed = far_side::each(contender, store, |whole| {
        let number = |column: &str| whole.event["data"][column].as_u64().ok_or("an event without its row");
        let (aggregate, n) = (number("aggregate")?, number("n")?);
        let first = if aggregate == 0 { AGGREGATES } else { aggregate };
        let expected = aggregates
            .get(&aggregate)
            .map_or((whole.partition, first), |&(partition, last)| (partition, last + AGGREGATES));
        if (whole.partition, n) != expected || whole.is_claimed != n.is_multiple_of(ROWS_FOR_ONE) {
            return Err(format!(
                "{}: aggregate {aggregate} has row {n} in partition {}, expected were row and partition {expected:?}",
                contender.kind, whole.partition
            )
            .into());
        }
        aggregates.insert(aggregate, expected);
        events += 1;
        Ok(())
    })?;
    if (events, claimed) == (rows, large) {
        return Ok(());
    }
    Err(format!("{}: {events} events, {claimed} claimed; expected {rows}, {large}", contender.kind).into())
}
