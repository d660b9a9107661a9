//! A real Kubernetes on one machine: its programs, built from Go sources into the cache.

pub(crate) mod programs;
