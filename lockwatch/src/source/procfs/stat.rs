//! The small files that say what a process is: `stat`, `status`, the namespace links, and the
//! machine's own `/proc/stat`.
//!
//! Refuses to read them: bytes come in, values go out.

use super::fault::{BadLine, BadPart, number, signed};
use crate::engine::identity::Pid;

/// `PF_EXITING` of `include/linux/sched.h`.
const PF_EXITING: u32 = 0x4;
/// `PF_FORKNOEXEC` of `include/linux/sched.h`.
const PF_FORKNOEXEC: u32 = 0x40;
/// `PF_KTHREAD` of `include/linux/sched.h`.
const PF_KTHREAD: u32 = 0x20_0000;

/// What is used of `/proc/PID/stat` (`do_task_stat` in `fs/proc/array.c`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `comm`, any bytes: blanks, parentheses and line feeds included.
    pub comm: Box<[u8]>,
    /// State letter of the thread-group leader.
    pub state: u8,
    /// Parent's thread-group id; 0 for none or one outside of the pid namespace.
    pub parent: Pid,
    /// Process group.
    pub group: Pid,
    /// Session.
    pub session: Pid,
    /// `PF_*` flags of the leader.
    pub flags: u32,
    /// Threads, the leader included also when it is a zombie; 0 where nothing is left at all.
    pub threads: u64,
    /// Start in clock ticks since boot.
    pub start: u64,
}

impl Stat {
    /// Parses the file of process `pid`.
    ///
    /// # Errors
    /// The first field that is not what the kernel prints.
    pub fn parse(text: &[u8], file: impl Fn() -> String) -> Result<Self, BadLine> {
        Self::fields(text).map_err(|part| {
            // A comm may hold line feeds; the fields after it are still on one line.
            let end = text.iter().rposition(|&byte| byte == b')').unwrap_or(0);
            let line = 1 + text[..end].iter().filter(|&&byte| byte == b'\n').count();
            BadLine { file: file(), line, part }
        })
    }

    fn fields(text: &[u8]) -> Result<Self, BadPart> {
        let open = text.iter().position(|&byte| byte == b'(');
        let close = text.iter().rposition(|&byte| byte == b')');
        let (Some(open), Some(close)) = (open, close) else {
            return Err(BadPart::new("comm in parentheses", text));
        };
        let Some(comm) = text.get(open + 1..close) else {
            return Err(BadPart::new("comm in parentheses", text));
        };
        let fields: Vec<&[u8]> = text[close + 1..]
            .split(|byte| byte.is_ascii_whitespace())
            .filter(|field| !field.is_empty())
            .take(20)
            .collect();
        // Numbered as in proc_pid_stat(5), where the state is field 3.
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or_default();
        let state = match field(3) {
            [letter] if letter.is_ascii_alphabetic() => *letter,
            other => return Err(BadPart::new("state letter", other)),
        };
        let flags = number(field(9), 10, "flags")?;
        Ok(Self {
            comm: comm.into(),
            state,
            parent: signed(field(4), "parent")?,
            group: signed(field(5), "process group")?,
            session: signed(field(6), "session")?,
            flags: u32::try_from(flags).map_err(|_| BadPart::new("flags", field(9)))?,
            threads: number(field(20), 10, "number of threads")?,
            start: number(field(22), 10, "start time")?,
        })
    }

