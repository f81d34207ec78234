//! The fuzz corpus as an ordinary test: what the fuzzers found once stays found.
//!
//! Files named `pg…` were recorded from a real server and must decode, those named `bad-…` must not; the
//! rest, which a fuzzer adds, may do either. `fuzz/README.md` says how they were made.

use std::path::Path;

use super::frame::Frame;
use super::pgoutput::{self, Message, Old, Tuple};

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    std::fs::read_dir(&folder)
        .expect("the corpus is part of the repository")
        .map(|entry| {
            let entry = entry.expect("a readable folder");
            let bytes = std::fs::read(entry.path()).expect("a readable file");
            (entry.file_name().to_string_lossy().into_owned(), bytes)
        })
        .collect()
}

fn check_name(name: &str, decoded: bool) {
    assert!(decoded || !name.starts_with("pg"), "{name} came from a server and must decode");
    assert!(!decoded || !name.starts_with("bad-"), "{name} must not decode");
}

fn tuples<'a>(message: &Message<'a>) -> Vec<Tuple<'a>> {
    match message {
        Message::Insert { new, .. } | Message::Update { old: None, new, .. } => vec![*new],
        Message::Update { old: Some(old), new, .. } => vec![old.tuple(), *new],
        Message::Delete { old, .. } => vec![old.tuple()],
        _ => Vec::new(),
    }
}

#[test]
fn frames() {
    let files = corpus("frame");
    assert!(files.iter().any(|(name, _)| name.starts_with("pg")), "no recorded frame");
    for (name, bytes) in files {
        let frame = Frame::decode(&bytes);
        check_name(&name, frame.is_ok());
        if let Ok(frame) = frame {
            let mut again = Vec::new();
            frame.encode(&mut again);
            assert_eq!(again, bytes, "{name}");
        }
    }
}

#[test]
fn messages() {
    let mut kinds_seen = Vec::new();
    for (name, bytes) in corpus("pgoutput") {
        let message = pgoutput::decode(&bytes);
        check_name(&name, message.is_ok());
        let Ok(message) = message else { continue };
        for tuple in tuples(&message) {
            assert_eq!(tuple.iter().count(), tuple.len(), "{name}");
        }
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(pgoutput::decode(&again).as_ref(), Ok(&message), "{name}");
        if name.starts_with("pg") {
            assert_eq!(again, bytes, "{name}: the encoder does not write what the server does");
            kinds_seen.push(match message {
                Message::Update { old: None, .. } => "U",
                Message::Update { old: Some(Old::Key(_)), .. } => "UK",
                Message::Update { old: Some(Old::Full(_)), .. } => "UO",
                Message::Delete { old: Old::Key(_), .. } => "DK",
                Message::Delete { old: Old::Full(_), .. } => "DO",
                Message::Begin { .. } => "B",
                Message::Commit { .. } => "C",
                Message::Origin { .. } => "O",
                Message::Relation(_) => "R",
                Message::Type { .. } => "Y",
                Message::Insert { .. } => "I",
                Message::Truncate { .. } => "T",
                Message::Logical { .. } => "M",
            });
        }
    }
    for kind in ["B", "C", "O", "R", "Y", "I", "U", "UK", "UO", "DK", "DO", "T", "M"] {
        assert!(kinds_seen.contains(&kind), "no recorded message of kind {kind}");
    }
}
