//! Stage `device` of the path of a byte.
