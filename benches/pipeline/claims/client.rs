//! What claim checks are compared with: S3 command-line clients that copy the same bytes, from files, into the same store.
//!
//! AWS's own, and `rclone`, the fastest that we know. Both as they come (10 and 4 transfers at a time; rclone with 16, as
//! many as Walgate has puts, takes a sixth longer on two cores), rclone without its question whether the bucket exists. rclone
//! hashes every file, sends the MD5 along and compares the object's afterwards.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::store::{ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY, Store};
use crate::Result;
use crate::process::{Process, Taken};

/// Where they copy to.
const PREFIX: &str = "copied";

/// A client.
#[derive(Clone, Copy, Debug)]
pub enum Client {
    /// `aws s3 cp`
    Aws,
    /// `rclone copy`
    Rclone,
}

impl Client {
    /// Copies a folder's files into the store.
    pub fn copy(self, files: &Path, store: &Store, log: &Path) -> Result<Taken> {
        let mut command = match self {
            Client::Aws => aws(files, store),
            Client::Rclone => rclone(files, store),
        };
        // A CA bundle for a store elsewhere: this rclone does not even start with one.
        command.env_remove("AWS_CA_BUNDLE");
        Process::start(&format!("{self:?} (scripts/setup bench installs it)"), &mut command, log)?.finish()
    }

    /// An error when what was copied is not what is there.
    pub fn expect_copies(self, files: &Path, store: &Store) -> Result<()> {
        let copies = store.path(&format!("{BUCKET}/{PREFIX}"));
        for entry in fs::read_dir(files)? {
            let entry = entry?;
            let copy = fs::read(copies.join(entry.file_name()))?;
            if copy != fs::read(entry.path())? {
                return Err(format!("{self:?}: {} is not what was copied", entry.path().display()).into());
            }
        }
        Ok(())
    }
}

fn aws(files: &Path, store: &Store) -> Command {
    let mut command = Command::new("/usr/bin/aws");
    command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID).env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY);
    command.env("AWS_DEFAULT_REGION", "us-east-1").env("AWS_CONFIG_FILE", "/dev/null");
    command.args(["--endpoint-url", &store.endpoint(), "s3", "cp", "--recursive", "--only-show-errors"]);
    command.arg(files).arg(format!("s3://{BUCKET}/{PREFIX}"));
    command
}

fn rclone(files: &Path, store: &Store) -> Command {
    let mut command = Command::new("rclone");
    command.args(["copy", "--config", "/dev/null", "--retries", "1"]);
    command.args(["--s3-provider", "Other", "--s3-region", "us-east-1", "--s3-force-path-style"]);
    command.args(["--s3-no-check-bucket", "--s3-endpoint", &store.endpoint()]);
    command.args(["--s3-access-key-id", ACCESS_KEY_ID, "--s3-secret-access-key", SECRET_ACCESS_KEY]);
    command.arg(files).arg(format!(":s3:{BUCKET}/{PREFIX}"));
    command
}
