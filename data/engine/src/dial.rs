//! How the nexuses of this node reach members, and its readers a volume that is open elsewhere: a plain call on this node, an NVMe/TCP association elsewhere.

use crate::State;
use crate::keys::volume_key;
use crate::target::{NSID, reader_nqn};
use device::Status;
use model::MemberRecord;
use nexus::Dial;
use nexus::leg::{Leg, RemoteLeg, replica_nqn};
use nvmf::{Association, ConnectOptions, ErrorKind, Namespace};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;
use uuid::Uuid;

/// How long a member may take to answer the handshake.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// How long a command may take before its association is given up (I3: it is asked again only after a reconnect). That a
/// member is not there at all its nexus finds out sooner, by heartbeats: this is for a disk that does not answer.
const COMMAND_LIMIT: Duration = Duration::from_secs(4);
/// How long a member's silence on an idle association may last. While a volume is used its nexus asks far more often.
const KEEP_ALIVE_MS: u32 = 15_000;

/// The way to members from this node.
pub(crate) fn dial(state: &Rc<State>) -> Dial {
    let state = Rc::downgrade(state);
    Rc::new(move |member| {
        let state = Weak::clone(&state);
        Box::pin(async move { connect(&state.upgrade().ok_or(Status::Gone)?, member).await })
    })
}

async fn connect(state: &Rc<State>, member: MemberRecord) -> Result<Leg, Status> {
    if member.node == state.config.node {
        return state.pools.port(member.replica).map(|port| Leg::Local(port.open())).ok_or(Status::Gone);
    }
    let options = ConnectOptions {
        key: state.config.secret.clone(),
        ..options(state, &member.node, replica_nqn(member.replica)).await?
    };
    let association = Association::connect(options).await.map_err(|error| {
        let (node, peer, replica) = (&state.config.node, &member.node, member.replica);
        if let ErrorKind::Unauthenticated(_) = error.kind() {
            // It stays so until somebody does something about it.
            tracing::warn!(node, peer, %replica, %error, "member not reached");
        } else {
            tracing::debug!(node, peer, %replica, %error, "member not reached");
        }
        Status::Gone
    })?;
    Ok(Leg::Remote(RemoteLeg::new(association)))
}

/// A volume as its readers have it, by the target of the node that has it open.
pub(crate) async fn connect_reader(
    state: &State,
    node: &str,
    volume: Uuid,
    serial: u64,
) -> Result<Namespace, Status> {
    let options = options(state, node, reader_nqn(volume, serial)).await?;
    let key = state.config.secret.as_ref().map(|secret| volume_key(secret, volume, &options.hostnqn));
    let association = Association::connect(ConnectOptions { key, ..options }).await.map_err(|error| {
        tracing::debug!(node = state.config.node, peer = node, %volume, %error, "volume not reached for reading");
        Status::Gone
    })?;
    Ok(association.namespace(NSID))
}

async fn options(state: &State, node: &str, subnqn: String) -> Result<ConnectOptions, Status> {
    let address = address_of(state, node).await?;
    let hostnqn = format!("nqn.2026-11.io.orlop:node:{}", state.config.node);
    Ok(ConnectOptions {
        connect_limit: CONNECT_LIMIT,
        command_limit: COMMAND_LIMIT,
        keep_alive_ms: KEEP_ALIVE_MS,
        ..ConnectOptions::new(address, subnqn, hostnqn, rt::random_uuid())
    })
}

/// Where a node listens, by the store or, while that is away, as it was last known.
async fn address_of(state: &State, node: &str) -> Result<SocketAddr, Status> {
    if let Ok(Some(node)) = state.control.node(node).await {
        state.learn_address(&node);
    }
    state.known_address(node).ok_or(Status::Gone)
}
