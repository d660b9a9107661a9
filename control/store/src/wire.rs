//! What travels between [`crate::Remote`] and [`crate::routes`]: JSON over HTTP/1.1, no clock and no state in it.
//!
//! | request | answer |
//! |---|---|
//! | `GET /store/v1/KIND` | `200` [`List`] |
//! | `GET /store/v1/KIND/KEY` | `200` an object with its revision |
//! | `PUT /store/v1/KIND/KEY?revision=N` (0: there is none) | `200` [`Revision`] |
//! | `DELETE /store/v1/KIND/KEY?revision=N` | `200` [`Revision`] of 0 |
//! | `GET /store/v1/watch/KIND` | `200` one [`Line`] of JSON after the other, without end |
//!
//! Every failure is an [`Failure`] with the status of [`status_of`].

use crate::{Error, ErrorKind, Event};
use axum::http::StatusCode;
use model::{
    ClusterInfo, Disk, Kind, Node, NodeReplicas, Object, Pool, Stored, Volume, VolumeRecord, VolumeStatus,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Below which path the store is served.
pub(crate) const PREFIX: &str = "/store/v1";

/// All objects of a kind.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct List {
    pub(crate) items: Vec<Stored<Value>>,
}

/// The new revision of an object; also what a write expects.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Revision {
    pub(crate) revision: u64,
}

/// Why a request failed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
}

/// One line of a watch.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Line {
    Event(Event),
    /// Nothing has happened, and the server is there.
    Alive {
        alive: bool,
    },
}

/// The status that goes with a kind of failure.
pub(crate) const fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::Unavailable | ErrorKind::InUse => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Unknown => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Corrupt => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Checks an object as its kind demands: what comes from another process is never trusted.
pub(crate) fn check(kind: Kind, key: &str, value: &Value) -> Result<(), Error> {
    match kind {
        Kind::Cluster => check_as::<ClusterInfo>(key, value),
        Kind::Node => check_as::<Node>(key, value),
        Kind::Pool => check_as::<Pool>(key, value),
        Kind::Volume => check_as::<Volume>(key, value),
        Kind::VolumeRecord => check_as::<VolumeRecord>(key, value),
        Kind::VolumeStatus => check_as::<VolumeStatus>(key, value),
        Kind::NodeReplicas => check_as::<NodeReplicas>(key, value),
        Kind::Disk => check_as::<Disk>(key, value),
    }
}

fn check_as<T: Object>(key: &str, value: &Value) -> Result<(), Error> {
    let kind = T::KIND;
    let object = T::deserialize(value).map_err(|cause| {
        Error::because(ErrorKind::Invalid, format!("{kind}/{key} is not well formed"), cause)
    })?;
    object
        .validate()
        .map_err(|invalid| Error::new(ErrorKind::Invalid, format!("{kind}/{key} refused: {invalid}")))?;
    if object.key() != key {
        let context = format!("{kind}/{key} refused: the object's own key is {:?}", object.key());
        return Err(Error::new(ErrorKind::Invalid, context));
    }
    Ok(())
}

/// An object as it is kept: JSON in bytes.
pub(crate) fn decode(kind: Kind, key: &str, revision: u64, json: &[u8]) -> Result<Stored<Value>, Error> {
    let value = serde_json::from_slice(json)
        .map_err(|cause| Error::because(ErrorKind::Corrupt, format!("{kind}/{key} in the store"), cause))?;
    Ok(Stored { revision, value })
}
