//! Other descriptors: read when they are readable.

use super::Handle;
use super::call::{Gather, Kind, Scatter};
use crate::{DmaBuf, Errno, Part};
use std::os::fd::OwnedFd;
use std::rc::Rc;

#[derive(Debug)]
pub(crate) struct OsFd {
    os: Handle,
    fd: Rc<OwnedFd>,
}

impl OsFd {
    pub(crate) fn new(os: &Handle, fd: OwnedFd) -> Self {
        Self { os: os.clone(), fd: Rc::new(fd) }
    }

    pub(crate) async fn read_parts(
        &self,
        head: Vec<u8>,
        data: DmaBuf,
    ) -> (Result<usize, Errno>, Vec<u8>, DmaBuf) {
        let mut scatter = Box::new(Scatter::new(head, data));
        loop {
            let (result, call) = self.os.start(&self.fd, Kind::ReadVectored(scatter)).await;
            let Kind::ReadVectored(back) = call.kind else { unreachable!("a call keeps its kind") };
            scatter = back;
            match result {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if let (Err(error), _) = self.os.start(&self.fd, Kind::Readable).await {
                        return (Err(error), scatter.head, scatter.data);
                    }
                }
                result => return (result, scatter.head, scatter.data),
            }
        }
    }

    pub(crate) async fn write_parts(&self, parts: Vec<Part>) -> Result<usize, Errno> {
        let mut gather = Box::new(Gather::new());
        gather.parts = parts;
        gather.point(0);
        self.os.start(&self.fd, Kind::WriteVectored(gather)).await.0
    }
}
