//! What the scheduler asks and what it understands: `k8s.io/kube-scheduler/extender/v1` as of v0.36.3, in JSON.
//!
//! 1. The Go types have no tags, so the names are those of their fields: `NodeNames`, not `nodeNames`. What is empty
//!    comes as `null`.
//! 2. What is asked comes from anybody who reaches the port. Whatever it is, it is understood or refused in words, and
//!    nothing of it gets into a path but names.

use super::judge::Score;
use crate::claim::claim_of;
use k8s_openapi::api::core::v1;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use std::collections::BTreeMap;

/// Claims of a pod that are looked at; others count for nothing.
pub(super) const CLAIMS_MAX: usize = 16;
/// The longest name of a namespace or a claim.
const NAME_MAX_BYTES: usize = 253;

/// `ExtenderArgs`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Arguments {
    pod: Option<v1::Pod>,
    nodes: Option<IgnoredAny>,
    node_names: Option<Vec<String>>,
}

/// Which of these nodes, for a pod with these claims?
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) namespace: String,
    pub(super) claims: Vec<String>,
    pub(super) nodes: Vec<String>,
}

/// `ExtenderFilterResult`, without what we never say.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct FilterResult {
    pub(super) node_names: Vec<String>,
    /// Refused, with why. To end other pods there would change nothing.
    pub(super) failed_and_unresolvable_nodes: BTreeMap<String, String>,
}

/// `HostPriority`.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HostPriority {
    pub(super) host: String,
    pub(super) score: Score,
}

impl Question {
    /// Understands the body of a request; if it cannot, why.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let arguments: Arguments =
            serde_json::from_slice(body).map_err(|error| format!("the body is no ExtenderArgs: {error}"))?;
        let Arguments { pod: Some(pod), nodes, node_names } = arguments else {
            return Err("there is no Pod in it".into());
        };
        let nodes = match (node_names, nodes) {
            (Some(names), _) => names,
            (None, Some(_)) => {
                return Err(
                    "there are Nodes and no NodeNames in it; set nodeCacheCapable: true for this extender"
                        .into(),
                );
            }
            (None, None) => return Err("there are no NodeNames in it".into()),
        };
        let pod_name = pod.metadata.name.unwrap_or_default();
        let volumes = pod.spec.and_then(|spec| spec.volumes).unwrap_or_default();
        let mut claims: Vec<String> =
            volumes.iter().filter_map(|volume| claim_of(&pod_name, volume)).take(CLAIMS_MAX).collect();
        claims.sort();
        claims.dedup();
        let namespace = pod.metadata.namespace.unwrap_or_default();
        // A pod without claims needs no namespace.
        let mut names = claims.first().map(|_| &namespace).into_iter().chain(&claims);
        if let Some(name) = names.find(|name| !is_name(name)) {
            let shown: String = name.chars().take(80).collect();
            return Err(format!("{shown:?} is no name of a namespace or a claim"));
        }
        Ok(Self { namespace, claims, nodes })
    }
}

