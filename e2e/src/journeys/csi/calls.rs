//! The calls of an orchestrator for one claim, one after the other, for a script that runs where this machine's harness
//! does not: in the guest.

use super::claim::{Caller, Claim, MIB};
use super::persist;
use anyhow::{Context, Result};
use csi::client::Status;
use std::path::PathBuf;

const NODE: &str = "node-1";

/// Makes calls of the plugin of node-1, each repeated until it is done.
#[derive(clap::Args)]
pub(crate) struct Calls {
    /// `DIR` of `orlop dev --csi DIR`.
    #[arg(long)]
    sockets: PathBuf,
    /// Where pods are: CLAIM/pod-node-1 is what one sees.
    #[arg(long)]
    folder: PathBuf,
    /// A claim on an ext4; else it is a block device.
    #[arg(long)]
    mount: bool,
    /// What the claim is called.
    claim: String,
    /// Such as `create=64`, in MiB, or `stage`.
    asked: Vec<String>,
}

impl Calls {
    /// Makes them; the answer to `size` is printed, in bytes.
    pub(crate) fn make(&self) -> Result<()> {
        let caller = Caller::new(self.sockets.clone())?;
        let filesystem = self.mount.then_some("ext4");
        let claim = Claim::below(&self.folder, &caller, &self.claim, filesystem)?;
        let claim = Claim { parameters: &[("copies", "1")], ..claim };
        for call in &self.asked {
            make(&claim, call)?;
        }
        Ok(())
    }
}

fn make(claim: &Claim<'_>, call: &str) -> Result<()> {
    let (word, mib) = call.split_once('=').unwrap_or((call, "0"));
    let bytes = MIB * mib.parse::<i64>().with_context(|| format!("{call}: how many MiB?"))?;
    let second = claim.folder.join("read-only");
    persist(call, || match word {
        "create" => claim.create(NODE, bytes),
        "attach" => claim.attach(NODE),
        "stage" => claim.stage(NODE),
        "publish" => claim.publish(NODE),
        "publish-read-only" => claim.publish_at(NODE, &second, true),
        "expand-in-controller" => claim.expand_in_controller(NODE, bytes),
        "expand-on-node" => claim.expand_on_node(NODE, bytes),
        "size" => claim.total_bytes(NODE).map(|total| println!("{total}")),
        "unpublish-read-only" => claim.unpublish_at(NODE, &second),
        "unpublish" => claim.unpublish(NODE),
        "unstage" => claim.unstage(NODE),
        "detach" => claim.detach(NODE),
        "delete" => claim.delete(NODE),
        _ => Err(Status::invalid_argument("no such call")),
    })
}
