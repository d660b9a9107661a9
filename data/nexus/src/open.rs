//! Opening a volume: takes the next epoch, gathers the members, decides who is in sync, and waits until it may serve.
//!
//! # Invariants
//! I3 (the store first, then every reachable member), I4 (never without a member in sync), I5 (incarnations), I6 (what
//! members owe each other after an unclean end), I9 (the old owner's lease is waited out), I10 (gaps), I12 (`confirm`).

use crate::Planted;
use crate::attend::Connection;
use crate::confirm::Heard;
use crate::copies;
use crate::member::Member;
use crate::owed::Owed;
use crate::record::{Keeper, RecordError, Records, Versioned, member_mut};
use crate::state::{Config, Dial, Nexus, State};
use futures_util::future::{FutureExt, LocalBoxFuture, join_all};
use model::{Generation, MemberState, Owner, VolumeRecord};
use rt::Instant;
use std::fmt;
use std::rc::Rc;
use uuid::Uuid;

/// Why a volume could not be opened. Trying again later is always right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The record could not be read or changed.
    Record(RecordError),
    /// No member in sync can be reached: the volume waits for one (I4).
    NoMemberInSync,
    /// Another nexus was faster.
    Fenced,
    /// The store had an older record or epoch than a member; now it has the later one (I12).
    SetBack,
    /// The record is a copy, to be confirmed by all members; these nodes have not answered (I12).
    Unconfirmed(Vec<String>),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(error) => error.fmt(f),
            Self::NoMemberInSync => {
                f.write_str("no member that has every write can be reached; waiting for one")
            }
            Self::Fenced => f.write_str("another node has opened the volume meanwhile"),
            Self::SetBack => {
                f.write_str("the store was set back: the record is taken from a copy that is later")
            }
            Self::Unconfirmed(nodes) => write!(
                f,
                "its record is from a copy, because the store was set back or had lost it; waiting for {}, which may have a \
                 later one",
                nodes.join(", ")
            ),
        }
    }
}

impl std::error::Error for OpenError {}

impl From<RecordError> for OpenError {
    fn from(error: RecordError) -> Self {
        Self::Record(error)
    }
}

/// What the record said before this nexus took the volume over.
struct Before {
    record: VolumeRecord,
    /// Never opened: nothing was ever acknowledged.
    fresh: bool,
    /// The last owner closed it in order: all members in sync are equal and flushed.
    handed_over: bool,
}

/// A member that has accepted our epoch.
struct Present {
    member: Rc<Member>,
    connection: Connection,
    accepted: Instant,
}

impl Present {
    fn of(heard: Heard) -> Option<Self> {
        let Heard { member, accepted, .. } = heard;
        accepted.map(|(connection, accepted)| Self { member, connection, accepted })
    }
}

/// Opens `volume`.
///
/// # Errors
/// See [`OpenError`]; members that have accepted the new epoch keep it, which fences everybody older.
pub fn open(
    config: Config,
    records: Rc<dyn Records>,
    dial: Dial,
    volume: Uuid,
) -> LocalBoxFuture<'static, Result<Nexus, OpenError>> {
    // Boxed here: an `async fn` is compiled again, with all that it starts, in each crate that awaits it.
    take_over(config, records, dial, volume).boxed_local()
}

async fn take_over(
    config: Config,
    records: Rc<dyn Records>,
    dial: Dial,
    volume: Uuid,
) -> Result<Nexus, OpenError> {
    let id = rt::random_uuid();
    let (before, taken) = take_epoch(&config, records.as_ref(), volume, id).await?;
    let state = State::new(config, id, Keeper::new(records, taken), dial);
    let heard = gather(&state).await;
    state.confirm(&before.record, &heard).await?;
    let present: Vec<Present> = heard.into_iter().filter_map(Present::of).collect();
    let chosen = choose(&state, &before, &present)?;
    admit(&state, &before, &chosen, present).await?;
    for member in state.members() {
        state.keep(rt::spawn(Rc::clone(&state).attend(member)));
    }
    state.start_resync();
    Ok(Nexus(state))
}

/// Takes the next epoch in the store (I3).
async fn take_epoch(
    config: &Config,
    records: &dyn Records,
    volume: Uuid,
    id: Uuid,
) -> Result<(Before, Versioned), OpenError> {
    let found = records.read(volume).await?;
    let mut next = found.record.clone();
    next.epoch += 1;
    next.version += 1;
    next.owner = Some(Owner { nexus: id, node: config.node.clone() });
    next.clean = false;
    let revision = match records.replace(found.revision, next.clone()).await {
        Ok(revision) => revision,
        Err(RecordError::Unreachable) => {
            // It may have been done: the store itself says whether it was.
            let now = records.read(volume).await?;
            if now.record != next {
                return Err(RecordError::Unreachable.into());
            }
            now.revision
        }
        Err(error) => return Err(error.into()),
    };
    let record = found.record;
    let fresh = record.is_fresh();
    let handed_over = record.clean && record.owner.is_none();
    Ok((Before { record, fresh, handed_over }, Versioned { record: next, revision }))
}

/// Tells every reachable member, and waits for those that do not answer until the window is over.
async fn gather(state: &Rc<State>) -> Vec<Heard> {
    let until = rt::now() + state.config.connect_window;
    let attempts = state.members().into_iter().map(|member| async move {
        loop {
            match state.hear(Rc::clone(&member)).await {
                Ok(heard) => return Some(heard),
                Err(_) if rt::now() >= until => return None,
                Err(_) => rt::sleep(state.config.reconnect_pause).await,
            }
        }
    });
    join_all(attempts).await.into_iter().flatten().collect()
}