/// A DNS subdomain (RFC 1123), as far as a path needs it (invariant 2).
fn is_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    text.len() <= NAME_MAX_BYTES
        && text.bytes().all(inner)
        && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn pod(volumes: &Value) -> Value {
        json!({ "metadata": { "name": "p", "namespace": "default" }, "spec": { "containers": [], "volumes": volumes } })
    }

    fn parse(value: &Value) -> Result<Question, String> {
        Question::parse(value.to_string().as_bytes())
    }

    /// What kube-scheduler v1.36.3 sends with `nodeCacheCapable: true`.
    #[test]
    fn a_question_is_understood_as_go_spells_it() {
        let volumes = json!([
            { "name": "b", "persistentVolumeClaim": { "claimName": "data" } },
            { "name": "a", "ephemeral": { "volumeClaimTemplate": { "spec": {} } } },
            { "name": "again", "persistentVolumeClaim": { "claimName": "data", "readOnly": true } },
            { "name": "token", "projected": { "sources": [] } },
        ]);
        let asked = parse(&json!({ "Pod": pod(&volumes), "Nodes": null, "NodeNames": ["node-1", "node-2"] }));
        let wanted = Question {
            namespace: "default".into(),
            claims: vec!["data".into(), "p-a".into()],
            nodes: vec!["node-1".into(), "node-2".into()],
        };
        assert_eq!(asked, Ok(wanted));
        let nothing = parse(&json!({ "Pod": {}, "Nodes": null, "NodeNames": [] })).unwrap();
        assert!(nothing.claims.is_empty() && nothing.nodes.is_empty());
    }

    #[test]
    fn what_is_no_question_is_refused_in_words() {
        let with =
            |claim: &str| pod(&json!([{ "name": "v", "persistentVolumeClaim": { "claimName": claim } }]));
        let names = json!(["n"]);
        for (asked, words) in [
            (json!(null), "no ExtenderArgs"),
            (json!([]), "no ExtenderArgs"),
            (json!({}), "no Pod"),
            (json!({ "pod": pod(&json!([])), "nodenames": names }), "no Pod"),
            (json!({ "Pod": 7, "NodeNames": names }), "no ExtenderArgs"),
            (json!({ "Pod": pod(&json!([])), "Nodes": null, "NodeNames": null }), "no NodeNames"),
            (json!({ "Pod": pod(&json!([])), "NodeNames": [7] }), "no ExtenderArgs"),
            (json!({ "Pod": pod(&json!([])), "Nodes": { "items": [] } }), "nodeCacheCapable"),
            (json!({ "Pod": with("../../../secrets/s"), "NodeNames": names }), "is no name"),
            (json!({ "Pod": with(".."), "NodeNames": names }), "is no name"),
            (json!({ "Pod": with("a?b=c"), "NodeNames": names }), "is no name"),
            (json!({ "Pod": with(""), "NodeNames": names }), "is no name"),
            (json!({ "Pod": { "spec": with("c")["spec"] }, "NodeNames": names }), "is no name"),
        ] {
            let why = parse(&asked).unwrap_err();
            assert!(why.contains(words), "{asked}: {why}");
        }
        assert!(Question::parse(b"{\"Pod\":").unwrap_err().contains("no ExtenderArgs"));
    }

    #[test]
    fn answers_are_spelt_as_go_reads_them() {
        let result = FilterResult {
            node_names: vec!["n1".into()],
            failed_and_unresolvable_nodes: [("n2".to_owned(), "why".to_owned())].into(),
        };
        assert_eq!(
            serde_json::to_value(result).unwrap(),
            json!({ "NodeNames": ["n1"], "FailedAndUnresolvableNodes": { "n2": "why" } })
        );
        let list = [HostPriority { host: "n1".into(), score: 10 }];
        assert_eq!(serde_json::to_value(list).unwrap(), json!([{ "Host": "n1", "Score": 10 }]));
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_is_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".*") {
            drop(Question::parse(&bytes));
            drop(Question::parse(text.as_bytes()));
        }

        #[test]
        fn names_that_are_taken_stay_in_their_place(
            namespace in "[ -~]{0,20}", claim in "[./a-z?%#A-Z0-9-]{0,20}", count in 0_usize..40,
        ) {
            let volume = |n: usize| json!({ "name": "v", "persistentVolumeClaim": { "claimName": format!("{claim}{n}") } });
            let volumes: Vec<Value> = (0..count).map(volume).collect();
            let pod = json!({ "metadata": { "namespace": namespace }, "spec": { "containers": [], "volumes": volumes } });
            if let Ok(question) = parse(&json!({ "Pod": pod, "NodeNames": [] })) {
                prop_assert!(question.claims.len() <= CLAIMS_MAX);
                for name in question.claims.iter().chain((count > 0).then_some(&question.namespace)) {
                    prop_assert!(!name.is_empty() && !name.starts_with('.') && !name.contains(['/', '?', '#', '%']));
                }
            }
        }
    }
}
