//! Stage `route`: which rule takes a table, and what its events are called.

pub mod name;
pub mod template;
