//! Target and initiator talk: every way that data takes, sizes, queues, features, discovery.

use crate::support::{BLOCKS, Bench, HOSTID, HOSTNQN, OTHER_NQN, SUBNQN, stamped};
use device::{BlockCount, Device, Lba, Status};
use nvmf::wire::status::StatusCode;
use nvmf::{Association, ErrorKind, VendorCommand, discover};
use rt::{DmaBuf, DmaBytes, Durability};

/// Writes and reads pieces of many sizes over one association and compares them with the disk itself.
async fn exercise(bench: &Bench, association: &Association) {
    let namespace = association.namespace(1);
    assert_eq!(namespace.geometry(), bench.exported.geometry.get());
    for (i, blocks) in [1, 2, 4, 15, 16, 17, 64, 255, 256, 257, 700].into_iter().enumerate() {
        let lba = 100 + i as u64;
        let stamp = u8::try_from(i).expect("few");
        let durability = if i % 2 == 0 { Durability::Cached } else { Durability::Durable };
        let data = stamped(lba, blocks, stamp);
        namespace.write(Lba(lba), data.clone(), durability).await.expect("write");
        let read = namespace.read(Lba(lba), DmaBuf::new(data.len())).await.expect("read");
        assert!(read[..] == data[..], "{blocks} blocks");
        let on_disk = bench.exported.disk.read(Lba(lba), DmaBuf::new(data.len())).await.expect("read");
        assert!(on_disk[..] == data[..], "{blocks} blocks on the disk");
    }
    namespace.flush().await.expect("flush");
    namespace.write_zeroes(Lba(101), BlockCount(2), Durability::Durable).await.expect("write-zeroes");
    namespace.unmap(Lba(103), BlockCount(1)).await.expect("unmap");
    let read = namespace.read(Lba(100), DmaBuf::new(5 * 4096)).await.expect("read");
    assert!(read[..8] == 100_u64.to_le_bytes());
    assert!(read[4096..4 * 4096].iter().all(|&b| b == 0));
    assert!(read[4 * 4096..4 * 4096 + 8] == 104_u64.to_le_bytes());
}

#[test]
fn every_way_of_data() {
    let mut seed = 0;
    for (header_digest, data_digest) in [(false, false), (true, false), (false, true), (true, true)] {
        // In the capsule; by R2T in one H2CData; by R2T in several.
        for (in_capsule, host_cap, data_max) in [
            (64 << 10, u32::MAX, 1 << 20),
            (8 << 10, u32::MAX, 1 << 20),
            (64 << 10, 0, 1 << 18),
            (0, 0, 8192),
        ] {
            seed += 1;
            let change = move |config: &mut nvmf::TargetConfig| {
                config.data_bytes_max = data_max;
                config.in_capsule_bytes = in_capsule.min(data_max);
            };
            Bench::run(seed, change, async move |bench| {
                let association = bench
                    .connect(|options| {
                        options.header_digest = header_digest;
                        options.data_digest = data_digest;
                        options.in_capsule_bytes_max = host_cap;
                    })
                    .await;
                exercise(&bench, &association).await;
                association.close().await;
                bench.until("the session is closed", || bench.exported.closed.get() == 1).await;
            });
        }
    }
}

#[test]
fn many_commands_on_many_queues() {
    for seed in 0..4 {
        Bench::run(
            seed,
            |config| config.queue_entries = 16,
            async |bench| {
                let association = bench
                    .connect(|options| {
                        options.queues = 4;
                        options.queue_depth = 64; // The target allows 16 entries, so 15 in flight.
                    })
                    .await;
                let writes: Vec<_> = (0..500_u64)
                    .map(|lba| {
                        let namespace = association.namespace(1);
                        rt::spawn(async move {
                            namespace.write(Lba(lba), stamped(lba, 1, 9), Durability::Cached).await
                        })
                    })
                    .collect();
                for write in writes {
                    write.await.expect("write");
                }
                let reads: Vec<_> = (0..100_u64)
                    .map(|i| {
                        let namespace = association.namespace(1);
                        rt::spawn(async move { namespace.read(Lba(i * 5), DmaBuf::new(5 * 4096)).await })
                    })
                    .collect();
                for (i, read) in (0..).zip(reads) {
                    assert!(read.await.expect("read")[..] == stamped(i * 5, 5, 9)[..]);
                }
            },
        );
    }
}

