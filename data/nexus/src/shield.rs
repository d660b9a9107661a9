//! Work that must end by itself: dropping the future of a shielded task lets the task go on (I11).

use rt::Task;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Waits for a task; detaches it when dropped.
pub(crate) struct Shielded<T>(Option<Task<T>>);

/// Runs `work` in a task that ends by itself, whatever happens to the returned future.
pub(crate) fn shielded<T: 'static>(work: impl Future<Output = T> + 'static) -> Shielded<T> {
    Shielded(Some(rt::spawn(work)))
}

impl<T> Future for Shielded<T> {
    type Output = T;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        Pin::new(self.0.as_mut().expect("taken only in drop")).poll(cx)
    }
}

impl<T> Drop for Shielded<T> {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.detach();
        }
    }
}
