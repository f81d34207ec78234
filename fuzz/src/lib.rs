//! The wire layer alone, from the main package's own files, for the fuzz targets.
//!
//! Not a dependency on `walgate`, because that brings librdkafka and OpenSSL, which would be built again with
//! the sanitizer's flags for minutes. What stands here needs neither, and so it stays: the wire layer is pure.

#![forbid(unsafe_code)]

#[path = "../../src/error.rs"]
pub mod error;
#[path = "../../src/lsn.rs"]
pub mod lsn;

#[path = "../../src/wal"]
pub mod wal {
    pub mod cursor;
    pub mod timestamp;
    pub mod frame;
    pub mod pgoutput;
}
