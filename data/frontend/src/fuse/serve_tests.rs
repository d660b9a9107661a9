//! The server over a socket pair in place of `/dev/fuse`: both keep message boundaries.

use super::*;
use crate::fuse::abi::tests::{fallocate, plain, read, write};
use device::fault::{Effect, Fault, FaultHandle, Op, Rule};
use device::{Geometry, Mem};
use rt::DmaBytes;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::cell::RefCell;
use zerocopy::FromBytes;

const BLOCK: usize = 4096;
const BLOCK_U32: u32 = 4096;

/// Records the order and durability of what reaches it.
struct Recorded {
    device: Fault<Mem>,
    log: Rc<RefCell<Vec<String>>>,
}

impl Recorded {
    fn note(&self, what: impl Into<String>) {
        self.log.borrow_mut().push(what.into());
    }
}

impl Device for Recorded {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        self.note(format!("read {}", lba.0));
        self.device.read(lba, buf).await
    }

    async fn write(&self, lba: Lba, data: DmaBytes, durability: Durability) -> Result<(), Status> {
        self.note(format!("write {} {durability:?}", lba.0));
        self.device.write(lba, data, durability).await
    }

    async fn write_zeroes(&self, lba: Lba, count: BlockCount, durability: Durability) -> Result<(), Status> {
        self.note(format!("zero {} {}", lba.0, count.0));
        self.device.write_zeroes(lba, count, durability).await
    }

    async fn unmap(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        self.note(format!("unmap {} {}", lba.0, count.0));
        self.device.unmap(lba, count).await
    }

    async fn flush(&self) -> Result<(), Status> {
        self.note("flush");
        self.device.flush().await
    }
}

/// The kernel's side.
struct Kernel {
    fd: Fd,
    rules: FaultHandle,
    log: Rc<RefCell<Vec<String>>>,
    connection: Rc<Connection>,
}

/// One answer.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    unique: u64,
    error: i32,
    body: Vec<u8>,
}

impl Kernel {
    async fn send(&self, request: Vec<u8>) {
        self.fd.write_parts(&[Part::Bytes(request)]).await.unwrap();
    }

    async fn answer(&self) -> Answer {
        let (count, head, _) = self.fd.read_parts(vec![0; 64 << 10], DmaBuf::new(0)).await;
        let bytes = &head[..count.unwrap()];
        let (words, body) = bytes.split_at(16);
        let len = u32::read_from_bytes(&words[..4]).unwrap();
        assert_eq!(len as usize, bytes.len());
        let (error, unique) =
            (i32::read_from_bytes(&words[4..8]).unwrap(), u64::read_from_bytes(&words[8..]).unwrap());
        Answer { unique, error, body: body.to_vec() }
    }

    async fn ask(&self, request: Vec<u8>) -> Answer {
        self.send(request).await;
        self.answer().await
    }
}

/// Runs `body` as the kernel of a server with 64 blocks of memory.
fn served<F: Future<Output = ()>>(read_only: bool, body: impl FnOnce(Rc<Kernel>) -> F) {
    let reactor = rt::os::Reactor::new(rt::os::Config::default()).unwrap();
    reactor.run(async {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let device = Fault::new(Mem::new(Geometry { block_size: 4096, blocks: BlockCount(64) }));
        let (rules, log) = (device.handle(), Rc::default());
        let device = Rc::new(Recorded { device, log: Rc::clone(&log) });
        let connection = Connection::new(theirs);
        let serving = rt::spawn(serve(Rc::clone(&connection), device, 4096, read_only));
        let kernel = Rc::new(Kernel { fd: Fd::new(ours), rules, log, connection });
        body(Rc::clone(&kernel)).await;
        assert_eq!(Rc::strong_count(&kernel), 1, "the test is over");
        drop(kernel);
        assert_eq!(serving.await, Ended::Unmounted);
    });
}

const ERRNO_INVAL: i32 = -22;

#[test]
fn what_is_written_is_read_back() {
    served(false, async |kernel| {
        let data = [7; 2 * BLOCK];
        let answer = kernel.ask(write(1, 3 * BLOCK as u64, &data, 0)).await;
        assert_eq!((answer.error, &answer.body[..4]), (0, &8192_u32.to_ne_bytes()[..]));
        let answer = kernel.ask(read(2, 2 * BLOCK as u64, 4 * BLOCK_U32)).await;
        assert_eq!((answer.unique, answer.error), (2, 0));
        assert_eq!(answer.body, [&[0; BLOCK][..], &data, &[0; BLOCK]].concat());
        assert_eq!((kernel.connection.counters().reads, kernel.connection.counters().writes), (1, 1));
    });
}

#[test]
fn the_end_of_the_file_cuts_reads_and_refuses_changes() {
    served(false, async |kernel| {
        let end = 64 * BLOCK as u64;
        assert_eq!(kernel.ask(read(1, end - BLOCK as u64, 4 * BLOCK_U32)).await.body.len(), BLOCK);
        assert_eq!(kernel.ask(read(2, end, BLOCK_U32)).await.body.len(), 0);
        assert_eq!(kernel.ask(read(3, u64::MAX - 5, BLOCK_U32)).await.body.len(), 0);
        for request in [
            write(4, end, &[0; BLOCK], 0),
            write(5, u64::MAX - 4095, &[0; BLOCK], 0),
            write(6, 100, &[0; BLOCK], 0),
            write(7, 0, &[0; 100], 0),
            write(8, 0, &[], 0),
            read(9, 1, BLOCK_U32),
            fallocate(10, 0, end + BLOCK as u64, PUNCH_HOLE | KEEP_SIZE),
            fallocate(11, u64::MAX, u64::MAX, PUNCH_HOLE | KEEP_SIZE),
        ] {
            assert_eq!(kernel.ask(request).await.error, ERRNO_INVAL);
        }
        assert_eq!(*kernel.log.borrow(), ["read 63"]);
    });
}

