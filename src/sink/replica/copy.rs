//! COPY: many new rows at once.
//!
//! Comes in: rows of cells. Goes out: lines in COPY's text format, without the columns that the replica computes. Manual:
//! "COPY", "Text Format".

use std::pin::pin;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::Statement;

use super::apply::Trouble;
use super::params::{Cells, write_copy_line};
use super::table::Table;
use crate::wal::client::Client;

/// Lines are handed to the connection in pieces of this size, in bytes.
const PIECE_BYTES: usize = 256 << 10;

/// Writes rows as the lines that a COPY of this table takes.
pub(super) fn lines(table: &Table, cells: &Cells<'_>, rows: &[usize]) -> Vec<Vec<u8>> {
    let width = table.width();
    let written: Vec<usize> = table.inserted().map(|(at, _)| at).collect();
    let is_all = written.len() == width;
    let mut pieces = Vec::new();
    let mut piece = Vec::new();
    for row in rows {
        if piece.capacity() == 0 {
            piece.reserve(PIECE_BYTES + 4096);
        }
        let row = cells.row(*row, width);
        match is_all {
            true => write_copy_line(&mut piece, cells, row.iter()),
            false => write_copy_line(&mut piece, cells, written.iter().filter_map(|at| row.get(*at))),
        }
        if piece.len() >= PIECE_BYTES {
            pieces.push(std::mem::take(&mut piece));
        }
    }
    pieces.push(piece);
    pieces
}

/// Sends lines to a COPY, and returns when the server has taken them.
pub(super) async fn copy(
    client: &Client,
    statement: &Statement,
    pieces: Vec<Vec<u8>>,
) -> Result<(), Trouble> {
    let mut sink = pin!(client.copy_in::<_, Bytes>(statement).await?);
    for piece in pieces {
        if sink.feed(Bytes::from(piece)).await.is_err() {
            // The server has given up: the end says why.
            break;
        }
    }
    sink.finish().await?;
    Ok(())
}
