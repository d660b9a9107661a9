//! The checksum of tables, and how to keep it.

/// CRC32 as UEFI means it: the one of Ethernet.
#[expect(clippy::cast_possible_truncation, reason = "a CRC32 computed in a u64")]
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, bytes) as u32
}

/// Chooses the four bytes at `at` so that the checksum of `bytes` is `wanted`.
///
/// Each bit of them flips the same bits of the checksum whatever the others are, and no two choices give the same
/// checksum: 32 linear equations with one solution.
pub(super) fn keep(bytes: &mut [u8], at: usize, wanted: u32) {
    let mut put = |bits: u32| {
        bytes[at..at + 4].copy_from_slice(&bits.to_le_bytes());
        crc32(bytes)
    };
    let without = put(0);
    let mut effects: Vec<(u32, u32)> =
        (0..u32::BITS).map(|bit| (put(1 << bit) ^ without, 1 << bit)).collect();
    let (mut needed, mut chosen) = (without ^ wanted, 0);
    for flipped in (0..u32::BITS).map(|bit| 1_u32 << bit) {
        let found = effects.iter().position(|(effect, _)| effect & flipped != 0);
        let (effect, bits) = effects.swap_remove(found.expect("a CRC tells all errors of 32 bits apart"));
        for other in effects.iter_mut().filter(|(effect, _)| effect & flipped != 0) {
            *other = (other.0 ^ effect, other.1 ^ bits);
        }
        if needed & flipped != 0 {
            (needed, chosen) = (needed ^ effect, chosen ^ bits);
        }
    }
    let kept = put(chosen);
    assert_eq!(kept, wanted, "the equations were solved");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_checksum_is_that_of_ethernet() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    proptest! {
        #[test]
        fn any_checksum_can_be_kept(
            mut bytes in proptest::collection::vec(any::<u8>(), 4..600),
            place in any::<prop::sample::Index>(),
            wanted in any::<u32>(),
        ) {
            let before = bytes.clone();
            let at = place.index(bytes.len() - 3);
            keep(&mut bytes, at, wanted);
            prop_assert_eq!(crc32(&bytes), wanted);
            prop_assert_eq!(&bytes[..at], &before[..at]);
            prop_assert_eq!(&bytes[at + 4..], &before[at + 4..]);
        }
    }
}
