//! Who may ask. kube-scheduler proves nothing unless the operator makes certificates, so it is known by where it asks from.
//!
//! 1. Who asks from elsewhere gets no byte, and takes the place of nobody who may.

use std::{collections::HashSet, net::IpAddr, str::FromStr};

/// Strangers that are named in the log; the others are no less refused.
const NAMED_MAX: usize = 16;

/// A range of addresses, such as 10.0.0.0/8; an address alone is one, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    /// How many of the bits behind it are any.
    free_bits: u32,
}

impl Cidr {
    fn contains(self, address: IpAddr) -> bool {
        let differing = match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => u128::from(ours.to_bits() ^ theirs.to_bits()),
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => ours.to_bits() ^ theirs.to_bits(),
            _ => return false,
        };
        differing.checked_shr(self.free_bits).unwrap_or(0) == 0
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("{text:?} is no range of addresses; write 10.0.0.0/8, or an address");
        let (address, length) = text.split_once('/').map_or((text, None), |(ip, length)| (ip, Some(length)));
        let address: IpAddr = address.parse().map_err(|_| refused())?;
        let bits: u32 = if address.is_ipv4() { 32 } else { 128 };
        let length = length.map_or(Ok(bits), |length| length.parse().map_err(|_| refused()))?;
        let free_bits = bits.checked_sub(length).ok_or_else(refused)?;
        Ok(Self { address, free_bits })
    }
}

/// Those who may ask.
#[derive(Debug)]
pub(super) struct Askers {
    from: Vec<Cidr>,
    named: HashSet<IpAddr>,
}

impl Askers {
    pub(super) fn new(from: Vec<Cidr>) -> Self {
        Self { from, named: HashSet::new() }
    }

    /// Whether who connects from there may ask. A stranger is named once: it may be the scheduler, by an address that
    /// nobody has thought of.
    pub(super) fn admit(&mut self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if self.from.iter().any(|range| range.contains(address)) {
            return true;
        }
        if self.named.len() < NAMED_MAX && self.named.insert(address) {
            tracing::warn!(
                %address,
                "refused as a scheduler: if it is kube-scheduler's, add it to extender.from (--extender-from)"
            );
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(from: &[&str], address: &str) -> bool {
        let from = from.iter().map(|range| range.parse().unwrap()).collect();
        Askers::new(from).admit(address.parse().unwrap())
    }

    #[test]
    fn ranges_hold_what_they_say() {
        assert!(!may(&[], "10.0.0.1") && !may(&[], "::1"), "nobody is named");
        assert!(may(&["10.0.0.1"], "10.0.0.1") && !may(&["10.0.0.1"], "10.0.0.2"));
        assert!(may(&["10.1.2.3/12"], "10.15.255.255") && !may(&["10.1.2.3/12"], "10.16.0.0"));
        assert!(may(&["0.0.0.0/0"], "255.1.2.3") && !may(&["0.0.0.0/0"], "fd00::1"));
        assert!(may(&["192.168.0.0/24", "fd00::/8"], "fdff::1") && !may(&["fd00::/8"], "fe00::1"));
        assert!(may(&["::/0"], "fe80::1") && !may(&["::/0"], "10.0.0.1"));
        assert!(may(&["fd00::1"], "fd00::1") && !may(&["fd00::1"], "fd00::2"));
        // As a socket of both families tells it.
        assert!(may(&["10.0.0.0/8"], "::ffff:10.0.0.1") && !may(&["10.0.0.0/8"], "::ffff:11.0.0.1"));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for bad in
            ["", "/", "10.0.0.1/", "10.0.0.1/33", "10.0.0.0/-1", "10.0.0/8", "::1/129", "all", "1.2.3.4/8/8"]
        {
            assert!(bad.parse::<Cidr>().unwrap_err().contains(&format!("{bad:?}")), "{bad}");
        }
    }

    #[test]
    fn strangers_fill_no_memory() {
        let mut askers = Askers::new(vec!["10.0.0.1".parse().unwrap()]);
        for last in 0..=255 {
            assert!(!askers.admit(IpAddr::from([10, 1, 0, last])));
        }
        assert_eq!(askers.named.len(), NAMED_MAX);
        assert!(askers.admit(IpAddr::from([10, 0, 0, 1])));
    }
}
