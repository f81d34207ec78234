//! Stage `ack`.
