//! One look at all block devices, and what is kept for the next one: a disk that nobody wrote to is not read again.

use crate::allow::Allow;
use crate::class::class;
use crate::content::Content;
use crate::found::{Found, How, Use};
use crate::mounts::InUse;
use crate::name::{Named, names};
use crate::sysfs::{Block, Divided, blocks, mapper_name};
use crate::udev::Note;
use crate::{Refusal, Roots};
use model::{Disk, DiskPartition, DiskState};
use std::collections::BTreeMap;
use std::io;
use uuid::Uuid;

/// Looks at the disks of a machine, again and again.
#[derive(Debug)]
pub struct Scanner {
    roots: Roots,
    allow: Allow,
    /// What was read from each disk, and when as its counters say it.
    probed: BTreeMap<String, (String, Content)>,
    probes: u64,
}

impl Scanner {
    /// One that has not looked yet.
    pub fn new(roots: Roots, allow: Allow) -> Self {
        Self { roots, allow, probed: BTreeMap::new(), probes: 0 }
    }

    /// How often a disk has been read.
    pub const fn probes(&self) -> u64 {
        self.probes
    }

    /// All disks that are allowed, ordered by the kernel's name. Blocks, and as long as the slowest disk.
    ///
    /// # Errors
    /// sysfs or the table of mounts cannot be read: nothing is known then, least of all that a disk is free.
    pub fn scan(&mut self) -> io::Result<Vec<Found>> {
        if self.allow.is_empty() {
            return Ok(Vec::new());
        }
        let Roots { mounts, swaps, dev, .. } = &self.roots;
        let in_use = InUse::read(mounts, swaps, dev)?;
        let mut found = Vec::new();
        for name in blocks(&self.roots.sys)? {
            found.extend(self.look(&name, &in_use));
        }
        self.probed.retain(|name, _| found.iter().any(|disk: &Found| disk.kernel_name == *name));
        Ok(found)
    }

    /// The same, as `node` of `cluster` reports it.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn report(&mut self, node: &str, cluster: Uuid) -> io::Result<Vec<Disk>> {
        let found = self.scan()?;
        let names = names(node, &found);
        Ok(found.iter().zip(names).map(|(disk, named)| disk.report(named, node, cluster)).collect())
    }

    /// One disk, if it is one and may be looked at.
    fn look(&mut self, kernel_name: &str, in_use: &InUse) -> Option<Found> {
        let block = Block::new(&self.roots.sys, kernel_name);
        let number = block.device_number();
        let size_bytes = block.size_bytes();
        // Without a size there is no medium, or nothing is bound to it.
        if size_bytes == 0 || block.is_hidden() || block.is_own() {
            return None;
        }
        let note = number.map(|number| Note::read(&self.roots.udev, number)).unwrap_or_default();
        let by_id = note.links.iter().map(|link| format!("/dev/disk/by-id/{link}"));
        let paths: Vec<String> = [format!("/dev/{kernel_name}")].into_iter().chain(by_id).collect();
        if !self.allow.allows(&paths, block.odd()) {
            return None;
        }
        let mut uses = self.uses(in_use, kernel_name, number, block.holders());
        let mut partitions = Vec::new();
        for Divided { partition, device_number, holders } in block.partitions() {
            uses.extend(self.uses(in_use, &partition.kernel_name, device_number, holders));
            partitions.push(partition);
        }
        let content = self.content(&block, size_bytes).confirmed_by(&note);
        let is_nvme = kernel_name.starts_with("nvme");
        let bytes = |attribute: &str| block.number(attribute).and_then(|bytes| u32::try_from(bytes).ok());
        let own_serial = || block.text("serial").or_else(|| block.text("device/serial"));
        Some(Found {
            kernel_name: kernel_name.to_owned(),
            class: class(&block),
            model: note.model().filter(|_| !is_nvme).or_else(|| block.text("device/model")),
            serial: note.serial().filter(|_| !is_nvme).or_else(own_serial).or_else(|| block.scsi_serial()),
            wwid: block.text("wwid").or_else(|| block.text("device/wwid")),
            namespace: block.number("nsid").and_then(|number| u32::try_from(number).ok()),
            size_bytes,
            logical_block_bytes: bytes("queue/logical_block_size").unwrap_or(512),
            physical_block_bytes: bytes("queue/physical_block_size").unwrap_or(512),
            read_only: block.number("ro") == Some(1),
            links: note.links,
            partitions,
            uses,
            content,
        })
    }

    fn uses(&self, in_use: &InUse, name: &str, number: Option<(u32, u32)>, holders: Vec<String>) -> Vec<Use> {
        let of = |how| Use { device: name.to_owned(), how };
        let mounted = in_use.mounts(number, name).into_iter().map(|place| of(How::Mounted(place)));
        let swap = in_use.is_swap(name).then(|| of(How::Swap));
        let held = holders.into_iter().map(|holder| {
            let known = mapper_name(&self.roots.sys, &holder);
            of(How::Held(known.map_or_else(|| holder.clone(), |known| format!("{known} ({holder})"))))
        });
        mounted.chain(swap).chain(held).collect()
    }

    /// What lies on the disk: read now, or known from before because nobody has written to it since.
    fn content(&mut self, block: &Block, size_bytes: u64) -> Content {
        let stamp = block.stamp();
        if let (Some((at, content)), Some(stamp)) = (self.probed.get(&block.name), &stamp)
            && at == stamp
        {
            return content.clone();
        }
        self.probes += 1;
        let content = Content::probe(&self.roots.dev.join(&block.name), size_bytes);
        // What could not be read is tried again.
        if let Some(stamp) = stamp.filter(|_| content.problem.is_none()) {
            self.probed.insert(block.name.clone(), (stamp, content.clone()));
        } else {
            self.probed.remove(&block.name);
        }
        content
    }
}

