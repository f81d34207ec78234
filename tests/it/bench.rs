//! `walgate bench`: small, but all of it: every mode on real servers, its report in a real browser, and every way to end.
//!
//! What is asserted is that there are figures, that they are whole, and that nothing is left behind; never how fast.

use std::fs::File;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::support::{servers, source, wait_for, wait_until};

/// On a busy machine, with a debug build; the longest takes about a minute.
const BENCH_LIMIT: Duration = Duration::from_secs(600);

/// A folder for the benchmark's folders, which the server's user can enter as well.
fn base() -> tempfile::TempDir {
    let base = servers::folder("bench");
    std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    std::fs::create_dir(base.path().join("tmp")).expect("it can be written");
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(base.path().join("tmp"), open).expect("it is ours");
    base
}

fn bench(base: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walgate"));
    command.arg("bench").args(arguments).current_dir(base).env("TMPDIR", base.join("tmp"));
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
    let entries = std::fs::read_dir(base.join("tmp")).expect("the folder is there").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[track_caller]
fn assert_nothing_is_left(base: &Path, output: &str) {
    assert_eq!(files_in(base), Vec::<String>::new(), "{output}");
    assert_eq!(processes_in(base), Vec::<String>::new(), "{output}");
}

/// The JSON of a benchmark that ended with this code.
#[track_caller]
fn results(output: &Output, code: i32) -> Value {
    let (stdout, stderr) = texts(output);
    assert_eq!(output.status.code(), Some(code), "{stdout}\n{stderr}");
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}\n{stderr}"))
}

/// The median of a figure.
fn median(results: &Value, workload: &str, mode: &str, figure: &str) -> Option<f64> {
    let measured = results["measured"].as_array().expect("a list");
    let one = measured
        .iter()
        .find(|one| one["workload"] == workload && one["mode"] == mode && one["figure"] == figure)?;
    one["median"].as_f64()
}

const EVERY_MODE: [&str; 7] = [
    "event-file",
    "event-kafka at-least-once",
    "event-kafka exactly-once",
    "replicate",
    "both",
    "native",
    "pg_recvlogical",
];

#[test]
fn every_mode_is_measured_and_the_report_can_be_read_in_light_and_dark() {
    let base = base();
    let report = base.path().join("report.html");
    let kafka = servers::kafka_brokers();
    let arguments = [
        "--modes",
        "event-file,event-kafka,replicate,both,native,pg_recvlogical",
        "--workloads",
        "small",
        // Processor time is counted in ticks of 10 ms.
        "--rows",
        "3000",
        "--runs",
        "1",
        "--seconds",
        "1",
        "--rate",
        "100",
        "--json",
        "--kafka",
        &kafka,
        "--report",
        report.to_str().expect("it is UTF-8"),
    ];
    let output = bench(base.path(), &arguments).output().expect("the binary can be run");
    let results = results(&output, 0);
    assert_eq!(results["state"], "complete", "{results:#}");
    for mode in EVERY_MODE {
        let maybe = |figure| median(&results, "small", mode, figure);
        let value = |figure| maybe(figure).unwrap_or_else(|| panic!("no {figure} of {mode}: {results:#}"));
        for figure in ["throughput", "drain_seconds", "cpu_source", "cpu_all", "memory_source", "wire_source"]
        {
            assert!(value(figure) > 0.0, "{mode} {figure}");
        }
        for figure in [
            "latency_p50",
            "latency_max",
            "from_return_p50",
            "source_rate",
            "lag_peak",
            "catch_up",
            "retained_burst",
        ] {
            assert!(value(figure) >= 0.0, "{mode} {figure}");
        }
        assert!(value("latency_p99") >= value("latency_p50"), "{mode}");
        let is_walgate = !["native", "pg_recvlogical"].contains(&mode);
        let memory = maybe("memory_reader");
        assert!(if is_walgate { memory > Some(1.0) } else { mode != "native" || memory.is_none() }, "{mode}");
        assert_eq!(maybe("stored").is_some(), mode != "pg_recvlogical", "{mode}");
        assert_eq!(maybe("wire_target").is_some(), ["replicate", "both"].contains(&mode), "{mode}");
        assert_eq!(
            maybe("cpu_broker").is_some(),
            mode.starts_with("event-kafka") || mode == "both",
            "{mode}"
        );
        assert!(results["lag_curves"].as_array().is_some_and(|curves| {
            curves
                .iter()
                .any(|curve| curve["mode"] == mode && curve["points"].as_array().is_some_and(|p| p.len() > 5))
        }));
    }
    assert!(median(&results, "small", "no consumer", "source_rate").is_some_and(|rate| rate > 0.0));
    assert_eq!(results["workloads"][0]["changes"], serde_json::json!([3000]), "{results:#}");
    assert!(results["failed"].as_array().is_some_and(Vec::is_empty), "{results:#}");
    for figure in results["figures"].as_array().expect("a list") {
        assert!(figure["how"].as_str().is_some_and(|how| how.len() > 20), "{figure}");
    }
    assert!(!results["reading"].as_array().expect("a list").is_empty());
    assert_nothing_is_left(base.path(), &texts(&output).1);

    let page = std::fs::read_to_string(&report).expect("the report is written");
    for (scheme, setting) in [("dark", "0"), ("light", "1")] {
        let seen = render(base.path(), &page, setting);
        assert_eq!(attribute(&seen, "error"), None, "{scheme}");
        // Throughput, processor time, latency, lag: none of them blank.
        assert_eq!(attribute(&seen, "charts").as_deref(), Some("4"), "{scheme}");
        assert_eq!(attribute(&seen, "drawn").as_deref(), Some("4"), "{scheme}");
        assert_eq!(attribute(&seen, "scheme").as_deref(), Some(scheme));
        let contrast: f64 =
            attribute(&seen, "contrast").expect("it was looked at").parse().expect("a number");
        assert!(contrast >= 4.5, "{scheme}: {contrast}");
        assert_eq!(attribute(&seen, "loaded").as_deref(), Some("0"), "{scheme}: the report loads something");
    }
}

