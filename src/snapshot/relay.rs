//! A part of a table from the source to a replica: COPY out of one, COPY into the other, byte for byte.
//!
//! Comes in: a part and both connections. Goes out: its rows, in a transaction of their own; `sink::replica::lane` argues
//! why that is exact. Always holds: nothing is done for a row but to take it from its message, and no more than a piece waits here: while the
//! replica does not take it, nothing is read from the source.

use bytes::{Bytes, BytesMut};

use super::worker::Chunk;
use crate::error::Result;
use crate::failpoint;
use crate::route::row::TargetId;
use crate::sink::replica::Lane;
use crate::wal::connection::{CopyNext, ReplicationConnection};
use crate::wal::sql::quote_ident;

/// Rows are handed over in pieces of this size, in bytes, a row larger than that apart.
const PIECE_BYTES: usize = 64 << 10;

/// Copies a part; how many rows are committed.
///
/// # Errors
/// As the connections, and [`Lane`]'s.
pub async fn relay(
    connection: &mut ReplicationConnection,
    lane: &mut Lane,
    chunk: &Chunk,
    target: TargetId,
) -> Result<u64> {
    let mut arrival = lane.begin(target).await?;
    let columns: Vec<String> = arrival.columns().map(quote_ident).collect();
    let of_source = |error| chunk.blamed(error);
    let copy = chunk.copy(&columns.join(", "), arrival.format());
    let mut rows = connection.copy_out(&copy).await.map_err(of_source)?;
    let mut piece = BytesMut::with_capacity(2 * PIECE_BYTES);
    let count = loop {
        match rows.next_row().map_err(of_source)? {
            CopyNext::Row(line) => {
                piece.extend_from_slice(line);
                failpoint::hit("snapshot.in-table");
            }
            CopyNext::Fill => {
                rows.fill().await.map_err(of_source)?;
                continue;
            }
            CopyNext::End(count) => break count,
        }
        if piece.len() >= PIECE_BYTES {
            arrival.send(take(&mut piece)).await?;
        }
    };
    arrival.send(take(&mut piece)).await?;
    arrival.commit().await?;
    Ok(count)
}

fn take(piece: &mut BytesMut) -> Bytes {
    std::mem::replace(piece, BytesMut::with_capacity(2 * PIECE_BYTES)).freeze()
}