impl Found {
    /// As `node` of `cluster` reports it, under this name.
    fn report(&self, Named { name, twin }: Named, node: &str, cluster: Uuid) -> Disk {
        let (state, pool, message) = self.state(twin, node, cluster);
        let partition = |partition: &crate::Partition| DiskPartition {
            device: format!("/dev/{}", partition.kernel_name),
            number: partition.number,
            start_bytes: partition.start_bytes,
            size_bytes: partition.size_bytes,
            label: partition.label.clone(),
        };
        Disk {
            name,
            node: node.to_owned(),
            device: format!("/dev/{}", self.kernel_name),
            by_id: self.links.first().map(|link| format!("/dev/disk/by-id/{link}")),
            state,
            pool,
            class: self.class,
            model: self.model.clone(),
            serial: self.serial.clone(),
            size_bytes: self.size_bytes,
            logical_block_bytes: self.logical_block_bytes,
            physical_block_bytes: self.physical_block_bytes,
            partitions: self.partitions.iter().map(partition).collect(),
            signatures: self.content.signatures.clone(),
            message,
        }
    }

    fn state(
        &self,
        twin: Option<String>,
        node: &str,
        cluster: Uuid,
    ) -> (DiskState, Option<Uuid>, Option<String>) {
        let twin = twin.map(|other| Refusal::Twin { device: self.kernel_name.clone(), other });
        let refusal = self.refusal().or(twin);
        match &self.content.pool {
            Some(label) if label.cluster == cluster => match label.node.as_deref() {
                Some(other) if other != node => {
                    let message = format!(
                        "/dev/{} is the pool {} of the node {other}: if it has been moved here for good, name it \
                         (`--disk disk:///dev/...`), once",
                        self.kernel_name, label.pool
                    );
                    (DiskState::InUse, Some(label.pool), Some(message))
                }
                _ => (DiskState::Pool, Some(label.pool), None),
            },
            Some(label) => {
                let message = format!(
                    "/dev/{} is the pool {} of the cluster {}: give it back to that one, or blank it if that is gone",
                    self.kernel_name, label.pool, label.cluster
                );
                (DiskState::InUse, Some(label.pool), Some(message))
            }
            None if refusal.is_none() => (DiskState::Available, None, None),
            None => (DiskState::InUse, None, refusal.map(|refusal| refusal.to_string())),
        }
    }
}
