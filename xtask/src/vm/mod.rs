//! `cargo xtask vm`: the live tests on real distribution kernels under qemu.
//!
//! Wires the parts together and decides the exit status. What a part does stands in its file.

mod apt;
mod boot;
mod btf;
mod cpio;
mod fetch;
mod host;
mod initramfs;
mod libraries;
mod modules;
mod programs;
mod report;
mod sources;
mod suites;
mod tools;
mod verdict;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::{build, command, interrupt, progress, workspace};
use fetch::Fetched;
use programs::Programs;
use report::Column;
use sources::Mirror;
use suites::Kernel;
use verdict::Verdict;

/// More would only take turns on the two cores that there are.
const AT_ONCE: usize = 2;

/// An emulated machine is several times slower: the tests' own time limits are to allow for it.
const PATIENCE: [&str; 2] = ["--patience", "5"];

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Kernels by base version or Debian suite; all of the matrix if none is given
    #[arg(value_name = "KERNEL")]
    kernels: Vec<String>,
    /// List the matrix with what is in the cache, and end
    #[arg(long)]
    list: bool,
    /// Keep each VM's console and report under target/vm, even if all went well
    #[arg(long)]
    keep_logs: bool,
    /// Run only the tests whose name contains this
    #[arg(long, value_name = "TESTFILTER")]
    filter: Option<String>,
    /// How long one VM may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Also run the live tests on the running kernel, as a column of the table
    #[arg(long)]
    host: bool,
    /// Ask the mirror for newer kernels even if it was asked within a day
    #[arg(long)]
    refresh: bool,
    /// Check the VMs themselves instead of lockwatch
    #[arg(long, conflicts_with = "host")]
    self_check: bool,
    /// Renew the BTF fixtures from the kernels and the running one, and end
    #[arg(long, conflicts_with_all = ["host", "self_check"])]
    renew_btf: bool,
    /// The release binary to test [default: it is built first]
    #[arg(long, value_name = "FILE")]
    lockwatch: Option<PathBuf>,
    /// Put the outcome into FILE, between the marks of the support table
    #[arg(long, value_name = "FILE")]
    write_support_table: Option<PathBuf>,
}

/// 0: all green, announced skips included. 1: a test failed. 2: nothing could be run.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match run_matrix(args) {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(error) => {
            progress::say(&format!("could not run: {error:#}"));
            Ok(ExitCode::from(2))
        }
    }
}

fn run_matrix(args: &Args) -> Result<u8> {
    let kernels = suites::select(&args.kernels)?;
    let cache = cache()?;
    if args.list {
        list(&cache, &kernels)?;
        return Ok(0);
    }
    let _lock = lock(&cache)?;
    let mirror = sources::mirror(Path::new("/etc/apt"));
    if args.renew_btf {
        return renew_btf(&cache, &mirror, &kernels, args.refresh);
    }
    let programs = if args.self_check {
        programs::self_check()?
    } else {
        let given = args.lockwatch.clone();
        programs::live(given.map_or_else(build::run, Ok)?)?
    };
    let arguments: Vec<String> = args.filter.iter().cloned().collect();
    let output = workspace::target().join("vm");
    fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;

    let run = Run {
        base: initramfs::base(&programs, &[&PATIENCE.map(str::to_owned), &*arguments].concat())?,
        mirror,
        timeout: Duration::from_secs(args.timeout),
        cache,
        output,
        refresh: args.refresh,
        keep_logs: args.keep_logs,
    };
    let mut columns = run.all(&kernels);
    if interrupt::happened() {
        bail!("interrupted");
    }
    if args.host {
        columns.push(host_column(&programs, &arguments));
    }
    finish(args, &run.output, &columns)
}

/// Prints and writes the outcome; the exit status.
fn finish(args: &Args, output: &Path, columns: &[Column]) -> Result<u8> {
    let results = output.join("results.json");
    fs::write(&results, serde_json::to_vec_pretty(columns)?)
        .with_context(|| format!("cannot write {}", results.display()))?;
    command::print(&format!("{}{}\n", report::table(columns), report::closing_line(columns)))?;
    if let Some(file) = &args.write_support_table {
        report::write_support_table(file, columns)?;
    }
    Ok(status(columns))
}

fn status(columns: &[Column]) -> u8 {
    if columns.iter().any(|column| column.verdict.is_red()) {
        1
    } else if columns.iter().all(|column| matches!(column.verdict, Verdict::Skipped { .. })) {
        2
    } else {
        0
    }
}

/// How often a kernel is booted that dies before a test could have anything to do with it.
const BOOTS: u32 = 3;

/// What all VMs of one run share.
struct Run {
    base: Vec<u8>,
    mirror: Result<Mirror>,
    timeout: Duration,
    cache: PathBuf,
    output: PathBuf,
    refresh: bool,
    keep_logs: bool,
}

