//! Stage `frontend` of the path of a byte.
