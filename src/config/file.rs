//! What was typed: replication.toml as TOML, read section by section, key by key.
//!
//! In comes the text, out come values of the asked type; a key that is not there is `None`. Nothing stops at
//! the first fault: what cannot be used is reported to the [`Reader`], with its key path and line, and reads as
//! if it were not there. So one pass finds everything, and the caller asks [`Reader::finish`] at its end
//! whether what it has built may be used. Messages quote what was typed, before the environment was put in,
//! and nothing of a URL or of a free property: those hold secrets.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::env::{self, Place};
use super::fault::{Fault, Faults};
use super::schema;

/// Reads one file and collects its faults.
pub(super) struct Reader<'a> {
    text: &'a str,
    env: &'a dyn Fn(&str) -> Option<String>,
    faults: RefCell<Vec<Fault>>,
}

/// One table of the file, or the absence of one, which has no keys.
#[derive(Clone)]
pub(super) struct Section<'a> {
    reader: &'a Reader<'a>,
    table: Option<&'a DeTable<'a>>,
    /// The key path of the section, without a dot at its end.
    path: String,
    offset: Option<usize>,
    /// What stands there is no table; said already, so nothing is missed in it.
    is_wrong: bool,
}

/// A value at its place.
#[derive(Clone, Copy)]
struct Typed<'a> {
    value: &'a DeValue<'a>,
    offset: usize,
}

/// Reads TOML.
///
/// # Errors
/// Every place where the text is no TOML. The parser's excerpt of the line is left out: it may show a password.
pub(super) fn parse_toml(text: &str) -> Result<DeTable<'_>, Faults> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let faults = errors.iter().map(|error| Fault {
        key: String::new(),
        line: error.span().map(|span| line_at(text, span.start)),
        message: format!("not TOML: {}", error.message()),
        remedy: "mend the syntax at this line; see https://toml.io".to_owned(),
    });
    match Faults::collect(faults.collect()) {
        Some(faults) => Err(faults),
        None => Ok(table.into_inner()),
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str, env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Reader { text, env, faults: RefCell::new(Vec::new()) }
    }

    /// The whole file as a section.
    pub(super) fn root(&'a self, table: &'a DeTable<'a>) -> Section<'a> {
        Section { reader: self, table: Some(table), path: String::new(), offset: None, is_wrong: false }
    }

    /// All faults, when there are any.
    pub(super) fn finish(self) -> Result<(), Faults> {
        Faults::collect(self.faults.into_inner()).map_or(Ok(()), Err)
    }

    fn report(&self, key: String, offset: Option<usize>, message: String, remedy: String) {
        let line = offset.map(|offset| line_at(self.text, offset));
        self.faults.borrow_mut().push(Fault { key, line, message, remedy });
    }
}

impl<'a> Section<'a> {
    /// The key path of the section: `table[2]`.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Whether the file has this section at all.
    pub(super) fn is_there(&self) -> bool {
        self.table.is_some()
    }

