//! What Kubernetes and the records say about one node, put together.
//!
//! 1. A pod has opted in by its own annotation; without one, if all that could have to be fenced are volumes whose
//!    `StorageClass` says `failover: automatic`.
//! 2. What was asked for and is not there makes nothing easier: a claim or a volume without its object is not open
//!    elsewhere, and has not opted in.

use super::{
    MARK, OUT_OF_SERVICE, OWN,
    plan::{Place, Pod, Presence, Scene, Used},
};
use crate::{
    claim::{claim_of, source_of},
    kubernetes::Kubernetes,
};
use k8s_openapi::api::core::v1;
use model::{NexusState, Volume, VolumeRecord, VolumeStatus};
use std::collections::BTreeSet;
use store::{Client, Result};

/// Of a pod: `automatic` or `manual`.
const ANNOTATION: &str = "orlop.io/failover";
/// Of a volume that its class made so; the parameter's name.
const PARAMETER: &str = "failover";
const AUTOMATIC: &str = "automatic";
/// In front of a volume's handle where a node lists it.
const UNIQUE_NAME: &str = "kubernetes.io/csi/csi.orlop.io^";

/// Asks for all that a plan about this node needs; none if Kubernetes has no such node.
pub(super) async fn look(
    kubernetes: &Kubernetes,
    client: &Client,
    name: &str,
    lost: bool,
    engine_ready: bool,
) -> Result<Option<(v1::Node, Scene)>> {
    let Some(node) = kubernetes.one::<v1::Node>(&format!("/api/v1/nodes/{name}")).await? else {
        return Ok(None);
    };
    let listed =
        kubernetes.some::<v1::Pod>("/api/v1/pods", &format!("fieldSelector=spec.nodeName={name}")).await?;
    let mut pods = Vec::new();
    for pod in &listed {
        if let Some(pod) = pod_of(kubernetes, client, pod, name).await? {
            pods.push(pod);
        }
    }
    let scene = Scene {
        presence: match (lost, engine_ready && is_ready(&node)) {
            (true, _) => Presence::Lost,
            (false, true) => Presence::Back,
            (false, false) => Presence::Unsure,
        },
        marked: taints(&node).iter().any(|taint| taint.key == MARK),
        suspended: taints(&node).iter().any(is_own_word),
        pods,
        held: held(&node),
    };
    Ok(Some((node, scene)))
}

/// Its taints.
pub(super) fn taints(node: &v1::Node) -> &[v1::Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// Whether it is our word, and not an operator's, that the node is out of service.
pub(super) fn is_own_word(taint: &v1::Taint) -> bool {
    taint.key == OUT_OF_SERVICE && taint.value.as_deref() == Some(OWN)
}

fn is_ready(node: &v1::Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

fn held(node: &v1::Node) -> BTreeSet<String> {
    let Some(status) = &node.status else { return BTreeSet::new() };
    let attached = status.volumes_attached.iter().flatten().map(|volume| &volume.name);
    let names = status.volumes_in_use.iter().flatten().chain(attached);
    names.filter_map(|name| name.strip_prefix(UNIQUE_NAME)).map(str::to_owned).collect()
}

/// A pod that has not ended, as far as it concerns us.
async fn pod_of(kubernetes: &Kubernetes, client: &Client, pod: &v1::Pod, node: &str) -> Result<Option<Pod>> {
    let meta = &pod.metadata;
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let (Some(namespace), Some(name), Some(uid), Some(spec)) =
        (&meta.namespace, &meta.name, &meta.uid, &pod.spec)
    else {
        return Ok(None);
    };
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return Ok(None);
    }
    let mut claimed = Vec::new();
    for claim in spec.volumes.iter().flatten().filter_map(|volume| claim_of(name, volume)) {
        claimed.push(source_of(kubernetes, namespace, &claim).await?);
    }
    let (opted_in, bound) = (has_opted_in(pod, &claimed), is_bound(pod));
    let mut volumes = Vec::new();
    for source in claimed.into_iter().flatten() {
        let place = place_of(client, &source.volume_handle, node).await?;
        volumes.push(Used { volume: source.volume_handle, place });
    }
    Ok(Some(Pod {
        namespace: namespace.clone(),
        name: name.clone(),
        uid: uid.clone(),
        opted_in,
        ending: !bound && meta.deletion_timestamp.is_some(),
        volumes,
    }))
}

/// One on every node has nowhere else to be.
fn is_bound(pod: &v1::Pod) -> bool {
    pod.metadata.owner_references.iter().flatten().any(|owner| owner.kind == "DaemonSet")
}

/// Whether the pod says that fencing its volumes of Orlop is enough (invariant 1); `claimed` is what of Orlop each of its
/// claims stands for.
fn has_opted_in(pod: &v1::Pod, claimed: &[Option<v1::CSIPersistentVolumeSource>]) -> bool {
    let by_class = || {
        let spec = pod.spec.as_ref();
        let volumes = spec.and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        let mut others = volumes.iter().filter(|volume| claim_of("", volume).is_none());
        // Invariant 2.
        let automatic = |source: &Option<_>| source.as_ref().is_some_and(is_automatic);
        !claimed.is_empty() && claimed.iter().all(automatic) && others.all(holds_nothing_shared)
    };
    let annotation = pod.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION));
    !is_bound(pod) && annotation.map_or_else(by_class, |word| word == AUTOMATIC)
}

