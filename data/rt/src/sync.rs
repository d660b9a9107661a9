//! Waiting between tasks of one reactor: no atomics, no locks, first come first served.
