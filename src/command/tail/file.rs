//! Follows the files of a file hub, as far as `checkpoint.json` says that they are committed: what
//! lies beyond may be cut off after a crash.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use super::Selection;
use super::printer::Printer;
use crate::error::{Error, Result};
use crate::sink::file::committed_lengths;

/// Between two looks at the checkpoint.
const LOOK_TIME: Duration = Duration::from_millis(100);

/// Prints until the printer has enough.
///
/// # Errors
/// See [`super::run`].
pub fn follow(path: &Path, selection: &Selection, mut printer: Printer) -> Result<()> {
    let lengths = committed_lengths(path)?;
    selection.check(lengths.keys())?;
    let mut read: BTreeMap<String, u64> =
        if selection.from_beginning { BTreeMap::new() } else { lengths.clone() };
    printer.ready();
    loop {
        let lengths = committed_lengths(path)?;
        for topic in selection.choose(lengths.keys()) {
            let committed = lengths.get(&topic).copied().unwrap_or(0);
            let from = read.entry(topic.clone()).or_insert(0);
            if *from > committed {
                // The directory was emptied, and begun anew.
                *from = 0;
            }
            if *from < committed {
                let file = path.join(format!("{topic}.jsonl"));
                if print(&file, *from, committed, &mut printer)?.is_break() {
                    return printer.finish();
                }
                *from = committed;
            }
        }
        if printer.flush().is_break() || printer.is_stopped() {
            return Ok(());
        }
        std::thread::sleep(LOOK_TIME);
    }
}

/// Prints the lines between two positions of a file.
fn print(path: &Path, from: u64, to: u64, printer: &mut Printer) -> Result<ControlFlow<()>> {
    let failed = |error: std::io::Error| {
        Error::transient(format!("{} cannot be read", path.display())).with_source(error)
    };
    let mut file = File::open(path).map_err(failed)?;
    file.seek(SeekFrom::Start(from)).map_err(failed)?;
    let mut lines = BufReader::with_capacity(1 << 16, file.take(to.saturating_sub(from)));
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).map_err(failed)? > 0 {
        let event = line.strip_suffix(b"\n").unwrap_or(&line);
        if printer.is_stopped() || printer.event(event)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        line.clear();
    }
    Ok(ControlFlow::Continue(()))
}
