//! One value from one task to another.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Makes the two ends through which one value passes once.
pub fn oneshot<T>() -> (OnceSender<T>, OnceReceiver<T>) {
    let slot = Rc::new(RefCell::new(Slot { value: None, sender_gone: false, waker: None }));
    (OnceSender { slot: Rc::clone(&slot) }, OnceReceiver { slot })
}

#[derive(Debug)]
struct Slot<T> {
    value: Option<T>,
    sender_gone: bool,
    waker: Option<Waker>,
}

/// The end that gives the value. Dropped without sending, the other end receives `None`.
#[derive(Debug)]
pub struct OnceSender<T> {
    slot: Rc<RefCell<Slot<T>>>,
}

impl<T> OnceSender<T> {
    /// Gives the value; it is dropped if the receiver is gone.
    pub fn send(self, value: T) {
        self.slot.borrow_mut().value = Some(value);
    }

    /// Whether nobody waits for the value any more.
    pub fn is_abandoned(&self) -> bool {
        Rc::strong_count(&self.slot) == 1
    }
}

impl<T> Drop for OnceSender<T> {
    fn drop(&mut self) {
        let waker = {
            let mut slot = self.slot.borrow_mut();
            slot.sender_gone = true;
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The end that waits for the value.
#[derive(Debug)]
pub struct OnceReceiver<T> {
    slot: Rc<RefCell<Slot<T>>>,
}

impl<T> OnceReceiver<T> {
    /// Waits for the value; `None` if the sender was dropped without sending.
    pub async fn recv(self) -> Option<T> {
        poll_fn(|cx| {
            let mut slot = self.slot.borrow_mut();
            if slot.sender_gone {
                return Poll::Ready(slot.value.take());
            }
            slot.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}
