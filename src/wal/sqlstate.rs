//! What the server answered, and whether trying again can help: judged by SQLSTATE.
//!
//! Comes in: an ErrorResponse of either kind of connection. Goes out: a [`crate::error::Error`] whose
//! source is a [`ServerError`], with a remedy where one is known. It always holds that a code which is
//! not listed is transient. Texts are looked at only for names that a translation keeps
//! (`pg_hba.conf`, `wal_level`). Manual: "PostgreSQL Error Codes", "Error and Notice Message Fields".

use std::fmt;

use crate::error::Error;

/// The server is shutting down, or an administrator ended this session.
pub const ADMIN_SHUTDOWN: &str = "57P01";
/// No entry in `pg_hba.conf`, no such role, or no valid client certificate.
pub const INVALID_AUTHORIZATION: &str = "28000";
/// A wrong password.
pub const INVALID_PASSWORD: &str = "28P01";
/// A right is missing, for example REPLICATION.
pub const INSUFFICIENT_PRIVILEGE: &str = "42501";
/// No such slot, role or other object.
pub const UNDEFINED_OBJECT: &str = "42704";
/// The slot is used by another process.
pub const OBJECT_IN_USE: &str = "55006";
const DATABASE_MISSING: &str = "3D000";
const PREREQUISITE_STATE: &str = "55000";
/// The server's own; its texts are not translated.
const INTERNAL_ERROR: &str = "XX000";
/// A limit of the configuration: slots, or temporary files.
pub const CONFIGURATION_LIMIT: &str = "53400";
const TOO_MANY_CONNECTIONS: &str = "53300";

/// An error or a notice as the server sent it. Prints message and code; the detail, which may hold
/// values of rows, is only in its field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `PANIC`, `WARNING`, `NOTICE`, .. untranslated.
    pub severity: String,
    /// The SQLSTATE: five characters.
    pub code: String,
    /// The primary message, in the server's language.
    pub message: String,
    /// Further detail; may hold values of rows.
    pub detail: Option<String>,
    /// The server's own advice.
    pub hint: Option<String>,
}

/// A NoticeResponse: same fields, severity below ERROR.
pub type Notice = ServerError;

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code)
    }
}

impl std::error::Error for ServerError {}

impl From<&tokio_postgres::error::DbError> for ServerError {
    fn from(error: &tokio_postgres::error::DbError) -> Self {
        ServerError {
            severity: error.severity().to_owned(),
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }
}

impl ServerError {
    /// Whether the server closes the connection after it.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }

    /// Whether only a person can mend it.
    pub fn is_definite(&self) -> bool {
        match self.code.as_str() {
            DATABASE_MISSING | PREREQUISITE_STATE => true,
            // max_connections and disk space free themselves; replication slots do not.
            CONFIGURATION_LIMIT => self.is_about_slots(),
            code => ["0A", "22", "28", "42"].iter().any(|class| code.starts_with(class)),
        }
    }

    /// Becomes the crate's error: class, remedy, and itself as the source.
    pub fn into_error(self) -> Error {
        let error = match self.is_definite() {
            true => Error::definite(self.to_string()),
            false => Error::transient(self.to_string()),
        };
        match self.remedy() {
            Some(remedy) => error.with_hint(remedy),
            None => error,
        }
        .with_source(self)
    }

    fn remedy(&self) -> Option<String> {
        let says = |word: &str| self.message.contains(word);
        let remedy = match self.code.as_str() {
            INVALID_PASSWORD => "correct the password in the URL or in PGPASSWORD",
            INVALID_AUTHORIZATION if says("pg_hba.conf") => {
                "add a line for this database, role and address to pg_hba.conf on the server and reload it \
                 (a logical replication connection needs the database's own line, not \"replication\"); where \
                 the line says hostssl, connect with sslmode=require or stronger"
            }
            INVALID_AUTHORIZATION => "create the role with LOGIN, or correct the role in the URL",
            INSUFFICIENT_PRIVILEGE if says("replication") || says("REPLICATION") || says("walsender") => {
                "ALTER ROLE <role of the URL> REPLICATION, as an administrator"
            }
            DATABASE_MISSING => "create the database, or correct its name in the URL",
            PREREQUISITE_STATE if says("wal_level") => {
                "ALTER SYSTEM SET wal_level = 'logical', then restart the server"
            }
            CONFIGURATION_LIMIT if self.is_about_slots() => {
                "drop a slot that nobody needs (SELECT slot_name, active FROM pg_replication_slots), or raise \
                 max_replication_slots and restart the server"
            }
            INTERNAL_ERROR if says("could not map filen") => {
                "PostgreSQL does not find the table that a change of this slot belongs to, which is a fault of its \
                 own: update the source to its newest minor release; if it stays, walgate drop the slot and run \
                 again, which copies the tables anew"
            }
            TOO_MANY_CONNECTIONS => "free a connection, or raise max_connections and max_wal_senders",
            _ => return self.hint.clone(),
        };
        Some(remedy.to_owned())
    }

