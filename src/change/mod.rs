//! Stage `change`.
