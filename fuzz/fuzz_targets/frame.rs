//! Any bytes as a frame: no panic, and what decodes is encoded to the very same bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walgate_wire::wal::frame::{Frame, StandbyStatus};

fuzz_target!(|bytes: &[u8]| {
    let mut again = Vec::new();
    if let Ok(frame) = Frame::decode(bytes) {
        frame.encode(&mut again);
        assert_eq!(again, bytes);
        assert!(!format!("{frame:?}").is_empty());
    } else if let Ok(status) = StandbyStatus::decode(bytes) {
        status.encode(&mut again);
        assert_eq!(again, bytes);
    }
});
