//! What this kernel and this user allow, asked of the kernel itself, probe by probe.
//!
//! Refuses to go by version numbers: each program type is loaded, and attached where attaching does
//! nothing.

use aya::programs::{BtfTracePoint, FEntry, FExit, Iter, Lsm, ProgramError};
use aya::{Btf, Ebpf};

use super::refusal::{self, in_one_line};
use super::{BTF_PATH, KernelTypes, btf, layout, loader};

/// Programs that do nothing, embedded.
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probe.bpf.o"));

/// The answer to one probe: a detail of what works, or why it does not.
pub type Answer = Result<String, String>;

/// What BPF can do here; `None` stands for a probe that could not be tried because an earlier one
/// failed.
#[derive(Debug)]
pub struct Answers {
    /// The kernel shows its types, and they have what is needed.
    pub btf: Answer,
    /// Maps and the object can be loaded.
    pub bpf: Answer,
    /// The snapshot program loads.
    pub task_file: Answer,
    /// Paths can be asked for in an iterator.
    pub d_path: Answer,
    /// References that no fd table shows can be searched for.
    pub search: Answer,
    /// Mappings can be iterated.
    pub task_vma: Answer,
    /// Unix sockets can be iterated.
    pub unix: Answer,
    /// Typed tracepoints.
    pub tp_btf: Answer,
    /// Function entry.
    pub fentry: Answer,
    /// Function exit.
    pub fexit: Answer,
    /// Security hooks.
    pub lsm: Answer,
}

/// Asks everything.
pub fn ask() -> Answers {
    let types = match KernelTypes::open() {
        Ok(bytes) => bytes,
        Err(error) => {
            let meaning = refusal::no_types(&error);
            return nothing(&format!("read {BTF_PATH}: {error}{meaning}"), None);
        }
    };
    let parsed = match btf::Btf::parse(&types) {
        Ok(parsed) => parsed,
        Err(error) => return nothing(&error.to_string(), None),
    };
    let d_path = if parsed.allows_d_path() {
        Ok("iterators tell paths themselves".into())
    } else {
        Err("not in this kernel: paths are read from /proc".into())
    };
    let btf = match layout::offsets(&parsed, false) {
        Ok(_) => Ok("has every structure that is needed".into()),
        Err(error) => Err(error.to_string()),
    };
    let load = || loader().btf(None).load(OBJECT);
    let kernel = Btf::from_sys_fs();
    let (mut object, kernel) = match (load(), kernel) {
        (Ok(object), Ok(kernel)) => (object, kernel),
        (Err(error), _) => return nothing(&in_one_line(&error), Some((btf, d_path))),
        (_, Err(error)) => return nothing(&in_one_line(&error), Some((btf, d_path))),
    };
    let task_file = super::TaskFileIterator::load(u32::MAX)
        .map(|_| "the kernel's own lock tables can be read".into())
        .map_err(|error| error.to_string());
    let hunt = super::search::Hunt::new(std::collections::BTreeMap::new());
    let search = hunt.map_err(|error| error.to_string()).map(|hunt| {
        let gaps = hunt.gaps().iter();
        let but: Vec<String> =
            gaps.map(|(via, why)| format!(", but not {}: {why}", via.name())).collect();
        format!("sockets, rings and mappings can be looked into{}", but.concat())
    });
    Answers {
        btf,
        search,
        bpf: Ok("maps and programs can be loaded".into()),
        task_file,
        d_path,
        task_vma: iterator(&mut object, "probe_task_vma", "task_vma", &kernel),
        unix: iterator(&mut object, "probe_unix", "unix", &kernel),
        tp_btf: program(&mut object, "probe_tp_btf", |program: &mut BtfTracePoint| {
            program.load("flock_lock_inode", &kernel)?;
            program.attach().map(drop)
        }),
        fentry: program(&mut object, "probe_fentry", |program: &mut FEntry| {
            program.load("locks_remove_posix", &kernel)?;
            program.attach().map(drop)
        }),
        fexit: program(&mut object, "probe_fexit", |program: &mut FExit| {
            program.load("locks_remove_posix", &kernel)?;
            program.attach().map(drop)
        }),
        lsm: program(&mut object, "probe_lsm", |program: &mut Lsm| {
            program.load("file_lock", &kernel)?;
            program.attach().map(drop)
        })
        .and_then(lsm_is_active),
    }
}

fn nothing(why: &str, types: Option<(Answer, Answer)>) -> Answers {
    let not = || Err(why.to_owned());
    let untried = || Err("not tried: BPF does not load".to_owned());
    let (btf, d_path, bpf) = match types {
        Some((btf, d_path)) => (btf, d_path, not()),
        None => (not(), untried(), Err("not tried: no type information".to_owned())),
    };
    Answers {
        btf,
        bpf,
        task_file: untried(),
        search: untried(),
        d_path,
        task_vma: untried(),
        unix: untried(),
        tp_btf: untried(),
        fentry: untried(),
        fexit: untried(),
        lsm: untried(),
    }
}

fn iterator(object: &mut Ebpf, name: &str, kind: &str, kernel: &Btf) -> Answer {
    program(object, name, |program: &mut Iter| {
        program.load(kind, kernel)?;
        program.attach().map(drop)
    })
}

fn program<'a, P: 'a>(
    object: &'a mut Ebpf,
    name: &str,
    attach: impl FnOnce(&mut P) -> Result<(), ProgramError>,
) -> Answer
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = object.program_mut(name).ok_or_else(|| format!("{name}: not in the object"))?;
    let program: &mut P = program.try_into().map_err(|error: ProgramError| in_one_line(&error))?;
    match attach(program) {
        Ok(()) => Ok("loads and attaches".into()),
        Err(error) => Err(in_one_line(&error)),
    }
}

fn lsm_is_active(works: String) -> Answer {
    match std::fs::read_to_string("/sys/kernel/security/lsm") {
        Ok(active) if active.trim().split(',').any(|name| name == "bpf") => Ok(works),
        Ok(active) => {
            Err(format!("attaches, but is not active: security modules are {}", active.trim()))
        }
        Err(error) => Err(format!("attaches; whether it is active is not known: {error}")),
    }
}
