//! What is decided without the API.

use super::*;
use crate::{
    capability::tests::mount,
    v1::{TopologyRequirement, VolumeContentSource, volume_capability::access_mode::Mode},
};
use client::ErrorKind::{Garbled, Refused, Unreachable};
use proptest::prelude::*;

fn request(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        volume_capabilities: vec![mount("", Mode::SingleNodeWriter)],
        ..Default::default()
    }
}

fn refused(request: &CreateVolumeRequest) -> Status {
    Wish::parse(request).err().unwrap()
}

#[test]
fn a_request_becomes_a_wish() {
    let request = request("pvc-1");
    let wish = Wish::parse(&request).unwrap();
    assert_eq!((wish.name.as_str(), wish.size_bytes, wish.parameters.copies), ("pvc-1", 1 << 30, 3));
}

fn place(name: &str) -> Topology {
    Topology { segments: HashMap::from([(TOPOLOGY_KEY.to_owned(), name.to_owned())]) }
}

/// The volume that this request made.
fn made(request: &CreateVolumeRequest) -> VolumeView {
    let Wish { name, size_bytes, parameters, .. } = Wish::parse(request).unwrap();
    let uuid = "00000000-0000-0000-0000-000000000001";
    let volume: model::Volume = serde_json::from_value(serde_json::json!({
        "name": name, "uuid": uuid, "spec": parameters.spec(size_bytes),
        "intent": { "members": [], "attachSerial": 0, "recorded": false, "deleting": false },
    }))
    .unwrap();
    model::view(&volume, 1, None, None, &model::Surroundings::new([], [], []))
}

#[test]
fn a_copy_is_wished_where_the_first_pod_will_be() {
    let near = |parameters: &[(&str, &str)], preferred: &[&str]| {
        let parameters = parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let topology = TopologyRequirement {
            requisite: vec![place("n1"), place("n2")],
            preferred: preferred.iter().map(|name| place(name)).collect(),
        };
        CreateVolumeRequest {
            parameters: parameters.collect(),
            accessibility_requirements: Some(topology),
            ..request("pvc-1")
        }
    };
    let here = near(&[], &["n2", "n1"]);
    assert_eq!(Wish::parse(&here).unwrap().near, Some("n2"));
    assert_eq!(Wish::parse(&near(&[], &[])).unwrap().near, None);
    assert_eq!(Wish::parse(&near(&[("locality", "none")], &["n2", "n1"])).unwrap().near, None);
    assert_eq!(Wish::parse(&request("pvc-1")).unwrap().near, None);

    let volume = made(&here);
    for again in
        [&here, &near(&[], &["n1", "n2"]), &near(&[("locality", "none")], &["n1"]), &request("pvc-1")]
    {
        assert!(Wish::parse(again).unwrap().check_same(&volume).is_ok(), "a repetition finds what there is");
    }
    let other = Wish::parse(&near(&[("copies", "2")], &["n2"])).unwrap().check_same(&volume).unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);
    let fast = near(&[("class", "nvme")], &["n2"]);
    let other = Wish::parse(&fast).unwrap().check_same(&volume).unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);
    assert!(Wish::parse(&fast).unwrap().check_same(&made(&fast)).is_ok());
}

#[test]
fn requests_that_cannot_be_granted_are_refused() {
    assert!(refused(&request("")).message().contains("name is missing"));
    assert!(refused(&request(&"x".repeat(129))).message().contains("128 bytes"));
    let with_source =
        CreateVolumeRequest { volume_content_source: Some(VolumeContentSource::default()), ..request("a") };
    assert!(refused(&with_source).message().contains("volume_content_source"));
    let mutable = HashMap::from([("iops".to_owned(), "1".to_owned())]);
    let with_mutable = CreateVolumeRequest { mutable_parameters: mutable, ..request("a") };
    assert!(refused(&with_mutable).message().contains("\"iops\""));
    let unused = CreateVolumeRequest { volume_capabilities: Vec::new(), ..request("a") };
    for bad in [request(""), with_source, with_mutable, unused] {
        assert_eq!(refused(&bad).code(), Code::InvalidArgument);
    }
}

#[test]
fn who_reads_and_who_writes_exclude_each_other() {
    let seen = |attach: Option<&str>, readers: &[&str]| {
        let mut view = made(&request("pvc-1"));
        view.intent.attach = attach.map(|node| model::Attach { node: node.into() });
        view.intent.readers = readers.iter().map(|node| (*node).to_owned()).collect();
        view
    };
    let [nowhere, written, read] = [seen(None, &[]), seen(Some("n1"), &[]), seen(None, &["n1", "n2"])];
    assert_eq!(published_on(&nowhere), Vec::<String>::new());
    assert_eq!(
        (published_on(&written), published_on(&read)),
        (vec!["n1".into()], vec!["n1".into(), "n2".into()])
    );
    for (view, node, many_nodes, wanted) in [
        (&nowhere, "n1", false, None),
        (&nowhere, "n1", true, None),
        (&written, "n1", false, None),
        (&written, "n1", true, Some(Code::AlreadyExists)),
        (&written, "n2", false, Some(Code::FailedPrecondition)),
        (&written, "n2", true, Some(Code::FailedPrecondition)),
        (&read, "n1", true, None),
        (&read, "n3", true, None),
        (&read, "n1", false, Some(Code::AlreadyExists)),
        (&read, "n3", false, Some(Code::FailedPrecondition)),
    ] {
        let refused = check_published(view, node, many_nodes).err();
        let found = refused.as_ref().map(Status::code);
        assert_eq!(found, wanted, "{node} {many_nodes} {:?}: {refused:?}", published_on(view));
        assert!(refused.is_none_or(|refused| refused.message().contains("unpublish it there first")));
    }
}

