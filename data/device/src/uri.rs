//! Device URIs: how people and records name a device. Pure text; [`crate::open`] opens what they name.
//!
//! | URI | device |
//! |---|---|
//! | `mem://?size=1GiB` | memory |
//! | `null://?size=1GiB` | no contents |
//! | `file:///path?size=10GiB` | a file, created if a size is given |
//! | `disk:///dev/disk/by-id/...` | a disk or partition |
//! | `nvme+tcp://host:4420/NQN?nsid=1` | a namespace of a remote target |
//! | `fault://?of=URI&rule=RULE` | another device that fails by rule |
//!
//! All but the last two take `block_size=512` or `4096` (the default). Bytes that would be misread are written as `%XX`.
//! Who names a disk for a pool may say its `class` there, too: that is no matter of the device, and taken out before.
//! A rule is a list such as `fail:media-write,on:write+flush,lba:0-255,skip:100,times:1,permille:10`; its first item is
//! one of `fail:STATUS`, `fail-after:STATUS`, `delay:MILLISECONDS` and `hang`.

use crate::error::{Error, ErrorKind};
use crate::fault::{Effect, Op, Rule};
use crate::{BlockCount, ByteCount, Geometry, Status};
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::net::Ipv6Addr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

/// Longest NQN that NVMe allows, in bytes.
const NQN_LEN_MAX: usize = 223;
/// Devices inside `fault://?of=` may nest this deep.
const DEPTH_MAX: usize = 4;
/// The port that is registered for NVMe over TCP.
const PORT_DEFAULT: u16 = 4420;
const BLOCK_SIZE_DEFAULT: u32 = 4096;

/// A parsed device URI; `Display` writes it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceUri {
    /// `mem://?size=1GiB`.
    Mem(Geometry),
    /// `null://?size=1GiB`.
    Null(Geometry),
    /// `file:///path?size=10GiB`.
    File {
        /// Absolute path.
        path: PathBuf,
        /// Create with this size if missing; if it exists, the size that it must have.
        size: Option<ByteCount>,
        /// Bytes per block.
        block_size: u32,
    },
    /// `disk:///dev/...`.
    Disk {
        /// Absolute path.
        path: PathBuf,
        /// Bytes per block.
        block_size: u32,
    },
    /// `nvme+tcp://host:port/NQN?nsid=1`.
    NvmeTcp {
        /// Name or address; an IPv6 address without its brackets.
        host: String,
        /// TCP port.
        port: u16,
        /// NVMe qualified name of the subsystem.
        nqn: String,
        /// Namespace; never zero.
        nsid: u32,
    },
    /// `fault://?of=URI&rule=RULE`.
    Fault {
        /// The device underneath.
        of: Box<Self>,
        /// Its rules, the first that matches decides.
        rules: Vec<Rule>,
    },
}

/// Reads a device URI, strictly: unknown schemes, unknown, repeated or missing parameters are errors.
///
/// # Errors
/// Kind [`ErrorKind::Uri`], with the URI, the cause and what to write instead.
pub fn parse(text: &str) -> Result<DeviceUri, Error> {
    parse_nested(text, 0).map_err(|cause| Error::new(ErrorKind::Uri, format!("device URI {text:?}: {cause}")))
}

impl std::str::FromStr for DeviceUri {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text)
    }
}

fn parse_nested(text: &str, depth: usize) -> Result<DeviceUri, String> {
    const EXAMPLE: &str = "write one such as mem://?size=1GiB, file:///path?size=10GiB, disk:///dev/sdb, \
         nvme+tcp://host:4420/NQN?nsid=1, null://?size=1GiB or fault://?of=URI";
    let (scheme, rest) = text.split_once("://").ok_or_else(|| format!("it has no scheme: {EXAMPLE}"))?;
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut params = Params::read(query)?;
    let uri = match scheme {
        "mem" | "null" => {
            if !place.is_empty() {
                return Err(format!("{scheme}:// takes no path: write {scheme}://?size=1GiB"));
            }
            let size = params.size()?.ok_or_else(|| format!("say how large: {scheme}://?size=1GiB"))?;
            let geometry = geometry(size, params.block_size()?)?;
            if scheme == "mem" { DeviceUri::Mem(geometry) } else { DeviceUri::Null(geometry) }
        }
        "file" => {
            let (path, size, block_size) = (path(place)?, params.size()?, params.block_size()?);
            size.map(|size| geometry(size, block_size)).transpose()?;
            DeviceUri::File { path, size, block_size }
        }
        "disk" => DeviceUri::Disk { path: path(place)?, block_size: params.block_size()? },
        "nvme+tcp" => nvme_tcp(place, &mut params)?,
        "fault" => fault(place, &mut params, depth)?,
        other => return Err(format!("{other:?} is not a known scheme: {EXAMPLE}")),
    };
    params.end()?;
    Ok(uri)
}

