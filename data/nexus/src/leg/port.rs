//! The port of a replica: who may talk to it. Epochs fence here (I3).
//!
//! A nexus opens a [`Session`] (one per association), then makes it accept an epoch. Before the port answers that, it
//! closes every other session, refuses what they have not started and waits for what they have. So when a new owner is
//! told "accepted", no command of an older owner, nor of an older connection of its own, can still change the replica.
//!
//! # Invariants
//! 1. At most one session is admitted at any time, and its epoch is the one that the replica has durably.
//! 2. A command runs only while its session is admitted; admission is checked when it starts.
//! 3. `accept_epoch` returns only after every command of every other session has ended.
//! 4. A session accepts one epoch, ever: a second one would let its own commands of the first run on (I3).

use crate::Planted;
use crate::leg::Change;
use device::{AnyDevice, Lba, Status};
use model::Generation;
use pool::{Changed, Progress};
use rt::sync::{Event, Mutex};
use rt::{DmaBuf, Durability};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use uuid::Uuid;

/// A replica in a pool of this node.
pub type Replica = pool::Replica<AnyDevice>;

/// What a member says of itself when it accepts an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The incarnation of its pool: drawn at each opening (I5).
    pub incarnation: Uuid,
    /// The boot of its node: the same boot has lost nothing that was completed.
    pub boot_id: Uuid,
    /// Its size.
    pub size_bytes: u64,
    /// The latest generation known to be stable on it.
    pub stable: Generation,
    /// How far a rebuild of it has come.
    pub progress: Option<Progress>,
}

/// What a member keeps of its volume, whoever asks (I12).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The highest epoch that it has accepted.
    pub epoch: u64,
    /// Its copy of the volume's record; empty: none.
    pub record: Vec<u8>,
}

/// The only way to a replica.
#[derive(Clone)]
pub struct Port(Rc<PortState>);

struct PortState {
    replica: Replica,
    incarnation: Uuid,
    boot_id: Uuid,
    planted: Planted,
    sessions: RefCell<Vec<Rc<SessionState>>>,
    accepting: Mutex<()>,
}

/// One association with a replica.
#[derive(Clone)]
pub struct Session {
    port: Port,
    state: Rc<SessionState>,
}

#[derive(Default)]
struct SessionState {
    epoch: Cell<Option<u64>>,
    refused: Cell<Option<Status>>,
    running: Cell<usize>,
    changed: Event,
}

impl SessionState {
    fn refuse(&self, status: Status) {
        if self.refused.get().is_none() {
            self.refused.set(Some(status));
        }
        self.changed.notify();
    }

    async fn idle(&self) {
        while self.running.get() > 0 {
            self.changed.wait().await;
        }
    }
}

/// A command under way; its end is what a newer owner waits for.
struct Running(Rc<SessionState>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        if self.0.running.get() == 0 {
            self.0.changed.notify();
        }
    }
}

impl Port {
    /// The port of `replica`, in a pool with this incarnation, on a node with this boot.
    pub fn new(replica: Replica, incarnation: Uuid, boot_id: Uuid, planted: Planted) -> Self {
        let sessions = RefCell::default();
        Self(Rc::new(PortState {
            replica,
            incarnation,
            boot_id,
            planted,
            sessions,
            accepting: Mutex::new(()),
        }))
    }

    /// The replica behind it, for reports.
    pub fn replica(&self) -> &Replica {
        &self.0.replica
    }

    /// Opens a session, which can do nothing until it has made the member accept an epoch.
    pub fn open(&self) -> Session {
        let state = Rc::new(SessionState::default());
        self.0.sessions.borrow_mut().push(Rc::clone(&state));
        Session { port: self.clone(), state }
    }

    /// Whether a nexus works with the replica now.
    pub fn is_in_use(&self) -> bool {
        let admitted = |s: &Rc<SessionState>| s.epoch.get().is_some() && s.refused.get().is_none();
        self.0.sessions.borrow().iter().any(admitted)
    }

    /// Ends every session, waits for their commands, and lets nobody in any more (deletion, shutdown).
    pub async fn shut(&self) {
        let _accepting = self.0.accepting.lock().await;
        self.close_others(None, Status::Gone).await;
    }

    async fn close_others(&self, survivor: Option<&Rc<SessionState>>, status: Status) {
        let others: Vec<_> = self
            .0
            .sessions
            .borrow()
            .iter()
            .filter(|session| survivor.is_none_or(|survivor| !Rc::ptr_eq(session, survivor)))
            .cloned()
            .collect();
        // Sessions that have not accepted yet may still compete for a higher epoch.
        let rivals = others.iter().filter(|session| survivor.is_none() || session.epoch.get().is_some());
        for session in rivals.clone() {
            session.refuse(status);
        }
        for session in rivals {
            session.idle().await;
        }
        self.0.sessions.borrow_mut().retain(|session| session.refused.get().is_none());
    }
}

