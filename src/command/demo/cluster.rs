//! The throwaway PostgreSQL cluster: found, made, run, and taken away again.
//!
//! In: the machine's PostgreSQL, 14 or later. Out: a running server that listens only on a Unix socket inside
//! of a folder of its own. Always: however the demo ends (done, error, Ctrl-C, panic, even SIGKILL), the
//! server stops and the folder goes: [`Cluster`] does it on drop, and the server's parent is a shell that does
//! the same when its standard input ends, which is when our process does. Manual: "initdb", "Server Start-up".

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;

use super::programs::Programs;
use crate::error::{Error, Result};
use crate::wal::client::{Client, connect};
use crate::wal::url::ConnectUrl;

/// Makes the cluster, runs the server until it ends or the standard input does, then removes the folder.
/// Arguments: the folder, the folder of the programs, and the server's arguments.
const KEEPER: &str = r#"
folder=$1
bin=$2
shift 2
exec 3<&0
# Signal and command: runs it, and sends it the signal at the end of the input.
keep() {
  signal=$1
  shift
  "$@" </dev/null 3<&- >/dev/null &
  child=$!
  { read -r _ <&3; kill -"$signal" "$child"; } 2>/dev/null &
  watch=$!
  wait "$child"
  code=$?
  kill "$watch" 2>/dev/null
  return $code
}
keep TERM "$bin/initdb" -D "$folder/data" -U postgres -A trust -E UTF8 --locale=C --no-sync &&
keep QUIT "$bin/postgres" -D "$folder/data" -k "$folder" "$@"
rm -rf "$folder"
"#;

/// Nothing here has to survive a crash of the machine, and nobody else connects.
const SETTINGS: &[&str] = &[
    "listen_addresses=",
    "wal_level=logical",
    "fsync=off",
    "full_page_writes=off",
    "shared_buffers=64MB",
    "dynamic_shared_memory_type=mmap",
    "logging_collector=off",
    "log_min_messages=fatal",
    "timezone=UTC",
];
const START_TIME_MAX: Duration = Duration::from_secs(60);
const STOP_TIME_MAX: Duration = Duration::from_secs(10);
/// The longest path of a Unix socket is 107 bytes; the folder's and the socket's names take their part.
const BASE_LENGTH_MAX: usize = 60;
const LOG_LINES_MAX: usize = 20;

/// Who runs the server: PostgreSQL refuses to be root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
}

/// The demo's own folder; removed on drop.
#[derive(Debug)]
struct Folder(PathBuf);

/// A running server.
#[derive(Debug)]
pub struct Cluster {
    programs: Programs,
    user: Option<User>,
    keeper: Option<(Child, ChildStdin)>,
    log: Arc<Mutex<VecDeque<String>>>,
    // Last: removed when the server has stopped.
    folder: Folder,
}

impl Cluster {
    /// Makes and starts one.
    ///
    /// # Errors
    /// Definite: what initdb or the server said.
    pub async fn start(programs: Programs) -> Result<Cluster> {
        let user = if am_root()? { Some(server_user()?) } else { None };
        let folder = Folder::make(user)?;
        let mut cluster = Cluster { programs, user, keeper: None, log: Arc::default(), folder };
        cluster.launch()?;
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    /// The URL of a database, as its superuser.
    pub fn url(&self, database: &str) -> String {
        let folder = self.folder.0.to_string_lossy();
        format!(
            "postgres://postgres@{}:5432/{database}?sslmode=disable",
            utf8_percent_encode(&folder, NON_ALPHANUMERIC)
        )
    }

    /// The demo's folder.
    pub fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// Where the hub's files go.
    pub fn hub(&self) -> PathBuf {
        self.folder.0.join("hub")
    }

    /// Connects to a database.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn connect(&self, database: &str) -> Result<Client> {
        let url = ConnectUrl::parse(&self.url(database), |_| None)
            .map_err(|error| Error::definite(format!("the demo's own URL: {error}")))?;
        connect(&url, "walgate demo").await
    }

    /// A program of this installation, run by the server's user against this server, ended on drop.
    pub fn command(&self, program: &str) -> tokio::process::Command {
        let mut command = tokio::process::Command::from(self.plain_command(&self.programs.path(program)));
        command.env("PGHOST", &self.folder.0).env("PGUSER", "postgres").kill_on_drop(true);
        command.stdin(Stdio::null());
        command
    }

