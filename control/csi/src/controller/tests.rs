//! What is decided without the API.

use super::*;
use crate::{
    capability::tests::mount,
    v1::{TopologyRequirement, VolumeContentSource, volume_capability::access_mode::Mode},
};
use client::ErrorKind::{Garbled, Refused, Unreachable};

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

/// The volume that this request made, with copies on these nodes.
fn made_on(request: &CreateVolumeRequest, nodes: &[&str]) -> VolumeView {
    let Wish { name, size_bytes, parameters, .. } = Wish::parse(request).unwrap();
    let uuid = "00000000-0000-0000-0000-000000000001";
    let member = |node: &&str| serde_json::json!({ "replica": uuid, "pool": uuid, "node": node });
    let members: Vec<_> = nodes.iter().map(member).collect();
    let volume: model::Volume = serde_json::from_value(serde_json::json!({
        "name": name, "uuid": uuid, "spec": parameters.spec(size_bytes),
        "intent": { "members": members, "attachSerial": 0, "recorded": false, "deleting": false },
    }))
    .unwrap();
    model::view(&volume, 1, None, None, &model::Surroundings::new([], [], []))
}

fn made(request: &CreateVolumeRequest) -> VolumeView {
    made_on(request, &[])
}

/// A request with these parameters and places.
fn placed(parameters: &[(&str, &str)], requisite: &[&str], preferred: &[&str]) -> CreateVolumeRequest {
    let parameters = parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let places = |names: &[&str]| names.iter().map(|name| place(name)).collect();
    let topology = TopologyRequirement { requisite: places(requisite), preferred: places(preferred) };
    CreateVolumeRequest {
        parameters: parameters.collect(),
        accessibility_requirements: Some(topology),
        ..request("pvc-1")
    }
}

#[test]
fn a_copy_is_wished_where_the_first_pod_will_be() {
    let near = |parameters: &[(&str, &str)], preferred: &[&str]| placed(parameters, &["n1", "n2"], preferred);
    let here = near(&[], &["n2", "n1"]);
    assert_eq!(Wish::parse(&here).unwrap().near, Some("n2"));
    assert_eq!(Wish::parse(&near(&[], &[])).unwrap().near, None);
    assert_eq!(Wish::parse(&near(&[("locality", "none")], &["n2", "n1"])).unwrap().near, None);
    assert_eq!(Wish::parse(&request("pvc-1")).unwrap().near, None);

    let volume = made(&here);
    for again in
        [&here, &near(&[], &["n1", "n2"]), &near(&[("locality", "none")], &["n1"]), &request("pvc-1")]
    {
        let wish = Wish::parse(again).unwrap();
        assert!(wish.on.is_none() && wish.reachable_from(&volume).unwrap().is_empty(), "everywhere");
        assert!(wish.check_same(&volume).is_ok(), "a repetition finds what there is");
    }
    let zoned = near(&[("placement", "zone")], &["n2"]);
    let fast = near(&[("class", "nvme")], &["n2"]);
    for other in [&near(&[("copies", "2")], &["n2"]), &fast, &zoned] {
        let other = Wish::parse(other).unwrap().check_same(&volume).unwrap_err();
        assert_eq!(other.code(), Code::AlreadyExists);
    }
    for same in [&fast, &zoned] {
        assert!(Wish::parse(same).unwrap().check_same(&made(same)).is_ok());
    }
    let told = Wish::parse(&fast).unwrap().check_same(&made(&zoned)).unwrap_err();
    let says = "1 stripes, class any and placement topology.kubernetes.io/zone; choose another name";
    assert!(told.message().ends_with(says), "{told}");
}