/// The query of a URI; every parameter must be taken exactly once.
#[derive(Clone, Debug)]
pub struct Params<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Params<'a> {
    /// Reads `name=value&...`.
    ///
    /// # Errors
    /// A parameter has no value.
    pub fn read(query: &'a str) -> Result<Self, String> {
        if query.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let pair = |item: &'a str| {
            item.split_once('=').ok_or_else(|| format!("parameter {item:?} has no value: write name=value"))
        };
        query.split('&').map(pair).collect::<Result<_, _>>().map(Self)
    }

    fn all(&mut self, name: &str) -> Vec<&'a str> {
        self.0.extract_if(.., |(key, _)| *key == name).map(|(_, value)| value).collect()
    }

    /// The value of a parameter that may be given once, as it is written: `%XX` stays.
    ///
    /// # Errors
    /// It is given twice.
    pub fn one(&mut self, name: &str) -> Result<Option<&'a str>, String> {
        match self.all(name)[..] {
            [] => Ok(None),
            [value] => Ok(Some(value)),
            _ => Err(format!("parameter {name:?} is given more than once")),
        }
    }

    /// The same as text.
    ///
    /// # Errors
    /// It is given twice, or is not UTF-8.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        let Some(value) = self.one(name)? else { return Ok(None) };
        let text = String::from_utf8(decode(value)?);
        text.map(Some).map_err(|_| format!("parameter {name:?} is not UTF-8"))
    }

    /// The same as a size.
    ///
    /// # Errors
    /// It is given twice, or is no size.
    pub fn bytes(&mut self, name: &str) -> Result<Option<ByteCount>, String> {
        self.one(name)?.map(str::parse).transpose()
    }

    fn size(&mut self) -> Result<Option<ByteCount>, String> {
        self.bytes("size")
    }

    fn block_size(&mut self) -> Result<u32, String> {
        match self.one("block_size")? {
            None | Some("4096") => Ok(BLOCK_SIZE_DEFAULT),
            Some("512") => Ok(512),
            Some(other) => Err(format!("block_size={other} is not possible: 512 or 4096")),
        }
    }

    /// Nothing is left.
    ///
    /// # Errors
    /// A parameter has not been taken: nobody knows it.
    pub fn end(self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(format!("parameter {name:?} is not known for this scheme: remove it")),
        }
    }
}

fn geometry(size: ByteCount, block_size: u32) -> Result<Geometry, String> {
    if size.0 == 0 || !size.0.is_multiple_of(u64::from(block_size)) {
        return Err(format!("size {} bytes is not a multiple of {block_size} above zero", size.0));
    }
    Ok(Geometry { block_size, blocks: BlockCount(size.0 / u64::from(block_size)) })
}

fn path(place: &str) -> Result<PathBuf, String> {
    if !place.starts_with('/') {
        return Err(format!("the path must be absolute, with three slashes in all: ///{place}"));
    }
    let bytes = decode(place)?;
    if bytes.contains(&0) {
        return Err("the path contains a zero byte".into());
    }
    Ok(PathBuf::from(OsString::from_vec(bytes)))
}

