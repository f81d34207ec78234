//! COPY: many new rows at once.
//!
//! Comes in: rows of cells. Goes out: lines in COPY's text format, without the columns that the replica computes. Manual:
//! "COPY", "Text Format".

use std::pin::pin;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::Statement;

use super::apply::{Applier, Trouble};
use super::params::{Cells, write_copy_line};
use super::statements::{Kind, Mask};
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
