//! The search for references that no fd table shows: in flight in unix sockets, registered with
//! io_uring, mapped. Loaded only where a snapshot left a lock unexplained.
//!
//! Refuses to take "could not look" for "nothing there": each place that was not searched is told,
//! with the reason.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read as _};
use std::time::Instant;

use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData, RingBuf};
use aya::programs::{Iter, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};
use lockwatch_common::offsets::{self, Offsets};
use lockwatch_common::search::{
    CONTAINERS, CONTAINERS_MAP, RECORDS_MAP, WALK_MAP, WANTED_MAP, Walk,
};
use lockwatch_common::search_offsets::{self, SearchOffsets};

use super::search_layout::search_layout;
use super::search_record::parse;
use super::sightings::Sightings;
use super::{BpfError, IDLE_READS, KernelTypes, btf, failed, layout, loader, targets};
use crate::engine::identity::Owner;
use crate::engine::snapshot::{FileIx, Search, Via};

/// The programs and their maps, embedded.
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/search.bpf.o"));

const DESCRIPTORS: Program = Program { name: "search_descriptors", iterator: "task_file" };
const MAPPINGS: Program = Program { name: "search_mappings", iterator: "task_vma" };
const WALKER: Program = Program { name: "search_containers", iterator: "bpf_map" };

/// Rounds over containers inside containers before the rest is told as not searched. The kernel
/// itself lets sockets nest four deep.
const ROUNDS: u32 = 16;

/// Descriptions that a loaded object has room for; for more one is loaded that has.
const ROOM: usize = 1 << 12;

/// One program of the object.
#[derive(Clone, Copy)]
struct Program {
    name: &'static str,
    iterator: &'static str,
}

/// A search that can be made more than once: the loaded object, and what it looks for.
pub struct Hunt {
    searcher: Searcher,
    wanted: BTreeMap<Owner, FileIx>,
    /// Kinds of places that cannot be searched here, and why.
    gaps: Vec<(Via, String)>,
    /// When the last search was over.
    ended: Instant,
    /// Whether mappings can be.
    mappings: bool,
    /// Whether the mappings are left out where they can tell nothing.
    is_quick: bool,
}

