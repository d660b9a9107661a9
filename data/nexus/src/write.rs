//! The path of a write: from its place in the order to the acknowledgement that every member in sync has earned.
//!
//! # Invariants
//! I1, I2 and I11 of the crate. A change runs in a task of its own, so that its turn ends by completions and never
//! because a host dropped a future.

use crate::Planted;
use crate::leg::{Change, Leg};
use crate::member::Member;
use crate::order::{Kind, Turn};
use crate::shield::shielded;
use crate::state::{State, count};
use device::{BlockCount, Lba, Status};
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use model::{Generation, MemberState};
use rt::{DmaBuf, Durability};
use std::rc::Rc;

/// What became of a change on one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It has it.
    Done,
    /// It has no space: nothing was changed there.
    Refused,
    /// It failed, and the member must not be made stale: it is the last one in sync.
    Failed(Status),
    /// The member is `Stale` in the store.
    Retired,
    /// This nexus is over.
    Stopped(Status),
}

/// What is asked of every member.
#[derive(Clone)]
enum Request {
    Change { generation: Generation, lba: Lba, change: Change, durability: Durability },
    Flush,
}

impl Request {
    async fn send(self, leg: &Leg) -> Result<(), Status> {
        match self {
            Self::Change { generation, lba, change, durability } => {
                leg.change(generation, lba, change, durability).await
            }
            Self::Flush => leg.flush().await,
        }
    }
}

impl State {
    /// Applies `change` to all members, in its turn.
    pub(crate) async fn change(
        self: &Rc<Self>,
        lba: Lba,
        blocks: BlockCount,
        change: Change,
        durability: Durability,
    ) -> Result<(), Status> {
        let geometry = self.geometry();
        geometry.check_blocks(lba, blocks)?;
        let start = geometry.offset_bytes(lba);
        let turn = self.arrive(start..start + geometry.offset_bytes(Lba(blocks.0)), Kind::Exclusive);
        let (state, in_use) = (Rc::clone(self), self.activity.begin());
        shielded(async move {
            let _in_use = in_use;
            turn.granted().await;
            state.change_in_turn(turn, lba, blocks, change, durability).await
        })
        .await
    }

    async fn change_in_turn(
        self: &Rc<Self>,
        turn: Turn,
        lba: Lba,
        blocks: BlockCount,
        change: Change,
        durability: Durability,
    ) -> Result<(), Status> {
        let request = Request::Change { generation: self.generation(), lba, change, durability };
        let outcomes = self.ask_all(&request).await;
        let verdict = match durability {
            Durability::Cached => judge(&outcomes),
            Durability::Durable => self.judge_durable(&outcomes).await,
        };
        if verdict.is_err() {
            self.repair_failed_change(&outcomes, lba, blocks).await;
        }
        drop(turn);
        verdict
    }

    /// Makes everything that completed before this call durable on all members.
    pub(crate) async fn flush(self: &Rc<Self>) -> Result<(), Status> {
        let (state, in_use) = (Rc::clone(self), self.activity.begin());
        shielded(async move {
            let _in_use = in_use;
            loop {
                let outcomes = state.ask_all(&Request::Flush).await;
                // A flush holds no turn: all that were asked may be stale or let go by now, and one that has joined
                // meanwhile is in sync instead. Then that one is asked.
                if outcomes.iter().any(|(_, outcome)| *outcome != Outcome::Retired) {
                    return state.judge_durable(&outcomes).await;
                }
                rt::race(state.changed.wait(), rt::sleep(state.config.reconnect_pause)).await;
            }
        })
        .await
    }

    /// Like [`judge`], for a flush or FUA: where the last member in sync failed it, unflushed data may be lost (I10).
    async fn judge_durable(&self, outcomes: &[(Rc<Member>, Outcome)]) -> Result<(), Status> {
        let verdict = judge(outcomes);
        if outcomes.iter().any(|(_, outcome)| matches!(outcome, Outcome::Failed(_))) {
            self.note_gap().await?;
        }
        verdict
    }

    /// Asks every member that takes writes, and waits until each has answered or is `Stale` in the store.
    async fn ask_all(self: &Rc<Self>, request: &Request) -> Vec<(Rc<Member>, Outcome)> {
        if let Some(status) = self.stopped() {
            return vec![(Rc::clone(&self.members()[0]), Outcome::Stopped(status))];
        }
        let receivers: Vec<_> = self.members().into_iter().filter(|member| member.receives()).collect();
        if self.config.planted == Planted::AckByFirst {
            return self.ask_first(request, receivers).await;
        }
        let outcomes = join_all(receivers.iter().map(|member| self.ask(member, request.clone()))).await;
        receivers.into_iter().zip(outcomes).collect()
    }

    /// The planted bug of I1: the first answer counts for all.
    async fn ask_first(
        self: &Rc<Self>,
        request: &Request,
        receivers: Vec<Rc<Member>>,
    ) -> Vec<(Rc<Member>, Outcome)> {
        let mut answers = FuturesUnordered::new();
        for member in receivers {
            let (state, request) = (Rc::clone(self), request.clone());
            answers.push(rt::spawn(async move {
                let outcome = state.ask(&member, request).await;
                (member, outcome)
            }));
        }
        let first = answers.next().await.expect("a volume has members");
        answers.into_iter().for_each(rt::Task::detach);
        vec![first]
    }

