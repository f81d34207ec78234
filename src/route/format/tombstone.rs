//! Tombstones: behind a delete an event of the same key without a value, by which a compacted topic forgets the key.
//!
//! Always holds: it stands directly behind its delete, in the same batch and so in the same transaction of the hub. Its id is the
//! delete's with `/t` behind it, so that who leaves out repeated ids does not leave it out. What has no key has no tombstone.

use crate::route::batch::{Batch, Event};
use crate::route::event::append;

/// Appends the tombstone of the event that was written last.
pub(in crate::route) fn write_tombstone(batch: &mut Batch) {
    let Some(delete) = batch.events.last() else { return };
    let tombstone = delete.clone();
    let id = append(&mut batch.bytes, |out| {
        out.extend_from_within(tombstone.id.clone());
        out.extend_from_slice(b"/t");
    });
    batch.events.push(Event { id, value: None, claims: Vec::new(), ..tombstone });
}
