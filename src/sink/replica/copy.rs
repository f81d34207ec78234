//! COPY: many new rows at once, and the lines of an initial copy.
//!
//! Comes in: rows of cells, or lines in COPY's text format. Goes out: the same lines, without the columns that the replica
//! computes. Manual: "COPY", "Text Format".

use std::pin::pin;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::Statement;

use super::apply::{Applier, Trouble};
use super::params::{Cells, write_copy_line};
use super::statements::{Kind, Mask};
use super::table::Table;
use crate::error::Error;
use crate::wal::client::Client;

/// Lines are handed to the connection in pieces of this size, in bytes.
const COPY_PIECE_BYTES: usize = 256 << 10;

impl Applier {
    pub(super) async fn copy_rows(
        &mut self,
        client: &Client,
        cells: &Cells<'_>,
        index: usize,
        rows: &[usize],
    ) -> Result<(), Trouble> {
        let table = self.table(index);
        let prepared = self.prepared(client, index, Kind::Copy, Mask::new()).await?;
        let width = table.width();
        let written: Vec<usize> = table.inserted().map(|(at, _)| at).collect();
        let is_all = written.len() == width;
        let mut rows = rows.iter();
        copy(client, &prepared.statement, || {
            let mut piece = Vec::with_capacity(COPY_PIECE_BYTES + 4096);
            while piece.len() < COPY_PIECE_BYTES
                && let Some(row) = rows.next()
            {
                let row = cells.row(*row, width);
                match is_all {
                    true => write_copy_line(&mut piece, cells, row.iter()),
                    false => write_copy_line(&mut piece, cells, written.iter().filter_map(|at| row.get(*at))),
                }
            }
            piece
        })
        .await
    }

    /// Lines of the initial copy, as they stand.
    pub(super) async fn copy_lines(
        &mut self,
        client: &Client,
        index: usize,
        lines: &[u8],
    ) -> Result<(), Trouble> {
        let table = self.table(index);
        let prepared = self.prepared(client, index, Kind::Copy, Mask::new()).await?;
        let stripped;
        let mut rest = match table.columns.iter().any(|column| column.is_generated) {
            true => {
                stripped = without_generated(&table, lines);
                stripped.as_slice()
            }
            false => lines,
        };
        let copied = copy(client, &prepared.statement, || {
            let (piece, after) = rest.split_at(rest.len().min(COPY_PIECE_BYTES));
            rest = after;
            piece.to_vec()
        });
        copied.await.map_err(|trouble| match trouble {
            Trouble::Again(error) => Trouble::Failed(refused_copy(&table, &self.replica, error)),
            failed => failed,
        })
    }
}

/// A row of the initial copy that the replica does not take.
fn refused_copy(table: &Table, replica: &str, error: Error) -> Error {
    let hint = match crate::wal::sqlstate::sqlstate_of(&error) {
        Some("23505" | "23P01") => {
            format!("the table has rows that do not come from the source: TRUNCATE {}", table.name)
        }
        Some("23514") => format!("drop the check of {}, or filter such rows out in the rule", table.name),
        _ => format!("make the columns of {} like those of {}", table.name, table.target.relation),
    };
    Error::definite(format!(
        "copying {} into {} on the replica {replica}: a row is refused",
        table.target.relation, table.name
    ))
    .with_source(error)
    .with_hint(hint)
}

/// The lines without the fields that the replica computes; a tab is never part of a field's text.
fn without_generated(table: &Table, lines: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(lines.len());
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut is_first = true;
        for (field, column) in line.split(|byte| *byte == b'\t').zip(&table.columns) {
            if column.is_generated {
                continue;
            }
            if !is_first {
                out.push(b'\t');
            }
            is_first = false;
            out.extend_from_slice(field);
        }
        out.push(b'\n');
    }
    out
}

async fn copy(
    client: &Client,
    statement: &Statement,
    mut next: impl FnMut() -> Vec<u8>,
) -> Result<(), Trouble> {
    let mut sink = pin!(client.copy_in::<_, Bytes>(statement).await?);
    loop {
        let piece = next();
        if piece.is_empty() {
            break;
        }
        if sink.feed(Bytes::from(piece)).await.is_err() {
            // The server has given up: the end says why.
            break;
        }
    }
    sink.finish().await?;
    Ok(())
}
