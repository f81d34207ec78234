//! The real binary, with a configuration of a test's own.
//!
//! In: a source, a hub, and what a test wants to be different. Out: a running process, or a finished one with
//! its output. Always: what it wrote to standard error is shown when the test fails, and it is killed on drop.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Hub, PATIENCE, Source, servers, wait_for, wait_until};

/// How long `run --until-caught-up` may take: several times what the largest test needs.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(120);

/// A configuration, and the environment to run it in.
pub struct Walgate {
    folder: Arc<tempfile::TempDir>,
    source: String,
    hub: String,
    admin: String,
    rest: String,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
}

/// A process that was started; killed on drop.
pub struct Running {
    child: Child,
    /// Kept for as long as the process may read its configuration.
    _folder: Arc<tempfile::TempDir>,
    stdout: Captured,
    stderr: Captured,
}

/// What a process has written so far.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Walgate {
    /// Reads this source into this hub; without any rule, as a newcomer would.
    pub fn new(source: &Source, hub: &Hub) -> Self {
        Self::with(&format!("url = {:?}\nslot = {:?}\n", source.url(), source.name()), &hub.settings())
    }

    /// With the lines of `[source]` and `[hub]` written out.
    pub fn with(source: &str, hub: &str) -> Self {
        Self {
            folder: Arc::new(servers::folder("walgate")),
            source: source.to_owned(),
            hub: hub.to_owned(),
            admin: "listen = \"127.0.0.1:0\"\n".to_owned(),
            rest: String::new(),
            environment: Vec::new(),
            wrapper: Vec::new(),
        }
    }

    /// Adds lines to `[source]`.
    pub fn source(mut self, lines: &str) -> Self {
        self.source += &format!("{lines}\n");
        self
    }

    /// Adds lines to `[hub]`.
    pub fn hub(mut self, lines: &str) -> Self {
        self.hub += &format!("{lines}\n");
        self
    }

    /// Adds whole sections: rules, limits.
    pub fn section(mut self, toml: &str) -> Self {
        self.rest += &format!("\n{toml}\n");
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs it through this command, which gets the binary and its arguments as its own.
    pub fn through(mut self, command: &[&str]) -> Self {
        self.wrapper = command.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Crashes at this point (a debug build's failpoint).
    pub fn failpoint(self, name: &str) -> Self {
        self.env("WALGATE_FAILPOINT", name)
    }

    /// Takes the failpoint away again, for the restart.
    pub fn without_failpoint(mut self) -> Self {
        self.environment.retain(|(name, _)| name != "WALGATE_FAILPOINT");
        self
    }

    /// Listens on a port that the test knows, and returns it.
    pub fn admin_port(&mut self) -> u16 {
        let port = servers::free_port();
        self.admin = format!("listen = \"127.0.0.1:{port}\"\n");
        port
    }

    /// The configuration as text.
    pub fn toml(&self) -> String {
        let Self { source, hub, admin, rest, .. } = self;
        format!("[source]\n{source}\n[hub]\n{hub}\n[admin]\n{admin}{rest}")
    }

    /// Starts `walgate run`.
    #[track_caller]
    pub fn run(&self) -> Running {
        self.start(&["run"])
    }

    /// Starts any command without waiting for its end.
    #[track_caller]
    pub fn start(&self, arguments: &[&str]) -> Running {
        let mut child = self.prepare(arguments).spawn().expect("the binary can be run");
        let stdout = Captured::follow(child.stdout.take().expect("stdout is piped"));
        let stderr = Captured::follow(child.stderr.take().expect("stderr is piped"));
        Running { child, _folder: self.folder.clone(), stdout, stderr }
    }

    /// Runs `walgate run --until-caught-up` to its end and asserts that it succeeded; returns its log.
    #[track_caller]
    pub fn run_until_caught_up(&self) -> String {
        let mut running = self.start(&["run", "--until-caught-up"]);
        let status = running.wait(CATCH_UP_LIMIT);
        let log = running.stderr();
        assert!(status.success(), "run --until-caught-up: {status}\n{log}\n{}", self.toml());
        log
    }

    /// Runs any command to its end.
    #[track_caller]
    pub fn command(&self, arguments: &[&str]) -> Output {
        self.prepare(arguments).output().expect("the binary can be run")
    }

    fn prepare(&self, arguments: &[&str]) -> Command {
        let words = self.wrapper.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_walgate")]);
        let words: Vec<&str> = words.collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command.arg("--config").arg(self.write_config()).args(arguments).current_dir(self.folder.path());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn write_config(&self) -> PathBuf {
        let path = self.folder.path().join("replication.toml");
        let text = self.toml();
        // A process that was just started may be reading it: what is right is left alone.
        if std::fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            std::fs::write(&path, text).expect("a test's folder can be written");
        }
        path
    }
}

impl Running {
    /// Waits for its end; panics with its log when it does not come.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let child = &mut self.child;
        let status =
            wait_for("walgate to end", limit, || child.try_wait().expect("a child can be waited for"));
        self.settle();
        status
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill9(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }

    /// SIGTERM: asks for a drain.
    pub fn sigterm(&self) {
        self.signal("-TERM");
    }

    /// SIGSTOP: freezes it, as a virtual machine's pause does.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// SIGCONT: wakes it up.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    /// SIGTERM, waits for the drain, and asserts exit code 0; returns the log.
    #[track_caller]
    pub fn stop(mut self) -> String {
        self.sigterm();
        let status = self.wait(PATIENCE);
        let log = self.stderr();
        assert!(status.success(), "after SIGTERM: {status}");
        log
    }

    /// Its log so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Its standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Waits until its log has this text.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        wait_until(&format!("{text:?} in the log"), || self.stderr().contains(text));
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: &str) {
        servers::run(Command::new("kill").args([signal, &self.child.id().to_string()]));
    }

    /// The last words may still be in the pipe when the process has ended.
    fn settle(&self) {
        let is_closed = |captured: &Captured| Arc::strong_count(&captured.0) == 1;
        wait_until("the end of walgate's output", || is_closed(&self.stdout) && is_closed(&self.stderr));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- walgate's log ----\n{}\n---- end of the log ----", self.stderr());
        }
    }
}

impl Captured {
    /// Reads to the end on a thread of its own, so that the process never waits for its reader.
    fn follow(mut pipe: impl Read + Send + 'static) -> Self {
        let captured = Self::default();
        let sink = captured.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                sink.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
            }
        });
        captured
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}
