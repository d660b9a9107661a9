//! A device that outlives associations: connects again and sends again, for the benchmark and other tools.
//!
//! A nexus does not use it: it must first fence the old association (DESIGN I3).
//!
//! # Invariants
//! 1. A command is sent again only on a new association, after the old one is dead; every command here is idempotent.
//! 2. What was started on the old association may still be executed later, even after a newer write to the same block
//!    was acknowledged. Nothing here prevents that, which is why this is not for volumes that matter.

use super::{Association, ConnectOptions, Namespace};
use crate::error::Error;
use device::{BlockCount, Device, Geometry, Lba, Status};
use rt::sync::Mutex;
use rt::{DmaBuf, DmaBytes, Durability};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(100);

/// A namespace that is connected again whenever its association dies.
#[derive(Clone)]
pub struct Reconnecting(Rc<Inner>);

struct Inner {
    options: ConnectOptions,
    nsid: u32,
    give_up_after: Duration,
    current: RefCell<Namespace>,
    connecting: Mutex<()>,
}

impl Reconnecting {
    /// Connects to namespace `nsid`; commands fail once there has been no connection for `give_up_after`.
    pub async fn connect(options: ConnectOptions, nsid: u32, give_up_after: Duration) -> Result<Self, Error> {
        let namespace = Association::connect(options.clone()).await?.namespace(nsid);
        let (current, connecting) = (RefCell::new(namespace), Mutex::new(()));
        Ok(Self(Rc::new(Inner { options, nsid, give_up_after, current, connecting })))
    }

    fn current(&self) -> Namespace {
        self.0.current.borrow().clone()
    }

    /// A namespace with a living association.
    async fn living(&self) -> Result<Namespace, Status> {
        let deadline = rt::now() + self.0.give_up_after;
        loop {
            let current = self.current();
            if !current.association().is_dead() {
                return Ok(current);
            }
            let _turn = self.0.connecting.lock().await;
            if !self.current().association().is_dead() {
                continue;
            }
            match Association::connect(self.0.options.clone()).await {
                Ok(association) => {
                    self.0.current.replace(association.namespace(self.0.nsid));
                }
                Err(error) if rt::now() >= deadline => {
                    tracing::warn!(%error, "giving up reconnecting");
                    return Err(Status::Gone);
                }
                Err(_) => rt::sleep(PAUSE).await,
            }
        }
    }

    async fn repeat<T>(&self, run: impl AsyncFn(Namespace) -> Result<T, Status>) -> Result<T, Status> {
        let deadline = rt::now() + self.0.give_up_after;
        loop {
            let namespace = self.living().await?;
            match run(namespace.clone()).await {
                Err(Status::Gone | Status::TimedOut)
                    if namespace.association().is_dead() && rt::now() < deadline => {}
                ended => return ended,
            }
        }
    }
}

impl Device for Reconnecting {
    fn geometry(&self) -> Geometry {
        self.current().geometry()
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        let len = buf.len();
        let first = RefCell::new(Some(buf));
        self.repeat(async |namespace: Namespace| {
            let buf = first.take().unwrap_or_else(|| DmaBuf::new(len));
            namespace.read(lba, buf).await
        })
        .await
    }

    async fn write(&self, lba: Lba, data: DmaBytes, durability: Durability) -> Result<(), Status> {
        self.repeat(async |namespace: Namespace| namespace.write(lba, data.clone(), durability).await).await
    }

    async fn write_zeroes(&self, lba: Lba, count: BlockCount, durability: Durability) -> Result<(), Status> {
        self.repeat(async |namespace: Namespace| namespace.write_zeroes(lba, count, durability).await).await
    }

    async fn unmap(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        self.repeat(async |namespace: Namespace| namespace.unmap(lba, count).await).await
    }

    async fn flush(&self) -> Result<(), Status> {
        self.repeat(async |namespace: Namespace| namespace.flush().await).await
    }
}