/// Who is in sync, as indices into `present`; the first one is the source. And whether there may be a gap.
struct Chosen {
    in_sync: Vec<usize>,
    gap: bool,
}

/// Decides who of the present members is in sync (I4, I5, I10).
fn choose(state: &State, before: &Before, present: &[Present]) -> Result<Chosen, OpenError> {
    let entry = |index: &usize| {
        let replica = present[*index].member.replica;
        before.record.members.iter().find(|m| m.replica == replica).expect("members come from the record")
    };
    let hello = |index: &usize| &present[*index].connection.hello;
    let all: Vec<usize> = (0..present.len()).collect();
    let those =
        |filter: &dyn Fn(&usize) -> bool| all.iter().copied().filter(|i| filter(i)).collect::<Vec<_>>();
    let in_sync = those(&|i| entry(i).state == MemberState::InSync);
    let whole = |in_sync: Vec<usize>| Ok(Chosen { in_sync, gap: false });
    if before.fresh && !all.is_empty() {
        let new = those(&|i| entry(i).state == MemberState::New);
        // One of each node (docs/decisions/0009).
        let first = |i: &usize| new.iter().all(|other| other >= i || entry(other).node != entry(i).node);
        return whole(new.iter().copied().filter(first).collect());
    }
    if in_sync.is_empty() {
        if state.config.planted == Planted::StaleTakesOver && !all.is_empty() {
            return whole(vec![0]);
        }
        return Err(OpenError::NoMemberInSync);
    }
    if before.handed_over {
        return whole(in_sync);
    }
    let recorded = those(&|i| in_sync.contains(i) && entry(i).incarnation == Some(hello(i).incarnation));
    if !recorded.is_empty() {
        return whole(recorded);
    }
    match in_sync.iter().copied().find(|i| entry(i).boot_id == Some(hello(i).boot_id)) {
        // It has lost nothing that was completed.
        Some(kept_its_boot) => whole(vec![kept_its_boot]),
        None => Ok(Chosen { in_sync: vec![in_sync[0]], gap: true }),
    }
}

/// Writes the decision into the record, finds out who owes what, waits out the old lease, and takes the members up.
async fn admit(
    state: &Rc<State>,
    before: &Before,
    chosen: &Chosen,
    present: Vec<Present>,
) -> Result<(), OpenError> {
    let in_sync: Vec<Uuid> = chosen.in_sync.iter().map(|i| present[*i].member.replica).collect();
    assert!(!in_sync.is_empty(), "I4: a volume is never opened without a member in sync");
    let hellos: Vec<_> = present.iter().map(|p| (p.member.replica, p.connection.hello)).collect();
    let (fresh, gap) = (before.fresh, chosen.gap);
    let written = state.change_record(|record| {
        write_decision(record, &in_sync, &hellos, fresh, gap);
        true
    });
    written.await.map_err(|_| OpenError::Fenced)?;

    // The old owner may serve reads until its lease ends; the first member in sync stopped renewing it (I9).
    let first_accepted = chosen.in_sync.iter().map(|i| present[*i].accepted).min().expect("one is in sync");
    let may_serve = first_accepted + state.config.lease.mul_f64(1.1);

    let equal = before.fresh || before.handed_over || state.config.planted == Planted::NoResync;
    let size_bytes = state.geometry().size().0;
    for Present { member, connection, .. } in present {
        if !in_sync.contains(&member.replica) {
            connection.leg.close().await; // It rejoins as a stale member.
            continue;
        }
        if connection.hello.size_bytes < size_bytes {
            connection.leg.resize(size_bytes).await.map_err(|_| OpenError::NoMemberInSync)?;
        }
        if !equal && in_sync.len() > 1 && member.replica != in_sync[0] {
            *member.owed.borrow_mut() = Owed::everything(state.extents());
        }
        member.up(connection.leg, connection.asked);
        member.set_receives(true);
    }
    state.keeper.hand(async |record: &VolumeRecord| copies::hand_out(state, record).await).await;
    if !(before.fresh || before.handed_over) {
        rt::sleep_until(may_serve).await;
    }
    Ok(())
}

/// Who is in sync from now on, with which incarnations; everybody else who was is stale.
fn write_decision(
    record: &mut VolumeRecord,
    in_sync: &[Uuid],
    hellos: &[(Uuid, crate::leg::Hello)],
    fresh: bool,
    gap: bool,
) {
    for entry in &mut record.members {
        match entry.state {
            MemberState::InSync | MemberState::Rebuilding { .. } => {
                entry.state = MemberState::Stale { since: Generation::ZERO };
            }
            MemberState::New | MemberState::Stale { .. } | MemberState::Removed => {}
        }
    }
    for (replica, hello) in hellos.iter().filter(|(replica, _)| in_sync.contains(replica)) {
        let entry = member_mut(record, *replica).expect("members come from the record");
        assert!(
            fresh || !matches!(entry.state, MemberState::New),
            "only a fresh volume starts with new members"
        );
        entry.state = MemberState::InSync;
        entry.incarnation = Some(hello.incarnation);
        entry.boot_id = Some(hello.boot_id);
    }
    if gap {
        record.gap_through = record.attachment;
    }
    record.unconfirmed = false;
}