#[test]
fn every_workload_can_be_drained() {
    let base = base();
    let arguments = [
        "--modes",
        "event-file,replicate,native",
        "--workloads",
        "all",
        "--rows",
        "2000",
        "--runs",
        "1",
        "--seconds",
        "0",
        "--json",
    ];
    let output = bench(base.path(), &arguments).output().expect("the binary can be run");
    let results = results(&output, 0);
    let changes = |workload: &str| {
        let told = results["workloads"].as_array().expect("a list");
        let told = told.iter().find(|told| told["name"] == workload).expect("it was measured");
        told["changes"][0].as_u64().expect("a number")
    };
    for (workload, least, most) in [
        ("bulk", 2000, 2000),
        ("oltp", 2000, 2000),
        ("small", 2000, 2000),
        ("wide", 200, 200),
        ("large", 4, 4),
        ("update", 2000, 2000),
        ("filtered", 2000, 2000),
        // A row that is chosen may be gone.
        ("mixed", 1000, 2100),
    ] {
        assert!((least..=most).contains(&changes(workload)), "{workload}: {}", changes(workload));
        for mode in ["event-file", "replicate", "native"] {
            assert!(median(&results, workload, mode, "throughput") > Some(0.0), "{workload} {mode}");
        }
    }
    // One row in ten passes, and that is what is stored: of a row as of an event.
    let stored = |workload| median(&results, workload, "event-file", "stored").expect("it was measured");
    assert!(stored("filtered") < stored("bulk") / 5.0, "{} of {}", stored("filtered"), stored("bulk"));
    assert!(stored("large") > 500_000.0, "the claimed objects are counted");
    assert_nothing_is_left(base.path(), &texts(&output).1);
}

/// Looks at the drawn page as a reader would: is every chart drawn, can every text be read, was anything loaded.
const LOOK: &str = r#"<script>
window.addEventListener("load", () => {
  const numbers = (colour) => colour.match(/[\d.]+/g).slice(0, 3).map(Number);
  const luminance = (colour) => {
    const [r, g, b] = numbers(colour).map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\)$/.test(colour) && colour !== "transparent") return colour;
    }
    return "rgb(255, 255, 255)";
  };
  let worst = 21;
  for (const node of document.querySelectorAll("h1, h2, h3, p, li, td, th, small, figcaption, code")) {
    const [a, b] = [luminance(getComputedStyle(node).color), luminance(ground(node))].sort((x, y) => y - x);
    worst = Math.min(worst, (a + 0.05) / (b + 0.05));
  }
  let drawn = 0;
  for (const canvas of document.querySelectorAll("canvas")) {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let inked = 0;
    for (let at = 3; at < pixels.length; at += 4) if (pixels[at] > 0) inked += 1;
    if (inked > 500) drawn += 1;
  }
  document.body.dataset.drawn = String(drawn);
  document.body.dataset.contrast = worst.toFixed(2);
  document.body.dataset.scheme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.body.dataset.loaded = String(performance.getEntriesByType("resource").length);
});
</script></body>"#;

