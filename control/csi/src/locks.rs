//! One request at a time for each volume. A repetition waits for the first one, and then finds its work done.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};
use tokio::sync::OwnedMutexGuard;

/// The locks of all volumes that have a request under way.
#[derive(Debug, Default)]
pub(crate) struct Locks(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Locks {
    /// Waits until no other request for this volume is under way.
    pub(crate) async fn of(&self, volume: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Volumes come and go: without this the map would only grow.
            locks.retain(|_, lock| lock.strong_count() > 0);
            let known = locks.get(volume).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let new = Arc::default();
                locks.insert(volume.to_owned(), Arc::downgrade(&new));
                new
            })
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn one_volume_waits_and_another_does_not() {
        let locks = Locks::default();
        let first = locks.of("a").await;
        assert!(timeout(Duration::from_millis(10), locks.of("a")).await.is_err());
        drop(locks.of("b").await);
        drop(first);
        drop(locks.of("a").await);
        let _last = locks.of("c").await;
        assert_eq!(locks.0.lock().unwrap().len(), 1, "only those under way are kept");
    }
}
