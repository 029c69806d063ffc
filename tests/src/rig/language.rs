//! The rig's language: one command a line, words split at blanks.
//!
//! Refuses to do anything: it only says what was asked for, or why a line makes no sense.
//!
//! ```text
//! open NAME PATH [ro|wo|rw] [cloexec]   a descriptor (rw; made where absent, unless ro); without
//!                                       `cloexec` it leaks across exec, as most programs' do
//! dup NAME COPY                         a second descriptor of the same description
//! move NAME FD                          the same descriptor under this number
//! close NAME
//!
//! flock NAME sh|ex|un                   a lock now, or an error: nothing here waits ...
//! posix NAME rd|wr|un START END|eof
//! ofd   NAME rd|wr|un START END|eof
//! lease NAME rd|wr|un
//! later COMMAND                         ... but this does, in a thread: a lock that may block, or
//!                                       an `open` that breaks a lease, or a `read`
//! insist COMMAND                        a lock that is tried again and again, without waiting, in
//!                                       a thread, until it is there
//! rest sleep|poll|epoll|futex MS        waits so long in one call, in a thread, and fails where
//!                                       that is cut short
//! filter                                from here on this process is killed for fcntl and flock
//! progress                              `idle`, `running`, `blocked`, `done` or `failed WHY`
//!
//! fork NAME [as PID] [files] [pidns] [mounts]
//!                                       a child with every descriptor, and no exec; `files`
//!                                       shares the fd table, `pidns` and `mounts` are namespaces
//! thread NAME [own-files]               a thread that obeys on its own; `own-files` gives it an
//!                                       fd table of its own
//! exec                                  this process becomes a fresh rig, with what leaks
//! spawn NAME PROGRAM [ARG...]           a child that is another program; standard input ends with
//!                                       the test and not before: `cat` just waits
//! run OUTPUT PROGRAM [ARG...]           the same, waited for; OUTPUT.out and OUTPUT.err get its
//!                                       output
//!
//! exit CODE, abort, die SIGNAL          the ends of a process
//! leave                                 the end of this thread alone
//!
//! comm TEXT                             the name that /proc shows
//! unshare net                           a network namespace of its own; no child after it
//! become UID                            that user, without a capability left
//! unlink PATH, replace PATH             `replace` puts a new file under the name
//! write NAME TEXT, read NAME            `read` takes one byte, and may wait for it
//! show PATH                             the answer is what the file holds, escaped
//! map NAME                              a mapping that lasts as long as the process
//! socketpair TX RX, listen NAME PATH, connect NAME PATH
//! send SOCKET NAME, receive SOCKET NAME a descriptor over a unix socket
//! uring RING NAME [polled]              a new io_uring, with NAME registered in it; `polled` gives
//!                                       it a thread of the kernel's
//! loopdev DEVICE NAME                    a loop device over NAME; it ends with the last descriptor of
//!                                       it, which is called DEVICE
//! stick DIR                             a FUSE file system on DIR, for this mount namespace only, in
//!                                       which every name is a file that cannot be closed
//! mount proc|tmpfs PATH
//! mass files COUNT DIR                  COUNT files, one flock each
//! mass shares COUNT PATH                COUNT descriptions of one file, one shared flock each
//! mass posix|ofd COUNT NAME             COUNT byte ranges of one file
//! mass sockets COUNT                    COUNT pairs of unix sockets, a byte in flight in each
//! mass maps COUNT NAME                  COUNT mappings of one file
//! churn NAME                            a thread that takes and gives up byte ranges, for ever
//! crowd OUTPUT PART COUNT DIR SEED      many short-lived children, which fork without an exec: see
//!                                       [`Part`]. What they did goes to OUTPUT, a line each
//! dismiss                               ends what a crowd left alive, and closes its files
//! ```
//!
//! In PATH, TEXT and ARG the escapes `\n`, `\t`, `\e`, `\s` (a blank), `\\` and `\xHH` stand for
//! bytes that the line cannot carry.

use std::fmt;

pub use super::crowd::{Crowd, Part};

/// How a descriptor is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading only.
    Read,
    /// For writing only.
    Write,
    /// For both.
    Both,
}

/// Shared, exclusive, or none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `LOCK_SH`, `F_RDLCK`.
    Shared,
    /// `LOCK_EX`, `F_WRLCK`.
    Exclusive,
    /// `LOCK_UN`, `F_UNLCK`.
    Unlock,
}

