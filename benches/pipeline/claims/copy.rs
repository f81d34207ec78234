//! Rows of 2 MB, a transaction each, through claim checks, against clients that copy the same bytes from files.
//!
//! The rows' bytes are random, and so are the files'. As a whole event, the default, a row is a third larger (base64),
//! with `claim_check.columns` its object is the bytes themselves. Walgate reads them from a slot that was made before
//! they were written, and publishes exactly-once. Time is from the start of the process to its end, for all. The first
//! round is not measured.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::{RngCore, SeedableRng, rngs::StdRng};

use super::client::Client;
use super::store::Store;
use super::{far_side, write};
use crate::backlog::per_second;
use crate::contender::{Contender, Kind};
use crate::process::Taken;
use crate::report::{Report, Unit};
use crate::servers::{Database, Session, folder};
use crate::{Result, Settings, say, settle, table};

const ROW_BYTES: usize = 2_000_000;
/// Of the rows of a backlog, one is so large.
const ROWS_FOR_ONE: u64 = 2000;

/// The series of the time that each way takes: the clients, whole events, columns.
pub const WAYS: [&str; 4] =
    ["claims: aws s3 cp", "claims: rclone copy", "claims: walgate, whole events", "claims: walgate, columns"];

/// A way into the store.
enum Way {
    Client(Client),
    Whole(Contender),
    Columns(Contender),
}

impl Way {
    fn series(&self) -> &'static str {
        let [aws, rclone, whole, columns] = WAYS;
        match self {
            Way::Client(Client::Aws) => aws,
            Way::Client(Client::Rclone) => rclone,
            Way::Whole(_) => whole,
            Way::Columns(_) => columns,
        }
    }

    fn store(&self, store: &Store, files: &Path) -> Result<Taken> {
        match self {
            Way::Client(client) => client.copy(files, store, &files.with_extension("log")),
            Way::Whole(contender) | Way::Columns(contender) => contender.read_backlog("0/0"),
        }
    }

    /// An error when not every row's bytes are in the store, and found by a consumer.
    fn expect_stored(&self, store: &Store, files: &Path, rows: u64) -> Result<()> {
        let contender = match self {
            Way::Client(client) => return client.expect_copies(files, store),
            Way::Whole(contender) | Way::Columns(contender) => contender,
        };
        contender.expect_events(rows)?;
        let claimed = far_side::each(contender, store, |whole| {
            let id = &whole.event["data"]["id"];
            let photo = match whole.photo {
                Some(photo) => photo,
                None => STANDARD.decode(whole.event["data"]["photo"].as_str().unwrap_or_default())?,
            };
            if photo == fs::read(files.join(id.to_string()))? {
                return Ok(());
            }
            Err(format!("{}: row {id} is not what was written", self.series()).into())
        })?;
        if claimed != rows {
            return Err(format!("{}: {claimed} of {rows} rows were claimed", self.series()).into());
        }
        contender.forget()
    }
}

/// See the module.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let rows = settings.rows.div_ceil(ROWS_FOR_ONE);
    let (database, store, folder) = (Database::new("claims")?, Store::start()?, folder()?);
    let session = database.session();
    session.run(&format!(
        "CREATE TABLE {name} (id bigint PRIMARY KEY, photo bytea NOT NULL) WITH (autovacuum_enabled = false); \
        ALTER TABLE {name} ALTER photo SET STORAGE EXTERNAL; CREATE PUBLICATION {name} FOR TABLE {name}",
        name = table::NAME
    ))?;
    let rounds: Vec<[Way; 4]> =
        (0..=settings.runs).map(|nth| round(nth, &database, &store)).collect::<Result<_>>()?;

    let files = folder.path().join("files");
    fs::create_dir(&files)?;
    write(session, &format!("claims: {rows} rows of {ROW_BYTES} bytes"), |session| {
        insert(session, &files, rows)
    })?;
    for (nth, round) in rounds.iter().enumerate() {
        for turn in 0..round.len() {
            let way = round.get((turn + nth) % round.len()).expect("a remainder is in range");
            settle()?;
            let store_cpu_seconds = store.cpu_seconds()?;
            let taken = way.store(&store, &files)?;
            let store_cpu_seconds = store.cpu_seconds()? - store_cpu_seconds;
            way.expect_stored(&store, &files, rows)?;
            store.clear()?;
            let (series, seconds) = (way.series(), taken.seconds);
            if nth == 0 {
                say(format_args!("{series}, unmeasured, done"));
                continue;
            }
            let rate = per_second(rows, seconds);
            say(format_args!("{series}, round {nth}: {seconds:.2} s, {rate:.1} rows/s"));
            report.add(series.to_owned(), Unit::Seconds, seconds);
            let series = series.trim_start_matches("claims: ");
            report.add(format!("claims: CPU, {series}"), Unit::Seconds, taken.cpu_seconds);
            report.add(format!("claims: CPU of the store, {series}"), Unit::Seconds, store_cpu_seconds);
            report.add_memory(format!("claims: memory, {series}"), taken.memory_peak_bytes);
        }
    }
    Ok(())
}

/// Each way once, Walgate's with a slot that is there from now on.
fn round(nth: u64, database: &Database, store: &Store) -> Result<[Way; 4]> {
    let contender = |scenario, columns| {
        let rule = format!("\n[[table]]\nname = \"public.*\"\nclaim_check.columns = {columns}\n");
        let contender = Contender::new(database, scenario, Kind::ExactlyOnce, nth)?
            .with_configuration(&(store.section() + &rule));
        contender.prepare(database).map(|()| contender)
    };
    Ok([
        Way::Client(Client::Aws),
        Way::Client(Client::Rclone),
        Way::Whole(contender("claims_whole", false)?),
        Way::Columns(contender("claims_columns", true)?),
    ])
}

/// Rows, a transaction each, and files of the same bytes that are named by the rows' ids.
fn insert(session: &Session, files: &Path, rows: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(1);
    let sql = format!("INSERT INTO {} VALUES ($1, $2)", table::NAME);
    for id in 1..=rows {
        let mut photo = vec![0; ROW_BYTES];
        random.fill_bytes(&mut photo);
        fs::write(files.join(id.to_string()), &photo)?;
        session.execute(&sql, &[&i64::try_from(id)?, &photo])?;
    }
    Ok(())
}
