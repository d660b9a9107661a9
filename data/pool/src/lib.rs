//! Stage `pool` of the path of a byte.
