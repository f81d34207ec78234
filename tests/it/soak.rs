//! Any schema, any rule, any transactions, any deaths: in the end the replica is what a SELECT on the source gives.
//!
//! In: a seed, drawn or given. Out: rounds, each with tables, rules and traffic of its own, from one or two sessions,
//! while Walgate is killed and started again. Always: a failure names the seed of its round, its tables and its rules.
//!
//! `make soak` draws a seed and goes on for ten minutes, or for `WALGATE_SOAK_SECONDS`.
//! `WALGATE_SOAK_SEED=7 WALGATE_SOAK_ROUNDS=1` runs one round again: the same tables, rules, rows and statements. How two
//! sessions interleave and what a kill meets is the moment's.

mod generate;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use self::generate::{Dice, Identity, Table, quote};
use crate::support::fold::Fold;
use crate::support::source::TextRow;
use crate::support::{Event, Hub, Session, Source, Walgate, wait_for};

/// Without a number of rounds: none begins later than this.
const BUDGET_SECONDS: u64 = 50;
/// Where nobody draws one: the same rounds for everybody who runs all tests. `make soak` draws.
const FIRST_SEED: u64 = 1;
/// A slot's creation waits for every open transaction of the server, those of other tests and on replicas too.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Of a value that is shown.
const SHOWN_CHARS: usize = 120;
/// Of the log of the last run.
const SHOWN_LINES: usize = 40;

#[test]
fn a_replica_is_what_a_select_gives_after_anything() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let first = number("WALGATE_SOAK_SEED").unwrap_or(FIRST_SEED);
    let rounds = number("WALGATE_SOAK_ROUNDS");
    let budget = Duration::from_secs(number("WALGATE_SOAK_SECONDS").unwrap_or(BUDGET_SECONDS));
    let began = Instant::now();
    for seed in first.. {
        let is_over = match rounds {
            Some(rounds) => seed - first >= rounds,
            None => began.elapsed() > budget,
        };
        if is_over {
            eprintln!("soak: {} rounds in {:?}", seed - first, began.elapsed());
            break;
        }
        Round::new(seed).run();
    }
}

/// A world of its own, and what has happened in it.
struct Round {
    seed: u64,
    dice: Dice,
    tables: Vec<Table>,
    source: Source,
    replica: Source,
    hub: Hub,
    walgate: Walgate,
    committed: AtomicUsize,
    refused: AtomicUsize,
    log: String,
}

