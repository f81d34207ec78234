//! docker-compose.yml and its example, without Docker: the services belong together, and the configuration does what its
//! comment says, here on the tests' own servers in the places of the containers.
//!
//! Where a Docker client with Compose is at hand, it is asked as well.

use std::path::Path;
use std::process::Command;

use serde_yaml_ng::Value;
use walgate::config::Config;

use crate::support::{Hub, S3, Source, s3, servers};

const EXAMPLE: &str = "examples/compose/replication.toml";

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn services() -> serde_yaml_ng::Mapping {
    let compose: Value = serde_yaml_ng::from_str(&read("docker-compose.yml")).expect("YAML");
    compose["services"].as_mapping().expect("services").clone()
}

/// A variable of Walgate's container.
fn variable(name: &str) -> Option<String> {
    services()["walgate"]["environment"][name].as_str().map(str::to_owned)
}

#[test]
fn the_services_belong_together() {
    let services = services();
    for (name, service) in &services {
        let name = name.as_str().expect("a name");
        match service["image"].as_str() {
            None => assert_eq!(service["build"].as_str(), Some("."), "{name}"),
            Some(image) => {
                let tag = image.split_once(':').map(|(_, tag)| tag);
                let is_pinned = tag.is_some_and(|tag| tag.contains('.') && tag.chars().any(char::is_numeric));
                assert!(is_pinned, "{name}: {image}");
            }
        }
        for (needed, _) in service["depends_on"].as_mapping().into_iter().flatten() {
            assert!(services.contains_key(needed), "{name} depends on {needed:?}");
        }
        for volume in service["volumes"].as_sequence().into_iter().flatten() {
            let volume = volume.as_str().expect("the short form");
            let place = volume.split(':').next().expect("a place");
            assert!(!place.starts_with("./") || Path::new(place).is_file(), "{name}: {place}");
        }
    }
    for database in ["source", "replica"] {
        let command = services[database]["command"].as_sequence().expect("a command");
        assert!(command.iter().any(|word| word == "wal_level=logical"), "{database}");
    }
    let same = |service: &str, name: &str, other: &str| {
        assert_eq!(services[service]["environment"][name].as_str().map(str::to_owned), variable(other));
    };
    same("source", "POSTGRES_PASSWORD", "SOURCE_PASSWORD");
    same("replica", "POSTGRES_PASSWORD", "REPORTING_PASSWORD");
    same("s3", "MINIO_ROOT_USER", "AWS_ACCESS_KEY_ID");
    same("s3", "MINIO_ROOT_PASSWORD", "AWS_SECRET_ACCESS_KEY");

    let text = read(EXAMPLE);
    Config::parse(&text, &variable, Path::new("/etc/walgate")).unwrap_or_else(|faults| panic!("{faults}"));
    for place in
        ["@source:5432/shop", "@replica:5432/reporting", "\"kafka:9092\"", "//s3:9000", "//shop-claims/"]
    {
        assert!(text.contains(place), "{place}");
    }
    let compose = read("docker-compose.yml");
    for place in ["POSTGRES_DB: shop", "POSTGRES_DB: reporting", "PLAINTEXT://kafka:9092", "s3/shop-claims"] {
        assert!(compose.contains(place), "{place}");
    }
    let has_compose = Command::new("docker").args(["compose", "version"]).output();
    if has_compose.is_ok_and(|output| output.status.success()) {
        servers::run(Command::new("docker").args([
            "compose",
            "-f",
            "docker-compose.yml",
            "config",
            "--quiet",
        ]));
    }
}

#[test]
fn the_example_does_what_it_says() {
    let (source, replica) = (Source::new("compose"), Source::new("compose_reporting"));
    let (hub, s3) = (Hub::kafka(&source), S3::start());
    source.exec(&read("examples/compose/source.sql"));
    let [endpoint, _, id, secret] = s3.environment();
    let text = [
        ("name = \"shop\"", format!("name = {:?}\nslot = {:?}", source.name(), source.name())),
        ("postgres://postgres:${SOURCE_PASSWORD}@source:5432/shop", source.url()),
        ("postgres://postgres:${REPORTING_PASSWORD}@replica:5432/reporting", replica.url()),
        ("kafka:9092", servers::kafka_brokers()),
        ("http://s3:9000", endpoint.1),
        ("shop-claims", s3::BUCKET.to_owned()),
        ("0.0.0.0:9187", "127.0.0.1:0".to_owned()),
    ]
    .iter()
    .fold(read(EXAMPLE), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    });
    let folder = servers::folder("compose");
    let path = folder.path().join("replication.toml");
    std::fs::write(&path, text).expect("a test's folder can be written");
    let walgate = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walgate"));
        command.arg("--config").arg(&path).args(arguments).env(id.0, &id.1).env(secret.0, &secret.1);
        servers::run(&mut command)
    };
    walgate(&["check"]);
    walgate(&["run", "--until-caught-up"]);
    let photo = hub.wait_for("the photo", |events| events.len() == 101);
    let photo = photo.iter().find(|event| event.json["source"]["table"] == "media").expect("the photo");
    assert_eq!(photo.json["data"]["photo"]["$claim"]["bytes"], 1 << 20);
    walgate(&["claims", "check"]);
    let sum = "SELECT count(*), sum(total) FROM orders";
    assert_eq!(replica.query(sum), source.query(&format!("{sum} WHERE total >= 100")));
    walgate(&["verify"]);
    walgate(&["drop", "--yes"]);
}
