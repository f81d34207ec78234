//! Stage `route`.
