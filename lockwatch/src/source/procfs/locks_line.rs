//! One line of `/proc/locks`, or of the `lock:` lines of `/proc/PID/fdinfo/FD`, which share their
//! form (`lock_get_status` in the kernel's `fs/locks.c`, 5.10 to 7.2).
//!
//! Refuses to interpret: a waiter's root, a lease's former access and the meaning of the pid are
//! for those who see more than one line.

use std::fmt;

use super::fault::{BadPart, number, signed};
use crate::engine::identity::{Access, Dev, LockKind, Range, RecordedPid};

/// The second column but one: how the entry takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// `ADVISORY`.
    Advisory,
    /// `MANDATORY`: a POSIX lock of a set-gid file on a `mand` mount (until 5.14).
    Mandatory,
    /// `MSNFS`: an flock with `LOCK_MAND`, a share mode that conflicts with nothing (until 5.17).
    ShareMode,
    /// `*NOINODE*`: a POSIX request without an open file.
    NoInode,
    /// `ACTIVE`: a lease that nobody objects to.
    Active,
    /// `BREAKING`: a lease whose holder has been asked to come down to [`Body::access`].
    Breaking,
    /// `BREAKER`: an open(2) or truncate(2) that waits for a lease to be given back.
    Breaker,
}

impl Mode {
    const ALL: [Self; 7] = [
        Self::Advisory,
        Self::Mandatory,
        Self::ShareMode,
        Self::NoInode,
        Self::Active,
        Self::Breaking,
        Self::Breaker,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Advisory => "ADVISORY",
            Self::Mandatory => "MANDATORY",
            Self::ShareMode => "MSNFS",
            Self::NoInode => "*NOINODE*",
            Self::Active => "ACTIVE",
            Self::Breaking => "BREAKING",
            Self::Breaker => "BREAKER",
        }
    }
}

/// What an entry is, wherever it is listed: all of its line but the place in the listing.
///
/// Two different locks of the kernel can have equal bodies (three shared flocks of one process),
/// but one lock never has two bodies in one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Body {
    /// Its kind. `ACCESS`, the wait for a mandatory lock (until 5.14), counts as POSIX.
    pub kind: LockKind,
    /// How it takes part.
    pub mode: Mode,
    /// Shared or exclusive; for a lease that is being broken what is left of it then. A share
    /// mode of an `MSNFS` flock is `Write` where it includes writing, `Unlock` where it is `NONE`.
    pub access: Access,
    /// The pid as shown: -1 for every OFD lock, 0 where the reader's namespace has none.
    pub pid: i32,
    /// Device and inode number; `None` is the kernel's `<none>:0`.
    pub inode: Option<(Dev, u64)>,
    /// The bytes.
    pub range: Range,
}

impl Body {
    /// The pid, by its meaning (`locks_translate_pid`).
    pub fn recorded_pid(&self) -> RecordedPid {
        match self.pid {
            -1 if self.kind == LockKind::Ofd => RecordedPid::Withheld,
            0 => RecordedPid::Zero,
            pid if pid < 0 => RecordedPid::Remote(pid),
            pid => RecordedPid::Local(pid),
        }
    }
}

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LockLine {
    /// Its number; a waiter carries that of the lock it waits behind.
    pub id: u64,
    /// 0 for a granted lock, 1 for a waiter behind it, 2 for a waiter behind that, and so on.
    /// Before 6.0 every waiter is shown at depth 1.
    pub depth: u32,
    /// The rest.
    pub body: Body,
}

impl LockLine {
    /// Parses a line without its line feed.
    ///
    /// # Errors
    /// The first part that is not what the kernel prints.
    pub fn parse(line: &[u8]) -> Result<Self, BadPart> {
        let colon = line.iter().position(|&byte| byte == b':');
        let Some(colon) = colon else { return Err(BadPart::new("number and colon", line)) };
        let id = number(line[..colon].trim_ascii(), 10, "number of the lock")?;

        // "%*s" with the arrow: the depth is one more than the blanks before it.
        let rest = line.get(colon + 1..).unwrap_or_default();
        let rest = rest.strip_prefix(b" ").unwrap_or(rest);
        let blanks = rest.iter().take_while(|&&byte| byte == b' ').count();
        let (depth, rest) = match rest[blanks..].strip_prefix(b"->") {
            Some(rest) => {
                let depth = u32::try_from(blanks + 1);
                (depth.map_err(|_| BadPart::new("arrow of a waiter", line))?, rest)
            }
            None => (0, rest),
        };

        let mut parts =
            rest.split(|byte| byte.is_ascii_whitespace()).filter(|part| !part.is_empty());
        let mut next = || parts.next().unwrap_or_default();
        let kind = kind(next())?;
        let mode = mode(next())?;
        let access = access(next())?;
        let pid = signed(next(), "pid")?;
        let inode = inode(next())?;
        let start = offset(next(), "first byte of the range")?;
        let end = match next() {
            b"EOF" => None,
            part => {
                let end = offset(part, "last byte of the range or EOF")?;
                if end < start {
                    return Err(BadPart::new("last byte not before the first", part));
                }
                Some(end)
            }
        };
        match next() {
            b"" => {}
            part => return Err(BadPart::new("end of the line", part)),
        }
        let range = Range::new(start, end);
        Ok(Self { id, depth, body: Body { kind, mode, access, pid, inode, range } })
    }
}

