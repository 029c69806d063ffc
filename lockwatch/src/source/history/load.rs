//! The object of the history: loaded, its tables sized, its programs attached.

use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, Ebpf};
use lockwatch_common::history::{
    ATTENDED_MAP, DEAD_MAP, HELD_MAP, HELD_MASK, LOCKS_MAP, MOMENTS_MAP, OPERATIONS_MAP,
    OWNERS_MAP, TWICE, WAITERS_MAP,
};
use lockwatch_common::offsets::{self, ABSENT, Offsets};

use super::{HistoryError, kernel_log};
use crate::source::bpf::{self, BpfError, btf, layout};

/// The programs and their tables, embedded.
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/history.bpf.o"));

/// A program, and the tracepoint that it is attached to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    /// Its name in the object.
    pub(super) name: &'static str,
    /// The tracepoint.
    pub(super) tracepoint: &'static str,
    /// It sees only what another on the same tracepoint could not.
    pub(super) is_second: bool,
}

const fn on(tracepoint: &'static str) -> Program {
    Program { name: tracepoint, tracepoint, is_second: false }
}

const fn again(name: &'static str, tracepoint: &'static str) -> Program {
    Program { name, tracepoint, is_second: true }
}

/// The programs, each named after its tracepoint.
const ONCE: [Program; 6] = [
    on("flock_lock_inode"),
    on("posix_lock_inode"),
    on("generic_add_lease"),
    on("generic_delete_lease"),
    on("sched_process_exit"),
    on("sched_process_fork"),
];

/// One that has words to say.
pub(super) const SPEAKER: &str = "sched_process_exit";

/// The second ones, which must be attached after the first.
const AGAIN: [Program; 3] = [
    again("flock_lock_inode_again", "flock_lock_inode"),
    again("sched_process_exit_again", "sched_process_exit"),
    again("sched_process_fork_again", "sched_process_fork"),
];

/// The programs for this kernel, in the order in which they are to be attached.
pub(super) fn programs() -> impl Iterator<Item = Program> {
    let again: &[Program] = if are_preempted() { &AGAIN } else { &[] };
    ONCE.iter().chain(again).copied()
}

/// True where a program on a tracepoint may be preempted: since 7.0 the kernel guards tracepoints by
/// SRCU, and the types do not tell. A release that cannot be read counts as a new one.
pub(super) fn are_preempted() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_str().unwrap_or_default();
    let major = release.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_none_or(|major| major >= 7)
}

/// How much the tables hold. The kernel gives the memory when they are made: about 250 bytes a
/// lock, 220 an operation, 400 an owner of several ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Locks.
    pub locks: u32,
    /// Owners whose ranges were merged, cut or split.
    pub owners: u32,
    /// What those did.
    pub operations: u32,
    /// Threads that wait.
    pub waiters: u32,
    /// Endings of processes that had locks; the oldest make room.
    pub dead: u32,
    /// Files with attention.
    pub attended: u32,
    /// Bytes for records of the moment; a power of two, and at least a page.
    pub moments: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            locks: 160 * 1024,
            owners: 16 * 1024,
            operations: 64 * 1024,
            waiters: 32 * 1024,
            dead: 32 * 1024,
            attended: 16 * 1024,
            moments: 1 << 20,
        }
    }
}

/// The most hints about pids that are kept; pids beyond share them.
const HINTS: u32 = 1 << 20;

/// Loads the object; nothing is attached yet.
pub(super) fn load(sizes: &Sizes) -> Result<(Ebpf, Btf), HistoryError> {
    let types = bpf::KernelTypes::open().map_err(BpfError::NoBtf)?;
    let offsets = {
        let parsed = btf::Btf::parse(&types).map_err(BpfError::Btf)?;
        let offsets = layout::offsets(&parsed, false).map_err(BpfError::Layout)?;
        required(&offsets)?;
        offsets.words()
    };
    let targets = Btf::parse(&types, aya::Endianness::default()).map_err(bpf::failed("types"))?;
    let hints = hints();
    let mask = hints - 1;
    let twice = u32::from(are_preempted());
    let words = kernel_log::wanted();
    let mut loader = bpf::loader();
    if words == 0 {
        // The least that a ring may have.
        loader.map_max_entries(kernel_log::RING, rustix::param::page_size() as u32);
    }
    loader
        .btf(None)
        .override_global(offsets::GLOBAL, &offsets, true)
        .override_global(HELD_MASK, &mask, true)
        .override_global(TWICE, &twice, true)
        .override_global(aya_log::LEVEL, &words, true)
        .map_max_entries(HELD_MAP, hints)
        .map_max_entries(LOCKS_MAP, sizes.locks)
        .map_max_entries(OWNERS_MAP, sizes.owners)
        .map_max_entries(OPERATIONS_MAP, sizes.operations)
        .map_max_entries(WAITERS_MAP, sizes.waiters)
        .map_max_entries(DEAD_MAP, sizes.dead)
        .map_max_entries(ATTENDED_MAP, sizes.attended)
        .map_max_entries(MOMENTS_MAP, sizes.moments);
    let mut object = loader.load(OBJECT).map_err(bpf::failed("object"))?;
    for Program { name, tracepoint, .. } in programs() {
        program(&mut object, name)?.load(tracepoint, &targets).map_err(|error| {
            if let ProgramError::LoadError { verifier_log, .. } = &error {
                log::debug!("{name}: {verifier_log}");
            }
            bpf::failed(name)(error)
        })?;
    }
    Ok((object, targets))
}

/// Attaches a program of the loaded object.
pub(super) fn attach(object: &mut Ebpf, name: &'static str) -> Result<FdLink, HistoryError> {
    let program = program(object, name)?;
    let link = program.attach().and_then(|link| program.take_link(link));
    Ok(link.map_err(bpf::failed(name))?.into())
}

fn program<'a>(
    object: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut BtfTracePoint, HistoryError> {
    let program = object
        .program_mut(name)
        .ok_or(BpfError::Load { what: name, why: "not in the object".into() })?;
    Ok(program.try_into().map_err(bpf::failed::<ProgramError>(name))?)
}

/// What the programs cannot do without.
fn required(offsets: &Offsets) -> Result<(), HistoryError> {
    for (name, offset) in [
        ("task_struct.signal", offsets.task_signal),
        ("task_struct.exit_code", offsets.task_exit_code),
        ("signal_struct.live", offsets.signal_live),
        ("signal_struct.flags", offsets.signal_flags),
        ("signal_struct.group_exit_code", offsets.signal_group_exit_code),
    ] {
        if offset == ABSENT {
            return Err(HistoryError::Absent(name));
        }
    }
    Ok(())
}

/// One hint for each pid that there can be, as far as that is bearable; a power of two.
fn hints() -> u32 {
    std::fs::read_to_string("/proc/sys/kernel/pid_max")
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok())
        .unwrap_or(HINTS)
        .clamp(1024, HINTS)
        .next_power_of_two()
}
