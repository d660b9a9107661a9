//! Where copies go: distinct nodes and failure domains first, then room, then balance. Pure and deterministic.
//!
//! 1. No node gets two copies of a volume that could both count: a node that has said that a copy's pool is gone may get
//!    another one in another pool (docs/decisions/0009).
//! 2. A pool gets a copy only if what was promised of it stays within its capacity times the over-commit, what the copy is
//!    to hold at once is free, and so is a twentieth of the pool or the copy's whole size: volumes are thin, and may be
//!    larger than a disk. Pools that have the whole size free come first.
//! 3. Nothing is placed on a node whose operator wishes otherwise, nor on a disk of another class than the volume's.
//! 4. All or nothing: a volume that does not fit gets no place at all.
//! 5. A wish to be near a node chooses among places that are possible: it never makes one, and never takes one away.
//! 6. No two copies that stay are on nodes with the same value of the label that keeps them apart, and none is on a node
//!    without it (docs/decisions/0024). One that is to go makes way for another in its domain, on another node.
//! 7. A new volume that has to be on one of some nodes is there, or gets no place.

use crate::{NoPlace, View, no_place::Others};
use model::{
    DiskClass, MemberIntent, Node, NodeState, Pool, PoolState, Scheduling, SizeText, Volume, VolumeSpec,
};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// How much more may be promised of a pool than it has: volumes are thin.
pub const OVERCOMMIT_DEFAULT: u64 = 10;
/// Of a pool that has less than this part of it free nothing more is promised than is free.
const RESERVE_PART: u64 = 20;

/// What has been promised of each pool: the sum of the sizes of the volumes that have a copy there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promised {
    /// Wide enough for any number of volumes; none is 0.
    bytes: BTreeMap<Uuid, u128>,
}

impl Promised {
    /// Counts the members of all volumes.
    pub fn of(view: &View) -> Self {
        let mut promised = Self::default();
        view.volumes.values().for_each(|volume| promised.add_volume(&volume.value));
        promised
    }

    pub(crate) fn add_volume(&mut self, volume: &Volume) {
        volume.intent.members.iter().for_each(|member| self.add(member.pool, volume.spec.size_bytes));
    }

    /// Takes back what was added with the volume as it was.
    pub(crate) fn subtract_volume(&mut self, volume: &Volume) {
        volume.intent.members.iter().for_each(|member| self.subtract(member.pool, volume.spec.size_bytes));
    }

    fn add(&mut self, pool: Uuid, bytes: u64) {
        if bytes > 0 {
            *self.bytes.entry(pool).or_default() += u128::from(bytes);
        }
    }

    fn subtract(&mut self, pool: Uuid, bytes: u64) {
        let sum = self.bytes.remove(&pool).unwrap_or(0);
        let rest = sum.checked_sub(u128::from(bytes)).expect("only what was promised is taken back");
        if rest > 0 {
            self.bytes.insert(pool, rest);
        }
    }

    fn of_pool(&self, pool: Uuid) -> u64 {
        self.bytes.get(&pool).map_or(0, |sum| u64::try_from(*sum).unwrap_or(u64::MAX))
    }
}

/// Copies to place.
#[derive(Clone, Copy, Debug)]
pub struct Copies<'a> {
    /// The size of each.
    pub size_bytes: u64,
    /// What each is to hold as soon as it is made.
    pub held_bytes: u64,
    /// The class of the disks that may hold one; none: any disk.
    pub class: Option<DiskClass>,
    /// The label of nodes that keeps them apart; none: only nodes do.
    pub spread: Option<&'a str>,
    /// Those that the volume has.
    pub present: &'a [MemberIntent],
    /// Of them the replicas that are to go: another one may be in the same failure domain (invariant 6).
    pub leaving: &'a [Uuid],
    /// How many more.
    pub wanted: usize,
    /// The node that gets the first of them if it can take one (invariant 5).
    pub near: Option<&'a str>,
    /// Of these nodes one has to get one of them; none: any will do (invariant 7).
    pub on: Option<&'a BTreeSet<String>>,
}

