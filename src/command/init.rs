//! `walgate init --source URL`: a commented replication.toml for one database.
//!
//! Comes in: a URL. Goes out: the file, with the URL's password replaced by `${PGPASSWORD}`; on stderr,
//! what was found. Always holds: a file that is there stays, unless `--force`; a database that cannot be
//! reached leaves no file.

use std::io::Write;
use std::path::Path;

use crate::config::{Config, init::render};
use crate::error::{Error, Result};
use crate::route::name::TablePattern;
use crate::wal::catalog::{self, SourceTable};
use crate::wal::client::connect;
use crate::wal::url::ConnectUrl;

/// What stands in the file for the password.
const PASSWORD: &str = "${PGPASSWORD}";

/// Writes the file at `path`.
///
/// # Errors
/// The file exists, the URL cannot be used, the database cannot be reached, the file cannot be written.
pub async fn run(path: &Path, source: &str, force: bool) -> Result<()> {
    let shown = path.display();
    let exists = || {
        Error::definite(format!("{shown} exists already"))
            .with_hint("name another file with --config, or replace it with --force")
    };
    if path.exists() && !force {
        return Err(exists());
    }
    let written = written_url(source)?;
    let url = ConnectUrl::from_env(&written.url)
        .map_err(|error| Error::definite(format!("--source: {error}")).with_hint(error.hint()))?;
    let client = connect(&url, "walgate init").await?;
    let tables = catalog::tables(&client, None).await?;
    let names = names(tables.iter());
    let without = self::names(tables.iter().filter(|table| !table.has_usable_identity()));
    let text = render(&written.text, &url.database, &names, &without);
    debug_assert!(parses(&text, path), "what init writes is a valid file");

    let mut options = std::fs::OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let file = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    file.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(),
        _ => Error::definite(format!("{shown} cannot be written"))
            .with_source(error)
            .with_hint("name a file in a directory that you may write to, with --config"),
    })?;
    tell(path, &names, &without, written.had_password);
    Ok(())
}

/// A URL to connect with, and the text for the file.
struct Written {
    url: String,
    text: String,
    had_password: bool,
}

fn written_url(source: &str) -> Result<Written> {
    if source.contains("${") {
        // Written as it would stand in the file: then it stands there so.
        let toml = format!("[source]\nurl = {}\n", toml::Value::from(source));
        let config = Config::parse(&toml, &|name| std::env::var(name).ok(), Path::new(""));
        let config = config.map_err(|faults| Error::definite(format!("--source:\n{faults}")))?;
        let url = config.source.url.expose().to_owned();
        return Ok(Written { url, text: source.to_owned(), had_password: false });
    }
    let (text, had_password) = without_password(source);
    Ok(Written { url: source.to_owned(), text, had_password })
}

/// Puts [`PASSWORD`] in the place of the password, whether it is before the host or a parameter.
fn without_password(url: &str) -> (String, bool) {
    let (mut text, mut had_password) = (url.to_owned(), false);
    if let Some((scheme, rest)) = url.split_once("://") {
        // As `ConnectUrl` reads it: the first @ before any / ends the credentials.
        let authority = rest.split('/').next().unwrap_or_default();
        if let Some((credentials, _)) = authority.split_once('@')
            && let Some((user, password)) = credentials.split_once(':')
            && !password.is_empty()
        {
            let after = rest.get(credentials.len()..).unwrap_or_default();
            text = format!("{scheme}://{user}:{PASSWORD}{after}");
            had_password = true;
        }
    }
    if let Some((before, query)) = text.clone().rsplit_once('?') {
        let parameters: Vec<String> = query
            .split('&')
            .map(|parameter| match parameter.split_once('=') {
                Some(("password", value)) if !value.is_empty() => {
                    had_password = true;
                    format!("password={PASSWORD}")
                }
                _ => parameter.to_owned(),
            })
            .collect();
        text = format!("{before}?{}", parameters.join("&"));
    }
    (text, had_password)
}

fn names<'a>(tables: impl Iterator<Item = &'a SourceTable>) -> Vec<String> {
    tables.map(|table| TablePattern::exact(&table.schema, &table.name).to_string()).collect()
}

/// Whatever the password is, the file has to parse.
fn parses(text: &str, path: &Path) -> bool {
    let env = |name: &str| std::env::var(name).ok().or(Some("x".to_owned()));
    Config::parse(text, &env, path.parent().unwrap_or(Path::new(""))).is_ok()
}

fn tell(path: &Path, names: &[String], without: &[String], had_password: bool) {
    let shown = path.display();
    eprintln!("wrote {shown}: {} tables found", names.len());
    if had_password {
        eprintln!(
            "the password is not in it: {PASSWORD} stands in its place; set the environment variable PGPASSWORD before the next command"
        );
    }
    if !without.is_empty() {
        eprintln!(
            "without a usable replica identity, so that only their inserts and truncates are seen: {}\n  remedy: add a primary key, or ALTER TABLE ... REPLICA IDENTITY FULL",
            without.join(", ")
        );
    }
    eprintln!("next: walgate --config {shown} check");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_never_reaches_the_file() {
        for (url, written) in [
            ("postgres://u:s3cret@db:5432/shop", "postgres://u:${PGPASSWORD}@db:5432/shop"),
            (
                "postgres://u:a?b@db/shop?sslmode=require",
                "postgres://u:${PGPASSWORD}@db/shop?sslmode=require",
            ),
            (
                "postgres://db/shop?user=u&password=x%40&sslmode=disable",
                "postgres://db/shop?user=u&password=${PGPASSWORD}&sslmode=disable",
            ),
            ("postgres://u@db/shop", "postgres://u@db/shop"),
            ("postgres://u:@db/shop", "postgres://u:@db/shop"),
        ] {
            let (text, had_password) = without_password(url);
            assert_eq!(text, written);
            assert_eq!(had_password, text.contains(PASSWORD));
        }
    }
}
