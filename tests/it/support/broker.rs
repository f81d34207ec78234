//! A Kafka broker of a test's own: for tests that stop, kill or freeze it.
//!
//! Out: one node, KRaft, as `scripts/servers` runs it. Always: at most two at a time, since each takes half a
//! gigabyte; it is ended, and its folder removed, on drop; `scripts/servers down` finds what a killed test leaves.

use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::{servers, wait_for};

/// How many brokers may run at a time.
const BROKERS_MAX: usize = 2;
/// A Java process on two busy cores.
const START_LIMIT: Duration = Duration::from_secs(90);

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// A broker of its own.
pub struct Broker {
    folder: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
    starts: usize,
    _place: Place,
}

/// One of the places.
struct Place;

impl Broker {
    /// Formats the storage, starts it, and waits until it serves.
    pub fn start() -> Self {
        let place = Place::take();
        let folder = servers::folder("broker");
        let port = servers::free_port();
        let broker = Self { folder, port, process: None, starts: 0, _place: place };
        broker.write_properties(servers::free_port());
        servers::run(
            broker
                .java("-Xmx256m")
                .args(["kafka.tools.StorageTool", "format", "--cluster-id", "d2FsZ2F0ZS10ZXN0cy0wMg"])
                .arg("--config")
                .arg(broker.properties()),
        );
        let mut broker = broker;
        broker.resume();
        broker
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts it again after [`stop`](Self::stop) or [`kill`](Self::kill), and waits until it serves.
    pub fn resume(&mut self) {
        assert!(self.process.is_none(), "the broker runs");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path());
        let log = log.expect("a test's folder can be written");
        let mut command = self.java("-Xmx512m");
        command.arg("kafka.Kafka").arg(self.properties()).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file's handle can be copied")).stderr(log);
        self.process = Some(command.spawn().expect("Java can be run"));
        self.starts += 1;
        wait_for("the broker to serve", START_LIMIT, || {
            let process = self.process.as_mut().expect("just started");
            if let Some(status) = process.try_wait().expect("a child can be waited for") {
                panic!("the broker ended: {status}\n{}", self.log());
            }
            (self.log().matches("Kafka Server started").count() >= self.starts).then_some(())
        });
    }

    /// Asks it to stop, and waits for its end.
    pub fn stop(&mut self) {
        self.signal("-TERM");
        let mut process = self.process.take().expect("the broker runs");
        wait_for("the broker to stop", START_LIMIT, || {
            process.try_wait().expect("a child can be waited for")
        });
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("a child can be killed");
            process.wait().expect("a child can be waited for");
        }
    }

    /// SIGSTOP: its connections stay, and nothing is answered.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let process = self.process.as_ref().expect("the broker runs");
        servers::run(Command::new("kill").args([signal, &process.id().to_string()]));
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> std::path::PathBuf {
        self.folder.path().join("log")
    }

    fn properties(&self) -> std::path::PathBuf {
        self.folder.path().join("server.properties")
    }

    fn java(&self, memory: &str) -> Command {
        let mut command = Command::new(servers::java_program());
        let log4j = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kafka/log4j2.properties");
        command.args([memory, "-XX:TieredStopAtLevel=1"]).arg(format!("-Dlog4j2.configurationFile={log4j}"));
        command.arg("-cp").arg(servers::kafka_home().join("libs").join("*"));
        command
    }

    fn write_properties(&self, controller: u16) {
        let (port, data) = (self.port, self.folder.path().join("data"));
        let text = format!(
            "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={}
num.network.threads=1
num.io.threads=2
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=8388608
log.index.size.max.bytes=1048576
",
            data.display()
        );
        std::fs::write(self.properties(), text).expect("a test's folder can be written");
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "---- the broker's last lines ----\n{}",
                lines[lines.len().saturating_sub(15)..].join("\n")
            );
        }
        self.kill();
    }
}

impl Place {
    fn take() -> Self {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = ENDED
            .wait_while(running, |running| *running >= BROKERS_MAX)
            .unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}
