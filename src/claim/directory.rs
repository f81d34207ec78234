//! The claim store as a directory: a file for each object, in folders as its key has them.
//!
//! Always holds: a file under its own name is whole and on the disk: it is written under a temporary name, flushed,
//! renamed, and the folder flushed. See `rename(2)`, `fsync(2)`.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::Object;
use crate::error::{Error, Result};
use crate::pipeline::start::blocking;
use crate::route::claim::Claim;

/// What the names of files are until they are whole: this, and so many hexadecimal digits.
const UNFINISHED: &str = ".new-";
const UNFINISHED_DIGITS: usize = 16;

/// See the module.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(super) fn new(path: &Path) -> Self {
        Directory { path: path.to_owned() }
    }

    pub(super) async fn put(&self, claim: &Claim) -> Result<()> {
        let (path, body) = (self.path.join(&claim.key), claim.body.clone());
        blocking(move || write(&path, &body).map_err(|error| io_error(&path, "cannot be written", error)))
            .await
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let path = self.path.join(key);
        blocking(move || match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(Bytes::from(bytes))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error(&path, "cannot be read", error)),
        })
        .await
    }

    pub(super) async fn delete(&self, key: &str) -> Result<()> {
        let path = self.path.join(key);
        blocking(move || match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(io_error(&path, "cannot be removed", error))
            }
            _ => Ok(()),
        })
        .await
    }

    pub(super) async fn list(&self, directory: &str) -> Result<Vec<Object>> {
        let (root, folder) = (self.path.clone(), self.path.join(directory));
        blocking(move || {
            let mut found = Vec::new();
            list_folder(&root, &folder, &mut found)?;
            Ok(found)
        })
        .await
    }
}

/// Files that go, or are renamed, meanwhile are left out.
fn list_folder(root: &Path, folder: &Path, found: &mut Vec<Object>) -> Result<()> {
    let failed = |error| io_error(folder, "cannot be listed", error);
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let metadata = match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            metadata => metadata.map_err(|error| io_error(&path, "cannot be looked at", error))?,
        };
        if metadata.is_dir() {
            list_folder(root, &path, found)?;
        } else if let Some(key) = path.strip_prefix(root).ok().and_then(Path::to_str) {
            let stored_at =
                metadata.modified().map_err(|error| io_error(&path, "cannot be looked at", error))?;
            let name = key.rsplit('/').next().unwrap_or(key);
            let digits = name.strip_prefix(UNFINISHED).unwrap_or_default();
            let is_unfinished =
                digits.len() == UNFINISHED_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            found.push(Object { key: key.to_owned(), bytes: metadata.len(), stored_at, is_unfinished });
        }
    }
    Ok(())
}

fn write(path: &Path, body: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().expect("a key has a table's folder");
    make_folder(folder)?;
    // Short, whatever the key; of the key, so that a crash leaves no more of them than there are objects.
    let name = Sha256::digest(path.as_os_str().as_encoded_bytes());
    let name: String = name.iter().take(UNFINISHED_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
    let temporary = folder.join(format!("{UNFINISHED}{name}"));
    let mut file = File::create(&temporary)?;
    file.write_all(body)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

/// A folder that is made is an entry of its parent, which has to be on the disk, too.
fn make_folder(folder: &Path) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(Path::new("/"));
    make_folder(parent)?;
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}

fn io_error(path: &Path, what: &str, error: std::io::Error) -> Error {
    let message = format!("{} {what}", path.display());
    let (error, hint) = match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => (
            Error::definite(message).with_source(error),
            "give the user that runs walgate the right to write in the directory of claim_check.store",
        ),
        ErrorKind::NotADirectory | ErrorKind::InvalidFilename => (
            Error::definite(message).with_source(error),
            "name a directory in claim_check.store whose file system takes the name",
        ),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            (Error::transient(message).with_source(error), "free some space: the pipeline waits for it")
        }
        _ => (Error::transient(message).with_source(error), "see to the disk and its file system"),
    };
    error.with_hint(hint)
}
