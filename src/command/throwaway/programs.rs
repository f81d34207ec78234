//! Which PostgreSQL a throwaway cluster is of: the newest installed one of version 14 or later, with its `pgbench`.
//!
//! In: `WALGATE_PG_BIN`, the places where packages put it, PATH. Out: a folder of programs, or what to install.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// The oldest version that Walgate reads from.
const MAJOR_MIN: u32 = 14;
const NEEDED: [&str; 3] = ["initdb", "postgres", "pgbench"];

/// A folder with PostgreSQL's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// The folder.
    pub bin: PathBuf,
    /// As the server prints it: `15.18`.
    pub version: String,
}

impl Programs {
    /// Finds them; `WALGATE_PG_BIN` decides where it is set.
    ///
    /// # Errors
    /// Definite: there is none; says what to install.
    pub fn find() -> Result<Programs> {
        if let Some(bin) = std::env::var_os("WALGATE_PG_BIN").filter(|bin| !bin.is_empty()) {
            let bin = PathBuf::from(bin);
            return Programs::in_folder(&bin).ok_or_else(|| {
                Error::definite(format!(
                    "WALGATE_PG_BIN={} does not hold initdb, postgres and pgbench of PostgreSQL {MAJOR_MIN} or later",
                    bin.display()
                ))
                .with_hint("set it to the `bin` folder of a PostgreSQL installation, or unset it")
            });
        }
        Programs::newest(&folders())
    }

    fn newest(folders: &[PathBuf]) -> Result<Programs> {
        let mut found: Vec<Programs> =
            folders.iter().filter_map(|folder| Programs::in_folder(folder)).collect();
        found.sort_by_key(|programs| numbers(&programs.version));
        found.pop().ok_or_else(|| {
            Error::definite(format!(
                "the programs initdb, postgres and pgbench of PostgreSQL {MAJOR_MIN} or later are needed, and there are none"
            ))
            .with_hint("run scripts/setup, or `apt-get install postgresql-15`; or set WALGATE_PG_BIN to the `bin` folder of an installation")
        })
    }

    /// A program's path.
    pub fn path(&self, program: &str) -> PathBuf {
        self.bin.join(program)
    }

    fn in_folder(bin: &Path) -> Option<Programs> {
        if !NEEDED.iter().all(|program| bin.join(program).is_file()) {
            return None;
        }
        let printed =
            Command::new(bin.join("postgres")).arg("--version").stdin(Stdio::null()).output().ok()?;
        let version = version_of(&String::from_utf8_lossy(&printed.stdout))?;
        let major = *numbers(&version).first()?;
        (major >= MAJOR_MIN).then(|| Programs { bin: bin.to_owned(), version })
    }
}

/// Debian's and Red Hat's places, then PATH.
fn folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for (parent, prefix, bin) in [("/usr/lib/postgresql", "", "bin"), ("/usr", "pgsql-", "bin")] {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        let versions = entries.filter(|entry| {
            let name = entry.file_name();
            name.to_str()
                .and_then(|name| name.strip_prefix(prefix))
                .is_some_and(|rest| rest.bytes().next().is_some_and(|first| first.is_ascii_digit()))
        });
        folders.extend(versions.map(|entry| entry.path().join(bin)));
    }
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    folders
}

/// `15.18` of `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn version_of(printed: &str) -> Option<String> {
    printed.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit())).map(str::to_owned)
}

/// `[15, 18]` of `15.18`; `[19]` of `19beta1`.
fn numbers(version: &str) -> Vec<u32> {
    let parts = version.split('.').map(|part| part.split(|c: char| !c.is_ascii_digit()).next());
    parts.map_while(|digits| digits?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_to_install() {
        let error = Programs::newest(&["/nonexistent".into(), "/".into()]).expect_err("nothing is there");
        let hint = error.hint().expect("a remedy");
        assert!(hint.contains("scripts/setup") && hint.contains("apt-get install postgresql-15"), "{hint}");
    }

    #[test]
    fn reads_versions() {
        assert_eq!(version_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0)\n").as_deref(), Some("15.18"));
        assert_eq!(version_of("no version"), None);
        assert_eq!(numbers("15.18"), [15, 18]);
        assert_eq!(numbers("19beta1"), [19]);
        assert!(numbers("9.6.24") < numbers("15.2") && numbers("15.2") < numbers("15.18"));
    }
}
