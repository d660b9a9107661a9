//! Which nodes are good for a pod: pure functions of what is known of the engines and of the copies.
//!
//! 1. A node is refused only if a volume cannot be attached there; what is not known refuses nobody.
//! 2. Never are all refused: then the pod goes where the scheduler wants it, and waits there for the engine.
//! 3. A node with more of the pod's bytes never scores less than one with fewer whose engine is as well.

use model::{MemberState, Node, NodeState, Scheduling, VolumeRecord};
use std::collections::BTreeMap;

/// `MinExtenderPriority` to `MaxExtenderPriority` of the scheduler.
pub(super) type Score = u32;
/// `MaxExtenderPriority`.
pub(super) const SCORE_MAX: Score = 10;
/// Of a node whose engine is well and which has no copy: still better than one whose engine is not.
const SCORE_WELL: Score = 1;

/// What is known of all engines, by node.
pub(super) type Engines = BTreeMap<String, Engine>;

/// How well a node's engine can serve a pod that comes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    /// It is there, and takes what comes.
    Well,
    /// It is there, and its operator wishes nothing new on it.
    Cordoned,
    /// It is not there: nothing can be attached.
    Away,
}

impl Engine {
    pub(super) const fn of(node: &Node) -> Self {
        match (node.state, node.spec.scheduling) {
            (NodeState::NotReady, _) => Self::Away,
            (NodeState::Ready, Scheduling::Enabled) => Self::Well,
            (NodeState::Ready, _) => Self::Cordoned,
        }
    }
}

/// Where the copies of one of the pod's volumes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copies {
    pub(super) bytes: u64,
    /// Nodes that have one in sync.
    pub(super) nodes: Vec<String>,
}

impl Copies {
    pub(super) fn of(record: &VolumeRecord) -> Self {
        let in_sync = record.members.iter().filter(|member| member.state == MemberState::InSync);
        Self { bytes: record.size_bytes, nodes: in_sync.map(|member| member.node.clone()).collect() }
    }

    fn bytes_on(&self, node: &str) -> u64 {
        if self.nodes.iter().any(|with| with == node) { self.bytes } else { 0 }
    }
}

/// Those of the nodes that are refused, with why. The pod has these volumes of Orlop.
pub(super) fn refused(
    engines: Option<&Engines>,
    volumes: &[Copies],
    nodes: &[String],
) -> BTreeMap<String, String> {
    let Some(engines) = engines.filter(|_| !volumes.is_empty()) else { return BTreeMap::new() };
    let why = |node: &String| match engines.get(node) {
        None => Some("no engine of Orlop runs there, and the pod has a volume of Orlop"),
        Some(Engine::Away) => Some("Orlop's engine there is NotReady, and the pod has a volume of Orlop"),
        Some(Engine::Well | Engine::Cordoned) => None,
    };
    let refused = nodes.iter().filter_map(|node| Some((node.clone(), why(node)?.to_owned())));
    let refused: BTreeMap<String, String> = refused.collect();
    // Invariant 2.
    if nodes.iter().all(|node| refused.contains_key(node)) { BTreeMap::new() } else { refused }
}

