//! Stage `engine`.
