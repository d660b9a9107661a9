//! Threads that may wait for I/O on the very device that this process serves.
//!
//! A killed process is gone only when its last thread is, and so is what its threads share: the table of descriptors with
//! `/dev/fuse` in it. A thread that waits in the kernel for an answer of this process would then wait for ever: the
//! kernel ends a connection when `/dev/fuse` is closed, and the waiting thread keeps it open. So it gets a table of its
//! own, without it.
#![expect(unsafe_code, reason = "close_range, which rustix does not have")]

/// Descriptors below this are the standard streams.
const FIRST: libc::c_uint = 3;

/// Runs `work` on a thread that shares no descriptor but the standard streams, and waits for its result. Descriptors that
/// come from outside mean nothing in it, nor do those that it opens mean anything elsewhere.
///
/// # Panics
/// When `work` panics.
pub(crate) async fn isolated<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    // The outer thread waits where a kill ends it, and wakes the reactor, which takes a shared descriptor.
    rt::blocking(move || {
        let inner = std::thread::Builder::new().name("orlop-isolated".into()).spawn(move || {
            leave_table();
            work()
        });
        inner.expect("the system can start a thread").join().expect("isolated work does not panic")
    })
    .await
}

/// Leaves the shared table for an own one with the standard streams only.
fn leave_table() {
    // SAFETY: with CLOSE_RANGE_UNSHARE the table is copied first, so no descriptor of another thread is closed. This
    // thread has just begun and owns none.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE) };
    if result < 0 {
        // Forbidden or older than Linux 5.9: the work can be done, only a kill in the middle of it may hang.
        let error = std::io::Error::last_os_error();
        tracing::warn!(%error, "a thread keeps the descriptors of this process");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn count() -> usize {
        std::fs::read_dir("/proc/thread-self/fd").expect("readable").count()
    }

    #[test]
    fn an_isolated_thread_has_a_table_of_its_own() {
        let reactor = rt::os::Reactor::new(rt::os::Config::default()).expect("a reactor");
        let file = tempfile::tempfile().expect("a file");
        let number = file.as_raw_fd();
        let (count, opened) = reactor.run(isolated(move || {
            let before = std::fs::read_link(format!("/proc/thread-self/fd/{number}"));
            assert!(before.is_err(), "{before:?}");
            let opened = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
                .expect("it opens");
            // One of the four is the directory itself.
            (count() - 1, opened.as_raw_fd())
        }));
        assert!(count <= 4, "{count}");
        assert_eq!(opened, 3);
        file.metadata().expect("still open here");
    }
}
