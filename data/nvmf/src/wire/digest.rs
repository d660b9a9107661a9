//! Header and data digests: CRC32C, little-endian after what they cover.
//!
//! # Spec
//! NVMe/TCP Transport 1.0, section 3.3.1.1 (PDU header digest and data digest).

use crc_fast::{CrcAlgorithm, Digest};

/// Length of a digest on the wire, in bytes.
pub const DIGEST_LEN: usize = 4;

/// The digest of `bytes`.
#[expect(clippy::cast_possible_truncation, reason = "a CRC32 computed in a u64")]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// The digest of several pieces, one after the other.
#[expect(clippy::cast_possible_truncation, reason = "a CRC32 computed in a u64")]
pub fn crc32c_of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for piece in pieces {
        digest.update(piece);
    }
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_vectors() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c_of([&b"1234"[..], b"56789"]), 0xe306_9283);
    }
}
