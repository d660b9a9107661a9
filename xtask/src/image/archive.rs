//! An image of one layer as one file that everybody reads: an OCI image layout (`ctr images import`, podman) with the
//! `manifest.json` of `docker save` in it (`docker load`).
//!
//! 1. A blob's name is its SHA-256. The layer is not compressed: its digest is its diff id, and no gzip has a say in it.

use super::tree::Tree;
use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An image, ready to be written to a file.
pub(super) struct Image {
    /// The archive.
    pub(super) archive: Vec<u8>,
    /// The digest of its manifest: what registries and `ctr images list` call it.
    pub(super) digest: String,
}

/// Makes the image `name:tag`, whose files are `root`.
pub(super) fn image(name: &str, tag: &str, root: &Tree) -> Result<Image> {
    let mut archive = Tree::default();
    let layer = Blob::add(&mut archive, root.tar()?)?;
    let config = Blob::add(&mut archive, serde_json::to_vec(&config(tag, &layer))?)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.described("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.described("application/vnd.oci.image.layer.v1.tar")],
    });
    let manifest = Blob::add(&mut archive, serde_json::to_vec(&manifest)?)?;
    let mut described = manifest.described("application/vnd.oci.image.manifest.v1+json");
    described["annotations"] = json!({
        "io.containerd.image.name": format!("{name}:{tag}"),
        "org.opencontainers.image.ref.name": tag,
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [described],
    });
    let docker = json!([{
        "Config": config.path(),
        "RepoTags": [format!("{name}:{tag}")],
        "Layers": [layer.path()],
    }]);
    for (path, content) in [
        ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })),
        ("index.json", index),
        ("manifest.json", docker),
    ] {
        archive.file(path, 0o644, serde_json::to_vec(&content)?)?;
    }
    Ok(Image { archive: archive.tar()?, digest: format!("sha256:{}", manifest.hex) })
}

/// How a container of the image is started.
fn config(tag: &str, layer: &Blob) -> Value {
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let beginning = "1970-01-01T00:00:00Z";
    json!({
        "created": beginning,
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "User": "0",
            "Env": [path],
            "Entrypoint": ["/usr/bin/orlop"],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "Orlop",
                "org.opencontainers.image.description": "Kubernetes-native replicated block storage",
                "org.opencontainers.image.version": tag,
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [layer.digest()] },
        "history": [{ "created": beginning, "created_by": "cargo xtask image" }],
    })
}

/// This machine's, as Go calls it: the programs are this machine's, too.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Bytes in the archive that are named by their digest.
struct Blob {
    hex: String,
    size: usize,
}

impl Blob {
    fn add(archive: &mut Tree, bytes: Vec<u8>) -> Result<Self> {
        let hex = Sha256::digest(&bytes).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        let blob = Self { hex, size: bytes.len() };
        archive.file(&blob.path(), 0o644, bytes)?;
        Ok(blob)
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.hex)
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.hex)
    }

    fn described(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest(), "size": self.size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), bytes);
        }
        files
    }

    #[test]
    fn both_forms_lead_to_the_layer() {
        let mut root = Tree::default();
        root.file("usr/bin/orlop", 0o755, "program").unwrap();
        let image = image("orlop.io/orlop", "1.2.3", &root).unwrap();
        let files = files(&image.archive);
        let json = |path: &str| serde_json::from_slice::<Value>(&files[path]).unwrap();
        let blob = |described: &Value| {
            let path = described["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
            assert_eq!(described["size"], files[&path].len());
            path
        };

        let index = &json("index.json")["manifests"][0];
        assert_eq!(index["digest"], image.digest);
        assert_eq!(index["annotations"]["io.containerd.image.name"], "orlop.io/orlop:1.2.3");
        let manifest = json(&blob(index));
        let (config, layer) = (blob(&manifest["config"]), blob(&manifest["layers"][0]));
        assert_eq!(files[&layer], root.tar().unwrap());
        assert_eq!(json(&config)["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);

        let docker = &json("manifest.json")[0];
        assert_eq!((&docker["Config"], &docker["Layers"][0]), (&json!(config), &json!(layer)));
        assert_eq!(docker["RepoTags"][0], "orlop.io/orlop:1.2.3");
    }
}