fn nvme_tcp(place: &str, params: &mut Params<'_>) -> Result<DeviceUri, String> {
    let missing = || "write nvme+tcp://host:port/NQN?nsid=1".to_string();
    let (authority, nqn) = place.split_once('/').ok_or_else(missing)?;
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or("the bracket of the IPv6 address is not closed")?;
        address.parse::<Ipv6Addr>().map_err(|_| format!("{address:?} is not an IPv6 address"))?;
        let port = if rest.is_empty() { Some("") } else { rest.strip_prefix(':') };
        (address, port.ok_or_else(missing)?)
    } else {
        authority.split_once(':').unwrap_or((authority, ""))
    };
    let host_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
    if host.is_empty() || !host.bytes().all(host_byte) || (host.contains(':') && !authority.starts_with('['))
    {
        return Err(format!("{host:?} is not a host: {}", missing()));
    }
    let port = match port {
        "" => PORT_DEFAULT,
        text => text
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("{text:?} is not a port: a number from 1 to 65535"))?,
    };
    let nqn = String::from_utf8(decode(nqn)?).map_err(|_| "the NQN is not UTF-8")?;
    if !nqn.starts_with("nqn.") || nqn.len() > NQN_LEN_MAX || nqn.chars().any(char::is_control) {
        return Err(format!(
            "{nqn:?} is not an NQN: it begins with \"nqn.\" and has at most {NQN_LEN_MAX} bytes"
        ));
    }
    let nsid = match params.one("nsid")? {
        None => 1,
        Some(text) => text
            .parse()
            .ok()
            .filter(|nsid| (1..u32::MAX).contains(nsid))
            .ok_or_else(|| format!("nsid={text} is not a namespace: a number from 1"))?,
    };
    Ok(DeviceUri::NvmeTcp { host: host.to_string(), port, nqn, nsid })
}

fn fault(place: &str, params: &mut Params<'_>, depth: usize) -> Result<DeviceUri, String> {
    if !place.is_empty() {
        return Err("fault:// takes no path: write fault://?of=URI&rule=RULE".into());
    }
    if depth == DEPTH_MAX {
        return Err(format!("more than {DEPTH_MAX} devices are nested"));
    }
    let of = params.one("of")?.ok_or("say over which device: fault://?of=URI")?;
    let of = String::from_utf8(decode(of)?).map_err(|_| "the inner URI is not UTF-8")?;
    let of = parse_nested(&of, depth + 1).map_err(|cause| format!("inside of={of:?}: {cause}"))?;
    let rules = params.all("rule").into_iter().map(rule).collect::<Result<_, _>>()?;
    Ok(DeviceUri::Fault { of: Box::new(of), rules })
}

const OPS: [(&str, Op); 5] = [
    ("read", Op::Read),
    ("write", Op::Write),
    ("write-zeroes", Op::WriteZeroes),
    ("unmap", Op::Unmap),
    ("flush", Op::Flush),
];

const STATUSES: [(&str, Status); 12] = [
    ("out-of-range", Status::OutOfRange),
    ("invalid", Status::Invalid),
    ("no-space", Status::NoSpace),
    ("media-read", Status::MediaRead),
    ("media-write", Status::MediaWrite),
    ("corrupt", Status::Corrupt),
    ("fenced", Status::Fenced),
    ("gone", Status::Gone),
    ("timed-out", Status::TimedOut),
    ("aborted", Status::Aborted),
    ("gap", Status::Gap),
    ("internal", Status::Internal),
];

fn named<T: Copy>(table: &[(&str, T)], name: &str) -> Result<T, String> {
    table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<_> = table.iter().map(|(known, _)| *known).collect();
        format!("{name:?} is not one of {}", known.join(", "))
    })
}

