//! What the store needs to know of a noun: its kind, its key, and whether it is well formed.

use crate::Invalid;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{fmt, str::FromStr};

/// The kinds of objects in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`crate::ClusterInfo`].
    Cluster,
    /// [`crate::Node`].
    Node,
    /// [`crate::Pool`].
    Pool,
    /// [`crate::Volume`].
    Volume,
    /// [`crate::VolumeRecord`].
    VolumeRecord,
    /// [`crate::VolumeStatus`].
    VolumeStatus,
    /// [`crate::NodeReplicas`].
    NodeReplicas,
    /// [`crate::Disk`].
    Disk,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Cluster,
        Self::Node,
        Self::Pool,
        Self::Volume,
        Self::VolumeRecord,
        Self::VolumeStatus,
        Self::NodeReplicas,
        Self::Disk,
    ];

    /// The name in paths of the store, never changed once released.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "clusters",
            Self::Node => "nodes",
            Self::Pool => "pools",
            Self::Volume => "volumes",
            Self::VolumeRecord => "volumerecords",
            Self::VolumeStatus => "volumestatuses",
            Self::NodeReplicas => "nodereplicas",
            Self::Disk => "disks",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownKind;

impl fmt::Display for UnknownKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a kind of object; the kinds are")?;
        for kind in Kind::ALL {
            write!(f, " {kind}")?;
        }
        Ok(())
    }
}

impl std::error::Error for UnknownKind {}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(UnknownKind)
    }
}

/// A noun that the store keeps as one JSON object under (kind, key).
pub trait Object: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// Its kind.
    const KIND: Kind;

    /// Its key, unique within the kind.
    fn key(&self) -> String;

    /// Whether it is well formed: checked before each write and after each read from outside.
    fn validate(&self) -> Result<(), Invalid>;
}

/// An object as read from the store, with the revision that a compare-and-swap needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored<T> {
    /// Given by the store, different after each write of this object; nothing else may be read into it.
    pub revision: u64,
    /// The object.
    pub value: T,
}