/// How good a node is for a pod with these volumes of Orlop. Without any all nodes are the same.
pub(super) fn score(engines: Option<&Engines>, volumes: &[Copies], node: &str) -> Score {
    let well = engines.is_none_or(|engines| engines.get(node) == Some(&Engine::Well));
    if volumes.is_empty() || !well {
        return 0;
    }
    let total: u128 = volumes.iter().map(|volume| u128::from(volume.bytes)).sum();
    let here: u128 = volumes.iter().map(|volume| u128::from(volume.bytes_on(node))).sum();
    let share = (here * u128::from(SCORE_MAX - SCORE_WELL)).checked_div(total).unwrap_or(0);
    SCORE_WELL + Score::try_from(share).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::MemberRecord;
    use proptest::{collection::vec, prelude::*};
    use uuid::Uuid;

    fn engines(of: &[(&str, Engine)]) -> Engines {
        of.iter().map(|(node, engine)| ((*node).to_owned(), *engine)).collect()
    }

    fn copies(bytes: u64, nodes: &[&str]) -> Copies {
        Copies { bytes, nodes: nodes.iter().map(|node| (*node).to_owned()).collect() }
    }

    fn names(of: &[&str]) -> Vec<String> {
        of.iter().map(|node| (*node).to_owned()).collect()
    }

    #[test]
    fn only_copies_in_sync_count() {
        let member = |node: &str, state| MemberRecord {
            state,
            ..MemberRecord::new(Uuid::from_u128(2), Uuid::from_u128(3), node.into())
        };
        let since = model::Generation::ZERO;
        let members = vec![
            member("n1", MemberState::InSync),
            member("n2", MemberState::Rebuilding { since }),
            member("n3", MemberState::Stale { since }),
            member("n4", MemberState::InSync),
        ];
        let record = VolumeRecord::new(Uuid::from_u128(1), 1 << 20, 4096, members);
        assert_eq!(Copies::of(&record), copies(1 << 20, &["n1", "n4"]));
    }

    #[test]
    fn nodes_with_more_of_the_bytes_score_higher() {
        use Engine::{Away, Cordoned, Well};
        let engines = engines(&[("n1", Well), ("n2", Well), ("n3", Well), ("n4", Cordoned), ("n5", Away)]);
        let volumes = [copies(100, &["n1", "n4", "n5"]), copies(200, &["n1", "n2"])];
        let of = |node: &str| score(Some(&engines), &volumes, node);
        assert_eq!([of("n1"), of("n2"), of("n3")], [10, 7, 1]);
        assert_eq!([of("n4"), of("n5"), of("n6")], [0; 3], "cordoned, away, not of Orlop");
        assert_eq!(score(Some(&engines), &[], "n1"), 0, "a pod without volumes of Orlop");
        assert_eq!(score(None, &volumes, "n1"), 10, "nothing is known of the engines yet");
    }

    #[test]
    fn only_what_cannot_be_is_refused_and_never_everything() {
        use Engine::{Away, Cordoned, Well};
        let engines = engines(&[("n1", Well), ("n2", Cordoned), ("n3", Away)]);
        let volumes = [copies(1, &["n3"])];
        let of =
            |nodes: &[&str]| refused(Some(&engines), &volumes, &names(nodes)).into_keys().collect::<Vec<_>>();
        assert_eq!(of(&["n1", "n2", "n3", "n4"]), ["n3", "n4"]);
        assert!(of(&["n3", "n4"]).is_empty(), "nothing would be left");
        assert!(of(&[]).is_empty());
        assert!(refused(Some(&engines), &[], &names(&["n1", "n3"])).is_empty(), "no volume of Orlop");
        assert!(refused(None, &volumes, &names(&["n1", "n3"])).is_empty(), "nothing is known");
    }

    fn any_engine() -> impl Strategy<Value = Engine> {
        prop_oneof![Just(Engine::Well), Just(Engine::Cordoned), Just(Engine::Away)]
    }

    proptest! {
        #[test]
        fn something_is_left_and_scores_are_in_range(
            engines in proptest::collection::btree_map("n[0-5]", any_engine(), 0..6),
            volumes in vec((any::<u64>(), vec("n[0-5]", 0..4)), 0..5),
            nodes in vec("n[0-7]", 0..8),
        ) {
            let volumes: Vec<Copies> = volumes.into_iter().map(|(bytes, nodes)| Copies { bytes, nodes }).collect();
            let refused = refused(Some(&engines), &volumes, &nodes);
            prop_assert!(nodes.is_empty() || nodes.iter().any(|node| !refused.contains_key(node)));
            prop_assert!(refused.keys().all(|node| nodes.contains(node)));
            for node in &nodes {
                let score = score(Some(&engines), &volumes, node);
                prop_assert!(score <= SCORE_MAX);
                prop_assert!(score == 0 || engines.get(node) == Some(&Engine::Well));
            }
        }
    }
}
