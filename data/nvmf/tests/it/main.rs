//! The public interface of `nvmf`: formats against the kernel's own bytes, target and initiator over simulated networks.

mod auth;
mod golden;
mod hostile_host;
mod hostile_target;
mod life;
mod loopback;
mod raw;
mod replay;
mod support;
mod talk;
mod wire;