/// The bytes of a record lock; without an `end` it reaches to the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Last byte, included.
    pub end: Option<u64>,
}

/// Which of the two record locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// Of the fd table.
    Posix,
    /// Of the open file description.
    Ofd,
}

/// A lock as a command asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// flock(2).
    Flock(Access),
    /// fcntl(2) with a range.
    Record(Record, Access, Range),
    /// fcntl(2) `F_SETLEASE`.
    Lease(Access),
}

/// A call to wait in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// nanosleep(2)
    Sleep,
    /// poll(2)
    Poll,
    /// epoll_wait(2)
    Epoll,
    /// futex(2), FUTEX_WAIT
    Futex,
}

/// What a forked child shares with its parent or has apart from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Birth {
    /// The pid to give it, in the parent's pid namespace.
    pub pid: Option<i32>,
    /// `CLONE_FILES`.
    pub share_files: bool,
    /// `CLONE_NEWPID`.
    pub new_pids: bool,
    /// `CLONE_NEWNS`.
    pub new_mounts: bool,
}

/// A file system that `mount` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// procfs of the mounting process's pid namespace.
    Proc,
    /// A fresh tmpfs.
    Tmpfs,
}

/// What there is to be much of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mass {
    /// Files of a directory, one exclusive flock each.
    Files(Vec<u8>),
    /// Descriptions of one file, one shared flock each.
    Shares(Vec<u8>),
    /// Byte ranges of an open file.
    Ranges(Record, String),
    /// Pairs of unix sockets, with a byte in flight in each.
    Sockets,
    /// Mappings of an open file.
    Maps(String),
}

/// One line of the language.
#[expect(missing_docs, reason = "the module's table says it, field by field")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Open { name: String, path: Vec<u8>, mode: OpenMode, cloexec: bool },
    Dup { name: String, copy: String },
    Move { name: String, fd: i32 },
    Close { name: String },
    Lock { name: String, asked: Asked },
    Later(Box<Command>),
    Rest { call: Rest, milliseconds: u16 },
    Filter,
    Insist(Box<Command>),
    Progress,
    Fork { name: String, birth: Birth },
    Thread { name: String, own_files: bool },
    Exec,
    Spawn { name: String, argv: Vec<Vec<u8>> },
    Run { output: Vec<u8>, argv: Vec<Vec<u8>> },
    Exit { code: i32 },
    Abort,
    Die { signal: i32 },
    Leave,
    Comm { text: Vec<u8> },
    Become { uid: u32 },
    Unshare,
    Stick { folder: Vec<u8> },
    LoopDevice { device: String, name: String },
    Unlink { path: Vec<u8> },
    Replace { path: Vec<u8> },
    Write { name: String, text: Vec<u8> },
    Read { name: String },
    Show { path: Vec<u8> },
    Map { name: String },
    SocketPair { tx: String, rx: String },
    Listen { name: String, path: Vec<u8> },
    Connect { name: String, path: Vec<u8> },
    Send { socket: String, name: String },
    Receive { socket: String, name: String },
    Uring { ring: String, name: String, polled: bool },
    Mount { kind: MountKind, path: Vec<u8> },
    Mass { count: u32, mass: Mass },
    Churn { name: String },
    Crowd(Crowd),
    Dismiss,
}

impl Command {
    /// True where the process (or thread) that obeys is gone afterwards and cannot answer.
    pub fn is_an_end(&self) -> bool {
        matches!(self, Self::Exit { .. } | Self::Abort | Self::Die { .. } | Self::Leave)
    }
}

/// Why a line is not a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotACommand(String);

impl fmt::Display for NotACommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotACommand {}

fn wrong<T>(why: impl Into<String>) -> Result<T, NotACommand> {
    Err(NotACommand(why.into()))
}

/// The words of a line, taken one by one; each taker names what it expected.
struct Words<'a>(std::iter::Peekable<std::str::SplitAsciiWhitespace<'a>>);

