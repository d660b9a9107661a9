//! One task per member: keeps its lease, brings a lost leg back, retires the member where that fails, and lets it rejoin.
//!
//! # Invariants
//! I2 to I5 of the crate. A member is retired only while another one in sync is up (I4), and then in the store first.

use crate::copies;
use crate::leg::{Hello, Leg};
use crate::member::Member;
use crate::record::{member, member_mut};
use crate::state::{State, count};
use device::Status;
use model::{Generation, MemberRecord, MemberState, VolumeRecord};
use rt::Instant;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// An association that has accepted our epoch.
pub(crate) struct Connection {
    pub(crate) leg: Rc<Leg>,
    pub(crate) hello: Hello,
    /// When the question that it answered was sent.
    pub(crate) asked: Instant,
}

impl State {
    /// Attends to one member for as long as the nexus lives.
    pub(crate) async fn attend(self: Rc<Self>, member: Rc<Member>) {
        while self.stopped().is_none() {
            if let Some(leg) = member.leg() {
                self.watch(&member, &leg).await;
                // The last words to a member that is silent take time, in which it is already asked anew. What is under
                // way on the old association ends before the member answers the new one (I3).
                if let Some(leg) = member.down() {
                    rt::spawn(async move { leg.close().await }).detach();
                }
                self.changed.notify();
                continue;
            }
            match self.state_of(&member) {
                MemberState::Removed => return,
                MemberState::InSync => {
                    if member.condemned().is_some() || !self.regain(&member).await {
                        self.retire(&member).await;
                    }
                }
                MemberState::Rebuilding { .. } => self.retire(&member).await,
                MemberState::Stale { .. } | MemberState::New => {
                    if member.condemned() == Some(Status::NoSpace) {
                        // Space does not come back in a moment, and each try holds writes up.
                        rt::sleep(self.config.lease).await;
                    }
                    member.pardon();
                    if !self.rejoin(&member).await {
                        rt::sleep(self.config.reconnect_pause).await;
                    }
                }
            }
        }
    }

