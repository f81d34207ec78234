//! Stage `wal`.
