//! The first exchange: who connects, to what, with which settings, until the server is ready.
//!
//! Comes in: a fresh link and the URL. Goes out: the same link, authenticated and idle. It always
//! holds that every session, replicating or not, has [`SESSION_SETTINGS`], whatever its role, database or
//! URL say: the text of every value depends on them. Manual: "Start-up" in "Message Flow".

use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::auth;
use super::link::{Answer, Link, malformed};
use crate::error::{Error, Result};
use crate::wal::url::ConnectUrl;

/// The settings of every session, of both kinds of connection (FIELD_NOTES 2 and the usual safety ones).
/// They are part of the checkpoint's fingerprint: a change here changes what a replay sends.
pub const SESSION_SETTINGS: &[(&str, &str)] = &[
    ("datestyle", "ISO"),
    ("intervalstyle", "iso_8601"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("timezone", "UTC"),
    ("row_security", "off"),
    ("standard_conforming_strings", "on"),
    ("search_path", "pg_catalog"),
    ("lock_timeout", "0"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
];

/// The `options` of the startup message: the URL's own first, since the last of two equal ones counts.
pub(crate) fn startup_options(url: &ConnectUrl) -> String {
    let mut options = url.options.clone().unwrap_or_default();
    for (name, value) in SESSION_SETTINGS {
        if !options.is_empty() {
            options.push(' ');
        }
        options.push_str(&format!("-c {name}={value}"));
    }
    options
}

/// The name that the server shows for this session: the caller's, else the URL's.
pub(crate) fn session_name<'a>(url: &'a ConnectUrl, application_name: &'a str) -> &'a str {
    match (application_name, &url.application_name) {
        ("", Some(own)) => own,
        (given, _) => given,
    }
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Replication commands and SQL; takes a walsender.
    Replication,
    /// SQL only.
    Ordinary,
}

/// Sends the startup message, authenticates and waits until the session is ready.
pub(crate) async fn start_session(
    link: &mut Link,
    url: &ConnectUrl,
    application_name: &str,
    kind: Kind,
) -> Result<()> {
    let options = startup_options(url);
    let parameters = [
        ("user", url.user.as_str()),
        ("database", url.database.as_str()),
        ("replication", if kind == Kind::Replication { "database" } else { "false" }),
        ("application_name", session_name(url, application_name)),
        ("options", options.as_str()),
    ];
    frontend::startup_message(parameters, link.outgoing()).map_err(|error| {
        Error::definite("the URL holds a zero byte in user, database or options").with_source(error)
    })?;
    link.flush().await?;
    auth::authenticate(link, url).await?;
    loop {
        match link.receive().await? {
            Answer::Message(Message::ReadyForQuery(_)) => return Ok(()),
            Answer::Message(Message::BackendKeyData(_)) => {}
            Answer::Failed(error) => return Err(error.into_error()),
            Answer::Message(_) | Answer::CopyBoth => {
                return Err(malformed("a message that does not belong to the start of a session"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> ConnectUrl {
        ConnectUrl::parse(text, |_| None).expect("a URL")
    }

    #[test]
    fn our_settings_come_after_the_urls_own() {
        let options = startup_options(&url("postgres://h?options=-c%20datestyle%3DGerman"));
        assert!(
            options.starts_with("-c datestyle=German -c datestyle=ISO -c intervalstyle=iso_8601 "),
            "{options}"
        );
        assert!(startup_options(&url("postgres://h")).starts_with("-c datestyle=ISO"));
    }

    #[test]
    fn the_callers_name_wins() {
        let named = url("postgres://h?application_name=mine");
        assert_eq!(session_name(&named, "walgate/shop.walgate_hub"), "walgate/shop.walgate_hub");
        assert_eq!(session_name(&named, ""), "mine");
        assert_eq!(session_name(&url("postgres://h"), ""), "");
    }

    #[test]
    fn no_setting_needs_escaping_in_options() {
        for (name, value) in SESSION_SETTINGS {
            assert!(!name.contains([' ', '\\']) && !value.contains([' ', '\\']), "{name}={value}");
        }
    }
}
