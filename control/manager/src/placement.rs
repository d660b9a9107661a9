//! Where copies go: distinct nodes first, then room, then spread. Pure and deterministic.
//!
//! 1. No node gets two copies of a volume that could both count: a node that has said that a copy's pool is gone may get
//!    another one in another pool (docs/decisions/0009).
//! 2. A pool gets a copy only if the whole size fits into what is free now, and what was promised of it stays within
//!    its capacity times the over-commit.
//! 3. Nothing is placed on a node whose operator wishes otherwise, nor on a disk of another class than the volume's.
//! 4. All or nothing: a volume that does not fit gets no place at all.
//! 5. A wish to be near a node chooses among places that are possible: it never makes one, and never takes one away.

use crate::View;
use model::{DiskClass, MemberIntent, Node, NodeState, Pool, PoolState, Scheduling, SizeText, Volume};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};
use uuid::Uuid;

/// How much more may be promised of a pool than it has: volumes are thin.
pub const OVERCOMMIT_DEFAULT: u64 = 4;

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

/// Why there is no place. Display is the cause and what to do, without the volume's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoPlace {
    /// There are not enough nodes, whatever their space.
    TooFewNodes {
        /// Copies to place.
        wanted: usize,
        /// The class of disks that they need.
        class: Option<DiskClass>,
        /// Nodes that are ready, have a pool that is online, and have no copy of the volume yet.
        usable: usize,
        /// Nodes that are not ready.
        not_ready: Vec<String>,
        /// Nodes that are ready and have no copy of the volume, and on which nothing new is to be placed.
        cordoned: Vec<String>,
    },
    /// There are enough nodes, and not enough of them have the space.
    TooLittleSpace {
        /// Copies to place.
        wanted: usize,
        /// The size of each.
        size_bytes: u64,
        /// The class of disks that they need.
        class: Option<DiskClass>,
        /// Nodes that have that much.
        with_room: usize,
        /// The most that any other node has to give.
        largest_bytes: u64,
    },
}

impl NoPlace {
    /// The cause.
    pub fn cause(&self) -> String {
        match self {
            Self::TooFewNodes { wanted, class, usable, not_ready, cordoned } => {
                let named = [("NotReady", not_ready), ("cordoned", cordoned)];
                let named = named.iter().filter(|(_, nodes)| !nodes.is_empty());
                let named: Vec<String> =
                    named.map(|(what, nodes)| format!("{what}: {}", nodes.join(", "))).collect();
                let away = if named.is_empty() { String::new() } else { format!(" ({})", named.join("; ")) };
                let with = class.map_or_else(String::new, |class| format!(" with disks of class {class}"));
                format!("{} as many nodes{with}, {usable} can take one{away}", copies_need(*wanted))
            }
            Self::TooLittleSpace { wanted, size_bytes, class, with_room, largest_bytes } => format!(
                "{} as many nodes with {} free{}, {with_room} {} that; the most on another is {}",
                copies_need(*wanted),
                SizeText(*size_bytes),
                class.map_or_else(String::new, |class| format!(" on disks of class {class}")),
                if *with_room == 1 { "has" } else { "have" },
                SizeText(*largest_bytes)
            ),
        }
    }

    /// What to do.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::TooFewNodes { class: Some(_), cordoned, .. } if !cordoned.is_empty() => {
                "add such disks, uncordon a node, or ask for fewer copies or another class"
            }
            Self::TooFewNodes { class: Some(_), .. } => {
                "add such disks, or ask for fewer copies or another class"
            }
            Self::TooFewNodes { cordoned, .. } if !cordoned.is_empty() => {
                "start more nodes, uncordon one, or ask for fewer copies"
            }
            Self::TooFewNodes { .. } => "start more nodes, or ask for fewer copies",
            Self::TooLittleSpace { .. } => "add disks, delete volumes, or ask for less",
        }
    }
}

fn copies_need(copies: usize) -> String {
    if copies == 1 { "1 copy needs".into() } else { format!("{copies} copies need") }
}

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause(), self.hint())
    }
}

impl std::error::Error for NoPlace {}

/// Copies to place.
#[derive(Clone, Copy, Debug)]
pub struct Copies<'a> {
    /// The size of each.
    pub size_bytes: u64,
    /// The class of the disks that may hold one; none: any disk.
    pub class: Option<DiskClass>,
    /// Those that the volume has.
    pub present: &'a [MemberIntent],
    /// How many more.
    pub wanted: usize,
    /// The node that gets the first of them if it can take one (invariant 5).
    pub near: Option<&'a str>,
}

