//! What the figures were measured on: machine, servers, versions, settings. In: /proc and the servers.

use std::fs;

use super::ground::Ground;
use crate::error::Result;

/// Names and values, in the order in which they are shown.
///
/// # Errors
/// As the connections.
pub async fn describe(ground: &Ground) -> Result<Vec<(String, String)>> {
    let build = match cfg!(debug_assertions) {
        true => "DEBUG BUILD: its figures say nothing of Walgate's speed",
        false => "optimised",
    };
    let mut described = vec![
        ("walgate", format!("{}, {build}", env!("CARGO_PKG_VERSION"))),
        ("processor", format!("{} x {}", cores(), proc_line("/proc/cpuinfo", "model name"))),
        ("memory", proc_line("/proc/meminfo", "MemTotal")),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("load average at the start", read("/proc/loadavg")),
        ("folder of throwaway servers and file hubs", std::env::temp_dir().display().to_string()),
    ];
    for server in [&ground.source, &ground.target] {
        let kind = match (server.is_throwaway(), server.postmaster) {
            (true, _) => "a throwaway cluster on this machine",
            (false, Some(_)) => "given, on this machine",
            (false, None) => {
                "given; not on this machine as far as can be seen, so its processes are not looked at"
            }
        };
        let settings = server.settings().await?;
        described.push((server.role, format!("PostgreSQL {}, {kind}; {settings}", server.version)));
    }
    if let Some(brokers) = &ground.brokers {
        let process = match ground.broker {
            Some(pid) => format!("process {pid} of this machine"),
            None => "not on this machine, or its process may not be looked at".to_owned(),
        };
        described.push((
            "Kafka",
            format!("{brokers}, {process}; librdkafka {}", rdkafka::util::get_rdkafka_version().1),
        ));
    }
    Ok(described.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

/// What stands behind the colon of the first line that begins with `name`.
fn proc_line(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
    line.map_or("unknown", |(_, value)| value.trim()).to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
