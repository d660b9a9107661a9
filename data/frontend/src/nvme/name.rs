//! What a device is called: by which its target knows it, and a guard finds it.

use uuid::Uuid;

const SUBSYSTEM: &str = "nqn.2026-11.io.orlop:device:";
const HOST: &str = "nqn.2026-11.io.orlop:node:";

/// One attachment of a volume as a device; never used a second time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Who made it; what carries it is found again.
    pub run_id: String,
    /// The node: those of one run may share a kernel, and what another one has is not ours to end.
    pub node: String,
    /// The volume.
    pub volume: Uuid,
    /// The attachment: the host's identifier, and that of the namespace.
    pub id: Uuid,
}

impl Name {
    /// What the subsystem is called.
    pub fn subnqn(&self) -> String {
        format!("{SUBSYSTEM}{}:{}", self.volume, self.id)
    }

    /// What the host is called. The kernel wants one name for each identifier, so it has the identifier in it.
    pub fn hostnqn(&self) -> String {
        format!("{HOST}{}:{}:{}", self.node, self.run_id, self.id)
    }

    /// The volume and the attachment of a subsystem, if that is a device.
    pub fn of_subnqn(nqn: &str) -> Option<(Uuid, Uuid)> {
        let (volume, id) = nqn.strip_prefix(SUBSYSTEM)?.split_once(':')?;
        Some((volume.parse().ok()?, id.parse().ok()?))
    }

    /// Reads both back; `None` for everything that is not ours.
    pub(crate) fn read(subnqn: &str, hostnqn: &str) -> Option<Self> {
        let (volume, id) = Self::of_subnqn(subnqn)?;
        let (node, rest) = hostnqn.strip_prefix(HOST)?.split_once(':')?;
        let (run_id, host) = rest.split_once(':')?;
        let is_one = !node.is_empty() && !run_id.is_empty() && host.parse() == Ok(id);
        is_one.then(|| Self { run_id: run_id.to_owned(), node: node.to_owned(), volume, id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_strangers_are_not_ours() {
        let (run_id, node) = ("dev-1".into(), "n1".into());
        let name = Name { run_id, node, volume: Uuid::from_u128(7), id: Uuid::from_u128(9) };
        let (subnqn, hostnqn) = (name.subnqn(), name.hostnqn());
        assert_eq!(Name::read(&subnqn, &hostnqn), Some(name.clone()));
        assert_eq!(Name::of_subnqn(&subnqn), Some((name.volume, name.id)));
        let other = Name { id: Uuid::from_u128(8), ..name };
        for (subnqn, hostnqn) in [
            ("nqn.2026-11.io.orlop:volume:data", hostnqn.as_str()),
            (&subnqn, "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000009"),
            (&subnqn, &other.hostnqn()),
            (&other.subnqn(), &hostnqn),
            (&subnqn, "nqn.2026-11.io.orlop:node:n1::00000000-0000-0000-0000-000000000009"),
            ("", ""),
        ] {
            assert_eq!(Name::read(subnqn, hostnqn), None, "{subnqn} {hostnqn}");
        }
    }
}
