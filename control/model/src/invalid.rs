//! What is wrong with an object: names the object, the cause and what to do, in one line.

use std::fmt;
use uuid::Uuid;

/// An object that is not well formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The object, as in `volume "data"`.
    pub object: String,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub hint: String,
}

impl Invalid {
    /// `object` is wrong because of `cause`; `hint` says what to do.
    pub fn new(object: impl Into<String>, cause: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { object: object.into(), cause: cause.into(), hint: hint.into() }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.object, self.cause, self.hint)
    }
}

impl std::error::Error for Invalid {}

/// Checks that `name` is a DNS label (RFC 1123, section 2.1), as Kubernetes wants of names.
pub(crate) fn check_name(noun: &str, name: &str) -> Result<(), Invalid> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let bytes = name.as_bytes();
    let well_formed = (1..=63).contains(&bytes.len())
        && bytes.iter().copied().all(inner)
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-');
    if well_formed {
        return Ok(());
    }
    // A hostile name must not fill a log line.
    let shown: String = name.chars().take(80).collect();
    Err(Invalid::new(
        format!("{noun} {shown:?}"),
        "not a valid name",
        "use 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
    ))
}

/// Checks the name of a node, which Kubernetes may have given: DNS labels with dots between them. It becomes the value of
/// a label, which has no more than 63 characters.
pub(crate) fn check_node_name(name: &str) -> Result<(), Invalid> {
    if name.len() <= 63 && name.split('.').all(|label| check_name("node", label).is_ok()) {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    Err(Invalid::new(
        format!("node {shown:?}"),
        "not a valid name",
        "use 1 to 63 of a-z, 0-9, '-' and '.', with a letter or digit at both ends of each part between dots",
    ))
}

/// Checks that `uuid` is not nil: a nil UUID is a forgotten one.
pub(crate) fn check_uuid(object: &str, field: &str, uuid: Uuid) -> Result<(), Invalid> {
    if uuid.is_nil() {
        return Err(Invalid::new(object, format!("{field} is the nil UUID"), "give it a random one"));
    }
    Ok(())
}

/// A number of bytes as people read it: the largest binary unit that is exact, else one decimal.
#[derive(Clone, Copy, Debug)]
pub struct SizeText(
    /// The number of bytes.
    pub u64,
);

impl fmt::Display for SizeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let mut unit_bytes = 1_u64;
        let mut unit = "B";
        for larger in UNITS {
            if self.0 / 1024 < unit_bytes {
                break;
            }
            unit_bytes *= 1024;
            unit = larger;
        }
        let whole = self.0 / unit_bytes;
        let tenths = u128::from(self.0 % unit_bytes) * 10 / u128::from(unit_bytes);
        if tenths == 0 { write!(f, "{whole} {unit}") } else { write!(f, "{whole}.{tenths} {unit}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "pvc-7", "0x", &"a".repeat(63)] {
            assert_eq!(check_name("volume", good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a b", "\u{e9}", &"a".repeat(64)] {
            assert!(check_name("volume", bad).is_err(), "{bad}");
        }
        let long = check_name("volume", &"x y".repeat(1000)).unwrap_err().to_string();
        assert!(long.len() < 250, "{long}");
    }

    #[test]
    fn names_of_nodes_may_have_dots() {
        for good in ["n1", "ip-10-0-0-1.ec2.internal", "a.b", &"a".repeat(63)] {
            assert_eq!(check_node_name(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a.-b", "A.b", "a/b", &format!("{}.a", "a".repeat(62))] {
            assert!(check_node_name(bad).is_err(), "{bad}");
        }
        assert!(check_node_name(&"x y".repeat(1000)).unwrap_err().to_string().len() < 300);
    }

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1 << 30, "1 GiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(SizeText(bytes).to_string(), text);
        }
    }
}
