//! Room on the disk: asked before a workload begins, and every second while one runs.

use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Result};

/// Between two looks.
const LOOK_TIME: Duration = Duration::from_secs(1);

/// Bytes that we may still write to the file system of `path`.
///
/// # Errors
/// When it cannot be asked.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let answer = rustix::fs::statvfs(path).map_err(|error| {
        Error::definite(format!("the free room of {} cannot be found", path.display())).with_source(error)
    })?;
    Ok(answer.f_bavail.saturating_mul(answer.f_frsize))
}

/// An error unless `needed` bytes can be written and `least` are free afterwards.
///
/// # Errors
/// Definite: says how much is missing.
pub fn expect(path: &Path, needed: u64, least: u64) -> Result<()> {
    judge(path, free_bytes(path)?, needed, least)
}

/// Resolves when less than `least` bytes are free.
pub async fn runs_out(path: &Path, least: u64) -> Error {
    loop {
        if let Err(error) = expect(path, 0, least) {
            return error;
        }
        tokio::time::sleep(LOOK_TIME).await;
    }
}

fn judge(path: &Path, free: u64, needed: u64, least: u64) -> Result<()> {
    if free >= needed.saturating_add(least) {
        return Ok(());
    }
    let mebibytes = |bytes: u64| format!("{} MiB", bytes >> 20);
    let path = path.display();
    let message = match needed {
        0 => format!(
            "too little disk: {} are free in {path}, less than the {} that are to stay free",
            mebibytes(free),
            mebibytes(least)
        ),
        _ => format!(
            "too little disk: the workload takes about {}, {} are to stay free, and {path} has {}",
            mebibytes(needed),
            mebibytes(least),
            mebibytes(free)
        ),
    };
    Err(Error::definite(message).with_hint(
        "set TMPDIR to a larger disk, or ask for fewer --rows; --disk-free-min says what stays free",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_missing() {
        let path = Path::new("/tmp");
        assert!(judge(path, 300 << 20, 200 << 20, 100 << 20).is_ok());
        let error = judge(path, 299 << 20, 200 << 20, 100 << 20).expect_err("1 MiB is missing");
        let text = format!("{} {}", error.chain(), error.hint().unwrap_or_default());
        for part in ["takes about 200 MiB", "100 MiB are to stay free", "/tmp has 299 MiB", "TMPDIR"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(judge(path, 99 << 20, 0, 100 << 20).is_err(), "the watch while it runs");
        assert!(free_bytes(path).expect("it is there") > 0);
    }
}