impl Run {
    /// Every kernel's column, in the order given; a few at a time.
    fn all(&self, kernels: &[&'static Kernel]) -> Vec<Column> {
        let next = Mutex::new(0);
        let done = Mutex::new(Vec::new());
        let work = || {
            loop {
                let index = {
                    let Ok(mut next) = next.lock() else { return };
                    *next += 1;
                    *next - 1
                };
                let Some(kernel) = kernels.get(index) else { return };
                if interrupt::happened() {
                    return;
                }
                let column = self.one(kernel);
                if let Ok(mut done) = done.lock() {
                    done.push((index, column));
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(work);
            }
        });
        let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, column)| column).collect()
    }

    fn one(&self, kernel: &Kernel) -> Column {
        let column = |origin: &str, seconds, verdict| Column {
            kernel: kernel.base.to_owned(),
            origin: origin.to_owned(),
            seconds,
            verdict,
        };
        let fetched = match fetch::newest(&self.cache, &self.mirror, kernel, self.refresh) {
            Ok(fetched) => fetched,
            Err(error) => {
                let reason = format!("{error:#}");
                progress::say(&format!("{}: SKIPPED, NOT TESTED: {reason}", kernel.base));
                return column("", 0.0, Verdict::Skipped { reason });
            }
        };
        let started = Instant::now();
        let verdict = self.boot(kernel, &fetched).unwrap_or_else(|error| Verdict::Broken {
            reason: format!("{error:#}"),
            console_tail: String::new(),
        });
        column(&fetched.origin, started.elapsed().as_secs_f64(), verdict)
    }

    fn boot(&self, kernel: &Kernel, fetched: &Fetched) -> Result<Verdict> {
        let folder = self.output.join(kernel.base);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let initramfs = folder.join("initramfs.cpio");
        fs::write(&initramfs, initramfs::complete(&self.base, &fetched.modules)?)
            .with_context(|| format!("cannot write {}", initramfs.display()))?;
        progress::say(&format!("{}: booting {}", kernel.base, fetched.release));
        let mut boots = 1;
        let ended = loop {
            let ended = boot::boot(&fetched.vmlinuz, &initramfs, &folder, self.timeout)?;
            if boots == BOOTS || !verdict::died_before_init(&ended) {
                break ended;
            }
            boots += 1;
            progress::say(&format!(
                "{}: BOOTED AGAIN: the kernel panicked under emulation before init began",
                kernel.base
            ));
        };
        let verdict = verdict::of_vm(&ended);
        let word = if verdict.is_red() { "RED" } else { "green" };
        progress::say(&format!("{}: {word} after {:.1} s", kernel.base, ended.seconds));
        if verdict.is_red() || self.keep_logs {
            progress::say(&format!("{}: its words are in {}", kernel.base, folder.display()));
        }
        fs::remove_file(&initramfs)?;
        if !self.keep_logs && !verdict.is_red() {
            fs::remove_dir_all(&folder)?;
        }
        Ok(verdict)
    }
}

fn host_column(programs: &Programs, arguments: &[String]) -> Column {
    progress::say("host: running the tests on the running kernel");
    let started = Instant::now();
    let verdict = host::run(programs, arguments).unwrap_or_else(|error| Verdict::Broken {
        reason: format!("{error:#}"),
        console_tail: String::new(),
    });
    Column {
        kernel: "host".to_owned(),
        origin: "the running kernel".to_owned(),
        seconds: started.elapsed().as_secs_f64(),
        verdict,
    }
}

/// Writes the fixtures of every kernel that can be had; 2 if one cannot.
fn renew_btf(
    cache: &Path,
    mirror: &Result<Mirror>,
    kernels: &[&Kernel],
    refresh: bool,
) -> Result<u8> {
    let folder = workspace::root().join(btf::FIXTURES);
    let mut status = 0;
    for kernel in kernels {
        match fetch::newest(cache, mirror, kernel, refresh) {
            Ok(fetched) => btf::renew(&folder, kernel.base, &fetched)?,
            Err(error) => {
                progress::say(&format!("{}: SKIPPED, NOT RENEWED: {error:#}", kernel.base));
                status = 2;
            }
        }
    }
    btf::renew_host(&folder)?;
    Ok(status)
}

fn list(cache: &Path, kernels: &[&Kernel]) -> Result<()> {
    let mut text = String::new();
    for kernel in kernels {
        let cached = fetch::cached(cache, kernel)
            .map_or_else(|| "not in the cache".to_owned(), |fetched| fetched.origin);
        let _ = writeln!(text, "{:5} {:9} {cached}", kernel.base, kernel.suite);
    }
    command::print(&text)
}

/// One run at a time: two would fetch into the same folders and take each other's cores.
fn lock(cache: &Path) -> Result<File> {
    let path = cache.join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    if file.try_lock().is_err() {
        progress::say("another run of VMs is at work, waiting for it");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// What is fetched outlives `cargo clean`.
fn cache() -> Result<PathBuf> {
    let folder = Cache::of_caller()?.path("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(verdict: Verdict) -> Column {
        Column { kernel: "6.1".into(), origin: String::new(), seconds: 0.0, verdict }
    }

    fn ran() -> Verdict {
        let release = String::new();
        Verdict::Ran { release, boot_seconds: 0.0, test_seconds: 0.0, tests: Vec::new() }
    }

    fn skipped() -> Verdict {
        Verdict::Skipped { reason: "no mirror".into() }
    }

    #[test]
    fn the_status_tells_red_from_green_from_nothing() {
        let broken = || Verdict::Broken { reason: String::new(), console_tail: String::new() };
        assert_eq!(status(&[column(ran()), column(skipped())]), 0);
        assert_eq!(status(&[column(ran()), column(broken())]), 1);
        assert_eq!(status(&[column(skipped()), column(broken())]), 1);
        assert_eq!(status(&[column(skipped())]), 2);
    }
}
