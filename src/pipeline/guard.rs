//! May this process go on from what the destination has stored? Pure comparisons, one for each way
//! in which a source and a checkpoint stop belonging together (EXACTLY_ONCE.md, "The checkpoint").
//!
//! Comes in: the stored checkpoint, the slot's state, the source's identity. Goes out: how to start,
//! or a definite error with its remedy. Nothing here ever repairs by guessing.

use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::sink::checkpoint::{Checkpoint, Identity, Phase};
use crate::wal::pgoutput::Message;
use crate::wal::slot::SlotState;

/// How a pipeline starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing is stored and there is no slot: store "snapshot pending", then make the slot.
    Fresh,
    /// A start ended between "snapshot pending" and the slot's first checkpoint: remove the slot, if
    /// it is there, and make it anew.
    Again,
    /// Go on from the checkpoint.
    Resume(Checkpoint),
}

/// Compares what is stored with what the source says.
///
/// # Errors
/// Definite, each with its remedy.
pub fn decide(
    stored: Option<Checkpoint>,
    slot: Option<&SlotState>,
    now: &Identity,
    wal_flush_lsn: Lsn,
) -> Result<Start> {
    let name = &now.slot;
    let Some(checkpoint) = stored else {
        return match slot {
            None => Ok(Start::Fresh),
            Some(_) => Err(Error::definite(format!("slot {name} exists, but the destination has no checkpoint of it"))
                .with_hint("changes may have been confirmed that this destination never got: remove both with `walgate drop`, then start anew with a copy; or point the configuration at the destination that the slot belongs to")),
        };
    };
    same_source(&checkpoint.identity, now)?;
    if checkpoint.phase == Phase::Pending {
        return Ok(Start::Again);
    }
    let anew = "changes are missing: remove the pipeline with `walgate drop`, then start anew with a copy";
    let Some(slot) = slot else {
        return Err(Error::definite(format!(
            "slot {name} does not exist any more, the destination's checkpoint is at {}",
            checkpoint.safe_lsn
        ))
        .with_hint(anew));
    };
    if slot.is_lost() {
        let reason =
            slot.invalidation_reason.as_deref().unwrap_or("its WAL was removed (max_slot_wal_keep_size)");
        return Err(Error::definite(format!("slot {name} is lost: {reason}")).with_hint(anew));
    }
    if slot.plugin.as_deref() != Some("pgoutput") {
        return Err(Error::definite(format!(
            "slot {name} has the plugin {}, not pgoutput",
            slot.plugin.as_deref().unwrap_or("none")
        ))
        .with_hint("choose another source.slot: this one belongs to another program"));
    }
    let confirmed = slot.confirmed_flush_lsn.unwrap_or(Lsn::ZERO);
    not_moved_by_others(name, confirmed, checkpoint.safe_lsn)?;
    if wal_flush_lsn < checkpoint.safe_lsn {
        return Err(Error::definite(format!(
            "the source's WAL ends at {wal_flush_lsn}, the destination's checkpoint is at {}: the source went back in time",
            checkpoint.safe_lsn
        ))
        .with_hint(format!("was it restored from a backup? {anew}")));
    }
    if checkpoint.is_inside_transaction() && checkpoint.identity.options != now.options {
        return Err(Error::definite(format!(
            "slot {name}: the publications or protocol options changed in the middle of the transaction at {}",
            checkpoint.commit_lsn
        ))
        .with_hint("set them back, let `walgate run --until-caught-up` finish the transaction, then change them"));
    }
    Ok(Start::Resume(checkpoint))
}

/// The slot must not have been confirmed past what the destination holds.
///
/// # Errors
/// Definite: somebody moved or re-created the slot.
pub fn not_moved_by_others(name: &str, confirmed: Lsn, safe_lsn: Lsn) -> Result<()> {
    if confirmed <= safe_lsn {
        return Ok(());
    }
    Err(Error::definite(format!(
        "slot {name} is confirmed at {confirmed}, ahead of the destination's checkpoint at {safe_lsn}: somebody moved or re-created it, changes are missing"
    ))
    .with_hint("remove the pipeline with `walgate drop`, then start anew with a copy; find out who else uses the slot"))
}

fn same_source(stored: &Identity, now: &Identity) -> Result<()> {
    let anew = "correct source.url; or, if the source was replaced on purpose, remove the pipeline with `walgate drop` and start anew with a copy";
    let refuse = |what: &str, stored: String, now: String| {
        Err(Error::definite(format!(
            "the checkpoint belongs to another source: its {what} is {stored}, this one has {now}"
        ))
        .with_hint(anew))
    };
    if stored.system_identifier != now.system_identifier {
        return refuse("system identifier", stored.system_identifier.clone(), now.system_identifier.clone());
    }
    if stored.database_oid != now.database_oid {
        return refuse("database OID", stored.database_oid.to_string(), now.database_oid.to_string());
    }
    if stored.slot != now.slot {
        return refuse("slot", stored.slot.clone(), now.slot.clone());
    }
    Ok(())
}

