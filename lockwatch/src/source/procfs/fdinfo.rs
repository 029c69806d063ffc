//! The text of `/proc/PID/fdinfo/FD`: the descriptor's flags, its mount and the locks that belong
//! to its description (`seq_show` in `fs/proc/fd.c`, `show_fd_locks` in `fs/locks.c`).
//!
//! Refuses every other line: drivers print there what they like.

use super::fault::{BadLine, BadPart, number};
use super::locks_line::LockLine;

/// What an fdinfo file tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// open(2) flags, the access mode in the lowest two bits. `None` where the line is missing.
    pub flags: Option<u32>,
    /// Id of the mount through which the file was opened, as in mountinfo.
    pub mount: Option<u64>,
    /// The locks, in the kernel's order.
    pub locks: Vec<LockLine>,
}

impl FdInfo {
    /// Parses a whole file; `name` is what a fault calls it. Lines that cannot be read are
    /// handed to `fault`, and the rest is used.
    pub fn parse(text: &[u8], name: impl Fn() -> String, mut fault: impl FnMut(BadLine)) -> Self {
        let mut info = Self::default();
        for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let mut keep = |result: Result<(), BadPart>| {
                if let Err(part) = result {
                    fault(BadLine { file: name(), line: index + 1, part });
                }
            };
            if let Some(rest) = line.strip_prefix(b"lock:") {
                keep(LockLine::parse(rest.trim_ascii_start()).map(|lock| info.locks.push(lock)));
            } else if info.flags.is_none()
                && let Some(rest) = line.strip_prefix(b"flags:")
            {
                keep(number(rest.trim_ascii(), 8, "octal flags").and_then(|flags| {
                    let bad = |_| BadPart::new("octal flags", rest);
                    info.flags = Some(u32::try_from(flags).map_err(bad)?);
                    Ok(())
                }));
            } else if info.mount.is_none()
                && let Some(rest) = line.strip_prefix(b"mnt_id:")
            {
                keep(number(rest.trim_ascii(), 10, "mount id").map(|id| info.mount = Some(id)));
            }
        }
        info
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &[u8]) -> (FdInfo, Vec<BadLine>) {
        let mut faults = Vec::new();
        let info = FdInfo::parse(text, || "7/fdinfo/3".to_owned(), |fault| faults.push(fault));
        (info, faults)
    }

    #[test]
    fn locks_flags_and_mount_are_found_among_other_lines() {
        let text = b"pos:\t0\nflags:\t0100002\nmnt_id:\t29\nino:\t131\n\
            lock:\t1: FLOCK  ADVISORY  WRITE 1234 fe:00:131 0 EOF\n\
            lock:\t2: OFDLCK ADVISORY  READ -1 fe:00:131 0 9\ntfd: 5 events: 19\n";
        let (info, faults) = parse(text);
        assert_eq!((info.flags, info.mount), (Some(0o100_002), Some(29)));
        assert_eq!(info.locks.len(), 2);
        assert_eq!(faults, []);
    }

    #[test]
    fn a_bad_line_is_named_and_the_rest_is_used() {
        let text = b"pos:\t0\nflags:\t09\nlock:\tnonsense\n\
            lock:\t1: FLOCK  ADVISORY  WRITE 0 fe:00:131 0 EOF\n";
        let (info, faults) = parse(text);
        assert_eq!(info.locks.len(), 1);
        assert_eq!(
            faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "7/fdinfo/3 line 2: octal flags expected, found \"09\"",
                "7/fdinfo/3 line 3: number and colon expected, found \"nonsense\"",
            ]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn every_fault_names_its_line(junk in "[^\\n0-9][^\\n]{0,40}", before in 0..20_usize) {
            let text = format!("{}lock:\t{junk}\n", "pos:\t0\n".repeat(before));
            let (info, faults) = parse(text.as_bytes());
            prop_assert_eq!(info.locks.len() + faults.len(), 1);
            for fault in faults {
                prop_assert_eq!(fault.line, before + 1);
            }
        }
    }
}
