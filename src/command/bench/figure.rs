//! What is measured, and how: a closed list, so that no figure stands anywhere without its method.

use serde::Serialize;

/// A figure of one mode under one workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Changes a second, draining a backlog.
    Throughput,
    /// The time that took.
    DrainSeconds,
    /// Of the source, in all.
    CpuSource,
    /// Of its walsenders.
    CpuSourceWalsenders,
    /// Of its sessions.
    CpuSourceBackends,
    /// Of Walgate or `pg_recvlogical`.
    CpuReader,
    /// Of the broker.
    CpuBroker,
    /// Of the target, in all.
    CpuTarget,
    /// Of its apply workers.
    CpuTargetWorkers,
    /// Of its sessions.
    CpuTargetBackends,
    /// Of all of them.
    CpuAll,
    /// Of Walgate or `pg_recvlogical`.
    MemoryReader,
    /// Of the source's processes.
    MemorySource,
    /// Of the target's.
    MemoryTarget,
    /// Of the broker.
    MemoryBroker,
    /// Between source and reader.
    WireSource,
    /// Between Walgate and the replica.
    WireTarget,
    /// What the destination keeps.
    Stored,
    /// From due to visible.
    LatencyP50,
    /// From due to visible.
    LatencyP99,
    /// From due to visible.
    LatencyP999,
    /// From due to visible.
    LatencyMax,
    /// From the commit's return.
    FromReturnP50,
    /// From the commit's return.
    FromReturnP99,
    /// In the steady load.
    RetainedSteady,
    /// In the burst.
    RetainedBurst,
    /// Of the source's clients, in the burst.
    SourceRate,
    /// In the burst.
    LagPeak,
    /// After the burst.
    CatchUp,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// `/s`
    PerSecond,
    /// `s`
    Seconds,
    /// `ms`
    Milliseconds,
    /// `MiB`
    Mebibytes,
    /// `bytes`
    Bytes,
}

impl Unit {
    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Unit::PerSecond => "/s",
            Unit::Seconds => "s",
            Unit::Milliseconds => "ms",
            Unit::Mebibytes => "MiB",
            Unit::Bytes => "bytes",
        }
    }

    /// A value, without the unit.
    pub fn text(self, value: f64) -> String {
        match self {
            Unit::PerSecond | Unit::Bytes => format!("{value:.0}"),
            Unit::Mebibytes => format!("{value:.1}"),
            Unit::Seconds | Unit::Milliseconds => format!("{value:.2}"),
        }
    }
}

impl Figure {
    /// All of them, in the order of tables.
    pub const ALL: [Figure; 29] = [
        Figure::Throughput,
        Figure::DrainSeconds,
        Figure::CpuAll,
        Figure::CpuSource,
        Figure::CpuSourceWalsenders,
        Figure::CpuSourceBackends,
        Figure::CpuReader,
        Figure::CpuBroker,
        Figure::CpuTarget,
        Figure::CpuTargetWorkers,
        Figure::CpuTargetBackends,
        Figure::MemoryReader,
        Figure::MemorySource,
        Figure::MemoryTarget,
        Figure::MemoryBroker,
        Figure::WireSource,
        Figure::WireTarget,
        Figure::Stored,
        Figure::LatencyP50,
        Figure::LatencyP99,
        Figure::LatencyP999,
        Figure::LatencyMax,
        Figure::FromReturnP50,
        Figure::FromReturnP99,
        Figure::RetainedSteady,
        Figure::RetainedBurst,
        Figure::SourceRate,
        Figure::LagPeak,
        Figure::CatchUp,
    ];

