//! The second way to read a slot: a backlog, in chunks, by the SQL functions of logical decoding.
//!
//! The walsender sends message by message, each with a send() of its own; the SQL functions decode into a store and send
//! that in bulk, for half of the server's CPU time and less (docs/decisions/backlog-reader.md). Comes in: a slot that nobody
//! reads. Goes out: the same messages at the same positions as from its stream, as [`Frame`]s.
//!
//! Why it is the same: the reader has a temporary copy of the slot, with its `confirmed_flush_lsn` and so the same first
//! transaction, and passes the same options under the same session settings; pgoutput does not know who calls it.
//! Relation messages come again with every chunk, as with every connection. Always holds:
//! - a chunk ends with a whole transaction, and its end is a keepalive: everything that committed before that LSN has been
//!   received. Only there may the stream take over, and it starts there;
//! - what is received and not taken is at most [`Settings::queue_bytes_max`], one row of any size apart;
//! - the slot itself is moved only to what has been read and is durable, as the pipeline says ([`Backlog::confirm`]);
//! - whatever is wrong with a chunk of which nothing was handed out is no error: it is over, and the stream says the truth.
//!
//! All of it runs on a thread of its own, so that the socket is drained and the next chunk asked for while the pipeline
//! is busy: the server decodes that one meanwhile. Manual: "Replication Management Functions", "COPY", "Binary Format".

mod chunk;
mod control;
mod reader;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::error::{Error, Result};
use crate::failpoint;
use crate::lsn::Lsn;
use crate::wal::cursor::{Cursor, DecodeError};
use crate::wal::frame::Frame;
use crate::wal::sqlstate::Notice;
use crate::wal::timestamp::Timestamp;
use crate::wal::url::ConnectUrl;

/// Items on their way to the pipeline; what bounds them is their size.
const ITEMS_MAX: usize = 256;
/// With so many left the stream is to be started: what it reads again meanwhile costs the server a processor, which the
/// destination may need for the rest.
const ITEMS_LEFT_MAX: usize = 32;

/// What the reader is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the source is.
    pub url: ConnectUrl,
    /// What its two sessions are called, with what each is for behind it.
    pub application_name: String,
    /// The slot.
    pub slot: String,
    /// The output plugin's options: those of the stream.
    pub options: Vec<(String, String)>,
    /// What a chunk may take on the source's disk.
    pub temp_bytes_max: u64,
    /// What decoding may hold in the source's memory; 0: as the server has it.
    pub decoding_memory_bytes_max: u64,
    /// What is received and not taken yet.
    pub queue_bytes_max: usize,
    /// A larger row is left to the stream.
    pub row_bytes_max: usize,
    /// Messages of the smallest chunk; it ends with the transaction in which it reaches them.
    pub changes_min: u64,
}

/// A slot's backlog as it is read. Dropping it ends the reader and its temporary slot.
#[derive(Debug)]
pub struct Backlog {
    items: mpsc::Receiver<Item>,
    block: Option<Block>,
    /// The end of a chunk, not handed out yet.
    end: Option<(Lsn, Timestamp)>,
    read_to: Lsn,
    notices: Vec<Notice>,
    over: Option<Through>,
    confirmed: watch::Sender<Lsn>,
    /// Comes before the last item is sent; `None`: it has come, or will not.
    through: Option<oneshot::Receiver<Through>>,
    finish: Option<oneshot::Sender<Lsn>>,
    /// Resolves when the thread has ended; `None`: it has been waited for.
    ended: Option<oneshot::Receiver<()>>,
}

/// What the reader's thread hands over, in order.
#[derive(Debug)]
enum Item {
    Notices(Vec<Notice>),
    Rows(Block),
    /// A chunk has ended, with a transaction: everything that committed before this was received.
    End(Lsn, Timestamp),
    /// Nothing more comes; the last thing before it is the end of a chunk.
    Over(Through),
    Failed(Error),
}

/// What [`Backlog::fill`] has waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Something came, of so many bytes.
    Bytes(usize),
    /// Said at most once, before it is over: the stream may be started now. Not said where it costs the server less once
    /// everything is durable.
    Through(Through),
}

/// The server has sent everything, though it is not all taken yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Through {
    /// The end of the last whole chunk: where the stream is to begin.
    pub read_to: Lsn,
    /// Why nothing more is read by SQL.
    pub why: String,
}

/// Rows as COPY sends them, one behind the other.
#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    taken: usize,
    received_at: Timestamp,
    /// Its share of the queue, given back with it.
    _room: OwnedSemaphorePermit,
}

