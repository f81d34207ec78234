//! One event, one line: as it was published, or shortened for a terminal.

use std::io::{BufWriter, IsTerminal, Stdout, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::runtime::Handle;

use super::Arguments;
use crate::claim::ClaimStore;
use crate::claim::resolve::resolve;
use crate::config::ClaimStoreAddress;
use crate::error::{Error, Result};

/// Of an event's data a terminal shows so many characters.
const DATA_LENGTH_MAX: usize = 120;

/// Writes events to stdout and counts them.
pub struct Printer {
    out: BufWriter<Stdout>,
    left: Option<u64>,
    is_for_people: bool,
    must_resolve: bool,
    resolver: Option<Resolver>,
    stop: Arc<AtomicBool>,
}

/// What `--resolve` needs: printing is blocking code.
pub struct Resolver {
    /// Where the objects are.
    pub store: ClaimStore,
    /// The same, as configured.
    pub address: ClaimStoreAddress,
    /// What waits for the store.
    pub runtime: Handle,
}

/// What a line for people shows, and what `--resolve` looks at.
#[derive(Deserialize)]
struct Shown<'e> {
    #[serde(default)]
    id: String,
    #[serde(default, alias = "time")]
    occurred_at: String,
    #[serde(default, alias = "walgateop")]
    op: String,
    #[serde(default, rename = "type")]
    event_type: String,
    #[serde(default, alias = "subject")]
    aggregate_id: Option<String>,
    #[serde(borrow, default)]
    data: Option<&'e RawValue>,
    #[serde(borrow, default)]
    before: Option<&'e RawValue>,
    #[serde(borrow, default, alias = "dataref")]
    claim: Option<&'e RawValue>,
}

impl Printer {
    /// As the arguments and the kind of stdout say; `stop` is set from outside.
    pub fn new(arguments: &Arguments, resolver: Option<Resolver>, stop: Arc<AtomicBool>) -> Self {
        let stdout = std::io::stdout();
        Printer {
            is_for_people: stdout.is_terminal() && !arguments.json,
            out: BufWriter::new(stdout),
            left: arguments.count,
            must_resolve: arguments.resolve,
            resolver,
            stop,
        }
    }

    /// Says that from now on nothing is missed.
    pub fn ready(&self) {
        tracing::debug!("tailing");
    }

    /// Whether it was asked to end.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Prints an event; `Break`: that was the last one, or nobody reads any more.
    ///
    /// # Errors
    /// With `--resolve`: what it claims cannot be fetched, is missing, or was altered.
    pub fn event(&mut self, value: &[u8]) -> Result<ControlFlow<()>> {
        let line = match &self.resolver {
            Some(Resolver { store, address, runtime }) => {
                let whole = runtime.block_on(resolve(store, address, value));
                // What was printed before it is out first.
                let whole = whole.inspect_err(|_| drop(self.out.flush()))?;
                line(&whole, self.is_for_people)
            }
            None if self.must_resolve => {
                without_claim(value)?;
                line(value, self.is_for_people)
            }
            None => line(value, self.is_for_people),
        };
        let written = self.out.write_all(&line).and_then(|()| self.out.write_all(b"\n"));
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        let is_over = written.is_err() || self.left == Some(0);
        Ok(if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// Shows what was printed so far; `Break`: nobody reads any more.
    pub fn flush(&mut self) -> ControlFlow<()> {
        match self.out.flush() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    /// The end; a reader that has gone is no error.
    ///
    /// # Errors
    /// None: a `Result` for the callers' last line.
    pub fn finish(mut self) -> Result<()> {
        let _ = self.flush();
        Ok(())
    }
}

/// Without a claim store there is nothing to fetch from.
fn without_claim(value: &[u8]) -> Result<()> {
    let Ok(shown) = serde_json::from_slice::<Shown<'_>>(value) else { return Ok(()) };
    match shown.claim {
        Some(claim) if claim.get() != "null" => Err(Error::definite(format!(
            "event {} travels by claim check, and the configuration names no claim store",
            shown.id
        ))
        .with_hint("leave --resolve away to see its reference, or add [claim_check] with its store")),
        _ => Ok(()),
    }
}

fn line(value: &[u8], is_for_people: bool) -> Vec<u8> {
    if is_for_people
        && let Ok(shown) = serde_json::from_slice::<Shown<'_>>(value)
        && !shown.occurred_at.is_empty()
    {
        let data = shown.data.filter(|data| data.get() != "null").or(shown.before);
        let data: String = data.map_or("", RawValue::get).chars().take(DATA_LENGTH_MAX).collect();
        let Shown { occurred_at, op, event_type, aggregate_id, .. } = shown;
        let aggregate_id = aggregate_id.unwrap_or_else(|| "-".to_owned());
        return format!("{occurred_at} {op:<8} {event_type} {aggregate_id} {data}").into_bytes();
    }
    // A value is one line of JSON, a tombstone's is null; a dead letter may be anything, and becomes a JSON string.
    let is_line = !value.contains(&b'\n') && serde_json::from_slice::<&RawValue>(value).is_ok();
    match is_line {
        true => value.to_vec(),
        false => serde_json::to_vec(&String::from_utf8_lossy(value)).expect("plain data"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &[u8] = br#"{"v":1,"id":"shop/1/2","type":"t.updated","op":"update","aggregate_id":"4","occurred_at":"2026-11-21T04:55:30Z","data":{"id":4},"before":null,"claim":null}"#;

    #[test]
    fn a_value_is_printed_as_it_was_published() {
        assert_eq!(line(EVENT, false), EVENT);
        assert_eq!(line(b"not json", false), b"\"not json\"");
        assert_eq!(line(b"{\"a\":\n1}", false), b"\"{\\\"a\\\":\\n1}\"");
    }

    #[test]
    fn people_get_the_gist() {
        let text = String::from_utf8(line(EVENT, true)).expect("UTF-8");
        assert_eq!(text, "2026-11-21T04:55:30Z update   t.updated 4 {\"id\":4}");
    }

    #[test]
    fn other_formats_and_tombstones_have_a_line_too() {
        let event = br#"{"specversion":"1.0","id":"shop/1/2","type":"t.updated","walgateop":"update","time":"2026-11-21T04:55:30Z","subject":"4","data":{"row":{"id":4}}}"#;
        let text = String::from_utf8(line(event, true)).expect("UTF-8");
        assert_eq!(text, "2026-11-21T04:55:30Z update   t.updated 4 {\"row\":{\"id\":4}}");
        let event = br#"{"before":null,"after":{"id":4},"source":{},"op":"c","ts_ms":1}"#;
        for is_for_people in [false, true] {
            assert_eq!(line(event, is_for_people), event);
            assert_eq!(line(b"null", is_for_people), b"null");
        }
    }

    #[test]
    fn a_claim_needs_a_store() {
        without_claim(EVENT).expect("it has none");
        let error =
            without_claim(br#"{"id":"shop/1/2","claim":{"uri":"s3://b/k"}}"#).expect_err("it has one");
        assert!(error.to_string().contains("shop/1/2") && error.hint().is_some());
    }
}