impl Round {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let tables = generate::tables(&mut dice);
        let (source, replica) = (Source::new("soak"), Source::new("soak_r"));
        let hub = if dice.one_in(5) { Hub::kafka(&source) } else { Hub::file() };
        let mut walgate = Walgate::new(&source, &hub)
            .section(&format!("[[replica]]\nname = \"r\"\nurl = {:?}\n", replica.url()));
        if dice.one_in(2) {
            walgate = walgate.source(&format!("snapshot_range_rows = {}", 1 + dice.below(30)));
        }
        for table in &tables {
            walgate = walgate.section(&table.rule());
        }
        let (committed, refused, log) = (AtomicUsize::new(0), AtomicUsize::new(0), String::new());
        Round { seed, dice, tables, source, replica, hub, walgate, committed, refused, log }
    }

    fn run(mut self) {
        eprintln!("soak: WALGATE_SOAK_SEED={} WALGATE_SOAK_ROUNDS=1", self.seed);
        let began = Instant::now();
        for table in &self.tables {
            self.source.exec(&table.on_source());
            if let Some(sql) = table.on_replica() {
                self.replica.exec(&sql);
            }
        }
        let (mut before, count) = (self.dice.fork(), 5 + self.dice.below(15));
        self.write(&mut before, count, Duration::ZERO);
        for _ in 0..2 + self.dice.below(3) {
            self.disturbed();
        }
        self.log = self.walgate.run_until_caught_up();
        self.check();
        let [committed, refused] = [&self.committed, &self.refused].map(|count| count.load(Ordering::SeqCst));
        assert!(
            committed > refused,
            "{committed} transactions, and {refused} were refused: that tests little"
        );
        eprintln!("soak: {committed} transactions, {refused} refused, {:?}", began.elapsed());
    }

    /// Sessions write while Walgate runs, is killed or asked to end, and for a while after.
    fn disturbed(&mut self) {
        let sessions: Vec<(Dice, u64)> =
            (0..1 + self.dice.below(2)).map(|_| (self.dice.fork(), 5 + self.dice.below(30))).collect();
        let pause = Duration::from_millis(self.dice.below(25));
        let (is_streaming_first, delay) = (self.dice.one_in(2), Duration::from_millis(self.dice.below(1500)));
        let is_killed = !self.dice.one_in(4);
        let (this, began) = (&*self, Instant::now());
        std::thread::scope(|scope| {
            let mut running = this.walgate.run();
            if is_streaming_first {
                let streams = || running.stderr().contains("to=Streaming");
                wait_for("the stream", START_LIMIT, || streams().then_some(()));
            }
            for (mut dice, count) in sessions {
                scope.spawn(move || this.write(&mut dice, count, pause));
            }
            std::thread::sleep(delay);
            assert!(running.is_running(), "walgate has ended by itself");
            if is_killed {
                running.kill9();
            } else {
                // Before that, a signal finds nobody who waits for it.
                let has_begun = || !running.stderr().is_empty();
                wait_for("walgate's first word", START_LIMIT, || has_begun().then_some(()));
                running.stop();
            }
        });
        eprintln!("soak: disturbed for {:?}", began.elapsed());
    }

    /// Runs transactions, one after the other, on a session of its own.
    fn write(&self, dice: &mut Dice, count: u64, pause: Duration) {
        let session: Session = self.source.session();
        session.exec("SET deadlock_timeout = '50ms'");
        for _ in 0..count {
            let sql = generate::transaction(dice, &self.tables);
            match session.try_exec(&sql) {
                Ok(()) => self.committed.fetch_add(1, Ordering::SeqCst),
                Err(error) => {
                    let code = error.code().map_or("", |code| code.code());
                    // A deadlock; a key that another session has taken.
                    assert!(["40P01", "23505"].contains(&code), "{error:?}\n{sql}");
                    session.exec("ROLLBACK");
                    self.refused.fetch_add(1, Ordering::SeqCst)
                }
            };
            std::thread::sleep(pause);
        }
    }

    fn check(&self) {
        for table in &self.tables {
            let columns: Vec<String> =
                table.published().iter().map(|column| format!("{}::text", quote(&column.name))).collect();
            let columns = columns.join(", ");
            let filter = table.filter.as_deref().unwrap_or("true");
            let expected = format!("SELECT {columns} FROM {} WHERE {filter}", table.quoted());
            let found = format!("SELECT {columns} FROM {}", table.target);
            assert_same(&found, self.source.query(&expected), self.replica.query(&found));
        }
        let conflicts = self.replica.query("SELECT relation, kind, key, replica_row FROM walgate.conflict");
        assert!(conflicts.is_empty(), "conflicts: {:#?}", conflicts.iter().map(short).collect::<Vec<_>>());

        let events =
            if self.tables.iter().any(|table| table.is_event_too) { self.hub.events() } else { vec![] };
        for table in self.tables.iter().filter(|table| table.is_event_too) {
            self.check_events(table, &events);
        }
    }

    fn check_events(&self, table: &Table, events: &[Event]) {
        let name = format!("public.{}", table.name);
        let own: Vec<Event> = events.iter().filter(|event| event.table() == name).cloned().collect();
        let fold = match (table.identity, table.columns.iter().any(|column| column.is_large)) {
            (Identity::Full, _) => Fold::of(&own),
            (_, false) => Fold::without_snapshot(&own),
            // A row may enter the filter with values that no event has told.
            (_, true) => return,
        };
        let columns: Vec<&str> = table.published().iter().map(|column| column.name.as_str()).collect();
        fold.assert_equals_selected(&self.source, &name, &columns, table.filter.as_deref());
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("---- this round: WALGATE_SOAK_SEED={} WALGATE_SOAK_ROUNDS=1", self.seed);
        for table in &self.tables {
            eprintln!("{};", table.on_source());
            eprintln!("on the replica: {}\n{}", table.on_replica().unwrap_or_default(), table.rule());
        }
        let lines: Vec<&str> = self.log.lines().collect();
        eprintln!("the last log's end:\n{}", lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n"));
    }
}

/// Compares as multisets, and shows some of what differs.
#[track_caller]
fn assert_same(what: &str, expected: Vec<TextRow>, found: Vec<TextRow>) {
    let mut counts: BTreeMap<TextRow, i64> = BTreeMap::new();
    for (rows, weight) in [(expected, 1), (found, -1)] {
        for row in rows {
            *counts.entry(row).or_default() += weight;
        }
    }
    let only = |is_source: bool| {
        let rows = counts.iter().filter(move |(_, count)| **count != 0 && (**count > 0) == is_source);
        rows.map(|(row, count)| format!("{} times {}", count.abs(), short(row))).collect::<Vec<_>>()
    };
    let (missing, extra) = (only(true), only(false));
    let some = |rows: &[String]| rows.iter().take(8).cloned().collect::<Vec<_>>();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "{what}:\n{} on the source only: {:#?}\n{} on the replica only: {:#?}",
        missing.len(),
        some(&missing),
        extra.len(),
        some(&extra)
    );
}

/// A row with its long values cut.
fn short(row: &TextRow) -> String {
    let cells = row.iter().map(|cell| match cell {
        Some(text) if text.chars().count() > SHOWN_CHARS / 4 => {
            let start: String = text.chars().take(SHOWN_CHARS / 4).collect();
            format!("{start:?}... ({})", text.len())
        }
        Some(text) => format!("{text:?}"),
        None => "NULL".to_owned(),
    });
    cells.collect::<Vec<_>>().join(", ").chars().take(SHOWN_CHARS * 3).collect()
}