impl<'a> Words<'a> {
    fn next(&mut self, what: &str) -> Result<&'a str, NotACommand> {
        self.0.next().map_or_else(|| wrong(format!("{what} is missing")), Ok)
    }

    fn name(&mut self) -> Result<String, NotACommand> {
        let word = self.next("a name")?;
        if word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
            Ok(word.to_owned())
        } else {
            wrong(format!("{word:?} is no name: letters, digits, - and _ only"))
        }
    }

    fn bytes(&mut self, what: &str) -> Result<Vec<u8>, NotACommand> {
        unescape(self.next(what)?)
    }

    fn number<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, NotACommand> {
        let word = self.next(what)?;
        word.parse().or_else(|_| wrong(format!("{what}: {word:?} is no such number")))
    }

    fn flag(&mut self, flag: &str) -> bool {
        self.0.next_if(|word| *word == flag).is_some()
    }

    fn argv(&mut self) -> Result<Vec<Vec<u8>>, NotACommand> {
        let mut argv = vec![self.bytes("a program")?];
        for word in self.0.by_ref() {
            argv.push(unescape(word)?);
        }
        Ok(argv)
    }

    fn access(&mut self, shared: &str, exclusive: &str) -> Result<Access, NotACommand> {
        match self.next("an access")? {
            word if word == shared => Ok(Access::Shared),
            word if word == exclusive => Ok(Access::Exclusive),
            "un" => Ok(Access::Unlock),
            word => wrong(format!("{word:?} is no access: {shared}, {exclusive} or un")),
        }
    }

    fn range(&mut self) -> Result<Range, NotACommand> {
        let start = self.number("the first byte")?;
        let end = if self.flag("eof") { None } else { Some(self.number("the last byte")?) };
        if end.is_some_and(|end| end < start) {
            return wrong("the last byte is before the first");
        }
        Ok(Range { start, end })
    }

    fn end(&mut self) -> Result<(), NotACommand> {
        self.0.next().map_or(Ok(()), |word| wrong(format!("{word:?} is one word too many")))
    }
}

/// Reads one line.
pub fn parse(line: &str) -> Result<Command, NotACommand> {
    let mut words = Words(line.split_ascii_whitespace().peekable());
    let command = command(&mut words)?;
    words.end()?;
    Ok(command)
}

