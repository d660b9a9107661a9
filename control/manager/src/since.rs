//! Since when things are so, found by what they are and by how long it has lasted: nobody has to look at all of them to
//! see which have lasted long enough.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    time::Duration,
};

/// Times by key, and keys by time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Since<K> {
    since: BTreeMap<K, Duration>,
    /// The same the other way round.
    keys: BTreeMap<Duration, BTreeSet<K>>,
}

impl<K> Default for Since<K> {
    fn default() -> Self {
        Self { since: BTreeMap::new(), keys: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Since<K> {
    /// It is so from `now` on, if it was not already.
    pub(crate) fn begin(&mut self, key: K, now: Duration) {
        if !self.since.contains_key(&key) {
            self.since.insert(key.clone(), now);
            self.keys.entry(now).or_default().insert(key);
        }
    }

    /// It is so no longer.
    pub(crate) fn end<Q: Ord + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        let Some(since) = self.since.remove(key) else { return };
        let keys = self.keys.get_mut(&since).expect("each time has its keys");
        keys.remove(key);
        if keys.is_empty() {
            self.keys.remove(&since);
        }
    }

    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<Duration>
    where
        K: Borrow<Q>,
    {
        self.since.get(key).copied()
    }

    /// All of them, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &K> {
        self.since.keys()
    }

    /// Those that at `now` have been so for at least `age`.
    pub(crate) fn older(&self, age: Duration, now: Duration) -> impl Iterator<Item = &K> {
        let until = now.checked_sub(age);
        until.into_iter().flat_map(|until| self.keys.range(..=until)).flat_map(|(_, keys)| keys)
    }

    /// Those that have come to be `age` old after `before`, until `now`.
    pub(crate) fn reached(&self, age: Duration, before: Duration, now: Duration) -> impl Iterator<Item = &K> {
        let after = before.checked_sub(age).map_or(Bound::Unbounded, Bound::Excluded);
        let until = now.checked_sub(age);
        let reached = until.map(|until| self.keys.range((after, Bound::Included(until))));
        reached.into_iter().flatten().flat_map(|(_, keys)| keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_when_it_is_old_enough() {
        let seconds = Duration::from_secs;
        let mut since = Since::default();
        since.begin("a", seconds(10));
        since.begin("b", seconds(11));
        since.begin("c", seconds(11));
        since.begin("a", seconds(12));
        assert_eq!(since.get("a"), Some(seconds(10)), "it was so already");
        let reached = |since: &Since<&'static str>, before, now| {
            since.reached(seconds(5), seconds(before), seconds(now)).copied().collect::<String>()
        };
        assert_eq!(reached(&since, 0, 4), "", "nothing is older than the clock");
        assert_eq!(reached(&since, 13, 14), "");
        assert_eq!(reached(&since, 14, 15), "a");
        assert_eq!(reached(&since, 14, 16), "abc");
        assert_eq!(reached(&since, 15, 16), "bc", "a was told before");
        assert_eq!(reached(&since, 16, 16), "");
        assert_eq!(reached(&since, 16, 20), "");
        since.end("b");
        since.end("b");
        assert_eq!(since.older(seconds(5), seconds(16)).copied().collect::<String>(), "ac");
        since.end("a");
        since.begin("a", seconds(30));
        assert_eq!(since.older(seconds(5), seconds(30)).copied().collect::<String>(), "c");
        assert_eq!(since.all().copied().collect::<String>(), "ac");
    }
}
