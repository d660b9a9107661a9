//! Admin and Fabrics commands of a connected queue: properties, Identify, features, log pages, events, keep-alive.
//!
//! They are answered from what the association knows; none of them waits, none touches a device's data.
//!
//! # Spec
//! NVMe Base 2.0, section 5 (admin commands); NVMe over Fabrics 1.1, section 3 (Fabrics commands).

use super::association::{Association, Export};
use super::queue::{Queue, Reply};
use crate::limits;
use crate::subsystem::{Session, Subsystems};
use crate::wire::command::{FABRICS_OPCODE, NSID_ALL, Sgl, Sqe, admin};
use crate::wire::fabrics::{Capabilities, VERSION_2_0, kind, property, property_of};
use crate::wire::feature::{self, event, id};
use crate::wire::identify::{
    self, IDENTIFY_LEN, IdentifyController, IdentifyNamespace, IndependentNamespace, cns,
};
use crate::wire::log::{self, LogRequest};
use crate::wire::status::StatusCode;
use crate::wire::text_field;
use device::{Device, Geometry};
use rt::DmaBytes;
use std::rc::Rc;
use zerocopy::FromZeros;

/// How long enabling a controller takes at most; it is ready at once.
const READY_MS: u64 = 15_000;
const MODEL: &str = "Orlop";
const ERROR_LOG_ENTRIES: usize = 1;

/// The answer; `None` leaves the command waiting.
type Outcome = Result<Option<Reply>, StatusCode>;

