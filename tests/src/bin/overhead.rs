//! What the history costs those who take locks, beside what else could watch them: the measuring
//! part of `cargo xtask bench overhead`.
//!
//! Each figure is processor time a pair of taking and giving up, of workers that are processes of
//! their own; under strace, whose work is not in the workers, it is the time that passed.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};
use lockwatch::source::bpf::{btf, layout};
use lockwatch::source::history::{History, Options, Sizes};
use lockwatch_common::offsets;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{CpuSet, UnshareFlags, sched_setaffinity, unshare_unsafe};
use serde_json::json;

/// How often everything is measured; the median counts.
const ROUNDS: usize = 7;
/// How long one figure is measured.
const SPAN: Duration = Duration::from_millis(60);
const WORKER: &str = "--worker";

const SETUPS: [&str; 6] = ["bare", "empty", "table", "history", "bpftrace", "strace"];
const OPERATIONS: [&str; 3] = ["flock", "posix", "ofd"];
/// Name, workers, whether on processors of their own, whether on one file.
const SHAPES: [(&str, usize, bool, bool); 4] = [
    ("alone", 1, true, false),
    ("alone, 2 CPUs", 2, true, false),
    ("contended, 1 CPU", 2, false, true),
    ("contended, 2 CPUs", 2, true, true),
];

/// The same two tables as a bpftrace script: who has each lock since when, and how many each has.
const SCRIPT: &str = r#"
BEGIN { printf("ready\n"); }
tracepoint:filelock:flock_lock_inode, tracepoint:filelock:posix_lock_inode
/args->ret == 0 && args->TYPE != 2/
{ @locks[args->i_ino, args->OWNER] = (nsecs, pid, tid, comm); @held[pid] += 1; }
tracepoint:filelock:flock_lock_inode, tracepoint:filelock:posix_lock_inode
/args->ret == 0 && args->TYPE == 2/
{ delete(@locks[args->i_ino, args->OWNER]); @held[pid] -= 1; }
END { clear(@locks); clear(@held); }
"#;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [WORKER, operation, file, cpu, wait] => work(operation, Path::new(file), cpu, wait == "1"),
        [object] => measure(Path::new(object)),
        _ => bail!("usage: overhead OBJECT"),
    }
}

/// Takes and gives up a lock as often as it can, and tells how often, in how much time.
fn work(operation: &str, path: &Path, cpu: &str, wait: bool) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu.parse().context("a processor")?);
    sched_setaffinity(None, &only).context("staying on a processor")?;
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    let pair = || -> Result<()> {
        set(&file, operation, true, wait)?;
        set(&file, operation, false, wait)
    };
    for _ in 0..500 {
        pair()?;
    }
    let (began, used) = (Instant::now(), processor_time()?);
    let mut pairs = 0u64;
    while began.elapsed() < SPAN {
        for _ in 0..50 {
            pair()?;
        }
        pairs += 50;
    }
    let passed = began.elapsed().as_nanos();
    let used = processor_time()? - used;
    #[expect(clippy::print_stdout, reason = "the answer to the measuring process")]
    {
        println!("{pairs} {used} {passed}");
    }
    Ok(())
}