impl Hunt {
    /// Loads what it takes to look for each of `wanted`.
    ///
    /// # Errors
    /// Where this kernel or these privileges do not allow it.
    pub(super) fn new(wanted: BTreeMap<Owner, FileIx>) -> Result<Self, BpfError> {
        let bytes = KernelTypes::open().map_err(BpfError::NoBtf)?;
        let kernel = btf::Btf::parse(&bytes).map_err(BpfError::Btf)?;
        let layout = search_layout(&kernel);
        let offsets = layout::offsets(&kernel, kernel.allows_d_path())?.words();
        let search_offsets = layout.offsets.words();
        let mut programs = vec![DESCRIPTORS, WALKER];
        if layout.offsets.has_mappings == 1 {
            programs.push(MAPPINGS);
        }
        let targets = targets(&kernel, programs.iter().map(|program| program.iterator))?;

        let mut searcher = Searcher::load(loader(), &offsets, &search_offsets, &wanted)?;
        let mut gaps = layout.gaps;
        let mut mappings = false;
        for (program, loaded) in searcher.load_programs(&programs, &targets) {
            match loaded {
                Ok(()) => mappings |= program.name == MAPPINGS.name,
                Err(error) if program.name == MAPPINGS.name => {
                    gaps.push((Via::Mmap, error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        let (ended, is_quick) = (Instant::now(), false);
        Ok(Self { searcher, wanted, gaps, ended, mappings, is_quick })
    }

    /// The same for one who looks again and again: mappings are left out where they can tell nothing
    /// of who holds what is looked for.
    #[must_use]
    pub fn made_quick(self) -> Self {
        Self { is_quick: true, ..self }
    }

    /// Looks for each of `wanted` from now on; false where there is no room for so many.
    ///
    /// # Errors
    /// Where the table cannot be written.
    pub(super) fn look_for(&mut self, wanted: BTreeMap<Owner, FileIx>) -> Result<bool, BpfError> {
        if wanted.len() > self.searcher.room {
            return Ok(false);
        }
        let table = &mut self.searcher.wanted;
        for owner in self.wanted.keys().filter(|owner| !wanted.contains_key(*owner)) {
            table.remove(&owner.token()).map_err(failed(WANTED_MAP))?;
        }
        for owner in wanted.keys().filter(|owner| !self.wanted.contains_key(*owner)) {
            table.insert(owner.token(), 1, 0).map_err(failed(WANTED_MAP))?;
        }
        self.wanted = wanted;
        Ok(true)
    }

    /// What it looks for, and on which file.
    pub(super) fn wanted(&self) -> &BTreeMap<Owner, FileIx> {
        &self.wanted
    }

    /// When the last search was over; when it was made ready, where none was made.
    pub fn ended(&self) -> Instant {
        self.ended
    }

    /// What it cannot look into, and why.
    pub(super) fn gaps(&self) -> &[(Via, String)] {
        &self.gaps
    }

    /// Looks.
    ///
    /// # Errors
    /// Where an iterator fails.
    pub(super) fn search(&mut self) -> Result<Sightings, BpfError> {
        self.look(true)
    }

    /// Looks everywhere but at mappings, and says what was searched as if it had.
    ///
    /// # Errors
    /// Where an iterator fails.
    pub(super) fn search_but_mappings(&mut self) -> Result<Sightings, BpfError> {
        self.look(false)
    }

    fn look(&mut self, mappings: bool) -> Result<Sightings, BpfError> {
        let mut sightings = Sightings::new(&self.wanted);
        let mut gaps = self.gaps.clone();
        self.searcher.run(DESCRIPTORS, &mut sightings)?;
        // To pass every mapping of the machine takes as long as all the rest. A ring that nothing but
        // its mapping keeps is not met then: whose locks all have a descriptor needs none.
        if mappings
            && self.mappings
            && !(self.is_quick && sightings.is_unmapped())
            && let Err(error) = self.searcher.run(MAPPINGS, &mut sightings)
        {
            gaps.push((Via::Mmap, error.to_string()));
        }
        let walked = self.searcher.walk(&mut sightings)?;
        for via in [Via::ScmRights, Via::IoUring] {
            if walked.cut > 0 {
                let cut = walked.cut;
                let why = format!("{cut} queues or tables changed too fast to be read whole");
                gaps.push((via, why));
            }
            if walked.too_deep {
                gaps.push((via, format!("sockets in flight nest more than {ROUNDS} deep")));
            }
        }
        let whole = |via: &Via| !gaps.iter().any(|(gap, _)| gap == via);
        let places = [Via::ScmRights, Via::IoUring, Via::Mmap];
        let searched = places.into_iter().filter(whole).collect();
        gaps.sort();
        self.ended = Instant::now();
        sightings.search = Search { searched, gaps };
        Ok(sightings)
    }
}

/// How the walk over the containers went.
#[derive(Default)]
struct Walked {
    cut: u64,
    too_deep: bool,
}

/// The loaded object.
struct Searcher {
    object: Ebpf,
    records: RingBuf<MapData>,
    containers: Array<MapData, [u64; 2]>,
    walk: Array<MapData, [u64; Walk::WORDS]>,
    wanted: BpfHashMap<MapData, u64, u32>,
    /// How many there can be in it.
    room: usize,
}

impl Searcher {
    fn load<'a>(
        mut loader: EbpfLoader<'a>,
        offsets: &'a [u32; Offsets::WORDS],
        search_offsets: &'a [u32; SearchOffsets::WORDS],
        wanted: &BTreeMap<Owner, FileIx>,
    ) -> Result<Self, BpfError> {
        let room = wanted.len().max(ROOM);
        let many = u32::try_from(room).unwrap_or(u32::MAX);
        let mut object = loader
            .btf(None)
            .override_global(offsets::GLOBAL, offsets, true)
            .override_global(search_offsets::GLOBAL, search_offsets, true)
            .map_max_entries(WANTED_MAP, many)
            .load(OBJECT)
            .map_err(failed("search"))?;
        let records = RingBuf::try_from(take(&mut object, RECORDS_MAP)?);
        let containers = Array::try_from(take(&mut object, CONTAINERS_MAP)?);
        let walk = Array::try_from(take(&mut object, WALK_MAP)?);
        let mut looked_for: BpfHashMap<MapData, u64, u32> =
            BpfHashMap::try_from(take(&mut object, WANTED_MAP)?).map_err(failed(WANTED_MAP))?;
        for owner in wanted.keys() {
            looked_for.insert(owner.token(), 1, 0).map_err(failed(WANTED_MAP))?;
        }
        Ok(Self {
            object,
            records: records.map_err(failed(RECORDS_MAP))?,
            containers: containers.map_err(failed(CONTAINERS_MAP))?,
            walk: walk.map_err(failed(WALK_MAP))?,
            wanted: looked_for,
            room,
        })
    }

    fn program(&mut self, name: &'static str) -> Result<&mut Iter, BpfError> {
        let absent = BpfError::Load { what: name, why: "not in the object".into() };
        let program = self.object.program_mut(name).ok_or(absent)?;
        program.try_into().map_err(failed::<ProgramError>(name))
    }

    /// Loads them side by side: the verifier's time is most of a search's, and it proves each
    /// program by itself.
    fn load_programs(
        &mut self,
        programs: &[Program],
        targets: &Btf,
    ) -> Vec<(Program, Result<(), BpfError>)> {
        let mut objects: HashMap<&str, &mut aya::programs::Program> =
            self.object.programs_mut().collect();
        let mut load = |program: Program| {
            let absent = BpfError::Load { what: program.name, why: "not in the object".into() };
            let object = objects.remove(program.name).ok_or(absent);
            move || {
                let loading: &mut Iter =
                    object?.try_into().map_err(failed::<ProgramError>(program.name))?;
                loading.load(program.iterator, targets).map_err(failed(program.name))
            }
        };
        std::thread::scope(|scope| {
            let begun: Vec<_> = programs
                .iter()
                .map(|&program| {
                    let loading = load(program);
                    (program, std::thread::Builder::new().spawn_scoped(scope, loading))
                })
                .collect();
            begun
                .into_iter()
                .map(|(program, loading)| {
                    let lost = |why: String| Err(BpfError::Load { what: program.name, why });
                    let loaded = match loading {
                        Ok(loading) => {
                            loading.join().unwrap_or_else(|_| lost("its loading panicked".into()))
                        }
                        Err(error) => lost(format!("no thread to load it: {error}")),
                    };
                    (program, loaded)
                })
                .collect()
        })
    }

    fn open(&mut self, program: Program) -> Result<File, BpfError> {
        let loaded = self.program(program.name)?;
        let link = loaded.attach().and_then(|link| loaded.take_link(link));
        link.map_err(failed(program.name))?.into_file().map_err(failed(program.name))
    }

    /// Runs a program to its end.
    fn run(&mut self, program: Program, sightings: &mut Sightings) -> Result<(), BpfError> {
        let mut iterator = self.open(program)?;
        let (mut idle, mut records) = (0, 0);
        loop {
            let read = iterator.read(&mut [0u8; 64]);
            let before = records;
            while let Some(record) = self.records.next() {
                sightings.take(parse(&record)?);
                records += 1;
            }
            match read {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                    _ => return Err(BpfError::Read(error)),
                },
            }
            // The walker bounds itself: each of its runs is a step on.
            idle = if records == before && program.name != WALKER.name { idle + 1 } else { 0 };
            if idle > IDLE_READS {
                return Err(BpfError::Stuck { visited: records });
            }
        }
    }

    /// Walks every container that was found, then those that were found inside, and so on.
    fn walk(&mut self, sightings: &mut Sightings) -> Result<Walked, BpfError> {
        let mut walked = Walked::default();
        let mut done = BTreeSet::new();
        for _ in 0..ROUNDS {
            let next: Vec<[u64; 2]> =
                sightings.containers().filter(|&container| done.insert(container)).collect();
            if next.is_empty() {
                return Ok(walked);
            }
            for batch in next.chunks(CONTAINERS as usize) {
                for (index, container) in (0..).zip(batch) {
                    let set = self.containers.set(index, container, 0);
                    set.map_err(failed(CONTAINERS_MAP))?;
                }
                let begin = Walk::begin(batch.len() as u64);
                self.walk.set(0, begin, 0).map_err(failed(WALK_MAP))?;
                self.run(WALKER, sightings)?;
                let end = self.walk.get(&0, 0).map_err(failed(WALK_MAP))?;
                walked.cut += Walk::progress(&end).1;
            }
        }
        walked.too_deep = sightings.containers().any(|container| !done.contains(&container));
        Ok(walked)
    }
}

fn take(object: &mut Ebpf, name: &'static str) -> Result<Map, BpfError> {
    let absent = BpfError::Load { what: name, why: "not in the object".into() };
    object.take_map(name).ok_or(absent)
}
