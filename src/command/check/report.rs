//! What `check` has found: faults, warnings and notes, each with its place and its remedy.
//!
//! Comes in: findings, from several tasks at once, also from one that is cut off by its deadline. Goes
//! out: a list for people, or JSON. A fault keeps `walgate run` from doing what the file asks for; a
//! warning does not; a note only explains.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex};

use serde::Serialize;

use crate::config::Faults;
use crate::error::Error;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It has to be mended first.
    Fault,
    /// It runs, with a consequence that the message tells.
    Warning,
    /// Good to know.
    Note,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    #[serde(skip)]
    severity: Severity,
    /// The key in the configuration file that it is about.
    pub key: String,
    /// The line of the file, where the file itself is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The tables that it is about, if it is about tables.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
    /// What is wrong.
    pub message: String,
    /// The SQL or the line that mends it.
    pub remedy: String,
}

/// What was found so far; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Report(Arc<Mutex<Vec<Finding>>>);

/// The form of `--json`.
#[derive(Serialize)]
struct Json {
    faults: Vec<Finding>,
    warnings: Vec<Finding>,
    notes: Vec<Finding>,
}

impl Report {
    /// The faults of a configuration file.
    pub fn of_file(faults: &Faults) -> Report {
        let report = Report::default();
        for fault in faults {
            report.add(Finding {
                severity: Severity::Fault,
                key: fault.key.clone(),
                line: fault.line,
                tables: vec![],
                message: fault.message.clone(),
                remedy: fault.remedy.clone(),
            });
        }
        report
    }

    /// Adds a fault.
    pub fn fault(&self, key: &str, message: impl Into<String>, remedy: impl Into<String>) {
        self.add_about(Severity::Fault, key, &[], message, remedy);
    }

    /// Adds a warning.
    pub fn warning(&self, key: &str, message: impl Into<String>, remedy: impl Into<String>) {
        self.add_about(Severity::Warning, key, &[], message, remedy);
    }

    /// Adds a note.
    pub fn note(&self, key: &str, message: impl Into<String>, remedy: impl Into<String>) {
        self.add_about(Severity::Note, key, &[], message, remedy);
    }

    /// Adds an error as a fault, with its own remedy or else `remedy`.
    pub fn error(&self, key: &str, error: &Error, remedy: &str) {
        self.fault(key, error.chain(), error.hint().unwrap_or(remedy));
    }

    /// Adds a finding about tables.
    pub fn add_about(
        &self,
        severity: Severity,
        key: &str,
        tables: &[String],
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let (message, remedy) = (message.into(), remedy.into());
        self.add(Finding {
            severity,
            key: key.to_owned(),
            line: None,
            tables: tables.to_vec(),
            message,
            remedy,
        });
    }

    fn add(&self, finding: Finding) {
        let mut findings = self.0.lock().expect("no holder panics");
        // Two steps may find the same: it is told once.
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }

    /// Those of one severity, in the order in which they were found.
    pub fn of(&self, severity: Severity) -> Vec<Finding> {
        let findings = self.0.lock().expect("no holder panics");
        findings.iter().filter(|finding| finding.severity == severity).cloned().collect()
    }

    /// Whether something has to be mended.
    pub fn has_faults(&self) -> bool {
        !self.of(Severity::Fault).is_empty()
    }

    /// Prints it to stdout.
    pub fn print(&self, json: bool) {
        let text = if json { self.json() } else { self.text(std::io::stdout().is_terminal()) };
        // A reader that has gone away (`| head`) does not want the rest.
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    fn json(&self) -> String {
        let json = Json {
            faults: self.of(Severity::Fault),
            warnings: self.of(Severity::Warning),
            notes: self.of(Severity::Note),
        };
        serde_json::to_string(&json).expect("plain data")
    }

    fn text(&self, colours: bool) -> String {
        let mut text = String::new();
        let kinds = [
            (Severity::Fault, "✗", "31", "fault"),
            (Severity::Warning, "!", "33", "warning"),
            (Severity::Note, "·", "2", "note"),
        ];
        let mut counts = Vec::new();
        for (severity, mark, colour, word) in kinds {
            let found = self.of(severity);
            for finding in &found {
                let mark = if colours { format!("\x1b[{colour}m{mark}\x1b[0m") } else { mark.to_owned() };
                let line = finding.line.map_or(String::new(), |line| format!(" (line {line})"));
                text.push_str(&format!("{mark} {}{line}: {}\n", finding.key, finding.message));
                if !finding.remedy.is_empty() {
                    text.push_str(&format!(
                        "    remedy: {}\n",
                        finding.remedy.replace('\n', "\n            ")
                    ));
                }
            }
            counts.push(format!("{} {word}{}", found.len(), if found.len() == 1 { "" } else { "s" }));
        }
        text.push_str(&counts.join(", "));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_come_first_and_the_last_line_counts() {
        let report = Report::default();
        report.note("hub", "good to know", "");
        report.warning("source", "w", "do");
        report.fault("source.url", "wrong", "SQL 1;\nSQL 2;");
        report.fault("source.url", "wrong", "SQL 1;\nSQL 2;");
        assert_eq!(
            report.text(false),
            "✗ source.url: wrong\n    remedy: SQL 1;\n            SQL 2;\n! source: w\n    remedy: do\n· hub: good to know\n1 fault, 1 warning, 1 note"
        );
        let json: serde_json::Value = serde_json::from_str(&report.json()).expect("it is JSON");
        assert_eq!(json["faults"][0]["key"], "source.url");
        assert_eq!(json["warnings"].as_array().map(Vec::len), Some(1));
        assert!(report.has_faults());
    }
}