    /// Watches a leg that is up until it is not: heartbeats whenever a third of the lease passed without an answer, which
    /// have two thirds of it to be answered (they wait for no disk: who does not answer them is not there), and none
    /// while the volume is calm. The first operation after that starts them again, and is served when they are
    /// answered (I9).
    async fn watch(&self, member: &Member, leg: &Rc<Leg>) {
        let third = self.config.lease / 3;
        while self.stopped().is_none() && member.condemned().is_none() {
            let due = member.last_answered() + third;
            let over = rt::race(
                async {
                    leg.dead().await;
                    true
                },
                rt::race(
                    async {
                        member.changed.wait().await;
                        false
                    },
                    async {
                        if self.is_calm() {
                            self.activity.begins().await;
                        } else {
                            rt::sleep_until(due).await;
                        }
                        false
                    },
                ),
            )
            .await;
            if over {
                return;
            }
            if rt::now() < member.last_answered() + third || self.is_calm() {
                continue;
            }
            let asked = rt::now();
            match rt::timeout(third * 2, leg.beat()).await {
                Ok(Ok(())) => {
                    member.answered(asked);
                    self.changed.notify();
                }
                Ok(Err(Status::Fenced)) => return self.stop(Status::Fenced),
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    /// Opens an association and makes the member accept our epoch, within `limit`.
    pub(crate) async fn connect(&self, replica: Uuid, limit: Duration) -> Result<Connection, Status> {
        let record = self.keeper.current();
        let entry = member(&record, replica).ok_or(Status::Gone)?.clone();
        let connected = async {
            let leg = Rc::new((self.dial)(entry).await?);
            let asked = rt::now();
            let hello = leg.accept_epoch(record.epoch, self.id).await?;
            Ok(Connection { leg, hello, asked })
        };
        rt::timeout(limit, connected).await.unwrap_or(Err(Status::TimedOut))
    }

    /// Brings the leg of a member in sync back; false if it is to be retired instead.
    async fn regain(self: &Rc<Self>, member: &Rc<Member>) -> bool {
        let give_up = rt::now() + self.config.regain_window;
        loop {
            // While writes could go on without it, no attempt lasts longer than the window.
            let limit = if self.others_in_sync_up(member) { give_up - rt::now() } else { self.config.lease };
            match self.connect(member.replica, limit).await {
                Ok(connection) => return self.readmit(member, connection).await,
                Err(Status::Fenced) => {
                    self.stop(Status::Fenced);
                    return true;
                }
                Err(_) => {}
            }
            if self.stopped().is_some() {
                return true;
            }
            if rt::now() >= give_up && self.others_in_sync_up(member) {
                return false;
            }
            rt::sleep(self.config.reconnect_pause).await;
        }
    }

    /// Takes a reconnected member back if nothing can be missing on it (I5).
    async fn readmit(self: &Rc<Self>, member: &Rc<Member>, connection: Connection) -> bool {
        let recorded = |record: &VolumeRecord| crate::record::member(record, member.replica).cloned();
        let hello = connection.hello;
        let misses_nothing = |entry: &MemberRecord| {
            entry.state == MemberState::InSync && entry.incarnation == Some(hello.incarnation)
        };
        while recorded(&self.keeper.current()).is_some_and(|entry| misses_nothing(&entry)) {
            if copies::catch_up(self, &connection.leg).await {
                self.take_up(member, connection);
                return true;
            }
        }
        let _membership = self.membership.lock().await;
        let Some(entry) = recorded(&self.keeper.current()) else { return false };
        if entry.state != MemberState::InSync || self.others_in_sync_up(member) {
            return false;
        }
        // Nobody better is reachable. The same boot has lost nothing that was completed, and what was under way is
        // asked again; another boot may have lost what was not flushed, and then the others must follow it (I10).
        let same_boot = entry.boot_id == Some(connection.hello.boot_id);
        let replica = member.replica;
        let taken = self.change_record(move |record| {
            take_over(record, replica, &hello, same_boot);
            true
        });
        if taken.await.is_err() {
            return true;
        }
        while !copies::catch_up(self, &connection.leg).await {}
        self.take_up(member, connection);
        true
    }

    fn take_up(&self, member: &Member, connection: Connection) {
        member.up(connection.leg, connection.asked);
        self.changed.notify();
    }

    /// Makes a member stale in the store; returns when that is durable, or when it has become the last one (I4).
    async fn retire(self: &Rc<Self>, member: &Rc<Member>) {
        while !self.others_in_sync_up(member) {
            if self.stopped().is_some() {
                return;
            }
            if self.state_of(member) != MemberState::InSync {
                break; // A rebuilding member is nobody's last copy.
            }
            member.pardon();
            if self.regain(member).await {
                return;
            }
        }
        let _membership = self.membership.lock().await;
        if self.in_sync(member) && !self.others_in_sync_up(member) {
            return; // The other one went meanwhile: look again.
        }
        let made_stale = self
            .change_entry(member, |entry| {
                let stale = MemberState::Stale { since: Generation::ZERO };
                let changes = matches!(entry.state, MemberState::InSync | MemberState::Rebuilding { .. });
                if changes {
                    entry.state = stale;
                }
                changes
            })
            .await;
        if made_stale.is_ok() {
            count(&self.counters.retired, 1);
            tracing::warn!(volume = %self.volume, member = %member.replica, node = member.node, "member is stale");
            member.set_receives(false);
            *member.owed.borrow_mut() = crate::owed::Owed::nothing();
            self.changed.notify();
        }
    }

    /// Whether some other member is in sync and up: only then may `member` be retired (I4).
    pub(crate) fn others_in_sync_up(&self, member: &Member) -> bool {
        self.members()
            .iter()
            .any(|other| other.replica != member.replica && self.in_sync(other) && other.leg().is_some())
    }

    /// Notes that what was completed but not flushed may be lost: older attachments fail from now on (I10).
    pub(crate) async fn note_gap(&self) -> Result<(), Status> {
        let noted = self.change_record(|record| {
            let changes = record.gap_through < record.attachment;
            record.gap_through = record.attachment;
            changes
        });
        noted.await
    }
}

/// Lets a member's leg go.
pub(crate) async fn close_leg(member: &Member) {
    if let Some(leg) = member.down() {
        leg.close().await;
    }
}

/// The only reachable member in sync goes on with another incarnation of its pool.
fn take_over(record: &mut VolumeRecord, replica: Uuid, hello: &Hello, same_boot: bool) {
    if !same_boot {
        record.gap_through = record.attachment;
        for other in record.members.iter_mut().filter(|other| other.replica != replica) {
            if other.state == MemberState::InSync {
                other.state = MemberState::Stale { since: Generation::ZERO };
            }
        }
    }
    if let Some(entry) = member_mut(record, replica) {
        entry.incarnation = Some(hello.incarnation);
        entry.boot_id = Some(hello.boot_id);
    }
}
