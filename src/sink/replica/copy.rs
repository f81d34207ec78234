//! COPY: many new rows at once.
//!
//! Comes in: rows of cells. Goes out: the same in COPY's binary format (`binary.rs`) or as lines of text, without the columns
//! that the replica computes. Manual: "COPY", "Text Format".

use std::pin::pin;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::Statement;

use super::apply::Trouble;
use super::binary::{self, Form};
use super::params::{Cells, write_copy_line};
use super::statements::Kind;
use super::table::Table;
use crate::wal::client::Client;
use crate::wal::connection::{BINARY_HEADER, BINARY_TRAILER};

/// Rows are handed to the connection in pieces of this size, in bytes.
const PIECE_BYTES: usize = 256 << 10;

/// Rows as a COPY of their table takes them.
pub(super) struct Copied {
    /// [`Kind::Copy`] or [`Kind::CopyBinary`].
    pub kind: Kind,
    pieces: Vec<Vec<u8>>,
}

impl Copied {
    /// In the binary format if the table and all values have one, else as lines of text.
    pub fn of(table: &Table, cells: &Cells<'_>, rows: &[usize]) -> Self {
        let forms = table.forms.as_deref();
        match forms.and_then(|forms| pieces(table, cells, rows, Some(forms))) {
            Some(pieces) => Copied { kind: Kind::CopyBinary, pieces },
            None => {
                let pieces = pieces(table, cells, rows, None).expect("every value has its text");
                Copied { kind: Kind::Copy, pieces }
            }
        }
    }
}

/// `None`: a value has no binary form.
fn pieces(table: &Table, cells: &Cells<'_>, rows: &[usize], forms: Option<&[Form]>) -> Option<Vec<Vec<u8>>> {
    let width = table.width();
    let written: Vec<usize> = table.inserted().map(|(at, _)| at).collect();
    let is_all = written.len() == width;
    let mut pieces = Vec::new();
    let mut piece = forms.map_or_else(Vec::new, |_| BINARY_HEADER.to_vec());
    for row in rows {
        if piece.capacity() < PIECE_BYTES {
            piece.reserve(PIECE_BYTES + 4096);
        }
        let row = cells.row(*row, width);
        let some = written.iter().filter_map(|at| row.get(*at));
        match (forms, is_all) {
            (Some(forms), true) => binary::write_row(&mut piece, cells, forms, row.iter())?,
            (Some(forms), false) => binary::write_row(&mut piece, cells, forms, some)?,
            (None, true) => write_copy_line(&mut piece, cells, row.iter()),
            (None, false) => write_copy_line(&mut piece, cells, some),
        }
        if piece.len() >= PIECE_BYTES {
            pieces.push(std::mem::take(&mut piece));
        }
    }
    if forms.is_some() {
        piece.extend_from_slice(BINARY_TRAILER);
    }
    pieces.push(piece);
    Some(pieces)
}

/// Sends rows to a COPY, and returns when the server has taken them.
pub(super) async fn copy(client: &Client, statement: &Statement, copied: Copied) -> Result<(), Trouble> {
    let mut sink = pin!(client.copy_in::<_, Bytes>(statement).await?);
    for piece in copied.pieces {
        if sink.feed(Bytes::from(piece)).await.is_err() {
            // The server has given up: the end says why.
            break;
        }
    }
    sink.finish().await?;
    Ok(())
}
