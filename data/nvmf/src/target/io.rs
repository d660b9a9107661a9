//! I/O commands: from the queue entry to the session's device.
//!
//! # Invariants
//! 1. A command touches the device only while it is counted as running ([`crate::AssociationHandle`]), and starts only
//!    while the association is not over.
//! 2. Lengths are checked against the namespace and the limits before memory is taken.

use super::association::Export;
use super::queue::{Queue, Reply};
use crate::subsystem::{Direction, Running, Session, Subsystems, VendorCommand};
use crate::wire::command::{DatasetRange, NSID_ALL, Sgl, Sqe, io};
use crate::wire::status::StatusCode;
use device::{BlockCount, Device, Lba, Status};
use rt::{DmaBuf, Durability};
use std::rc::Rc;
use zerocopy::FromBytes;

/// Runs one I/O command.
pub(super) async fn run<S: Subsystems>(
    queue: &Rc<Queue<S>>,
    sqe: &Sqe,
    data: Option<DmaBuf>,
) -> Result<Reply, StatusCode> {
    let Export::Volumes(session) = &queue.association.export else {
        return Err(StatusCode::INVALID_OPCODE);
    };
    if sqe.opcode >= io::VENDOR_FIRST {
        return vendor(queue, session, sqe, data).await;
    }
    if sqe.opcode == io::FLUSH {
        return flush(queue, session, sqe).await;
    }
    let known = [io::READ, io::WRITE, io::COMPARE, io::WRITE_ZEROES, io::DATASET_MANAGEMENT];
    if !known.contains(&sqe.opcode) {
        return Err(StatusCode::INVALID_OPCODE);
    }
    let command = Command { queue, sqe, device: &namespace(&**session, sqe.nsid.get())? };
    match sqe.opcode {
        io::READ => command.read().await,
        io::WRITE => command.write(data).await,
        io::COMPARE => command.compare(data).await,
        io::WRITE_ZEROES => command.write_zeroes().await,
        _ => command.dataset_management(data).await,
    }
}

fn namespace<S: Session>(session: &S, nsid: u32) -> Result<S::Namespace, StatusCode> {
    session.namespace(nsid).ok_or(StatusCode::INVALID_NAMESPACE)
}

fn started<S: Subsystems>(queue: &Queue<S>) -> Result<Running, StatusCode> {
    queue.association.handle.start().ok_or(StatusCode::SQ_DELETED) // 1
}

async fn flush<S: Subsystems>(
    queue: &Queue<S>,
    session: &Rc<S::Session>,
    sqe: &Sqe,
) -> Result<Reply, StatusCode> {
    let nsids = match sqe.nsid.get() {
        NSID_ALL => session.namespace_ids(),
        nsid => vec![nsid],
    };
    let _running = started(queue)?;
    for nsid in nsids {
        namespace(&**session, nsid)?.flush().await?;
    }
    Ok(Reply::default())
}

/// A command on one namespace.
struct Command<'a, S: Subsystems, D> {
    queue: &'a Rc<Queue<S>>,
    sqe: &'a Sqe,
    device: &'a D,
}

