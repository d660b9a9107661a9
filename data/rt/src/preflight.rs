//! What this kernel or container forbids, found out before anything depends on it.
