//! Golden PDUs: what the Linux kernel's initiator and target really say to each other, captured in the guest and cut into
//! one file of bytes per connection and direction for the tests of `data/nvmf`.
//!
//! 1. A stream is complete: from the first byte after the SYN, no gap, and its PDUs end exactly where it ends.
//! 2. The README beside the files is written here, from the run itself.

use crate::guest::Guest;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

const SCENES: [(&str, &str); 5] = [
    ("discovery", "`nvme discover`"),
    (
        "connect",
        "`nvme connect` with one I/O queue, identify, the reads of the partition scan, `nvme disconnect`",
    ),
    (
        "io",
        "read, write of 4 and 16 KiB (in the capsule) and 24 KiB (R2T), FUA, flush, write-zeroes, discard, compare",
    ),
    ("digests", "the same writes and reads with header and data digests"),
    (
        "errors",
        "connect to an unknown subsystem, a read beyond the end, an unknown opcode and log page; keep-alive",
    ),
];
const PORT: u16 = 4420;
const SCRIPT: &str = include_str!("../vm/golden.sh");

/// Both directions of one TCP connection.
#[derive(Default)]
struct Connection {
    host: Stream,
    controller: Stream,
}

/// One direction: the sequence number of its first byte, and what was seen, by offset from it.
#[derive(Default)]
struct Stream {
    first: Option<u32>,
    pieces: BTreeMap<u32, Vec<u8>>,
}

/// Captures all scenes anew into `folder` (`data/nvmf/tests/golden`).
pub(crate) fn capture(guest: &Guest, shared: &Path, folder: &Path, date: &str) -> Result<()> {
    let verdict = guest.run(shared, SCRIPT, Duration::from_secs(240))?;
    ensure!(verdict.code == 0, "the scenes failed with code {}:\n{}", verdict.code, verdict.output);
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "bin") {
            fs::remove_file(path)?;
        }
    }
    let mut table = String::new();
    for (scene, _) in SCENES {
        let pcap = fs::read(shared.join(format!("golden/{scene}.pcap")))?;
        for (index, connection) in
            connections(&pcap).with_context(|| format!("scene {scene}"))?.into_iter().enumerate()
        {
            for (side, stream) in [("host", connection.host), ("controller", connection.controller)] {
                let name = format!("{scene}.{index}.{side}.bin");
                let bytes = stream.bytes().with_context(|| name.clone())?;
                let pdus = pdu_names(&bytes).with_context(|| name.clone())?;
                writeln!(table, "| `{name}` | {} | {pdus} |", bytes.len())?;
                fs::write(folder.join(name), bytes)?;
            }
        }
    }
    fs::write(folder.join("README.md"), readme(&guest.versions()?, date, &table)?)?;
    Ok(())
}

fn readme(versions: &str, date: &str, table: &str) -> Result<String> {
    let mut text = String::from(
        "# Golden PDUs\n\nWhat the Linux kernel's NVMe/TCP initiator and target said to each other, byte by byte: the judge of our\n\
         wire formats. Captured with tcpdump on the guest's loopback and cut into TCP streams; nothing was edited.\n\n\
         `SCENE.N.host.bin` is what the initiator sent on connection N of the scene (in order of their SYN; an admin\n\
         queue comes before its I/O queue), `SCENE.N.controller.bin` what the target answered. Each file starts with\n\
         ICReq or ICResp and ends after a whole PDU.\n\
         Written blocks hold the text `plain block B ` or `digested block B ` over and over.\n\n\
         Captured on ",
    );
    writeln!(text, "{date} in the guest of `e2e/vm` with:\n\n```text\n{}\n```\n", versions.trim())?;
    text.push_str(
        "Again: `cargo run -p orlop-e2e -- golden` (as root). Command ids, controller ids and the\n\
         order of concurrent PDUs differ from run to run.\n",
    );
    text.push_str("This file is written by it too.\n\n| scene | what happens |\n|---|---|\n");
    for (scene, what) in SCENES {
        writeln!(text, "| {scene} | {what} |")?;
    }
    writeln!(text, "\n| file | bytes | PDUs |\n|---|---|---|\n{table}")?;
    writeln!(text, "The commands, as run (`e2e/vm/golden.sh`):\n\n```sh\n{SCRIPT}```")?;
    Ok(text)
}

