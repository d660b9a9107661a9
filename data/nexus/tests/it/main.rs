//! A nexus and its legs through their public interface, on simulated disks.

mod attach;
mod bed;
mod confirm;
mod copies;
mod forget;
mod hostile;
mod order;
mod unreadable;
