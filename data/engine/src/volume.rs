//! One volume whose owner this node is wished to be: opens its nexus, serves it, and reports.

use crate::device_node::DeviceNode;
use crate::dial::dial;
use crate::meter::Meter;
use crate::{ControlError, State};
use device::Status;
use model::{
    Generation, MemberPhase, MemberRecord, MemberStatus, NexusState, Rebuild, Volume, VolumeIntent,
    VolumeStatus,
};
use nexus::{Nexus, NexusStatus};
use pool::EXTENT_SIZE;
use rt::Task;
use rt::sync::Event;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// How often a running volume is looked at and reported, if something changed.
const LOOK: Duration = Duration::from_millis(500);
/// The same while nobody uses the volume and all its copies are in sync.
const LOOK_CALM: Duration = Duration::from_secs(2);
/// The pause before a volume that could not be opened is tried again.
const REOPEN: Duration = Duration::from_millis(500);

/// The open nexus of a volume.
#[derive(Clone)]
pub struct VolumeHandle {
    /// The nexus.
    pub nexus: Nexus,
}

/// The task of one volume.
pub(crate) struct VolumeTask {
    volume: Rc<Running>,
    task: Task<()>,
}

struct Running {
    wish: RefCell<Volume>,
    wanted: Cell<bool>,
    changed: Event,
    nexus: RefCell<Option<Nexus>>,
    device: DeviceNode,
    meter: Rc<Meter>,
    /// Why its readers have to wait.
    readers_wait: RefCell<Option<String>>,
    /// Why the volume cannot end now.
    refused: RefCell<Option<String>>,
    over: Cell<bool>,
    reported: RefCell<Option<VolumeStatus>>,
}

impl VolumeTask {
    /// Begins to serve a volume.
    pub(crate) fn start(state: &Rc<State>, volume: Volume) -> Self {
        let running = Rc::new(Running {
            wish: RefCell::new(volume),
            wanted: Cell::new(true),
            changed: Event::new(),
            nexus: RefCell::default(),
            device: DeviceNode::default(),
            meter: Rc::default(),
            readers_wait: RefCell::default(),
            refused: RefCell::default(),
            over: Cell::new(false),
            reported: RefCell::default(),
        });
        let task = rt::spawn(Rc::clone(&running).run(Rc::clone(state)));
        Self { volume: running, task }
    }

    /// What the store wishes of it now.
    pub(crate) fn wish(&self, volume: &Volume, wanted: bool) {
        if *self.volume.wish.borrow() != *volume || self.volume.wanted.get() != wanted {
            *self.volume.wish.borrow_mut() = volume.clone();
            self.volume.wanted.set(wanted);
            self.volume.changed.notify();
        }
    }

    /// Nobody wishes anything of it any more.
    pub(crate) fn unwish(&self) {
        self.volume.wanted.set(false);
        self.volume.changed.notify();
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.volume.over.get()
    }

    /// The volume's name.
    pub(crate) fn name(&self) -> String {
        self.volume.wish.borrow().name.clone()
    }

    /// What counts the I/O of its hosts.
    pub(crate) fn meter(&self) -> &Meter {
        &self.volume.meter
    }

    /// Its nexus, while it is open.
    pub(crate) fn handle(&self) -> Option<VolumeHandle> {
        self.volume.nexus.borrow().clone().map(|nexus| VolumeHandle { nexus })
    }

    /// Ends the volume in order: removes its device, closes its nexus.
    ///
    /// # Errors
    /// Gives itself back, with the reason, when its device is in use; it goes on then.
    pub(crate) async fn close(self) -> Result<(), (Self, String)> {
        *self.volume.refused.borrow_mut() = None;
        self.unwish();
        while !self.is_over() {
            let refused = self.volume.refused.take();
            if let Some(reason) = refused {
                self.volume.wanted.set(true);
                return Err((self, reason));
            }
            rt::race(self.volume.changed.wait(), rt::sleep(LOOK)).await;
        }
        self.task.await;
        Ok(())
    }
}

impl Running {
    async fn run(self: Rc<Self>, state: Rc<State>) {
        while self.wanted.get() {
            match self.is_wanted_still(&state).await {
                Ok(true) => self.open(&state).await,
                Ok(false) => self.wanted.set(false),
                Err(error) => {
                    tracing::debug!(volume = self.wish.borrow().name, %error, "the volume waits for the store");
                    self.pause().await;
                }
            }
        }
        self.over.set(true);
        self.changed.notify();
    }

    /// Whether the store itself says that the volume is to be here. What is known may be from before it has moved, and
    /// to open it is to take it from whoever has it.
    async fn is_wanted_still(&self, state: &State) -> Result<bool, ControlError> {
        let (name, uuid) = (self.wish.borrow().name.clone(), self.wish.borrow().uuid);
        let found = state.control.volume(&name).await?;
        Ok(found.is_some_and(|volume| volume.uuid == uuid && state.owns(&volume)))
    }

