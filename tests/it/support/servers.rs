//! The shared servers, as `scripts/servers` describes them in the environment.

use std::path::PathBuf;
use std::process::Command;

/// The shared cluster's administrator: a URL that ends in `/postgres`.
pub fn postgres_url() -> String {
    variable("WALGATE_TEST_PG_URL")
}

/// A program of the PostgreSQL installation, by its path.
pub fn postgres_program(name: &str) -> PathBuf {
    PathBuf::from(variable("WALGATE_TEST_PG_BIN")).join(name)
}

/// The shared broker, `host:port`.
pub fn kafka_brokers() -> String {
    variable("WALGATE_TEST_KAFKA")
}

/// Kafka's home: its jars are in `libs`.
pub fn kafka_home() -> PathBuf {
    variable("WALGATE_TEST_KAFKA_HOME").into()
}

/// A Java that runs Kafka.
pub fn java_program() -> PathBuf {
    variable("WALGATE_TEST_JAVA").into()
}

/// A Python that has what the example consumer imports.
pub fn python_program() -> PathBuf {
    variable("WALGATE_TEST_PYTHON").into()
}

/// A Chromium that runs without a screen.
pub fn chromium_program() -> PathBuf {
    variable("WALGATE_TEST_CHROMIUM").into()
}

/// A folder of its own under the tests' folder: `scripts/servers down` ends what still runs in it.
pub fn folder(prefix: &str) -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix(&format!("{prefix}."))
        .tempdir_in(tests_folder())
        .expect("the tests' folder can be written")
}

/// The tests' folder, which anybody may write to.
pub fn tests_folder() -> PathBuf {
    variable("WALGATE_TEST_DIR").into()
}

/// A port nobody listens on, below the range from which the kernel deals out ports to clients: it stays
/// free while a server restarts.
pub fn free_port() -> u16 {
    loop {
        let port = rand::random_range(10_000..20_000);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Runs a command to its end and returns its standard output; panics with its standard error.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: run the tests by `make test`, or see scripts/servers for a set of your own"
        )
    })
}