/// The `<body ...>` of the page after a headless Chromium has run it.
fn render(base: &Path, page: &str, scheme: &str) -> String {
    let looked = base.join("looked.html");
    std::fs::write(&looked, page.replace("</body>", LOOK)).expect("it can be written");
    let profile = servers::folder("chromium");
    let mut chromium = Command::new(servers::chromium_program());
    chromium.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-dev-shm-usage",
    ]);
    chromium.arg(format!("--user-data-dir={}", profile.path().display()));
    chromium.arg(format!("--blink-settings=preferredColorScheme={scheme}"));
    chromium.args(["--window-size=1280,2000", "--virtual-time-budget=10000", "--dump-dom"]);
    chromium.arg(format!("file://{}", looked.display())).env("HOME", profile.path());
    let dom = servers::run(&mut chromium);
    let (_, body) = dom.split_once("<body").unwrap_or_else(|| panic!("there is no page: {dom}"));
    body.split_once('>').expect("a tag ends").0.to_owned()
}

fn attribute(body: &str, name: &str) -> Option<String> {
    let (_, value) = body.split_once(&format!("data-{name}=\""))?;
    value.split_once('"').map(|(value, _)| value.to_owned())
}

/// What the benchmark has left on a server.
fn left_on_server() -> Vec<source::TextRow> {
    let session = source::Session::connect(&servers::postgres_url());
    let names = "SELECT datname FROM pg_database WHERE datname LIKE 'walgate\\_bench\\_%' \
                 UNION ALL SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'walgate\\_bench\\_%'";
    session.query(names)
}

#[test]
fn a_users_file_on_given_servers_leaves_them_as_they_were() {
    let base = base();
    let (schema, script) = (base.path().join("schema.sql"), base.path().join("orders.sql"));
    std::fs::write(
        &schema,
        "CREATE TABLE orders (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, total numeric NOT NULL);\n\
         CREATE TABLE log (line text NOT NULL);\nINSERT INTO orders (total) SELECT i FROM generate_series(1, 50) i;\n",
    )
    .expect("it can be written");
    std::fs::write(
        &script,
        "\\set id random(1, 50)\nBEGIN;\nUPDATE orders SET total = total + 1 WHERE id = :id;\n\
         INSERT INTO orders (total) VALUES (:id);\nINSERT INTO log VALUES ('x');\nCOMMIT;\n",
    )
    .expect("it can be written");
    let url = servers::postgres_url();
    let arguments = [
        "--modes",
        "event-file,replicate,native",
        "--workloads",
        script.to_str().expect("it is UTF-8"),
        "--schema",
        schema.to_str().expect("it is UTF-8"),
        "--rows",
        "80",
        "--runs",
        "2",
        "--seconds",
        "0",
        "--json",
        "--source",
        &url,
        "--target",
        &url,
    ];
    let output = bench(base.path(), &arguments).output().expect("the binary can be run");
    let results = results(&output, 0);
    let stderr = texts(&output).1;
    assert_eq!(results["workloads"][0]["changes"], serde_json::json!([240, 240]), "{results:#}");
    for mode in ["event-file", "replicate", "native"] {
        assert!(median(&results, "orders.sql", mode, "throughput").is_some_and(|rate| rate > 0.0), "{mode}");
        assert_eq!(median(&results, "orders.sql", mode, "latency_p50"), None, "--seconds 0");
    }
    let left_out = results["left_out"].to_string();
    assert!(left_out.contains("--seconds 0"), "{left_out}");
    assert_eq!(left_on_server(), Vec::<source::TextRow>::new(), "{stderr}");
    assert_nothing_is_left(base.path(), &stderr);
}

#[test]
fn a_workload_file_with_an_error_says_where() {
    let base = base();
    let script = base.path().join("wrong.sql");
    std::fs::write(&script, "UPDATE pgbench_branches SET no_such_column = 1;\n").expect("it can be written");
    let path = script.to_str().expect("it is UTF-8");
    let arguments = ["--modes", "event-file", "--workloads", path, "--rows", "10", "--runs", "1", "--json"];
    let output = bench(base.path(), &arguments).output().expect("the binary can be run");
    let results = results(&output, 1);
    let (_, stderr) = texts(&output);
    for part in ["no_such_column", "wrong.sql", "remedy"] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    assert_eq!(results["state"], "partial");
    assert!(
        results["reason"].as_str().is_some_and(|reason| reason.contains("no_such_column")),
        "{results:#}"
    );
    assert_eq!(results["measured"], serde_json::json!([]));
    assert_nothing_is_left(base.path(), &stderr);
}

