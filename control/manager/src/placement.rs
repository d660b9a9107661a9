//! Where copies go: distinct nodes and failure domains first, then room, then balance. Pure and deterministic.
//!
//! 1. No node gets two copies of a volume that could both count: a node that has said that a copy's pool is gone may get
//!    another one in another pool (docs/decisions/0009).
//! 2. A pool gets a copy only if the whole size fits into what is free now, and what was promised of it stays within
//!    its capacity times the over-commit.
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

/// Copies to place.
#[derive(Clone, Copy, Debug)]
pub struct Copies<'a> {
    /// The size of each.
    pub size_bytes: u64,
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
    /// All copies of a new volume, wherever they are.
    pub fn of(spec: &'a VolumeSpec) -> Self {
        Self {
            size_bytes: spec.size_bytes,
            class: spec.class,
            spread: spec.spread.as_deref(),
            present: &[],
            leaving: &[],
            wanted: usize::try_from(spec.copies).unwrap_or(usize::MAX),
            near: None,
            on: None,
        }
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
    for pool in view.pools.values().map(|pool| &pool.value) {
        let is_open = view.scheduling(&pool.node) == Scheduling::Enabled;
        let usable = pool.takes_copies() && view.is_ready(&pool.node) && is_open;
        if !usable || !pool.is_of(copies.class) || taken.nodes.contains(pool.node.as_str()) {
            continue;
        }
        let domain = view.domain(copies.spread, &pool.node);
        let Some(domain) = domain.filter(|domain| !taken.domains.contains(domain)) else { continue };
        let candidate = Candidate::of(pool, promised, overcommit);
        let known = best.entry(domain).or_insert(candidate);
        if candidate.order(copies) < known.order(copies) {
            *known = candidate;
        }
    }
    best
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
        let room = pools.map(|pool| Candidate::of(pool, promised, overcommit).room_bytes).max();
        match (room, copies.class) {
            (Some(bytes), _) => format!("{} free", SizeText(bytes)),
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

    /// Those with room first, of them the one that has to be, then the one that is near, then the emptiest by promise, then
    /// by fact; the names make it deterministic.
    fn order(&self, copies: &Copies<'_>) -> impl Ord + use<'a> {
        let full = self.room_bytes < copies.size_bytes;
        let node = self.pool.node.as_str();
        let far = (!copies.is_wanted_on(node), copies.near != Some(node));
        let free = std::cmp::Reverse(self.pool.free_bytes);
        (full, far, self.promised_permille, free, &self.pool.node, &self.pool.name, self.pool.uuid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GIB, Scene};

    /// A copy of 1 GiB that may be anywhere.
    const ONE: Copies<'static> = Copies {
        size_bytes: GIB,
        class: None,
        spread: None,
        present: &[],
        leaving: &[],
        wanted: 1,
        near: None,
        on: None,
    };

    fn place_in(
        scene: &Scene,
        size_bytes: u64,
        present: &[MemberIntent],
        wanted: usize,
    ) -> Result<String, NoPlace> {
        place_copies(scene, &Copies { size_bytes, present, wanted, ..ONE })
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
        let members =
            place(&scene.view, &mut Promised::default(), 1, &ONE, &mut || Uuid::from_u128(5)).unwrap();
        assert_eq!(members[0].pool, Uuid::from_u128(999));
    }

    #[test]
    fn a_copy_is_near_if_that_is_possible() {
        let mut scene = Scene::with_nodes(4);
        let near = |scene: &Scene, node: &str, wanted, present: &[MemberIntent]| {
            place_copies(scene, &Copies { present, wanted, near: Some(node), ..ONE })
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
            place_copies(scene, &Copies { size_bytes, class, wanted, near, ..ONE })
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

    const ZONE: &str = model::topology::ZONE_KEY;

    /// Six nodes: n1 and n2 in zone a, n3 and n4 in b, n5 in c, n6 nowhere.
    fn zoned() -> Scene {
        let mut scene = Scene::with_nodes(6);
        for (node, zone) in (1..).zip(["a", "a", "b", "b", "c"]) {
            scene.node_mut(node).topology.insert(ZONE.into(), zone.into());
        }
        scene
    }

    #[test]
    fn copies_are_in_different_zones() {
        let mut scene = zoned();
        let spread = Some(ZONE);
        let of = |scene: &Scene, wanted| place_copies(scene, &Copies { spread, wanted, ..ONE });
        assert_eq!(of(&scene, 3).unwrap(), "n1 n3 n5");
        assert_eq!(place_in(&scene, GIB, &[], 3).unwrap(), "n1 n2 n3", "others are not concerned");
        scene.volume("a", 2, &[1, 3]);
        assert_eq!(of(&scene, 3).unwrap(), "n2 n4 n5", "the emptiest of each zone");
        let near = |scene: &Scene, node| {
            place_copies(scene, &Copies { spread, wanted: 3, near: Some(node), ..ONE }).unwrap()
        };
        assert_eq!(near(&scene, "n3"), "n3 n2 n5", "near comes before empty");
        assert_eq!(near(&scene, "n6"), "n2 n4 n5", "it is in no zone");
        scene.pool_mut(2).free_bytes = GIB / 2;
        scene.pool_mut(4).state = PoolState::Gone;
        assert_eq!(of(&scene, 3).unwrap(), "n5 n1 n3");
        scene.node_mut(5).topology.insert(ZONE.into(), "b".into());
        assert!(of(&scene, 3).is_err(), "rather no place than two in one zone");
        assert_eq!(of(&scene, 2).unwrap(), "n5 n1");
        let racks = Copies { spread: Some("rack"), ..ONE };
        assert_eq!(
            place_copies(&scene, &racks).unwrap_err().to_string(),
            "1 copy needs as many values of the label rack, 0 have a node that can take one \
             (without the label: n1, n2, n3, n4, n5 and 1 more); \
             label the nodes that are not, start some elsewhere, or ask for fewer copies"
        );
    }

    #[test]
    fn a_zone_is_taken_by_a_copy_that_stays() {
        let mut scene = zoned();
        let members = scene.volume("a", 3, &[1, 3, 5]).intent.members.clone();
        let another = |scene: &Scene, leaving: &[Uuid]| {
            place_copies(scene, &Copies { spread: Some(ZONE), present: &members, leaving, ..ONE })
        };
        assert_eq!(
            another(&scene, &[]).unwrap_err().to_string(),
            "1 copy needs as many zones (topology.kubernetes.io/zone), 0 have a node that can take one \
             (a copy is in: a, b, c; without the label: n6); \
             label the nodes that are not, start some elsewhere, or ask for fewer copies"
        );
        assert_eq!(another(&scene, &[members[0].replica]).unwrap(), "n2", "in the zone of the one that goes");
        assert_eq!(another(&scene, &[members[1].replica]).unwrap(), "n4");
        let none = another(&scene, &[members[2].replica]).unwrap_err().to_string();
        assert!(none.contains("(a copy is in: a, b; without the label: n6)"), "never on its node: {none}");
        scene.pool_mut(5).state = PoolState::Gone;
        let mut second = scene.pool_mut(5).clone();
        (second.uuid, second.state) = (Uuid::from_u128(999), PoolState::Online);
        scene.add_pool(second);
        assert_eq!(another(&scene, &[]).unwrap(), "n5", "its disk is gone, and so is what it took");
    }

    #[test]
    fn too_few_zones_are_named() {
        let mut scene = zoned();
        let says = |scene: &Scene, copies: Copies<'_>, text: &str| {
            let copies = Copies { spread: Some(ZONE), ..copies };
            assert_eq!(place_copies(scene, &copies).unwrap_err().to_string(), text);
        };
        scene.node_mut(6).topology.insert(ZONE.into(), "b".into());
        scene.node_mut(5).spec.scheduling = Scheduling::Cordoned;
        let three = Copies { wanted: 3, ..ONE };
        says(
            &scene,
            three,
            "3 copies need as many zones (topology.kubernetes.io/zone), 2 have a node that can take one: a, b \
             (cordoned: n5); uncordon a node, start some elsewhere, or ask for fewer copies",
        );
        scene.node_mut(5).spec.scheduling = Scheduling::Enabled;
        scene.node_mut(5).state = NodeState::NotReady;
        scene.node_mut(2).state = NodeState::NotReady;
        scene.pool_mut(1).class = Some(DiskClass::Nvme);
        says(
            &scene,
            Copies { class: Some(DiskClass::Nvme), wanted: 2, ..ONE },
            "2 copies need as many zones (topology.kubernetes.io/zone) with disks of class NVMe, \
             1 has a node that can take one: a (NotReady: n2, n5); \
             add such disks elsewhere, or ask for fewer copies or another class",
        );
        scene.node_mut(5).state = NodeState::Ready;
        says(
            &scene,
            Copies { size_bytes: 5 * GIB, ..three },
            "3 copies need as many zones (topology.kubernetes.io/zone) with a node with 5 GiB free, 0 have that; \
             the most in another is 4 GiB; add disks, delete volumes, or ask for less",
        );
    }

    #[test]
    fn a_copy_that_has_to_be_somewhere_is_there_or_nowhere() {
        let mut scene = zoned();
        let on = |scene: &Scene, nodes: &[&str], copies: Copies<'_>| {
            let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
            place_copies(scene, &Copies { on: Some(&nodes), ..copies })
        };
        let two = Copies { wanted: 2, ..ONE };
        assert_eq!(on(&scene, &["n6"], two).unwrap(), "n6 n1");
        assert_eq!(on(&scene, &["n4", "n6"], Copies { near: Some("n6"), ..two }).unwrap(), "n6 n4");
        assert_eq!(on(&scene, &["n4", "n7"], Copies { spread: Some(ZONE), ..two }).unwrap(), "n4 n1");
        let near = Some("n1");
        assert_eq!(on(&scene, &["n4"], Copies { near, ..ONE }).unwrap(), "n4", "a wish gives way");
        let cannot = |scene: &Scene, node: &str, copies: Copies<'_>| {
            let why = on(scene, &[node], copies).unwrap_err();
            assert!(matches!(why, NoPlace::NotThere { .. }), "{why}");
            why.cause()
        };
        assert_eq!(cannot(&scene, "n7", two), "a copy has to be on n7 (no node of Orlop)");
        let zones = Copies { spread: Some(ZONE), ..two };
        assert_eq!(
            cannot(&scene, "n6", zones),
            "a copy has to be on n6 (without the label topology.kubernetes.io/zone)"
        );
        scene.pool_mut(1).free_bytes = GIB / 2;
        assert_eq!(cannot(&scene, "n1", two), "a copy has to be on n1 (512 MiB free)");
        scene.pool_mut(2).state = PoolState::Failed;
        assert_eq!(cannot(&scene, "n2", two), "a copy has to be on n2 (without a pool)");
        scene.node_mut(3).state = NodeState::NotReady;
        assert_eq!(cannot(&scene, "n3", two), "a copy has to be on n3 (NotReady)");
        scene.node_mut(4).spec.scheduling = Scheduling::Drained;
        scene.pool_mut(5).class = Some(DiskClass::Hdd);
        scene.pool_mut(6).class = Some(DiskClass::Hdd);
        let hdd = Copies { class: Some(DiskClass::Hdd), ..ONE };
        assert_eq!(
            on(&scene, &["n1", "n4"], hdd).unwrap_err().to_string(),
            "a copy has to be on n1 (without disks of class HDD) or n4 (Drained); choose another node, or make it fit"
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
