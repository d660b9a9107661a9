//! What to do next about a node that is lost, or was: pure, one step after the other, the same again after any crash.
//!
//! 1. A node is marked, so that nothing is scheduled on it, before anything of it is taken away; and it is marked until
//!    it is back and holds none of the devices that were taken from it.
//! 2. A pod is freed only if it has opted in, and when each of its volumes is open elsewhere, where nothing that its
//!    node still does can reach it (I3, I9).
//! 3. Kubernetes is told that the node is out of service only while something freed is still attached there, and never
//!    while a pod ends there that has not opted in: that word frees it as well.
//! 4. What people say of a node is theirs: only our own taints are taken back.

use std::collections::BTreeSet;

/// Where a volume is that a pod on a lost node uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Its device is to be on the node.
    Here,
    /// Its device is not to be there any more, but nobody has it open elsewhere.
    Nowhere,
    /// Open elsewhere at a higher epoch, or closed in order.
    Elsewhere,
}

/// A volume of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) volume: String,
    pub(super) place: Place,
}

/// A pod on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// Its user has said that fencing its volumes is all that has to be done to have it elsewhere.
    pub(super) opted_in: bool,
    /// Kubernetes waits for its kubelet to end it.
    pub(super) ending: bool,
    /// Its volumes of Orlop.
    pub(super) volumes: Vec<Used>,
}

/// Whether a node is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Presence {
    /// Its engine has been away for long enough.
    Lost,
    /// One cannot say yet.
    #[default]
    Unsure,
    /// Its engine is there, and its kubelet.
    Back,
}

/// What is known of one node.
#[derive(Clone, Debug, Default)]
pub(super) struct Scene {
    pub(super) presence: Presence,
    /// It carries our mark.
    pub(super) marked: bool,
    /// It carries our word that it is out of service.
    pub(super) suspended: bool,
    pub(super) pods: Vec<Pod>,
    /// Volumes that Kubernetes holds to be attached there, or mounted.
    pub(super) held: BTreeSet<String>,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing more is scheduled there.
    Mark,
    /// The volume is not to be attached there any more: the manager has it opened elsewhere.
    Fence(String),
    /// Kubernetes detaches what no pod uses without asking the node.
    Suspend,
    /// The pod goes; at once where nobody is there to end it.
    Free { pod: Pod, at_once: bool },
    /// The end of `Suspend`.
    Resume,
    /// The end of `Mark`.
    Unmark,
}

/// What to do next, and whether something is under way.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) busy: bool,
}

/// Whether no more are given up than a share of all nodes, or one: those that are away, among them the one that is judged,
/// and those that are marked. One that is both counts once.
pub(super) fn may_mark<'a>(
    nodes: usize,
    given_up: impl Iterator<Item = &'a String>,
    share_percent: u32,
) -> bool {
    let given_up: BTreeSet<&String> = given_up.collect();
    let share = usize::try_from(share_percent).unwrap_or(100);
    given_up.len() <= (nodes * share / 100).max(1)
}

