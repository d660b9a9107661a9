//! Which driver is under the running task: a thread-local, set while a reactor or a simulated world polls.

use std::cell::RefCell;
use uuid::Uuid;

/// A handle to the driver of the current thread.
#[derive(Clone)]
pub(crate) enum Context {
    Os(crate::os::Handle),
    Sim(crate::sim::Handle),
}

thread_local! {
    static CURRENT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

/// Runs `f` with the driver of this thread.
///
/// # Panics
/// Outside a reactor or a simulated world.
pub(crate) fn with<T>(f: impl FnOnce(&Context) -> T) -> T {
    let context = CURRENT.with_borrow(Clone::clone);
    f(&context.expect("rt was called outside a reactor and outside a simulated world"))
}

/// Makes `context` the driver of this thread until the guard goes.
pub(crate) fn enter(context: Context) -> Guard {
    Guard(CURRENT.replace(Some(context)))
}

/// Restores the driver that was current before.
pub(crate) struct Guard(Option<Context>);

impl Drop for Guard {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

/// Random bytes: from the kernel, or from the seed in the simulator.
pub fn random_bytes(bytes: &mut [u8]) {
    with(|context| match context {
        Context::Os(os) => os.random_bytes(bytes),
        Context::Sim(sim) => sim.random_bytes(bytes),
    });
}

/// A random number: from the kernel, or from the seed in the simulator.
pub fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    random_bytes(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// A random (version 4) UUID.
pub fn random_uuid() -> Uuid {
    let mut bytes = [0; 16];
    random_bytes(&mut bytes);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}
