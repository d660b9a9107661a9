//! What a member is owed: the extents in which it may differ from the source (I6, I7).

/// A set of extents.
#[derive(Clone, Debug, Default)]
pub(crate) struct Owed {
    words: Vec<u64>,
    count: u64,
    total: u64,
}

impl Owed {
    /// The set of nothing.
    pub(crate) fn nothing() -> Self {
        Self::default()
    }

    /// The set of the extents `0..extents`.
    pub(crate) fn everything(extents: u64) -> Self {
        let mut owed = Self::nothing();
        (0..extents).for_each(|extent| owed.insert(extent));
        owed
    }

    fn place(extent: u64) -> (usize, u64) {
        (usize::try_from(extent / 64).expect("an extent index fits"), 1 << (extent % 64))
    }

    /// Adds `extent`.
    pub(crate) fn insert(&mut self, extent: u64) {
        let (word, bit) = Self::place(extent);
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        if self.words[word] & bit == 0 {
            self.words[word] |= bit;
            self.count += 1;
            self.total += 1;
        }
    }

    /// Takes `extent` out: it is equal now.
    pub(crate) fn remove(&mut self, extent: u64) {
        let (word, bit) = Self::place(extent);
        if self.contains(extent) {
            self.words[word] &= !bit;
            self.count -= 1;
        }
    }

    /// Whether `extent` is owed.
    pub(crate) fn contains(&self, extent: u64) -> bool {
        let (word, bit) = Self::place(extent);
        self.words.get(word).is_some_and(|bits| bits & bit != 0)
    }

    /// The first owed extent at or behind `from`.
    pub(crate) fn next(&self, from: u64) -> Option<u64> {
        let (first, _) = Self::place(from);
        for (index, &bits) in self.words.iter().enumerate().skip(first) {
            let bits = if index == first { bits & (u64::MAX << (from % 64)) } else { bits };
            if bits != 0 {
                return Some(index as u64 * 64 + u64::from(bits.trailing_zeros()));
            }
        }
        None
    }

    /// How many extents are owed now.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// How many extents were ever put in.
    pub(crate) const fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_extents() {
        let mut owed = Owed::everything(130);
        assert_eq!(
            (owed.count(), owed.next(0), owed.next(129), owed.next(130)),
            (130, Some(0), Some(129), None)
        );
        (0..129).for_each(|extent| owed.remove(extent));
        owed.remove(3);
        assert_eq!((owed.count(), owed.total(), owed.next(0)), (1, 130, Some(129)));
        owed.insert(64);
        assert_eq!((owed.next(0), owed.next(65), owed.count()), (Some(64), Some(129), 2));
        assert!(owed.contains(64) && !owed.contains(1000));
    }
}