#[test]
fn a_reader_has_a_device_of_its_own() {
    let mut view = made(&request("pvc-1"));
    view.intent.readers = vec!["n1".into(), "n2".into()];
    let reader = |node: &str, device: Option<&str>| model::ReaderView {
        node: node.into(),
        device: device.map(str::to_owned),
        message: None,
    };
    view.status.readers = vec![reader("n1", Some("/dev/loop1")), reader("n2", None)];
    view.status.state = VolumeState::Attaching;
    assert!(is_attached(&view, "n1", true), "who is not there yet is no reason to wait elsewhere");
    assert!(!is_attached(&view, "n2", true) && !is_attached(&view, "n3", true));
    assert!(!is_attached(&view, "n1", false));
}

#[test]
fn codes_say_whether_to_try_again() {
    let error = |kind, problem: &str| client::Error {
        kind,
        problem: problem.into(),
        detail: "d".into(),
        hint: "h".into(),
    };
    for (kind, problem, code) in [
        (Unreachable, "", Code::Unavailable),
        (Garbled, "", Code::Internal),
        (Refused(404), "", Code::NotFound),
        (Refused(409), "urn:orlop:problem:conflict", Code::FailedPrecondition),
        (Refused(409), "urn:orlop:problem:too-few-nodes", Code::ResourceExhausted),
        (Refused(409), "urn:orlop:problem:too-little-space", Code::ResourceExhausted),
        (Refused(412), "", Code::Aborted),
        (Refused(422), "", Code::InvalidArgument),
        (Refused(503), "", Code::Unavailable),
        (Refused(500), "", Code::Internal),
    ] {
        let status = of_api(&error(kind, problem));
        assert_eq!((status.code(), status.message()), (code, "d; h"));
    }
}

fn cluster(free: &[u64]) -> (Vec<Node>, Vec<Pool>) {
    let node = |number: usize| {
        serde_json::from_value(serde_json::json!({
            "name": format!("n{number}"), "state": "Ready", "address": "a:1", "metricsAddress": null, "pid": 1,
            "bootId": "00000000-0000-0000-0000-000000000001", "version": "0", "heartbeat": 1
        }))
        .unwrap()
    };
    let pool = |(number, free): (usize, &u64)| {
        serde_json::from_value(serde_json::json!({
            "name": "p", "uuid": "00000000-0000-0000-0000-000000000001", "node": format!("n{number}"), "uri": "u",
            "state": "Online", "capacityBytes": free, "usedBytes": 0, "freeBytes": free, "message": null,
            "incarnation": "00000000-0000-0000-0000-000000000001", "bootId": "00000000-0000-0000-0000-000000000001"
        }))
        .unwrap()
    };
    ((0..free.len()).map(node).collect(), free.iter().enumerate().map(pool).collect())
}

#[test]
fn room_is_counted_on_different_nodes() {
    const GIB: u64 = 1 << 30;
    let (mut nodes, mut pools) = cluster(&[4 * GIB, 2 * GIB, 3 * GIB]);
    let room = |nodes: &[Node], pools: &[Pool]| {
        [0, 1, 2, 3, 4].map(|copies| largest_volume(nodes, pools, copies, None) / GIB)
    };
    assert_eq!(room(&nodes, &pools), [0, 4, 3, 2, 0]);
    pools[1].node = "n0".into();
    assert_eq!(room(&nodes, &pools), [0, 4, 3, 0, 0], "two pools of one node are one place");
    nodes[2].state = NodeState::NotReady;
    pools[1].state = PoolState::Gone;
    assert_eq!(room(&nodes, &pools), [0, 4, 0, 0, 0]);
    nodes[2].state = NodeState::Ready;
    assert_eq!(room(&nodes, &pools), [0, 4, 3, 0, 0]);
    nodes[2].spec.scheduling = Scheduling::Cordoned;
    assert_eq!(room(&nodes, &pools), [0, 4, 0, 0, 0], "nothing is placed there");
    nodes[2].spec.scheduling = Scheduling::Enabled;
    let of_class = |pools: &[Pool]| largest_volume(&nodes, pools, 1, Some(DiskClass::Hdd)) / GIB;
    assert_eq!(of_class(&pools), 0, "nobody says what their disks are");
    (pools[0].class, pools[2].class) = (Some(DiskClass::Nvme), Some(DiskClass::Hdd));
    assert_eq!(of_class(&pools), 3);
    assert!(is_one_of(&nodes, &place("n1")) && !is_one_of(&nodes, &place("n7")));
}

proptest! {
    #[test]
    fn more_copies_never_have_more_room(free in proptest::collection::vec(0_u64..1 << 40, 0..8)) {
        let (nodes, pools) = cluster(&free);
        let room: Vec<u64> = (1..9).map(|copies| largest_volume(&nodes, &pools, copies, None)).collect();
        prop_assert!(room.is_sorted_by(|a, b| a >= b) && room.iter().all(|bytes| bytes.is_multiple_of(1 << 20)));
    }
}
