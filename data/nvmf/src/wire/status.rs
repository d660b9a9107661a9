//! NVMe status codes, and the one table between them and [`device::Status`].
//!
//! # Spec
//! NVMe Base 2.0, section 3.3.3.2.1 (status field); Fabrics 1.1, section 3.3 (Connect); NVM Command Set 1.0, section 3.1.

use device::Status;
use std::fmt;

/// Status code type and status code, without the bits for retry and phase.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatusCode {
    /// Status code type, 3 bits.
    pub kind: u8,
    /// Status code.
    pub code: u8,
}

macro_rules! status_codes {
    ($($name:ident = $kind:literal, $code:literal, $text:literal;)*) => {
        impl StatusCode {
            $(#[doc = $text]
            pub const $name: Self = Self { kind: $kind, code: $code };)*
        }
        impl fmt::Display for StatusCode {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text = match (self.kind, self.code) {
                    $(($kind, $code) => $text,)*
                    _ => "another status",
                };
                write!(f, "{text} (type {}h, code {:02X}h)", self.kind, self.code)
            }
        }
    };
}

status_codes! {
    SUCCESS = 0, 0x00, "success";
    INVALID_OPCODE = 0, 0x01, "invalid command opcode";
    INVALID_FIELD = 0, 0x02, "invalid field in command";
    COMMAND_ID_CONFLICT = 0, 0x03, "command identifier conflict";
    DATA_TRANSFER_ERROR = 0, 0x04, "data transfer error";
    INTERNAL_ERROR = 0, 0x06, "internal error";
    ABORT_REQUESTED = 0, 0x07, "command abort requested";
    SQ_DELETED = 0, 0x08, "command aborted due to submission queue deletion";
    INVALID_NAMESPACE = 0, 0x0B, "invalid namespace or format";
    SEQUENCE_ERROR = 0, 0x0C, "command sequence error";
    SGL_LENGTH_INVALID = 0, 0x0F, "data SGL length invalid";
    SGL_TYPE_INVALID = 0, 0x11, "SGL descriptor type invalid";
    SGL_OFFSET_INVALID = 0, 0x16, "SGL offset invalid";
    KEEP_ALIVE_INVALID = 0, 0x19, "keep alive timeout invalid";
    TRANSIENT_TRANSPORT_ERROR = 0, 0x22, "transient transport error";
    LBA_OUT_OF_RANGE = 0, 0x80, "LBA out of range";
    CAPACITY_EXCEEDED = 0, 0x81, "capacity exceeded";
    NAMESPACE_NOT_READY = 0, 0x82, "namespace not ready";
    RESERVATION_CONFLICT = 0, 0x83, "reservation conflict";
    INVALID_QUEUE_ID = 1, 0x01, "invalid queue identifier";
    ASYNC_LIMIT_EXCEEDED = 1, 0x05, "asynchronous event request limit exceeded";
    INVALID_LOG_PAGE = 1, 0x09, "invalid log page";
    FEATURE_NOT_SAVEABLE = 1, 0x0D, "feature identifier not saveable";
    FEATURE_NOT_CHANGEABLE = 1, 0x0E, "feature not changeable";
    CONNECT_INCOMPATIBLE_FORMAT = 1, 0x80, "connect incompatible format";
    CONNECT_CONTROLLER_BUSY = 1, 0x81, "connect controller busy";
    CONNECT_INVALID_PARAMETERS = 1, 0x82, "connect invalid parameters";
    CONNECT_RESTART_DISCOVERY = 1, 0x83, "connect restart discovery";
    CONNECT_INVALID_HOST = 1, 0x84, "connect invalid host";
    AUTHENTICATION_REQUIRED = 1, 0x91, "authentication required";
    WRITE_FAULT = 2, 0x80, "write fault";
    UNRECOVERED_READ_ERROR = 2, 0x81, "unrecovered read error";
    GUARD_CHECK_ERROR = 2, 0x82, "end-to-end guard check error";
    COMPARE_FAILURE = 2, 0x85, "compare failure";
    INTERNAL_PATH_ERROR = 3, 0x00, "internal path error";
    ORLOP_TIMED_OUT = 7, 0xC1, "Orlop: the device did not answer in time";
    ORLOP_GAP = 7, 0xC2, "Orlop: completed but unflushed data may be lost";
}

impl fmt::Debug for StatusCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StatusCode {
    /// The status field of a completion: phase in bit 0, code, type, "do not retry" in bit 15.
    pub const fn field(self, do_not_retry: bool) -> u16 {
        ((self.code as u16) << 1) | ((self.kind as u16 & 7) << 9) | ((do_not_retry as u16) << 15)
    }

    /// From the status field of a completion.
    pub const fn from_field(field: u16) -> Self {
        Self { kind: ((field >> 9) & 7) as u8, code: ((field >> 1) & 0xff) as u8 }
    }