    fn is_about_slots(&self) -> bool {
        let names_slots =
            |text: &str| text.contains("replication slots") || text.contains("max_replication_slots");
        names_slots(&self.message) || self.hint.as_deref().is_some_and(names_slots)
    }
}

/// The SQLSTATE behind an error, where a server sent one.
pub fn sqlstate_of(error: &Error) -> Option<&str> {
    server_error_of(error).map(|answer| answer.code.as_str())
}

/// The server's answer behind an error, where there was one.
pub fn server_error_of(error: &Error) -> Option<&ServerError> {
    source_of(error)
}

/// The nearest cause of type `E`.
pub(crate) fn source_of<E: std::error::Error + 'static>(error: &Error) -> Option<&E> {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<E>() {
            return Some(found);
        }
        next = cause.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: &str, message: &str) -> ServerError {
        ServerError {
            severity: "ERROR".into(),
            code: code.into(),
            message: message.into(),
            ..Default::default()
        }
    }

    #[test]
    fn class_follows_the_sqlstate_and_unknown_is_transient() {
        for code in ["28P01", "28000", "3D000", "42P01", "42501", "42704", "22P02", "0A000", "55000"] {
            assert!(answer(code, "x").into_error().is_definite(), "{code}");
        }
        for code in [
            "08006", "57P01", "57P02", "57P03", "57014", "53300", "53100", "40001", "40P01", "55006",
            "55P03", "XX000", "99999", "",
        ] {
            assert!(!answer(code, "x").into_error().is_definite(), "{code}");
        }
    }

    #[test]
    fn a_full_slot_table_is_definite_and_another_limit_is_not() {
        assert!(answer("53400", "all replication slots are in use").is_definite());
        let mut translated = answer("53400", "alle Replikations-Slots werden benutzt");
        assert!(!translated.is_definite());
        translated.hint = Some("Geben Sie einen frei oder erhöhen Sie max_replication_slots.".into());
        assert!(translated.is_definite());
    }

    #[test]
    fn remedies_are_named() {
        for (code, message, remedy) in [
            ("28P01", "password authentication failed for user \"x\"", "PGPASSWORD"),
            ("28000", "no pg_hba.conf entry for host \"::1\"", "hostssl"),
            ("28000", "role \"x\" does not exist", "create the role"),
            ("42501", "must be superuser or replication role to start walsender", "ALTER ROLE"),
            ("55000", "logical decoding requires wal_level >= logical", "wal_level = 'logical'"),
            ("53400", "all replication slots are in use", "max_replication_slots"),
            ("3D000", "database \"x\" does not exist", "create the database"),
            ("XX000", "could not map filenode \"base/1/2\" to relation OID", "walgate drop"),
        ] {
            let error = answer(code, message).into_error();
            assert!(error.hint().is_some_and(|hint| hint.contains(remedy)), "{message}");
        }
    }

    #[test]
    fn the_code_is_found_through_every_layer() {
        let error =
            Error::transient("the stream broke").with_source(answer("57P01", "terminating").into_error());
        assert_eq!(sqlstate_of(&error), Some(ADMIN_SHUTDOWN));
        assert_eq!(sqlstate_of(&Error::transient("x").with_source(std::io::Error::other("y"))), None);
        assert_eq!(error.chain(), "the stream broke: terminating (SQLSTATE 57P01)");
    }
}