fn command(words: &mut Words<'_>) -> Result<Command, NotACommand> {
    Ok(match words.next("a command")? {
        "open" => {
            let (name, path) = (words.name()?, words.bytes("a path")?);
            let mode = if words.flag("ro") {
                OpenMode::Read
            } else if words.flag("wo") {
                OpenMode::Write
            } else {
                words.flag("rw");
                OpenMode::Both
            };
            Command::Open { name, path, mode, cloexec: words.flag("cloexec") }
        }
        "dup" => Command::Dup { name: words.name()?, copy: words.name()? },
        "move" => Command::Move { name: words.name()?, fd: words.number("a descriptor")? },
        "close" => Command::Close { name: words.name()? },
        "flock" => {
            Command::Lock { name: words.name()?, asked: Asked::Flock(words.access("sh", "ex")?) }
        }
        "posix" => record(words, Record::Posix)?,
        "ofd" => record(words, Record::Ofd)?,
        "lease" => {
            Command::Lock { name: words.name()?, asked: Asked::Lease(words.access("rd", "wr")?) }
        }
        "later" => match command(words)? {
            inner @ (Command::Lock { .. } | Command::Open { .. } | Command::Read { .. }) => {
                Command::Later(Box::new(inner))
            }
            _ => return wrong("only a lock, an open or a read can be left for later"),
        },
        "insist" => match command(words)? {
            inner @ Command::Lock { .. } => Command::Insist(Box::new(inner)),
            _ => return wrong("only a lock can be insisted on"),
        },
        "rest" => {
            let call = match words.next("a call")? {
                "sleep" => Rest::Sleep,
                "poll" => Rest::Poll,
                "epoll" => Rest::Epoll,
                "futex" => Rest::Futex,
                word => return wrong(format!("{word:?} is no rest: sleep, poll, epoll or futex")),
            };
            Command::Rest { call, milliseconds: words.number("milliseconds")? }
        }
        "filter" => Command::Filter,
        "progress" => Command::Progress,
        "fork" => {
            let name = words.name()?;
            let pid = if words.flag("as") { Some(words.number("a pid")?) } else { None };
            let birth = Birth {
                pid,
                share_files: words.flag("files"),
                new_pids: words.flag("pidns"),
                new_mounts: words.flag("mounts"),
            };
            Command::Fork { name, birth }
        }
        "thread" => Command::Thread { name: words.name()?, own_files: words.flag("own-files") },
        "exec" => Command::Exec,
        "spawn" => Command::Spawn { name: words.name()?, argv: words.argv()? },
        "run" => Command::Run { output: words.bytes("an output path")?, argv: words.argv()? },
        "exit" => Command::Exit { code: words.number("an exit code")? },
        "abort" => Command::Abort,
        "die" => Command::Die { signal: signal(words.next("a signal")?)? },
        "leave" => Command::Leave,
        "comm" => Command::Comm { text: words.bytes("a text")? },
        "loopdev" => Command::LoopDevice { device: words.name()?, name: words.name()? },
        "stick" => Command::Stick { folder: words.bytes("a directory")? },
        "unshare" => match words.next("what to unshare")? {
            "net" => Command::Unshare,
            word => return wrong(format!("{word:?} cannot be unshared: net")),
        },
        "become" => Command::Become { uid: words.number("a uid")? },
        "unlink" => Command::Unlink { path: words.bytes("a path")? },
        "replace" => Command::Replace { path: words.bytes("a path")? },
        "write" => Command::Write { name: words.name()?, text: words.bytes("a text")? },
        "read" => Command::Read { name: words.name()? },
        "show" => Command::Show { path: words.bytes("a path")? },
        "map" => Command::Map { name: words.name()? },
        "socketpair" => Command::SocketPair { tx: words.name()?, rx: words.name()? },
        "listen" => Command::Listen { name: words.name()?, path: words.bytes("a path")? },
        "connect" => Command::Connect { name: words.name()?, path: words.bytes("a path")? },
        "send" => Command::Send { socket: words.name()?, name: words.name()? },
        "receive" => Command::Receive { socket: words.name()?, name: words.name()? },
        "uring" => Command::Uring {
            ring: words.name()?,
            name: words.name()?,
            polled: words.flag("polled"),
        },
        "mount" => {
            let kind = match words.next("a file system")? {
                "proc" => MountKind::Proc,
                "tmpfs" => MountKind::Tmpfs,
                word => return wrong(format!("{word:?} is no file system: proc or tmpfs")),
            };
            Command::Mount { kind, path: words.bytes("a path")? }
        }
        "mass" => {
            let what = words.next("files, shares, posix or ofd")?;
            let count = words.number("a count")?;
            let mass = match what {
                "files" => Mass::Files(words.bytes("a directory")?),
                "shares" => Mass::Shares(words.bytes("a path")?),
                "posix" => Mass::Ranges(Record::Posix, words.name()?),
                "ofd" => Mass::Ranges(Record::Ofd, words.name()?),
                "sockets" => Mass::Sockets,
                "maps" => Mass::Maps(words.name()?),
                word => {
                    let all = "files, shares, posix, ofd, sockets or maps";
                    return wrong(format!("{word:?} is no mass: {all}"));
                }
            };
            Command::Mass { count, mass }
        }
        "churn" => Command::Churn { name: words.name()? },
        "crowd" => {
            let output = words.bytes("an output path")?;
            let part = part(words.next("a part")?)?;
            let (count, folder) = (words.number("a count")?, words.bytes("a directory")?);
            Command::Crowd(Crowd { output, part, count, folder, seed: words.number("a seed")? })
        }
        "dismiss" => Command::Dismiss,
        word => return wrong(format!("{word:?} is no command")),
    })
}

fn record(words: &mut Words<'_>, record: Record) -> Result<Command, NotACommand> {
    let name = words.name()?;
    let access = words.access("rd", "wr")?;
    Ok(Command::Lock { name, asked: Asked::Record(record, access, words.range()?) })
}

fn part(word: &str) -> Result<Part, NotACommand> {
    let found = Part::ALL.iter().find(|(name, _)| *name == word);
    found.map_or_else(|| wrong(format!("{word:?} is no part of a crowd")), |(_, part)| Ok(*part))
}

fn signal(word: &str) -> Result<i32, NotACommand> {
    Ok(match word {
        "HUP" => libc::SIGHUP,
        "INT" => libc::SIGINT,
        "KILL" => libc::SIGKILL,
        "SEGV" => libc::SIGSEGV,
        "STOP" => libc::SIGSTOP,
        "TERM" => libc::SIGTERM,
        _ => return wrong(format!("{word:?} is no signal that the rig sends to itself")),
    })
}

