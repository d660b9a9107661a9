//! The second holder of the descriptors of `/dev/fuse`: a small process that outlives the engine.
//!
//! The engine's side is [`Holder`]: it starts the process, hands over every descriptor, and starts a new one if it dies
//! alone. The process itself is [`main`], behind a hidden subcommand of the binary. They talk over a socket in the state
//! folder, which is also how a restarted engine finds the process of the one before.
//!
//! # Invariants
//! 1. A volume counts as attached only while both processes have its descriptor; a new holder process gets all of them.
//! 2. The engine's copies are closed before a volume's detach ends, so that nothing keeps a dead connection.

mod process;
mod wire;

use super::attach::whole_path;
use crate::{Error, ErrorKind};
use rt::fd::Fd;
use rt::sync::Mutex;
use rt::{DmaBuf, Task};
use rustix::io::Errno;
use rustix::net::sockopt::Timeout;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;
use wire::{Answer, Request};

pub(crate) use wire::STATE_LEN_MAX;

const SOCKET_NAME: &str = "fuse-holder.sock";
/// An answer comes from memory: if it takes this long the process is stuck.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// Between attempts to start a new process.
const RESPAWN_PAUSE: Duration = Duration::from_secs(1);

/// How the holder process is started.
#[derive(Clone, Debug)]
pub struct HolderConfig {
    /// Folder of this engine; only its owner may enter it.
    pub state_dir: PathBuf,
    /// The program and the arguments that lead to [`main`], such as `/usr/bin/orlop fuse-holder`.
    pub command: Vec<OsString>,
    /// Shown in the process's command line, so that guards find it.
    pub run_id: String,
    /// How long I/O waits for a restarted engine before it fails with `EIO`.
    pub limit: Duration,
    /// The process that restarts engines, if there is one: once it is gone, too, I/O fails at once.
    pub supervisor: Option<u32>,
}

/// Runs the holder process; `arguments` are those behind the hidden subcommand. Returns when it is not needed any more.
///
/// # Errors
/// `Invalid` for arguments that no [`Holder`] writes.
pub fn main(arguments: impl Iterator<Item = OsString>) -> Result<(), Error> {
    let (mut socket, mut limit, mut supervisor) = (None, None, None);
    let mut arguments = arguments;
    while let (Some(name), value) = (arguments.next(), arguments.next()) {
        match (name.to_str(), value) {
            (Some("--socket"), Some(path)) => socket = Some(PathBuf::from(path)),
            (Some("--limit-ms"), Some(text)) => limit = text.to_str().and_then(|text| text.parse().ok()),
            (Some("--supervisor"), Some(text)) => {
                supervisor = text.to_str().and_then(|text| text.parse().ok());
            }
            (Some("--run-id"), Some(_)) => {}
            _ => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("the holder does not know {}", name.display()),
                ));
            }
        }
    }
    let (Some(socket), Some(limit)) = (socket, limit) else {
        return Err(Error::new(ErrorKind::Invalid, "the holder is started by the engine, not by hand"));
    };
    process::run(process::Options { socket, limit: Duration::from_millis(limit), supervisor })
        .map_err(|error| Error::os("the holder cannot go on", error))
}

/// The engine's side: keeps a holder process running as long as there is a descriptor to hold. Clones are one.
#[derive(Clone, Debug)]
pub struct Holder(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    config: HolderConfig,
    link: Mutex<Option<Link>>,
    /// What this engine has handed over.
    held: RefCell<BTreeMap<Uuid, Handed>>,
    /// Counts links, so that the death of an old process does not end a new link.
    links: Cell<u64>,
}

/// A running holder process.
#[derive(Debug)]
struct Link {
    number: u64,
    socket: Arc<OwnedFd>,
    /// Watches for the death of the process; dropped with the link.
    _watch: Task<()>,
    /// Only if this engine started it.
    child: Option<Child>,
}

#[derive(Clone, Debug)]
struct Handed {
    descriptor: Arc<OwnedFd>,
    connection: u32,
    state: Vec<u8>,
}

impl Holder {
    /// Nothing is started before the first descriptor is handed over.
    pub fn new(config: HolderConfig) -> Self {
        Self(Rc::new(Inner {
            config,
            link: Mutex::new(None),
            held: RefCell::default(),
            links: Cell::default(),
        }))
    }

