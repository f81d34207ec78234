//! Any bytes as a pgoutput message: no panic, every tuple readable to its end, and what decodes is encoded
//! and decoded to an equal message. An error points inside the message.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walgate_wire::error::Error;
use walgate_wire::wal::pgoutput::{Message, Tuple, decode};

fuzz_target!(|bytes: &[u8]| {
    let message = match decode(bytes) {
        Ok(message) => message,
        Err(error) => {
            assert!(error.offset <= bytes.len());
            assert!(Error::from(error).is_definite());
            return;
        }
    };
    match &message {
        Message::Insert { new, .. } => walk(*new),
        Message::Update { old, new, .. } => {
            old.iter().for_each(|old| walk(old.tuple()));
            walk(*new);
        }
        Message::Delete { old, .. } => walk(old.tuple()),
        Message::Truncate { relations, .. } => assert_eq!(relations.iter().count(), relations.len()),
        _ => {}
    }
    let mut again = Vec::new();
    message.encode(&mut again);
    assert_eq!(decode(&again).as_ref(), Ok(&message));
});

fn walk(tuple: Tuple<'_>) {
    assert_eq!(tuple.iter().count(), tuple.len());
}
