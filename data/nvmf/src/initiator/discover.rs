//! Discovery: asks a target what it offers.

use super::{Association, ConnectOptions};
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::limits;
use crate::subsystem::DiscoveryEntry;
use crate::wire::fabrics::DISCOVERY_NQN;
use crate::wire::log::{self, DiscoveryHeader, LogRequest};
use device::Status;
use std::net::SocketAddr;
use uuid::Uuid;
use zerocopy::FromBytes;

const RECORD_BYTES: u64 = 1024;
/// Records read by one command.
const RECORDS_PER_COMMAND: u64 = 64;
/// How often the log may change while it is read.
const ATTEMPTS: usize = 8;

/// The subsystems that the target at `address` offers to the host `hostnqn`, which has `key`.
pub async fn discover(
    address: SocketAddr,
    hostnqn: &str,
    hostid: Uuid,
    key: Option<Key>,
) -> Result<Vec<DiscoveryEntry>, Error> {
    let options = ConnectOptions { key, ..ConnectOptions::new(address, DISCOVERY_NQN, hostnqn, hostid) };
    let association = Association::connect(options).await?;
    let entries = read_log(&association).await;
    association.close().await;
    entries.map_err(|status| {
        Error::new(ErrorKind::of_status(status), address, DISCOVERY_NQN, "reading the discovery log")
    })
}

/// Reads the log until it did not change while it was read.
async fn read_log(association: &Association) -> Result<Vec<DiscoveryEntry>, Status> {
    for _ in 0..ATTEMPTS {
        let before = header(association).await?;
        let count = before.numrec.get().min(limits::DISCOVERY_RECORDS_MAX);
        let mut entries = Vec::new();
        let mut at = 0;
        while at < count {
            let records = RECORDS_PER_COMMAND.min(count - at);
            let request = LogRequest {
                id: log::id::DISCOVERY,
                retain_event: true,
                len_bytes: records * RECORD_BYTES,
                offset_bytes: RECORD_BYTES * (1 + at),
            };
            entries.extend(log::parse_discovery_records(&association.log_page(request).await?));
            at += records;
        }
        if header(association).await?.genctr == before.genctr {
            return Ok(entries);
        }
    }
    Err(Status::Internal)
}

async fn header(association: &Association) -> Result<DiscoveryHeader, Status> {
    let request =
        LogRequest { id: log::id::DISCOVERY, retain_event: false, len_bytes: RECORD_BYTES, offset_bytes: 0 };
    let page = association.log_page(request).await?;
    DiscoveryHeader::read_from_bytes(&page).map_err(|_| Status::Internal)
}