fn kind(part: &[u8]) -> Result<LockKind, BadPart> {
    if part == b"ACCESS" {
        return Ok(LockKind::Posix);
    }
    LockKind::ALL
        .into_iter()
        .find(|kind| kind.name().as_bytes() == part)
        .ok_or_else(|| BadPart::new("kind of lock", part))
}

fn mode(part: &[u8]) -> Result<Mode, BadPart> {
    Mode::ALL
        .into_iter()
        .find(|mode| mode.name().as_bytes() == part)
        .ok_or_else(|| BadPart::new("ADVISORY, ACTIVE, BREAKING or the like", part))
}

fn access(part: &[u8]) -> Result<Access, BadPart> {
    match part {
        b"READ" => Ok(Access::Read),
        b"WRITE" | b"RW" => Ok(Access::Write),
        b"UNLCK" | b"NONE" => Ok(Access::Unlock),
        _ => Err(BadPart::new("READ, WRITE or UNLCK", part)),
    }
}

fn inode(part: &[u8]) -> Result<Option<(Dev, u64)>, BadPart> {
    const WANTED: &str = "device and inode";
    if part == b"<none>:0" {
        return Ok(None);
    }
    let mut pieces = part.splitn(3, |&byte| byte == b':');
    let mut next = || pieces.next().unwrap_or_default();
    let bad = || BadPart::new(WANTED, part);
    let half = |text: &[u8]| {
        let value = number(text, 16, WANTED).map_err(|_| bad())?;
        u32::try_from(value).map_err(|_| bad())
    };
    let major = half(next())?;
    let minor = half(next())?;
    let ino = number(next(), 10, WANTED).map_err(|_| bad())?;
    Ok(Some((Dev::exact(major, minor).ok_or_else(bad)?, ino)))
}

/// The kernel's `loff_t`: 63 bits.
fn offset(part: &[u8], wanted: &'static str) -> Result<u64, BadPart> {
    let value = number(part, 10, wanted)?;
    if value > i64::MAX as u64 {
        return Err(BadPart::new(wanted, part));
    }
    Ok(value)
}

