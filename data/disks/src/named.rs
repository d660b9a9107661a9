//! A disk that a node is told to use: `disk:///dev/vdb?class=SSD`, `file:///path?size=10GiB&class=NVMe`. The URI is the
//! device's, but for `class`, which says what kind of medium that is where the kernel does not know.
//!
//! 1. Only what is said of a disk is taken out of its URI: the device and its pool's reports are the same whether a class
//!    was said or not.

use crate::class::named;
use model::DiskClass;

/// What a medium can be under; others have none.
const SCHEMES: [&str; 2] = ["disk://", "file://"];
const CLASS: &str = "class=";

/// A disk as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The device; nothing but its class was read.
    pub uri: String,
    /// What its operator says of it; wins over what the kernel says.
    pub class: Option<DiskClass>,
}

impl Named {
    /// Takes the class out of a device's URI.
    ///
    /// # Errors
    /// The text, the cause, and what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::read(text).map_err(|cause| format!("disk {text:?}: {cause}"))
    }

    fn read(text: &str) -> Result<Self, String> {
        let unsaid = || Self { uri: text.to_owned(), class: None };
        let Some((device, query)) = text.split_once('?') else { return Ok(unsaid()) };
        let (said, others): (Vec<&str>, Vec<&str>) =
            query.split('&').partition(|item| item.starts_with(CLASS));
        let class = match said[..] {
            [] => return Ok(unsaid()),
            [one] => named(&one[CLASS.len()..])?,
            _ => return Err("its class is said more than once".into()),
        };
        if !SCHEMES.iter().any(|scheme| device.starts_with(scheme)) {
            return Err(format!("only a disk or a file has a class: remove {}", said[0]));
        }
        let separator = if others.is_empty() { "" } else { "?" };
        Ok(Self { uri: format!("{device}{separator}{}", others.join("&")), class: Some(class) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::DeviceUri;
    use proptest::prelude::*;

    #[test]
    fn the_class_is_taken_out() {
        use DiskClass::{Hdd, Nvme, Ssd};
        for (text, uri, class) in [
            ("disk:///dev/vdb", "disk:///dev/vdb", None),
            ("disk:///dev/vdb?class=ssd", "disk:///dev/vdb", Some(Ssd)),
            ("disk:///dev/vdb?block_size=512&class=NVMe", "disk:///dev/vdb?block_size=512", Some(Nvme)),
            ("file:///a?size=2GiB&class=hdd&block_size=512", "file:///a?size=2GiB&block_size=512", Some(Hdd)),
            ("file:///class=ssd?size=2GiB", "file:///class=ssd?size=2GiB", None),
            ("mem://?size=1GiB", "mem://?size=1GiB", None),
            ("no device", "no device", None),
            ("fault://?of=disk:///dev/vdb%3Fclass=ssd", "fault://?of=disk:///dev/vdb%3Fclass=ssd", None),
        ] {
            assert_eq!(Named::parse(text), Ok(Named { uri: uri.into(), class }), "{text}");
        }
    }

    #[test]
    fn refusals_say_what_to_do() {
        for (text, cause) in [
            ("disk:///dev/vdb?class=fast", "\"fast\" is not a class: NVMe, SSD or HDD"),
            ("disk:///dev/vdb?class=", "\"\" is not a class"),
            ("disk:///dev/vdb?class=ssd,hdd", "\"ssd,hdd\" is not a class"),
            ("disk:///dev/vdb?class=ssd&class=ssd", "more than once"),
            ("mem://?size=1GiB&class=ssd", "only a disk or a file has a class: remove class=ssd"),
            ("nvme+tcp://host/nqn.x?class=nvme", "only a disk or a file"),
        ] {
            let message = Named::parse(text).expect_err(text);
            assert!(message.contains(cause) && message.contains(&format!("{text:?}")), "{message}");
        }
    }

    proptest! {
        #[test]
        fn what_is_left_is_the_device(path in "/[a-z/=&%25]{0,20}", others in "(size=1GiB)?", class in 0..3_usize) {
            let class = DiskClass::ALL[class];
            let plain = if others.is_empty() { format!("file://{path}") } else { format!("file://{path}?{others}") };
            let separator = if others.is_empty() { '?' } else { '&' };
            let said = Named::parse(&format!("{plain}{separator}class={class}")).unwrap();
            prop_assert_eq!(&said, &Named { uri: plain.clone(), class: Some(class) });
            prop_assert_eq!(said.uri.parse::<DeviceUri>().ok(), plain.parse::<DeviceUri>().ok());
        }

        #[test]
        fn no_text_panics(text in "(disk|file|mem)://.{0,40}") {
            drop(Named::parse(&text));
        }
    }
}
