//! A workload whose every change is known without asking anybody: what each statement does follows from the
//! statements before it.
//!
//! In: a session, and which transactions to run. Out: the exact list of events that must come of them. Always:
//! one writer, so the order of the transactions is the order of their commits; the tables are `t` and `u`.
//! EXACTLY_ONCE.md, "Positions", gives the ordinals.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value, json};

use super::event::Event;
use super::{Fold, Session, Source};

/// The transactions so far, and the rows that they have left.
pub struct Workload {
    session: Session,
    rows: BTreeMap<i64, i64>,
    u_rows: BTreeSet<i64>,
    next_id: i64,
    transactions: Vec<Transaction>,
}

#[derive(Debug)]
struct Transaction {
    xid: u64,
    statements: Vec<Statement>,
}

#[derive(Debug)]
struct Statement {
    table: &'static str,
    /// In any order: a statement's rows come as the server finds them.
    messages: Vec<Message>,
}

#[derive(Clone, Debug)]
enum Message {
    Row(Change),
    KeyChange(Change, Change),
    Truncate,
}

/// What an event must say; serialized to be compared.
#[derive(Clone, Debug)]
struct Change(Value);

/// A transaction as it is being put together.
pub struct Open<'w> {
    workload: &'w mut Workload,
    sql: String,
    statements: Vec<Statement>,
}

impl Workload {
    /// Makes the tables.
    pub fn new(source: &Source) -> Self {
        let session = source.session();
        session.exec(
            "CREATE TABLE t (id int PRIMARY KEY, n int, note text); CREATE TABLE u (id int PRIMARY KEY)",
        );
        Self { session, rows: BTreeMap::new(), u_rows: BTreeSet::new(), next_id: 1, transactions: Vec::new() }
    }

    /// Connects anew, after the server was restarted.
    pub fn reconnect(&mut self, source: &Source) {
        self.session = source.session();
    }

    /// How many transactions there are: what [`assert_exact`](Self::assert_exact) takes as its beginning.
    pub fn count(&self) -> usize {
        self.transactions.len()
    }

    /// How many rows `t` has.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Begins a transaction; it is run by [`Open::commit`].
    pub fn begin(&mut self) -> Open<'_> {
        Open { workload: self, sql: "BEGIN;".to_owned(), statements: Vec::new() }
    }

    /// Inserts rows in a transaction of their own.
    pub fn insert(&mut self, count: i64) {
        self.begin().insert(count).commit();
    }

    /// Inserts a row and returns its aggregate id: what to wait for.
    pub fn mark(&mut self) -> String {
        self.insert(1);
        (self.next_id - 1).to_string()
    }

    /// A dozen small transactions of every kind of change, and what must not be seen: aborts and subtransactions
    /// that were rolled back.
    pub fn mix(&mut self) {
        self.begin().insert(5).commit();
        self.begin().insert(20).bump(7).insert_u(3).bump(3).commit();
        self.begin().rolled_back().insert(2).rolled_back().bump(5).commit();
        self.session.exec("BEGIN; UPDATE t SET n = -9; INSERT INTO u VALUES (-1); ROLLBACK");
        self.begin().rekey(3).commit();
        self.begin().delete(2).rekey(1).insert(1).commit();
        self.begin().truncate_u().insert_u(2).commit();
        for _ in 0..6 {
            self.begin().bump(2).commit();
        }
    }

    /// One transaction of more rows than a batch takes (8192), with changes of other kinds on both sides.
    pub fn big(&mut self) {
        self.begin().bump(3).insert(9000).rekey(2).bump(50).commit();
    }

    /// Changes every row, so that rows move between pages, deletes some and re-keys some.
    pub fn churn(&mut self) {
        let all = self.rows.len();
        self.begin().bump(all).commit();
        self.begin().delete(3).rekey(3).insert(4).truncate_u().insert_u(5).commit();
        self.begin().bump(all / 10).commit();
    }

    /// Asserts that each change since transaction number `from` has its event exactly once, in its place, with its
    /// content, that no other event is there, and that the events add up to the source's tables. Earlier
    /// transactions may be in a copy instead: then the events begin with some transaction before `from`.
    #[track_caller]
    pub fn assert_exact(&self, events: &[Event], source: &Source, from: usize) {
        for table in ["t", "u"] {
            self.assert_stream_exact(events, table, from);
            assert_generations(events, table);
        }
        let fold = Fold::of(events);
        fold.assert_equals(source, "public.t");
        fold.assert_equals(source, "public.u");
    }

    #[track_caller]
    fn assert_stream_exact(&self, events: &[Event], table: &'static str, from: usize) {
        let name = format!("public.{table}");
        let mut found: BTreeMap<u64, Vec<&Event>> = BTreeMap::new();
        for event in events.iter().filter(|event| event.table() == name) {
            if event.place().snapshot_of.is_none() {
                found.entry(event.place().lsn).or_default().push(event);
            }
        }
        let has_table = |transaction: &&Transaction| transaction.statements.iter().any(|s| s.table == table);
        let expected: Vec<&Transaction> = self.transactions.iter().filter(has_table).collect();
        let due = self.transactions[from..].iter().filter(has_table).count();
        let describe = |lost: usize| {
            let xids: BTreeSet<u64> = found.values().map(|events| xid(events[0])).collect();
            let missing: Vec<u64> = expected[expected.len() - lost..]
                .iter()
                .map(|t| t.xid)
                .filter(|x| !xids.contains(x))
                .collect();
            let known: BTreeSet<u64> = expected.iter().map(|t| t.xid).collect();
            let strange: Vec<&u64> = xids.iter().filter(|xid| !known.contains(xid)).collect();
            format!("missing transactions {missing:?}, unknown transactions {strange:?}")
        };
        assert!(
            (due..=expected.len()).contains(&found.len()),
            "{name}: {} transactions have events, {due} of {} must: {}",
            found.len(),
            expected.len(),
            describe(due)
        );
        let partitions = partitions_of(events, &name);
        for (transaction, (lsn, events)) in expected[expected.len() - found.len()..].iter().zip(&found) {
            assert_eq!(
                transaction.xid,
                xid(events[0]),
                "{name} at {lsn:X}: another transaction stands there: {}",
                describe(found.len())
            );
            transaction.assert_exact(table, events, &partitions);
        }
    }
}

