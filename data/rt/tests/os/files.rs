//! Files with direct I/O.

use super::{reactor, run};
use rt::os::{Config, DriverChoice};
use rt::{Access, DmaBuf, DmaBytes, Durability, File, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;

const LEN: u64 = 8 << 20;

fn options() -> OpenOptions {
    OpenOptions { access: Access::Write, create_len_bytes: Some(LEN), direct: true }
}

/// A folder on a file system that has direct I/O.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder")
}

async fn open(path: &Path) -> File {
    File::open(path, options()).await.expect("the file opens")
}

fn pattern(seed: u64, len: usize) -> DmaBytes {
    let bytes: Vec<u8> = (0..len as u64)
        .map(|i| u8::try_from((i * 31 + seed * 7 + i / 4096) % 251).expect("below 251"))
        .collect();
    DmaBytes::copy_of(&bytes)
}

#[test]
fn what_is_written_is_read_back() {
    let folder = folder();
    run(async || {
        let file = open(&folder.path().join("disk")).await;
        assert_eq!(file.len_bytes(), LEN);
        assert!(file.block_size() == 512 || file.block_size() == 4096, "{}", file.block_size());
        for (i, len) in [4096, 65536, 1 << 20, 3 << 20].into_iter().enumerate() {
            let data = pattern(i as u64, len);
            let durability = if i % 2 == 0 { Durability::Cached } else { Durability::Durable };
            file.write_at(4096, data.clone(), durability).await.expect("write");
            let read = file.read_at(4096, DmaBuf::new(len)).await.expect("read");
            assert_eq!(read[..], data[..]);
        }
        file.sync().await.expect("sync");
        assert_eq!(
            file.read_at(LEN - 4096, DmaBuf::new(8192)).await.expect_err("beyond the end"),
            rt::Errno::IO
        );
    });
}

#[test]
fn more_operations_than_the_queues_hold_all_complete() {
    let folder = folder();
    run(async || {
        let file = std::rc::Rc::new(open(&folder.path().join("disk")).await);
        let writes: Vec<_> = (0..6000_u64)
            .map(|i| {
                let file = std::rc::Rc::clone(&file);
                rt::spawn(async move {
                    let at = i % (LEN / 4096) * 4096;
                    file.write_at(at, pattern(i % (LEN / 4096), 4096), Durability::Cached).await
                })
            })
            .collect();
        for write in writes {
            write.await.expect("write");
        }
        for i in 0..LEN / 4096 {
            let read = file.read_at(i * 4096, DmaBuf::new(4096)).await.expect("read");
            assert_eq!(read[..], pattern(i, 4096)[..]);
        }
    });
}

/// A ring of the smallest size overflows in every way that there is.
#[test]
fn a_tiny_ring_loses_nothing() {
    let folder = folder();
    let config = Config { entries: 2, registered_bytes: 0, driver: DriverChoice::Uring, ..Config::default() };
    let Some(reactor) = reactor(config) else { return };
    reactor.run(async {
        let file = std::rc::Rc::new(open(&folder.path().join("disk")).await);
        for _ in 0..3 {
            let tasks: Vec<_> = (0..500_u64)
                .map(|i| {
                    let file = std::rc::Rc::clone(&file);
                    rt::spawn(async move {
                        file.write_at(i * 4096, pattern(i, 4096), Durability::Cached).await.expect("write");
                        // Half of the reads are dropped while they are under way.
                        let limit = std::time::Duration::from_micros(if i % 2 == 0 { 1 } else { 60_000_000 });
                        match rt::timeout(limit, file.read_at(i * 4096, DmaBuf::new(4096))).await {
                            Ok(read) => assert_eq!(read.expect("read")[..], pattern(i, 4096)[..]),
                            Err(rt::Elapsed) => assert_eq!(i % 2, 0),
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
        }
    });
}

#[test]
fn dropped_operations_keep_their_memory_until_they_end() {
    let folder = folder();
    run(async || {
        let file = open(&folder.path().join("disk")).await;
        file.write_at(0, pattern(1, 1 << 20), Durability::Cached).await.expect("write");
        for i in 0..200_u8 {
            // Polled once, then dropped: the read is under way or cancelled.
            let read = file.read_at(0, DmaBuf::new(1 << 20));
            rt::race(async { drop(read.await) }, async {}).await;
            // Had the memory been given back, this buffer would be it, and the read would spoil it.
            let mut other = DmaBuf::new(1 << 20);
            other.fill(i);
            rt::sleep(std::time::Duration::from_micros(50)).await;
            assert!(other.iter().all(|&byte| byte == i));
        }
        drop(file.read_at(0, DmaBuf::new(4096)).await);
    });
}

#[test]
fn a_zeroed_range_reads_as_zeroes_and_its_neighbours_stay() {
    let folder = folder();
    run(async || {
        let file = open(&folder.path().join("disk")).await;
        for release in [false, true] {
            file.write_at(0, pattern(3, 1 << 20), Durability::Cached).await.expect("write");
            file.zero_range(8192, 65536, release).await.expect("zero");
            let read = file.read_at(0, DmaBuf::new(1 << 20)).await.expect("read");
            let mut expected = pattern(3, 1 << 20).to_vec();
            expected[8192..8192 + 65536].fill(0);
            assert_eq!(read[..], expected[..], "release: {release}");
        }
    });
}

#[test]
fn a_writer_keeps_other_writers_out() {
    let folder = folder();
    let path = folder.path().join("disk");
    run(async || {
        let first = open(&path).await;
        let second = File::open(&path, options()).await.expect_err("locked");
        assert_eq!(second.kind(), ErrorKind::WouldBlock);
        let reader = OpenOptions { access: Access::Read, create_len_bytes: None, direct: true };
        File::open(&path, reader).await.expect("readers may");
        drop(first);
        open(&path).await;
    });
}

#[test]
fn a_missing_file_is_made_only_when_asked() {
    let folder = folder();
    run(async || {
        let options = OpenOptions { create_len_bytes: None, ..options() };
        let missing = File::open(&folder.path().join("none"), options).await.expect_err("missing");
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        // An existing file keeps its length.
        let path = folder.path().join("small");
        std::fs::write(&path, [7; 8192]).expect("a file");
        assert_eq!(open(&path).await.len_bytes(), 8192);
    });
}
