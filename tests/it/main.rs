//! The integration tests: the real binary against a real PostgreSQL and a real Kafka.
//!
//! In: the servers that `scripts/servers up` started, named by `WALGATE_TEST_*` (`make test` does both).
//! Out: one test binary, so that the servers and the linking are paid once. Always: a test owns its database,
//! slots and topics, so all of them run in parallel; without the servers they fail, they are never skipped.

mod support;

mod support_selftest;
mod events;
mod operate;
mod park;
mod rows;
mod transactions;
mod naming;
mod messages;
mod formats;
mod outbox;
mod copy;
mod values;
mod crash;
mod backlog;
mod faults;
mod replicate;
mod lanes;
mod ranges;
mod sequences;
mod indexes;
mod filters;
mod partitions;
mod pushdown;
mod claims;
mod claim_forms;
mod claim_store;
mod consumers;
mod compose;
mod claim_memory;
mod claim_faults;
mod looked_up;
mod check;
mod demo;
mod bench;
mod soak;
