//! The pins: tables and links in a folder of a BPF file system, which outlive every process.
//!
//! Refuses to take over what it would misread: pins of another layout are replaced, and what is lost
//! with them is said.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, RingBuf};
use aya::programs::links::PinnedLink;
use lockwatch_common::history::{
    ATTENDED_MAP, COUNTERS_MAP, DEAD_MAP, GLOBALS_MAP, Globals, HELD_MAP, LAYOUT, LOCKS_MAP,
    MOMENTS_MAP, OPERATIONS_MAP, OWNERS_MAP, SLOTS_MAP, SURVIVED_MAP, TOLD_MAP, WAITERS_MAP,
};

use super::array::MappedArray;
use super::tables::{HANDOFF_WINDOW, Tables};
use super::{Continuity, HistoryError, Options, load, sys};

/// The folder of the pins, below the one that is configured.
const FOLDER: &str = "history";
/// The same while it is being made.
const DRAFT: &str = "history_new";

const MAPS: [&str; 13] = [
    GLOBALS_MAP,
    LOCKS_MAP,
    OWNERS_MAP,
    OPERATIONS_MAP,
    WAITERS_MAP,
    DEAD_MAP,
    SURVIVED_MAP,
    ATTENDED_MAP,
    HELD_MAP,
    SLOTS_MAP,
    COUNTERS_MAP,
    TOLD_MAP,
    MOMENTS_MAP,
];

/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

const GLOBALS_WORDS: usize = size_of::<Globals>() / 8;

/// Takes over what is pinned, or makes and pins it anew.
pub(super) fn open(options: &Options) -> Result<(Tables, Continuity), HistoryError> {
    prepare(&options.folder)?;
    let folder = options.folder.join(FOLDER);
    let continuity = if exists(&folder)? {
        match take_over(&folder) {
            Ok(tables) => return Ok((tables, Continuity::Continued)),
            Err(why) => {
                log::warn!(
                    "{}: the history there cannot be taken over ({why}): it is begun anew, and \
                     who took the locks of now, and when, is lost",
                    folder.display()
                );
                remove(&folder)?;
                Continuity::Replaced(why.to_string())
            }
        }
    } else {
        Continuity::New
    };
    Ok((make(options)?, continuity))
}

/// The tables that are pinned, for reading alone; `None` where there are none of this layout.
pub(super) fn read_only(folder: &Path) -> Result<Option<Tables>, HistoryError> {
    let folder = folder.join(FOLDER);
    if !exists(&folder)? {
        return Ok(None);
    }
    let globals = globals(&folder, false)?;
    if globals.load(0) != LAYOUT {
        return Ok(None);
    }
    Tables::open(|name| table(&folder, name), globals, false).map(Some)
}

/// The ring of records.
pub(super) fn moments(folder: &Path) -> Result<RingBuf<MapData>, HistoryError> {
    let path = folder.join(FOLDER).join(MOMENTS_MAP);
    let map = Map::from_map_data(table(&folder.join(FOLDER), MOMENTS_MAP)?)
        .map_err(|error| pin("open", &path, error))?;
    RingBuf::try_from(map).map_err(|error| pin("map", &path, error))
}

/// Removes the pins; false where there are none.
pub(super) fn detach(folder: &Path) -> Result<bool, HistoryError> {
    let draft = folder.join(DRAFT);
    if exists(&draft)? {
        remove(&draft)?;
    }
    let pins = folder.join(FOLDER);
    let there = exists(&pins)?;
    if there {
        remove(&pins)?;
    }
    Ok(there)
}

fn pin(what: &'static str, path: &Path, why: impl std::fmt::Display) -> HistoryError {
    HistoryError::Pin { what, path: path.to_owned(), why: why.to_string() }
}

/// The folder exists, and is of a BPF file system.
fn prepare(folder: &Path) -> Result<(), HistoryError> {
    if let Err(error) = fs::create_dir(folder)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        let parent = folder.parent().unwrap_or(folder);
        return match rustix::fs::statfs(parent) {
            Ok(found) if found.f_type as u64 == BPF_FS_MAGIC => Err(pin("make", folder, error)),
            _ => Err(HistoryError::NotBpffs { path: folder.to_owned() }),
        };
    }
    let found = rustix::fs::statfs(folder).map_err(|error| pin("look at", folder, error))?;
    if found.f_type as u64 != BPF_FS_MAGIC {
        // Made just now, on a file system that does not take pins.
        let _ = fs::remove_dir(folder);
        return Err(HistoryError::NotBpffs { path: folder.to_owned() });
    }
    Ok(())
}