impl Backlog {
    /// Connects and copies the slot; reading has begun when it returns.
    ///
    /// # Errors
    /// Any, and none that the stream would not name: no free slot, no right, no source.
    pub async fn open(settings: Settings) -> Result<Backlog> {
        let (items_of_reader, items) = mpsc::channel(ITEMS_MAX);
        let (confirmed, confirmed_of_reader) = watch::channel(Lsn::ZERO);
        let (finish, finish_of_reader) = oneshot::channel();
        let (through_of_reader, through) = oneshot::channel();
        let (opening, opened) = oneshot::channel();
        let (ending, ended) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name("backlog".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                match runtime {
                    Ok(runtime) => runtime.block_on(reader::run(
                        settings,
                        opening,
                        items_of_reader,
                        confirmed_of_reader,
                        through_of_reader,
                        finish_of_reader,
                    )),
                    Err(error) => {
                        let error = Error::transient("a runtime cannot be started").with_source(error);
                        // Nobody waits: then nobody reads.
                        let _ = opening.send(Err(error));
                    }
                }
                drop(ending);
            })
            .map_err(|error| Error::transient("the thread cannot be started").with_source(error))?;
        opened.await.unwrap_or_else(|_| Err(Error::transient("the reader ended without a word")))?;
        Ok(Backlog {
            items,
            block: None,
            end: None,
            read_to: Lsn::ZERO,
            notices: Vec::new(),
            over: None,
            confirmed,
            through: Some(through),
            finish: Some(finish),
            ended: Some(ended),
        })
    }

    /// The next message, or the end of a chunk as a keepalive; `None`: more must be waited for.
    ///
    /// # Errors
    /// Definite: what COPY sent is not what was asked for.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>> {
        if self.block.as_ref().is_some_and(Block::is_taken) {
            self.block = None;
        }
        if let Some(block) = &mut self.block {
            return Ok(Some(block.next_frame()?));
        }
        let end = self.end.take();
        Ok(end.map(|(wal_end, sent_at)| Frame::Keepalive { wal_end, sent_at, reply_requested: false }))
    }

    /// Waits for more. Cancel-safe. Call it when [`Backlog::next_frame`] has given `None` and it is not over.
    ///
    /// # Errors
    /// A chunk broke off in the middle, classified.
    pub async fn fill(&mut self) -> Result<Filled> {
        let item = tokio::select! {
            biased;
            through = wait_for(&mut self.through), if self.items.len() <= ITEMS_LEFT_MAX => {
                self.through = None;
                match through {
                    Ok(through) => return Ok(Filled::Through(through)),
                    // It failed, and says so in its turn.
                    Err(_) => return Ok(Filled::Bytes(0)),
                }
            }
            item = self.items.recv() => item,
        };
        match item {
            Some(Item::Rows(block)) => {
                let bytes = block.bytes.len();
                self.block = Some(block);
                failpoint::hit("backlog.in-chunk");
                return Ok(Filled::Bytes(bytes));
            }
            Some(Item::End(read_to, at)) => {
                self.read_to = read_to;
                self.end = Some((read_to, at));
                failpoint::hit("backlog.after-chunk");
            }
            Some(Item::Notices(notices)) => self.notices.extend(notices),
            Some(Item::Over(over)) => self.over = Some(over),
            Some(Item::Failed(error)) => return Err(error),
            None => return Err(Error::transient("the reader of the backlog ended without a word")),
        }
        Ok(Filled::Bytes(0))
    }

    /// Where and why it ended, once nothing more comes and everything that came was taken.
    pub fn over(&self) -> Option<&Through> {
        self.over.as_ref().filter(|_| self.end.is_none() && self.block.is_none())
    }

    /// Where the last whole chunk ended; 0/0 before the first.
    pub fn read_to(&self) -> Lsn {
        self.read_to
    }

    /// Notices of the source since the last call; those of a chunk come before its rows.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Everything before this is durable: the slot is moved there by and by, as far as it was read. (What a destination has
    /// from earlier may lie ahead; until its last transaction has been seen again, the stream must find it too.)
    pub fn confirm(&self, confirmed: Lsn) {
        self.confirmed.send_replace(confirmed.min(self.read_to));
    }

    /// Ends reading, wherever it is, moves the slot as [`Backlog::confirm`] does, and returns when both are done.
    pub async fn finish(&mut self, confirmed: Lsn) {
        if let Some(finish) = self.finish.take() {
            // A reader that has ended is what is wanted.
            let _ = finish.send(confirmed.min(self.read_to));
        }
        self.wait_for_end().await;
    }

    /// Ends reading and waits until the temporary slot is gone, for as long as `limit`.
    pub async fn close(mut self, limit: std::time::Duration) {
        drop(self.finish.take());
        // A server that does not end in time is left to notice the closed socket.
        let _ = tokio::time::timeout(limit, self.wait_for_end()).await;
    }

    async fn wait_for_end(&mut self) {
        if let Some(ended) = &mut self.ended {
            // Nothing is ever sent: the thread lets go of its half.
            let _ = ended.await;
            self.ended = None;
        }
    }
}

async fn wait_for(
    through: &mut Option<oneshot::Receiver<Through>>,
) -> std::result::Result<Through, oneshot::error::RecvError> {
    match through {
        Some(through) => through.await,
        None => std::future::pending().await,
    }
}

impl Block {
    fn is_taken(&self) -> bool {
        self.taken == self.bytes.len()
    }

    /// One row: how many columns, and each with its length: an LSN, and a message of the output plugin.
    fn next_frame(&mut self) -> Result<Frame<'_>, DecodeError> {
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        let mut cursor = Cursor::new("row of COPY", rest);
        cursor.i16("columns")?;
        cursor.length("length of lsn")?;
        let lsn = cursor.lsn("lsn")?;
        let length = cursor.length("length of data")?;
        let payload = cursor.bytes("data", length)?;
        self.taken += cursor.offset();
        Ok(Frame::Data { wal_start: lsn, wal_end: lsn, sent_at: self.received_at, payload })
    }
}
