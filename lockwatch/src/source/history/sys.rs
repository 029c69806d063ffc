//! bpf(2) where aya has no call of its own: reading a table in batches, taking an element out.
//!
//! Refuses to know what the tables hold.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use lockwatch_common::wire::{self, Wire};

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// How an element is written.
#[derive(Clone, Copy)]
pub(super) enum Write {
    /// Instead of what is there.
    Any = 0,
    /// Only where nothing is there.
    New = 1,
}

/// The member of `union bpf_attr` for one element.
#[repr(C)]
struct Element {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The member of `union bpf_attr` for many elements.
#[repr(C)]
struct Batch {
    after: u64,
    position: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Calls bpf(2).
///
/// # Safety
/// `attributes` must be what `command` expects, and the addresses in it valid for what it does.
unsafe fn call<T>(command: libc::c_long, attributes: &mut T) -> io::Result<()> {
    // SAFETY: the caller's promise.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The member of `union bpf_attr` for what the kernel tells of an object.
#[repr(C)]
struct Info {
    object: u32,
    length: u32,
    info: u64,
}

/// Reads the first words of what the kernel tells of an object; what it does not know stays 0.
fn info<const WORDS: usize>(object: BorrowedFd<'_>) -> io::Result<[u64; WORDS]> {
    let mut words = [0u64; WORDS];
    let mut attributes = Info {
        object: object.as_raw_fd().unsigned_abs(),
        length: size_of::<[u64; WORDS]>() as u32,
        info: words.as_mut_ptr() as u64,
    };
    // SAFETY: `words` is as long as is told. All zeros ask for no arrays.
    unsafe { call(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)? };
    Ok(words)
}

/// The member of `union bpf_attr` for a pin.
#[repr(C)]
struct Pin {
    path: u64,
    object: u32,
    flags: u32,
}

/// Calls bpf(2) for a descriptor.
///
/// # Safety
/// As [`call`], and the answer of `command` must be a new descriptor.
unsafe fn open<T>(command: libc::c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    unsafe {
        let attributes = std::ptr::from_mut(attributes);
        let answer = libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>());
        if answer < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(answer as i32))
    }
}

/// The program of a link that is pinned.
pub(super) fn program_of(link: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(link.as_os_str().as_bytes())?;
    let mut pin = Pin { path: path.as_ptr() as u64, object: 0, flags: 0 };
    // SAFETY: the path is valid for as long as the call lasts.
    let link = unsafe { open(BPF_OBJ_GET, &mut pin)? };
    // `struct bpf_link_info` of include/uapi/linux/bpf.h: type, id, prog_id.
    let [_, program] = info::<2>(link.as_fd())?;
    // The id, and two numbers that are for other objects.
    let mut attributes = [program as u32, 0, 0];
    // SAFETY: plain numbers.
    unsafe { open(BPF_PROG_GET_FD_BY_ID, &mut attributes) }
}

/// The id of a program.
pub(super) fn id_of(program: BorrowedFd<'_>) -> io::Result<u32> {
    // `struct bpf_prog_info` of include/uapi/linux/bpf.h: type, id.
    let [words] = info::<1>(program)?;
    Ok((words >> 32) as u32)
}

/// How often a program could not run because it already did on the same CPU
/// (`bpf_prog_info.recursion_misses`; 0 before 5.12, which does not count).
pub(super) fn missed(program: BorrowedFd<'_>) -> io::Result<u64> {
    // Its offset is 208.
    let words = info::<27>(program)?;
    Ok(words[26])
}

fn element<K: Wire>(
    command: libc::c_long,
    map: BorrowedFd<'_>,
    key: &K,
    value: u64,
    flags: u64,
) -> io::Result<()> {
    let mut attributes = Element {
        map: map.as_raw_fd().unsigned_abs(),
        reserved: 0,
        key: std::ptr::from_ref(key) as u64,
        value,
        flags,
    };
    // SAFETY: `key` is valid, and every caller gives a value as long as the map's.
    unsafe { call(command, &mut attributes) }
}

/// `ENOTSUPP` of `include/linux/errno.h`, which is not for user space and reaches it all the same.
const ENOTSUPP: i32 = 524;

/// True where the kernel has no such call, or not for such a table.
pub(super) fn is_not_there(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP))
}

/// True where the table has no room for one more.
pub(super) fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::E2BIG)
}

/// The value under `key`; `None` where there is none. `V` must be as long as the map's values.
pub(super) fn get<K: Wire, V: Wire>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    fetch(BPF_MAP_LOOKUP_ELEM, map, key)
}