#[test]
fn a_cluster_that_does_not_start_says_why() {
    let base = base();
    let bin = base.path().join("bin");
    std::fs::create_dir(&bin).expect("it can be written");
    for program in ["initdb", "pgbench", "psql", "pg_dump", "pg_recvlogical"] {
        symlink(servers::postgres_program(program), bin.join(program)).expect("a link can be made");
    }
    let real = servers::postgres_program("postgres");
    let fake = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && exec '{}' --version\necho 'FATAL: not today' >&2\nexit 1\n",
        real.display()
    );
    std::fs::write(bin.join("postgres"), fake).expect("it can be written");
    for path in [bin.clone(), bin.join("postgres")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    }
    let output =
        bench(base.path(), &["--json"]).env("WALGATE_PG_BIN", &bin).output().expect("the binary can be run");
    let results = results(&output, 1);
    let (_, stderr) = texts(&output);
    assert!(stderr.contains("does not start") && stderr.contains("not today"), "{stderr}");
    assert_eq!(results["state"], "partial", "{results:#}");
    assert_nothing_is_left(base.path(), &stderr);
}

#[test]
fn too_little_disk_is_said_before_anything_starts() {
    let base = base();
    let output =
        bench(base.path(), &["--disk-free-min", "1000000000"]).output().expect("the binary can be run");
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stdout}\n{stderr}");
    assert!(stderr.contains("too little disk") && stderr.contains("TMPDIR"), "{stderr}");
    assert!(stdout.starts_with("PARTIAL RESULTS: too little disk"), "{stdout}");
    assert_nothing_is_left(base.path(), &stderr);
}

/// A benchmark that would take long, with what it says in a file.
fn start_long(base: &Path) -> (Child, PathBuf) {
    let said = base.join("said");
    let arguments = [
        "--modes",
        "event-file,replicate",
        "--workloads",
        "small",
        "--rows",
        "200",
        "--runs",
        "99",
        "--json",
    ];
    let mut command = bench(base, &arguments);
    command.stderr(File::create(&said).expect("it can be written"));
    (command.spawn().expect("the binary can be run"), said)
}

#[test]
fn an_interrupt_keeps_what_was_measured_and_leaves_nothing() {
    for signal in ["-INT", "-TERM"] {
        let base = base();
        let (mut child, said) = start_long(base.path());
        wait_for("a measured run", BENCH_LIMIT, || {
            let text = std::fs::read_to_string(&said).unwrap_or_default();
            (text.matches(" changes/s").count() >= 2).then_some(())
        });
        servers::run(Command::new("kill").args([signal, &child.id().to_string()]));
        wait_for("the benchmark to end", BENCH_LIMIT, || child.try_wait().expect("a child"));
        let output = child.wait_with_output().expect("it has ended");
        let results = results(&output, 1);
        let text = std::fs::read_to_string(&said).expect("it is there");
        assert!(text.contains("interrupted"), "{text}");
        assert_eq!((&results["state"], &results["reason"]), (&"partial".into(), &"interrupted".into()));
        assert!(median(&results, "small", "replicate", "throughput").is_some(), "{results:#}");
        assert!(results["reading"].to_string().contains("partial"), "{results:#}");
        assert_nothing_is_left(base.path(), &text);
    }
}

#[test]
fn even_a_kill_leaves_nothing_for_long() {
    let base = base();
    let (mut child, said) = start_long(base.path());
    wait_for("a measured run", BENCH_LIMIT, || {
        std::fs::read_to_string(&said).unwrap_or_default().contains(" changes/s").then_some(())
    });
    child.kill().expect("a child can be killed");
    child.wait().expect("a child can be waited for");
    wait_until("the servers, the readers and the folders to go", || {
        files_in(base.path()).is_empty() && processes_in(base.path()).is_empty()
    });
}

#[test]
fn what_cannot_be_measured_is_left_out_with_its_reason() {
    let base = base();
    let arguments = ["--modes", "event-kafka", "--workloads", "small", "--rows", "10", "--json"];
    let output = bench(base.path(), &arguments).output().expect("the binary can be run");
    let results = results(&output, 1);
    let (_, stderr) = texts(&output);
    assert!(stderr.contains("no mode can be measured here") && stderr.contains("--kafka"), "{stderr}");
    let left_out = results["left_out"].as_array().expect("a list");
    assert_eq!(left_out.len(), 2, "{results:#}");
    assert!(
        left_out.iter().all(|one| one["reason"].as_str().is_some_and(|reason| reason.contains("--kafka")))
    );
    assert_nothing_is_left(base.path(), &stderr);
}

#[test]
fn wrong_usage_starts_nothing() {
    let base = base();
    let output = bench(base.path(), &["--workloads", "no-such.sql,bulk", "--schema", "none.sql"])
        .output()
        .expect("the binary can be run");
    let (stdout, stderr) = texts(&output);
    assert_eq!((output.status.code(), stdout.as_str()), (Some(2), ""), "{stderr}");
    assert!(stderr.contains("no-such.sql") && stderr.contains("none.sql"), "{stderr}");
    assert_nothing_is_left(base.path(), &stderr);
}