/// Whether it is of the node or read only: nothing that another pod elsewhere could write at the same time.
fn holds_nothing_shared(volume: &v1::Volume) -> bool {
    volume.empty_dir.is_some()
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some()
        || volume.host_path.is_some()
        || volume.image.is_some()
}

fn is_automatic(source: &v1::CSIPersistentVolumeSource) -> bool {
    let attributes = source.volume_attributes.as_ref();
    attributes.and_then(|all| all.get(PARAMETER)).is_some_and(|word| word == AUTOMATIC)
}

/// Where the volume is, seen from this node.
async fn place_of(client: &Client, name: &str, node: &str) -> Result<Place> {
    // Invariant 2.
    let Some(volume) = client.get::<Volume>(name).await? else { return Ok(Place::Nowhere) };
    let volume = volume.value;
    let uuid = volume.uuid.to_string();
    let record = client.get::<VolumeRecord>(&uuid).await?.map(|record| record.value);
    let status = client.get::<VolumeStatus>(&uuid).await?.map(|status| status.value);
    Ok(place(&volume, record.as_ref(), status.as_ref(), node))
}

fn place(volume: &Volume, record: Option<&VolumeRecord>, status: Option<&VolumeStatus>, node: &str) -> Place {
    let is_read = volume.intent.readers.iter().any(|reader| reader == node);
    if is_read || volume.intent.attach.as_ref().is_some_and(|attach| attach.node == node) {
        return Place::Here;
    }
    let Some(record) = record else { return Place::Nowhere };
    let Some(owner) = &record.owner else {
        return if record.clean { Place::Elsewhere } else { Place::Nowhere };
    };
    // It says that it serves only after I9's wait.
    let serves = status.is_some_and(|status| {
        status.nexus == owner.nexus && status.epoch == record.epoch && status.state == NexusState::Serving
    });
    if owner.node != node && serves { Place::Elsewhere } else { Place::Nowhere }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Attach, Generation, MemberRecord, Owner, VolumeIntent};
    use serde_json::{Value, json};
    use uuid::Uuid;

    fn volume(attached: Option<&str>) -> Volume {
        let intent = VolumeIntent {
            attach: attached.map(|node| Attach { node: node.into() }),
            ..VolumeIntent::default()
        };
        let spec = serde_json::from_value(json!({ "sizeBytes": 1 << 20 })).unwrap();
        Volume { name: "data".into(), uuid: Uuid::from_u128(1), spec, intent, message: None }
    }

    fn record(owner: Option<&str>, clean: bool) -> VolumeRecord {
        let members = vec![MemberRecord::new(Uuid::from_u128(2), Uuid::from_u128(3), "n1".into())];
        let owner = owner.map(|node| Owner { nexus: Uuid::from_u128(9), node: node.into() });
        VolumeRecord {
            epoch: 7,
            owner,
            clean,
            ..VolumeRecord::new(Uuid::from_u128(1), 1 << 20, 4096, members)
        }
    }

    fn status(node: &str, epoch: u64, state: NexusState) -> VolumeStatus {
        VolumeStatus {
            volume: Uuid::from_u128(1),
            node: node.into(),
            nexus: Uuid::from_u128(9),
            epoch,
            state,
            device: None,
            target: None,
            attachment: 0,
            attach_serial: 0,
            size_bytes: 1 << 20,
            stable: Generation::ZERO,
            members: Vec::new(),
            write_stall_max_ms: 0,
            message: None,
        }
    }

    #[test]
    fn a_volume_is_elsewhere_only_when_another_nexus_serves_it_or_none_is_left() {
        let at = |attached, record: Option<VolumeRecord>, status: Option<VolumeStatus>| {
            place(&volume(attached), record.as_ref(), status.as_ref(), "n1")
        };
        let serving = |node, epoch| Some(status(node, epoch, NexusState::Serving));
        assert_eq!(at(Some("n1"), Some(record(Some("n2"), false)), serving("n2", 7)), Place::Here);
        assert_eq!(at(Some("n2"), Some(record(Some("n2"), false)), serving("n2", 7)), Place::Elsewhere);
        assert_eq!(at(None, Some(record(Some("n1"), false)), serving("n1", 7)), Place::Nowhere);
        assert_eq!(at(None, Some(record(Some("n2"), false)), serving("n2", 6)), Place::Nowhere);
        let opening = Some(status("n2", 7, NexusState::Opening));
        assert_eq!(at(None, Some(record(Some("n2"), false)), opening), Place::Nowhere);
        assert_eq!(at(None, Some(record(None, false)), None), Place::Nowhere);
        assert_eq!(at(None, Some(record(None, true)), None), Place::Elsewhere);
        assert_eq!(at(None, None, None), Place::Nowhere);
    }

    #[test]
    fn a_node_says_what_it_holds_and_who_tainted_it() {
        let node: v1::Node = serde_json::from_value(json!({
            "metadata": { "name": "n1" },
            "spec": { "taints": [
                { "key": MARK, "effect": "NoSchedule" },
                { "key": OUT_OF_SERVICE, "value": "nodeshutdown", "effect": "NoExecute" },
            ] },
            "status": {
                "conditions": [{ "type": "Ready", "status": "True" }],
                "volumesInUse": ["kubernetes.io/csi/csi.orlop.io^a", "kubernetes.io/csi/other^b"],
                "volumesAttached": [{ "name": "kubernetes.io/csi/csi.orlop.io^c", "devicePath": "" }],
            },
        }))
        .unwrap();
        assert_eq!(held(&node), ["a".to_owned(), "c".to_owned()].into());
        assert!(is_ready(&node) && !taints(&node).iter().any(is_own_word));
    }

    #[test]
    fn what_other_nodes_could_write_as_well_is_not_fenced_by_us() {
        let volume = |source: Value| -> v1::Volume {
            let mut volume = json!({ "name": "data" });
            volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
            serde_json::from_value(volume).unwrap()
        };
        assert!(holds_nothing_shared(&volume(json!({ "emptyDir": {} }))));
        assert!(!holds_nothing_shared(&volume(json!({ "nfs": { "server": "s", "path": "/" } }))));
    }

    /// A claim's volume of Orlop, as the plugin makes it with this parameter of its class.
    fn ours(parameter: Option<&str>) -> v1::CSIPersistentVolumeSource {
        let mut source = json!({ "driver": "csi.orlop.io", "volumeHandle": "data" });
        if let Some(word) = parameter {
            source["volumeAttributes"] = json!({ "failover": word, "other": "automatic" });
        }
        serde_json::from_value(source).unwrap()
    }

    #[test]
    fn a_class_has_opted_in_by_its_own_word_only() {
        let automatic = |parameter| is_automatic(&ours(parameter));
        assert!(automatic(Some("automatic")));
        for parameter in [None, Some("manual"), Some(""), Some("true"), Some("Automatic")] {
            assert!(!automatic(parameter), "{parameter:?}");
        }
    }

    /// A pod with these volumes and this metadata.
    fn pod(volumes: &Value, mut metadata: Value) -> v1::Pod {
        metadata["name"] = "pod".into();
        let spec = json!({ "containers": [], "volumes": volumes });
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
    }

    #[test]
    fn a_pod_opts_in_by_its_own_word_or_else_by_all_its_classes() {
        let claim = || json!({ "name": "a", "persistentVolumeClaim": { "claimName": "a" } });
        let annotated = |word: &str| json!({ "annotations": { "orlop.io/failover": word } });
        let (one, two) = (json!([claim()]), json!([claim(), { "name": "b", "ephemeral": {} }]));
        let (automatic, manual) = (|| Some(ours(Some("automatic"))), || Some(ours(None)));
        let bound = json!({ "ownerReferences": [{
            "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u",
        }] });
        let mut bound_and_annotated = annotated("automatic");
        bound_and_annotated["ownerReferences"] = bound["ownerReferences"].clone();
        let nfs = json!([claim(), { "name": "c", "nfs": { "server": "s", "path": "/" } }]);
        let scratch =
            json!([claim(), { "name": "c", "emptyDir": {} }, { "name": "d", "configMap": { "name": "m" } }]);
        for (what, volumes, metadata, claimed, opted_in) in [
            ("its class says so", &one, json!({}), vec![automatic()], true),
            ("its class does not", &one, json!({}), vec![manual()], false),
            (
                "another annotation",
                &one,
                json!({ "annotations": { "team": "blue" } }),
                vec![automatic()],
                true,
            ),
            ("its own word", &one, annotated("automatic"), vec![manual()], true),
            ("its own word against its class's", &one, annotated("manual"), vec![automatic()], false),
            ("a word that is none", &one, annotated("true"), vec![automatic()], false),
            ("an empty word", &one, annotated(""), vec![automatic()], false),
            ("both classes", &two, json!({}), vec![automatic(), automatic()], true),
            ("the first class only", &two, json!({}), vec![automatic(), manual()], false),
            ("the second class only", &two, json!({}), vec![manual(), automatic()], false),
            ("its own word, for both", &two, annotated("automatic"), vec![automatic(), manual()], true),
            ("one claim is another driver's, or not bound", &two, json!({}), vec![automatic(), None], false),
            ("none of its claims is ours", &one, json!({}), vec![None], false),
            ("what others can write too", &nfs, json!({}), vec![automatic()], false),
            ("the same by its own word", &nfs, annotated("automatic"), vec![automatic()], true),
            ("what is of its node", &scratch, json!({}), vec![automatic()], true),
            ("no claim", &json!([]), json!({}), vec![], false),
            ("on every node", &one, bound, vec![automatic()], false),
            ("on every node, whatever it says", &one, bound_and_annotated, vec![automatic()], false),
        ] {
            assert_eq!(has_opted_in(&pod(volumes, metadata), &claimed), opted_in, "{what}");
        }
    }
}
