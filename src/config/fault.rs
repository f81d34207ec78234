//! What is wrong with a configuration file: all of it at once, each with its key, its line and a remedy.

use std::fmt;
use std::path::PathBuf;

/// One thing that is wrong, and what to do about it. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// The key's path, entries counted from 0: `table[1].columns`. Empty where the file is not TOML.
    pub key: String,
    /// The line in the file, counted from 1, where one is known.
    pub line: Option<usize>,
    /// What is wrong: lower-case, no full stop.
    pub message: String,
    /// What to write or do instead.
    pub remedy: String,
}

/// All faults of a file, in the order of its lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(transparent)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// The faults in the order of the file's lines, or `None` when there are none.
    pub(super) fn collect(mut faults: Vec<Fault>) -> Option<Self> {
        if faults.is_empty() {
            return None;
        }
        faults.sort_by_key(|fault| fault.line.unwrap_or(usize::MAX));
        Some(Faults(faults))
    }

    /// Each fault.
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Faults {
    type Item = &'a Fault;
    type IntoIter = std::slice::Iter<'a, Fault>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.key.as_str(), self.line) {
            ("", None) => {}
            ("", Some(line)) => write!(f, "line {line}: ")?,
            (key, None) => write!(f, "{key}: ")?,
            (key, Some(line)) => write!(f, "{key} (line {line}): ")?,
        }
        write!(f, "{}\n    remedy: {}", self.message, self.remedy)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "  {fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Why a configuration file cannot be used. The command ends with exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The file can be read and has faults.
    #[error("{} has {}:\n{faults}", path.display(), count(faults))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All that is wrong with it.
        faults: Faults,
    },
}

impl ConfigError {
    /// The remedy, where it is not in the faults themselves.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            ConfigError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Some("name the file with --config, or write one with `walgate init --source URL`")
            }
            ConfigError::Read { source, .. } if source.kind() == std::io::ErrorKind::InvalidData => {
                Some("save the file as UTF-8")
            }
            _ => None,
        }
    }
}

fn count(faults: &Faults) -> String {
    match faults.0.len() {
        1 => "1 fault".to_owned(),
        n => format!("{n} faults"),
    }
}
