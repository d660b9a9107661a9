//! Stage `engine` of the path of a byte.
