//! The reactor on a real kernel, through the crate's public API.

mod files;
mod sockets;
mod tasks;

use rt::os::{Config, Reactor};
use std::future::Future;

/// Runs `future` on a fresh reactor.
fn run<T>(future: impl Future<Output = T>) -> T {
    Reactor::new(Config::default()).expect("the kernel allows a reactor").run(future)
}
