//! What one test has: a folder, a cast of rigs, and the binary under test.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::cast::Cast;
use super::invocation::{Invocation, Run};
use super::report::Report;
use super::table::Source;
use super::{capability, place};
use crate::rig::language::{escape, unescape};

/// A file's identity, as a report has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId {
    /// `MAJOR:MINOR`, in hexadecimal.
    pub dev: String,
    /// Inode number.
    pub ino: u64,
}

/// Why a test that began cannot go on here. Returned as an error it skips the test.
#[derive(Debug)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Writes a line of the transcript, which is shown where the test fails.
pub fn note(line: &str) {
    // A transcript that cannot be written must not change the verdict.
    let _ = writeln!(std::io::stdout(), "    {line}");
}

/// One test's world.
pub struct Scene {
    folder: PathBuf,
    source: Option<Source>,
    cast: Cast,
}

impl Scene {
    pub(super) fn new(folder: PathBuf, source: Option<Source>) -> Result<Self> {
        Ok(Self { folder, source, cast: Cast::new()? })
    }

    /// The folder in which everything happens; the rigs' and the binary's working directory.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The same as text.
    pub fn path_text(&self, name: &str) -> Result<String> {
        let path = self.path(name).into_os_string().into_string();
        path.map_err(|path| anyhow::anyhow!("{} is not UTF-8", path.display()))
    }

    /// The source that this run of the test is about.
    pub fn source(&self) -> Result<Source> {
        self.source.context("this test is not about a source")
    }

    /// True in the run that is about BPF.
    pub fn is_bpf(&self) -> bool {
        self.source == Some(Source::Bpf)
    }

    /// Plays a story: a command or a stage direction a line; what follows a `#` is for the reader.
    pub fn play(&mut self, story: &str) -> Result<()> {
        for line in story.lines().map(str::trim) {
            if !line.is_empty() && !line.starts_with('#') {
                self.direct(line)?;
            }
        }
        Ok(())
    }

    /// Plays one line and returns the answer.
    pub fn direct(&mut self, line: &str) -> Result<String> {
        let answer = self.cast.direct(line, &self.folder).with_context(|| line.to_owned());
        match &answer {
            Ok(answer) => note(&format!("> {line}  ← {answer}")),
            Err(error) => note(&format!("> {line}  ← {error:#}")),
        }
        answer
    }

    /// What a file holds, as an actor sees it.
    pub fn shown_to(&mut self, actor: &str, path: &str) -> Result<String> {
        let answer = self.direct(&format!("{actor}: show {}", escape(path.as_bytes())))?;
        let text = unescape(answer.strip_prefix("ok").unwrap_or_default().trim_start())?;
        String::from_utf8(text).with_context(|| format!("{path} is not UTF-8"))
    }

    /// Ends a rig and leaves its exit status unread, so that it stays a zombie.
    pub fn dies_unreaped(&mut self, name: &str, command: &str) -> Result<()> {
        note(&format!("> {name}: {command}  (unreaped)"));
        self.cast.die_unreaped(name, command)
    }

    /// Tells a rig to end, and waits until it is on its way out and no further.
    pub fn sticks_in_its_end(&mut self, name: &str, command: &str) -> Result<()> {
        note(&format!("> {name}: {command}  (stuck)"));
        self.cast.stick_in_end(name, command)
    }

    /// An actor's pid, dead or alive.
    pub fn pid(&self, name: &str) -> Result<i32> {
        Ok(self.cast.actor(name)?.pid)
    }

    /// The pids of all actors that there are or were.
    pub fn pids(&self) -> BTreeSet<i32> {
        self.cast.pids()
    }

    /// An actor's pid and thread id as it sees them itself.
    pub fn own_ids(&self, name: &str) -> Result<(i32, i32)> {
        Ok(self.cast.actor(name)?.own)
    }

    /// A file of the folder, by its identity.
    pub fn file(&self, name: &str) -> Result<FileId> {
        file_id(&self.path(name))
    }

    /// Gives this test mounts of its own, which end with it. Before any rig starts.
    pub fn private_mounts(&mut self) -> Result<()> {
        capability::private_mounts()
    }

    /// Mounts a fresh tmpfs on a new folder.
    pub fn tmpfs(&mut self, name: &str) -> Result<()> {
        capability::tmpfs(&self.new_folder(name)?)
    }