    /// True where the leader has exited; its threads may live on.
    pub fn leader_exited(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// True where nothing but the exit status is left.
    pub fn is_zombie(&self) -> bool {
        self.leader_exited() && self.threads <= 1
    }

    /// True where it is on its way out and may still hold what it held.
    pub fn is_exiting(&self) -> bool {
        self.flags & PF_EXITING != 0 && !self.leader_exited()
    }

    /// True where it has not exec'd since it was forked.
    pub fn forked_no_exec(&self) -> bool {
        self.flags & PF_FORKNOEXEC != 0
    }

    /// True for a thread of the kernel, which has no fd table to speak of.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }
}

/// The pids of a process in each pid namespace from the reader's own down to its innermost, from
/// the `NSpid:` line of `/proc/PID/status`. `None` where there is no such line.
pub fn namespace_pids(
    status: &[u8],
    file: impl Fn() -> String,
) -> Result<Option<Vec<Pid>>, BadLine> {
    for (index, line) in status.split(|&byte| byte == b'\n').enumerate() {
        let Some(rest) = line.strip_prefix(b"NSpid:") else { continue };
        let pids = rest
            .split(|byte| byte.is_ascii_whitespace())
            .filter(|part| !part.is_empty())
            .map(|part| signed(part, "pid of a namespace"))
            .collect::<Result<Vec<_>, _>>();
        return match pids {
            Ok(pids) if pids.is_empty() => Ok(None),
            Ok(pids) => Ok(Some(pids)),
            Err(part) => Err(BadLine { file: file(), line: index + 1, part }),
        };
    }
    Ok(None)
}

/// The thread group of a task, from the `Tgid:` line of its `status`: `/proc/TID` answers for
/// every thread, listed or not, so a number alone does not make a process.
pub fn thread_group(status: &[u8], file: impl Fn() -> String) -> Result<Option<Pid>, BadLine> {
    for (index, line) in status.split(|&byte| byte == b'\n').enumerate() {
        if let Some(rest) = line.strip_prefix(b"Tgid:") {
            return signed(rest.trim_ascii(), "thread group").map(Some).map_err(|part| BadLine {
                file: file(),
                line: index + 1,
                part,
            });
        }
    }
    Ok(None)
}

/// The inode number in the target of a link such as `/proc/PID/ns/pid`: `pid:[4026531836]`.
pub fn namespace_inode(target: &[u8], file: impl Fn() -> String) -> Result<u64, BadLine> {
    let inner = target
        .iter()
        .position(|&byte| byte == b'[')
        .and_then(|open| target[open + 1..].strip_suffix(b"]"));
    let bad = || BadPart::new("namespace in brackets", target);
    inner
        .ok_or_else(bad)
        .and_then(|inner| number(inner, 10, "namespace in brackets").map_err(|_| bad()))
        .map_err(|part| BadLine { file: file(), line: 1, part })
}

/// Tasks created since boot: the `processes` line of `/proc/stat`.
pub fn forks_since_boot(text: &[u8]) -> Result<Option<u64>, BadLine> {
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        if let Some(rest) = line.strip_prefix(b"processes ") {
            return number(rest.trim_ascii(), 10, "number of forks")
                .map(Some)
                .map_err(|part| BadLine { file: "stat".to_owned(), line: index + 1, part });
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &[u8]) -> Result<Stat, BadLine> {
        Stat::parse(text, || "7/stat".to_owned())
    }

    fn line(comm: &str, state: char, threads: u64, flags: u32) -> Vec<u8> {
        format!(
            "7 ({comm}) {state} 1 7 5 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 {threads} 0 98765 1 2 3\n"
        )
        .into_bytes()
    }

    #[test]
    fn a_comm_may_hold_anything() {
        for comm in ["sh", "a) R 3 (b", "", "two words", "line\nfeed", "()"] {
            let stat = parse(&line(comm, 'S', 1, 0x40)).unwrap();
            assert_eq!(&*stat.comm, comm.as_bytes());
            assert_eq!((stat.parent, stat.group, stat.session), (1, 7, 5));
            assert_eq!((stat.threads, stat.start), (1, 98765));
            assert!(stat.forked_no_exec());
        }
    }

    #[test]
    fn an_exited_leader_with_threads_is_no_zombie() {
        assert!(parse(&line("x", 'Z', 1, 0x4)).unwrap().is_zombie());
        let stat = parse(&line("x", 'Z', 3, 0x4)).unwrap();
        assert!(stat.leader_exited() && !stat.is_zombie() && !stat.is_exiting());
        assert!(parse(&line("x", 'R', 1, 0x4)).unwrap().is_exiting());
        assert!(parse(&line("nfsd", 'S', 1, 0x20_8040)).unwrap().is_kernel_thread());
        assert!(!parse(&line("x", 'S', 1, 0x40_0040)).unwrap().is_kernel_thread());
    }

    #[test]
    fn an_error_names_line_and_part() {
        let error = parse(b"7 (a\nb) S 1 7 5 0 -1 xx").unwrap_err();
        assert_eq!(error.to_string(), "7/stat line 2: flags expected, found \"xx\"");
        assert!(parse(b")(").is_err());
        assert!(parse(b"").is_err());
    }

    #[test]
    fn namespaces_and_forks() {
        let name = || "7/status".to_owned();
        let status = b"Name:\tx\nNSpid:\t700\t12\nNSpgid:\t1\n";
        assert_eq!(namespace_pids(status, name).unwrap(), Some(vec![700, 12]));
        assert_eq!(thread_group(b"Name:\tx\nTgid:\t12\n", name).unwrap(), Some(12));
        assert!(thread_group(b"Tgid:\t\n", name).is_err());
        assert_eq!(namespace_pids(b"Name:\tx\n", name).unwrap(), None);
        let error = namespace_pids(b"a\nNSpid:\t7 x\n", name).unwrap_err();
        assert_eq!(error.to_string(), "7/status line 2: pid of a namespace expected, found \"x\"");
        assert_eq!(namespace_inode(b"pid:[4026531836]", name).unwrap(), 4_026_531_836);
        assert!(namespace_inode(b"pid:]", name).is_err());
        assert_eq!(forks_since_boot(b"cpu 1\nprocesses 88\n").unwrap(), Some(88));
        assert!(forks_since_boot(b"cpu 1\nprocesses x\n").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let name = || "7/stat".to_owned();
            let _ = parse(&bytes);
            let _ = namespace_pids(&bytes, name);
            let _ = thread_group(&bytes, name);
            let _ = namespace_inode(&bytes, name);
            let _ = forks_since_boot(&bytes);
        }

        #[test]
        fn damaged_lines_are_survived(at in 0..80_usize, byte in any::<u8>(), cut in 0..80_usize) {
            let mut text = line("a b", 'S', 2, 0);
            let length = text.len();
            text[at % length] = byte;
            let _ = parse(&text);
            text.truncate(cut % length);
            let _ = parse(&text);
        }
    }
}
