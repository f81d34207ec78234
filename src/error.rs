//! The error that crosses stages: what went wrong, whether trying again can help, and the remedy.
//!
//! A stage's own errors are small enums; where they leave the stage they become an [`Error`], which
//! answers the two questions that the engine and the user ask: *does it pass by itself?*
//! ([`Error::is_definite`]) and *what do I do?* ([`Error::hint`]). Unknown means transient.

use std::fmt;

/// A result whose error is the crate's own.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Connections, restarts, time-outs: retried with back-off.
    Transient,
    /// Nothing but a person can mend it: the pipeline stops and says so.
    Definite,
    /// Another process owns the pipeline now: become its standby.
    Fenced,
}

/// What of a table an error lies in: it decides which setting says what becomes of the table (`pipeline::parking`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A row, the copy, or a right: `on_table_error`.
    Rows,
    /// The definitions of the two sides, or the rule, do not fit each other any more: `on_schema_change`.
    Definition,
    /// The same, and following has been tried.
    Unfollowable,
}

/// The table that an error belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfTable {
    /// Its OID on the source, of a partitioned table: its root's.
    pub oid: u32,
    /// `schema.table` on the source.
    pub name: String,
    /// See [`Fault`].
    pub fault: Fault,
}

/// An error with its class, its remedy and its cause. One pointer wide.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    class: Class,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    table: Option<OfTable>,
    parts: Vec<Error>,
}

impl Error {
    fn new(class: Class, message: impl Into<String>) -> Self {
        let message = message.into();
        Error(Box::new(Inner { class, message, hint: None, source: None, table: None, parts: Vec::new() }))
    }

    /// An error that passes by itself: tried again with back-off.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(Class::Transient, message)
    }

    /// An error that stays until somebody mends its cause.
    pub fn definite(message: impl Into<String>) -> Self {
        Self::new(Class::Definite, message)
    }

    /// Another process has taken over.
    pub fn fenced(message: impl Into<String>) -> Self {
        Self::new(Class::Fenced, message)
    }

    /// Attaches the remedy: a sentence, a statement or a line of configuration.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Attaches the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Puts what was being done in front of the message: `copying public.orders: …`.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.0.message = format!("{doing}: {}", self.0.message);
        self
    }

    /// Says which table it belongs to, unless that is said already.
    #[must_use]
    pub fn of_table(mut self, oid: u32, name: &str, fault: Fault) -> Self {
        self.0.table.get_or_insert_with(|| OfTable { oid, name: name.to_owned(), fault });
        self
    }

    /// Says more precisely of each table in it what it lies in.
    #[must_use]
    pub fn refine(mut self, refine: impl Fn(&mut OfTable)) -> Self {
        let own = self.0.table.iter_mut();
        let of_parts = self.0.parts.iter_mut().filter_map(|part| part.0.table.as_mut());
        own.chain(of_parts).for_each(refine);
        self
    }

    /// Attaches the errors that it is made of.
    #[must_use]
    pub fn with_parts(mut self, parts: Vec<Error>) -> Self {
        self.0.parts = parts;
        self
    }

    /// The errors that it is made of: itself, where it is one.
    pub fn parts(&self) -> Vec<&Error> {
        match self.0.parts.is_empty() {
            true => vec![self],
            false => self.0.parts.iter().collect(),
        }
    }

    /// The table that it belongs to, where it belongs to one alone.
    pub fn table(&self) -> Option<&OfTable> {
        self.0.table.as_ref()
    }

    /// The error's class.
    pub fn class(&self) -> Class {
        self.0.class
    }

    /// Whether it stays until somebody mends its cause.
    pub fn is_definite(&self) -> bool {
        self.0.class == Class::Definite
    }

    /// The remedy, where one is known.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The message and its causes on one line, without the hint.
    pub fn chain(&self) -> String {
        let mut text = self.0.message.clone();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            next = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_every_cause_once() {
        let error = Error::transient("the stream broke")
            .with_source(std::io::Error::other("connection reset"))
            .context("slot walgate_hub");
        assert_eq!(error.chain(), "slot walgate_hub: the stream broke: connection reset");
        assert!(!error.is_definite());
    }

    #[test]
    fn a_table_is_said_once_and_kept() {
        let of_table = |oid| Error::definite("no").of_table(oid, "public.t", Fault::Definition);
        let error = of_table(7).context("replica r").of_table(8, "public.u", Fault::Rows);
        assert_eq!(error.table().map(|table| (table.oid, table.fault)), Some((7, Fault::Definition)));
        let several = Error::definite("2 faults").with_parts(vec![of_table(1), of_table(2)]).context("start");
        let oids: Vec<_> = several.parts().iter().filter_map(|part| part.table()).map(|t| t.oid).collect();
        assert_eq!(oids, [1, 2]);
        assert_eq!(error.parts().len(), 1);
    }
}