/// Runs one command of an admin queue; `None` leaves it waiting (an event request).
pub(super) fn run<S: Subsystems>(queue: &Rc<Queue<S>>, sqe: &Sqe) -> Outcome {
    let association = &queue.association;
    if sqe.opcode == FABRICS_OPCODE {
        return fabrics(queue, sqe);
    }
    if !association.is_enabled() {
        return Err(StatusCode::SEQUENCE_ERROR);
    }
    match sqe.opcode {
        admin::IDENTIFY => page(queue, sqe, &identify(queue, sqe)?),
        admin::GET_LOG_PAGE => get_log_page(queue, sqe),
        admin::SET_FEATURES => set_features(queue, sqe),
        admin::GET_FEATURES => get_features(queue, sqe),
        admin::KEEP_ALIVE => done(0),
        // The aborted command is never found: every command runs to its end. Bit 0 says that it was not aborted.
        admin::ABORT => done(1),
        admin::ASYNC_EVENT_REQUEST if association.await_event(sqe.cid.get()) => Ok(None),
        admin::ASYNC_EVENT_REQUEST => Err(StatusCode::ASYNC_LIMIT_EXCEEDED),
        _ => Err(StatusCode::INVALID_OPCODE),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the common end of many commands that may also fail")]
fn done(result: u32) -> Outcome {
    Ok(Some(Reply::result(u64::from(result))))
}

/// Answers with as much of `page` as the command has room for.
fn page<S: Subsystems>(queue: &Queue<S>, sqe: &Sqe, page: &[u8]) -> Outcome {
    let room = sqe.sgl.len.get();
    if sqe.sgl.kind != Sgl::TRANSPORT {
        return Err(StatusCode::SGL_TYPE_INVALID);
    }
    if room == 0 || room > queue.shared.config.data_bytes_max {
        return Err(StatusCode::SGL_LENGTH_INVALID);
    }
    let len = page.len().min(room as usize);
    Ok(Some(Reply { data: Some(DmaBytes::copy_of(&page[..len])), ..Reply::default() }))
}

fn fabrics<S: Subsystems>(queue: &Queue<S>, sqe: &Sqe) -> Outcome {
    let association = &queue.association;
    match sqe.fabrics_type() {
        kind::PROPERTY_GET => {
            let value = match property_of(sqe).ok_or(StatusCode::INVALID_FIELD)? {
                (property::CAP, true) => Capabilities::new(queue.shared.config.queue_entries, READY_MS).0,
                (property::VS, false) => u64::from(VERSION_2_0),
                (property::CC, false) => u64::from(association.configuration()),
                (property::CSTS, false) => u64::from(association.status()),
                _ => return Err(StatusCode::INVALID_FIELD),
            };
            Ok(Some(Reply::result(value)))
        }
        kind::PROPERTY_SET => match property_of(sqe) {
            Some((property::CC, false)) => {
                association.configure(sqe.cdw(12));
                done(0)
            }
            _ => Err(StatusCode::INVALID_FIELD),
        },
        kind::CONNECT => Err(StatusCode::SEQUENCE_ERROR), // This queue is connected already.
        _ => Err(StatusCode::INVALID_OPCODE),
    }
}

fn identify<S: Subsystems>(queue: &Queue<S>, sqe: &Sqe) -> Result<Vec<u8>, StatusCode> {
    const NVM: u8 = 0;
    let structure = sqe.cdw(10).to_le_bytes()[0];
    let command_set = sqe.cdw(11).to_le_bytes()[3];
    let nsid = sqe.nsid.get();
    if structure == cns::CONTROLLER {
        return Ok(identify::page_of(&controller(queue)));
    }
    let Export::Volumes(session) = &queue.association.export else {
        return Err(StatusCode::INVALID_FIELD);
    };
    let session = &**session;
    let with_command_set =
        [cns::COMMAND_SET_NAMESPACE, cns::COMMAND_SET_CONTROLLER, cns::COMMAND_SET_NAMESPACE_LIST];
    if with_command_set.contains(&structure) && command_set != NVM {
        return Err(StatusCode::INVALID_FIELD);
    }
    match structure {
        cns::NAMESPACE if nsid == NSID_ALL => Err(StatusCode::INVALID_NAMESPACE),
        cns::NAMESPACE => Ok(match geometry(session, nsid)? {
            Some(geometry) => identify::page_of(&namespace(geometry)),
            None => vec![0; IDENTIFY_LEN],
        }),
        cns::NAMESPACE_LIST | cns::COMMAND_SET_NAMESPACE_LIST if nsid >= 0xFFFF_FFFE => {
            Err(StatusCode::INVALID_NAMESPACE)
        }
        cns::NAMESPACE_LIST | cns::COMMAND_SET_NAMESPACE_LIST => {
            Ok(identify::namespace_list(session.namespace_ids(), nsid))
        }
        cns::NAMESPACE_DESCRIPTORS => {
            geometry(session, nsid)?.ok_or(StatusCode::INVALID_NAMESPACE)?;
            Ok(identify::namespace_descriptors(session.identity(nsid).uuid))
        }
        cns::INDEPENDENT_NAMESPACE => {
            geometry(session, nsid)?.ok_or(StatusCode::INVALID_NAMESPACE)?;
            let mut page = IndependentNamespace::new_zeroed();
            page.nmic = 1;
            page.nstat = 1;
            Ok(identify::page_of(&page))
        }
        // Zero: no protection information, and no limits besides MDTS on write-zeroes and deallocation.
        cns::COMMAND_SET_NAMESPACE | cns::COMMAND_SET_CONTROLLER => Ok(vec![0; IDENTIFY_LEN]),
        cns::COMMAND_SETS => {
            let mut page = vec![0; IDENTIFY_LEN];
            page[0] = 1; // Combination 0: the NVM command set alone.
            Ok(page)
        }
        _ => Err(StatusCode::INVALID_FIELD),
    }
}

/// The geometry of an active namespace; `None` for an id that could be one and is not.
fn geometry<S: Session>(session: &S, nsid: u32) -> Result<Option<Geometry>, StatusCode> {
    if nsid == 0 || nsid == NSID_ALL {
        return Err(StatusCode::INVALID_NAMESPACE);
    }
    Ok(session.namespace(nsid).map(|device| device.geometry()))
}

fn namespace(geometry: Geometry) -> IdentifyNamespace {
    let mut page = IdentifyNamespace::new_zeroed();
    page.nsze = geometry.blocks.0.into();
    page.ncap = geometry.blocks.0.into();
    page.nuse = geometry.blocks.0.into();
    page.nmic = 1;
    page.dlfeat = 0b0_1001; // Unmapped blocks read as zeroes, and write-zeroes may unmap.
    page.lbaf[0].lbads = u8::try_from(geometry.block_size.ilog2()).expect("at most 31");
    page.nvmcap[0] = geometry.size().0.into();
    page
}

fn controller<S: Subsystems>(queue: &Queue<S>) -> IdentifyController {
    let (config, association) = (&queue.shared.config, &queue.association);
    let mut page = IdentifyController::new_zeroed();
    page.serial = text_field(&config.serial, b' ');
    page.model = text_field(MODEL, b' ');
    page.firmware = text_field(env!("CARGO_PKG_VERSION"), b' ');
    page.mdts = config.mdts();
    page.cntlid = association.cntlid.into();
    page.version = VERSION_2_0.into();
    page.ctratt = (1 | (1 << 6)).into(); // 128-bit host identifiers; any command keeps the association alive.
    page.lpa = 0b0110; // Commands supported and effects; offsets into log pages.
    page.elpe = u8::try_from(ERROR_LOG_ENTRIES - 1).expect("few");
    page.aerl = u8::try_from(limits::ASYNC_EVENTS_MAX - 1).expect("few");
    page.kas = 1.into(); // In units of 100 ms.
    page.sqes = 0x66;
    page.cqes = 0x44;
    page.maxcmd = config.queue_entries.into();
    page.sgls = (1 | (1 << 20)).into(); // Without alignment; offsets into the capsule.
    page.subnqn = text_field(&association.subnqn, 0);
    page.ioccsz = ((64 + config.in_capsule_bytes) / 16).into();
    page.iorcsz = 1.into();
    page.msdbd = 1;
    match &association.export {
        Export::Discovery => {
            page.cntrltype = 2;
            page.oaes = event::DISCOVERY.into();
        }
        Export::Volumes(session) => {
            page.cntrltype = 1;
            page.cmic = 1 << 1; // Several controllers reach the same namespaces.
            page.oaes = event::NAMESPACE.into();
            let highest = session.namespace_ids().last().copied().unwrap_or(0);
            page.nn = u32::try_from(limits::NAMESPACES_MAX).expect("few").max(highest).into();
            page.mnan = page.nn;
            page.oncs = (1 | (1 << 2) | (1 << 3)).into(); // Compare, dataset management, write-zeroes.
            page.vwc = 0b111; // A volatile cache; a flush may name all namespaces.
        }
    }
    page
}

fn set_features<S: Subsystems>(queue: &Queue<S>, sqe: &Sqe) -> Outcome {
    let association = &queue.association;
    if sqe.cdw(10) & feature::SAVE != 0 {
        return Err(StatusCode::FEATURE_NOT_SAVEABLE);
    }
    let value = sqe.cdw(11);
    match sqe.cdw(10).to_le_bytes()[0] {
        id::NUMBER_OF_QUEUES if is_discovery(association) => Err(StatusCode::INVALID_FIELD),
        id::NUMBER_OF_QUEUES => {
            if value & 0xFFFF == 0xFFFF || value >> 16 == 0xFFFF {
                return Err(StatusCode::INVALID_FIELD);
            }
            let wanted = u16::try_from(feature::queue_count(value)).expect("at most 65535");
            let granted = wanted.min(queue.shared.config.io_queues_max);
            association.io_queues.set(granted);
            done(feature::number_of_queues(granted))
        }
        id::KEEP_ALIVE_TIMER => {
            association.set_kato_ms(value);
            done(0)
        }
        id::ASYNC_EVENT_CONFIG => {
            association.enable_events(value);
            done(0)
        }
        // The cache of the devices cannot be turned off; a host may only ask for what is.
        id::VOLATILE_WRITE_CACHE if value & 1 == 1 => done(0),
        id::VOLATILE_WRITE_CACHE | id::HOST_IDENTIFIER => Err(StatusCode::FEATURE_NOT_CHANGEABLE),
        id::ARBITRATION | id::POWER_MANAGEMENT | id::ERROR_RECOVERY | id::WRITE_ATOMICITY if value == 0 => {
            done(0)
        }
        _ => Err(StatusCode::INVALID_FIELD),
    }
}

fn get_features<S: Subsystems>(queue: &Queue<S>, sqe: &Sqe) -> Outcome {
    let association = &queue.association;
    let [feature, select, ..] = sqe.cdw(10).to_le_bytes();
    match select & 7 {
        0..=2 => {} // The current value is also the default and the saved one.
        _ => return Err(StatusCode::INVALID_FIELD),
    }
    match feature {
        id::NUMBER_OF_QUEUES if !is_discovery(association) => {
            done(feature::number_of_queues(association.io_queues.get()))
        }
        id::KEEP_ALIVE_TIMER => done(association.kato_ms.get()),
        id::ASYNC_EVENT_CONFIG => done(association.enabled_events()),
        id::VOLATILE_WRITE_CACHE if !is_discovery(association) => done(1),
        id::ARBITRATION | id::POWER_MANAGEMENT | id::ERROR_RECOVERY | id::WRITE_ATOMICITY => done(0),
        id::HOST_IDENTIFIER if sqe.cdw(11) & 1 == 1 => page(queue, sqe, association.hostid.as_bytes()),
        _ => Err(StatusCode::INVALID_FIELD),
    }
}

fn is_discovery<S: Subsystems>(association: &Association<S>) -> bool {
    matches!(association.export, Export::Discovery)
}

fn get_log_page<S: Subsystems>(queue: &Queue<S>, sqe: &Sqe) -> Outcome {
    let association = &queue.association;
    let request = LogRequest::parse(sqe);
    let discovery = is_discovery(association);
    let whole = match request.id {
        log::id::DISCOVERY if discovery => discovery_log(queue, &request),
        log::id::SUPPORTED if discovery => log::supported(&[log::id::SUPPORTED, log::id::DISCOVERY]),
        log::id::EFFECTS => log::effects(discovery),
        _ if discovery => return Err(StatusCode::INVALID_LOG_PAGE),
        log::id::SUPPORTED => log::supported(&[
            log::id::SUPPORTED,
            log::id::ERROR,
            log::id::SMART,
            log::id::FIRMWARE,
            log::id::CHANGED_NAMESPACES,
            log::id::EFFECTS,
        ]),
        log::id::ERROR => log::error(ERROR_LOG_ENTRIES),
        log::id::SMART => log::smart(),
        log::id::FIRMWARE => log::firmware(env!("CARGO_PKG_VERSION")),
        log::id::CHANGED_NAMESPACES => {
            log::changed_namespaces(&association.take_changed_namespaces(request.retain_event))
        }
        _ => return Err(StatusCode::INVALID_LOG_PAGE),
    };
    if request.len_bytes > u64::from(queue.shared.config.data_bytes_max)
        || !request.offset_bytes.is_multiple_of(4)
    {
        return Err(StatusCode::INVALID_FIELD);
    }
    let offset = usize::try_from(request.offset_bytes).ok().filter(|&offset| offset <= whole.len());
    let rest = &whole[offset.ok_or(StatusCode::INVALID_FIELD)?..];
    let mut asked = vec![0; usize::try_from(request.len_bytes).expect("at most the greatest transfer")];
    let len = rest.len().min(asked.len());
    asked[..len].copy_from_slice(&rest[..len]); // Beyond its end a log page reads as zeroes.
    page(queue, sqe, &asked)
}

/// The discovery log, with the referrals and subsystems that the stage behind the target names.
fn discovery_log<S: Subsystems>(queue: &Queue<S>, request: &LogRequest) -> Vec<u8> {
    if !request.retain_event {
        queue.association.discovery_read();
    }
    let (entries, generation) = queue.shared.discovery_log();
    log::discovery(&entries, generation)
}