    /// Whether the section has this key, with whatever value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.typed(key).is_some()
    }

    /// Reports a fault of one key, at the key's line, else at the section's.
    pub(super) fn fault(&self, key: &str, message: impl Into<String>, remedy: impl Into<String>) {
        let offset = self.typed(key).map(|typed| typed.offset).or(self.offset);
        self.reader.report(self.key_path(key), offset, message.into(), remedy.into());
    }

    /// Reports a value that does not do, quoting it as it was typed.
    pub(super) fn fault_of_value(&self, key: &str, message: &str, remedy: impl Into<String>) {
        let quoted = match self.typed(key).map(|typed| typed.value) {
            Some(DeValue::String(text)) => format!("{text:?} "),
            Some(DeValue::Integer(number)) => format!("{number} "),
            _ => String::new(),
        };
        self.fault(key, format!("{quoted}{message}"), remedy);
    }

    /// Reports a key that has to be there and is not.
    pub(super) fn fault_of_missing(&self, key: &str, what: &str, remedy: &str) {
        if !self.is_wrong {
            self.fault(key, format!("is missing: {what}"), remedy);
        }
    }

    /// Reports what a later version will do.
    pub(super) fn fault_of_later(&self, key: &str, what: &str, remedy: impl Into<String>) {
        self.fault(key, format!("{what} is not available in this version"), remedy);
    }

    /// Reports every key that is not one of `known`.
    pub(super) fn allow(&self, known: &[&str]) {
        for (key, _) in self.table.into_iter().flatten() {
            let name: &str = key.get_ref();
            if !known.contains(&name) {
                let remedy = schema::remedy_for_unknown(name, known);
                self.reader.report(
                    self.key_path(name),
                    Some(key.span().start),
                    "unknown key".to_owned(),
                    remedy,
                );
            }
        }
    }

    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        match self.typed(key)?.value {
            DeValue::Boolean(value) => Some(*value),
            other => self.fault_of_type(key, "true or false", other),
        }
    }

    pub(super) fn integer(&self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let number = match self.typed(key)?.value {
            DeValue::Integer(number) => number,
            other => return self.fault_of_type(key, "an integer, without unit or quotes", other),
        };
        let value = u64::from_str_radix(number.as_str(), number.radix()).ok().filter(|n| range.contains(n));
        if value.is_none() {
            let remedy = match (*range.start(), *range.end()) {
                (least, u64::MAX) => format!("write {least} or more"),
                (least, most) => format!("write a number from {least} to {most}"),
            };
            self.fault_of_value(key, "is out of range", remedy);
        }
        value
    }

    /// A string that is not empty.
    pub(super) fn string(&self, key: &str) -> Option<String> {
        self.text_at(key, self.typed(key)?, Place::Text)
    }

    /// A string that is a URL: the environment is percent-encoded into it.
    pub(super) fn url(&self, key: &str) -> Option<String> {
        self.text_at(key, self.typed(key)?, Place::Url)
    }

    /// One of a few words; `later` are those that another version will know.
    pub(super) fn choice<T: Copy>(&self, key: &str, words: &[(&str, T)], later: &[&str]) -> Option<T> {
        let text = self.string(key)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let listed = names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(" or ");
        if later.contains(&text.as_str()) {
            self.fault_of_later(key, &format!("{key} = {text:?}"), format!("write {listed}"));
        } else {
            let remedy = match schema::nearest(&text, &names) {
                Some(near) => format!("did you mean {near:?}? known are {listed}"),
                None => format!("write {listed}"),
            };
            self.fault_of_value(key, &format!("is no {key}"), remedy);
        }
        None
    }

    /// A list of strings, at least one, none of them empty or twice.
    pub(super) fn strings(&self, key: &str) -> Option<Vec<String>> {
        let items = match self.typed(key)?.value {
            DeValue::Array(items) => items,
            DeValue::String(text) if !text.is_empty() => {
                self.fault(key, "expected a list, found a string", format!("write {key} = [{text:?}]"));
                return None;
            }
            other => return self.fault_of_type(key, "a list of strings", other),
        };
        if items.is_empty() {
            self.fault(key, "the list is empty", format!("name at least one, or remove {key}"));
            return None;
        }
        let mut seen = BTreeSet::new();
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let item_key = format!("{key}[{index}]");
            let text = self.text_at(&item_key, Typed::of(item), Place::Text)?;
            if !seen.insert(text.clone()) {
                self.fault_at(&item_key, item, "is in the list twice", "remove one of the two");
            }
            texts.push(text);
        }
        Some(texts)
    }

    /// A table of free keys, whose values are strings, numbers or booleans. Keys with dots may be written
    /// without quotes: `a.b = 1` is `"a.b" = 1`.
    pub(super) fn properties(&self, key: &str) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        self.section(key).collect_properties("", &mut found);
        found
    }

    /// The section under `key`, an absent one if it is not there or no table.
    pub(super) fn section(&self, key: &str) -> Section<'a> {
        let absent = Section {
            reader: self.reader,
            table: None,
            path: self.key_path(key),
            offset: self.offset,
            is_wrong: false,
        };
        let Some(typed) = self.typed(key) else { return absent };
        match typed.value {
            DeValue::Table(table) => Section { table: Some(table), offset: Some(typed.offset), ..absent },
            other => {
                let header = self.key_path(key);
                let written = match other {
                    DeValue::Array(_) => format!("write [{header}], with single brackets"),
                    _ => format!("write it as a section: [{header}]"),
                };
                self.fault(key, format!("expected a section, found {}", article(other)), written);
                Section { is_wrong: true, ..absent }
            }
        }
    }

    /// The entries of `[[key]]`.
    pub(super) fn sections(&self, key: &str) -> Vec<Section<'a>> {
        let Some(typed) = self.typed(key) else { return Vec::new() };
        let items = match typed.value {
            DeValue::Array(items) => items,
            other => {
                let message = format!("expected a list of sections, found {}", article(other));
                self.fault(key, message, format!("write [[{key}]], with double brackets"));
                return Vec::new();
            }
        };
        if items.is_empty() {
            self.fault(key, "the list is empty", format!("write [[{key}]] sections, or remove {key}"));
        }
        let mut sections = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let path = format!("{}[{index}]", self.key_path(key));
            match item.get_ref() {
                DeValue::Table(table) => {
                    let offset = Some(item.span().start);
                    sections.push(Section {
                        reader: self.reader,
                        table: Some(table),
                        path,
                        offset,
                        is_wrong: false,
                    });
                }
                other => {
                    let message = format!("expected a section, found {}", article(other));
                    let remedy = format!("write each entry under [[{key}]]");
                    self.fault_at(&format!("{key}[{index}]"), item, &message, &remedy);
                }
            }
        }
        sections
    }

    fn collect_properties(&self, prefix: &str, found: &mut BTreeMap<String, String>) {
        for (key, item) in self.table.into_iter().flatten() {
            let name: &str = key.get_ref();
            let full = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
            let value = match item.get_ref() {
                DeValue::Table(_) => {
                    self.section(name).collect_properties(&full, found);
                    continue;
                }
                DeValue::Boolean(value) => Some(value.to_string()),
                DeValue::Integer(value) => Some(value.to_string()),
                DeValue::Float(value) => Some(value.to_string()),
                DeValue::String(text) if text.is_empty() => Some(String::new()),
                DeValue::String(_) => self.text_at(name, Typed::of(item), Place::Text),
                other => self.fault_of_type(name, "a string, a number, true or false", other),
            };
            let Some(value) = value else { continue };
            if found.insert(full, value).is_some() {
                self.fault(name, "is set twice, with and without quotes", "remove one of the two");
            }
        }
    }

    /// The string, with the environment put in; `None` and a fault if it is none, or empty.
    fn text_at(&self, key: &str, typed: Typed<'a>, place: Place) -> Option<String> {
        let report = |message: String, remedy: String| {
            self.reader.report(self.key_path(key), Some(typed.offset), message, remedy);
        };
        let DeValue::String(text) = typed.value else {
            let found = article(typed.value);
            let remedy = match typed.value {
                DeValue::Integer(number) => format!("write it in quotes: \"{number}\""),
                _ => "write it in quotes".to_owned(),
            };
            report(format!("expected a string, found {found}"), remedy);
            return None;
        };
        match env::expand(text, place, self.reader.env) {
            Ok(text) if text.is_empty() => {
                report("is empty".to_owned(), "write a value, or remove the key".to_owned());
                None
            }
            Ok(text) => Some(text),
            Err(faults) => {
                for fault in faults {
                    report(fault.to_string(), fault.remedy());
                }
                None
            }
        }
    }

    fn fault_of_type<T>(&self, key: &str, expected: &str, found: &DeValue<'_>) -> Option<T> {
        self.fault(
            key,
            format!("expected {expected}, found {}", article(found)),
            format!("write {} as {expected}", leaf(key)),
        );
        None
    }

    fn fault_at(&self, key: &str, item: &Spanned<DeValue<'_>>, message: &str, remedy: &str) {
        self.reader.report(
            self.key_path(key),
            Some(item.span().start),
            message.to_owned(),
            remedy.to_owned(),
        );
    }

    fn typed(&self, key: &str) -> Option<Typed<'a>> {
        self.table?.get(key).map(Typed::of)
    }

    /// `key` may carry an index, `columns[1]`; a name that is not bare is quoted.
    fn key_path(&self, key: &str) -> String {
        let is_bare = key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '[' | ']'));
        let key = if is_bare && !key.is_empty() { key.to_owned() } else { format!("{key:?}") };
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }
}

impl<'a> Typed<'a> {
    fn of(item: &'a Spanned<DeValue<'a>>) -> Self {
        Typed { value: item.get_ref(), offset: item.span().start }
    }
}

fn leaf(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}
