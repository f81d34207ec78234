//! The model's destination: batches and their progress become durable together, or not at all.
//!
//! Every commit is compared at once with what must come: the events, their order, the checkpoint.

use std::collections::VecDeque;
use std::sync::Arc;

use super::wal::{Expected, Wal};
use crate::change::Position;
use crate::lsn::Lsn;
use crate::route::batch::{Batch, Event, Label, Labels, Moved};
use crate::sink::checkpoint::Checkpoint;

/// An event as a consumer sees it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Published {
    label: Arc<Label>,
    partition: Option<i32>,
    id: String,
    key: String,
    value: String,
    moved_to: Option<String>,
    moved_from: Option<String>,
    traceparent: Option<String>,
}

#[derive(Debug)]
pub(super) struct Destination<'w> {
    wal: &'w Wal,
    /// What a straight run has published; `None`: this is the straight run.
    reference: Option<&'w [Published]>,
    /// Durable.
    pub(super) published: Vec<Published>,
    /// Durable, in its stored form.
    stored: String,
    /// Accepted, and lost in a crash.
    accepted: VecDeque<Batch>,
    /// The safe LSN of a destination that stores only whole source transactions.
    whole_safe_lsn: Lsn,
}

impl<'w> Destination<'w> {
    pub(super) fn new(wal: &'w Wal, reference: Option<&'w [Published]>, checkpoint: &Checkpoint) -> Self {
        Destination {
            wal,
            reference,
            published: Vec::new(),
            stored: serde_json::to_string(checkpoint).expect("plain data"),
            accepted: VecDeque::new(),
            whole_safe_lsn: checkpoint.safe_lsn,
        }
    }

    pub(super) fn checkpoint(&self) -> Checkpoint {
        serde_json::from_str(&self.stored).expect("its own form")
    }

    pub(super) fn accept(&mut self, batch: Batch) {
        self.accepted.push_back(batch);
    }

    pub(super) fn accepted(&self) -> usize {
        self.accepted.len()
    }

    pub(super) fn crash(&mut self) {
        self.accepted.clear();
        self.whole_safe_lsn = self.checkpoint().safe_lsn;
    }

    /// Makes the oldest `count` batches durable, in one transaction; returns them.
    pub(super) fn commit(&mut self, count: usize, labels: &Labels) -> Vec<Batch> {
        if self.accepted.is_empty() {
            return vec![];
        }
        let mut known = Vec::new();
        labels.refresh(&mut known);
        let mut checkpoint = self.checkpoint();
        let batches: Vec<Batch> = self.accepted.drain(..count.min(self.accepted.len())).collect();
        for batch in &batches {
            self.starts_with_a_message(batch);
            for event in &batch.events {
                self.take(batch, event, &known);
            }
            assert!(batch.progress.safe_lsn >= checkpoint.safe_lsn, "safe_lsn went back");
            assert!(batch.progress.position >= checkpoint.position(), "the position went back");
            checkpoint.advance(&batch.progress);
            self.whole_safe_lsn = batch.rows.whole.map_or(self.whole_safe_lsn, |(_, whole)| whole.safe_lsn);
            assert_eq!(self.whole_safe_lsn, checkpoint.safe_lsn, "whole transactions make less safe");
            self.fits(checkpoint.position(), checkpoint.safe_lsn);
        }
        self.stored = serde_json::to_string(&checkpoint).expect("plain data");
        batches
    }

    /// The first event that has not arrived.
    pub(super) fn missing(&self) -> Option<&'w Expected> {
        self.wal.expected.get(self.published.len())
    }

    /// All events of one counted message are in one batch.
    fn starts_with_a_message(&self, batch: &Batch) {
        let before = self.published.len().checked_sub(1).and_then(|last| self.wal.expected.get(last));
        if let (Some(before), Some(first), false) = (before, self.missing(), batch.events.is_empty()) {
            assert_ne!(
                before.message, first.message,
                "a batch begins inside a message's events: {}",
                first.id
            );
        }
    }

    fn take(&mut self, batch: &Batch, event: &Event, known: &[Arc<Label>]) {
        let label = known.get(event.label.index()).expect("a label is interned before it is used").clone();
        let text = |range| String::from_utf8(batch.part(range).to_vec()).expect("UTF-8");
        let (moved_to, moved_from) = match &event.moved {
            Some(Moved::To(range)) => (Some(text(range)), None),
            Some(Moved::From(range)) => (None, Some(text(range))),
            None => (None, None),
        };
        let mut published = Published {
            label,
            partition: event.partition,
            id: text(&event.id),
            key: text(event.key.as_ref().expect("every event of this form has a key")),
            value: text(event.value.as_ref().expect("no tombstones were asked for")),
            moved_to,
            moved_from,
            traceparent: event.traceparent.as_ref().map(text),
        };
        let Some(expected) = self.missing() else { panic!("{} is one event too many", published.id) };
        let half = &expected.half;
        assert_eq!(published.id, expected.id, "another event than the next one in commit order");
        assert_eq!(published.key, half.key, "{}", expected.id);
        assert_eq!(published.label.topic, half.topic, "{}", expected.id);
        if half.op != "dead" {
            assert_eq!(published.label.op, half.op, "{}", expected.id);
        }
        let moved = published.moved_to.as_ref().or(published.moved_from.as_ref());
        assert_eq!(moved, half.moved.as_ref(), "{}", expected.id);
        assert_eq!(published.moved_from.is_some(), half.is_second, "{}", expected.id);
        if expected.is_outside {
            published.value = without_time(&published.value);
        }
        if let Some(reference) = self.reference {
            assert_eq!(Some(&published), reference.get(self.published.len()), "not as in the straight run");
        }
        self.published.push(published);
    }

    /// Everything at or before the position is here, nothing behind it; nothing that is missing
    /// lies before `safe_lsn`, where the server would not send it again.
    fn fits(&self, position: Position, safe_lsn: Lsn) {
        if let Some(last) = self.published.len().checked_sub(1).and_then(|last| self.wal.expected.get(last)) {
            assert!(last.position <= position, "{} is behind the checkpoint {position:?}", last.id);
        }
        if let Some(missing) = self.missing() {
            assert!(
                missing.position > position,
                "{} is missing before the checkpoint {position:?}",
                missing.id
            );
            assert!(missing.record_start >= safe_lsn, "{} is missing before safe_lsn {safe_lsn}", missing.id);
        }
    }
}

/// A non-transactional message has no time of its own: the moment of sending stands in for it.
fn without_time(value: &str) -> String {
    const NAME: &str = "\"occurred_at\":\"";
    let Some((before, rest)) = value.split_once(NAME) else { return value.to_owned() };
    let after = rest.split_once('"').map_or("", |(_, after)| after);
    format!("{before}{NAME}\"{after}")
}
