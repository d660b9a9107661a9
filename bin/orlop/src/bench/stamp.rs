//! Contents that say where they belong: every block is told from every other, and from those of other runs.

/// One run's stamps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    pub(super) seed: u64,
}

/// Bytes of a word.
const WORD: usize = 8;

impl Stamp {
    /// Fills `bytes`, which begin with block `first`.
    pub(super) fn write(self, bytes: &mut [u8], first: u64, block_len: usize) {
        for (lba, block) in (first..).zip(bytes.chunks_mut(block_len)) {
            for (word, value) in block.chunks_exact_mut(WORD).zip(self.words(lba)) {
                word.copy_from_slice(&value);
            }
        }
    }

    /// The first block that does not hold its stamp.
    pub(super) fn wrong(self, bytes: &[u8], first: u64, block_len: usize) -> Option<u64> {
        let holds = |(lba, block): &(u64, &[u8])| {
            block.chunks_exact(WORD).zip(self.words(*lba)).all(|(word, value)| word == value)
        };
        (first..).zip(bytes.chunks(block_len)).find(|block| !holds(block)).map(|(lba, _)| lba)
    }

    /// Words of block `lba`: no two blocks begin alike, and each goes on with odd steps.
    fn words(self, lba: u64) -> impl Iterator<Item = [u8; WORD]> {
        let mut word = (self.seed ^ lba).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        std::iter::repeat_with(move || {
            word = word.wrapping_add(0xD1B5_4A32_D192_ED03);
            word.to_le_bytes()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_elsewhere_of_another_run_or_torn_is_found() {
        let stamp = Stamp { seed: 7 };
        let mut bytes = vec![0; 4 * 512];
        assert_eq!(stamp.wrong(&bytes, 100, 512), Some(100));
        stamp.write(&mut bytes, 100, 512);
        assert_eq!(stamp.wrong(&bytes, 100, 512), None);
        assert_eq!(stamp.wrong(&bytes, 101, 512), Some(101), "one block further");
        assert_eq!(Stamp { seed: 8 }.wrong(&bytes, 100, 512), Some(100), "another run");
        bytes[3 * 512 - 1] ^= 1;
        assert_eq!(stamp.wrong(&bytes, 100, 512), Some(102), "the last bit of the third block");
    }
}
