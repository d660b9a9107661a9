//! The same pool on the real kernel: a file with direct I/O.

use crate::rules::fill;
use crate::{BLOCK, BOOT, NEXUS, REPLICA, config, format_options, generation};
use device::{ByteCount, File, Lba};
use pool::{Pool, Replica, check};
use rt::{Access, DmaBuf, Durability};
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

const MIB: u64 = 1 << 20;
const WORKERS: u64 = 8;

async fn write_some(replica: Replica<File>, model: Rc<RefCell<Vec<u64>>>, worker: u64) {
    for step in 0..64 {
        let random = rt::random_u64();
        let count = 1 + random % 5;
        // Each worker has blocks of its own.
        let first = worker * 512 + (random >> 8) % (512 - count);
        let stamp = (worker << 32) + (step << 8) + 1;
        let mut buf = DmaBuf::new(usize::try_from(count).expect("small") * BLOCK);
        for ((block, lba), stamp) in buf.chunks_mut(BLOCK).zip(first..).zip(stamp..) {
            fill(block, stamp);
            model.borrow_mut()[usize::try_from(lba).expect("small")] = stamp;
        }
        let durability = if random >> 60 == 0 { Durability::Durable } else { Durability::Cached };
        replica.write(generation(step + 1), Lba(first), buf.freeze(), durability).await.expect("written");
    }
}

async fn verify(replica: &Replica<File>, model: Rc<RefCell<Vec<u64>>>) {
    let model = model.borrow().clone();
    for (lba, stamp) in (0..).zip(model) {
        let block = replica.read(Lba(lba), DmaBuf::new(BLOCK)).await.expect("readable");
        assert!(block.chunks(8).all(|word| word == stamp.to_le_bytes()), "block {lba}");
    }
}

#[test]
fn a_pool_on_a_real_file_keeps_what_was_written() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build folder can be written");
    let path = folder.path().join("disk0");
    let reactor = rt::os::Reactor::new(rt::os::Config::default()).expect("a reactor");
    let model = Rc::new(RefCell::new(vec![0; 4096]));
    reactor.run(async {
        let open = |path: &Path| {
            let path = path.to_owned();
            async move {
                let size = ByteCount(32 * MIB);
                loop {
                    // Tasks of the pool before may still hold the file for a moment.
                    match File::open(&path, Some(size), 4096, Access::Write).await {
                        Ok(file) => break file,
                        Err(error) => assert_eq!(error.kind(), device::ErrorKind::InUse, "{error}"),
                    }
                    rt::sleep(std::time::Duration::from_millis(20)).await;
                }
            }
        };
        let device = open(&path).await;
        Pool::format(&device, &format_options()).await.expect("an empty file");
        drop(device);
        for round in 0..3 {
            let pool = Pool::open(open(&path).await, BOOT).await.expect("opens");
            if round == 0 {
                pool.create_replica(&config(REPLICA, 16 * MIB)).await.expect("there is room");
            }
            let replica = pool.replica(REPLICA).expect("there");
            replica.accept_epoch(1, NEXUS).await.expect("accepted");
            verify(&replica, Rc::clone(&model)).await;
            let workers: Vec<_> = (0..WORKERS)
                .map(|worker| rt::spawn(write_some(replica.clone(), Rc::clone(&model), worker)))
                .collect();
            for worker in workers {
                worker.await;
            }
            verify(&replica, Rc::clone(&model)).await;
            if round == 1 {
                pool.close().await.expect("closed");
            }
        }
        let device = File::open(&path, None, 4096, Access::Read).await.expect("readable");
        assert_eq!(check(&device).await.expect("a pool").problems, []);
    });
}