fn name_of<T: PartialEq>(table: &[(&'static str, T)], value: &T) -> &'static str {
    table.iter().find(|(_, known)| known == value).expect("the table names every value").0
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

fn rule(text: &str) -> Result<Rule, String> {
    let mut items = text.split(',').map(|item| item.split_once(':').unwrap_or((item, "")));
    let (name, value) = items.next().unwrap_or_default();
    let mut rule = Rule::every(match name {
        "fail" => Effect::Fail(named(&STATUSES, value)?),
        "fail-after" => Effect::FailAfter(named(&STATUSES, value)?),
        "delay" => Effect::Delay(Duration::from_millis(number(value)?)),
        "hang" if value.is_empty() => Effect::Hang,
        _ => {
            return Err(format!(
                "rule {text:?} must begin with fail:STATUS, fail-after:STATUS, delay:MS or hang"
            ));
        }
    });
    let mut seen = Vec::new();
    for (name, value) in items {
        if seen.contains(&name) {
            return Err(format!("rule {text:?} gives {name:?} more than once"));
        }
        seen.push(name);
        match name {
            "on" => rule.ops = value.split('+').map(|op| named(&OPS, op)).collect::<Result<_, _>>()?,
            "lba" => {
                let (first, last) = value.split_once('-').unwrap_or((value, value));
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(format!("rule {text:?}: the first block lies behind the last"));
                }
                rule.lbas = Some(first..=last);
            }
            "skip" => rule.skip = number(value)?,
            "times" => rule.times = Some(number(value)?),
            "permille" => {
                let permille = number(value)?;
                let permille = u16::try_from(permille).ok().filter(|chance| *chance <= 1000);
                rule.permille = permille.ok_or_else(|| format!("permille:{value} is above 1000"))?;
            }
            _ => return Err(format!("rule {text:?}: {name:?} is not one of on, lba, skip, times, permille")),
        }
    }
    Ok(rule)
}

/// Undoes `%XX`.
fn decode(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let byte = byte.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(
            byte.ok_or_else(|| format!("{text:?} has a % without two hexadecimal digits: write it as %25"))?,
        );
        rest = &tail[2..];
    }
    Ok(bytes)
}

/// Writes bytes that cannot stand in a path or a value as `%XX`.
fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_graphic() && !matches!(byte, b'%' | b'?' | b'&' | b'#') {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("a string takes everything");
        }
    }
    text
}

/// The size in the largest unit that divides it, without a space: exact, unlike `Display` of [`ByteCount`].
fn exact(size: ByteCount) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.iter().find(|(_, bits)| size.0 != 0 && size.0.trailing_zeros() >= *bits) {
        Some((unit, bits)) => format!("{}{unit}", size.0 >> bits),
        None => size.0.to_string(),
    }
}

/// `?size=..&block_size=..`, as far as there is something to say.
fn sizes(f: &mut fmt::Formatter<'_>, size: Option<ByteCount>, block_size: u32) -> fmt::Result {
    let mut separator = '?';
    if let Some(size) = size {
        write!(f, "?size={}", exact(size))?;
        separator = '&';
    }
    if block_size != BLOCK_SIZE_DEFAULT {
        write!(f, "{separator}block_size={block_size}")?;
    }
    Ok(())
}

fn write_rule(f: &mut fmt::Formatter<'_>, rule: &Rule) -> fmt::Result {
    match rule.effect {
        Effect::Fail(status) => write!(f, "fail:{}", name_of(&STATUSES, &status))?,
        Effect::FailAfter(status) => write!(f, "fail-after:{}", name_of(&STATUSES, &status))?,
        Effect::Delay(duration) => write!(f, "delay:{}", duration.as_millis())?,
        Effect::Hang => f.write_str("hang")?,
    }
    if !rule.ops.is_empty() {
        let ops: Vec<_> = rule.ops.iter().map(|op| name_of(&OPS, op)).collect();
        write!(f, ",on:{}", ops.join("+"))?;
    }
    if let Some(range) = &rule.lbas {
        write!(f, ",lba:{}-{}", range.start(), range.end())?;
    }
    if rule.skip != 0 {
        write!(f, ",skip:{}", rule.skip)?;
    }
    if let Some(times) = rule.times {
        write!(f, ",times:{times}")?;
    }
    if rule.permille != 1000 {
        write!(f, ",permille:{}", rule.permille)?;
    }
    Ok(())
}

impl fmt::Display for DeviceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mem(geometry) => {
                f.write_str("mem://")?;
                sizes(f, Some(geometry.size()), geometry.block_size)
            }
            Self::Null(geometry) => {
                f.write_str("null://")?;
                sizes(f, Some(geometry.size()), geometry.block_size)
            }
            Self::File { path, size, block_size } => {
                write!(f, "file://{}", encode(path.as_os_str().as_bytes()))?;
                sizes(f, *size, *block_size)
            }
            Self::Disk { path, block_size } => {
                write!(f, "disk://{}", encode(path.as_os_str().as_bytes()))?;
                sizes(f, None, *block_size)
            }
            Self::NvmeTcp { host, port, nqn, nsid } => {
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "nvme+tcp://{open}{host}{close}:{port}/{}?nsid={nsid}", encode(nqn.as_bytes()))
            }
            Self::Fault { of, rules } => {
                write!(f, "fault://?of={}", encode(of.to_string().as_bytes()))?;
                for rule in rules {
                    f.write_str("&rule=")?;
                    write_rule(f, rule)?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