impl<'a> Copies<'a> {
    /// Empty copies of that size, wherever they are.
    pub const fn new(size_bytes: u64, wanted: usize) -> Self {
        Self {
            size_bytes,
            held_bytes: 0,
            class: None,
            spread: None,
            present: &[],
            leaving: &[],
            wanted,
            near: None,
            on: None,
        }
    }

    /// All copies of a new volume.
    pub fn of(spec: &'a VolumeSpec) -> Self {
        let wanted = usize::try_from(spec.copies).unwrap_or(usize::MAX);
        Self { class: spec.class, spread: spec.spread.as_deref(), ..Self::new(spec.size_bytes, wanted) }
    }

    fn is_wanted_on(&self, node: &str) -> bool {
        self.on.is_none_or(|nodes| nodes.contains(node))
    }
}

/// What no further copy may share with those that a volume has.
struct Taken<'a> {
    /// Invariant 1.
    nodes: BTreeSet<&'a str>,
    /// Invariant 6.
    domains: BTreeSet<&'a str>,
}

impl<'a> Taken<'a> {
    fn by(view: &'a View, copies: &Copies<'a>) -> Self {
        let could_count = || copies.present.iter().filter(|member| !view.is_gone(member.pool));
        let stay = could_count().filter(|member| !copies.leaving.contains(&member.replica));
        Self {
            nodes: could_count().map(|member| member.node.as_str()).collect(),
            domains: stay.filter_map(|member| view.domain(copies.spread, &member.node)).collect(),
        }
    }
}

/// Chooses pools for more copies of a volume, and promises their space.
pub fn place(
    view: &View,
    promised: &mut Promised,
    overcommit: u64,
    copies: &Copies<'_>,
    new_uuid: &mut dyn FnMut() -> Uuid,
) -> Result<Vec<MemberIntent>, NoPlace> {
    let &Copies { size_bytes, wanted, .. } = copies;
    let taken = Taken::by(view, copies);
    let best = best(view, promised, overcommit, copies, &taken);
    if best.len() < wanted {
        return Err(too_few(view, copies, &taken, best.keys().map(|domain| (*domain).to_owned()).collect()));
    }
    let (mut candidates, without): (Vec<_>, Vec<_>) =
        best.into_values().partition(|candidate| candidate.room_bytes >= size_bytes);
    if candidates.len() < wanted {
        return Err(NoPlace::TooLittleSpace {
            wanted,
            size_bytes,
            spread: copies.spread.map(str::to_owned),
            class: copies.class,
            with_room: candidates.len(),
            largest_bytes: without.iter().map(|candidate| candidate.room_bytes).max().unwrap_or(0),
        });
    }
    // Of many nodes only the few best have to be in order.
    if wanted < candidates.len() {
        candidates.select_nth_unstable_by_key(wanted, |candidate| candidate.order(copies));
        candidates.truncate(wanted);
    }
    candidates.sort_by_key(|candidate| candidate.order(copies));
    if let Some(nodes) = copies.on
        && !candidates.iter().any(|candidate| nodes.contains(&candidate.pool.node))
    {
        return Err(not_there(view, promised, overcommit, copies, nodes));
    }
    let chosen = candidates.iter().map(|candidate| candidate.pool);
    let members = chosen
        .map(|pool| MemberIntent { replica: new_uuid(), pool: pool.uuid, node: pool.node.clone() })
        .collect::<Vec<_>>();
    for member in &members {
        promised.add(member.pool, size_bytes);
    }
    Ok(members)
}

