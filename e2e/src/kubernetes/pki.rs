//! Keys and certificates of one cluster, made by `openssl` in the run's folder, and the kubeconfigs that carry them.
//!
//! 1. Every cluster has an authority of its own: what it signed opens nothing elsewhere, and goes with the folder.

use crate::journey::Trip;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -batch";

/// A cluster's authority and what it signed.
#[derive(Debug)]
pub(crate) struct Pki {
    folder: PathBuf,
}

impl Pki {
    /// A new authority, and the key that signs the tokens of service accounts.
    pub(crate) fn new(trip: &Trip, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let pki = Self { folder: folder.to_owned() };
        let file = |name: &str| pki.file(name).display().to_string();
        let line = format!(
            "openssl req -x509 {NEW_KEY} -subj /CN=orlop-e2e -keyout {} -out {}\n\
             openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {accounts}\n\
             openssl pkey -in {accounts} -pubout -out {}",
            file("ca.key"),
            file("ca.crt"),
            file("accounts.pub"),
            accounts = file("accounts.key"),
        );
        trip.sh(&line, LIMIT).context("make a certificate authority")?;
        Ok(pki)
    }

    /// Where one of its files is: `NAME.crt` and `NAME.key` of what was signed, `ca.crt`, `accounts.key`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A certificate for a server that is reached by these names (`DNS:...`, `IP:...`).
    pub(crate) fn server(&self, trip: &Trip, name: &str, names: &str) -> Result<()> {
        let extensions = format!("-addext extendedKeyUsage=serverAuth -addext subjectAltName={names}");
        self.sign(trip, name, &format!("/CN={name}"), &extensions)
    }

    /// A certificate for a client; its subject is who it is for Kubernetes (`/O=GROUP/CN=USER`).
    pub(crate) fn client(&self, trip: &Trip, name: &str, subject: &str) -> Result<()> {
        self.sign(trip, name, subject, "-addext extendedKeyUsage=clientAuth")
    }

    fn sign(&self, trip: &Trip, name: &str, subject: &str, extensions: &str) -> Result<()> {
        let folder = self.folder.display();
        let line = format!(
            "openssl req -x509 {NEW_KEY} -CA {folder}/ca.crt -CAkey {folder}/ca.key -subj {subject} \
             -addext basicConstraints=critical,CA:FALSE {extensions} \
             -keyout {folder}/{name}.key -out {folder}/{name}.crt"
        );
        trip.sh(&line, LIMIT).with_context(|| format!("make the certificate {name}"))?;
        Ok(())
    }

    /// Writes `NAME.kubeconfig` for the client `name`, who reaches the API server at `url`; its path.
    pub(crate) fn kubeconfig(&self, name: &str, url: &str) -> Result<PathBuf> {
        let path = self.file(&format!("{name}.kubeconfig"));
        let folder = self.folder.display();
        let text = format!(
            "apiVersion: v1\n\
             kind: Config\n\
             current-context: lab\n\
             contexts: [{{name: lab, context: {{cluster: lab, user: {name}}}}}]\n\
             clusters: [{{name: lab, cluster: {{server: \"{url}\", certificate-authority: {folder}/ca.crt}}}}]\n\
             users:\n\
             - name: {name}\n  \
               user: {{client-certificate: {folder}/{name}.crt, client-key: {folder}/{name}.key}}\n"
        );
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}
