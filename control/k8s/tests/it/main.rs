//! The definitions of the custom resources are checked in: a change of them is seen in review.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

const UPDATE: &str = "ORLOP_UPDATE_CRDS";

/// The name of each file, and what it holds.
fn files() -> BTreeMap<String, String> {
    let file = |crd: serde_json::Value| {
        let name = format!("{}.yaml", crd["metadata"]["name"].as_str().unwrap());
        let head = "# From the Rust types, by control/k8s: not to be edited. That crate's tests say how it is made.\n";
        (name, format!("{head}{}", serde_saphyr::to_string(&crd).unwrap()))
    };
    k8s::crds().into_iter().map(file).collect()
}

#[test]
fn the_definitions_are_those_checked_in() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    let files = files();
    if std::env::var_os(UPDATE).is_some() {
        for (name, text) in &files {
            fs::write(folder.join(name), text).unwrap();
        }
    }
    for (name, text) in &files {
        let checked_in = fs::read_to_string(folder.join(name)).unwrap_or_default();
        assert!(
            checked_in == *text,
            "deploy/crds/{name} is not what the code says; look at the change, then run: {UPDATE}=1 cargo test -p orlop-k8s"
        );
    }
    let there = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(there.collect::<BTreeSet<_>>(), files.into_keys().collect(), "nothing else is there");
}

#[test]
fn yaml_and_definition_are_the_same() {
    for crd in k8s::crds() {
        let text = serde_saphyr::to_string(&crd).unwrap();
        assert_eq!(serde_saphyr::from_str::<serde_json::Value>(&text).unwrap(), crd);
    }
}