#[test]
fn durability_reaches_the_device() {
    served(false, async |kernel| {
        assert_eq!(kernel.ask(write(1, 0, &[1; BLOCK], 0)).await.error, 0);
        assert_eq!(kernel.ask(write(2, 0, &[1; BLOCK], O_DSYNC)).await.error, 0);
        assert_eq!(kernel.ask(plain(20, 3, &[0; 16])).await.error, 0);
        assert_eq!(kernel.ask(fallocate(4, 0, 8192, PUNCH_HOLE | KEEP_SIZE)).await.error, 0);
        assert_eq!(kernel.ask(fallocate(5, 4096, 4096, ZERO_RANGE | KEEP_SIZE)).await.error, 0);
        assert_eq!(kernel.ask(fallocate(6, 0, 4096, 0)).await.error, -95, "no allocation ahead");
        let log = ["write 0 Cached", "write 0 Durable", "flush", "unmap 0 2", "zero 1 1"];
        assert_eq!(*kernel.log.borrow(), log);
    });
}

#[test]
fn a_flush_that_fails_is_an_error() {
    served(false, async |kernel| {
        kernel.rules.add(Rule::on(Op::Flush, Effect::Fail(Status::MediaWrite)));
        assert_eq!(kernel.ask(plain(20, 1, &[0; 16])).await.error, -5);
        assert_eq!(kernel.connection.counters().errors, 1);
    });
}

/// Invariant 1: nothing that overlaps an unanswered change starts before it is answered; everything else goes on.
#[test]
fn overlapping_requests_wait_for_the_answer() {
    served(false, async |kernel| {
        let hang = kernel.rules.add(Rule { lbas: Some(0..=0), ..Rule::on(Op::Write, Effect::Hang) });
        kernel.send(write(1, 0, &[1; BLOCK], 0)).await;
        kernel.send(read(2, 0, BLOCK_U32)).await;
        kernel.send(write(3, 0, &[3; 2 * BLOCK], 0)).await;
        kernel.send(read(4, BLOCK as u64, BLOCK_U32)).await;
        assert_eq!(kernel.ask(write(5, 4 * BLOCK as u64, &[5; BLOCK], 0)).await.unique, 5);
        assert_eq!(*kernel.log.borrow(), ["write 0 Cached", "write 4 Cached"]);
        kernel.rules.remove(hang);
        assert_eq!(kernel.answer().await.unique, 1);
        assert_eq!((kernel.answer().await.body[0], kernel.answer().await.unique), (1, 3));
        assert_eq!(kernel.answer().await.body[0], 3);
    });
}

#[test]
fn resent_requests_are_counted_and_answered_by_their_number() {
    served(false, async |kernel| {
        let unique = 6 | abi::UNIQUE_RESEND;
        let answer = kernel.ask(write(unique, 0, &[1; BLOCK], 0)).await;
        assert_eq!((answer.unique, answer.error), (unique, 0));
        assert_eq!(kernel.connection.counters().resent, 1);
    });
}

#[test]
fn a_read_only_file_refuses_changes() {
    served(true, async |kernel| {
        assert_eq!(kernel.ask(plain(14, 1, &[2, 0, 0, 0, 0, 0, 0, 0])).await.error, -30);
        assert_eq!(kernel.ask(plain(14, 2, &[0; 8])).await.error, 0);
        assert_eq!(kernel.ask(write(3, 0, &[1; BLOCK], 0)).await.error, -30);
        assert_eq!(kernel.ask(fallocate(4, 0, 4096, PUNCH_HOLE | KEEP_SIZE)).await.error, -30);
        assert!(kernel.log.borrow().is_empty());
    });
}

#[test]
fn nonsense_is_answered_and_the_service_goes_on() {
    served(false, async |kernel| {
        let mut lying = plain(3, 1, &[0; 16]);
        lying[0] += 1;
        assert_eq!(kernel.ask(lying).await, Answer { unique: 1, error: ERRNO_INVAL, body: Vec::new() });
        kernel.send(vec![1, 2, 3]).await;
        assert_eq!(kernel.ask(plain(9999, 2, &[])).await.error, -38);
        kernel.send(plain(2, 3, &[0; 8])).await;
        assert_eq!(kernel.ask(plain(3, 4, &[0; 16])).await.unique, 4, "a forget has no answer");
        for opcode in 0..60 {
            let unanswered = matches!(opcode, 2 | 42);
            let request = plain(opcode, 100 + u64::from(opcode), &[0xff; 37]);
            if unanswered {
                kernel.send(request).await;
            } else {
                assert_eq!(kernel.ask(request).await.unique, 100 + u64::from(opcode));
            }
        }
    });
}
