//! Target and initiator on the real kernel: loopback TCP over `io_uring`.

use crate::support::{Exported, Exports, HOSTID, HOSTNQN, SUBNQN, stamped};
use device::{Device, Lba};
use nvmf::{Association, ConnectOptions, Target, TargetConfig};
use rt::{DmaBuf, Durability};
use std::rc::Rc;
use std::time::Duration;

#[test]
fn target_and_initiator_on_loopback() {
    let reactor = rt::os::Reactor::new(rt::os::Config::default()).expect("io_uring works here");
    reactor.run(async {
        let exported = Exported::new();
        let config = TargetConfig::new("127.0.0.1:0".parse().expect("an address"));
        let target = Target::bind(config, Rc::new(Exports(Rc::clone(&exported)))).await.expect("a free port");
        let address = target.local_address();
        let target = Rc::new(target);
        let serving = rt::spawn({
            let target = Rc::clone(&target);
            async move { target.serve().await }
        });
        for (digests, in_capsule_bytes_max, queues) in
            [(false, 1 << 20, 1), (true, 1 << 20, 2), (false, 0, 2), (true, 0, 1)]
        {
            let mut options = ConnectOptions::new(address, SUBNQN, HOSTNQN, HOSTID);
            options.header_digest = digests;
            options.data_digest = digests;
            options.in_capsule_bytes_max = in_capsule_bytes_max;
            options.queues = queues;
            let association = Association::connect(options).await.expect("connects");
            let workers: Vec<_> = (0..8_u64)
                .map(|worker| {
                    let namespace = association.namespace(1);
                    rt::spawn(async move {
                        for i in 0..20 {
                            let lba = worker * 500 + i;
                            let blocks = [1, 3, 16, 17, 300][usize::try_from(i % 5).expect("small")];
                            let data = stamped(lba, blocks, 8);
                            namespace.write(Lba(lba), data.clone(), Durability::Cached).await.expect("write");
                            let read = namespace.read(Lba(lba), DmaBuf::new(data.len())).await.expect("read");
                            assert!(read[..] == data[..]);
                        }
                    })
                })
                .collect();
            for worker in workers {
                worker.await;
            }
            association.close().await;
        }
        let hanging = Association::connect(ConnectOptions::new(address, SUBNQN, HOSTNQN, HOSTID)).await;
        let hanging = hanging.expect("connects");
        rt::timeout(Duration::from_secs(20), target.stop()).await.expect("stops");
        assert_eq!(exported.closed.get(), exported.opened.get());
        rt::timeout(Duration::from_secs(20), hanging.dead()).await.expect("its hosts see it");
        drop(serving);
    });
}
