//! The process that serves a volume in these tests, to be killed: `root serve key=value ...`, then one command a line.

use device::{AnyDevice, BlockCount, Device, Geometry, Lba, Status};
use frontend::fuse::{self, AttachConfig, Attached, Holder, HolderConfig};
use rt::fd::Fd;
use rt::{DmaBuf, DmaBytes, Durability};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

/// A device that shows fewer blocks than it has, until it is told to show more.
struct Growing {
    device: AnyDevice,
    shown: Rc<Cell<u64>>,
}

impl Device for Growing {
    fn geometry(&self) -> Geometry {
        Geometry { blocks: BlockCount(self.shown.get()), ..self.device.geometry() }
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        self.device.read(lba, buf).await
    }

    async fn write(&self, lba: Lba, data: DmaBytes, durability: Durability) -> Result<(), Status> {
        self.device.write(lba, data, durability).await
    }

    async fn write_zeroes(&self, lba: Lba, count: BlockCount, durability: Durability) -> Result<(), Status> {
        self.device.write_zeroes(lba, count, durability).await
    }

    async fn unmap(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        self.device.unmap(lba, count).await
    }

    async fn flush(&self) -> Result<(), Status> {
        self.device.flush().await
    }
}

pub(crate) fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    let pairs: BTreeMap<String, String> = arguments
        .map(|argument| {
            let (key, value) = argument.split_once('=').expect("key=value");
            (key.to_string(), value.to_string())
        })
        .collect();
    let reactor = rt::os::Reactor::new(rt::os::Config::default()).expect("io_uring is allowed here");
    reactor.run(async move {
        match serve(&pairs).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => {
                println!("error {message}");
                ExitCode::FAILURE
            }
        }
    })
}

async fn serve(pairs: &BTreeMap<String, String>) -> Result<(), String> {
    let value = |key: &str| pairs.get(key).map(String::as_str).ok_or_else(|| format!("{key} is missing"));
    let uri = device::uri::parse(value("device")?).map_err(|error| error.to_string())?;
    let device = device::open(&uri).await.map_err(|error| error.to_string())?;
    let geometry = device.geometry();
    let shown = match value("shown") {
        Ok(text) => text.parse::<u64>().map_err(|error| error.to_string())? / u64::from(geometry.block_size),
        Err(_) => geometry.blocks.0,
    };
    let shown = Rc::new(Cell::new(shown));
    let device = Growing { device, shown: Rc::clone(&shown) };
    let config = AttachConfig {
        state_dir: value("state")?.into(),
        volume_name: "test".into(),
        volume_uuid: value("uuid")?.parse().map_err(|_| "uuid")?,
        run_id: value("run")?.into(),
        block_size: value("block").unwrap_or("4096").parse().map_err(|_| "block")?,
        read_only: value("read_only").is_ok(),
        holder: value("limit_ms").ok().map(|limit| holder(limit, pairs)).transpose()?,
        continues: value("fresh").is_err(),
    };
    let attached = fuse::attach(config, device).await.map_err(|error| error.to_string())?;
    println!("ready {}", attached.device_path().display());
    let mut lines = Lines::of_stdin();
    while let Some(line) = lines.next().await {
        let mut words = line.split(' ');
        match (words.next(), words.next()) {
            (Some("grow"), Some(bytes)) => {
                let bytes = bytes.parse::<u64>().map_err(|error| error.to_string())?;
                shown.set(bytes / u64::from(geometry.block_size));
                say(attached.resized().await.map(|size| size.to_string()));
            }
            (Some("detach"), None) => say(attached.detach().await.map(|()| "detached".to_string())),
            (Some("abort"), None) => say(attached.abort().await.map(|()| "aborted".to_string())),
            (Some("counters"), None) => println!("{}", counters(&attached)),
            _ => println!("error unknown command {line:?}"),
        }
    }
    Ok(())
}

fn holder(limit_ms: &str, pairs: &BTreeMap<String, String>) -> Result<Holder, String> {
    let limit = Duration::from_millis(limit_ms.parse().map_err(|_| "limit_ms")?);
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    Ok(Holder::new(HolderConfig {
        state_dir: pairs["state"].clone().into(),
        command: vec![program.into(), "fuse-holder".into()],
        run_id: pairs["run"].clone(),
        supervisor: None,
        limit,
    }))
}

fn say(result: Result<String, frontend::Error>) {
    match result {
        Ok(text) => println!("ok {text}"),
        Err(error) => println!("error {:?} {error}", error.kind()),
    }
}

fn counters(attached: &Attached) -> String {
    let c = attached.counters();
    format!(
        "reads={} writes={} flushes={} unmaps={} errors={} resent={} serving={} survives={}",
        c.reads,
        c.writes,
        c.flushes,
        c.unmaps,
        c.errors,
        c.resent,
        attached.is_serving(),
        attached.can_survive()
    )
}

/// Lines of standard input, read on the reactor.
struct Lines {
    fd: Fd,
    pending: Vec<u8>,
}

impl Lines {
    fn of_stdin() -> Self {
        let fd = std::io::stdin().as_fd().try_clone_to_owned().expect("stdin is open");
        Self { fd: Fd::new(fd), pending: Vec::new() }
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            let (count, head, _) = self.fd.read_parts(vec![0; 256], DmaBuf::new(0)).await;
            match count.expect("stdin can be read") {
                0 => return None,
                count => self.pending.extend_from_slice(&head[..count]),
            }
        }
    }
}
