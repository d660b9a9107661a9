//! Failure domains: what nodes share that may fail as a whole, such as a zone. A label of the nodes names it, and each
//! value of the label is one domain.

use crate::invalid::Invalid;
use std::collections::BTreeMap;

/// The label that names the zone of a node.
pub const ZONE_KEY: &str = "topology.kubernetes.io/zone";
/// The label that names the region of a node.
pub const REGION_KEY: &str = "topology.kubernetes.io/region";
/// The label by which each node is a domain of its own.
const HOSTNAME_KEY: &str = "kubernetes.io/hostname";
/// The most bytes of a label: a DNS subdomain, a slash and a name.
pub const LABEL_KEY_BYTES_MAX: u32 = 253 + 1 + 63;
/// The most bytes of its value.
const LABEL_VALUE_BYTES_MAX: usize = 63;

/// The label by which copies are spread, from what people write: `zone`, `region` or a label. None: nodes alone keep
/// copies apart, for which people may write `node`.
///
/// # Errors
/// It is no label.
pub fn spread_by(text: &str) -> Result<Option<String>, Invalid> {
    Ok(match text {
        "" | "node" | HOSTNAME_KEY => None,
        "zone" => Some(ZONE_KEY.into()),
        "region" => Some(REGION_KEY.into()),
        key => {
            check_label_key("placement", key)?;
            Some(key.into())
        }
    })
}

/// What the domains of a label are called: `zones (topology.kubernetes.io/zone)`.
pub fn domains_text(key: &str) -> String {
    match key {
        ZONE_KEY => format!("zones ({key})"),
        REGION_KEY => format!("regions ({key})"),
        _ => format!("values of the label {key}"),
    }
}

/// Checks the labels of a node.
///
/// # Errors
/// One of them is no label.
pub fn check_labels(object: &str, labels: &BTreeMap<String, String>) -> Result<(), Invalid> {
    labels.iter().try_for_each(|(key, value)| {
        check_label_key(object, key)?;
        if value.len() <= LABEL_VALUE_BYTES_MAX && is_label_name(value) {
            return Ok(());
        }
        let hint = "use 1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends";
        Err(Invalid::new(object, format!("{:?} is no value of a label", shown(value)), hint))
    })
}

/// Checks that it is a label, as Kubernetes wants it: a name, or a DNS subdomain, a slash and a name.
///
/// # Errors
/// It is none.
pub fn check_label_key(object: &str, key: &str) -> Result<(), Invalid> {
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let part = |part: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-')
    };
    let prefixed = prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(part));
    if prefixed && name.len() <= LABEL_VALUE_BYTES_MAX && is_label_name(name) {
        return Ok(());
    }
    let hint = "use one such as topology.kubernetes.io/zone or rack";
    Err(Invalid::new(object, format!("{:?} is no label", shown(key)), hint))
}

fn is_label_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    name.bytes().all(inner) && end(name.bytes().next()) && end(name.bytes().last())
}

/// A hostile name must not fill a screen.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms_are_labels() {
        for (text, key) in [
            ("", None),
            ("node", None),
            ("kubernetes.io/hostname", None),
            ("zone", Some(ZONE_KEY)),
            ("region", Some(REGION_KEY)),
            (ZONE_KEY, Some(ZONE_KEY)),
            ("rack", Some("rack")),
            ("example.com/Power_feed.1", Some("example.com/Power_feed.1")),
        ] {
            assert_eq!(spread_by(text).unwrap().as_deref(), key, "{text}");
        }
    }

    #[test]
    fn what_is_no_label_is_named() {
        let long = "x".repeat(64);
        for bad in ["/", "a/", "/a", "a/b/c", "A.com/a", "-a/b", "a..b/c", "a b", "-a", "a.", "\u{e9}", &long]
        {
            let error = spread_by(bad).unwrap_err().to_string();
            assert!(error.contains("is no label; use one such as"), "{error}");
        }
        assert!(spread_by(&"x y".repeat(1000)).unwrap_err().to_string().len() < 250);
        let labels = |value: &str| BTreeMap::from([("rack".to_owned(), value.to_owned())]);
        assert_eq!(check_labels("node \"n1\"", &labels("r-1.A_b")), Ok(()));
        for bad in ["", "a b", "-a", "a.", &long] {
            let error = check_labels("node \"n1\"", &labels(bad)).unwrap_err().to_string();
            assert!(error.starts_with("node \"n1\": ") && error.contains("no value of a label"), "{error}");
        }
    }
}
