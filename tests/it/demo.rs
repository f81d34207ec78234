//! `walgate demo`: it proves what it says, and leaves nothing behind, whichever way it ends.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use super::support::{servers, wait_for, wait_until};

/// On a busy machine; it takes about 10 s.
const DEMO_LIMIT: Duration = Duration::from_secs(120);

/// A folder for the demo's folder, which the server's user can enter as well.
fn base() -> tempfile::TempDir {
    let base = servers::folder("demo");
    std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    base
}

fn demo(base: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walgate"));
    command.arg("demo").args(arguments).current_dir(base).env("TMPDIR", base);
    let bin = servers::postgres_program("initdb");
    command.env("WALGATE_PG_BIN", bin.parent().expect("a program is in a folder"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Processes that were told of a file in this folder.
fn processes_in(base: &Path) -> Vec<String> {
    let needle = base.display().to_string();
    let of_processes = std::fs::read_dir("/proc").expect("/proc can be listed").flatten();
    let lines = of_processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&needle))
        .collect()
}

fn files_in(base: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(base).expect("the base is there").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[track_caller]
fn assert_nothing_is_left(base: &Path, output: &str) {
    assert_eq!(files_in(base), Vec::<String>::new(), "{output}");
    assert_eq!(processes_in(base), Vec::<String>::new(), "{output}");
}

/// A demo whose server runs, so that there is something to leave behind.
fn start_and_wait_for_server(base: &Path) -> Child {
    let child = demo(base, &["--seconds", "60"]).spawn().expect("the binary can be run");
    wait_until("the demo's server", || {
        files_in(base).iter().any(|folder| base.join(folder).join("data/postmaster.pid").exists())
    });
    child
}

#[test]
fn every_table_is_equal_and_nothing_is_left() {
    let base = base();
    let output = demo(base.path(), &["--seconds", "2"]).output().expect("the binary can be run");
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
    for table in
        ["media", "orders", "pgbench_accounts", "pgbench_branches", "pgbench_history", "pgbench_tellers"]
    {
        let line = stdout.lines().find(|line| line.trim_start().starts_with(&format!("public.{table} ")));
        let line = line.unwrap_or_else(|| panic!("no line of {table}: {stdout}"));
        assert!(line.contains(" rows  equal") && !line.contains(" 0 rows"), "{line}");
    }
    let line = stdout.lines().find(|line| line.trim_start().starts_with("reporting: orders "));
    let line = line.unwrap_or_else(|| panic!("no line of the replica: {stdout}"));
    assert!(line.contains(" rows  equal (walgate verify)") && !line.contains(" 0 rows"), "{line}");
    assert!(line.contains(" in and ") && !line.contains("moved 0 in"), "{line}");
    for word in [
        "EQUAL: ",
        "killed both pipelines in the middle",
        "each went on from its checkpoint",
        "walgate_hub_inserts",
        "unchanged: [\"scan\"]",
        "moved_from: ",
        "claim: {\"uri\":\"file://",
        "walgate tail --resolve",
        "\"photo\":\"",
    ] {
        assert!(stdout.contains(word), "{word} is not in the output:\n{stdout}");
    }
    assert_nothing_is_left(base.path(), &stdout);
}

#[test]
fn an_interrupt_leaves_nothing() {
    let base = base();
    let mut child = start_and_wait_for_server(base.path());
    servers::run(Command::new("kill").args(["-INT", &child.id().to_string()]));
    let status = wait_for("the demo to end", DEMO_LIMIT, || child.try_wait().expect("a child"));
    let (stdout, stderr) = texts(&child.wait_with_output().expect("it has ended"));
    assert_eq!(status.code(), Some(1), "{stdout}\n{stderr}");
    assert!(stderr.contains("interrupted"), "{stderr}");
    assert_nothing_is_left(base.path(), &stdout);
}

#[test]
fn even_a_kill_leaves_nothing_for_long() {
    let base = base();
    let mut child = start_and_wait_for_server(base.path());
    child.kill().expect("a child can be killed");
    child.wait().expect("a child can be waited for");
    wait_until("the demo's server and folder to go", || {
        files_in(base.path()).is_empty() && processes_in(base.path()).is_empty()
    });
}

#[test]
fn a_wrong_folder_of_programs_is_an_error_with_its_remedy() {
    let base = base();
    let output =
        demo(base.path(), &[]).env("WALGATE_PG_BIN", base.path()).output().expect("the binary can be run");
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stdout}\n{stderr}");
    assert!(stderr.contains("WALGATE_PG_BIN") && stderr.contains("remedy"), "{stderr}");
    assert_nothing_is_left(base.path(), &stdout);
}
