//! The state of an open volume, with one owner: the reactor that runs its nexus.

use crate::Planted;
use crate::activity::Activity;
use crate::copies;
use crate::leg::Leg;
use crate::member::Member;
use crate::order::{Kind, Order, Turn};
use crate::record::{Deposed, Keeper, member_mut};
use device::{BlockCount, ByteCount, Geometry, Lba, Status};
use model::{Generation, MemberRecord, MemberState, VolumeRecord};
use pool::EXTENT_SIZE;
use rt::Task;
use rt::sync::{Event, Mutex};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// The unit of order (I11), also on volumes with smaller blocks.
const ORDER_UNIT: u64 = 4096;

/// Opens an association with a member, or says why not. No epoch is accepted yet.
pub type Dial = Rc<dyn Fn(MemberRecord) -> Pin<Box<dyn Future<Output = Result<Leg, Status>>>>>;

/// How a nexus behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node it runs on.
    pub node: String,
    /// The lease time T of reads (I9).
    pub lease: Duration,
    /// How long a lost leg may take to come back before its member is made `Stale`.
    pub regain_window: Duration,
    /// How long opening waits for members that do not answer.
    pub connect_window: Duration,
    /// The pause between attempts to reach a member.
    pub reconnect_pause: Duration,
    /// A rule broken on purpose; only the simulator sets it.
    pub planted: Planted,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: String::new(),
            lease: Duration::from_secs(3),
            regain_window: Duration::from_secs(1),
            connect_window: Duration::from_secs(2),
            reconnect_pause: Duration::from_millis(200),
            planted: Planted::Nothing,
        }
    }
}

/// The running mirror of one volume; a cheap handle.
#[derive(Clone)]
pub struct Nexus(pub(crate) Rc<State>);

/// Everything a nexus knows.
pub(crate) struct State {
    pub(crate) config: Config,
    /// This nexus: a new UUID at each opening.
    pub(crate) id: Uuid,
    pub(crate) volume: Uuid,
    pub(crate) keeper: Keeper,
    pub(crate) dial: Dial,
    pub(crate) order: Order,
    pub(crate) activity: Rc<Activity>,
    pub(crate) members: RefCell<Vec<Rc<Member>>>,
    /// The counter of the open generation.
    counter: Cell<u64>,
    /// What members are made as large as: the volume's size, or the one that it is about to have.
    grown_bytes: Cell<u64>,
    /// Set once, when this nexus may not serve any more.
    stopped: Cell<Option<Status>>,
    /// A stop, a change of a member, an answer that renews the lease.
    pub(crate) changed: Event,
    /// One change of the set of members in sync at a time.
    pub(crate) membership: Mutex<()>,
    tasks: RefCell<Vec<Task<()>>>,
    /// Whether a resync runs.
    pub(crate) resyncing: Cell<bool>,
    pub(crate) counters: Counters,
}

/// What happened, for metrics, the status and the simulator's totals.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) retired: Cell<u64>,
    pub(crate) rebuilt: Cell<u64>,
    pub(crate) resumed: Cell<u64>,
    pub(crate) resynced_extents: Cell<u64>,
    pub(crate) copied_bytes: Cell<u64>,
    pub(crate) refused_for_space: Cell<u64>,
    pub(crate) overlaps: Cell<u64>,
    pub(crate) lease_waits: Cell<u64>,
}

/// Adds to a counter.
pub(crate) fn count(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get() + by);
}

impl State {
    pub(crate) fn new(config: Config, id: Uuid, keeper: Keeper, dial: Dial) -> Rc<Self> {
        let record = keeper.current();
        Rc::new(Self {
            config,
            id,
            volume: record.volume,
            keeper,
            dial,
            order: Order::default(),
            activity: Activity::new(),
            members: RefCell::new(record.members.iter().map(Member::new).collect()),
            counter: Cell::new(1),
            grown_bytes: Cell::new(record.size_bytes),
            stopped: Cell::new(None),
            changed: Event::new(),
            membership: Mutex::new(()),
            tasks: RefCell::default(),
            resyncing: Cell::new(false),
            counters: Counters::default(),
        })
    }

    /// The volume as hosts see it.
    pub(crate) fn geometry(&self) -> Geometry {
        self.keeper.with(|record| {
            let blocks = BlockCount(record.size_bytes / u64::from(record.block_size));
            Geometry { block_size: record.block_size, blocks }
        })
    }

    /// The size of every member that takes writes, or more: hosts see it once the record says so.
    pub(crate) fn member_bytes(&self) -> u64 {
        self.grown_bytes.get().max(self.geometry().size().0)
    }

    /// Members that join from now on are at least so large.
    pub(crate) fn grow_members(&self, size_bytes: u64) {
        self.grown_bytes.set(self.grown_bytes.get().max(size_bytes));
    }

    /// The extents that cover the volume.
    pub(crate) fn extents(&self) -> u64 {
        self.geometry().size().0.div_ceil(EXTENT_SIZE)
    }

    /// The extents that blocks lie in.
    pub(crate) fn extents_of(&self, lba: Lba, count: BlockCount) -> Range<u64> {
        let geometry = self.geometry();
        let start = geometry.offset_bytes(lba);
        start / EXTENT_SIZE..(start + geometry.offset_bytes(Lba(count.0))).div_ceil(EXTENT_SIZE)
    }

