//! Device URIs.
