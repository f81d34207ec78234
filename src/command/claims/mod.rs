//! `walgate claims`: the claim store, held against the hub. DESIGN sections 5 and 7, docs/decisions/claims-gc.md.
//!
//! Comes in: the objects of this source in the store, the hub's checkpoint, and the events that the hub still has. Goes
//! out: which objects no event needs, and which an event needs and are not as they were published. Always holds: the
//! checkpoint is read before the objects are listed, and the events after both; so an object at or before that checkpoint
//! to which none of the events refers will never be referred to again.

mod check;
mod events;
mod gc;

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};

use super::Failure;
use crate::claim::place::Places;
use crate::claim::{ClaimStore, Object};
use crate::config::{ClaimStoreAddress, Config};
use crate::error::{Error, Result};
use crate::pipeline::Pipeline;
use crate::pipeline::start::blocking;
use crate::sink::checkpoint::{Checkpoint, Stored};
use crate::sink::hub;

/// On a terminal the line moves so often.
const MOVE_TIME: Duration = Duration::from_millis(100);
/// Requests to the store on their way at a time: what hides its latency.
const REQUESTS_MAX: usize = 16;

/// What `walgate claims` does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fetch and compare everything that the hub's events claim; exit code 1 when an object is missing or altered
    Check(check::Arguments),
    /// Remove objects that no event at the hub needs any more
    Gc(gc::Arguments),
}

/// Does it.
///
/// # Errors
/// [`Failure::Found`] of `check`; usage: there is no claim store; as the hub and the store.
pub async fn run(config: Config, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Check(arguments) => check::run(config, arguments).await,
        Command::Gc(arguments) => gc::run(config, arguments).await,
    }
}

/// The two sides, as they were at one moment.
struct Sides {
    pipeline: Pipeline,
    address: ClaimStoreAddress,
    store: Arc<ClaimStore>,
    places: Arc<Places>,
    stored: Stored,
    /// All of this source that the store has.
    objects: Vec<Object>,
}

impl Sides {
    /// Reads the checkpoint, then lists the objects.
    ///
    /// # Errors
    /// Usage: there is no claim store. As the hub and the store.
    async fn look(config: Config, progress: &ProgressBar) -> Result<Sides, Failure> {
        let pipeline = Pipeline::of_hub(Arc::new(config), false)?;
        let Some(claim_check) = pipeline.config.claim_check.clone() else {
            return Err(Failure::Usage(
                "the configuration names no claim store\n  remedy: add [claim_check] with its store".into(),
            ));
        };
        progress.set_message("reading the hub's checkpoint");
        let (hub, name) = (pipeline.config.hub.clone(), pipeline.name());
        let stored = blocking(move || hub::peek(&hub, &name)).await?;
        progress.set_message("listing the objects");
        let store = ClaimStore::open(&claim_check).await;
        let places = Places::of(&pipeline.source_name);
        let objects = store.list(&places.directory()).await?;
        Ok(Sides {
            address: claim_check.store,
            store: Arc::new(store),
            places: Arc::new(places),
            pipeline,
            stored,
            objects,
        })
    }

    /// Without it nobody knows which events are out.
    fn checkpoint(&self) -> Result<&Checkpoint> {
        self.stored.checkpoint.as_ref().ok_or_else(|| {
            Error::definite(format!(
                "the hub has no checkpoint of {}: which of its events are published cannot be known",
                self.pipeline.name()
            ))
            .with_hint("start `walgate run` first; after `walgate drop`, remove what nobody reads by the store's own means")
        })
    }
}

/// A line on a terminal, nothing elsewhere.
fn progress(as_json: bool) -> ProgressBar {
    if as_json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {msg} {human_pos} {elapsed}");
    let bar = ProgressBar::new_spinner();
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(MOVE_TIME);
    bar
}