    /// Hands a descriptor over; starts the process if there is none.
    pub(crate) async fn put(
        &self,
        volume: Uuid,
        descriptor: OwnedFd,
        connection: u32,
        state: Vec<u8>,
    ) -> Result<(), Error> {
        let handed = Handed { descriptor: Arc::new(descriptor), connection, state };
        self.0.held.borrow_mut().insert(volume, handed.clone());
        let mut link = self.0.link.lock().await;
        if link.is_none() {
            *link = self.connect().await?;
        }
        if let Some(link) = &*link
            && link.put(volume, &handed).await.is_ok()
        {
            return Ok(());
        }
        // None, or it died just now: a new one gets everything.
        self.start(&mut link).await
    }

    /// Takes over the descriptor of `volume` from the engine before this one; `None` if nobody holds it.
    pub(crate) async fn take(&self, volume: Uuid) -> Result<Option<(OwnedFd, Vec<u8>)>, Error> {
        let mut link = self.0.link.lock().await;
        if link.is_none() {
            *link = self.connect().await?;
        }
        let Some(live) = &*link else { return Ok(None) };
        match live.ask(Request::Take { volume }, None).await? {
            (Answer::Found { state }, Some(descriptor)) => Ok(Some((descriptor, state))),
            (Answer::NotHeld, None) => Ok(None),
            (answer, _) => Err(unexpected(&answer)),
        }
    }

    /// Has the descriptor closed; ends the process with the last one.
    pub(crate) async fn release(&self, volume: Uuid) -> Result<(), Error> {
        self.0.held.borrow_mut().remove(&volume);
        let mut link = self.0.link.lock().await;
        let Some(live) = &*link else { return Ok(()) };
        let released = live.ask(Request::Release { volume }, None).await.map(drop);
        if self.0.held.borrow().is_empty() {
            // It ends by itself when its engine is gone and it holds nothing.
            let child = link.take().and_then(|link| link.child);
            reap(child).await;
        }
        released
    }

    /// Connects to a process that runs already.
    async fn connect(&self) -> Result<Option<Link>, Error> {
        let dir = self.0.config.state_dir.clone();
        let connected = rt::blocking(move || {
            let Some(socket) = connect_in(&dir)? else { return Ok(None) };
            Ok(connect_in(&dir)?.map(|watch| (socket, watch)))
        })
        .await
        .map_err(|error: Errno| Error::os("cannot reach the holder process", error))?;
        Ok(connected.map(|(socket, watch)| self.link(socket, watch, None)))
    }

    fn link(&self, socket: OwnedFd, watch: OwnedFd, child: Option<Child>) -> Link {
        let holder = Rc::downgrade(&self.0);
        let number = self.0.links.get() + 1;
        self.0.links.set(number);
        let watch = rt::spawn(async move {
            // The process never sends here: this ends when it dies.
            drop(Fd::new(watch).read_parts(vec![0; 1], DmaBuf::new(0)).await);
            let Some(inner) = holder.upgrade() else { return };
            // A task of its own: starting anew drops the link, and with it this watch.
            rt::spawn(Self(inner).restore(number)).detach();
        });
        Link { number, socket: Arc::new(socket), _watch: watch, child }
    }

    /// Starts a new process after the death of the one before.
    async fn restore(self, number: u64) {
        let mut link = self.0.link.lock().await;
        if link.as_ref().is_none_or(|link| link.number != number) {
            return;
        }
        tracing::warn!("the process that holds FUSE descriptors died: starting a new one");
        reap(link.take().and_then(|link| link.child)).await;
        while !self.0.held.borrow().is_empty() {
            match self.start(&mut link).await {
                Ok(()) => return,
                Err(error) => tracing::error!(%error, "no second holder: a crash now would fail I/O at once"),
            }
            rt::sleep(RESPAWN_PAUSE).await;
        }
    }

    /// Starts a process and hands it everything.
    async fn start(&self, link: &mut Option<Link>) -> Result<(), Error> {
        reap(link.take().and_then(|link| link.child)).await;
        let config = self.0.config.clone();
        let (child, socket, watch) = rt::blocking(move || spawn(&config)).await?;
        let live = self.link(socket, watch, Some(child));
        let held: Vec<_> =
            self.0.held.borrow().iter().map(|(volume, handed)| (*volume, handed.clone())).collect();
        for (volume, handed) in held {
            live.put(volume, &handed).await?;
        }
        *link = Some(live);
        Ok(())
    }
}