    fn plain_command(&self, program: &Path) -> std::process::Command {
        let mut command = std::process::Command::new(program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").current_dir("/");
        if let Some(User { uid, gid }) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn launch(&mut self) -> Result<()> {
        let mut keeper = self.plain_command(Path::new("/bin/sh"));
        keeper.args(["-c", KEEPER, "walgate-demo"]).arg(&self.folder.0).arg(&self.programs.bin);
        for setting in SETTINGS {
            keeper.args(["-c", setting]);
        }
        // A group of its own: Ctrl-C is for us, and we end the server after the pipeline.
        keeper.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child =
            keeper.spawn().map_err(|error| Error::definite("/bin/sh cannot be run").with_source(error))?;
        let stdin = child.stdin.take().expect("stdin is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        let log = self.log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut lines = log.lock().expect("no holder panics");
                lines.push_back(line);
                if lines.len() > LOG_LINES_MAX {
                    lines.pop_front();
                }
            }
        });
        self.keeper = Some((child, stdin));
        Ok(())
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let began = Instant::now();
        loop {
            let error = match self.connect("postgres").await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let ended = self.keeper.as_mut().and_then(|(child, _)| child.try_wait().ok().flatten());
            if ended.is_some() || began.elapsed() >= START_TIME_MAX {
                let log: Vec<String> = self.log.lock().expect("no holder panics").drain(..).collect();
                return Err(Error::definite(format!(
                    "the demo's PostgreSQL server does not start: {}",
                    log.join("; ")
                ))
                .with_source(error));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some((mut keeper, stdin)) = self.keeper.take() else { return };
        // The keeper reads the end of its input, and stops the server.
        drop(stdin);
        let began = std::time::Instant::now();
        while began.elapsed() < STOP_TIME_MAX {
            if !matches!(keeper.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("walgate: the demo's server has not ended yet; its folder is {}", self.folder.0.display());
    }
}

impl Folder {
    fn make(user: Option<User>) -> Result<Folder> {
        let base = base(user.is_some());
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.subsec_nanos());
        let path = base.join(format!("walgate-demo-{}-{nanos:x}", std::process::id()));
        let failed = |error| {
            Error::definite(format!("{} cannot be made", path.display()))
                .with_source(error)
                .with_hint("set TMPDIR to a directory that can be written")
        };
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        let folder = Folder(path.clone());
        // The hub's folder belongs to the server's user too, so that the keeper may remove what is in it.
        let hub = path.join("hub");
        std::fs::DirBuilder::new().mode(0o700).create(&hub).map_err(failed)?;
        if let Some(User { uid, gid }) = user {
            for made in [&path, &hub] {
                chown(made, Some(uid), Some(gid)).map_err(failed)?;
            }
        }
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The last writers (the sink's thread) may take a moment to notice their end.
        for _ in 0..50 {
            match std::fs::remove_dir_all(&self.0) {
                Err(_) if self.0.exists() => std::thread::sleep(Duration::from_millis(50)),
                _ => return,
            }
        }
        eprintln!("walgate: {} could not be removed", self.0.display());
    }
}

/// Runs a program to its end and returns what it printed.
///
/// # Errors
/// Definite: it cannot be run, or failed; with its last words.
pub async fn output_of(name: &str, mut command: tokio::process::Command) -> Result<String> {
    let output = command
        .output()
        .await
        .map_err(|error| Error::definite(format!("{name} cannot be run")).with_source(error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = words.lines().rev().take(3).collect();
    Err(Error::definite(format!(
        "{name} failed ({}): {}",
        output.status,
        last.into_iter().rev().collect::<Vec<_>>().join("; ")
    )))
}

fn am_root() -> Result<bool> {
    let process = std::fs::metadata("/proc/self")
        .map_err(|error| Error::definite("who runs this process cannot be found").with_source(error))?;
    Ok(process.uid() == 0)
}

fn server_user() -> Result<User> {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    ["postgres", "nobody"].iter().find_map(|name| user_of(&passwd, name)).ok_or_else(|| {
        Error::definite("PostgreSQL cannot run as root, and there is no user postgres or nobody")
            .with_hint("run `walgate demo` as an ordinary user")
    })
}

/// A user's line in /etc/passwd: `name:password:uid:gid:...`.
fn user_of(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        Some(User { uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    })
}

/// Where the folder is made: TMPDIR, unless it is too long for a socket or closed to the server's user.
fn base(is_other_user: bool) -> PathBuf {
    let base = std::env::temp_dir();
    let is_open = |folder: &Path| {
        let mode = std::fs::metadata(folder).map_or(0, |metadata| metadata.permissions().mode());
        mode & 0o001 != 0
    };
    let is_short = base.as_os_str().len() <= BASE_LENGTH_MAX;
    let is_usable = base.is_absolute() && is_short && (!is_other_user || base.ancestors().all(is_open));
    if is_usable { base } else { PathBuf::from("/tmp") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_users_by_their_whole_name() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgresql:x:7:8::/:/bin/sh\npostgres:x:101:104:a,b:/var/lib:/bin/sh\nbroken:x\n";
        assert_eq!(user_of(passwd, "postgres"), Some(User { uid: 101, gid: 104 }));
        assert_eq!(user_of(passwd, "nobody"), None);
        assert_eq!(user_of(passwd, "broken"), None);
    }

    #[test]
    fn a_folder_goes_with_its_guard() {
        let folder = Folder::make(None).expect("a folder");
        let path = folder.0.clone();
        std::fs::write(path.join("hub/file"), "x").expect("it can be written");
        drop(folder);
        assert!(!path.exists());
    }
}