    async fn open(&self, state: &Rc<State>) {
        let uuid = self.wish.borrow().uuid;
        let config = nexus::Config { node: state.config.node.clone(), ..state.config.nexus.clone() };
        match nexus::open(config, state.control.records(), dial(state), uuid).await {
            Ok(nexus) => self.serve(state, nexus).await,
            Err(error) => {
                self.report_unopened(state, &error.to_string()).await;
                self.pause().await;
            }
        }
    }

    /// Before it is tried again.
    async fn pause(&self) {
        rt::race(self.changed.wait(), rt::sleep(REOPEN)).await;
    }

    /// Serves an open nexus until it is fenced or not wanted any more.
    async fn serve(&self, state: &Rc<State>, nexus: Nexus) {
        let name = self.wish.borrow().name.clone();
        tracing::info!(volume = name, nexus = %nexus.id(), epoch = nexus.epoch(), "volume is open");
        *self.nexus.borrow_mut() = Some(nexus.clone());
        self.meter.opened();
        state.exports.add(&name, &nexus, &self.meter);
        // At once: a host that came first would write what readers of the owner before do not know of.
        let wish = self.wish.borrow().clone();
        self.let_read(state, &wish);
        self.changed.notify();
        while nexus.stopped().is_none() {
            self.follow_wish(state, &nexus).await;
            // One that is over is opened anew, but not under whoever has the device: it works until the record changes.
            if (!self.wanted.get() || is_over(state, &nexus)) && self.device.path().is_none() {
                break;
            }
            let message = self.device.message().or_else(|| self.readers_wait.borrow().clone());
            self.report(state, &nexus, NexusState::Serving, message).await;
            let over = async {
                nexus.until_stopped().await;
            };
            let look = if nexus.is_calm() && self.device.is_settled() { LOOK_CALM } else { LOOK };
            rt::race(over, rt::race(self.changed.wait(), rt::sleep(look))).await;
        }
        state.exports.remove(&name);
        let (end, message) = match nexus.stopped() {
            Some(status) => {
                nexus.abandon().await;
                self.give_device_up(&name).await;
                (NexusState::Failed, Some(status.to_string()))
            }
            None => match nexus.close().await {
                Ok(()) => (NexusState::Closed, None),
                Err(status) => (NexusState::Closed, Some(format!("not closed cleanly: {status}"))),
            },
        };
        *self.nexus.borrow_mut() = None;
        self.report(state, &nexus, end, message).await;
        self.wait_unused(state).await;
    }

    /// Others have the volume by now: what uses its device here gets errors from now on, whatever happens. Were it to
    /// wait, it would go on when the volume comes back, with what it remembers of a volume that is another one by then.
    async fn give_device_up(&self, name: &str) {
        let Err(reason) = self.device.detach().await else { return };
        tracing::warn!(
            volume = name,
            reason,
            "the device of a volume that moved away is still in use; its I/O fails"
        );
        if let Err(error) = self.device.abort().await {
            tracing::error!(volume = name, error, "it cannot be made to fail");
        }
    }

    /// Waits until nobody uses the device of a nexus that is gone: before that the volume is not opened here again.
    async fn wait_unused(&self, state: &State) {
        while self.device.path().is_some() {
            rt::race(self.changed.wait(), rt::sleep(LOOK)).await;
            let Err(reason) = self.device.detach().await else { return };
            if self.wanted.get() {
                self.report_unopened(state, &reason).await;
            } else {
                *self.refused.borrow_mut() = Some(reason);
                self.changed.notify();
            }
        }
    }

