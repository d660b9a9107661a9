//! The keys that a cluster's secret makes: which host may reach what by its target.
//!
//! # Invariants
//! 1. Only the secret itself opens replicas and the discovery service; a volume's key opens that volume, for one host.

use nvmf::Key;
use uuid::Uuid;

/// What tells these keys from all else that is made from the secret.
const PURPOSE: &[u8] = b"orlop volume key 1";

/// The key by which the host `hostnqn` reaches a volume; another volume of the same name has another one.
pub fn volume_key(secret: &Key, volume: Uuid, hostnqn: &str) -> Key {
    secret.derive(&[PURPOSE, volume.as_bytes(), hostnqn.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_volume_and_each_host_has_a_key() {
        let secret = Key::new([1; nvmf::KEY_LEN]);
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let key = volume_key(&secret, one, "nqn.a");
        assert_eq!(key, volume_key(&secret, one, "nqn.a"));
        for other in [volume_key(&secret, two, "nqn.a"), volume_key(&secret, one, "nqn.b"), secret] {
            assert_ne!(key, other);
        }
    }
}