/// The connections of a capture, in order of their SYN.
fn connections(pcap: &[u8]) -> Result<Vec<Connection>> {
    ensure!(pcap.get(..4) == Some(&[0xd4, 0xc3, 0xb2, 0xa1]), "not a little-endian pcap of microseconds");
    let mut order: Vec<u16> = Vec::new();
    let mut found: BTreeMap<u16, Connection> = BTreeMap::new();
    let mut rest = &pcap[24..];
    while rest.len() >= 16 {
        let (kept, sent) = (le32(&rest[8..12]), le32(&rest[12..16]));
        ensure!(kept == sent, "a packet was cut: {kept} of {sent} bytes");
        let end = 16 + usize::try_from(kept)?;
        ensure!(rest.len() >= end, "the capture ends inside a packet");
        packet(&rest[16..end], &mut order, &mut found)?;
        rest = &rest[end..];
    }
    Ok(order.iter().filter_map(|port| found.remove(port)).collect())
}

/// One Ethernet frame with IPv4 and TCP.
fn packet(frame: &[u8], order: &mut Vec<u16>, found: &mut BTreeMap<u16, Connection>) -> Result<()> {
    if frame.len() < 54 || frame[12..14] != [8, 0] || frame[23] != 6 {
        return Ok(());
    }
    let ip = &frame[14..14 + usize::from(be16(&frame[16..18]))];
    let tcp = &ip[usize::from(ip[0] & 15) * 4..];
    let (from, to) = (be16(&tcp[0..2]), be16(&tcp[2..4]));
    let (host_port, from_host) = if to == PORT { (from, true) } else { (to, false) };
    let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    let is_syn = tcp[13] & 2 != 0;
    if is_syn && from_host && !found.contains_key(&host_port) {
        order.push(host_port);
    }
    let connection = found.entry(host_port).or_default();
    let stream = if from_host { &mut connection.host } else { &mut connection.controller };
    if is_syn {
        stream.first = Some(sequence.wrapping_add(1));
    }
    let data = &tcp[usize::from(tcp[12] >> 4) * 4..];
    if !data.is_empty() {
        let first = stream.first.context("data before the SYN: the capture began too late")?;
        stream.pieces.insert(sequence.wrapping_sub(first), data.to_vec());
    }
    Ok(())
}

impl Stream {
    fn bytes(self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for (offset, piece) in self.pieces {
            let offset = usize::try_from(offset)?;
            ensure!(offset <= bytes.len(), "bytes {} to {offset} are missing", bytes.len());
            // A retransmission may repeat what is here already.
            let known = bytes.len() - offset;
            bytes.extend_from_slice(piece.get(known..).unwrap_or_default());
        }
        Ok(bytes)
    }
}

/// Walks the PDUs of a stream by their length field; the answer counts them by type, in order of appearance.
fn pdu_names(bytes: &[u8]) -> Result<String> {
    let mut counts: Vec<(&str, u32)> = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        ensure!(rest.len() >= 8, "the stream ends inside a common header");
        let name = match rest[0] {
            0 => "ICReq",
            1 => "ICResp",
            2 => "H2CTermReq",
            3 => "C2HTermReq",
            4 => "CapsuleCmd",
            5 => "CapsuleResp",
            6 => "H2CData",
            7 => "C2HData",
            9 => "R2T",
            other => bail!("PDU type {other} at byte {}", bytes.len() - rest.len()),
        };
        let length = usize::try_from(le32(&rest[4..8]))?;
        ensure!(
            length >= 8 && length <= rest.len(),
            "a {name} of {length} bytes where {} are left",
            rest.len()
        );
        match counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
        rest = &rest[length..];
    }
    Ok(counts.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", "))
}

fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_takes_repeated_pieces_and_refuses_gaps() {
        let stream = |pieces: &[(u32, &[u8])]| Stream {
            first: Some(0),
            pieces: pieces.iter().map(|(offset, bytes)| (*offset, bytes.to_vec())).collect(),
        };
        assert_eq!(stream(&[(0, b"abc"), (2, b"cde"), (3, b"d"), (5, b"f")]).bytes().unwrap(), b"abcdef");
        assert!(stream(&[(0, b"abc"), (4, b"e")]).bytes().unwrap_err().to_string().contains("3 to 4"));
    }

    #[test]
    fn pdus_must_end_where_the_stream_ends() {
        let pdu = |kind: u8, length: u8| {
            [&[kind, 0, 8, 0, length, 0, 0, 0][..], &vec![0; usize::from(length) - 8]].concat()
        };
        let stream = [pdu(0, 128), pdu(4, 72), pdu(4, 72)].concat();
        assert_eq!(pdu_names(&stream).unwrap(), "1 ICReq, 2 CapsuleCmd");
        assert!(pdu_names(&stream[..210]).unwrap_err().to_string().contains("72 bytes where"));
        assert!(pdu_names(&pdu(8, 8)).unwrap_err().to_string().contains("PDU type 8"));
    }

    #[test]
    fn the_captured_files_are_whole() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/nvmf/tests/golden");
        let mut files = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "bin") {
                pdu_names(&fs::read(&path).unwrap()).unwrap();
                files += 1;
            }
        }
        assert_eq!(files, 20);
    }
}