fn exists(folder: &Path) -> Result<bool, HistoryError> {
    folder.try_exists().map_err(|error| pin("look for", folder, error))
}

fn table(folder: &Path, name: &str) -> Result<MapData, HistoryError> {
    let path = folder.join(name);
    MapData::from_pin(&path)
        .map_err(|error| pin("open", &path, crate::source::bpf::in_one_line(&error)))
}

fn globals(folder: &Path, writable: bool) -> Result<MappedArray, HistoryError> {
    let map = table(folder, GLOBALS_MAP)?;
    MappedArray::new(map.fd(), 1, GLOBALS_WORDS, writable)
        .map_err(|error| pin("map", &folder.join(GLOBALS_MAP), error))
}

fn link_path(folder: &Path, program: &str) -> PathBuf {
    folder.join(format!("link_{program}"))
}

/// The id of a program of the history that is pinned in the folder, by which what all of them say is
/// found.
pub(super) fn speaker(folder: &Path) -> Result<u32, HistoryError> {
    let path = link_path(&folder.join(FOLDER), load::SPEAKER);
    let ask = |error| pin("ask", &path, error);
    let program = sys::program_of(&path).map_err(ask)?;
    sys::id_of(program.as_fd()).map_err(ask)
}

fn take_over(folder: &Path) -> Result<Tables, HistoryError> {
    let globals = globals(folder, true)?;
    let layout = globals.load(0);
    if layout != LAYOUT {
        return Err(pin(
            "take over",
            folder,
            format!("its layout is number {layout}, and this lockwatch's is {LAYOUT}"),
        ));
    }
    let mut programs = Vec::new();
    for program in load::programs() {
        let path = link_path(folder, program.name);
        // Dropping the handle leaves the pin, and with it the link.
        PinnedLink::from_pin(&path)
            .map_err(|error| pin("open", &path, crate::source::bpf::in_one_line(&error)))?;
        if !program.is_second {
            programs.push(sys::program_of(&path).map_err(|error| pin("ask", &path, error))?);
        }
    }
    let mut tables = Tables::open(|name| table(folder, name), globals, true)?;
    tables.programs = programs;
    Ok(tables)
}

/// Loads and attaches the programs, and pins all of it.
fn make(options: &Options) -> Result<Tables, HistoryError> {
    let draft = options.folder.join(DRAFT);
    if exists(&draft)? {
        remove(&draft)?;
    }
    fs::create_dir(&draft).map_err(|error| pin("make", &draft, error))?;
    let made = pinned(options, &draft);
    if made.is_err() {
        remove(&draft)?;
        made?;
    }
    // Whoever finds the folder finds it whole.
    let folder = options.folder.join(FOLDER);
    fs::rename(&draft, &folder).map_err(|error| pin("name", &folder, error))?;
    take_over(&folder)
}

fn pinned(options: &Options, folder: &Path) -> Result<(), HistoryError> {
    let (mut object, _) = load::load(&options.sizes)?;
    for name in MAPS {
        let path = folder.join(name);
        let map = object.map(name).ok_or_else(|| pin("find", &path, "not in the object"))?;
        map.pin(&path).map_err(|error| pin("pin", &path, error))?;
    }
    let globals = globals(folder, true)?;
    globals.store(0, LAYOUT);
    globals.store(HANDOFF_WINDOW, options.handoff_window);
    for program in load::programs() {
        let path = link_path(folder, program.name);
        load::attach(&mut object, program.name)?
            .pin(&path)
            .map_err(|error| pin("pin", &path, error))?;
    }
    Ok(())
}

/// Removes a folder of pins. Links go first, so that no program runs on with half its tables.
fn remove(folder: &Path) -> Result<(), HistoryError> {
    let entries = fs::read_dir(folder).map_err(|error| pin("list", folder, error))?;
    let mut pins = Vec::new();
    for entry in entries {
        pins.push(entry.map_err(|error| pin("list", folder, error))?.path());
    }
    pins.sort_by_key(|path| {
        !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"link_"))
    });
    for path in pins {
        fs::remove_file(&path).map_err(|error| pin("remove", &path, error))?;
    }
    fs::remove_dir(folder).map_err(|error| pin("remove", folder, error))
}