impl Session {
    /// Makes the replica accept `epoch` of `nexus`, durably, and everybody else go.
    ///
    /// # Errors
    /// `Fenced` when the replica has seen a higher epoch, or this epoch of another nexus; `Invalid` when this session has
    /// accepted another epoch before: a nexus opens a new association for each.
    pub async fn accept_epoch(&self, epoch: u64, nexus: Uuid) -> Result<Hello, Status> {
        let port = &self.port.0;
        let _accepting = port.accepting.lock().await;
        if let Some(refused) = self.state.refused.get() {
            return Err(refused);
        }
        if self.state.epoch.get().is_some_and(|accepted| accepted != epoch) {
            return Err(Status::Invalid); // Invariant 4.
        }
        let fence = port.replica.fence();
        let unfenced = port.planted == Planted::NoFence;
        let newer = epoch > fence.epoch || (epoch == fence.epoch && nexus == fence.nexus);
        if !newer && !unfenced {
            return Err(Status::Fenced);
        }
        if !unfenced {
            let status = if epoch > fence.epoch { Status::Fenced } else { Status::Gone };
            self.port.close_others(Some(&self.state), status).await;
        }
        if newer {
            port.replica.accept_epoch(epoch, nexus).await?;
        }
        self.state.epoch.set(Some(epoch));
        Ok(Hello {
            incarnation: port.incarnation,
            boot_id: port.boot_id,
            size_bytes: port.replica.config().size_bytes,
            stable: port.replica.stable(),
            progress: port.replica.progress(),
        })
    }

    /// Lets a command start, if this session's epoch is in force.
    fn admit(&self) -> Result<Running, Status> {
        if let Some(refused) = self.state.refused.get() {
            return Err(refused);
        }
        let epoch = self.state.epoch.get().ok_or(Status::Fenced)?;
        if epoch != self.port.0.replica.fence().epoch && self.port.0.planted != Planted::NoFence {
            return Err(Status::Fenced); // Invariant 1, whatever the other side sends and when.
        }
        self.state.running.set(self.state.running.get() + 1);
        Ok(Running(Rc::clone(&self.state)))
    }

    fn replica(&self) -> &Replica {
        &self.port.0.replica
    }

    /// The replica this session is of.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// See [`crate::leg::Leg::read`].
    pub async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        let _running = self.admit()?;
        self.replica().read(lba, buf).await
    }

    /// See [`crate::leg::Leg::change`]. The generation's epoch is the session's own.
    pub async fn change(
        &self,
        generation: Generation,
        lba: Lba,
        change: Change,
        durability: Durability,
    ) -> Result<(), Status> {
        let _running = self.admit()?;
        let replica = self.replica();
        let generation = self.as_obeyed(generation);
        match change {
            Change::Write(data) => replica.write(generation, lba, data, durability).await,
            Change::Zeroes(count) => replica.write_zeroes(generation, lba, count, durability).await,
            Change::Unmap(count) => replica.unmap(generation, lba, count).await,
            Change::Bad(count) => replica.mark_bad(generation, lba, count).await,
        }
    }

    /// The generation itself; with the planted bug of I3 one that the pool, which looks as well, takes from anybody.
    fn as_obeyed(&self, generation: Generation) -> Generation {
        let fence = self.replica().fence();
        if self.port.0.planted == Planted::NoFence && generation.epoch < fence.epoch {
            return Generation { epoch: fence.epoch, ..generation };
        }
        generation
    }

    /// See [`crate::leg::Leg::flush`].
    pub async fn flush(&self) -> Result<(), Status> {
        let _running = self.admit()?;
        self.replica().flush().await
    }

    /// See [`crate::leg::Leg::beat`].
    #[expect(clippy::unused_async, reason = "the same shape as the remote leg's")]
    pub async fn beat(&self) -> Result<(), Status> {
        self.admit().map(drop)
    }

    /// See [`crate::leg::Leg::changed_since`].
    #[expect(clippy::unused_async, reason = "the same shape as the remote leg's")]
    pub async fn changed_since(
        &self,
        since: Generation,
        first_extent: u64,
        max_extents: usize,
    ) -> Result<Changed, Status> {
        let _running = self.admit()?;
        Ok(self.replica().changed_since(since, first_extent, max_extents))
    }

    /// See [`crate::leg::Leg::hash_extent`].
    pub async fn hash_extent(&self, extent: u64, seed: u64) -> Result<Vec<[u8; 16]>, Status> {
        let _running = self.admit()?;
        self.replica().hash_extent(extent, seed).await
    }

    /// See [`crate::leg::Leg::set_progress`].
    pub async fn set_progress(&self, progress: Option<Progress>) -> Result<(), Status> {
        let _running = self.admit()?;
        self.replica().set_progress(progress).await
    }

    /// See [`crate::leg::Leg::set_record`].
    pub async fn set_record(&self, record: &[u8]) -> Result<(), Status> {
        let _running = self.admit()?;
        self.replica().set_record(record).await
    }

    /// See [`crate::leg::Leg::kept`]. It needs no admission: who is refused has to find out whether that is because the
    /// store was set back.
    #[expect(clippy::unused_async, reason = "the same shape as the remote leg's")]
    pub async fn kept(&self) -> Result<Kept, Status> {
        let replica = self.replica();
        Ok(Kept { epoch: replica.fence().epoch, record: replica.record().unwrap_or_default() })
    }

    /// See [`crate::leg::Leg::resize`].
    pub async fn resize(&self, size_bytes: u64) -> Result<(), Status> {
        let _running = self.admit()?;
        self.replica().resize(size_bytes).await
    }

    /// Waits until this session is refused.
    pub async fn dead(&self) {
        while self.state.refused.get().is_none() {
            self.state.changed.wait().await;
        }
    }

    /// Ends the session and waits for its commands.
    pub async fn close(&self) {
        self.state.refuse(Status::Gone);
        self.state.idle().await;
        self.port.0.sessions.borrow_mut().retain(|session| !Rc::ptr_eq(session, &self.state));
    }
}
