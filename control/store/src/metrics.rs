//! How often the store is asked, how long it takes, and how it fails.

use crate::{ErrorKind, Result};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    operation: &'static str,
    kind: &'static str,
}

/// The metrics of one process's use of the store.
#[derive(Clone, Debug)]
pub struct Metrics {
    seconds: Family<Operation, Histogram>,
    errors: Family<Failure, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        // From a cached read to a disk that is busy with other people's flushes.
        let buckets = || Histogram::new([0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0]);
        Self { seconds: Family::new_with_constructor(buckets), errors: Family::default() }
    }
}

impl Metrics {
    /// Makes them part of what a process exports.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "orlop_store_operation",
            "How long operations on the store take",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register(
            "orlop_store_errors",
            "Operations on the store that failed, by what the caller had to do",
            self.errors.clone(),
        );
    }

    pub(crate) fn record<T>(&self, operation: &'static str, took: Duration, result: &Result<T>) {
        self.seconds.get_or_create(&Operation { operation }).observe(took.as_secs_f64());
        if let Err(error) = result {
            let kind = ErrorKind::as_str(error.kind());
            self.errors.get_or_create(&Failure { operation, kind }).inc();
        }
    }
}