/// The best pool of each failure domain that can take a copy, whatever its space.
fn best<'a>(
    view: &'a View,
    promised: &Promised,
    overcommit: u64,
    copies: &Copies<'_>,
    taken: &Taken<'_>,
) -> BTreeMap<&'a str, Candidate<'a>> {
    let mut best: BTreeMap<&str, Candidate<'_>> = BTreeMap::new();
    for (domain, pool) in usable(view, copies) {
        if taken.nodes.contains(pool.node.as_str()) || taken.domains.contains(domain) {
            continue;
        }
        let candidate = Candidate::of(pool, promised, overcommit, copies.held_bytes);
        let known = best.entry(domain).or_insert(candidate);
        if candidate.order(copies) < known.order(copies) {
            *known = candidate;
        }
    }
    best
}

/// The pools that can take a copy, whatever their space, and the failure domain of each.
fn usable<'a>(view: &'a View, copies: &Copies<'_>) -> impl Iterator<Item = (&'a str, &'a Pool)> {
    let &Copies { class, spread, .. } = copies;
    let is_open = |node: &str| view.is_ready(node) && view.scheduling(node) == Scheduling::Enabled;
    let pools = view.pools.values().map(|pool| &pool.value);
    let usable = pools.filter(move |pool| pool.takes_copies() && pool.is_of(class) && is_open(&pool.node));
    usable.filter_map(move |pool| Some((view.domain(spread, &pool.node)?, pool)))
}

/// The size of the largest copies that have a place, whatever their size was to be: what the worst of the best failure
/// domains has room for; 0 if there are too few of them.
pub fn largest(view: &View, promised: &Promised, overcommit: u64, copies: &Copies<'_>) -> u64 {
    let mut best: BTreeMap<&str, (bool, u64)> = BTreeMap::new();
    for (domain, pool) in usable(view, copies) {
        let room_bytes = Candidate::of(pool, promised, overcommit, copies.held_bytes).room_bytes;
        let room = best.entry(domain).or_default();
        *room = (copies.is_wanted_on(&pool.node), room_bytes).max(*room);
    }
    let mut best: Vec<(bool, u64)> = best.into_values().collect();
    // Where one has to be comes first.
    best.sort_unstable_by(|a, b| b.cmp(a));
    let chosen = best.get(..copies.wanted).filter(|chosen| chosen.iter().any(|(is_wanted, _)| *is_wanted));
    chosen.and_then(|chosen| chosen.iter().map(|(_, bytes)| *bytes).min()).unwrap_or(0)
}

/// Why no more than these nodes, or values of the label, can take a copy.
fn too_few(view: &View, copies: &Copies<'_>, taken: &Taken<'_>, usable: Vec<String>) -> NoPlace {
    let named = |is_so: &dyn Fn(&Node) -> bool| {
        let nodes = view.nodes.values().map(|node| &node.value).filter(|node| is_so(node));
        nodes.map(|node| node.name.clone()).collect()
    };
    let free = |node: &Node| view.is_ready(&node.name) && !taken.nodes.contains(node.name.as_str());
    let is_open = |node: &Node| node.spec.scheduling == Scheduling::Enabled;
    let others = Box::new(Others {
        not_ready: named(&|node| node.state == NodeState::NotReady),
        cordoned: named(&|node| free(node) && !is_open(node)),
        unlabelled: named(&|node| free(node) && is_open(node) && node.domain(copies.spread).is_none()),
    });
    let &Copies { wanted, class, .. } = copies;
    match copies.spread {
        None => NoPlace::TooFewNodes { wanted, class, usable: usable.len(), others },
        Some(spread) => {
            let taken = taken.domains.iter().map(|domain| (*domain).to_owned()).collect();
            NoPlace::TooFewDomains { wanted, spread: spread.into(), class, usable, taken, others }
        }
    }
}

