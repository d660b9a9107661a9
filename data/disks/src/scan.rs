//! One look at all block devices, and what is kept for the next one: a disk that nobody wrote to is not read again.

use crate::allow::Allow;
use crate::class::class;
use crate::content::Content;
use crate::found::{Found, How, Partition, Use};
use crate::mounts::InUse;
use crate::name::{Named, by_id, label, names};
use crate::sysfs::{Block, Divided, blocks, mapper_name};
use crate::udev::Note;
use crate::{Refusal, Roots};
use model::{Disk, DiskPartition, DiskState};
use pool::PoolLabel;
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
        let is_there = |disk: &Found, name: &String| {
            disk.kernel_name == *name || disk.partitions.iter().any(|part| part.kernel_name == *name)
        };
        self.probed.retain(|name, _| found.iter().any(|disk| is_there(disk, name)));
        Ok(found)
    }

    /// The same, as `node` of `cluster` reports it.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn report(&mut self, node: &str, cluster: Uuid) -> io::Result<Vec<Disk>> {
        let found = self.scan()?;
        let names = names(node, &found);
        Ok(found.iter().zip(names).flat_map(|(disk, named)| disk.reports(&named, node, cluster)).collect())
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
        let bytes = |attribute: &str| block.number(attribute).and_then(|bytes| u32::try_from(bytes).ok());
        let logical_block_bytes = bytes("queue/logical_block_size").unwrap_or(512);
        let partitions = self.partitions(&block, in_use, logical_block_bytes, &mut uses);
        let content = self.content(kernel_name, size_bytes, logical_block_bytes, block.stamp());
        let content = content.confirmed_by(note.content());
        let is_nvme = kernel_name.starts_with("nvme");
        let own_serial = || block.text("serial").or_else(|| block.text("device/serial"));
        Some(Found {
            kernel_name: kernel_name.to_owned(),
            class: class(&block),
            model: note.model().filter(|_| !is_nvme).or_else(|| block.model()),
            serial: note.serial().filter(|_| !is_nvme).or_else(own_serial).or_else(|| block.scsi_serial()),
            wwid: block.text("wwid").or_else(|| block.text("device/wwid")),
            namespace: block.number("nsid").and_then(|number| u32::try_from(number).ok()),
            size_bytes,
            logical_block_bytes,
            physical_block_bytes: bytes("queue/physical_block_size").unwrap_or(512),
            read_only: block.number("ro") == Some(1),
            links: note.links,
            partitions_max: bytes("ext_range"),
            partitions,
            uses,
            content,
        })
    }

    /// The partitions of a disk; who uses them is added to `uses`.
    fn partitions(
        &mut self,
        block: &Block,
        in_use: &InUse,
        logical_block_bytes: u32,
        uses: &mut Vec<Use>,
    ) -> Vec<Partition> {
        let mut partitions = Vec::new();
        for Divided { mut partition, device_number, holders, stamp } in block.partitions() {
            let name = partition.kernel_name.as_str();
            let note = device_number.map(|number| Note::read(&self.roots.udev, number)).unwrap_or_default();
            let of_it = self.uses(in_use, name, device_number, holders);
            // What is in use may be written all the time, and is refused anyway.
            if of_it.is_empty() && partition.size_bytes > 0 {
                let content = self.content(name, partition.size_bytes, logical_block_bytes, stamp);
                partition.content = content.confirmed_by(note.content_of_partition());
            }
            partition.links = note.links;
            uses.extend(of_it);
            partitions.push(partition);
        }
        partitions
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

    /// What lies on a disk or partition: read now, or known from before because nobody has written to it since.
    fn content(&mut self, name: &str, size_bytes: u64, block: u32, stamp: Option<String>) -> Content {
        if let (Some((at, content)), Some(stamp)) = (self.probed.get(name), &stamp)
            && at == stamp
        {
            return content.clone();
        }
        self.probes += 1;
        let content = Content::probe(&self.roots.dev.join(name), size_bytes, block);
        // What could not be read is tried again.
        if let Some(stamp) = stamp.filter(|_| content.problem.is_none()) {
            self.probed.insert(name.to_owned(), (stamp, content.clone()));
        } else {
            self.probed.remove(name);
        }
        content
    }
}

