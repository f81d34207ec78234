//! The model's walsender: sends what was not confirmed, over one connection.
//!
//! Always holds, as in PostgreSQL: every record that begins at or behind the confirmed LSN is sent
//! again, in order; a relation is described before its first change on the connection, and at other
//! times as it likes; a keepalive between two transactions names how far was sent. Inside a
//! transaction the model is harsher than any server so far and may name the end of the WAL, which
//! the manual allows ("The current end of WAL on the server").

use std::collections::{HashMap, VecDeque};

use super::dice::Dice;
use super::tables;
use super::wal::{Record, Wal, What};
use crate::error::Result;
use crate::lsn::Lsn;
use crate::pipeline::pump::WalSource;
use crate::wal::frame::Frame;
use crate::wal::pgoutput::Message;
use crate::wal::timestamp::Timestamp;

#[derive(Debug)]
struct Queued {
    frame: Vec<u8>,
    /// Of a Commit: once this is taken out, the transaction is the client's as a whole.
    end_lsn: Option<Lsn>,
}

#[derive(Debug)]
pub(super) struct Walsender<'w> {
    wal: &'w Wal,
    dice: Dice,
    /// The next record to decode.
    next: usize,
    /// Records that are committed and flushed by now.
    pub(super) visible: usize,
    sent_lsn: Lsn,
    queue: VecDeque<Queued>,
    current: Vec<u8>,
    described: HashMap<u32, usize>,
    /// Frames that have come through the network.
    pub(super) arrived: usize,
    /// The end of the last transaction that was taken out whole.
    pub(super) whole_lsn: Lsn,
}

impl<'w> Walsender<'w> {
    pub(super) fn start(wal: &'w Wal, confirmed: Lsn, visible: usize, mut dice: Dice) -> Self {
        let is_boundary = |record: &Record| confirmed <= record.start || confirmed >= record.end;
        assert!(wal.records.iter().all(is_boundary), "{confirmed} lies inside a record");
        let next = wal.records.iter().take_while(|record| record.start < confirmed).count();
        // Where decoding begins again is the server's business: at or before what was confirmed.
        let sent_lsn = wal.end(dice.index(next + 1));
        Walsender {
            wal,
            dice,
            next,
            visible,
            sent_lsn,
            queue: VecDeque::new(),
            current: Vec::new(),
            described: HashMap::new(),
            arrived: 0,
            whole_lsn: Lsn::ZERO,
        }
    }

    /// Whether all that is visible has been taken out.
    pub(super) fn is_dry(&self) -> bool {
        self.queue.is_empty() && self.next >= self.visible
    }

    /// Says how far it has come; not in the middle of what it has begun to send.
    pub(super) fn keepalive(&mut self, asks: bool) {
        if self.queue.is_empty() {
            self.push_keepalive(self.sent_lsn, asks);
        }
    }

    fn decode_next(&mut self) {
        let wal = self.wal;
        let record = &wal.records[self.next];
        self.next += 1;
        match &record.what {
            What::Foreign => {}
            What::Message(payload) => self.push(record.end, payload),
            What::Transaction { changes, .. } if changes.is_empty() && !wal.sends_empty => {
                self.push_keepalive(record.end, false);
            }
            What::Transaction { xid, has_origin, changes } => {
                let commit_time = Timestamp(i64::from(*xid) * 1_000_000);
                let begin = Message::Begin { final_lsn: record.start, commit_time, xid: *xid };
                self.push_message(Lsn::ZERO, &begin);
                if *has_origin {
                    self.push_message(Lsn::ZERO, &Message::Origin { commit_lsn: Lsn(5), name: "elsewhere" });
                }
                for (lsn, draft) in changes {
                    self.keepalive_inside();
                    for (oid, version) in &draft.relations {
                        self.describe(*oid, *version);
                    }
                    self.push(*lsn, &draft.payload);
                }
                self.keepalive_inside();
                let commit = Message::Commit { commit_lsn: record.start, end_lsn: record.end, commit_time };
                self.push_message(record.end, &commit);
                self.queue.back_mut().expect("the commit").end_lsn = Some(record.end);
            }
        }
        self.sent_lsn = record.end;
        if self.dice.percent(15) {
            let asks = self.dice.percent(20);
            self.push_keepalive(record.end, asks);
        }
    }

    fn describe(&mut self, oid: u32, version: usize) {
        if self.described.insert(oid, version) == Some(version) && !self.dice.percent(5) {
            return;
        }
        if self.dice.percent(10) {
            self.push_message(Lsn::ZERO, &Message::Type { oid: 20_000, namespace: "public", name: "mood" });
        }
        self.push_message(Lsn::ZERO, &Message::Relation(tables::relation(oid, version)));
    }

    fn keepalive_inside(&mut self) {
        if self.dice.percent(4) {
            let wal_end = if self.dice.percent(50) { self.sent_lsn } else { self.wal.end(self.visible) };
            let asks = self.dice.percent(20);
            self.push_keepalive(wal_end, asks);
        }
    }

    fn push_message(&mut self, lsn: Lsn, message: &Message<'_>) {
        self.push(lsn, &tables::encode(message));
    }

    fn push(&mut self, lsn: Lsn, payload: &[u8]) {
        let mut frame = Vec::with_capacity(25 + payload.len());
        // The server's clock, which no replay repeats.
        let sent_at = Timestamp(i64::try_from(self.dice.below(1 << 50)).expect("it fits"));
        Frame::Data { wal_start: lsn, wal_end: lsn, sent_at, payload }.encode(&mut frame);
        self.queue.push_back(Queued { frame, end_lsn: None });
    }

    fn push_keepalive(&mut self, wal_end: Lsn, reply_requested: bool) {
        let mut frame = Vec::with_capacity(18);
        Frame::Keepalive { wal_end, sent_at: Timestamp(0), reply_requested }.encode(&mut frame);
        self.queue.push_back(Queued { frame, end_lsn: None });
    }
}

impl WalSource for Walsender<'_> {
    fn next_frame(&mut self) -> Result<Option<Frame<'_>>> {
        while self.queue.is_empty() && self.next < self.visible {
            self.decode_next();
        }
        if self.arrived == 0 {
            return Ok(None);
        }
        let Some(Queued { frame, end_lsn }) = self.queue.pop_front() else { return Ok(None) };
        self.whole_lsn = end_lsn.unwrap_or(self.whole_lsn);
        self.arrived -= 1;
        self.current = frame;
        Ok(Some(Frame::decode(&self.current)?))
    }
}