    /// The members as they are now.
    pub(crate) fn members(&self) -> Vec<Rc<Member>> {
        self.members.borrow().clone()
    }

    /// The confirmed state of a member.
    pub(crate) fn state_of(&self, member: &Member) -> MemberState {
        self.keeper.state(member.replica)
    }

    /// Whether the store has confirmed that the member is in sync.
    pub(crate) fn in_sync(&self, member: &Member) -> bool {
        self.state_of(member) == MemberState::InSync
    }

    /// Whether the member counts as in sync for I1, I2 and I9.
    pub(crate) fn may_be_in_sync(&self, member: &Member) -> bool {
        self.keeper.may_be_in_sync(member.replica)
    }

    /// Takes a place in the order for a range of bytes, widened to the unit of order.
    pub(crate) fn arrive(&self, bytes: Range<u64>, kind: Kind) -> Turn {
        if self.config.planted == Planted::NoOrder {
            return Order::default().arrive(0..1, kind);
        }
        let turn = self.order.arrive(bytes.start / ORDER_UNIT..bytes.end.div_ceil(ORDER_UNIT), kind);
        count(&self.counters.overlaps, u64::from(turn.waits()));
        turn
    }

    /// Takes a turn on one whole extent.
    pub(crate) fn arrive_at_extent(&self, extent: u64) -> Turn {
        self.arrive(extent * EXTENT_SIZE..(extent + 1) * EXTENT_SIZE, Kind::Exclusive)
    }

    /// Waits for a drained point: everything that arrived before has ended, nothing later begins until it is dropped.
    pub(crate) async fn drained(&self) -> Turn {
        let turn = self.order.arrive(0..u64::MAX, Kind::Exclusive);
        turn.granted().await;
        turn
    }

    /// The generation that new writes carry.
    pub(crate) fn generation(&self) -> Generation {
        Generation::new(self.keeper.epoch(), self.counter.get())
    }

    /// At a drained point: closes the open generation and returns it; every write that carries it has ended.
    pub(crate) fn close_generation(&self, _drained: &Turn) -> Generation {
        let closed = self.generation();
        self.counter.set(self.counter.get() + 1);
        closed
    }

    /// Why it does not serve, if so.
    pub(crate) fn stopped(&self) -> Option<Status> {
        self.stopped.get()
    }

    /// Stops serving, for good.
    pub(crate) fn stop(&self, status: Status) {
        if self.stopped.get().is_none() {
            tracing::warn!(volume = %self.volume, nexus = %self.id, epoch = self.keeper.epoch(), reason = %status, "nexus stops");
            self.stopped.set(Some(status));
        }
        self.changed.notify();
        for member in self.members() {
            member.changed.notify();
        }
    }

    /// Whether nobody used the volume for longer than the lease and nothing is to be done for its members: then nobody
    /// needs to know whether they are well, and an idle volume costs nothing.
    pub(crate) fn is_calm(&self) -> bool {
        self.activity.is_calm(self.config.lease)
            && !self.resyncing.get()
            && self.members().iter().all(|member| self.in_sync(member) && member.leg().is_some())
    }

    /// Runs `task` as long as this nexus lives.
    pub(crate) fn keep(&self, task: Task<()>) {
        let mut tasks = self.tasks.borrow_mut();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    /// Cancels the tasks of this nexus; none of them holds a change of blocks under way.
    pub(crate) fn cancel_tasks(&self) {
        self.tasks.take();
    }

    /// Changes the record, durably; a nexus that is deposed stops.
    pub(crate) async fn change_record(&self, edit: impl Fn(&mut VolumeRecord) -> bool) -> Result<(), Status> {
        let hand_out = async |record: &VolumeRecord| copies::hand_out(self, record).await;
        let answer = self.keeper.change(edit, hand_out).await.map_err(|Deposed| {
            self.stop(Status::Fenced);
            Status::Fenced
        });
        self.changed.notify();
        answer
    }

    /// Changes a member's entry in the record, durably; everybody who waits for it is told.
    pub(crate) async fn change_entry(
        &self,
        member: &Member,
        edit: impl Fn(&mut MemberRecord) -> bool,
    ) -> Result<(), Status> {
        let answer = self.change_record(|record| member_mut(record, member.replica).is_some_and(&edit)).await;
        member.changed.notify();
        answer
    }
}

impl Nexus {
    /// The volume's UUID.
    pub fn volume(&self) -> Uuid {
        self.0.volume
    }

    /// This nexus: a new UUID at each opening.
    pub fn id(&self) -> Uuid {
        self.0.id
    }

    /// Its epoch.
    pub fn epoch(&self) -> u64 {
        self.0.keeper.epoch()
    }

    /// The size of the volume.
    pub fn size(&self) -> ByteCount {
        self.0.geometry().size()
    }

    /// Whether nobody has used the volume for a while and all its members are in sync.
    pub fn is_calm(&self) -> bool {
        self.0.is_calm()
    }

    /// Why it does not serve any more: fenced by a newer owner, or closed.
    pub fn stopped(&self) -> Option<Status> {
        self.0.stopped()
    }

    /// Waits until it stops for good.
    pub async fn until_stopped(&self) -> Status {
        loop {
            match self.0.stopped() {
                Some(status) => return status,
                None => self.0.changed.wait().await,
            }
        }
    }
}
