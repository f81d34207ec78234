//! Stage `config`: from replication.toml to what can run (DESIGN.md, section 3).
//!
//! In comes the text of the file and the environment; out comes a [`Config`] in which every default is filled in
//! and every contradiction excluded, or [`Faults`]: *all* that is wrong, each with its key path, its line and a
//! remedy. What this version cannot do is refused, never ignored; its default may be written out. What depends
//! on the tables themselves (columns that do not exist, topics that collide) is found later, by `check` and
//! at start; [`TableRule::key_path`] is for those messages.
//!
//! Two steps: `file` reads what was typed, the modules of the sections make of it what can run. Secrets, which
//! are the URL and the values of `hub.properties`, are never printed, neither by `Debug` nor in a fault.

mod claim;
mod env;
mod fault;
mod file;
mod hub;
mod limits;
mod outbox;
mod replica;
mod schema;
mod source;
mod table;
pub mod init;

use std::path::{Path, PathBuf};

pub use claim::{ClaimCheck, ClaimStoreAddress, Encryption, S3Address, S3Credentials};
pub use fault::{ConfigError, Fault, Faults};
pub use hub::{Delivery, FileHub, Format, Hub, HubKind, KafkaHub};
pub use limits::{Admin, Limits, parse_duration};
pub use outbox::{Cleanup, OutboxRule, PayloadFormat, Role};
pub use replica::{OnConflict, OnSchemaChange, OnTableError, Replica};
pub use source::{BacklogReader, Publication, SecretUrl, SnapshotMode, Source};
pub use table::{
    ColumnSet, Destination, Mode, OnUnknownOld, Partitions, Pushdown, TableRule, choose, choose_of_leaf,
};

/// A whole configuration, valid in itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The database whose WAL is read.
    pub source: Source,
    /// The event store.
    pub hub: Hub,
    /// The claim store; `None`: events of any size travel inline.
    pub claim_check: Option<ClaimCheck>,
    /// The databases that receive rows.
    pub replicas: Vec<Replica>,
    /// Where the process is watched.
    pub admin: Admin,
    /// What the process may use.
    pub limits: Limits,
    /// The rules in the order of the file, at least one; see [`choose`].
    pub tables: Vec<TableRule>,
    /// The file.
    pub path: PathBuf,
}

impl Config {
    /// The file's name where none is given.
    pub const FILE_NAME: &'static str = "replication.toml";

    /// Reads the file at `path`, with the environment of the process.
    ///
    /// # Errors
    /// [`ConfigError::Read`] if it cannot be read, [`ConfigError::Invalid`] with all faults otherwise.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        // The parent of a bare file name is "", which joins to a path of the working directory.
        let base_dir = path.parent().unwrap_or(Path::new(""));
        let config = Config::parse(&text, &|name| std::env::var(name).ok(), base_dir)
            .map_err(|faults| ConfigError::Invalid { path: path.to_owned(), faults })?;
        Ok(Config { path: path.to_owned(), ..config })
    }

    /// Makes a configuration of a text. `env` looks up an environment variable, `base_dir` is the folder that
    /// relative paths start from.
    ///
    /// # Errors
    /// All faults of the text.
    pub fn parse(
        text: &str,
        env: &dyn Fn(&str) -> Option<String>,
        base_dir: &Path,
    ) -> Result<Config, Faults> {
        let table = file::parse_toml(text)?;
        let reader = file::Reader::new(text, env);
        let root = reader.root(&table);
        root.allow(schema::TOP);
        let source = source::read(&root.section("source"));
        let replicas = replica::read(&root, &source.slot);
        let config = Config {
            hub: hub::read(&root.section("hub"), base_dir),
            claim_check: claim::read(&root.section("claim_check")),
            admin: limits::read_admin(&root.section("admin")),
            limits: limits::read_limits(&root.section("limits")),
            tables: table::read(&root, &replicas, source.snapshot == SnapshotMode::Initial),
            source,
            replicas,
            path: base_dir.join(Config::FILE_NAME),
        };
        reader.finish().map(|()| config)
    }
}

#[cfg(test)]
mod tests;
