//! The benchmark's own folder, and the processes that must not outlive it.
//!
//! In: TMPDIR. Out: a folder for configurations, logs, file hubs and claims, and a list of the processes that were
//! started. Always: when the command ends, by a signal or even by SIGKILL, the processes on the list end and the
//! folder goes: a shell waits for the end of its standard input, which is when our process ends, and does both.

use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Reads `began PID` and `ended PID`, a line each; at the end of its input it ends who is left, and removes the folder.
const KEEPER: &str = r#"
folder=$1
pids=' '
while read -r what pid; do
  case $what in
    began) pids="$pids$pid " ;;
    ended) pids="${pids%% $pid *} ${pids#* $pid }" ;;
  esac
done
for pid in $pids; do kill -KILL "$pid" 2>/dev/null; done
for attempt in 1 2 3 4 5; do
  rm -rf "$folder" 2>/dev/null
  [ -e "$folder" ] || exit 0
  sleep 0.2
done
"#;
const END_TIME_MAX: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Clone, Debug)]
pub struct Scratch(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    keeper: Mutex<Option<(Child, ChildStdin)>>,
}

impl Scratch {
    /// Makes the folder.
    ///
    /// # Errors
    /// Definite: TMPDIR cannot be written, there is no shell.
    pub fn make() -> Result<Scratch> {
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.subsec_nanos());
        let path = std::env::temp_dir().join(format!("walgate-bench-work-{}-{nanos:x}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(|error| {
            Error::definite(format!("{} cannot be made", path.display()))
                .with_source(error)
                .with_hint("set TMPDIR to a directory that can be written")
        })?;
        let mut keeper = Command::new("/bin/sh");
        keeper.args(["-c", KEEPER, "walgate-keeper"]).arg(&path).current_dir("/").process_group(0);
        keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = keeper.spawn();
        let mut child = started.map_err(|error| {
            let _ = std::fs::remove_dir_all(&path);
            Error::definite("/bin/sh cannot be run").with_source(error)
        })?;
        let stdin = child.stdin.take().expect("stdin is piped");
        Ok(Scratch(Arc::new(Kept { path, keeper: Mutex::new(Some((child, stdin))) })))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Makes a folder in it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        std::fs::create_dir_all(&path).map_err(|error| {
            Error::definite(format!("{} cannot be made", path.display())).with_source(error)
        })?;
        Ok(path)
    }

    /// Writes a file into it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        match std::fs::write(&path, text) {
            Ok(()) => Ok(path),
            Err(error) => {
                Err(Error::definite(format!("{} cannot be written", path.display())).with_source(error))
            }
        }
    }

    /// A process to end with us.
    pub fn began(&self, pid: u32) {
        self.tell("began", pid);
    }

    /// It has ended and been waited for: its number may be another's now.
    pub fn ended(&self, pid: u32) {
        self.tell("ended", pid);
    }

    fn tell(&self, what: &str, pid: u32) {
        if let Some((_, stdin)) = self.0.keeper.lock().expect("no holder panics").as_mut() {
            // A keeper that was killed can keep nothing; the processes are ended on drop all the same.
            let _ = writeln!(stdin, "{what} {pid}");
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Some((mut keeper, stdin)) = self.keeper.lock().expect("no holder panics").take() else { return };
        drop(stdin);
        let began = Instant::now();
        while matches!(keeper.try_wait(), Ok(None)) && began.elapsed() < END_TIME_MAX {
            std::thread::sleep(Duration::from_millis(10));
        }
        if self.path.exists() {
            eprintln!("walgate: {} could not be removed", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_with_its_processes_and_its_folder() {
        let scratch = Scratch::make().expect("a folder");
        let path = scratch.path().to_owned();
        let sleep = || Command::new("sleep").arg("600").spawn().expect("sleep can be run");
        let (mut first, mut second, mut third) = (sleep(), sleep(), sleep());
        for child in [&first, &second, &third] {
            scratch.began(child.id());
        }
        second.kill().expect("it runs");
        second.wait().expect("a child");
        scratch.ended(second.id());
        drop(scratch);
        for child in [&mut first, &mut third] {
            assert!(!child.wait().expect("a child").success(), "it was killed");
        }
        assert!(!path.exists());
    }
}