impl fmt::Display for LockLine {
    /// As a kernel of 6.0 or later prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Body { kind, mode, access, pid, inode, range } = self.body;
        write!(f, "{}: ", self.id)?;
        if self.depth > 0 {
            let width = self.depth as usize + 2;
            write!(f, "{:>width$}", "-> ")?;
        }
        write!(f, "{:<6} {:<9} {} {pid} ", kind.name(), mode.name(), access.name())?;
        match inode {
            Some((dev, ino)) => write!(f, "{dev}:{ino}")?,
            None => f.write_str("<none>:0")?,
        }
        match range.end() {
            Some(end) => write!(f, " {} {end}", range.start),
            None => write!(f, " {} EOF", range.start),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(line: &str) -> Result<LockLine, String> {
        LockLine::parse(line.as_bytes()).map_err(|bad| bad.to_string())
    }

    #[test]
    fn lines_of_every_form_are_understood() {
        let line = parse("1: FLOCK  ADVISORY  WRITE 1234 fe:00:131 0 EOF").unwrap();
        assert_eq!((line.id, line.depth), (1, 0));
        assert_eq!(line.body.kind, LockKind::Flock);
        assert_eq!(line.body.inode, Some((Dev::new(0xfe, 0), 131)));
        assert_eq!(line.body.range, Range::WHOLE);
        assert_eq!(line.body.recorded_pid(), RecordedPid::Local(1234));

        let line = parse("7: OFDLCK ADVISORY  READ -1 103:12345:18446744073709551615 5 9").unwrap();
        assert_eq!(line.body.inode, Some((Dev::new(0x103, 0x12345), u64::MAX)));
        assert_eq!(line.body.range, Range::new(5, Some(9)));
        assert_eq!(line.body.recorded_pid(), RecordedPid::Withheld);

        let line = parse("3: LEASE  BREAKING  UNLCK 77 00:2b:9 0 EOF").unwrap();
        assert_eq!((line.body.mode, line.body.access), (Mode::Breaking, Access::Unlock));
        let line = parse("3: -> LEASE  BREAKER   WRITE 78 <none>:0 0 EOF").unwrap();
        assert_eq!((line.depth, line.body.mode, line.body.inode), (1, Mode::Breaker, None));

        for (text, kind) in [
            ("1: POSIX  *NOINODE* WRITE 0 <none>:0 0 0", LockKind::Posix),
            ("1: ACCESS MANDATORY READ 5 08:01:2 0 EOF", LockKind::Posix),
            ("1: FLOCK  MSNFS     NONE  5 08:01:2 0 EOF", LockKind::Flock),
            ("1: FLOCK  MSNFS     RW    5 08:01:2 0 EOF", LockKind::Flock),
            ("1: DELEG  ACTIVE    READ 5 08:01:2 0 EOF", LockKind::Deleg),
            ("1: LAYOUT ACTIVE    READ 5 08:01:2 0 EOF", LockKind::Layout),
        ] {
            assert_eq!(parse(text).unwrap().body.kind, kind, "{text}");
        }
    }

    #[test]
    fn depth_is_the_indentation_of_the_arrow() {
        for (text, depth) in [
            ("1: FLOCK  ADVISORY  WRITE 2 08:01:2 0 EOF", 0),
            ("1: -> FLOCK  ADVISORY  WRITE 2 08:01:2 0 EOF", 1),
            ("1:  -> FLOCK  ADVISORY  WRITE 2 08:01:2 0 EOF", 2),
            ("1:      -> FLOCK  ADVISORY  WRITE 2 08:01:2 0 EOF", 6),
        ] {
            assert_eq!(parse(text).unwrap().depth, depth, "{text}");
        }
    }

    #[test]
    fn pids_mean_what_the_kernel_means() {
        let pid = |kind: &str, pid: &str| {
            let line = format!("1: {kind} ADVISORY WRITE {pid} 08:01:2 0 EOF");
            parse(&line).unwrap().body.recorded_pid()
        };
        assert_eq!(pid("FLOCK", "0"), RecordedPid::Zero);
        assert_eq!(pid("OFDLCK", "0"), RecordedPid::Zero);
        assert_eq!(pid("OFDLCK", "-1"), RecordedPid::Withheld);
        assert_eq!(pid("POSIX", "-1"), RecordedPid::Remote(-1));
        assert_eq!(pid("POSIX", "-2147483648"), RecordedPid::Remote(i32::MIN));
    }

    #[test]
    fn an_error_names_the_offending_part() {
        for (text, found) in [
            ("", "nothing"),
            ("hello", "\"hello\""),
            ("x: FLOCK ADVISORY WRITE 2 08:01:2 0 EOF", "\"x\""),
            ("1: FLUCK ADVISORY WRITE 2 08:01:2 0 EOF", "\"FLUCK\""),
            ("1: FLOCK ADVICE WRITE 2 08:01:2 0 EOF", "\"ADVICE\""),
            ("1: FLOCK ADVISORY WRIT 2 08:01:2 0 EOF", "\"WRIT\""),
            ("1: FLOCK ADVISORY WRITE +2 08:01:2 0 EOF", "\"+2\""),
            ("1: FLOCK ADVISORY WRITE 2147483648 08:01:2 0 EOF", "\"2147483648\""),
            ("1: FLOCK ADVISORY WRITE 2 08:2 0 EOF", "\"08:2\""),
            ("1: FLOCK ADVISORY WRITE 2 08:01:2 9 8", "\"8\""),
            ("1: FLOCK ADVISORY WRITE 2 08:01:2 0 9223372036854775808", "\"9223372036854775808\""),
            ("1: FLOCK ADVISORY WRITE 2 08:01:2 0", "nothing"),
            ("1: FLOCK ADVISORY WRITE 2 08:01:2 0 EOF more", "\"more\""),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.ends_with(&format!("found {found}")), "{text}: {error}");
        }
    }

    fn lines() -> impl Strategy<Value = LockLine> {
        let modes = prop::sample::select(Mode::ALL.to_vec());
        let kinds = prop::sample::select(LockKind::ALL.to_vec());
        let accesses = prop::sample::select(vec![Access::Read, Access::Write, Access::Unlock]);
        let inode = prop::option::of((0..1_u32 << 12, 0..1_u32 << 20, any::<u64>()));
        let range = (0..=i64::MAX as u64, prop::option::of(0..=i64::MAX as u64));
        (any::<u64>(), 0..40_u32, kinds, modes, accesses, any::<i32>(), inode, range).prop_map(
            |(id, depth, kind, mode, access, pid, inode, (start, end))| LockLine {
                id,
                depth,
                body: Body {
                    kind,
                    mode,
                    access,
                    pid,
                    inode: inode.map(|(major, minor, ino)| (Dev::new(major, minor), ino)),
                    range: Range::new(start, end.map(|end| end.max(start))),
                },
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(line in lines()) {
            prop_assert_eq!(LockLine::parse(line.to_string().as_bytes()), Ok(line));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = LockLine::parse(&bytes);
        }

        #[test]
        fn damaged_lines_are_survived(
            line in lines(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = line.to_string().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = LockLine::parse(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            let _ = LockLine::parse(&bytes);
        }
    }
}