/// After a promotion: the new timeline must have branched off behind everything that was safe.
/// `history` is the answer to `TIMELINE_HISTORY`: lines of `timeline <TAB> switch LSN <TAB> reason`.
///
/// # Errors
/// Definite when it branched off before the checkpoint, or does not descend from its timeline.
pub fn timeline_switch(checkpoint: &Checkpoint, now: u32, history: &str) -> Result<()> {
    let was = checkpoint.identity.timeline;
    if was == now {
        return Ok(());
    }
    let switched_at = history.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let timeline: u32 = fields.next()?.parse().ok()?;
        (timeline == was).then(|| fields.next()?.parse::<Lsn>().ok()).flatten()
    });
    // Of a transaction that is only begun here, the commit record itself must be behind the branch.
    let reached = checkpoint.safe_lsn.max(Lsn(checkpoint.commit_lsn.0.saturating_add(1)));
    match switched_at {
        Some(at) if at >= reached => Ok(()),
        Some(at) => Err(Error::definite(format!(
            "the source was promoted to timeline {now} at {at}, before the destination's checkpoint at {reached}: it may have reused those LSNs for other transactions"
        ))
        .with_hint("the destination holds changes that the new primary never had: remove the pipeline with `walgate drop`, then start anew with a copy")),
        None => Err(Error::definite(format!("the source's timeline {now} does not descend from the checkpoint's timeline {was}"))
            .with_hint("correct source.url; or remove the pipeline with `walgate drop` and start anew with a copy")),
    }
}

/// What the first transaction on a connection must look like, if the source is still the same.
#[derive(Clone, Debug)]
pub struct FirstTransaction {
    checkpoint: Checkpoint,
    must_be_sent_again: bool,
}

impl FirstTransaction {
    /// For a stream that starts at what the slot has confirmed.
    pub fn expected(checkpoint: &Checkpoint, confirmed: Lsn, same_options: bool) -> Self {
        let is_of_transaction = checkpoint.ordinal > 0;
        FirstTransaction {
            must_be_sent_again: is_of_transaction && confirmed <= checkpoint.commit_lsn && same_options,
            checkpoint: checkpoint.clone(),
        }
    }

    /// Looks at a message; true: the question is settled, do not ask again.
    ///
    /// # Errors
    /// Definite: another transaction stands where the checkpoint's stood.
    pub fn look_at(&self, message: &Message<'_>) -> Result<bool> {
        let Message::Begin { final_lsn, commit_time, xid } = message else { return Ok(false) };
        let at = self.checkpoint.commit_lsn;
        let is_it = *final_lsn == at && self.checkpoint.ordinal > 0;
        let replaced = is_it && (*xid != self.checkpoint.xid || commit_time.0 != self.checkpoint.commit_time);
        let vanished = *final_lsn > at && self.must_be_sent_again;
        if replaced || vanished {
            return Err(self.another_history());
        }
        Ok(*final_lsn >= at)
    }

    /// Looks at how far the source has sent everything, which a keepalive says: a history without anything for us
    /// has no Begin to look at, and moving the slot over it would hide that it is another one.
    ///
    /// # Errors
    /// Definite: what was sent has passed the checkpoint's transaction, and it was not there.
    pub fn look_at_end(&self, sent: Lsn) -> Result<()> {
        match self.must_be_sent_again && sent > self.checkpoint.commit_lsn {
            true => Err(self.another_history()),
            false => Ok(()),
        }
    }

