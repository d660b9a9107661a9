//! Files on simulated disks.

use rt::sim::World;
use rt::{Access, DmaBuf, DmaBytes, Durability, Errno, File, OpenOptions};
use std::path::Path;

const RW: OpenOptions = OpenOptions { access: Access::Write, create_len_bytes: None, direct: true };

#[test]
fn what_was_written_is_read() {
    let world = World::new(1);
    let node = world.add_node("n1");
    world.add_disk(node, "/disk0", 4 << 30, 4096);
    let task = async {
        let file = File::open(Path::new("/disk0"), RW).await.unwrap();
        assert_eq!((file.len_bytes(), file.block_size()), (4 << 30, 4096));
        let mut data = DmaBuf::zeroed(8192);
        data[..4096].fill(1);
        data[4096..].fill(2);
        file.write_at(1 << 30, data.freeze(), Durability::Cached).await.unwrap();
        file.sync().await.unwrap();
        let read = file.read_at((1 << 30) + 4096, DmaBuf::new(8192)).await.unwrap();
        assert!(read[..4096].iter().all(|b| *b == 2) && read[4096..].iter().all(|b| *b == 0));
        file.zero_range(1 << 30, 8192, true).await.unwrap();
        let read = file.read_at(1 << 30, DmaBuf::new(8192)).await.unwrap();
        assert!(read.iter().all(|b| *b == 0));
        let beyond = file.write_at(4 << 30, DmaBytes::copy_of(&[0; 4096]), Durability::Cached).await;
        assert_eq!(beyond, Err(Errno::NOSPC));
        assert_eq!(file.read_at(4096, DmaBuf::new(100)).await.unwrap_err(), Errno::INVAL);
    };
    world.run(async { world.spawn_on(node, task).await });
}