    /// Whether a host that repeats the same command would only fail again.
    pub const fn is_permanent(self) -> bool {
        matches!(
            self,
            Self::INVALID_OPCODE
                | Self::INVALID_FIELD
                | Self::INVALID_NAMESPACE
                | Self::SGL_LENGTH_INVALID
                | Self::SGL_TYPE_INVALID
                | Self::SGL_OFFSET_INVALID
                | Self::KEEP_ALIVE_INVALID
                | Self::LBA_OUT_OF_RANGE
                | Self::CAPACITY_EXCEEDED
                | Self::RESERVATION_CONFLICT
                | Self::INVALID_QUEUE_ID
                | Self::ASYNC_LIMIT_EXCEEDED
                | Self::INVALID_LOG_PAGE
                | Self::FEATURE_NOT_SAVEABLE
                | Self::FEATURE_NOT_CHANGEABLE
                | Self::CONNECT_INCOMPATIBLE_FORMAT
                | Self::CONNECT_INVALID_PARAMETERS
                | Self::CONNECT_INVALID_HOST
                | Self::AUTHENTICATION_REQUIRED
                | Self::WRITE_FAULT
                | Self::UNRECOVERED_READ_ERROR
                | Self::GUARD_CHECK_ERROR
                | Self::COMPARE_FAILURE
                | Self::ORLOP_GAP
        )
    }
}

/// What a target answers for the failure of its device.
impl From<Status> for StatusCode {
    fn from(status: Status) -> Self {
        match status {
            Status::OutOfRange => Self::LBA_OUT_OF_RANGE,
            Status::Invalid => Self::INVALID_FIELD,
            Status::NoSpace => Self::CAPACITY_EXCEEDED,
            Status::MediaRead => Self::UNRECOVERED_READ_ERROR,
            Status::MediaWrite => Self::WRITE_FAULT,
            Status::Corrupt => Self::GUARD_CHECK_ERROR,
            Status::Fenced => Self::RESERVATION_CONFLICT,
            Status::Gone => Self::INTERNAL_PATH_ERROR,
            Status::TimedOut => Self::ORLOP_TIMED_OUT,
            Status::Aborted => Self::ABORT_REQUESTED,
            Status::Gap => Self::ORLOP_GAP,
            Status::Internal => Self::INTERNAL_ERROR,
        }
    }
}

/// What an initiator makes of the answer of any target; what it does not know is `Internal`, which is ambiguous.
impl From<StatusCode> for Status {
    fn from(code: StatusCode) -> Self {
        match code {
            StatusCode::LBA_OUT_OF_RANGE => Self::OutOfRange,
            StatusCode::INVALID_OPCODE
            | StatusCode::INVALID_FIELD
            | StatusCode::INVALID_NAMESPACE
            | StatusCode::SGL_LENGTH_INVALID
            | StatusCode::SGL_TYPE_INVALID
            | StatusCode::SGL_OFFSET_INVALID => Self::Invalid,
            StatusCode::CAPACITY_EXCEEDED => Self::NoSpace,
            StatusCode::UNRECOVERED_READ_ERROR => Self::MediaRead,
            StatusCode::WRITE_FAULT => Self::MediaWrite,
            StatusCode::GUARD_CHECK_ERROR => Self::Corrupt,
            StatusCode::RESERVATION_CONFLICT => Self::Fenced,
            StatusCode::ORLOP_TIMED_OUT => Self::TimedOut,
            // No abort is ever asked for here, so only a peer of ours says this, and means "before it started".
            StatusCode::ABORT_REQUESTED => Self::Aborted,
            StatusCode::ORLOP_GAP => Self::Gap,
            // Any path-related status: the command may or may not have been executed.
            StatusCode::SQ_DELETED | StatusCode { kind: 3, .. } => Self::Gone,
            _ => Self::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Status; 12] = [
        Status::OutOfRange,
        Status::Invalid,
        Status::NoSpace,
        Status::MediaRead,
        Status::MediaWrite,
        Status::Corrupt,
        Status::Fenced,
        Status::Gone,
        Status::TimedOut,
        Status::Aborted,
        Status::Gap,
        Status::Internal,
    ];

    #[test]
    fn every_status_survives_the_wire() {
        for status in ALL {
            let code = StatusCode::from(status);
            for do_not_retry in [false, true] {
                let field = code.field(do_not_retry);
                assert_eq!(field & 1, 0, "the phase bit belongs to queues in memory");
                assert_eq!(field >> 15 == 1, do_not_retry);
                assert_eq!(Status::from(StatusCode::from_field(field)), status);
            }
        }
    }

    #[test]
    fn unknown_codes_are_ambiguous() {
        for code in 0..=u8::MAX {
            let status = Status::from(StatusCode { kind: 5, code });
            assert!(status.is_ambiguous(), "{status:?}");
        }
    }
}
