//! Serves one memory device over NVMe/TCP: `mem_target ADDRESS SIZE [BLOCK_SIZE [ADVERTISED_IP [KEY_FILE]]]`, for trying
//! out other initiators. With a key, all hosts have to prove it.
//!
//! ```text
//! cargo run -p orlop-nvmf --example mem_target -- 0.0.0.0:4420 256MiB 4096
//! nvme connect -t tcp -a 127.0.0.1 -s 4420 -n nqn.2026-11.io.orlop:mem
//! ```

use device::{BlockCount, ByteCount, Geometry, Mem, Status};
use nvmf::{
    ConnectError, ConnectRequest, DiscoveryEntry, DiscoveryKind, Key, NamespaceIdentity, Session, Subsystems,
    Target, TargetConfig, VendorCommand, VendorReply,
};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use uuid::Uuid;

const SUBNQN: &str = "nqn.2026-11.io.orlop:mem";

struct Export {
    device: Mem,
    /// Where the discovery log says that the subsystem is.
    advertised: SocketAddr,
    key: Option<Key>,
}

struct Volume(Mem);

impl Subsystems for Export {
    type Session = Volume;

    fn key(&self, _subnqn: &str, _hostnqn: &str) -> Result<Option<Key>, ConnectError> {
        Ok(self.key.clone())
    }

    async fn open(&self, connect: &ConnectRequest) -> Result<Rc<Volume>, ConnectError> {
        if connect.subnqn != SUBNQN {
            return Err(ConnectError::UnknownSubsystem);
        }
        println!("connected: {} from {}", connect.hostnqn, connect.peer);
        Ok(Rc::new(Volume(self.device.clone())))
    }

    fn discovery(&self) -> Vec<DiscoveryEntry> {
        vec![DiscoveryEntry {
            kind: DiscoveryKind::Subsystem,
            subnqn: SUBNQN.into(),
            address: self.advertised.ip(),
            port: self.advertised.port(),
            port_id: 1,
        }]
    }
}

impl Session for Volume {
    type Namespace = Mem;

    fn namespace_ids(&self) -> Vec<u32> {
        vec![1]
    }

    fn namespace(&self, nsid: u32) -> Option<Mem> {
        (nsid == 1).then(|| self.0.clone())
    }

    fn identity(&self, _nsid: u32) -> NamespaceIdentity {
        NamespaceIdentity { uuid: Uuid::from_u128(0x6f72_6c6f_705f_6d65_6d00_0000_0000_0001) }
    }

    async fn vendor(&self, _nsid: u32, _command: &VendorCommand) -> Result<VendorReply, Status> {
        Err(Status::Invalid)
    }

    async fn closed(&self) {
        println!("closed");
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: mem_target ADDRESS SIZE [BLOCK_SIZE [ADVERTISED_IP [KEY_FILE]]]";
    let address: SocketAddr = arguments.next().ok_or(usage)?.parse()?;
    let size: ByteCount = arguments.next().ok_or(usage)?.parse()?;
    let block_size: u32 = arguments.next().map_or(Ok(4096), |text| text.parse())?;
    let advertised: Option<IpAddr> = arguments.next().map(|text| text.parse()).transpose()?;
    let key = arguments.next().map(std::fs::read_to_string).transpose()?;
    let key = key.map(|text| Key::parse(&text)).transpose()?;
    let geometry = Geometry { block_size, blocks: BlockCount(size.0 / u64::from(block_size)) };
    let reactor = rt::os::Reactor::new(rt::os::Config::default())?;
    reactor.run(async {
        let advertised = SocketAddr::new(advertised.unwrap_or(address.ip()), address.port());
        let exports = Rc::new(Export { device: Mem::new(geometry), advertised, key });
        let target = Target::bind(TargetConfig::new(address), exports).await?;
        println!("serving {SUBNQN}, {size}, at {}", target.local_address());
        target.serve().await;
        Ok(())
    })
}