/// Makes bytes of a word.
pub fn unescape(word: &str) -> Result<Vec<u8>, NotACommand> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next() {
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'e') => 0x1b,
            Some(b's') => b' ',
            Some(b'\\') => b'\\',
            Some(b'x') => match (hex(rest.next()), hex(rest.next())) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return wrong(format!("{word:?}: \\x needs two hexadecimal digits")),
            },
            _ => return wrong(format!("{word:?}: no such escape")),
        });
    }
    Ok(bytes)
}

fn hex(digit: Option<u8>) -> Option<u8> {
    char::from(digit?).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Makes a word of bytes.
pub fn escape(bytes: &[u8]) -> String {
    let mut word = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\\' => word.push_str("\\\\"),
            b' ' => word.push_str("\\s"),
            0x21..0x7f => word.push(char::from(byte)),
            _ => word.push_str(&format!("\\x{byte:02x}")),
        }
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why_not(line: &str) -> String {
        parse(line).unwrap_err().to_string()
    }

    #[test]
    fn a_descriptor_is_opened_for_both_unless_told_otherwise() {
        let open = |mode, cloexec| Command::Open {
            name: "a".to_owned(),
            path: b"lock".to_vec(),
            mode,
            cloexec,
        };
        assert_eq!(parse("open a lock"), Ok(open(OpenMode::Both, false)));
        assert_eq!(parse("open a lock rw cloexec"), Ok(open(OpenMode::Both, true)));
        assert_eq!(parse("  open a lock ro "), Ok(open(OpenMode::Read, false)));
    }

    #[test]
    fn a_range_ends_at_a_byte_or_at_the_end_of_the_file() {
        let lock = |record, access, start, end| Command::Lock {
            name: "a".to_owned(),
            asked: Asked::Record(record, access, Range { start, end }),
        };
        assert_eq!(
            parse("posix a wr 0 99"),
            Ok(lock(Record::Posix, Access::Exclusive, 0, Some(99)))
        );
        assert_eq!(parse("ofd a rd 100 eof"), Ok(lock(Record::Ofd, Access::Shared, 100, None)));
        assert_eq!(why_not("posix a wr 5 4"), "the last byte is before the first");
        assert_eq!(why_not("posix a wr 5"), "the last byte is missing");
        assert_eq!(why_not("posix a ex 0 eof"), "\"ex\" is no access: rd, wr or un");
    }

    #[test]
    fn a_birth_states_what_the_child_has_apart() {
        assert_eq!(
            parse("fork heir as 77 pidns mounts"),
            Ok(Command::Fork {
                name: "heir".to_owned(),
                birth: Birth {
                    pid: Some(77),
                    share_files: false,
                    new_pids: true,
                    new_mounts: true
                }
            })
        );
        assert_eq!(why_not("fork heir mounts pidns"), "\"pidns\" is one word too many");
        assert_eq!(why_not("fork heir as himself"), "a pid: \"himself\" is no such number");
    }

    #[test]
    fn only_what_can_block_is_left_for_later() {
        assert!(parse("later flock a ex").is_ok());
        assert!(parse("later open a lock wo").is_ok());
        assert_eq!(why_not("later exit 0"), "only a lock, an open or a read can be left for later");
        assert!(parse("later later flock a ex").is_err());
    }

    #[test]
    fn an_end_leaves_nobody_to_answer() {
        for line in ["exit 3", "abort", "die KILL", "leave"] {
            assert!(parse(line).unwrap().is_an_end(), "{line}");
        }
        assert!(!parse("close a").unwrap().is_an_end());
    }

    #[test]
    fn any_bytes_survive_the_way_through_a_word() {
        let all: Vec<u8> = (1..=255).collect();
        assert_eq!(unescape(&escape(&all)), Ok(all));
        assert_eq!(unescape(r"a\nb\sc\\\xff\e"), Ok(b"a\nb c\\\xff\x1b".to_vec()));
        assert!(unescape(r"\xf").is_err());
        assert!(unescape(r"\").is_err());
        assert!(unescape(r"\q").is_err());
    }

    #[test]
    fn a_line_that_makes_no_sense_names_the_word() {
        assert_eq!(why_not(""), "a command is missing");
        assert_eq!(why_not("juggle a"), "\"juggle\" is no command");
        assert_eq!(why_not("close"), "a name is missing");
        assert_eq!(why_not("close ../a"), "\"../a\" is no name: letters, digits, - and _ only");
        assert_eq!(why_not("close a b"), "\"b\" is one word too many");
        assert_eq!(why_not("mass files many d"), "a count: \"many\" is no such number");
    }
}
