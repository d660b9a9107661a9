//! Names: what an orchestrator calls a volume, and what Orlop calls it. The latter is also the volume's id.
//!
//! 1. The same name gives the same id, always.
//! 2. Two names give two ids: a name that could be an id of the second kind is made into one, too.

use sha2::{Digest, Sha256};

/// In front of the ids of names that cannot be names in Orlop.
const PREFIX: &str = "csi-";
/// Half of a SHA-256, in hexadecimal digits.
const DIGITS: usize = 32;

/// The id of the volume of this name: the name itself where that is a DNS label, else a hash of it.
pub(crate) fn of_name(name: &str) -> String {
    if is_label(name) && !is_hashed(name) {
        return name.to_owned();
    }
    let hash = Sha256::digest(name.as_bytes());
    let half = hash.first_chunk().expect("a SHA-256 has 32 bytes");
    format!("{PREFIX}{:0DIGITS$x}", u128::from_be_bytes(*half))
}

/// RFC 1123, section 2.1: what the API takes as a name.
fn is_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn is_hashed(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|rest| {
        rest.len() == DIGITS && rest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn labels_stay_and_all_else_is_hashed() {
        assert_eq!(of_name("pvc-0b7c"), "pvc-0b7c");
        assert_eq!(of_name("CSI volume"), "csi-ad744f5a13e1435b8c11be9f1a3a4de6");
        let hashed = of_name("x y");
        assert_ne!(of_name(&hashed), hashed, "an id of this kind is not also a name");
    }

    proptest! {
        #[test]
        fn ids_are_names_that_orlop_takes(name in ".{0,200}", other in ".{0,200}") {
            let id = of_name(&name);
            prop_assert!(is_label(&id), "{id}");
            prop_assert_eq!(&id, &of_name(&name));
            prop_assert_eq!(id == of_name(&other), name == other);
        }
    }
}