fn set(file: &File, operation: &str, take: bool, wait: bool) -> Result<()> {
    let fd = file.as_raw_fd();
    let record = |command| {
        let access = if take { libc::F_WRLCK } else { libc::F_UNLCK };
        let lock = libc::flock {
            l_type: access as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 1,
            l_pid: 0,
        };
        // SAFETY: the descriptor is open, and the kernel only reads `lock`.
        unsafe { libc::fcntl(fd, command, &raw const lock) }
    };
    let done = match operation {
        "flock" => {
            let how = if take { libc::LOCK_EX } else { libc::LOCK_UN };
            // SAFETY: the descriptor is open.
            unsafe { libc::flock(fd, if wait { how } else { how | libc::LOCK_NB }) }
        }
        "posix" => record(if wait { libc::F_SETLKW } else { libc::F_SETLK }),
        _ => record(if wait { libc::F_OFD_SETLKW } else { libc::F_OFD_SETLK }),
    };
    ensure!(done == 0, "{operation}: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Nanoseconds that this process has had of processors.
fn processor_time() -> Result<u64> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Ok(u64::try_from(time.tv_sec)? * 1_000_000_000 + u64::try_from(time.tv_nsec)?)
}

/// Nanoseconds a pair: `[setup][operation][shape]`, of each round.
type Figures = Vec<Vec<Vec<Vec<f64>>>>;

fn measure(object: &Path) -> Result<()> {
    // SAFETY: no descriptor table is unshared, which is what the call is unsafe for.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("mounts of one's own")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context("mounts of one's own")?;
    let folder = tempfile::tempdir().context("a folder")?;
    let pins = folder.path().join("bpf");
    let files = folder.path().join("files");
    for (at, kind) in [(&pins, c"bpf"), (&files, c"tmpfs")] {
        fs::create_dir(at)?;
        mount(kind, at, kind, MountFlags::NOSUID, None)
            .with_context(|| at.display().to_string())?;
    }
    // Where bpftrace looks for it.
    let traced = mount(c"tracefs", "/sys/kernel/tracing", c"tracefs", MountFlags::NOSUID, None)
        .is_ok()
        || fs::exists("/sys/kernel/tracing/events").unwrap_or(false);
    let own = std::env::current_exe()?;
    let mut figures: Figures =
        vec![vec![vec![Vec::new(); SHAPES.len()]; OPERATIONS.len()]; SETUPS.len()];
    let mut absent = Vec::new();
    for round in 0..ROUNDS {
        for (place, setup) in SETUPS.iter().enumerate() {
            let watching = match watch(setup, object, &pins, traced) {
                Ok(watching) => watching,
                Err(error) => {
                    if round == 0 {
                        absent.push(format!("{setup}: {error:#}"));
                    }
                    continue;
                }
            };
            for (operation, name) in OPERATIONS.iter().enumerate() {
                for (shape, &form) in SHAPES.iter().enumerate() {
                    let figure = run(&own, *setup == "strace", name, form, &files)?;
                    figures[place][operation][shape].push(figure);
                }
            }
            drop(watching);
        }
    }
    let report = json!({
        "setups": SETUPS,
        "operations": OPERATIONS,
        "shapes": SHAPES.map(|(name, ..)| name),
        "rounds": ROUNDS,
        "absent": absent,
        "nanoseconds": figures.iter().map(|setup| {
            setup.iter().map(|operation| {
                operation.iter().map(|rounds| median(rounds)).collect::<Vec<_>>()
            }).collect::<Vec<_>>()
        }).collect::<Vec<_>>(),
    });
    #[expect(clippy::print_stdout, reason = "the answer to xtask")]
    {
        println!("{report}");
    }
    Ok(())
}

fn median(rounds: &[f64]) -> Option<f64> {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// One figure: nanoseconds a pair.
fn run(
    own: &Path,
    traced: bool,
    operation: &str,
    (_, workers, apart, one_file): (&str, usize, bool, bool),
    files: &Path,
) -> Result<f64> {
    let mut children = Vec::new();
    for worker in 0..workers {
        let file = files.join(format!("lock{}", if one_file { 0 } else { worker }));
        let mut command = if traced {
            let mut command = Command::new("strace");
            command.args(["-f", "-qq", "-o", "/dev/null"]).arg(own);
            command
        } else {
            Command::new(own)
        };
        let cpu = if apart { worker } else { 0 };
        command.arg(WORKER).arg(operation).arg(file).arg(cpu.to_string());
        command.arg(if one_file { "1" } else { "0" }).stdout(Stdio::piped());
        children.push(command.spawn().context("a worker")?);
    }
    let (mut pairs, mut time) = (0.0, 0.0);
    for child in children {
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "a worker ended with {}", output.status);
        let told = String::from_utf8(output.stdout)?;
        let numbers: Vec<f64> =
            told.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [done, used, passed] = numbers[..] else { bail!("a worker said {told:?}") };
        pairs += done;
        time += if traced { passed } else { used };
    }
    Ok(time / pairs)
}

/// What watches while it lives.
enum Watching {
    Nothing,
    Programs { _object: Box<Ebpf> },
    History { _history: Box<History>, folder: PathBuf },
    Script(Child),
}

impl Drop for Watching {
    fn drop(&mut self) {
        match self {
            Self::History { folder, .. } => {
                let _ = History::detach(folder);
            }
            Self::Script(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Self::Nothing | Self::Programs { .. } => {}
        }
    }
}

fn watch(setup: &str, object: &Path, pins: &Path, traced: bool) -> Result<Watching> {
    Ok(match setup {
        "bare" => Watching::Nothing,
        "strace" => {
            Command::new("strace").arg("-V").stdout(Stdio::null()).status().context("strace")?;
            Watching::Nothing
        }
        "empty" | "table" => Watching::Programs { _object: Box::new(attach(object, setup)?) },
        "history" => {
            let folder = pins.join("lockwatch");
            let options = Options {
                folder: folder.clone(),
                sizes: Sizes::default(),
                handoff_window: 5_000_000_000,
            };
            let (history, _) = History::open(&options)?;
            Watching::History { _history: Box::new(history), folder }
        }
        _ => {
            ensure!(traced, "tracefs cannot be mounted");
            script()?
        }
    })
}

/// Attaches the two programs of a name.
fn attach(object: &Path, setup: &str) -> Result<Ebpf> {
    let bytes = fs::read(object).with_context(|| object.display().to_string())?;
    let types = fs::read("/sys/kernel/btf/vmlinux").context("the kernel's types")?;
    let offsets = layout::offsets(&btf::Btf::parse(&types)?, false)?.words();
    let mut ebpf = EbpfLoader::new()
        .btf(None)
        .override_global(offsets::GLOBAL, &offsets, true)
        .load(&bytes)?;
    let kernel = Btf::parse(&types, aya::Endianness::default())?;
    for (name, tracepoint) in [("flock", "flock_lock_inode"), ("posix", "posix_lock_inode")] {
        let program = ebpf.program_mut(&format!("{setup}_{name}")).context("a program")?;
        let program: &mut BtfTracePoint = program.try_into()?;
        program.load(tracepoint, &kernel)?;
        program.attach()?;
    }
    Ok(ebpf)
}

fn script() -> Result<Watching> {
    let format = fs::read_to_string("/sys/kernel/tracing/events/filelock/flock_lock_inode/format")
        .context("the tracepoint's format")?;
    // 6.9 renamed them, but not in what is printed.
    let old = format.contains("unsigned char fl_type;");
    let names = if old { ("fl_type", "fl_owner") } else { ("type", "owner") };
    let text = SCRIPT.replace("TYPE", names.0).replace("OWNER", names.1);
    let mut child = Command::new("bpftrace")
        .args(["-e", &text])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("bpftrace (apt-get install bpftrace)")?;
    let out = child.stdout.take().context("bpftrace's output")?;
    let mut lines = BufReader::new(out).lines();
    let ready = lines.by_ref().map_while(Result::ok).any(|line| line == "ready");
    let watching = Watching::Script(child);
    ensure!(ready, "bpftrace ended before it was ready");
    // What it prints is read to its end, so that it never waits for a reader.
    std::thread::spawn(move || lines.map_while(Result::ok).count());
    Ok(watching)
}