/// Chooses pools for more copies of a volume, and promises their space.
pub fn place(
    view: &View,
    promised: &mut Promised,
    overcommit: u64,
    copies: &Copies<'_>,
    new_uuid: &mut dyn FnMut() -> Uuid,
) -> Result<Vec<MemberIntent>, NoPlace> {
    let &Copies { size_bytes, class, present, wanted, .. } = copies;
    let could_count = present.iter().filter(|member| !view.is_gone(member.pool));
    let taken: BTreeSet<&str> = could_count.map(|member| member.node.as_str()).collect();
    let mut best: BTreeMap<&str, Candidate<'_>> = BTreeMap::new();
    for pool in view.pools.values().map(|pool| &pool.value) {
        let is_open = view.scheduling(&pool.node) == Scheduling::Enabled;
        let is_of_class = class.is_none_or(|class| pool.class == Some(class));
        let usable = pool.takes_copies() && view.is_ready(&pool.node) && is_open && is_of_class;
        if !usable || taken.contains(pool.node.as_str()) {
            continue;
        }
        let candidate = Candidate::of(pool, promised, overcommit);
        let known = best.entry(&pool.node).or_insert(candidate);
        if candidate.order(copies) < known.order(copies) {
            *known = candidate;
        }
    }
    if best.len() < wanted {
        let named = |is_so: &dyn Fn(&Node) -> bool| {
            let nodes = view.nodes.values().map(|node| &node.value).filter(|node| is_so(node));
            nodes.map(|node| node.name.clone()).collect()
        };
        let closed = |node: &Node| {
            let free = view.is_ready(&node.name) && !taken.contains(node.name.as_str());
            free && node.spec.scheduling != Scheduling::Enabled
        };
        return Err(NoPlace::TooFewNodes {
            wanted,
            class,
            usable: best.len(),
            not_ready: named(&|node| node.state == NodeState::NotReady),
            cordoned: named(&closed),
        });
    }
    let (mut candidates, without): (Vec<_>, Vec<_>) =
        best.into_values().partition(|candidate| candidate.room_bytes >= size_bytes);
    if candidates.len() < wanted {
        return Err(NoPlace::TooLittleSpace {
            wanted,
            size_bytes,
            class,
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
    let chosen = candidates.iter().map(|candidate| candidate.pool);
    let members = chosen
        .map(|pool| MemberIntent { replica: new_uuid(), pool: pool.uuid, node: pool.node.clone() })
        .collect::<Vec<_>>();
    for member in &members {
        promised.add(member.pool, size_bytes);
    }
    Ok(members)
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
        .map(|pool| Candidate::of(pool, &promised, overcommit))
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
    fn of(pool: &'a Pool, promised: &Promised, overcommit: u64) -> Self {
        let promised_bytes = promised.of_pool(pool.uuid);
        let promisable_bytes = pool.capacity_bytes.saturating_mul(overcommit).saturating_sub(promised_bytes);
        let permille = u128::from(promised_bytes) * 1000 / u128::from(pool.capacity_bytes.max(1));
        Self {
            pool,
            room_bytes: pool.free_bytes.min(promisable_bytes),
            promised_permille: u64::try_from(permille).unwrap_or(u64::MAX),
        }
    }

    /// Those with room first, of them the one that is near, then the emptiest by promise, then by fact; the names make it
    /// deterministic.
    fn order(&self, copies: &Copies<'_>) -> impl Ord + use<'a> {
        let full = self.room_bytes < copies.size_bytes;
        let far = copies.near != Some(self.pool.node.as_str());
        let free = std::cmp::Reverse(self.pool.free_bytes);
        (full, far, self.promised_permille, free, &self.pool.node, &self.pool.name, self.pool.uuid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GIB, Scene};

    fn place_in(
        scene: &Scene,
        size_bytes: u64,
        present: &[MemberIntent],
        wanted: usize,
    ) -> Result<String, NoPlace> {
        place_copies(scene, &Copies { size_bytes, class: None, present, wanted, near: None })
    }

    fn place_copies(scene: &Scene, copies: &Copies<'_>) -> Result<String, NoPlace> {
        let mut next = 0;
        let mut new_uuid = || {
            next += 1;
            Uuid::from_u128(1000 + next)
        };
        let mut promised = Promised::of(&scene.view);
        let members = place(&scene.view, &mut promised, OVERCOMMIT_DEFAULT, copies, &mut new_uuid)?;
        Ok(members.iter().map(|member| member.node.as_str()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn copies_spread_over_nodes() {
        let mut scene = Scene::with_nodes(4);
        assert_eq!(place_in(&scene, GIB, &[], 3).unwrap(), "n1 n2 n3");
        scene.volume("a", 3, &[1, 2, 3]);
        assert_eq!(place_in(&scene, GIB, &[], 3).unwrap(), "n4 n1 n2", "the emptiest first");
        scene.pool_mut(2).free_bytes = GIB / 2;
        assert_eq!(place_in(&scene, GIB, &[], 3).unwrap(), "n4 n1 n3", "a node without room is left out");
        scene.pool_mut(1).state = PoolState::Degraded;
        assert_eq!(place_in(&scene, GIB, &[], 2).unwrap(), "n4 n3");
        scene.pool_mut(3).state = PoolState::Gone;
        assert!(place_in(&scene, GIB, &[], 2).is_err(), "nothing is placed on a disk that is gone");
        let present = scene.volume_mut("a").intent.members[2..].to_vec();
        assert_eq!(place_in(&scene, GIB, &present, 1).unwrap(), "n4", "never a second on one node");
    }

    #[test]
    fn the_better_pool_of_a_node_is_taken() {
        let mut scene = Scene::with_nodes(1);
        let mut second = scene.pool_mut(1).clone();
        second.uuid = Uuid::from_u128(999);
        second.name = "disk1".into();
        scene.pool_mut(1).free_bytes = 0;
        scene.add_pool(second);
        let copies = Copies { size_bytes: GIB, class: None, present: &[], wanted: 1, near: None };
        let members =
            place(&scene.view, &mut Promised::default(), 1, &copies, &mut || Uuid::from_u128(5)).unwrap();
        assert_eq!(members[0].pool, Uuid::from_u128(999));
    }

    #[test]
    fn a_copy_is_near_if_that_is_possible() {
        let mut scene = Scene::with_nodes(4);
        let near = |scene: &Scene, node: &str, wanted, present: &[MemberIntent]| {
            place_copies(scene, &Copies { size_bytes: GIB, class: None, present, wanted, near: Some(node) })
        };
        assert_eq!(near(&scene, "n4", 1, &[]).unwrap(), "n4");
        scene.volume("a", 3, &[2, 3, 4]);
        assert_eq!(near(&scene, "n4", 2, &[]).unwrap(), "n4 n1", "the others by space");
        assert_eq!(near(&scene, "n4", 4, &[]).unwrap(), "n4 n1 n2 n3");
        let present = scene.volume_mut("a").intent.members[2..].to_vec();
        assert_eq!(near(&scene, "n4", 2, &present).unwrap(), "n1 n2", "never a second on one node");
        assert_eq!(near(&scene, "n7", 2, &[]).unwrap(), "n1 n2", "there is no such node");
        scene.node_mut(4).spec.scheduling = Scheduling::Cordoned;
        assert_eq!(near(&scene, "n4", 2, &[]).unwrap(), "n1 n2");
        scene.node_mut(4).spec.scheduling = Scheduling::Enabled;
        scene.pool_mut(4).free_bytes = GIB / 2;
        assert_eq!(near(&scene, "n4", 2, &[]).unwrap(), "n1 n2", "it has no room");
        assert!(near(&scene, "n4", 4, &[]).is_err());
        scene.node_mut(3).state = NodeState::NotReady;
        assert_eq!(near(&scene, "n3", 2, &[]).unwrap(), "n1 n2");
    }

    #[test]
    fn copies_are_on_disks_of_the_class() {
        let mut scene = Scene::with_nodes(4);
        let class = Some(DiskClass::Nvme);
        let of_class = |scene: &Scene, size_bytes, wanted, near| {
            place_copies(scene, &Copies { size_bytes, class, present: &[], wanted, near })
        };
        let says = |scene: &Scene, size_bytes, wanted, text: &str| {
            assert_eq!(of_class(scene, size_bytes, wanted, None).unwrap_err().to_string(), text);
        };
        says(
            &scene,
            GIB,
            1,
            "1 copy needs as many nodes with disks of class NVMe, 0 can take one; \
             add such disks, or ask for fewer copies or another class",
        );
        scene.pool_mut(2).class = class;
        scene.pool_mut(3).class = Some(DiskClass::Hdd);
        scene.pool_mut(4).class = class;
        assert_eq!(of_class(&scene, GIB, 2, None).unwrap(), "n2 n4");
        assert_eq!(of_class(&scene, GIB, 2, Some("n4")).unwrap(), "n4 n2");
        assert_eq!(of_class(&scene, GIB, 2, Some("n3")).unwrap(), "n2 n4", "its disk is of another class");
        assert_eq!(place_in(&scene, GIB, &[], 4).unwrap(), "n1 n2 n3 n4", "any disk");
        let second = Pool { uuid: Uuid::from_u128(999), ..scene.pool_mut(4).clone() };
        scene.add_pool(Pool { node: "n3".into(), ..second });
        assert_eq!(of_class(&scene, GIB, 3, None).unwrap(), "n2 n3 n4", "the other disk of the node");
        says(
            &scene,
            5 * GIB,
            3,
            "3 copies need as many nodes with 5 GiB free on disks of class NVMe, 0 have that; \
             the most on another is 4 GiB; add disks, delete volumes, or ask for less",
        );
        scene.node_mut(2).spec.scheduling = Scheduling::Cordoned;
        says(
            &scene,
            GIB,
            3,
            "3 copies need as many nodes with disks of class NVMe, 2 can take one (cordoned: n2); \
             add such disks, uncordon a node, or ask for fewer copies or another class",
        );
    }

    #[test]
    fn no_place_says_why() {
        let mut scene = Scene::with_nodes(3);
        let says = |scene: &Scene, size, wanted, text: &str| {
            let message = place_in(scene, size, &[], wanted).unwrap_err().to_string();
            assert_eq!(message, text);
        };
        says(
            &scene,
            5 * GIB,
            3,
            "3 copies need as many nodes with 5 GiB free, 0 have that; the most on another is 4 GiB; \
             add disks, delete volumes, or ask for less",
        );
        says(
            &scene,
            GIB,
            4,
            "4 copies need as many nodes, 3 can take one; start more nodes, or ask for fewer copies",
        );
        scene.node_mut(3).state = NodeState::NotReady;
        says(
            &scene,
            GIB,
            3,
            "3 copies need as many nodes, 2 can take one (NotReady: n3); start more nodes, or ask for fewer copies",
        );
    }

    #[test]
    fn nothing_is_placed_on_a_cordoned_node() {
        let mut scene = Scene::with_nodes(4);
        for scheduling in [Scheduling::Cordoned, Scheduling::Drained, Scheduling::Evacuated] {
            scene.node_mut(2).spec.scheduling = scheduling;
            assert_eq!(place_in(&scene, GIB, &[], 3).unwrap(), "n1 n3 n4", "{scheduling}");
        }
        scene.node_mut(3).state = NodeState::NotReady;
        assert_eq!(
            place_in(&scene, GIB, &[], 3).unwrap_err().to_string(),
            "3 copies need as many nodes, 2 can take one (NotReady: n3; cordoned: n2); \
             start more nodes, uncordon one, or ask for fewer copies"
        );
        scene.node_mut(2).spec.scheduling = Scheduling::Enabled;
        assert_eq!(place_in(&scene, GIB, &[], 3).unwrap(), "n1 n2 n4");
    }

    #[test]
    fn promises_are_bounded() {
        let mut scene = Scene::with_nodes(1);
        for index in 0..16 {
            assert!(place_in(&scene, GIB, &[], 1).is_ok(), "{index}: 4 GiB, four times promised");
            scene.volume(&format!("v{index}"), 1, &[1]);
        }
        assert!(matches!(place_in(&scene, GIB, &[], 1), Err(NoPlace::TooLittleSpace { .. })));
        let members = scene.volume_mut("v0").intent.members.clone();
        assert!(check_growth(&scene.view, OVERCOMMIT_DEFAULT, &members, GIB, 2 * GIB).is_err());
        assert!(check_growth(&scene.view, 8, &members, GIB, 2 * GIB).is_ok());
    }
}