/// Why no copy can be on any of these nodes.
fn not_there(
    view: &View,
    promised: &Promised,
    overcommit: u64,
    copies: &Copies<'_>,
    nodes: &BTreeSet<String>,
) -> NoPlace {
    let why = |name: &String| {
        let Some(node) = view.nodes.get(name).map(|node| &node.value) else {
            return "no node of Orlop".to_owned();
        };
        if node.state != NodeState::Ready {
            return node.state.to_string();
        }
        if node.spec.scheduling != Scheduling::Enabled {
            return node.spec.scheduling.to_string();
        }
        if let Some(key) = copies.spread.filter(|_| node.domain(copies.spread).is_none()) {
            return format!("without the label {key}");
        }
        let pools = view.pools.values().map(|pool| &pool.value).filter(|pool| pool.node == *name);
        let pools = pools.filter(|pool| pool.takes_copies() && pool.is_of(copies.class));
        let room =
            pools.map(|pool| Candidate::of(pool, promised, overcommit, copies.held_bytes).room_bytes).max();
        match (room, copies.class) {
            (Some(bytes), _) => format!("room for {}", SizeText(bytes)),
            (None, Some(class)) => format!("without disks of class {class}"),
            (None, None) => "without a pool".into(),
        }
    };
    NoPlace::NotThere { nodes: nodes.iter().map(|node| (node.clone(), why(node))).collect() }
}

/// Whether each pool that has a copy of a volume can take that it grows from `from_bytes` to `to_bytes`.
pub fn check_growth(
    view: &View,
    overcommit: u64,
    members: &[MemberIntent],
    from_bytes: u64,
    to_bytes: u64,
) -> Result<(), NoPlace> {
    let promised = Promised::of(view);
    let more_bytes = to_bytes.saturating_sub(from_bytes);
    let pools: Vec<Candidate<'_>> = members
        .iter()
        .filter_map(|member| view.pool(member.pool))
        .filter(|pool| pool.state != PoolState::Gone)
        .map(|pool| Candidate::of(pool, &promised, overcommit, 0))
        .collect();
    let with_room = pools.iter().filter(|pool| pool.room_bytes >= more_bytes).count();
    if with_room == pools.len() {
        return Ok(());
    }
    let without = pools.iter().filter(|pool| pool.room_bytes < more_bytes);
    Err(NoPlace::TooLittleSpace {
        wanted: members.len(),
        size_bytes: more_bytes,
        // The copies stay where they are.
        spread: None,
        class: None,
        with_room,
        largest_bytes: without.map(|pool| pool.room_bytes).max().unwrap_or(0),
    })
}

#[derive(Clone, Copy)]
struct Candidate<'a> {
    pool: &'a Pool,
    /// The largest copy that it may get (invariant 2).
    room_bytes: u64,
    /// How full it would be if every promise were called in.
    promised_permille: u64,
}

impl<'a> Candidate<'a> {
    fn of(pool: &'a Pool, promised: &Promised, overcommit: u64, held_bytes: u64) -> Self {
        let promised_bytes = promised.of_pool(pool.uuid);
        let promisable_bytes = pool.capacity_bytes.saturating_mul(overcommit).saturating_sub(promised_bytes);
        let permille = u128::from(promised_bytes) * 1000 / u128::from(pool.capacity_bytes.max(1));
        let is_thin = pool.free_bytes >= held_bytes.max(pool.capacity_bytes / RESERVE_PART);
        Self {
            pool,
            room_bytes: if is_thin { promisable_bytes } else { pool.free_bytes.min(promisable_bytes) },
            promised_permille: u64::try_from(permille).unwrap_or(u64::MAX),
        }
    }

    /// Those with room first, of them the one that has to be, then those that have it free, then the one that is near, then
    /// the emptiest by promise, then by fact; the names make it deterministic.
    fn order(&self, copies: &Copies<'_>) -> impl Ord + use<'a> {
        let &Copies { size_bytes, near, .. } = copies;
        let Pool { node, name, uuid, free_bytes, .. } = self.pool;
        let full = (self.room_bytes < size_bytes, !copies.is_wanted_on(node), *free_bytes < size_bytes);
        let far = near != Some(node.as_str());
        (full, far, self.promised_permille, std::cmp::Reverse(*free_bytes), node, name, *uuid)
    }
}

#[cfg(test)]
mod tests;
