//! Which free disks become pools: `select://?class=NVMe&min_size=100GiB&model=Samsung*`, the same on nodes whose disks
//! differ.
//!
//! 1. A selector is about what a disk is, never about what it carries: only a disk that is `Available` is made a pool.
//! 2. A pool of this cluster and node is used whatever the selectors say: they decide what is formatted, and nothing is
//!    lost because somebody has changed one.
//! 3. The same disks and selectors make the same claims, in the order of the disks' names.

use crate::class::named;
use device::ByteCount;
use device::uri::Params;
use glob::Pattern;
use model::{Disk, DiskClass, DiskState};
use std::fmt;
use uuid::Uuid;

/// How a selector begins.
const SCHEME: &str = "select://";
const EXAMPLE: &str = "write one such as select://?class=NVMe&min_size=100GiB; the conditions are class, model, name, \
                       min_size and max_size";

/// Conditions that a disk has to meet, all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    text: String,
    /// Any of these; all classes if there is none.
    classes: Vec<DiskClass>,
    model: Option<Pattern>,
    name: Option<Pattern>,
    min_size: Option<ByteCount>,
    max_size: Option<ByteCount>,
}

/// What is to be done with one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The disk's name in the cluster.
    pub disk: String,
    /// Its path on this node.
    pub device: String,
    /// The pool that it is; none for a blank disk that is to become one.
    pub pool: Option<Uuid>,
}

