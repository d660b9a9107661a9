//! The wire formats of NVMe and NVMe/TCP, as pure bytes: no I/O, no allocation beyond what is returned.
//!
//! On the path of a byte they lie between a connection's socket and the target's or the initiator's commands.
//! Every structure is a `zerocopy` type with its size checked at compile time; integers are little-endian. What arrives
//! is parsed by [`frame`] before anything is believed or allocated.

pub mod auth;
pub mod command;
pub mod digest;
pub mod fabrics;
pub mod feature;
pub mod frame;
pub mod identify;
pub mod log;
pub mod pdu;
pub mod status;

/// Defines a wire structure and checks its size when the crate is compiled.
macro_rules! wire_struct {
    ($(#[$meta:meta])* $vis:vis struct $name:ident [$size:expr] { $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout, zerocopy::Immutable, zerocopy::Unaligned)]
        #[repr(C)]
        $vis struct $name { $($(#[$field_meta])* $field_vis $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}
pub(crate) use wire_struct;

/// Copies `text` into a field padded with `pad`; what does not fit is cut off.
pub(crate) fn text_field<const N: usize>(text: &str, pad: u8) -> [u8; N] {
    let mut field = [pad; N];
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    field
}

/// Reads a field that ends at the first zero byte, or at its end; `None` if it is not UTF-8.
pub(crate) fn field_text(field: &[u8]) -> Option<&str> {
    let len = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..len]).ok()
}
