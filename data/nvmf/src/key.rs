//! Keys by which hosts and targets know each other: their text form, and what is derived from them.
//!
//! # Invariants
//! 1. A key appears in no log: [`fmt::Debug`] hides it, and only [`Key::reveal`] writes it down.
//!
//! # Spec
//! NVMe Base 2.0, section 8.13.5.8 (transform) and NVMe TP 8006 (the text form `DHHC-1:hh:BASE64:`).

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use crc_fast::CrcAlgorithm;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt;

/// Length of a key, and of every hash and challenge here, in bytes.
pub const KEY_LEN: usize = 32;
const CRC_LEN: usize = 4;
const PREFIX: &str = "DHHC-1:";
/// What is hashed with a name when a key is transformed.
const TRANSFORM: &[u8] = b"NVMe-over-Fabrics";

/// A secret of 256 bits.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    secret: [u8; KEY_LEN],
    /// Whether it is hashed with the name of who uses it (form `01`) or used as it is (form `00`).
    transform: bool,
}

/// Why a text is no key; it never quotes the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// Neither of the two forms.
    Form,
    /// A hash that Orlop does not speak.
    Hash,
    /// The checksum does not hold.
    Checksum,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Form => {
                "is no key; write 32 random bytes in base64 (openssl rand -base64 32), or a key of `nvme gen-dhchap-key --hmac=1`"
            }
            Self::Hash => "is a key for SHA-384 or SHA-512; make one for SHA-256 (nvme gen-dhchap-key --hmac=1)",
            Self::Checksum => "is a damaged key: its checksum does not hold; copy it again",
        })
    }
}

impl std::error::Error for KeyError {}

impl Key {
    /// A key of these bytes.
    pub const fn new(secret: [u8; KEY_LEN]) -> Self {
        Self { secret, transform: true }
    }

    /// Reads the form of NVMe, or 32 bytes in base64.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        let Some(rest) = text.strip_prefix(PREFIX) else {
            let bytes = BASE64_STANDARD.decode(text).map_err(|_| KeyError::Form)?;
            return Ok(Self::new(bytes.try_into().map_err(|_| KeyError::Form)?));
        };
        let (hash, rest) = rest.split_once(':').ok_or(KeyError::Form)?;
        let encoded = rest.strip_suffix(':').ok_or(KeyError::Form)?;
        let transform = match hash {
            "00" => false,
            "01" => true,
            "02" | "03" => return Err(KeyError::Hash),
            _ => return Err(KeyError::Form),
        };
        let bytes = BASE64_STANDARD.decode(encoded).map_err(|_| KeyError::Form)?;
        let (secret, sum) = bytes.split_at_checked(KEY_LEN).ok_or(KeyError::Form)?;
        let secret: [u8; KEY_LEN] = secret.try_into().expect("split there");
        if sum.len() != CRC_LEN {
            return Err(KeyError::Form);
        }
        if checksum(&secret) != sum {
            return Err(KeyError::Checksum);
        }
        Ok(Self { secret, transform })
    }

    /// The form of NVMe, for whoever is to have the key.
    pub fn reveal(&self) -> String {
        let bytes = [&self.secret[..], &checksum(&self.secret)].concat();
        format!("{PREFIX}{:02}:{}:", u8::from(self.transform), BASE64_STANDARD.encode(bytes))
    }

    /// Another key, made from this one for what `parts` say one after the other.
    #[must_use]
    pub fn derive(&self, parts: &[&[u8]]) -> Self {
        Self::new(mac(&self.secret, parts).finalize().into_bytes().into())
    }

    /// The key as `nqn` uses it.
    pub(crate) fn of(&self, nqn: &str) -> [u8; KEY_LEN] {
        if self.transform {
            mac(&self.secret, &[nqn.as_bytes(), TRANSFORM]).finalize().into_bytes().into()
        } else {
            self.secret
        }
    }
}

/// HMAC-SHA-256 of `parts`, one after the other; compared in constant time by its `verify_slice`.
pub(crate) fn mac(key: &[u8; KEY_LEN], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key may have any length");
    for part in parts {
        mac.update(part);
    }
    mac
}

#[expect(clippy::cast_possible_truncation, reason = "a CRC32 computed in a u64")]
fn checksum(secret: &[u8; KEY_LEN]) -> [u8; CRC_LEN] {
    (crc_fast::checksum(CrcAlgorithm::Crc32IsoHdlc, secret) as u32).to_le_bytes()
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)") // 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text_and_is_never_shown_by_accident() {
        let key = Key::new(*b"0123456789abcdef0123456789abcdef");
        assert_eq!(Key::parse(&format!(" {}\n", key.reveal())), Ok(key.clone()));
        assert_eq!(Key::parse(&BASE64_STANDARD.encode(b"0123456789abcdef0123456789abcdef")), Ok(key.clone()));
        let as_it_is = Key { transform: false, ..key.clone() };
        assert!(as_it_is.reveal().starts_with("DHHC-1:00:"));
        assert_eq!(Key::parse(&as_it_is.reveal()), Ok(as_it_is));
        assert_eq!(format!("{key:?}"), "Key(..)");
        assert_ne!(key.derive(&[b"a"]), key.derive(&[b"b"]));
    }

    #[test]
    fn what_is_no_key_says_why() {
        let text = Key::new([7; KEY_LEN]).reveal();
        let damaged = text.replacen("Bw", "Cw", 1);
        for (text, error) in [
            ("", KeyError::Form),
            ("DHHC-1:", KeyError::Form),
            ("DHHC-1:01::", KeyError::Form),
            ("DHHC-1:04:AA==:", KeyError::Form),
            (text.trim_end_matches(':'), KeyError::Form),
            (&text.replace(":01:", ":02:"), KeyError::Hash),
            (&damaged, KeyError::Checksum),
            (&BASE64_STANDARD.encode([1; 31]), KeyError::Form),
        ] {
            assert_eq!(Key::parse(text), Err(error), "{text}");
        }
    }
}
