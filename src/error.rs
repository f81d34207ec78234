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

/// An error with its class, its remedy and its cause. One pointer wide.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    class: Class,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    fn new(class: Class, message: impl Into<String>) -> Self {
        Error(Box::new(Inner { class, message: message.into(), hint: None, source: None }))
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
}
