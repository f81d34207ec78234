//! The model's WAL: random records, and the list of events that must come of them.
//!
//! Always holds, as in PostgreSQL: records lie one behind the other, and one may begin exactly where
//! the one before ended; so a transaction's commit record can begin at the LSN of the message or
//! the end of the commit before it.

use super::dice::Dice;
use super::tables::{self, Draft, Half};
use crate::change::Position;
use crate::lsn::Lsn;
use crate::route::message::{OUTBOX_PREFIX, TRACEPARENT_PREFIX};
use crate::wal::pgoutput::Message;

/// A record that decoding meets: a commit, a message outside of transactions, or nothing of ours.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) start: Lsn,
    pub(super) end: Lsn,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Transaction {
        xid: u32,
        has_origin: bool,
        changes: Vec<(Lsn, Draft)>,
    },
    Message(Vec<u8>),
    /// Another database's WAL.
    Foreign,
}

/// An event that must arrive, exactly once, in this order.
#[derive(Debug)]
pub(super) struct Expected {
    pub(super) id: String,
    pub(super) half: Half,
    pub(super) position: Position,
    /// The counted message that it comes of.
    pub(super) message: Position,
    /// The server sends it again unless something behind this was confirmed.
    pub(super) record_start: Lsn,
    /// Of a non-transactional message, which has no time of its own.
    pub(super) is_outside: bool,
}

#[derive(Debug)]
pub(super) struct Wal {
    pub(super) start: Lsn,
    pub(super) records: Vec<Record>,
    pub(super) expected: Vec<Expected>,
    /// Of [`tables::LINES`]: what committed before it is in the copy.
    pub(super) copied_at: Lsn,
    /// PostgreSQL 14 sends Begin and Commit of empty transactions.
    pub(super) sends_empty: bool,
}

impl Wal {
    pub(super) fn generate(dice: &mut Dice) -> Wal {
        let start = Lsn(0x0100_0000);
        let mut versions = [0; 6];
        let mut records: Vec<Record> = Vec::new();
        let mut end = start;
        for nth in 0..(8 + dice.below(24)) {
            let start = Lsn(end.0 + [0, 0, 8, 40][dice.index(4)]);
            end = Lsn(start.0 + 24 + 8 * dice.below(8));
            let what = match dice.below(10) {
                0 => What::Foreign,
                1 => What::Message(logical(dice, false, end, nth).payload),
                _ => transaction(dice, &mut versions, start, nth),
            };
            records.push(Record { start, end, what });
        }
        let middle = &records[records.len() / 2];
        // At the commit itself, or anywhere between the one before and it.
        let copied_at = Lsn(middle.start.0 - if dice.percent(50) { 0 } else { dice.below(8) });
        let expected = records.iter().flat_map(|record| expected(record, copied_at)).collect();
        Wal { start, records, expected, copied_at, sends_empty: dice.percent(50) }
    }

    /// Where the first `visible` records end.
    pub(super) fn end(&self, visible: usize) -> Lsn {
        visible.checked_sub(1).map_or(self.start, |last| self.records[last].end)
    }
}

fn transaction(dice: &mut Dice, versions: &mut [usize; 6], commit_lsn: Lsn, nth: u64) -> What {
    let length = match dice.below(20) {
        0 | 1 => 0,
        2 => 30 + dice.below(60),
        _ => 1 + dice.below(6),
    };
    let changes = (0..length)
        .map(|_| {
            if dice.percent(3) {
                versions[dice.index(6)] = 1;
            }
            let lsn = Lsn(commit_lsn.0 - 1 - dice.below(64));
            let is_message = dice.percent(12);
            (lsn, if is_message { logical(dice, true, lsn, nth) } else { tables::change(dice, versions) })
        })
        .collect();
    What::Transaction { xid: 700 + u32::try_from(nth).expect("a few"), has_origin: dice.percent(15), changes }
}

fn logical(dice: &mut Dice, transactional: bool, lsn: Lsn, nth: u64) -> Draft {
    let outbox = |topic: &str, key: String, op| Half {
        is_second: false,
        suffix: String::new(),
        key,
        topic: topic.to_owned(),
        op,
        moved: None,
    };
    let number = dice.below(1000);
    let (prefix, content, halves) = match dice.below(6) {
        0 => ("other", b"\xFF\x00".to_vec(), vec![]),
        1 if transactional => {
            (TRACEPARENT_PREFIX, format!("00-{number:032x}-{nth:016x}-01").into_bytes(), vec![])
        }
        // A dead letter: its key is its id, which the caller fills in.
        2 => {
            let half = outbox("shop.walgate_hub.dead-letter", String::new(), "dead");
            (OUTBOX_PREFIX, b"{\"no\":1}".to_vec(), vec![half])
        }
        _ => {
            let content = format!(
                r#"{{"aggregate_type":"Note","aggregate_id":{number},"type":"NoteTaken","payload":{{"nth":{nth}}}}}"#
            );
            let half = outbox("shop.walgate.outbox", number.to_string(), "message");
            (OUTBOX_PREFIX, content.into_bytes(), vec![half])
        }
    };
    let message = Message::Logical { transactional, lsn, prefix, content: &content };
    Draft { payload: tables::encode(&message), relations: vec![], counted: vec![(0, halves)] }
}

fn expected(record: &Record, copied_at: Lsn) -> Vec<Expected> {
    let mut out = Vec::new();
    match &record.what {
        What::Foreign => {}
        What::Message(payload) => {
            let Message::Logical { lsn, prefix, content, .. } =
                crate::wal::pgoutput::decode(payload).expect("encoded here")
            else {
                unreachable!("it is a logical message");
            };
            if prefix != OUTBOX_PREFIX {
                return out;
            }
            let content: serde_json::Value = serde_json::from_slice(content).expect("written here");
            let id = format!("shop/{:016X}/00000000", lsn.0);
            let (key, topic, op) = match content.get("aggregate_id") {
                Some(key) => (key.to_string(), "shop.walgate.outbox", "message"),
                None => (id.clone(), "shop.walgate_hub.dead-letter", "dead"),
            };
            let position = Position { commit_lsn: lsn, ordinal: 0 };
            out.push(Expected {
                id,
                half: Half {
                    is_second: false,
                    suffix: String::new(),
                    key,
                    topic: topic.into(),
                    op,
                    moved: None,
                },
                position,
                message: position,
                record_start: record.start,
                is_outside: true,
            });
        }
        What::Transaction { changes, .. } => {
            let counted = changes.iter().flat_map(|(_, draft)| &draft.counted);
            for (n, (oid, halves)) in counted.enumerate() {
                let ordinal = 2 * (u64::try_from(n).expect("a few") + 1);
                let message = Position { commit_lsn: record.start, ordinal };
                if *oid == tables::LINES && record.start < copied_at {
                    continue;
                }
                for half in halves {
                    let position = Position { ordinal: ordinal + u64::from(half.is_second), ..message };
                    let id = format!("shop/{:016X}/{:08X}{}", record.start.0, position.ordinal, half.suffix);
                    let mut half = half.clone();
                    if half.op == "dead" {
                        half.key.clone_from(&id);
                    }
                    let record_start = record.start;
                    out.push(Expected { id, half, position, message, record_start, is_outside: false });
                }
            }
        }
    }
    out
}
