//! A PostgreSQL cluster of a test's own: for tests that restart or kill a server, or set what needs a restart.
//!
//! In: settings. Out: a running server on 127.0.0.1. Always: it is ended, and its folder removed, on drop; what
//! a killed test leaves behind is in the tests' folder, where `scripts/servers down` finds it.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{servers, wait_until};

/// A cluster of its own.
pub struct Cluster {
    folder: PathBuf,
    port: u16,
}

/// How a server is asked to stop.
#[derive(Clone, Copy, Debug)]
pub enum Shutdown {
    /// Waits for the clients to leave.
    Smart,
    /// Ends the clients, writes a checkpoint, waits until walsenders have sent everything.
    Fast,
    /// Like a crash, but all processes are gone afterwards.
    Immediate,
}

impl Shutdown {
    fn name(self) -> &'static str {
        match self {
            Shutdown::Smart => "smart",
            Shutdown::Fast => "fast",
            Shutdown::Immediate => "immediate",
        }
    }
}

impl Cluster {
    /// A running cluster with `wal_level = logical` and these settings in addition, later ones winning.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        let template = servers::tests_folder().join("cluster.XXXXXX");
        // Made by who runs the server: PostgreSQL wants its folder to be its own.
        let folder = servers::run(as_postgres("mktemp").arg("-d").arg(template));
        let cluster = Self { folder: folder.trim().into(), port: servers::free_port() };
        servers::run(as_postgres(servers::postgres_program("initdb")).arg("-D").arg(cluster.data()).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]));
        cluster.set(&[
            ("listen_addresses", "127.0.0.1"),
            ("port", &cluster.port.to_string()),
            ("unix_socket_directories", &cluster.folder.display().to_string()),
            ("wal_level", "logical"),
            ("max_prepared_transactions", "10"),
            ("shared_buffers", "32MB"),
            ("timezone", "UTC"),
        ]);
        cluster.set(settings);
        cluster.resume();
        cluster
    }

    /// The URL of a database of this cluster, as its superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder with the server's Unix socket.
    pub fn socket_folder(&self) -> &Path {
        &self.folder
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Appends settings to postgresql.conf; they hold from the next start or [`reload`](Self::reload).
    pub fn set(&self, settings: &[(&str, &str)]) {
        let lines: String = settings
            .iter()
            .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")))
            .collect();
        let path = self.data().join("postgresql.conf");
        let old = std::fs::read_to_string(&path).expect("initdb has written postgresql.conf");
        std::fs::write(&path, old + &lines).expect("postgresql.conf can be written");
    }

    /// Puts lines in front of pg_hba.conf, where the first match decides, and reloads.
    pub fn add_hba(&self, lines: &str) {
        let path = self.data().join("pg_hba.conf");
        let old = std::fs::read_to_string(&path).expect("initdb has written pg_hba.conf");
        std::fs::write(&path, format!("{lines}\n{old}")).expect("pg_hba.conf can be written");
        self.reload();
    }

    /// Writes a file into the data directory that only the server may read: a certificate's key.
    pub fn write_secret(&self, name: &str, content: &str) {
        let path = self.data().join(name);
        std::fs::write(&path, content).expect("the data directory can be written");
        servers::run(Command::new("chmod").arg("600").arg(&path));
        servers::run(Command::new("chown").arg("--reference").arg(self.data()).arg(&path));
    }

    /// Reads the configuration again.
    pub fn reload(&self) {
        servers::run(&mut self.pg_ctl("reload"));
    }

    /// Starts the server after [`stop`](Self::stop) or [`kill`](Self::kill), and waits until it answers.
    pub fn resume(&self) {
        // After a kill the shared memory is in use until the last backend has noticed.
        wait_until("the cluster to start", || {
            let log = self.folder.join("log");
            let mut start = self.pg_ctl("start");
            start.args(["-w", "-t", "60", "-s", "-l"]).arg(log);
            // pg_ctl's child keeps the standard streams: with pipes we would wait for the server's end.
            start.stdin(std::process::Stdio::null());
            start.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            start.status().expect("pg_ctl can be run").success()
        });
    }

    /// Stops the server and waits for its end.
    pub fn stop(&self, how: Shutdown) {
        servers::run(self.pg_ctl("stop").args(["-w", "-t", "60", "-m", how.name()]));
    }

    /// Stops and starts the server.
    pub fn restart(&self, how: Shutdown) {
        self.stop(how);
        self.resume();
    }

    /// Kills the postmaster with SIGKILL: its backends follow when they notice.
    pub fn kill(&self) {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).expect("the server runs");
        let pid = text.lines().next().expect("the first line is the process id").to_owned();
        servers::run(Command::new("kill").args(["-KILL", &pid]));
        wait_until("the postmaster's end", || !Path::new("/proc").join(&pid).exists());
    }

    /// The server's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn pg_ctl(&self, action: &str) -> Command {
        let mut command = as_postgres(servers::postgres_program("pg_ctl"));
        command.arg(action).arg("-D").arg(self.data());
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.pg_ctl("stop").args(["-w", "-t", "20", "-m", "immediate"]).output();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A command run by who may run a server: PostgreSQL refuses to be root.
fn as_postgres(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = if am_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.env("LC_ALL", "C.UTF-8").current_dir("/");
    command
}

fn am_root() -> bool {
    servers::run(Command::new("id").arg("-u")).trim() == "0"
}
