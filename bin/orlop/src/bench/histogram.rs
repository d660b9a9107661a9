//! Latencies in logarithmic buckets: fixed memory, 1/32 relative error, mergeable.
//!
//! 1. A value below 32 has its own bucket; above, each power of two is cut into 32 equal buckets.

/// Buckets per power of two.
const STEPS: u64 = 32;
/// Enough for all of `u64`.
const BUCKETS: usize = 60 * 32;

/// Counts of values by magnitude.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum: u128,
    max: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, sum: 0, max: 0 }
    }

    /// Adds one value.
    pub(crate) fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.total += 1;
        self.sum += u128::from(value);
        self.max = self.max.max(value);
    }

    /// How many values there are.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The mean, exact; 0 of nothing.
    #[expect(clippy::cast_precision_loss, reason = "figures for people: 52 bits are enough")]
    pub(crate) fn mean(&self) -> f64 {
        if self.total == 0 { 0.0 } else { self.sum as f64 / self.total as f64 }
    }

    /// The largest value, exact.
    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    /// The value that `per_mille` of all values do not exceed: the upper end of its bucket, never above the largest.
    pub(crate) fn per_mille(&self, per_mille: u64) -> u64 {
        assert!(per_mille <= 1000, "{per_mille} per mille");
        let rank = (self.total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_end(index).min(self.max);
            }
        }
        self.max
    }
}

fn bucket(value: u64) -> usize {
    let index = if value < STEPS {
        value
    } else {
        let shift = u64::from(value.ilog2()) - u64::from(STEPS.ilog2());
        (shift + 1) * STEPS + (value >> shift) - STEPS
    };
    usize::try_from(index).expect("fewer than 2000 buckets")
}

fn upper_end(index: usize) -> u64 {
    let index = index as u64;
    if index < STEPS {
        return index;
    }
    let shift = index / STEPS - 1;
    let top = u128::from(STEPS + index % STEPS + 1) << shift;
    u64::try_from(top - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_of_a_known_set() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.per_mille(500), 0);
        (1..=1000).for_each(|value| histogram.record(value));
        assert_eq!((histogram.total(), histogram.max(), histogram.per_mille(1000)), (1000, 1000, 1000));
        assert!((histogram.mean() - 500.5).abs() < 1e-9);
        let median = histogram.per_mille(500);
        assert!((500..=516).contains(&median), "{median}");
    }

    proptest! {
        #[test]
        fn every_value_lies_within_one_part_in_32_of_its_bucket(value: u64) {
            let end = upper_end(bucket(value));
            prop_assert!(end >= value && end - value <= value / STEPS);
            prop_assert!(value == 0 || upper_end(bucket(value - 1)) <= end);
        }
    }
}