impl Open<'_> {
    /// Inserts new rows.
    pub fn insert(mut self, count: i64) -> Self {
        let first = self.workload.next_id;
        self.workload.next_id += count;
        let last = first + count - 1;
        self.sql += &format!(
            "INSERT INTO t SELECT i, 0, 'note \"' || i || '\"' FROM generate_series({first}, {last}) i;"
        );
        let ids = first..=last;
        self.workload.rows.extend(ids.clone().map(|id| (id, 0)));
        self.statement("t", ids.map(|id| Message::Row(Change::with_data("insert", id, 0, id))).collect())
    }

    /// Updates the `count` lowest rows.
    pub fn bump(mut self, count: usize) -> Self {
        let mut messages = Vec::new();
        let mut last = 0;
        for (&id, n) in self.workload.rows.iter_mut().take(count) {
            *n += 1;
            last = id;
            messages.push(Message::Row(Change::with_data("update", id, *n, id)));
        }
        self.sql += &format!("UPDATE t SET n = n + 1, note = 'note \"' || id || '\"' WHERE id <= {last};");
        self.statement("t", messages)
    }

    /// Deletes the `count` lowest rows.
    pub fn delete(mut self, count: usize) -> Self {
        let ids: Vec<i64> = self.workload.rows.keys().copied().take(count).collect();
        let list = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        self.sql += &format!("DELETE FROM t WHERE id IN ({list});");
        self.workload.rows.retain(|id, _| !ids.contains(id));
        self.statement("t", ids.iter().map(|&id| Message::Row(Change::delete(id, None))).collect())
    }

    /// Gives the `count` lowest rows new keys, one statement each.
    pub fn rekey(mut self, count: usize) -> Self {
        for _ in 0..count {
            let (&old, &n) = self.workload.rows.first_key_value().expect("there are rows");
            let new = self.workload.next_id;
            self.workload.next_id += 1;
            self.workload.rows.remove(&old);
            self.workload.rows.insert(new, n);
            self.sql += &format!("UPDATE t SET id = {new}, note = 'note \"{new}\"' WHERE id = {old};");
            let mut arrived = Change::with_data("insert", new, n, new);
            arrived.0["moved_from"] = json!(old.to_string());
            self = self.statement("t", vec![Message::KeyChange(Change::delete(old, Some(new)), arrived)]);
        }
        self
    }

    /// Inserts rows into `u`.
    pub fn insert_u(mut self, count: i64) -> Self {
        let first = self.workload.next_id;
        self.workload.next_id += count;
        let last = first + count - 1;
        self.sql += &format!("INSERT INTO u SELECT generate_series({first}, {last});");
        self.workload.u_rows.extend(first..=last);
        let insert = |id: i64| {
            Message::Row(Change(json!({"op": "insert", "aggregate_id": id.to_string(), "data": {"id": id},
                "before": null, "moved_to": null, "moved_from": null})))
        };
        self.statement("u", (first..=last).map(insert).collect())
    }

    /// TRUNCATE of `u`.
    pub fn truncate_u(mut self) -> Self {
        self.sql += "TRUNCATE u;";
        self.workload.u_rows.clear();
        self.statement("u", vec![Message::Truncate])
    }

    /// A subtransaction that leaves nothing.
    pub fn rolled_back(mut self) -> Self {
        self.sql += "SAVEPOINT s; INSERT INTO u VALUES (-5); UPDATE t SET n = -7; ROLLBACK TO s;";
        self
    }

    /// Runs it.
    #[track_caller]
    pub fn commit(self) {
        let xid = self.workload.session.value(&format!("{} SELECT pg_current_xact_id(); COMMIT", self.sql));
        let xid = xid.parse().expect("a transaction id is a number");
        self.workload.transactions.push(Transaction { xid, statements: self.statements });
    }

    /// Prepares it under a name; it counts from [`Prepared::commit`] on.
    #[track_caller]
    pub fn prepare(self, name: &str) -> Prepared {
        let xid = self
            .workload
            .session
            .value(&format!("{} SELECT pg_current_xact_id(); PREPARE TRANSACTION '{name}'", self.sql));
        let xid = xid.parse().expect("a transaction id is a number");
        Prepared { name: name.to_owned(), transaction: Transaction { xid, statements: self.statements } }
    }

    fn statement(mut self, table: &'static str, messages: Vec<Message>) -> Self {
        self.statements.push(Statement { table, messages });
        self
    }
}

