//! Stage `route`.

pub mod value;