    /// As people read it.
    pub fn name(self) -> &'static str {
        match self {
            Figure::Throughput => "changes drained",
            Figure::DrainSeconds => "time to drain the backlog",
            Figure::CpuSource => "CPU s per 1M changes, source",
            Figure::CpuSourceWalsenders => "  of it walsenders",
            Figure::CpuSourceBackends => "  of it sessions",
            Figure::CpuReader => "CPU s per 1M changes, reader",
            Figure::CpuBroker => "CPU s per 1M changes, broker",
            Figure::CpuTarget => "CPU s per 1M changes, target",
            Figure::CpuTargetWorkers => "  of it apply workers",
            Figure::CpuTargetBackends => "  of it sessions",
            Figure::CpuAll => "CPU s per 1M changes, all",
            Figure::MemoryReader => "peak memory, reader",
            Figure::MemorySource => "peak memory, source",
            Figure::MemoryTarget => "peak memory, target",
            Figure::MemoryBroker => "peak memory, broker",
            Figure::WireSource => "on the wire from the source, a change",
            Figure::WireTarget => "on the wire to the replica, a change",
            Figure::Stored => "stored at the destination, a change",
            Figure::LatencyP50 => "commit to visible, p50",
            Figure::LatencyP99 => "commit to visible, p99",
            Figure::LatencyP999 => "commit to visible, p99.9",
            Figure::LatencyMax => "commit to visible, most",
            Figure::FromReturnP50 => "from the commit's return, p50",
            Figure::FromReturnP99 => "from the commit's return, p99",
            Figure::RetainedSteady => "WAL retained, steady load",
            Figure::RetainedBurst => "WAL retained, burst",
            Figure::SourceRate => "source's own transactions, burst",
            Figure::LagPeak => "largest lag, burst",
            Figure::CatchUp => "caught up after the burst",
        }
    }

    /// What it counts.
    pub fn unit(self) -> Unit {
        match self {
            Figure::Throughput | Figure::SourceRate => Unit::PerSecond,
            Figure::DrainSeconds
            | Figure::CpuSource
            | Figure::CpuSourceWalsenders
            | Figure::CpuSourceBackends
            | Figure::CpuReader
            | Figure::CpuBroker
            | Figure::CpuTarget
            | Figure::CpuTargetWorkers
            | Figure::CpuTargetBackends
            | Figure::CpuAll
            | Figure::CatchUp => Unit::Seconds,
            Figure::MemoryReader
            | Figure::MemorySource
            | Figure::MemoryTarget
            | Figure::MemoryBroker
            | Figure::RetainedSteady
            | Figure::RetainedBurst => Unit::Mebibytes,
            Figure::WireSource | Figure::WireTarget | Figure::Stored => Unit::Bytes,
            Figure::LatencyP50
            | Figure::LatencyP99
            | Figure::LatencyP999
            | Figure::LatencyMax
            | Figure::FromReturnP50
            | Figure::FromReturnP99
            | Figure::LagPeak => Unit::Milliseconds,
        }
    }

    /// How it was measured.
    pub fn how(self) -> &'static str {
        match self {
            Figure::Throughput => {
                "changes of the backlog on the source, through the time to drain it; counted by the server, with pgoutput on a slot of its own; where a filter drops rows, all of them count"
            }
            Figure::DrainSeconds => {
                "from the start of the reader (the process, or the subscription's ALTER ... ENABLE) until a row that was committed after the backlog is visible at the destination, which is asked every 10 ms; for pg_recvlogical, until the process has ended at that LSN. Its slot was made before the backlog was written"
            }
            Figure::CpuSource => {
                "user and system time of all of the source's processes from the reader's start until the last row is visible, by /proc in ticks of 10 ms, for a million changes; the benchmark's own questions are in it"
            }
            Figure::CpuSourceWalsenders | Figure::CpuTargetWorkers => {
                "the same, of the processes with that title, looked up every 50 ms while they live"
            }
            Figure::CpuSourceBackends => {
                "the same, of client sessions: those of Walgate's reader of backlogs are among them"
            }
            Figure::CpuTargetBackends => {
                "the same, of client sessions: Walgate's are among them, and the benchmark's, which asks every 10 ms"
            }
            Figure::CpuReader => {
                "user and system time of the process walgate or pg_recvlogical until the last row is visible, its start included, for a million changes; a subscription has no such process"
            }
            Figure::CpuBroker => {
                "user and system time of the process that listens on the broker's port, for a million changes; what the benchmark's consumer makes it do is in it"
            }
            Figure::CpuTarget => {
                "as of the source; also where nothing is sent to the target, since its background processes run all the same"
            }
            Figure::CpuAll => "the sum of source, reader, broker and, where rows arrive there, target",
            Figure::MemoryReader => {
                "largest resident set of the process walgate or pg_recvlogical in the drain (VmHWM)"
            }
            Figure::MemorySource | Figure::MemoryTarget => {
                "largest sum of the private memory (RssAnon) of the server's processes in the drain, every 50 ms; shared buffers are not in it"
            }
            Figure::MemoryBroker => "largest resident set of the broker in the drain (VmRSS), every 50 ms",
            Figure::WireSource => {
                "bytes of the sockets between source and reader, both ways, with the protocol's framing and TLS if there is any, without TCP's and IP's headers; counted by a relay in a drain of its own that gives no other figure, divided by its changes"
            }
            Figure::WireTarget => {
                "the same between Walgate and the replica; a subscription's worker writes from inside of the server. What goes to a Kafka broker is not counted: its clients connect where it says itself"
            }
            Figure::Stored => {
                "after the drain, divided by the changes: growth of the replica's database, with its indexes; size of the file hub and its claim store; for Kafka the events' values before compression, without keys and headers"
            }
            Figure::LatencyP50 | Figure::LatencyP99 | Figure::LatencyP999 | Figure::LatencyMax => {
                "a probe of 200 single-row transactions a second on 4 connections beside the steady load, from when it was due to when it is visible at the destination, which is asked every millisecond; so the source's commit and every stall are in it (no coordinated omission). All clocks are one"
            }
            Figure::FromReturnP50 | Figure::FromReturnP99 => {
                "the same probes, from the return of their COMMIT at the writer to when they are visible; 0 where they are visible sooner"
            }
            Figure::RetainedSteady | Figure::RetainedBurst => {
                "largest distance between the source's end of WAL and the restart_lsn of the mode's slots, asked every 200 ms"
            }
            Figure::SourceRate => {
                "transactions a second that pgbench reports for 4 clients as fast as they can, beside the probes; against `no consumer` it shows what the mode costs the source, everything being on the machines named above"
            }
            Figure::LagPeak => {
                "the largest of the probes' times from due to visible, from the burst's beginning on"
            }
            Figure::CatchUp => {
                "from the end of the burst until the first probe that was due after it is visible"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_listed_once() {
        let distinct: std::collections::BTreeSet<Figure> = Figure::ALL.into_iter().collect();
        assert_eq!(distinct.len(), Figure::ALL.len());
        assert!(Figure::ALL.iter().all(|figure| figure.how().len() > 20));
    }
}
