//! What etcd's JSON gateway answers: protobuf as JSON, hence bytes in base64, 64-bit numbers in quotes, and everything
//! that is zero left out.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, de::Error};

/// Bytes as etcd wants them.
pub(super) fn base64(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// Begins every answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Header {
    /// The last revision of the whole store.
    #[serde(deserialize_with = "number")]
    pub(super) revision: u64,
}

/// A key and what is there.
#[derive(Debug, Deserialize)]
pub(super) struct KeyValue {
    #[serde(deserialize_with = "bytes")]
    pub(super) key: Vec<u8>,
    #[serde(deserialize_with = "number")]
    pub(super) mod_revision: u64,
    #[serde(default, deserialize_with = "bytes")]
    pub(super) value: Vec<u8>,
}

/// The answer to `/v3/kv/range`.
#[derive(Debug, Deserialize)]
pub(super) struct Range {
    pub(super) header: Header,
    #[serde(default)]
    pub(super) kvs: Vec<KeyValue>,
    /// There are more behind the last one.
    #[serde(default)]
    pub(super) more: bool,
}

/// The answer to `/v3/kv/txn`.
#[derive(Debug, Deserialize)]
pub(super) struct Txn {
    pub(super) header: Header,
    #[serde(default)]
    pub(super) succeeded: bool,
    #[serde(default)]
    pub(super) responses: Vec<TxnResponse>,
}

/// The answer to one operation of a transaction.
#[derive(Debug, Deserialize)]
pub(super) struct TxnResponse {
    pub(super) response_range: Option<Range>,
}

/// Why a question was refused.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    /// Of gRPC.
    pub(super) code: u32,
    pub(super) message: String,
}

/// One line of the answer to `/v3/watch`.
#[derive(Debug, Deserialize)]
pub(super) struct WatchLine {
    /// None: an error, and the end.
    pub(super) result: Option<WatchResult>,
}

/// What happened, or that the watch has ended.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WatchResult {
    pub(super) canceled: bool,
    /// Not zero: what was to be told first is forgotten.
    #[serde(deserialize_with = "number")]
    pub(super) compact_revision: u64,
    pub(super) cancel_reason: String,
    pub(super) events: Vec<WatchEvent>,
}

/// One change of a key.
#[derive(Debug, Deserialize)]
pub(super) struct WatchEvent {
    /// `DELETE`, or nothing.
    #[serde(default, rename = "type")]
    pub(super) what: String,
    pub(super) kv: KeyValue,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_real_watch_are_understood() {
        let line = r#"{"result":{"header":{"cluster_id":"3","revision":"6","raft_term":"2"},"events":[
            {"kv":{"key":"L29ybG9wL3k=","create_revision":"3","mod_revision":"5","version":"3","value":"Mw=="}},
            {"type":"DELETE","kv":{"key":"L29ybG9wL3k=","mod_revision":"6"}}]}}"#;
        let result = serde_json::from_str::<WatchLine>(line).unwrap().result.unwrap();
        let [put, delete] = result.events.as_slice() else { panic!("{result:?}") };
        assert_eq!((put.what.as_str(), put.kv.mod_revision, put.kv.value.as_slice()), ("", 5, &b"3"[..]));
        assert_eq!((delete.what.as_str(), delete.kv.key.as_slice()), ("DELETE", &b"/orlop/y"[..]));

        let line = r#"{"result":{"header":{"raft_term":"2"},"canceled":true,"compact_revision":"4"}}"#;
        let result = serde_json::from_str::<WatchLine>(line).unwrap().result.unwrap();
        assert!(result.canceled && result.compact_revision == 4);
        let line = r#"{"error":{"grpc_code":14,"http_code":503,"message":"x","http_status":"y"}}"#;
        assert!(serde_json::from_str::<WatchLine>(line).unwrap().result.is_none());
    }

    #[test]
    fn what_is_not_of_etcd_is_an_error() {
        for bad in
            [r#"{"kv":{"key":"*","mod_revision":"1"}}"#, r#"{"kv":{"key":"","mod_revision":"-1"}}"#, "{}"]
        {
            assert!(serde_json::from_str::<WatchEvent>(bad).is_err(), "{bad}");
        }
    }
}
