//! The leaf devices through their public API, in the simulator.

mod leaves;