/// The next steps; `may_mark` says whether one more node may be given up.
pub(super) fn plan(scene: &Scene, may_mark: bool) -> Plan {
    let lost = scene.presence == Presence::Lost;
    let concerned = |pod: &&Pod| pod.opted_in && !pod.volumes.is_empty();
    let pods: Vec<&Pod> = scene.pods.iter().filter(concerned).collect();
    if !scene.marked {
        let begins = lost && may_mark && !pods.is_empty();
        let steps = begins.then_some(Step::Mark).into_iter().chain(scene.suspended.then_some(Step::Resume));
        return Plan { steps: steps.collect(), busy: begins };
    }
    let mut steps = Vec::new();
    // A pod whose node came back before anything was taken from it stays.
    let taken = |pod: &&&Pod| lost || pod.volumes.iter().any(|used| used.place != Place::Here);
    let taken: Vec<&Pod> = pods.iter().filter(taken).copied().collect();
    if lost {
        let here = |used: &&Used| used.place == Place::Here;
        let volumes: BTreeSet<&String> =
            taken.iter().flat_map(|pod| pod.volumes.iter().filter(here).map(|used| &used.volume)).collect();
        steps.extend(volumes.into_iter().cloned().map(Step::Fence));
    }
    let fenced = |pod: &&&Pod| pod.volumes.iter().all(|used| used.place == Place::Elsewhere);
    // On a node that is back, its kubelet ends them; half of their volumes are dead.
    let free: Vec<&Pod> = taken.iter().filter(|pod| !lost || fenced(pod)).copied().collect();
    let used: BTreeSet<&String> =
        scene.pods.iter().flat_map(|pod| pod.volumes.iter().map(|used| &used.volume)).collect();
    let left = scene.held.iter().any(|volume| !used.contains(volume));
    // Invariant 3.
    let bystander = scene.pods.iter().any(|pod| pod.ending && !pod.opted_in);
    let suspend = lost && !bystander && (left || !free.is_empty());
    if suspend && !scene.suspended {
        steps.push(Step::Suspend);
    }
    if scene.suspended && !suspend {
        steps.push(Step::Resume);
    }
    if !(lost && bystander) {
        let ends = |pod: &&Pod| lost || !pod.ending;
        let free = free.into_iter().filter(ends);
        steps.extend(free.map(|pod| Step::Free { pod: pod.clone(), at_once: lost }));
    }
    if scene.presence == Presence::Back && !scene.suspended && !left && taken.is_empty() {
        steps.push(Step::Unmark);
    }
    Plan { busy: !steps.is_empty() || !taken.is_empty() || left, steps }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, opted_in: bool, volumes: &[(&str, Place)]) -> Pod {
        let used = |(volume, place): &(&str, Place)| Used { volume: (*volume).into(), place: *place };
        Pod {
            namespace: "default".into(),
            name: name.into(),
            uid: format!("uid of {name}"),
            opted_in,
            ending: false,
            volumes: volumes.iter().map(used).collect(),
        }
    }

    fn lost(pods: Vec<Pod>) -> Scene {
        let held = pods.iter().flat_map(|pod| pod.volumes.iter().map(|used| used.volume.clone())).collect();
        Scene { presence: Presence::Lost, pods, held, ..Scene::default() }
    }

    fn steps(scene: &Scene) -> Vec<Step> {
        plan(scene, true).steps
    }

    fn free(pod: &Pod, at_once: bool) -> Step {
        Step::Free { pod: pod.clone(), at_once }
    }

    #[test]
    fn a_lost_node_is_marked_fenced_suspended_and_freed_in_this_order() {
        let mut scene = lost(vec![pod("a", true, &[("v", Place::Here), ("w", Place::Here)])]);
        assert_eq!(steps(&scene), [Step::Mark]);
        scene.marked = true;
        assert_eq!(steps(&scene), [Step::Fence("v".into()), Step::Fence("w".into())]);
        scene.pods = vec![pod("a", true, &[("v", Place::Elsewhere), ("w", Place::Nowhere)])];
        assert_eq!(plan(&scene, true), Plan { steps: vec![], busy: true });
        scene.pods = vec![pod("a", true, &[("v", Place::Elsewhere), ("w", Place::Elsewhere)])];
        let freed = free(&scene.pods[0], true);
        assert_eq!(steps(&scene), [Step::Suspend, freed.clone()]);
        scene.suspended = true;
        assert_eq!(steps(&scene), [freed]);
        scene.pods.clear();
        assert_eq!(plan(&scene, true), Plan { steps: vec![], busy: true });
        // Kubernetes has let go of them.
        scene.held.clear();
        assert_eq!(steps(&scene), [Step::Resume]);
        scene.suspended = false;
        assert_eq!(plan(&scene, true), Plan::default());
        scene.presence = Presence::Back;
        assert_eq!(steps(&scene), [Step::Unmark]);
    }

    #[test]
    fn who_has_not_opted_in_is_left_alone() {
        let mut scene = lost(vec![pod("a", false, &[("v", Place::Here)]), pod("b", true, &[])]);
        assert_eq!(plan(&scene, true), Plan::default());
        scene.pods.push(pod("c", true, &[("w", Place::Elsewhere)]));
        scene.marked = true;
        let freed = free(&scene.pods[2], true);
        assert_eq!(steps(&scene), [Step::Suspend, freed]);
        // The word would free it, too.
        scene.pods[0].ending = true;
        assert_eq!(plan(&scene, true), Plan { steps: vec![], busy: true });
        scene.suspended = true;
        assert_eq!(steps(&scene), [Step::Resume]);
    }

    #[test]
    fn no_more_nodes_than_the_share_are_given_up() {
        let scene = lost(vec![pod("a", true, &[("v", Place::Here)])]);
        assert_eq!(plan(&scene, false), Plan::default());
        // What has begun goes on.
        let marked = Scene { marked: true, ..scene };
        assert_eq!(plan(&marked, false).steps, [Step::Fence("v".into())]);
    }

    #[test]
    fn a_node_that_is_back_loses_the_pods_whose_volumes_were_taken_and_keeps_the_others() {
        let untouched = pod("a", true, &[("v", Place::Here)]);
        let taken = pod("b", true, &[("w", Place::Nowhere), ("x", Place::Here)]);
        let mut scene = lost(vec![untouched, taken.clone()]);
        (scene.presence, scene.marked, scene.suspended) = (Presence::Back, true, true);
        assert_eq!(steps(&scene), [Step::Resume, free(&taken, false)]);
        scene.suspended = false;
        // Its kubelet ends it.
        scene.pods[1].ending = true;
        assert_eq!(plan(&scene, true), Plan { steps: vec![], busy: true });
        // It has ended, and its mounts are still there.
        scene.pods.truncate(1);
        assert_eq!(plan(&scene, true), Plan { steps: vec![], busy: true });
        scene.held = ["v".to_owned()].into();
        assert_eq!(steps(&scene), [Step::Unmark]);
    }

    #[test]
    fn a_node_that_died_again_before_its_kubelet_was_done_is_freed_at_once() {
        let mut ending = pod("a", true, &[("v", Place::Elsewhere)]);
        ending.ending = true;
        let mut scene = lost(vec![ending.clone()]);
        scene.marked = true;
        assert_eq!(steps(&scene), [Step::Suspend, free(&ending, true)]);
    }

    #[test]
    fn no_more_than_a_share_of_the_nodes_is_given_up_and_one_always() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        // How many nodes there are, which are away, which are marked, and the share.
        for (nodes, away, marked, share_percent, may) in [
            (1, &["a"][..], &[][..], 34, true),
            (1, &["a"], &[], 0, true),
            (1, &["a"], &["a"], 0, true),
            (3, &["a"], &[], 34, true),
            (3, &["a", "b"], &[], 34, false),
            (3, &["a", "b"], &[], 67, true),
            (3, &["a", "b", "c"], &[], 67, false),
            (3, &["a", "b", "c"], &[], 100, true),
            // Share 0 is one at a time, of however many.
            (100, &["a"], &[], 0, true),
            (100, &["a", "b"], &[], 0, false),
            // What is not a whole node is none.
            (10, &["a", "b"], &[], 20, true),
            (10, &["a", "b"], &[], 19, false),
            (10, &["a", "b", "c"], &[], 29, false),
            (10, &["a", "b", "c"], &[], 30, true),
            // Marked ones count while they are, though they are back; twice the same does not.
            (3, &["a"], &["b"], 34, false),
            (3, &["a"], &["a"], 34, true),
            (10, &["a"], &["b", "c"], 20, false),
            (10, &["a", "b"], &["a", "b"], 20, true),
            (10, &["a"], &["b"], 20, true),
            // Those of which the store knows nothing any more.
            (0, &[], &["a"], 34, true),
            (0, &["a"], &["b"], 100, false),
        ] {
            let (away, marked) = (names(away), names(marked));
            let found = may_mark(nodes, away.iter().chain(&marked), share_percent);
            assert_eq!(found, may, "of {nodes}: away {away:?}, marked {marked:?}, {share_percent} %");
        }
    }
}