/// A prepared transaction: its rows are in the model already, so nothing else may touch them before its commit.
pub struct Prepared {
    name: String,
    transaction: Transaction,
}

impl Prepared {
    /// COMMIT PREPARED.
    #[track_caller]
    pub fn commit(self, workload: &mut Workload) {
        workload.session.exec(&format!("COMMIT PREPARED '{}'", self.name));
        workload.transactions.push(self.transaction);
    }
}

impl Transaction {
    /// `events`: those of one table in this transaction.
    #[track_caller]
    fn assert_exact(&self, table: &'static str, events: &[&Event], partitions: &BTreeSet<i32>) {
        let mut by_number: BTreeMap<u64, Vec<&Event>> = BTreeMap::new();
        for event in events {
            assert_eq!(xid(event), self.xid, "two transactions at one LSN: {}", event.raw);
            by_number.entry(event.place().number / 2).or_default().push(event);
        }
        let mut number = 1;
        for statement in &self.statements {
            let mut expected = Vec::new();
            let mut found = Vec::new();
            for message in &statement.messages {
                let here = number;
                number += 1;
                if statement.table != table {
                    continue;
                }
                expected.push(message.text());
                let events = by_number.remove(&here).unwrap_or_default();
                assert!(
                    !events.is_empty(),
                    "{table}, transaction {}: no event with ordinal {}",
                    self.xid,
                    2 * here
                );
                found.push(message_text(&events, partitions));
            }
            expected.sort();
            found.sort();
            if expected != found {
                let expected_of: BTreeSet<&String> = expected.iter().collect();
                let found_of: BTreeSet<&String> = found.iter().collect();
                panic!(
                    "{table}, transaction {}: events differ\n  expected {:?}\n  found {:?}",
                    self.xid,
                    expected_of.difference(&found_of).take(3).collect::<Vec<_>>(),
                    found_of.difference(&expected_of).take(3).collect::<Vec<_>>()
                );
            }
        }
        assert!(by_number.is_empty(), "{table}, transaction {}: events too many: {by_number:?}", self.xid);
    }
}

impl Message {
    fn text(&self) -> String {
        match self {
            Message::Row(change) => change.0.to_string(),
            Message::KeyChange(left, arrived) => format!("{} {}", left.0, arrived.0),
            Message::Truncate => "truncate of every partition".to_owned(),
        }
    }
}

impl Change {
    fn with_data(op: &str, id: i64, n: i64, note: i64) -> Self {
        Change(json!({"op": op, "aggregate_id": id.to_string(),
            "data": {"id": id, "n": n, "note": format!("note \"{note}\"")},
            "before": null, "moved_to": null, "moved_from": null}))
    }

    fn delete(id: i64, moved_to: Option<i64>) -> Self {
        Change(json!({"op": "delete", "aggregate_id": id.to_string(), "data": null, "before": {"id": id},
            "moved_to": moved_to.map(|id| id.to_string()), "moved_from": null}))
    }
}