    /// Asks one member until it has answered or is `Stale` in the store (I2).
    async fn ask(self: &Rc<Self>, member: &Rc<Member>, request: Request) -> Outcome {
        loop {
            if let Some(status) = self.stopped() {
                return Outcome::Stopped(status);
            }
            if !member.receives() || !self.is_kept(member) {
                return Outcome::Retired;
            }
            let Some(leg) = member.leg() else {
                if self.config.planted == Planted::AckBeforeStale && self.others_in_sync_up(member) {
                    return Outcome::Retired;
                }
                member.changed.wait().await;
                continue;
            };
            let asked = rt::now();
            match request.clone().send(&leg).await {
                Ok(()) => {
                    member.answered(asked);
                    return Outcome::Done;
                }
                Err(Status::NoSpace) if self.may_be_in_sync(member) => return Outcome::Refused,
                Err(Status::Fenced) => {
                    self.stop(Status::Fenced);
                    return Outcome::Stopped(Status::Fenced);
                }
                // The association is over; what was asked may or may not have been done. It is asked again only
                // after a reconnect, before which the member has ended everything of the old association (I3).
                Err(Status::Gone | Status::TimedOut | Status::Aborted) => {
                    self.wait_until_lost(member, &leg).await;
                }
                Err(status) if !self.may_be_in_sync(member) || self.others_in_sync_up(member) => {
                    // It has lost what was unflushed, or a write: it must be stale before this is acknowledged. What
                    // is being rebuilt is nobody's last copy, and has no say in whether a write fails.
                    member.condemn(&leg, status);
                    self.wait_until_lost(member, &leg).await;
                }
                Err(status) => return Outcome::Failed(status),
            }
        }
    }

    /// Whether the record has the member among those that get every write.
    fn is_kept(&self, member: &Member) -> bool {
        self.may_be_in_sync(member) || matches!(self.state_of(member), MemberState::Rebuilding { .. })
    }

    async fn wait_until_lost(&self, member: &Member, leg: &Rc<Leg>) {
        while member.has(leg) && self.stopped().is_none() {
            member.changed.wait().await;
        }
    }

    /// Makes the blocks of a change that failed for the host equal on all members again (I2).
    ///
    /// For a refusal the source is a member that refused, so it is the old contents, which need no new space.
    async fn repair_failed_change(
        self: &Rc<Self>,
        outcomes: &[(Rc<Member>, Outcome)],
        lba: Lba,
        blocks: BlockCount,
    ) {
        let done = |outcome: &Outcome| *outcome == Outcome::Done;
        if self.stopped().is_some() || !outcomes.iter().any(|(_, outcome)| done(outcome)) {
            return;
        }
        let refused = |entry: &&(Rc<Member>, Outcome)| entry.1 == Outcome::Refused && self.in_sync(&entry.0);
        let source = outcomes.iter().find(refused).map(|(member, _)| Rc::clone(member));
        if source.is_some() {
            count(&self.counters.refused_for_space, 1);
        }
        for (member, outcome) in outcomes.iter().filter(|(_, outcome)| done(outcome)) {
            let repaired = match &source {
                Some(source) => self.copy_blocks(source, member, lba, blocks).await,
                None => Err(Status::MediaRead),
            };
            if repaired.is_err() {
                tracing::warn!(volume = %self.volume, member = %member.replica, ?outcome, "a failed write could not be undone: the member is owed its extents");
                self.extents_of(lba, blocks).for_each(|extent| member.owed.borrow_mut().insert(extent));
                if let (Some(leg), true) =
                    (member.leg(), self.in_sync(member) && self.others_in_sync_up(member))
                {
                    member.condemn(&leg, Status::Internal);
                    self.wait_until_lost(member, &leg).await;
                }
            }
        }
        self.start_resync();
    }

    /// Copies blocks from one member to another, in the turn of the caller. Zeroes are unmapped: that needs no space.
    async fn copy_blocks(
        &self,
        source: &Member,
        target: &Member,
        lba: Lba,
        blocks: BlockCount,
    ) -> Result<(), Status> {
        let (Some(from), Some(to)) = (source.leg(), target.leg()) else { return Err(Status::Gone) };
        let geometry = self.geometry();
        let block = geometry.block_size as usize;
        let chunk = (1 << 20) / u64::from(geometry.block_size);
        let mut done = 0;
        while done < blocks.0 {
            let count = chunk.min(blocks.0 - done);
            let len = usize::try_from(count).expect("a chunk fits") * block;
            let data = from.read(lba.plus(done), DmaBuf::new(len)).await?.freeze();
            let is_zero =
                |index: usize| data[index * block..(index + 1) * block].iter().all(|&byte| byte == 0);
            let mut first = 0;
            while first * block < len {
                let zero = is_zero(first);
                let end = (first..len / block).find(|&index| is_zero(index) != zero).unwrap_or(len / block);
                let change = if zero {
                    Change::Unmap(BlockCount((end - first) as u64))
                } else {
                    Change::Write(data.slice(first * block..end * block))
                };
                let at = lba.plus(done + first as u64);
                to.change(self.generation(), at, change, Durability::Cached).await?;
                first = end;
            }
            done += count;
        }
        Ok(())
    }
}

/// Acknowledged if every member that is not stale has it, and one is left (I1).
fn judge(outcomes: &[(Rc<Member>, Outcome)]) -> Result<(), Status> {
    let mut done = false;
    let mut refused = false;
    for (_, outcome) in outcomes {
        match outcome {
            Outcome::Stopped(status) | Outcome::Failed(status) => return Err(*status),
            Outcome::Refused => refused = true,
            Outcome::Done => done = true,
            Outcome::Retired => {}
        }
    }
    if refused {
        return Err(Status::NoSpace);
    }
    assert!(done, "I4: the last member in sync is never retired, so one has answered");
    Ok(())
}
