//! The throwaway PostgreSQL cluster: found, made, run, and taken away again.
//!
//! In: the machine's PostgreSQL, 14 or later. Out: a running server that listens on a Unix socket inside of a folder
//! of its own, and where asked on 127.0.0.1 as well, for who has its password. Always: however the command ends (done,
//! error, Ctrl-C, panic, even SIGKILL), the server stops and the folder goes: [`Cluster`] does it on drop, and the
//! server's parent is a shell that does the same when its standard input ends, which is when our process does.
//! Manual: "initdb", "Server Start-up".

pub mod programs;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::wal::client::{Client, connect};
use crate::wal::url::ConnectUrl;
use programs::Programs;

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
initdb() {
  keep TERM "$bin/initdb" -D "$folder/data" -U postgres --auth-local=trust -E UTF8 --locale=C --no-sync "$@"
}
if [ -f "$folder/password" ]; then
  initdb --auth-host=scram-sha-256 --pwfile="$folder/password"
else
  initdb --auth-host=reject
fi &&
keep QUIT "$bin/postgres" -D "$folder/data" -k "$folder" "$@"
rm -rf "$folder"
"#;

/// Of every such server.
const SETTINGS: &[&str] = &[
    "wal_level=logical",
    "dynamic_shared_memory_type=mmap",
    "logging_collector=off",
    "log_min_messages=fatal",
    "timezone=UTC",
];
/// The number in the socket's name, where there is no port.
const SOCKET_PORT: u16 = 5432;
const START_TIME_MAX: Duration = Duration::from_secs(60);
const STOP_TIME_MAX: Duration = Duration::from_secs(10);
/// The longest path of a Unix socket is 107 bytes; the folder's and the socket's names take their part.
const BASE_LENGTH_MAX: usize = 60;
const LOG_LINES_MAX: usize = 20;

/// What a cluster is made for.
#[derive(Clone, Debug)]
pub struct Purpose {
    /// The command's name: part of the folder's.
    pub name: &'static str,
    /// More of the server's settings, `name=value`.
    pub settings: Vec<String>,
    /// Whether it listens on 127.0.0.1 too.
    pub is_on_tcp: bool,
}

/// How it is reached on 127.0.0.1.
#[derive(Debug)]
struct Tcp {
    port: u16,
    password: String,
}

/// Who runs the server: PostgreSQL refuses to be root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
}

/// The cluster's own folder; removed on drop.
#[derive(Debug)]
struct Folder(PathBuf);

/// A running server.
#[derive(Debug)]
pub struct Cluster {
    programs: Programs,
    purpose: Purpose,
    tcp: Option<Tcp>,
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
    pub async fn start(programs: Programs, purpose: Purpose) -> Result<Cluster> {
        let user = if am_root()? { Some(server_user()?) } else { None };
        let folder = Folder::make(purpose.name, user)?;
        let tcp = if purpose.is_on_tcp { Some(Tcp::choose()?) } else { None };
        let mut cluster = Cluster { programs, purpose, tcp, user, keeper: None, log: Arc::default(), folder };
        if let Some(Tcp { password, .. }) = &cluster.tcp {
            cluster.folder.write_secret("password", password, user)?;
        }
        cluster.launch()?;
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    /// The URL of a database, as its superuser: over TCP, where it listens there.
    pub fn url(&self, database: &str) -> String {
        match &self.tcp {
            Some(Tcp { port, password }) => {
                format!("postgres://postgres:{password}@127.0.0.1:{port}/{database}?sslmode=disable")
            }
            None => {
                let folder = self.folder.0.to_string_lossy();
                let folder = utf8_percent_encode(&folder, NON_ALPHANUMERIC);
                format!("postgres://postgres@{folder}:{SOCKET_PORT}/{database}?sslmode=disable")
            }
        }
    }

    fn port(&self) -> u16 {
        self.tcp.as_ref().map_or(SOCKET_PORT, |tcp| tcp.port)
    }

    /// The cluster's folder.
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
            .map_err(|error| Error::definite(format!("the cluster's own URL: {error}")))?;
        connect(&url, &format!("walgate {}", self.purpose.name)).await
    }

    /// A program of this installation, run by the server's user against this server, ended on drop.
    pub fn command(&self, program: &str) -> tokio::process::Command {
        let mut command = tokio::process::Command::from(self.plain_command(&self.programs.path(program)));
        command.env("PGHOST", &self.folder.0).env("PGPORT", self.port().to_string());
        command.env("PGUSER", "postgres").kill_on_drop(true);
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
        keeper.args(["-c", KEEPER, "walgate-keeper"]).arg(&self.folder.0).arg(&self.programs.bin);
        let listen = if self.tcp.is_some() { "listen_addresses=127.0.0.1" } else { "listen_addresses=" };
        let own = self.purpose.settings.iter().map(String::as_str);
        for setting in SETTINGS.iter().copied().chain([listen]).chain(own) {
            keeper.args(["-c", setting]);
        }
        keeper.arg("-p").arg(self.port().to_string());
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
                    "the throwaway PostgreSQL server in {} does not start: {}",
                    self.folder.0.display(),
                    log.join("; ")
                ))
                .with_source(error)
                .with_hint("look for its reason above; TMPDIR says where the folder is made, WALGATE_PG_BIN which PostgreSQL it is"));
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
        eprintln!("walgate: the server has not ended yet; its folder is {}", self.folder.0.display());
    }
}

impl Folder {
    fn make(name: &str, user: Option<User>) -> Result<Folder> {
        let base = base(user.is_some());
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.subsec_nanos());
        let path = base.join(format!("walgate-{name}-{}-{nanos:x}", std::process::id()));
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

    /// Writes a file that only the server's user may read.
    fn write_secret(&self, name: &str, text: &str, user: Option<User>) -> Result<()> {
        let path = self.0.join(name);
        let write = || {
            let mut file =
                std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            writeln!(file, "{text}")?;
            user.map_or(Ok(()), |User { uid, gid }| chown(&path, Some(uid), Some(gid)))
        };
        write().map_err(|error| {
            Error::definite(format!("{} cannot be written", path.display())).with_source(error)
        })
    }
}

impl Tcp {
    /// A port that nobody listens on, below the range from which the kernel deals out ports to clients, and a password
    /// that nobody knows.
    fn choose() -> Result<Tcp> {
        let mut random = [0; 32];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut random))
            .map_err(|error| Error::definite("/dev/urandom cannot be read").with_source(error))?;
        let (for_ports, for_password) = random.split_at(random.len() / 2);
        let password: String = for_password.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut candidates = for_ports.chunks(2).map(|pair| {
            let number = pair.iter().fold(0_u16, |number, byte| (number << 8) | u16::from(*byte));
            10_000 + number % 20_000
        });
        let port = candidates
            .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
            .ok_or_else(|| Error::definite("no free port between 10000 and 30000 was found on 127.0.0.1"))?;
        Ok(Tcp { port, password })
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
            .with_hint("run the command as an ordinary user")
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
        let folder = Folder::make("test", None).expect("a folder");
        let path = folder.0.clone();
        std::fs::write(path.join("hub/file"), "x").expect("it can be written");
        drop(folder);
        assert!(!path.exists());
    }
}