/// Takes the value under `key` out, at once; `None` where there is none.
///
/// # Errors
/// One that [`is_not_there`] knows where the kernel cannot (before 5.14).
pub(super) fn take<K: Wire, V: Wire>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    fetch(BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key)
}

fn fetch<K: Wire, V: Wire>(
    command: libc::c_long,
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    let mut value = vec![0u8; size_of::<V>()];
    match element(command, map, key, value.as_mut_ptr() as u64, 0) {
        Ok(()) => Ok(wire::read(&value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The value under `key`, of `length` bytes: of a table that has one for each CPU, all of them.
pub(super) fn get_bytes<K: Wire>(
    map: BorrowedFd<'_>,
    key: &K,
    length: usize,
) -> io::Result<Vec<u8>> {
    let mut value = vec![0u8; length];
    element(BPF_MAP_LOOKUP_ELEM, map, key, value.as_mut_ptr() as u64, 0)?;
    Ok(value)
}

/// Writes a value.
pub(super) fn put<K: Wire, V: Wire>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
    how: Write,
) -> io::Result<()> {
    element(BPF_MAP_UPDATE_ELEM, map, key, std::ptr::from_ref(value) as u64, how as u64)
}

/// Removes a value; false where there was none.
pub(super) fn remove<K: Wire>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    match element(BPF_MAP_DELETE_ELEM, map, key, 0, 0) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Elements that are read with one call.
const AT_ONCE: usize = 1024;

/// Every element of a hash table, at some moment of the reading each. One that comes or goes
/// meanwhile may be there or not; one that stays is there.
pub(super) fn all<K: Wire, V: Wire>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut all = Vec::new();
    each(map, |key, value| all.push((key, value)))?;
    Ok(all)
}

/// Hands each of these elements to `take`: of a table that may hold much, a part at a time.
pub(super) fn each<K: Wire, V: Wire>(
    map: BorrowedFd<'_>,
    mut take: impl FnMut(K, V),
) -> io::Result<()> {
    match batches(map, &mut take) {
        // Before 5.6, and for kinds of tables that have no batches: said before anything is read.
        Err(error) if is_not_there(&error) => one_by_one(map, take),
        read => read,
    }
}

fn batches<K: Wire, V: Wire>(map: BorrowedFd<'_>, mut take: impl FnMut(K, V)) -> io::Result<()> {
    let mut at_once = AT_ONCE;
    let (mut keys, mut values) = (Vec::<u8>::new(), Vec::<u8>::new());
    let (mut after, mut position) = (0u64, 0u64);
    let mut first = true;
    loop {
        keys.resize(at_once * size_of::<K>(), 0);
        values.resize(at_once * size_of::<V>(), 0);
        let mut attributes = Batch {
            after: if first { 0 } else { (&raw const after) as u64 },
            position: (&raw mut position) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: at_once as u32,
            map: map.as_raw_fd().unsigned_abs(),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the buffers have room for `count` elements, the position for its 4 bytes.
        let answer = unsafe { call(BPF_MAP_LOOKUP_BATCH, &mut attributes) };
        let ended = match answer {
            Ok(()) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => true,
                // A bucket has more than fit.
                Some(libc::ENOSPC) if at_once < 1 << 24 => {
                    at_once *= 4;
                    continue;
                }
                _ => return Err(error),
            },
        };
        let count = (attributes.count as usize).min(at_once);
        let keys = keys.chunks_exact(size_of::<K>()).take(count);
        let values = values.chunks_exact(size_of::<V>());
        for (key, value) in keys.zip(values) {
            if let (Some(key), Some(value)) = (wire::read(key), wire::read(value)) {
                take(key, value);
            }
        }
        if ended {
            return Ok(());
        }
        after = position;
        first = false;
    }
}

fn one_by_one<K: Wire, V: Wire>(map: BorrowedFd<'_>, mut take: impl FnMut(K, V)) -> io::Result<()> {
    let mut next = vec![0u8; size_of::<K>()];
    let mut last: Option<K> = None;
    loop {
        let mut attributes = Element {
            map: map.as_raw_fd().unsigned_abs(),
            reserved: 0,
            key: last.as_ref().map_or(0, |key| std::ptr::from_ref(key) as u64),
            value: next.as_mut_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the key is absent or valid, and `next` has room for one.
        match unsafe { call(BPF_MAP_GET_NEXT_KEY, &mut attributes) } {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        let Some(key) = wire::read::<K>(&next) else { return Ok(()) };
        if let Some(value) = get(map, &key)? {
            take(key, value);
        }
        last = Some(key);
    }
}
