//! Stands between csi-sanity and a plugin, and is slow at first.
//!
//! 1. csi-sanity v5 (`utils.Connect`) waits a minute for a change when its connection is there before it has looked, and
//!    then fails. So the connections that it makes at its start are held back for a moment; all else is passed on.

use anyhow::Result;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Of each socket; csi-sanity makes one.
const FIRST: u32 = 1;
const HELD_BACK: Duration = Duration::from_millis(500);

/// Listens at `front` for a plugin at `behind`, until the journey's process ends.
pub(super) fn listen(front: &Path, behind: PathBuf) -> Result<()> {
    let listener = UnixListener::bind(front)?;
    let seen = Arc::new(AtomicU32::new(0));
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let (seen, behind) = (Arc::clone(&seen), behind.clone());
            std::thread::spawn(move || {
                if seen.fetch_add(1, Ordering::Relaxed) < FIRST {
                    std::thread::sleep(HELD_BACK);
                }
                // A plugin that is not there closes the connection: the client tries again.
                pass_on(&client, &behind).ok();
            });
        }
    });
    Ok(())
}

fn pass_on(client: &UnixStream, behind: &Path) -> io::Result<()> {
    let plugin = UnixStream::connect(behind)?;
    let (from, to) = (client.try_clone()?, plugin.try_clone()?);
    let there = std::thread::spawn(move || copy(&from, &to));
    copy(&plugin, client);
    drop(there.join());
    Ok(())
}

/// Until one side ends, which is then the end of both.
fn copy(mut from: &UnixStream, mut to: &UnixStream) {
    io::copy(&mut from, &mut to).ok();
    for side in [from, to] {
        side.shutdown(Shutdown::Both).ok();
    }
}
