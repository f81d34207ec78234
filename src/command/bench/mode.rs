//! The ways a change can take, side by side.

use clap::ValueEnum;

/// As they are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeName {
    /// Walgate's events into a directory
    EventFile,
    /// Walgate's events to Kafka: at-least-once, and exactly-once
    EventKafka,
    /// Walgate's rows into a replica
    Replicate,
    /// Walgate's events and rows at once: to Kafka where a broker is given, else into a directory
    Both,
    /// PostgreSQL's own subscription
    Native,
    /// The extension pglogical
    Pglogical,
    /// PostgreSQL's own client, to nowhere: the floor
    #[value(name = "pg_recvlogical")]
    Recvlogical,
}

/// As they are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// `hub.kind = "file"`
    File,
    /// `hub.kind = "kafka"`, `delivery = "at-least-once"`
    KafkaAtLeastOnce,
    /// `hub.kind = "kafka"`, `delivery = "exactly-once"`
    KafkaExactlyOnce,
    /// `mode = "replicate"`
    Replicate,
    /// `mode = "both"`
    Both,
    /// `CREATE SUBSCRIPTION`
    Native,
    /// `pglogical.create_subscription`
    Pglogical,
    /// `pg_recvlogical`
    Recvlogical,
    /// No consumer: what the source does by itself.
    Nobody,
}

impl ModeName {
    /// What is measured when it is asked for.
    pub fn modes(self) -> &'static [Mode] {
        match self {
            ModeName::EventFile => &[Mode::File],
            ModeName::EventKafka => &[Mode::KafkaAtLeastOnce, Mode::KafkaExactlyOnce],
            ModeName::Replicate => &[Mode::Replicate],
            ModeName::Both => &[Mode::Both],
            ModeName::Native => &[Mode::Native],
            ModeName::Pglogical => &[Mode::Pglogical],
            ModeName::Recvlogical => &[Mode::Recvlogical],
        }
    }
}

impl Mode {
    /// In tables, JSON and charts.
    pub fn name(self) -> &'static str {
        match self {
            Mode::File => "event-file",
            Mode::KafkaAtLeastOnce => "event-kafka at-least-once",
            Mode::KafkaExactlyOnce => "event-kafka exactly-once",
            Mode::Replicate => "replicate",
            Mode::Both => "both",
            Mode::Native => "native",
            Mode::Pglogical => "pglogical",
            Mode::Recvlogical => "pg_recvlogical",
            Mode::Nobody => "no consumer",
        }
    }

    /// Whether `walgate run` is what reads.
    pub fn is_walgate(self) -> bool {
        matches!(
            self,
            Mode::File | Mode::KafkaAtLeastOnce | Mode::KafkaExactlyOnce | Mode::Replicate | Mode::Both
        )
    }

    /// Whether rows arrive in a database.
    pub fn has_replica(self) -> bool {
        matches!(self, Mode::Replicate | Mode::Both | Mode::Native | Mode::Pglogical)
    }

    /// Whether events arrive at a hub.
    pub fn has_hub(self) -> bool {
        matches!(self, Mode::File | Mode::KafkaAtLeastOnce | Mode::KafkaExactlyOnce | Mode::Both)
    }
}
