//! Tasks: futures that run beside each other on the thread of one reactor.

use crate::context::{Context, with};
use std::future::Future;
use std::pin::pin;
use std::task::Poll;

/// A spawned task; a future of its output. Dropping it cancels the task, `detach()` lets it run on its own.
pub use async_task::Task;

/// Starts `future` on the current reactor (in the simulator: on the machine of the current task).
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    with(|context| match context {
        Context::Os(os) => os.spawn(future),
        Context::Sim(sim) => sim.spawn(future),
    })
}

/// Lets every other task that is ready run first.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Runs `work`, which may block, on a thread of its own and waits for its result.
/// In the simulator it runs on the thread of the world, after a random time.
///
/// # Panics
/// When `work` panics.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    if let Context::Sim(sim) = with(Clone::clone) {
        sim.take_time().await;
        return work();
    }
    let (sender, receiver) = async_channel::bounded(1);
    std::thread::Builder::new()
        .name("orlop-blocking".into())
        .spawn(move || {
            // The waiting task may have been cancelled meanwhile; then nobody wants the result.
            sender.send_blocking(work()).ok();
        })
        .expect("the system can start a thread");
    receiver.recv().await.expect("blocking work does not panic")
}

/// Waits for the first of two futures; `a` wins a tie. The other one is dropped, and with it cancelled.
pub async fn race<T>(a: impl Future<Output = T>, b: impl Future<Output = T>) -> T {
    let (mut a, mut b) = (pin!(a), pin!(b));
    std::future::poll_fn(|cx| match a.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(output),
        Poll::Pending => b.as_mut().poll(cx),
    })
    .await
}
