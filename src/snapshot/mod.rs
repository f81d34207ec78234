//! Stage `snapshot`.