#[test]
fn a_strict_volume_has_a_copy_where_it_has_to_be_within_reach() {
    let strict = |requisite: &[&str], preferred: &[&str]| {
        placed(&[("locality", "strict"), ("copies", "2")], requisite, preferred)
    };
    let on = |request: &CreateVolumeRequest| {
        let wish = Wish::parse(request).unwrap();
        let on = wish.on.as_ref().map(|on| on.iter().cloned().collect::<Vec<_>>().join(" "));
        (wish.near.map(str::to_owned), on)
    };
    let told = |near: &str, on: &str| (Some(near.to_owned()), Some(on.to_owned()));
    assert_eq!(on(&strict(&["n2"], &["n2"])), told("n2", "n2"), "a node was chosen");
    assert_eq!(on(&strict(&["n1", "n2"], &["n2", "n1"])), told("n2", "n1 n2"), "any of several will do");
    assert_eq!(on(&strict(&[], &["n3"])), told("n3", "n3"));
    assert_eq!(on(&strict(&[], &[])), (None, None), "nobody has said where");
    assert_eq!(on(&placed(&[], &["n1"], &["n1"])), (Some("n1".into()), None), "a preference");

    let request = strict(&["n2"], &["n2"]);
    let reachable = |request: &CreateVolumeRequest, nodes: &[&str]| {
        Wish::parse(request).unwrap().reachable_from(&made_on(request, nodes))
    };
    assert_eq!(reachable(&request, &["n2", "n3"]).unwrap(), [place("n2"), place("n3")]);
    assert_eq!(reachable(&strict(&[], &[]), &["n1"]).unwrap(), [place("n1")]);
    let elsewhere = reachable(&request, &["n1", "n3"]).unwrap_err();
    assert_eq!(elsewhere.code(), Code::ResourceExhausted, "the scheduler is to choose another node");
    let says = "volume \"pvc-1\" exists with copies on n1, n3, and has none on n2; use it there";
    assert_eq!(elsewhere.message(), says);
    assert_eq!(reachable(&request, &[]).unwrap_err().code(), Code::Unavailable);
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
fn who_should_look_at_a_volume_is_told_and_why() {
    let mut view = made(&request("pvc-1"));
    for (state, is_abnormal) in [
        (VolumeState::Pending, true),
        (VolumeState::Creating, false),
        (VolumeState::Available, false),
        (VolumeState::Attaching, false),
        (VolumeState::Attached, false),
        (VolumeState::Detaching, false),
        (VolumeState::Degraded, true),
        (VolumeState::Stalled, true),
        (VolumeState::Deleting, false),
    ] {
        for (why, wanted) in [(None, state.to_string()), (Some("n1 is away"), format!("{state}: n1 is away"))]
        {
            (view.status.state, view.status.message) = (state, why.map(str::to_owned));
            let VolumeCondition { abnormal, message } = condition(&view);
            assert_eq!((abnormal, message), (is_abnormal, wanted));
        }
    }
    assert_eq!(VolumeState::ALL.len(), 9, "all of them");
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
        (Refused(409), "urn:orlop:problem:too-few-domains", Code::ResourceExhausted),
        (Refused(409), "urn:orlop:problem:too-little-space", Code::ResourceExhausted),
        (Refused(409), "urn:orlop:problem:not-there", Code::ResourceExhausted),
        (Refused(409), "urn:orlop:problem:node-full", Code::ResourceExhausted),
        (Refused(412), "", Code::Aborted),
        (Refused(422), "", Code::InvalidArgument),
        (Refused(503), "", Code::Unavailable),
        (Refused(500), "", Code::Internal),
    ] {
        let status = of_api(&error(kind, problem));
        assert_eq!((status.code(), status.message()), (code, "d; h"));
    }
}

#[test]
fn a_place_is_a_node() {
    let node = serde_json::from_value(serde_json::json!({
        "name": "n1", "state": "Ready", "address": "a:1", "metricsAddress": null, "pid": 1,
        "bootId": "00000000-0000-0000-0000-000000000001", "version": "0", "heartbeat": 1
    }));
    let nodes = [node.unwrap()];
    assert!(is_one_of(&nodes, &place("n1")) && !is_one_of(&nodes, &place("n7")));
}
