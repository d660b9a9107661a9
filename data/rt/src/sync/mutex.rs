//! Exclusive use of a value across awaits.

use super::{Permit, Semaphore};
use std::cell::{RefCell, RefMut};
use std::ops::{Deref, DerefMut};

/// A value that one task at a time may use, also while it waits for something else; first come first served.
#[derive(Debug)]
pub struct Mutex<T> {
    turn: Semaphore,
    value: RefCell<T>,
}

impl<T> Mutex<T> {
    /// A free mutex around `value`.
    pub fn new(value: T) -> Self {
        Self { turn: Semaphore::new(1), value: RefCell::new(value) }
    }

    /// Waits for the turn of this task.
    pub async fn lock(&self) -> Guard<'_, T> {
        let turn = self.turn.acquire(1).await;
        Guard { value: self.value.borrow_mut(), _turn: turn }
    }

    /// Takes the turn if the mutex is free and nobody waits.
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        let turn = self.turn.try_acquire(1)?;
        Some(Guard { value: self.value.borrow_mut(), _turn: turn })
    }
}

/// The turn of one task; the next one comes when it is dropped.
#[derive(Debug)]
pub struct Guard<'a, T> {
    // Declared first on purpose: the value is given back before the next in line is woken.
    value: RefMut<'a, T>,
    _turn: Permit,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}