/// Whom a disk is reported for.
#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a str,
    cluster: Uuid,
}

impl Found {
    /// As `node` of `cluster` reports it, under this name; behind it those of its partitions that are meant to be pools.
    fn reports(&self, named: &Named, node: &str, cluster: Uuid) -> Vec<Disk> {
        let by = Reader { node, cluster };
        let disk = self.report(named, by);
        let meant = self.partitions.iter().filter(|partition| self.is_meant(partition));
        let partitions: Vec<Disk> =
            meant.map(|partition| self.report_of(partition, &disk, named.twin.as_deref(), by)).collect();
        [disk].into_iter().chain(partitions).collect()
    }

    fn report(&self, Named { name, twin }: &Named, by: Reader<'_>) -> Disk {
        let refusal = self.refusal().or_else(|| twin.as_deref().map(|other| self.twin(other)));
        let (state, pool, message) = by.state(&self.kernel_name, self.content.pool.as_ref(), refusal);
        let partition = |partition: &Partition| DiskPartition {
            device: format!("/dev/{}", partition.kernel_name),
            number: partition.number,
            start_bytes: partition.start_bytes,
            size_bytes: partition.size_bytes,
            // One that was announced by itself has its name in the table only.
            label: partition.label.clone().or_else(|| {
                self.entry_of(partition).map(|entry| entry.label.clone()).filter(|label| !label.is_empty())
            }),
        };
        Disk {
            name: name.clone(),
            node: by.node.to_owned(),
            device: format!("/dev/{}", self.kernel_name),
            by_id: by_id(&self.links),
            parent: None,
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

    /// A partition as a disk of its own; `disk` is the one that it is of.
    fn report_of(&self, partition: &Partition, disk: &Disk, twin: Option<&str>, by: Reader<'_>) -> Disk {
        let refusal = self.refusal_of(partition).or_else(|| twin.map(|other| self.twin(other)));
        let (state, pool, message) =
            by.state(&partition.kernel_name, partition.content.pool.as_ref(), refusal);
        Disk {
            name: label(&format!("{}-part{}", disk.name, partition.number)),
            device: format!("/dev/{}", partition.kernel_name),
            by_id: by_id(&partition.links),
            parent: Some(disk.name.clone()),
            state,
            pool,
            size_bytes: partition.size_bytes,
            partitions: Vec::new(),
            signatures: partition.content.signatures.clone(),
            message,
            ..disk.clone()
        }
    }

    fn twin(&self, other: &str) -> Refusal {
        Refusal::Twin { device: self.kernel_name.clone(), other: other.to_owned() }
    }
}

impl Reader<'_> {
    /// What becomes of the device with this pool on it, or with this refusal.
    fn state(
        self,
        device: &str,
        pool: Option<&PoolLabel>,
        refusal: Option<Refusal>,
    ) -> (DiskState, Option<Uuid>, Option<String>) {
        match pool {
            Some(label) if label.cluster == self.cluster => match label.node.as_deref() {
                Some(other) if other != self.node => {
                    let message = format!(
                        "/dev/{device} is the pool {} of the node {other}: if it has been moved here for good, name it \
                         (`--disk disk:///dev/...`), once",
                        label.pool
                    );
                    (DiskState::InUse, Some(label.pool), Some(message))
                }
                _ => (DiskState::Pool, Some(label.pool), None),
            },
            Some(label) => {
                let message = format!(
                    "/dev/{device} is the pool {} of the cluster {}: give it back to that one, or blank it if that is gone",
                    label.pool, label.cluster
                );
                (DiskState::InUse, Some(label.pool), Some(message))
            }
            None if refusal.is_none() => (DiskState::Available, None, None),
            None => (DiskState::InUse, None, refusal.map(|refusal| refusal.to_string())),
        }
    }
}