impl Link {
    async fn put(&self, volume: Uuid, handed: &Handed) -> Result<(), Error> {
        let (connection, state) = (handed.connection, handed.state.clone());
        let descriptor = Arc::clone(&handed.descriptor);
        match self.ask(Request::Put { volume, connection, state }, Some(descriptor)).await? {
            (Answer::Done, None) => Ok(()),
            (answer, _) => Err(unexpected(&answer)),
        }
    }

    async fn ask(
        &self,
        request: Request,
        descriptor: Option<Arc<OwnedFd>>,
    ) -> Result<(Answer, Option<OwnedFd>), Error> {
        let socket = Arc::clone(&self.socket);
        let answered = rt::blocking(move || {
            wire::send(&*socket, &request.encode(), descriptor.as_deref())?;
            wire::receive(&*socket)
        })
        .await;
        let (bytes, descriptor) =
            answered.map_err(|error| Error::os("the holder process does not answer", error))?;
        let answer = Answer::decode(&bytes)
            .ok_or_else(|| Error::new(ErrorKind::Holder, "the holder process gave no answer"))?;
        Ok((answer, descriptor))
    }
}

fn unexpected(answer: &Answer) -> Error {
    Error::new(ErrorKind::Holder, format!("the holder process refused: {answer:?}"))
}

/// Waits for the end of a process that has nothing more to do, so that it leaves no zombie.
async fn reap(child: Option<Child>) {
    let Some(mut child) = child else { return };
    match rt::timeout(ANSWER_WAIT, rt::blocking(move || child.wait())).await {
        Ok(Ok(status)) => tracing::debug!(%status, "the holder process ended"),
        Ok(Err(error)) => tracing::warn!(%error, "the holder process cannot be waited for"),
        Err(_) => tracing::warn!("the holder process does not end"),
    }
}

/// The socket's address through the open folder: a path of any length fits.
fn address(dir: &Path) -> Result<(OwnedFd, SocketAddrUnix), Errno> {
    use rustix::fs::{Mode, OFlags};
    let folder = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET_NAME}", folder.as_raw_fd()))?;
    Ok((folder, address))
}

fn socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Connects to the process of the engine in `dir`; `None` if there is none.
fn connect_in(dir: &Path) -> Result<Option<OwnedFd>, Errno> {
    let (_folder, address) = match address(dir) {
        Err(Errno::NOENT) => return Ok(None),
        result => result?,
    };
    let socket = socket()?;
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_WAIT))?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => Ok(Some(socket)),
        Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Starts the process with the listening socket as its standard input, and connects.
fn spawn(config: &HolderConfig) -> Result<(Child, OwnedFd, OwnedFd), Error> {
    let listener = listen(&config.state_dir).map_err(|error| {
        Error::os(format_args!("cannot make a socket in {}", config.state_dir.display()), error)
    })?;
    // The process works in the root folder.
    let state_dir = whole_path(&config.state_dir)?;
    let (program, arguments) = config
        .command
        .split_first()
        .ok_or_else(|| Error::new(ErrorKind::Invalid, "no command is given for the holder process"))?;
    let child = Command::new(program)
        .args(arguments)
        .arg("--socket")
        .arg(state_dir.join(SOCKET_NAME))
        .arg("--limit-ms")
        .arg(config.limit.as_millis().to_string())
        .arg("--run-id")
        .arg(&config.run_id)
        .args(config.supervisor.iter().flat_map(|pid| ["--supervisor".to_owned(), pid.to_string()]))
        .stdin(listener)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| {
            Error::os(format_args!("cannot start the holder process {}", program.display()), error)
        })?;
    let connect = || {
        connect_in(&config.state_dir)
            .and_then(|socket| socket.ok_or(Errno::CONNREFUSED))
            .map_err(|error| Error::os("cannot reach the new holder process", error))
    };
    Ok((child, connect()?, connect()?))
}

fn listen(dir: &Path) -> Result<OwnedFd, Errno> {
    let path = dir.join(SOCKET_NAME);
    match rustix::fs::unlink(&path) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    let (_folder, address) = address(dir)?;
    let listener = socket()?;
    rustix::net::bind(&listener, &address)?;
    rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o600))?;
    rustix::net::listen(&listener, 16)?;
    Ok(listener)
}