impl Selector {
    /// Whether the text is meant as a selector, well formed or not.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Reads a selector.
    ///
    /// # Errors
    /// The text, the cause, and what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::read(text).map_err(|cause| format!("disk selector {text:?}: {cause}"))
    }

    fn read(text: &str) -> Result<Self, String> {
        let query = text.strip_prefix(SCHEME).and_then(|rest| rest.strip_prefix('?'));
        // A selector without conditions would take every disk: whoever means that says `name=*`.
        let query =
            query.filter(|query| !query.is_empty()).ok_or_else(|| format!("it says nothing: {EXAMPLE}"))?;
        let mut params = Params::read(query)?;
        let classes = params.text("class")?.map(|list| list.split(',').map(named).collect()).transpose()?;
        let selector = Self {
            text: text.to_owned(),
            classes: classes.unwrap_or_default(),
            model: params.text("model")?.map(|glob| pattern("model", &glob)).transpose()?,
            name: params.text("name")?.map(|glob| pattern("name", &glob)).transpose()?,
            min_size: params.bytes("min_size")?,
            max_size: params.bytes("max_size")?,
        };
        params.end().map_err(|cause| format!("{cause}; {EXAMPLE}"))?;
        match (selector.min_size, selector.max_size) {
            (Some(min), Some(max)) if min > max => Err(format!("min_size {min} is above max_size {max}")),
            _ => Ok(selector),
        }
    }

    /// Why the disk does not meet the conditions; none if it does.
    pub fn misfit(&self, disk: &Disk) -> Option<String> {
        let (size, model) = (ByteCount(disk.size_bytes), disk.model.as_deref().unwrap_or_default());
        if !self.classes.is_empty() && !self.classes.contains(&disk.class) {
            let wanted: Vec<String> = self.classes.iter().map(ToString::to_string).collect();
            return Some(format!("its class is {} and not {}", disk.class, wanted.join(" or ")));
        }
        if let Some(min) = self.min_size.filter(|min| size < *min) {
            return Some(format!("it has {size}, less than {min}"));
        }
        if let Some(max) = self.max_size.filter(|max| size > *max) {
            return Some(format!("it has {size}, more than {max}"));
        }
        for (what, glob, value) in [("model", &self.model, model), ("name", &self.name, disk.name.as_str())] {
            if let Some(glob) = glob.as_ref().filter(|glob| !glob.matches(value)) {
                return Some(format!("its {what} is {value:?} and not {glob}"));
            }
        }
        None
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn pattern(what: &str, glob: &str) -> Result<Pattern, String> {
    Pattern::new(glob).map_err(|error| format!("{what}={glob} is not a pattern: {error}"))
}

/// What is to be done with these disks of one node, as they were settled in the cluster; a free disk that none of the
/// selectors takes is told why not.
pub fn claims(selectors: &[Selector], disks: &mut [Disk]) -> Vec<Claim> {
    if selectors.is_empty() {
        return Vec::new();
    }
    let mut claims: Vec<Claim> = disks.iter_mut().filter_map(|disk| claim(selectors, disk)).collect();
    claims.sort_by(|a, b| a.disk.cmp(&b.disk));
    claims
}

fn claim(selectors: &[Selector], disk: &mut Disk) -> Option<Claim> {
    let pool = match disk.state {
        DiskState::Pool => disk.pool,
        DiskState::Available => {
            let misfits: Option<Vec<String>> =
                selectors.iter().map(|selector| selector.misfit(disk)).collect();
            if let Some(mut misfits) = misfits {
                misfits.dedup();
                disk.message = Some(format!("no selector of its node takes it: {}", misfits.join("; ")));
                return None;
            }
            None
        }
        DiskState::InUse | DiskState::Missing => return None,
    };
    Some(Claim { disk: disk.name.clone(), device: disk.device.clone(), pool })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn disk(name: &str) -> Disk {
        Disk {
            name: name.into(),
            node: "n1".into(),
            device: format!("/dev/{name}"),
            by_id: None,
            parent: None,
            state: DiskState::Available,
            pool: None,
            class: DiskClass::Nvme,
            model: Some("Samsung SSD 980 PRO".into()),
            serial: None,
            size_bytes: 100 * GIB,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            partitions: Vec::new(),
            signatures: Vec::new(),
            message: None,
        }
    }

    #[test]
    fn every_condition_has_to_be_met() {
        for text in [
            "class=nvme",
            "class=HDD,NVMe",
            "min_size=100GiB",
            "max_size=100GiB",
            "model=Samsung%20*",
            "name=*",
        ] {
            let selector = Selector::parse(&format!("select://?{text}")).unwrap();
            assert_eq!(selector.misfit(&disk("a")), None, "{text}");
        }
        for (text, why) in [
            ("class=SSD,HDD", "its class is NVMe and not SSD or HDD"),
            ("min_size=101GiB", "it has 100 GiB, less than 101 GiB"),
            ("max_size=1GiB", "it has 100 GiB, more than 1 GiB"),
            ("model=Intel*", "its model is \"Samsung SSD 980 PRO\" and not Intel*"),
            ("class=NVMe&name=wwn-*", "its name is \"a\" and not wwn-*"),
        ] {
            let selector = Selector::parse(&format!("select://?{text}")).unwrap();
            assert_eq!(selector.misfit(&disk("a")).as_deref(), Some(why), "{text}");
        }
    }

    #[test]
    fn what_nobody_can_mean_is_refused() {
        for text in [
            "select://",
            "select://?",
            "select://?class=NVME2",
            "select://?class=",
            "select://?size=1GiB",
            "select://?min_size=2GiB&max_size=1GiB",
            "select://?model=[",
            "select://?name=a&name=b",
            "select:///dev/sda",
            "select://?min_size=x",
            "select://?model=%",
        ] {
            let error = Selector::parse(text).unwrap_err();
            assert!(error.starts_with(&format!("disk selector {text:?}: ")), "{error}");
        }
    }

    #[test]
    fn only_free_disks_that_match_and_pools_of_this_node_are_claimed() {
        let pool = Uuid::from_u128(7);
        let mut disks = [disk("d"), disk("c"), disk("b"), disk("a"), disk("e")];
        disks[1].class = DiskClass::Hdd;
        disks[2].state = DiskState::InUse;
        (disks[3].state, disks[3].pool, disks[3].class) = (DiskState::Pool, Some(pool), DiskClass::Hdd);
        disks[4].state = DiskState::Missing;
        let before = disks.clone();
        assert!(
            claims(&[], &mut disks).is_empty() && disks == before,
            "without selectors nothing is claimed"
        );
        let selectors = [Selector::parse("select://?class=NVMe").unwrap()];
        let claimed = claims(&selectors, &mut disks);
        let names: Vec<_> = claimed.iter().map(|claim| (claim.disk.as_str(), claim.pool)).collect();
        assert_eq!(names, [("a", Some(pool)), ("d", None)]);
        let said = disks[1].message.take();
        assert_eq!(said.as_deref(), Some("no selector of its node takes it: its class is HDD and not NVMe"));
        assert_eq!(disks, before, "and nothing else is said");
        assert_eq!(claims(&selectors, &mut disks), claimed, "the same again");
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_or_refused(text in "(select://\\?)?[a-z_]{0,8}=?(?s).{0,40}") {
            if let Ok(selector) = Selector::parse(&text) {
                prop_assert_eq!(selector.to_string(), text);
                selector.misfit(&disk("a"));
            }
        }
    }
}
