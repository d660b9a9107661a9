//! The driver of the simulator.
#![allow(
    clippy::unimplemented,
    clippy::unused_async,
    clippy::unused_self,
    unused_variables,
    missing_docs,
    reason = "being written"
)]
use crate::file::{Durability, OpenOptions};
use crate::net::TcpStream;
use crate::{DmaBuf, DmaBytes, Errno, Instant, Part, Task};
use std::{future::Future, io, net::SocketAddr, path::Path};

#[derive(Clone, Debug)]
pub struct Handle;
impl Handle {
    pub(crate) fn random_bytes(&self, bytes: &mut [u8]) {
        unimplemented!()
    }
    pub(crate) fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        unimplemented!()
    }
    pub(crate) fn now(&self) -> Instant {
        unimplemented!()
    }
    pub(crate) async fn sleep_until(&self, deadline: Instant) {
        unimplemented!()
    }
}
#[derive(Debug)]
pub(crate) struct SimFile;
impl SimFile {
    pub(crate) fn open(sim: &Handle, path: &Path, options: OpenOptions) -> io::Result<Self> {
        unimplemented!()
    }
    pub(crate) fn len_bytes(&self) -> u64 {
        unimplemented!()
    }
    pub(crate) fn block_size(&self) -> u32 {
        unimplemented!()
    }
    pub(crate) async fn read_at(&self, offset_bytes: u64, buf: DmaBuf) -> Result<DmaBuf, Errno> {
        unimplemented!()
    }
    pub(crate) async fn write_at(
        &self,
        offset_bytes: u64,
        data: DmaBytes,
        durability: Durability,
    ) -> Result<(), Errno> {
        unimplemented!()
    }
    pub(crate) async fn sync(&self) -> Result<(), Errno> {
        unimplemented!()
    }
    pub(crate) async fn zero_range(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        release: bool,
    ) -> Result<(), Errno> {
        unimplemented!()
    }
}
#[derive(Debug)]
pub(crate) struct SimListener;
impl SimListener {
    pub(crate) fn bind(sim: &Handle, address: SocketAddr) -> io::Result<Self> {
        unimplemented!()
    }
    pub(crate) fn local_address(&self) -> SocketAddr {
        unimplemented!()
    }
    pub(crate) async fn accept(&self) -> Result<TcpStream, Errno> {
        unimplemented!()
    }
}
pub(crate) async fn connect(sim: &Handle, address: SocketAddr) -> io::Result<TcpStream> {
    unimplemented!()
}
#[derive(Debug)]
pub(crate) struct SimReceive;
impl SimReceive {
    pub(crate) async fn fill(&mut self) -> Result<&[u8], Errno> {
        unimplemented!()
    }
    pub(crate) fn consume(&mut self, count: usize) {
        unimplemented!()
    }
}
#[derive(Debug)]
pub(crate) struct SimSend;
impl SimSend {
    pub(crate) async fn send(&mut self, parts: Vec<Part>) -> Result<(), Errno> {
        unimplemented!()
    }
}
