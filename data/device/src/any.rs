//! Any leaf device, chosen at run time by its URI and dispatched by match: no boxing per I/O (but for the fault arm,
//! which may wrap itself and serves tests only).

use crate::error::{Error, ErrorKind};
use crate::{BlockCount, Device, DeviceUri, Fault, File, Geometry, Lba, Mem, Null, Status, disk};
use rt::{Access, DmaBuf, DmaBytes, Durability};

/// One of the leaf devices.
#[derive(Clone, Debug)]
pub enum AnyDevice {
    /// In memory.
    Mem(Mem),
    /// Without contents.
    Null(Null),
    /// A file or a disk.
    File(File),
    /// One that fails on demand.
    Fault(Box<Fault<Self>>),
}

/// Opens the device that `uri` names, for reading and writing.
///
/// # Errors
/// `Unsupported` for `nvme+tcp://`, which the stage `nvmf` opens; else those of the device.
pub async fn open(uri: &DeviceUri) -> Result<AnyDevice, Error> {
    open_with(uri, Access::Write).await
}

/// Opens the device that `uri` names; without the right to write nothing is created and nothing locked.
pub async fn open_with(uri: &DeviceUri, access: Access) -> Result<AnyDevice, Error> {
    Ok(match uri {
        DeviceUri::Mem(geometry) => AnyDevice::Mem(Mem::new(*geometry)),
        DeviceUri::Null(geometry) => AnyDevice::Null(Null::new(*geometry)),
        DeviceUri::File { path, size, block_size } => {
            AnyDevice::File(File::open(path, *size, *block_size, access).await?)
        }
        DeviceUri::Disk { path, block_size } => AnyDevice::File(disk::open(path, *block_size, access).await?),
        DeviceUri::Fault { of, rules } => {
            let fault = Fault::new(Box::pin(open_with(of, access)).await?);
            let handle = fault.handle();
            for rule in rules {
                handle.add(rule.clone());
            }
            AnyDevice::Fault(Box::new(fault))
        }
        DeviceUri::NvmeTcp { .. } => {
            let message = format!("{uri} is a remote device: it cannot be used as a local one here");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
    })
}

impl Device for AnyDevice {
    fn geometry(&self) -> Geometry {
        match self {
            Self::Mem(device) => device.geometry(),
            Self::Null(device) => device.geometry(),
            Self::File(device) => device.geometry(),
            Self::Fault(device) => device.geometry(),
        }
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        match self {
            Self::Mem(device) => device.read(lba, buf).await,
            Self::Null(device) => device.read(lba, buf).await,
            Self::File(device) => device.read(lba, buf).await,
            Self::Fault(device) => Box::pin(device.read(lba, buf)).await,
        }
    }

    async fn write(&self, lba: Lba, data: DmaBytes, durability: Durability) -> Result<(), Status> {
        match self {
            Self::Mem(device) => device.write(lba, data, durability).await,
            Self::Null(device) => device.write(lba, data, durability).await,
            Self::File(device) => device.write(lba, data, durability).await,
            Self::Fault(device) => Box::pin(device.write(lba, data, durability)).await,
        }
    }

    async fn write_zeroes(&self, lba: Lba, count: BlockCount, durability: Durability) -> Result<(), Status> {
        match self {
            Self::Mem(device) => device.write_zeroes(lba, count, durability).await,
            Self::Null(device) => device.write_zeroes(lba, count, durability).await,
            Self::File(device) => device.write_zeroes(lba, count, durability).await,
            Self::Fault(device) => Box::pin(device.write_zeroes(lba, count, durability)).await,
        }
    }

    async fn unmap(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        match self {
            Self::Mem(device) => device.unmap(lba, count).await,
            Self::Null(device) => device.unmap(lba, count).await,
            Self::File(device) => device.unmap(lba, count).await,
            Self::Fault(device) => Box::pin(device.unmap(lba, count)).await,
        }
    }

    async fn flush(&self) -> Result<(), Status> {
        match self {
            Self::Mem(device) => device.flush().await,
            Self::Null(device) => device.flush().await,
            Self::File(device) => device.flush().await,
            Self::Fault(device) => Box::pin(device.flush()).await,
        }
    }
}