    /// Gives the nexus the wished members and size, and the volume its device.
    async fn follow_wish(&self, state: &State, nexus: &Nexus) {
        let wish = self.wish.borrow().clone();
        match latest(state, nexus, &wish).await {
            Ok(Some(wish)) => follow_members(nexus, &wish).await,
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(volume = wish.name, %error, "the volume's members wait for the store");
            }
        }
        // Before anybody can write.
        self.let_read(state, &wish);
        if let Some(fuse) = &state.config.fuse {
            let here = wish.intent.attach.as_ref().is_some_and(|attach| attach.node == state.config.node);
            let wanted = here && self.wanted.get();
            self.device.follow(state, fuse, nexus, &self.meter, &wish, wanted).await;
            if !self.wanted.get() && self.device.path().is_some() {
                *self.refused.borrow_mut() = self.device.message();
                self.changed.notify();
            }
        }
        self.let_read(state, &wish);
    }

    /// Lets the readers in that are wished, once the device for writing is gone; keeps all others out.
    fn let_read(&self, state: &State, wish: &Volume) {
        let VolumeIntent { attach, readers, attach_serial, .. } = &wish.intent;
        let are_wished = self.wanted.get() && attach.is_none() && !readers.is_empty();
        let serial = (are_wished && self.device.path().is_none()).then_some(*attach_serial);
        *self.readers_wait.borrow_mut() = state.exports.let_read(&wish.name, serial).err();
    }

    async fn report_unopened(&self, state: &State, message: &str) {
        let wish = self.wish.borrow().clone();
        // Under the epoch of the record: a report of an older one is not looked at.
        let Ok(known) = state.control.records().read(wish.uuid).await else { return };
        let status = VolumeStatus {
            volume: wish.uuid,
            node: state.config.node.clone(),
            nexus: Uuid::nil(),
            epoch: known.record.epoch,
            state: NexusState::Opening,
            device: None,
            target: None,
            attachment: 0,
            attach_serial: 0,
            size_bytes: wish.spec.size_bytes,
            stable: Generation::ZERO,
            members: Vec::new(),
            write_stall_max_ms: 0,
            message: Some(message.to_owned()),
        };
        // The owner before may have reported since, under the same epoch.
        *self.reported.borrow_mut() = None;
        self.write_report(state, status).await;
    }

    async fn report(&self, state: &State, nexus: &Nexus, nexus_state: NexusState, message: Option<String>) {
        let seen = nexus.status();
        let wish = self.wish.borrow().clone();
        let serving = nexus_state == NexusState::Serving;
        let target = format!("nvme+tcp://{}/{}", state.address, crate::target::volume_nqn(&wish.name));
        let status = VolumeStatus {
            volume: wish.uuid,
            node: state.config.node.clone(),
            nexus: nexus.id(),
            epoch: seen.record.epoch,
            state: nexus_state,
            // Without block devices an attached volume is reached where initiators find it.
            device: match state.config.fuse {
                Some(_) => self.device.path(),
                None => wish.intent.attach.as_ref().filter(|_| serving).map(|_| target.clone()),
            },
            target: serving.then_some(target),
            attachment: seen.record.attachment,
            attach_serial: wish.intent.attach_serial,
            size_bytes: self.device.size_bytes().unwrap_or(seen.record.size_bytes),
            stable: Generation::ZERO,
            members: members(&seen),
            write_stall_max_ms: u64::try_from(self.meter.stall_max().as_millis()).unwrap_or(u64::MAX),
            message,
        };
        self.write_report(state, status).await;
    }

    async fn write_report(&self, state: &State, status: VolumeStatus) {
        if self.reported.borrow().as_ref() == Some(&status) {
            return;
        }
        match state.control.report_volume(status.clone()).await {
            Ok(()) => *self.reported.borrow_mut() = Some(status),
            Err(error) => tracing::debug!(volume = %status.volume, %error, "status not written"),
        }
    }
}

/// The members that a volume is wished to have.
fn wished(wish: &Volume) -> Vec<MemberRecord> {
    let member = |m: &model::MemberIntent| MemberRecord::new(m.replica, m.pool, m.node.clone());
    wish.intent.members.iter().map(member).collect()
}

/// Whether the volume has a later epoch: the record of this nexus was lost, and was made again since (I12).
fn is_over(state: &State, nexus: &Nexus) -> bool {
    let known = state.control.known();
    let record = known.as_ref().and_then(|known| known.records.get(&nexus.volume().to_string()));
    record.is_some_and(|record| record.value.epoch > nexus.epoch())
}

/// The wish by which a nexus changes its record; none if there is no such volume any more. What was told may be from
/// before a replica was destroyed and forgotten, and would have it made again: the store itself is asked, by a nexus that
/// is open and so is the only one who changes the record (docs/decisions/0028).
async fn latest(state: &State, nexus: &Nexus, told: &Volume) -> Result<Option<Volume>, ControlError> {
    if nexus.has_adopted(&wished(told), &told.intent.forget) {
        return Ok(Some(told.clone()));
    }
    let found = state.control.volume(&told.name).await?;
    Ok(found.filter(|volume| volume.uuid == told.uuid))
}

/// Gives the nexus the wished members and size.
async fn follow_members(nexus: &Nexus, wish: &Volume) {
    let followed = async {
        nexus.adopt(&wished(wish), &wish.intent.forget).await?;
        nexus.resize(wish.spec.size_bytes).await
    };
    if let Err(status) = followed.await
        && status != Status::Fenced
    {
        tracing::info!(volume = %nexus.volume(), %status, "volume cannot follow its wish yet");
    }
}

/// The members as the store's status shows them.
fn members(seen: &NexusStatus) -> Vec<MemberStatus> {
    let member = |m: &nexus::MemberStatus| {
        let phase = MemberPhase::from(m.state);
        let rebuild = Rebuild {
            done_bytes: (m.total_extents - m.owed_extents) * EXTENT_SIZE,
            total_bytes: m.total_extents * EXTENT_SIZE,
            sent_bytes: m.copied_bytes,
            resumed: m.resumed,
        };
        let rebuilding = phase == MemberPhase::Rebuilding;
        MemberStatus {
            replica: m.replica,
            node: m.node.clone(),
            state: phase,
            reachable: m.up,
            rebuild: rebuilding.then_some(rebuild),
            rebuilt: (!rebuilding && m.total_extents > 0).then_some(rebuild),
            message: None,
        }
    };
    seen.members.iter().map(member).collect()
}
