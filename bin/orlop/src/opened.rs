//! Any device that a URI can name, leaf or remote, for the tools of this program.

use crate::failure::{Failure, Kind, OrFail, Outcome};
use device::{AnyDevice, BlockCount, Device, DeviceUri, Geometry, Lba, Status};
use nvmf::{ConnectOptions, Key, Reconnecting};
use rt::{Access, DmaBuf, DmaBytes, Durability};
use std::net::ToSocketAddrs;
use std::time::Duration;

/// How this program calls itself towards targets.
const HOST_NQN: &str = "nqn.2026-11.io.orlop:tool";

/// An open device.
pub(crate) enum Opened {
    /// On this machine.
    Leaf(AnyDevice),
    /// A namespace of a target.
    Remote(Reconnecting),
}

/// Reads a device URI as a person typed it.
pub(crate) fn parse(text: &str) -> Outcome<DeviceUri> {
    text.parse().map_err(|error: device::Error| Failure::new(error.to_string()).kind(Kind::Usage))
}

/// Opens what `uri` names; a remote device that goes away may come back within `patience`.
pub(crate) async fn open(uri: &DeviceUri, access: Access, patience: Duration) -> Outcome<Opened> {
    open_with_key(uri, access, patience, None).await
}

/// The same, with a key for a target that asks for one.
pub(crate) async fn open_with_key(
    uri: &DeviceUri,
    access: Access,
    patience: Duration,
    key: Option<Key>,
) -> Outcome<Opened> {
    let DeviceUri::NvmeTcp { host, port, nqn, nsid } = uri else {
        let device = device::open_with(uri, access).await;
        return device.map(Opened::Leaf).map_err(|error| Failure::new(error.to_string()));
    };
    let address =
        (host.as_str(), *port).to_socket_addrs().or_fail(|| format!("cannot find host {host:?}"))?;
    let address = address.last().ok_or_else(|| Failure::new(format!("host {host:?} has no address")))?;
    let options =
        ConnectOptions { key, ..ConnectOptions::new(address, nqn.as_str(), HOST_NQN, rt::random_uuid()) };
    let device = Reconnecting::connect(options, *nsid, patience).await;
    let device = device.map_err(|error| Failure::new(format!("{uri}: {error}")))?;
    if device.geometry().blocks.0 == 0 {
        return Err(Failure::new(format!("{uri}: the target has no namespace {nsid} there"))
            .hint("a volume is namespace 1: leave `nsid` out"));
    }
    Ok(Opened::Remote(device))
}

impl Device for Opened {
    fn geometry(&self) -> Geometry {
        match self {
            Self::Leaf(device) => device.geometry(),
            Self::Remote(device) => device.geometry(),
        }
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        match self {
            Self::Leaf(device) => device.read(lba, buf).await,
            Self::Remote(device) => device.read(lba, buf).await,
        }
    }

    async fn write(&self, lba: Lba, data: DmaBytes, durability: Durability) -> Result<(), Status> {
        match self {
            Self::Leaf(device) => device.write(lba, data, durability).await,
            Self::Remote(device) => device.write(lba, data, durability).await,
        }
    }

    async fn write_zeroes(&self, lba: Lba, count: BlockCount, durability: Durability) -> Result<(), Status> {
        match self {
            Self::Leaf(device) => device.write_zeroes(lba, count, durability).await,
            Self::Remote(device) => device.write_zeroes(lba, count, durability).await,
        }
    }

    async fn unmap(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        match self {
            Self::Leaf(device) => device.unmap(lba, count).await,
            Self::Remote(device) => device.unmap(lba, count).await,
        }
    }

    async fn flush(&self) -> Result<(), Status> {
        match self {
            Self::Leaf(device) => device.flush().await,
            Self::Remote(device) => device.flush().await,
        }
    }
}
