//! A process and what it took: time from its start to its end, processor time, peak memory.
//!
//! Read from /proc every few milliseconds (Linux): `VmHWM` while it lives, and the times of all its threads
//! from the entry that it leaves until it is waited for. Not from `getrusage`: its `ru_maxrss` begins with the
//! memory of the process that forked. Always: the process is gone at the end, whatever happens.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;

/// Between two looks: the error of the times, and about 0.3 % of one core.
const LOOK_TIME: Duration = Duration::from_millis(5);
/// Longer than the slowest scenario takes with a debug build.
const TIME_MAX: Duration = Duration::from_secs(600);
/// `USER_HZ`, the unit of times in /proc: 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process took.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// From its start to its end.
    pub seconds: f64,
    /// User and system time of all its threads.
    pub cpu_seconds: f64,
    /// The largest resident set.
    pub memory_peak_bytes: u64,
}

/// Walgate with this configuration, whose file is in `folder`.
pub fn walgate(folder: &Path, configuration: &str, arguments: &[&str]) -> Result<Command> {
    let path = folder.join("replication.toml");
    fs::write(&path, configuration)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_walgate"));
    command.arg("--config").arg(path).args(arguments).current_dir(folder);
    Ok(command)
}

/// A running process.
pub struct Process {
    name: String,
    child: Child,
    started_at: Instant,
    log: PathBuf,
    memory_peak_bytes: u64,
}

impl Process {
    /// Starts `command`, its standard error in the file `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Process> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(log)?);
        let started_at = Instant::now();
        let child = command.spawn().map_err(|error| format!("{name} cannot be started: {error}"))?;
        Ok(Process { name: name.to_owned(), child, started_at, log: log.to_owned(), memory_peak_bytes: 0 })
    }

    /// Waits for its end; a failure of its own is an error with its last words.
    pub fn finish(mut self) -> Result<Taken> {
        while self.is_alive()? {
            if self.started_at.elapsed() > TIME_MAX {
                return Err(self.failure(&format!("has not ended after {} s", TIME_MAX.as_secs())));
            }
            std::thread::sleep(LOOK_TIME);
        }
        let seconds = self.started_at.elapsed().as_secs_f64();
        let cpu_seconds = cpu_seconds(self.child.id())?;
        let status = self.child.wait()?;
        if !status.success() {
            return Err(self.failure(&status.to_string()));
        }
        Ok(Taken { seconds, cpu_seconds, memory_peak_bytes: self.memory_peak_bytes })
    }

    /// SIGTERM, then as [`Process::finish`].
    pub fn stop(self) -> Result<Taken> {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        self.finish()
    }

    /// An error when it has ended although it should run.
    pub fn expect_alive(&mut self) -> Result<()> {
        if self.is_alive()? { Ok(()) } else { Err(self.failure("has ended")) }
    }

    /// Whether it runs; notes its memory.
    fn is_alive(&mut self) -> Result<bool> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let value = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_ascii_whitespace().nth(1)
        };
        let peak_kib: u64 = value("VmHWM:").and_then(|text| text.parse().ok()).unwrap_or(0);
        self.memory_peak_bytes = self.memory_peak_bytes.max(peak_kib * 1024);
        Ok(value("State:") != Some("Z"))
    }

    fn failure(&self, what: &str) -> Box<dyn std::error::Error + Send + Sync> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default();
        format!("{}: {what}\n{}", self.name, last.join("\n")).into()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail when it has been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User and system time of all threads of a process so far.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; `utime` and `stime` are fields 14 and 15 of the line.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: f64 = fields.split_ascii_whitespace().skip(11).take(2).flat_map(str::parse::<f64>).sum();
    Ok(ticks / TICKS_PER_SECOND)
}
