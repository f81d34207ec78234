//! What the figures were measured on: machine, servers, versions. In: /proc and the servers. Out: name and value.

use std::fs;
use std::process::Command;

use crate::Result;
use crate::servers::{Session, variable};

/// Settings of the server that the figures depend on.
const SERVER_SETTINGS: &[&str] = &[
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "fsync",
    "synchronous_commit",
    "logical_decoding_work_mem",
];

/// Names and values, in the order of their printing.
pub fn describe() -> Result<Vec<(String, String)>> {
    let session = Session::connect(&variable("WALGATE_TEST_PG_URL")?)?;
    let settings: Vec<String> = SERVER_SETTINGS
        .iter()
        .map(|name| Ok(format!("{name} = {}", session.value(&format!("SHOW {name}"))?)))
        .collect::<Result<_>>()?;
    let kafka = variable("WALGATE_TEST_KAFKA_HOME")?;
    let build = if cfg!(debug_assertions) { "DEBUG BUILD: figures mean nothing" } else { "optimised" };
    let described = [
        ("processor", format!("{} x {}", cores(), processor())),
        ("memory", format!("{} MiB", memory_kib() / 1024)),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("load average at the start", read("/proc/loadavg")),
        ("PostgreSQL", session.value("SHOW server_version")?),
        ("its settings", settings.join(", ")),
        ("Kafka", kafka.rsplit("kafka-").next().unwrap_or_default().to_owned()),
        ("librdkafka", rdkafka::util::get_rdkafka_version().1),
        ("rustc", output("rustc", &["--version"])),
        ("walgate", format!("{}, {build}", output("git", &["describe", "--always", "--dirty"]))),
    ];
    Ok(described.map(|(name, value)| (name.to_owned(), value)).into())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

fn processor() -> String {
    let name = proc_line("/proc/cpuinfo", "model name");
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn memory_kib() -> u64 {
    let line = proc_line("/proc/meminfo", "MemTotal");
    line.and_then(|line| line.trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

/// What stands behind the colon of the first line that begins with `name`.
pub fn proc_line(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim().to_owned())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| format!("{program} cannot be run"),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