    /// Mounts an overlay: `NAME/lower`, `NAME/upper` and `NAME/merged`.
    pub fn overlay(&mut self, name: &str) -> Result<()> {
        capability::overlay(&self.new_folder(name)?)
    }

    /// Makes a folder.
    pub fn new_folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// `lockwatch`, about to be run in the folder with these arguments.
    pub fn lockwatch(&self, args: &[&str]) -> Result<Invocation> {
        Ok(Invocation::new(&place::lockwatch()?, &self.folder).args(args))
    }

    /// Another program of the machine, about to be run in the folder.
    pub fn program(&self, name: &str, args: &[&str]) -> Result<Invocation> {
        let program = place::system_program(name);
        let program = program.with_context(|| format!("{name} is not installed"))?;
        Ok(Invocation::new(&program, &self.folder).args(args))
    }

    /// A copy of the binary where every user may run it.
    pub fn public_lockwatch(&self, args: &[&str]) -> Result<Invocation> {
        let copy = self.path("lockwatch-for-everyone");
        if !copy.exists() {
            fs::copy(place::lockwatch()?, &copy).context("copying the binary")?;
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(&copy, mode).context("the copy of the binary")?;
        }
        Ok(Invocation::new(&copy, &self.folder).args(args))
    }

    /// Runs a verb on this test's source, for root.
    pub fn run(&self, args: &[&str]) -> Result<Run> {
        self.with_source(args)?.run()
    }

    /// A verb on this test's source, about to be run.
    pub fn with_source(&self, args: &[&str]) -> Result<Invocation> {
        let invocation = self.lockwatch(args)?;
        Ok(match self.source {
            Some(source) => invocation.args(["--source", source.name()]),
            None => invocation,
        })
    }

    /// Scans this test's folder: whatever else the machine is doing has no part in the test.
    pub fn scan(&self) -> Result<Report> {
        let folder = self.folder.to_str().context("the folder is not UTF-8")?;
        self.scan_for(&[folder])
    }

    /// Scans the whole machine, and whatever others have locked.
    pub fn scan_machine(&self) -> Result<Report> {
        self.scan_for(&[])
    }

    /// Scans the whole machine with BPF, whatever source the test is about.
    pub fn scan_by_bpf(&self) -> Result<Report> {
        self.report(&self.run(&["scan", "--json", "--source", "bpf"])?)
    }

    /// Scans what is asked for.
    pub fn scan_for(&self, targets: &[&str]) -> Result<Report> {
        let mut args = vec!["scan", "--json"];
        args.extend(targets);
        let run = self.run(&args)?;
        let report = self.report(&run)?;
        if let Some(source) = self.source {
            ensure!(report.source == source.name(), "the report is of {}", report.source);
        }
        Ok(report)
    }

    /// Reads the report of a scan, whose exit code must fit it.
    pub fn report(&self, run: &Run) -> Result<Report> {
        let code = run.code();
        ensure!(matches!(code, Some(0 | 1)), "the scan failed: {:?}", run.complaints());
        let report = Report::read(&run.stdout)?;
        let expected = i32::from(!report.findings.is_empty());
        ensure!(
            code == Some(expected),
            "exit code {code:?} with {} findings",
            report.findings.len()
        );
        Ok(report)
    }

    /// Lets an actor run `lockwatch` where it is, in its namespaces and as its user.
    pub fn lockwatch_run_by(&mut self, actor: &str, args: &[&str]) -> Result<Run> {
        let program = place::lockwatch()?;
        let mut line = escape(std::os::unix::ffi::OsStrExt::as_bytes(program.as_os_str()));
        for arg in args {
            line.push(' ');
            line.push_str(&escape(arg.as_bytes()));
        }
        let answer = self.direct(&format!("{actor}: run {actor}-run {line}"))?;
        let Some(code) = answer.strip_prefix("ok exit=") else { bail!("it ended so: {answer}") };
        let output = |ending: &str| -> Result<Vec<u8>> {
            let path = self.path(&format!("{actor}-run.{ending}"));
            fs::read(&path).with_context(|| path.display().to_string())
        };
        let shown = format!("(in {actor}) lockwatch {}", args.join(" "));
        Ok(Run::from_parts(&shown, code.parse()?, output("out")?, output("err")?))
    }
}

/// A file by its identity, as `/proc/locks` and a report write it.
pub fn file_id(path: &Path) -> Result<FileId> {
    let meta = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    Ok(FileId { dev: format!("{major:02x}:{minor:02x}"), ino: meta.ino() })
}