/// The events of one message as [`Message::text`] would have them.
#[track_caller]
fn message_text(events: &[&Event], partitions: &BTreeSet<i32>) -> String {
    if events[0].op() == "truncate" {
        let of: BTreeSet<i32> = events.iter().map(|event| event.partition).collect();
        assert!(
            of.is_superset(partitions) && of.len() == events.len(),
            "not one truncate a partition: {events:?}"
        );
        return Message::Truncate.text();
    }
    let mut events = events.to_vec();
    events.sort_by_key(|event| event.place());
    let numbers: Vec<u64> = events.iter().map(|event| event.place().number % 2).collect();
    assert!(numbers == [0] || numbers == [0, 1], "ordinals of one message: {events:?}");
    let text = |event: &&Event| {
        let json = &event.json;
        json!({"op": json["op"], "aggregate_id": json["aggregate_id"], "data": json["data"],
            "before": json["before"], "moved_to": json["moved_to"], "moved_from": json["moved_from"]})
        .to_string()
    };
    events.iter().map(text).collect::<Vec<_>>().join(" ")
}

/// Every copy of a table but the first begins, in each partition, with a truncate; the last one is whole.
#[track_caller]
fn assert_generations(events: &[Event], table: &str) {
    let name = format!("public.{table}");
    let mut generations: BTreeMap<u64, Vec<&Event>> = BTreeMap::new();
    for event in events.iter().filter(|event| event.table() == name) {
        if event.place().snapshot_of.is_some() {
            assert!(matches!(event.op(), "read" | "truncate"), "{}", event.raw);
            assert_eq!(event.json["source"]["xid"], Value::Null, "{}", event.raw);
            generations.entry(event.place().lsn).or_default().push(event);
        }
    }
    let partitions = partitions_of(events, &name);
    for (nth, events) in generations.values().enumerate() {
        let truncates: Vec<&&Event> = events.iter().filter(|event| event.op() == "truncate").collect();
        let of: BTreeSet<i32> = truncates.iter().map(|event| event.partition).collect();
        assert_eq!(of.len(), truncates.len(), "{name}: a partition truncated twice: {truncates:?}");
        assert!(
            (nth == 0 && of.is_empty()) || of.is_superset(&partitions),
            "{name}: copy number {nth} begins with truncates of {of:?}, events are in {partitions:?}"
        );
        for truncate in truncates {
            assert_eq!(truncate.place().number, 0, "{}", truncate.raw);
            let is_first = events
                .iter()
                .filter(|event| event.partition == truncate.partition)
                .all(|event| event.offset >= truncate.offset);
            assert!(is_first, "rows of the new copy stand before its truncate: {}", truncate.raw);
        }
    }
    if let Some(last) = generations.values().next_back() {
        let mut numbers: Vec<u64> =
            last.iter().filter(|event| event.op() == "read").map(|event| event.place().number).collect();
        numbers.sort_unstable();
        let whole: Vec<u64> = (1..=u64::try_from(numbers.len()).expect("a count fits")).collect();
        assert_eq!(numbers, whole, "{name}: row numbers of the last copy");
    }
    // What was committed before the copy is in the copy, and so not in the stream.
    let copied_at = generations.keys().next_back().map_or(0, |before| before + 1);
    for event in events.iter().filter(|event| event.table() == name) {
        let place = event.place();
        let later_copies = generations.range(place.lsn + 1..).count();
        assert!(
            place.snapshot_of.is_some() || place.lsn >= copied_at || later_copies > 0,
            "a change that is in the copy as well: {}",
            event.raw
        );
    }
}

/// The partitions in which a table has events.
fn partitions_of(events: &[Event], table: &str) -> BTreeSet<i32> {
    events.iter().filter(|event| event.table() == table).map(|event| event.partition).collect()
}

fn xid(event: &Event) -> u64 {
    event.json["source"]["xid"].as_u64().unwrap_or_else(|| panic!("no xid: {}", event.raw))
}

/// Under at-least-once an event may come again, with equal id and content: the first of each.
#[track_caller]
pub fn without_repetitions(events: Vec<Event>) -> Vec<Event> {
    let mut seen: HashMap<String, Event> = HashMap::new();
    let mut kept = Vec::new();
    for event in events {
        match seen.get(event.id()) {
            Some(first) => {
                assert_eq!(first.raw, event.raw, "an id with two contents");
                let place = |event: &Event| (event.topic.clone(), event.partition, event.key.clone());
                assert_eq!(place(first), place(&event), "an event in two places");
                assert_eq!(first.headers, event.headers, "an event with other headers: {}", event.raw);
            }
            None => {
                seen.insert(event.id().to_owned(), event.clone());
                kept.push(event);
            }
        }
    }
    kept
}
