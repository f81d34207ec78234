//! What claim checks are compared with: `rclone copy` of the same bytes, from files, into the same store.
//!
//! As it comes, 4 transfers at a time (with 16, as many as Walgate has puts, it is no faster on two cores), but without
//! its question whether the bucket exists. It hashes every file, sends the MD5 along and compares the object's afterwards.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::store::{ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY, Store};
use crate::Result;
use crate::process::{Process, Taken};

/// As the report names it.
pub const NAME: &str = "rclone copy";
/// Where it copies to.
const PREFIX: &str = "copied";

/// Copies a folder's files into the store.
pub fn copy(files: &Path, store: &Store, log: &Path) -> Result<Taken> {
    let mut command = Command::new("rclone");
    // A CA bundle for a store elsewhere: this rclone does not even start with one.
    command.env_remove("AWS_CA_BUNDLE");
    command.args(["copy", "--config", "/dev/null", "--retries", "1"]);
    command.args(["--s3-provider", "Other", "--s3-region", "us-east-1", "--s3-force-path-style"]);
    command.args(["--s3-no-check-bucket", "--s3-endpoint", &store.endpoint()]);
    command.args(["--s3-access-key-id", ACCESS_KEY_ID, "--s3-secret-access-key", SECRET_ACCESS_KEY]);
    command.arg(files).arg(format!(":s3:{BUCKET}/{PREFIX}"));
    Process::start("rclone (scripts/setup bench installs it)", &mut command, log)?.finish()
}

/// An error when what was copied is not what is there.
pub fn expect_copies(files: &Path, store: &Store) -> Result<()> {
    let copies = store.path(&format!("{BUCKET}/{PREFIX}"));
    for entry in fs::read_dir(files)? {
        let entry = entry?;
        let copy = fs::read(copies.join(entry.file_name()))?;
        if copy != fs::read(entry.path())? {
            return Err(format!("{NAME}: {} is not what was copied", entry.path().display()).into());
        }
    }
    Ok(())
}
