//! Features: the settings of a controller that a host reads and writes.
//!
//! # Spec
//! NVMe Base 2.0, sections 5.17 and 5.27 (Get and Set Features); NVM Command Set 1.0, section 4.1.3.

/// Feature identifiers.
pub mod id {
    /// Arbitration.
    pub const ARBITRATION: u8 = 0x01;
    /// Power management.
    pub const POWER_MANAGEMENT: u8 = 0x02;
    /// Temperature threshold.
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    /// Error recovery.
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Volatile write cache.
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Number of queues.
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Write atomicity normal.
    pub const WRITE_ATOMICITY: u8 = 0x0A;
    /// Asynchronous event configuration.
    pub const ASYNC_EVENT_CONFIG: u8 = 0x0B;
    /// Keep-alive timer.
    pub const KEEP_ALIVE_TIMER: u8 = 0x0F;
    /// Host identifier.
    pub const HOST_IDENTIFIER: u8 = 0x81;
}

/// Set Features, dword 10: keep the value over a reset.
pub const SAVE: u32 = 1 << 31;

/// Bits of the asynchronous event configuration, as also in OAES of Identify Controller.
pub mod event {
    /// A namespace has changed.
    pub const NAMESPACE: u32 = 1 << 8;
    /// The discovery log has changed.
    pub const DISCOVERY: u32 = 1 << 31;
}

/// Dword 0 of the completion of an asynchronous event request: a notice, its kind, the log page that tells more.
pub mod notice {
    /// Namespace attributes changed; log page 04h.
    pub const NAMESPACE: u32 = 0x02 | (0x04 << 16);
    /// Discovery log changed; log page 70h.
    pub const DISCOVERY: u32 = 0x02 | (0xF0 << 8) | (0x70 << 16);
}

/// The value of Number of Queues for `count` (at least 1) I/O queues of each kind: both fields less one.
pub fn number_of_queues(count: u16) -> u32 {
    let less_one = u32::from(count.saturating_sub(1));
    less_one | (less_one << 16)
}

/// How many I/O queues the value of Number of Queues allows: the smaller of its two fields.
pub fn queue_count(value: u32) -> u32 {
    (value & 0xFFFF).min(value >> 16) + 1
}