    fn another_history(&self) -> Error {
        let Checkpoint { commit_lsn, xid, identity, .. } = &self.checkpoint;
        Error::definite(format!(
            "slot {}: where the destination's last transaction {xid} committed, at {commit_lsn}, the source has another history now",
            identity.slot
        ))
        .with_hint("was the source restored, or a standby promoted that was behind? Remove the pipeline with `walgate drop`, then start anew with a copy")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Position;
    use crate::sink::checkpoint::Phase;
    use crate::wal::timestamp::Timestamp;

    fn identity() -> Identity {
        Identity {
            system_identifier: "7".into(),
            timeline: 1,
            database_oid: 5,
            slot: "walgate_hub".into(),
            options: "a".into(),
        }
    }

    fn checkpoint() -> Checkpoint {
        let mut checkpoint = Checkpoint::pending(identity());
        let position = Position::nth(Lsn(100), 1);
        checkpoint.advance(&crate::route::batch::Progress {
            phase: Phase::Streaming,
            position,
            safe_lsn: Lsn(110),
            xid: 7,
            commit_time: Timestamp(70),
        });
        checkpoint
    }

    fn slot(confirmed: u64) -> SlotState {
        SlotState {
            name: "walgate_hub".into(),
            plugin: Some("pgoutput".into()),
            database: None,
            is_active: false,
            active_pid: None,
            restart_lsn: Some(Lsn(1)),
            confirmed_flush_lsn: Some(Lsn(confirmed)),
            wal_status: Some("reserved".into()),
            invalidation_reason: None,
            retained_wal_bytes: Some(1),
        }
    }

    fn decide_with(
        stored: Option<Checkpoint>,
        slot: Option<SlotState>,
        now: Identity,
        end: u64,
    ) -> Result<Start> {
        decide(stored, slot.as_ref(), &now, Lsn(end))
    }

    #[test]
    fn starts_fresh_again_or_where_it_was() {
        assert_eq!(decide_with(None, None, identity(), 1).expect("fresh"), Start::Fresh);
        let pending = Checkpoint::pending(identity());
        assert_eq!(decide_with(Some(pending.clone()), None, identity(), 1).expect("again"), Start::Again);
        assert_eq!(decide_with(Some(pending), Some(slot(5)), identity(), 9).expect("again"), Start::Again);
        assert_eq!(
            decide_with(Some(checkpoint()), Some(slot(110)), identity(), 200).expect("resume"),
            Start::Resume(checkpoint())
        );
    }

    #[test]
    fn case_d7_refuses_what_does_not_belong_together() {
        let lost = SlotState { wal_status: Some("lost".into()), ..slot(50) };
        let wal2json = SlotState { plugin: Some("wal2json".into()), ..slot(50) };
        let mut inside = checkpoint();
        inside.safe_lsn = Lsn(90);
        let cases = [
            ("slot without checkpoint", decide_with(None, Some(slot(5)), identity(), 9)),
            ("slot gone", decide_with(Some(checkpoint()), None, identity(), 200)),
            ("slot lost", decide_with(Some(checkpoint()), Some(lost), identity(), 200)),
            ("slot of another program", decide_with(Some(checkpoint()), Some(wal2json), identity(), 200)),
            ("slot ahead", decide_with(Some(checkpoint()), Some(slot(111)), identity(), 200)),
            ("source went back", decide_with(Some(checkpoint()), Some(slot(50)), identity(), 109)),
            (
                "other cluster",
                decide_with(
                    Some(checkpoint()),
                    Some(slot(50)),
                    Identity { system_identifier: "8".into(), ..identity() },
                    200,
                ),
            ),
            (
                "other database",
                decide_with(
                    Some(checkpoint()),
                    Some(slot(50)),
                    Identity { database_oid: 6, ..identity() },
                    200,
                ),
            ),
            (
                "options changed inside",
                decide_with(
                    Some(inside),
                    Some(slot(50)),
                    Identity { options: "b".into(), ..identity() },
                    200,
                ),
            ),
        ];
        for (case, result) in cases {
            let error = result.expect_err(case);
            assert!(error.is_definite() && error.hint().is_some(), "{case}: {error}");
        }
    }

    #[test]
    fn a_promotion_behind_the_checkpoint_is_fine_and_before_it_is_not() {
        let history = "1\t0/78\tno recovery target specified\n";
        timeline_switch(&checkpoint(), 1, "").expect("the same timeline");
        timeline_switch(&checkpoint(), 2, history).expect("switched at 120, safe at 110");
        timeline_switch(&checkpoint(), 2, "1\t0/64\tpromoted\n").expect_err("switched at 100");
        timeline_switch(&checkpoint(), 3, "2\t0/78\tpromoted\n").expect_err("another branch");
    }

    #[test]
    fn notices_another_history() {
        let begin =
            |lsn, xid, time| Message::Begin { final_lsn: Lsn(lsn), commit_time: Timestamp(time), xid };
        let first = FirstTransaction::expected(&checkpoint(), Lsn(90), true);
        assert!(!first.look_at(&begin(95, 6, 60)).expect("an earlier one"));
        assert!(first.look_at(&begin(100, 7, 70)).expect("the same one"));
        first.look_at(&begin(100, 8, 70)).expect_err("another transaction at the same LSN");
        first.look_at(&begin(105, 8, 80)).expect_err("it was not sent again");
        first.look_at_end(Lsn(100)).expect("it is still to come");
        first.look_at_end(Lsn(101)).expect_err("everything up to here was sent, and it was not there");
        let confirmed = FirstTransaction::expected(&checkpoint(), Lsn(110), true);
        confirmed.look_at_end(Lsn(130)).expect("what is confirmed is not sent again");
        assert!(confirmed.look_at(&begin(120, 9, 90)).expect("the next one"));
    }
}