#[test]
fn vendor_commands_pass_through() {
    Bench::run(
        1,
        |_| {},
        async |bench| {
            let association = bench.connect(|options| options.in_capsule_bytes_max = 16 << 10).await;
            let command = |opcode, argument, data, data_len| VendorCommand {
                opcode,
                cdw10_15: [argument, 0, 0, 0, 0, 0],
                data,
                data_len,
            };
            let reply = association.vendor(1, command(0xC0, 0, None, 0)).await.expect("no data");
            assert_eq!((reply.result, reply.data.is_none()), (u64::MAX - 1, true));
            for len in [1, 100, 16 << 10, (16 << 10) + 1, 1 << 20] {
                let data = DmaBytes::copy_of(&vec![3; len]);
                let reply = association.vendor(1, command(0xC1, 0, Some(data), 0)).await.expect("data to it");
                assert_eq!(reply.result, 3 * len as u64);
            }
            for (argument, room) in [(100, 100), (100, 4096), (1 << 20, 1 << 20), (0, 4096)] {
                let reply =
                    association.vendor(1, command(0xC2, argument, None, room)).await.expect("data from it");
                let data = reply.data.map_or(Vec::new(), |data| data.to_vec());
                assert_eq!(reply.result, u64::from(argument));
                assert_eq!(data, vec![0xC2; argument as usize]);
            }
            let refused = association.vendor(1, command(0xC4, 0, None, 0)).await;
            assert_eq!(refused.expect_err("the session's own status"), Status::Fenced);
            let absent = association.vendor(2, command(0xC0, 0, None, 0)).await;
            assert_eq!(absent.expect_err("no such namespace"), Status::Invalid);
            let both = association.vendor(1, command(0xC3, 0, None, 0)).await;
            assert_eq!(both.expect_err("bidirectional"), Status::Invalid);
            let huge = association.vendor(1, command(0xC2, 0, None, (1 << 20) + 1)).await;
            assert_eq!(huge.expect_err("larger than the greatest transfer"), Status::Invalid);
        },
    );
}

#[test]
fn failures_of_the_device_arrive_as_they_are() {
    use device::fault::{Effect, Rule};
    Bench::run(
        1,
        |_| {},
        async |bench| {
            let association = bench.connect(|_| {}).await;
            let namespace = association.namespace(1);
            for status in [
                Status::NoSpace,
                Status::MediaRead,
                Status::Corrupt,
                Status::Fenced,
                Status::Gone,
                Status::TimedOut,
                Status::Gap,
            ] {
                let rule = bench.exported.faults.add(Rule::every(Effect::Fail(status)));
                assert_eq!(namespace.flush().await, Err(status));
                assert_eq!(namespace.read(Lba(0), DmaBuf::new(4096)).await.expect_err("fails"), status);
                assert_eq!(namespace.write(Lba(0), stamped(0, 30, 1), Durability::Cached).await, Err(status));
                bench.exported.faults.remove(rule);
            }
            let beyond = namespace.read(Lba(BLOCKS), DmaBuf::new(4096)).await;
            assert_eq!(beyond.expect_err("beyond the end"), Status::OutOfRange);
            assert!(
                association.namespace(2).read(Lba(0), DmaBuf::new(4096)).await.is_err(),
                "no such namespace"
            );
            assert!(!association.is_dead());
        },
    );
}

#[test]
fn a_namespace_grows_under_its_host() {
    Bench::run(
        1,
        |_| {},
        async |bench| {
            let association = bench.connect(|_| {}).await;
            let namespace = association.namespace(1);
            for blocks in [BLOCKS * 2, BLOCKS * 3] {
                rt::sleep(std::time::Duration::from_millis(100)).await;
                let mut geometry = bench.exported.geometry.get();
                geometry.blocks = BlockCount(blocks);
                bench.exported.geometry.set(geometry);
                bench.exported.changed.notify();
                bench.until("the host sees the new size", || namespace.geometry().blocks.0 == blocks).await;
            }
        },
    );
}

#[test]
fn discovery_lists_the_subsystems() {
    Bench::run(
        1,
        |_| {},
        async |bench| {
            bench.connect(|_| {}).await.close().await; // It listens now.
            let entries = discover(bench.address, HOSTNQN, HOSTID, None).await.expect("discovery");
            let names: Vec<_> =
                entries.iter().map(|entry| (&entry.subnqn[..], entry.port, entry.port_id)).collect();
            assert_eq!(names, [(SUBNQN, 4420, 1), (OTHER_NQN, 4420, 2)]);
        },
    );
}

#[test]
fn refusals_say_why() {
    Bench::run(
        1,
        |config| config.connections_max = 2,
        async |bench| {
            bench.connect(|_| {}).await.close().await;
            bench.until("all connections are closed", || bench.exported.closed.get() == 1).await;
            rt::sleep(std::time::Duration::from_secs(10)).await;
            let kind = async |change: &dyn Fn(&mut nvmf::ConnectOptions)| {
                let mut options = bench.options();
                change(&mut options);
                bench.try_connect(options).await.err().map(|error| error.kind())
            };
            let unknown = kind(&|options| options.subnqn = "nqn.2026-11.io.orlop:absent".into()).await;
            assert_eq!(unknown, Some(ErrorKind::Refused(StatusCode::CONNECT_INVALID_PARAMETERS)));
            let stranger = kind(&|options| options.hostnqn = "nqn.2026-11.io.orlop:stranger".into()).await;
            assert_eq!(stranger, Some(ErrorKind::Refused(StatusCode::CONNECT_INVALID_HOST)));
            assert_eq!(kind(&|options| options.subnqn = "volume".into()).await, Some(ErrorKind::Invalid));
            let mut nobody = bench.options();
            nobody.address.set_port(1);
            let error = Association::connect(nobody).await.err().expect("nobody listens there");
            assert_eq!(error.kind(), ErrorKind::Unreachable);
            assert!(
                error.to_string().contains("10.0.0.1:1: opening a connection: cannot connect"),
                "{error}"
            );
        },
    );
}