impl<S: Subsystems, D: Device> Command<'_, S, D> {
    fn lba(&self) -> Lba {
        Lba(self.sqe.slba())
    }

    fn durability(&self) -> Durability {
        if self.sqe.cdw(12) & io::FUA != 0 { Durability::Durable } else { Durability::Cached }
    }

    /// The length of the command's data, which its SGL must agree with (invariant 2).
    fn data_len(&self) -> Result<usize, StatusCode> {
        let geometry = self.device.geometry();
        let len = self.sqe.block_count() * u64::from(geometry.block_size);
        if len > u64::from(self.queue.shared.config.data_bytes_max) {
            return Err(StatusCode::INVALID_FIELD);
        }
        if len != u64::from(self.sqe.sgl.len.get()) {
            return Err(StatusCode::SGL_LENGTH_INVALID);
        }
        geometry.check_blocks(self.lba(), BlockCount(self.sqe.block_count()))?;
        Ok(usize::try_from(len).expect("at most the greatest transfer"))
    }

    async fn read(&self) -> Result<Reply, StatusCode> {
        let len = self.data_len()?;
        if self.sqe.sgl.kind != Sgl::TRANSPORT {
            return Err(StatusCode::SGL_TYPE_INVALID);
        }
        let (buf, permit) = self.queue.reserve(len).await;
        let _running = started(self.queue)?;
        let buf = self.device.read(self.lba(), buf).await?;
        Ok(Reply { result: 0, data: Some(buf.freeze()), permit: Some(permit) })
    }

    async fn write(&self, data: Option<DmaBuf>) -> Result<Reply, StatusCode> {
        self.data_len()?;
        let data = self.queue.host_data(self.sqe, data).await?;
        let _running = started(self.queue)?;
        self.device.write(self.lba(), data.bytes.clone(), self.durability()).await?;
        Ok(Reply::default())
    }

    async fn compare(&self, data: Option<DmaBuf>) -> Result<Reply, StatusCode> {
        let len = self.data_len()?;
        let data = self.queue.host_data(self.sqe, data).await?;
        let (buf, _permit) = self.queue.reserve(len).await;
        let _running = started(self.queue)?;
        let buf = self.device.read(self.lba(), buf).await?;
        if buf[..] == data.bytes[..] { Ok(Reply::default()) } else { Err(StatusCode::COMPARE_FAILURE) }
    }

    async fn write_zeroes(&self) -> Result<Reply, StatusCode> {
        let count = BlockCount(self.sqe.block_count());
        self.device.geometry().check_blocks(self.lba(), count)?;
        let _running = started(self.queue)?;
        self.device.write_zeroes(self.lba(), count, self.durability()).await?;
        Ok(Reply::default())
    }

    async fn dataset_management(&self, data: Option<DmaBuf>) -> Result<Reply, StatusCode> {
        let count = usize::try_from(self.sqe.cdw(10) & 0xFF).expect("one byte") + 1;
        let len = count * size_of::<DatasetRange>();
        if (self.sqe.sgl.len.get() as usize) < len {
            return Err(StatusCode::SGL_LENGTH_INVALID);
        }
        let data = self.queue.host_data(self.sqe, data).await?;
        if self.sqe.cdw(11) & io::DATASET_DEALLOCATE == 0 {
            return Ok(Reply::default()); // Hints only.
        }
        let ranges = <[DatasetRange]>::ref_from_bytes(&data.bytes[..len]).expect("whole ranges");
        let geometry = self.device.geometry();
        let ranges = || ranges.iter().filter(|range| range.blocks.get() > 0);
        for range in ranges() {
            geometry.check_blocks(Lba(range.slba.get()), BlockCount(range.blocks.get().into()))?;
        }
        let _running = started(self.queue)?;
        for range in ranges() {
            self.device.unmap(Lba(range.slba.get()), BlockCount(range.blocks.get().into())).await?;
        }
        Ok(Reply::default())
    }
}

/// Passes a vendor-specific command to the session; its data moves as its opcode says.
async fn vendor<S: Subsystems>(
    queue: &Rc<Queue<S>>,
    session: &Rc<S::Session>,
    sqe: &Sqe,
    data: Option<DmaBuf>,
) -> Result<Reply, StatusCode> {
    let nsid = sqe.nsid.get();
    if session.namespace(nsid).is_none() {
        return Err(StatusCode::INVALID_NAMESPACE);
    }
    let len = sqe.sgl.len.get();
    if len > queue.shared.config.data_bytes_max {
        return Err(StatusCode::INVALID_FIELD);
    }
    let mut command = VendorCommand {
        opcode: sqe.opcode,
        cdw10_15: sqe.cdw10_15.map(zerocopy::little_endian::U32::get),
        data: None,
        data_len: 0,
    };
    let mut permit = None;
    let host_data;
    match command.direction() {
        Some(Direction::None) => {}
        Some(Direction::HostToController) => {
            host_data = queue.host_data(sqe, data).await?;
            command.data = (!host_data.bytes.is_empty()).then(|| host_data.bytes.clone());
        }
        Some(Direction::ControllerToHost) => {
            if sqe.sgl.kind != Sgl::TRANSPORT {
                return Err(StatusCode::SGL_TYPE_INVALID);
            }
            command.data_len = len as usize;
            permit = Some(queue.budget_for(command.data_len).await);
        }
        None => return Err(StatusCode::INVALID_OPCODE),
    }
    let _running = started(queue)?;
    let reply = session.vendor(nsid, &command).await?;
    match &reply.data {
        Some(data) if data.len() > command.data_len => {
            tracing::error!(
                opcode = sqe.opcode,
                len = data.len(),
                room = command.data_len,
                "vendor reply is too long"
            );
            Err(Status::Internal.into())
        }
        _ => Ok(Reply { result: reply.result, data: reply.data, permit }),
    }
}
