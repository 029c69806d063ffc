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
use crate::tally::Tally;
use crate::{build, command, interrupt, privilege, progress, soak, workspace};
use boot::{Booted, Limits};
use fetch::Fetched;
use programs::Programs;
use report::Column;
use sources::Mirror;
use suites::{Guest, Kernel};
use verdict::Verdict;

/// More would only take turns on the two cores that there are.
const AT_ONCE: usize = 2;

/// An emulated machine is several times slower: the tests' own time limits are to allow for it.
const PATIENCE: [&str; 2] = ["--patience", "5"];

/// How long one VM may take where nothing else is said.
const VM_SECONDS: u64 = 1500;

/// How often a kernel is booted that ends or hangs before a test could have anything to do with
/// it.
const BOOTS: usize = 3;

#[derive(clap::Args, Debug, Default)]
pub(crate) struct Args {
    /// VMs by name, base version or Debian suite; all of the matrix if none is given
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
    /// Leave the tests of these themes out
    #[arg(long, value_name = "THEME,…", value_delimiter = ',')]
    without: Vec<String>,
    /// How often the tests of a soak do what they do [default: the short form]
    #[arg(long, value_name = "N", conflicts_with = "host")]
    rounds: Option<u32>,
    /// How long one VM may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = VM_SECONDS)]
    timeout: u64,
    /// How long all may take together, as 15m or 900s: a VM that is not done by then is red
    #[arg(long, value_name = "TIME", value_parser = time)]
    within: Option<Duration>,
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

/// What the matrix cannot be run without.
pub(crate) fn prerequisites() -> Result<()> {
    boot::emulator().map(drop)
}

/// The whole matrix; what came of it, after its table was printed.
pub(crate) fn matrix(within: Duration, without: &[&str]) -> Result<Tally> {
    let without = without.iter().map(|&theme| theme.to_owned()).collect();
    let args = Args { within: Some(within), timeout: VM_SECONDS, without, ..Args::default() };
    let (output, columns) = columns(&args, Instant::now())?;
    publish(&args, &output, &columns)?;
    Ok(report::tally(&columns))
}

fn run_matrix(args: &Args) -> Result<u8> {
    let started = Instant::now();
    let kernels = suites::select(&args.kernels);
    let cache = cache()?;
    if args.list {
        list(&cache, &kernels?)?;
        return Ok(0);
    }
    if args.renew_btf {
        let _lock = lock(&cache)?;
        let mirror = sources::mirror(Path::new("/etc/apt"));
        return renew_btf(&cache, &mirror, &kernels?, args.refresh);
    }
    let (output, columns) = columns(args, started)?;
    publish(args, &output, &columns)?;
    let tally = report::tally(&columns);
    command::print(&format!("{tally}\n"))?;
    Ok(status(&columns))
}

/// Runs what is asked for; the folder with its words, and what came of each VM.
fn columns(args: &Args, started: Instant) -> Result<(PathBuf, Vec<Column>)> {
    let guests = suites::guests(&args.kernels, args.filter.as_deref())?;
    prerequisites()?;
    let cache = cache()?;
    let _lock = lock(&cache)?;
    let programs = if args.self_check {
        programs::self_check()?
    } else {
        let given = args.lockwatch.clone();
        programs::live(given.map_or_else(build::run, Ok)?)?
    };
    let output = workspace::target().join("vm");
    fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;

    let run = Run {
        base: initramfs::base(&programs)?,
        mirror: sources::mirror(Path::new("/etc/apt")),
        limits: Limits {
            whole: Duration::from_secs(args.timeout),
            deadline: args.within.map(|within| started + within),
        },
        self_check: args.self_check,
        cache,
        output,
        refresh: args.refresh,
        keep_logs: args.keep_logs,
        without: args.without.clone(),
        rounds: args.rounds,
    };
    let mut columns = run.all(&guests);
    if interrupt::happened() {
        bail!("interrupted");
    }
    if args.host {
        columns.push(host_column(&programs, args.filter.as_deref()));
    }
    Ok((run.output, columns))
}

/// Prints and writes the outcome.
fn publish(args: &Args, output: &Path, columns: &[Column]) -> Result<()> {
    let results = output.join("results.json");
    fs::write(&results, serde_json::to_vec_pretty(columns)?)
        .with_context(|| format!("cannot write {}", results.display()))?;
    command::print(&report::table(columns))?;
    if let Some(file) = &args.write_support_table {
        report::write_support_table(file, columns)?;
    }
    Ok(())
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

/// What all VMs of one run share.
struct Run {
    base: Vec<u8>,
    mirror: Result<Mirror>,
    limits: Limits,
    self_check: bool,
    cache: PathBuf,
    output: PathBuf,
    refresh: bool,
    keep_logs: bool,
    without: Vec<String>,
    rounds: Option<u32>,
}

impl Run {
    /// Every VM's column, in the order given; a few at a time.
    fn all(&self, guests: &[(&'static Guest, Option<String>)]) -> Vec<Column> {
        let next = Mutex::new(0);
        let done = Mutex::new(Vec::new());
        let work = || {
            loop {
                let index = {
                    let Ok(mut next) = next.lock() else { return };
                    *next += 1;
                    *next - 1
                };
                let Some((guest, filter)) = guests.get(index) else { return };
                if interrupt::happened() {
                    return;
                }
                let column = self.one(guest, filter.as_deref());
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

    fn one(&self, guest: &Guest, filter: Option<&str>) -> Column {
        let mut column = Column {
            kernel: guest.name.to_owned(),
            origin: String::new(),
            seconds: 0.0,
            booted_again: Vec::new(),
            verdict: Verdict::Broken {
                reason: verdict::NOT_IN_TIME.to_owned(),
                console_tail: "it was not begun".to_owned(),
            },
        };
        if self.limits.is_over() {
            return column;
        }
        let kernel = guest.kernel();
        let fetched = kernel
            .and_then(|kernel| fetch::newest(&self.cache, &self.mirror, kernel, self.refresh));
        let fetched = match fetched {
            Ok(fetched) => fetched,
            Err(error) => {
                let reason = format!("{error:#}");
                progress::say(&format!("{}: SKIPPED, NOT TESTED: {reason}", guest.name));
                column.verdict = Verdict::Skipped { reason };
                return column;
            }
        };
        let started = Instant::now();
        let booted = self.boot(guest, filter, &fetched, &mut column.booted_again);
        column.verdict = booted.unwrap_or_else(|error| Verdict::Broken {
            reason: format!("{error:#}"),
            console_tail: String::new(),
        });
        column.origin = fetched.origin;
        column.seconds = started.elapsed().as_secs_f64();
        column
    }

    fn boot(
        &self,
        guest: &Guest,
        filter: Option<&str>,
        fetched: &Fetched,
        booted_again: &mut Vec<String>,
    ) -> Result<Verdict> {
        let folder = self.output.join(guest.name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let initramfs = folder.join("initramfs.cpio");
        let arguments = self.arguments(guest, filter);
        fs::write(&initramfs, self.complete(fetched, &arguments)?)
            .with_context(|| format!("cannot write {}", initramfs.display()))?;
        progress::say(&format!("{}: booting {}", guest.name, fetched.release));
        let booted =
            Booted { kernel: &fetched.vmlinuz, initramfs: &initramfs, append: guest.append };
        let (ended, verdict) = loop {
            let ended = boot::boot(booted, &folder, self.limits)?;
            let verdict = verdict::of_vm(&ended);
            match &verdict {
                Verdict::Broken { reason, .. }
                    if ended.before_init() && booted_again.len() + 1 < BOOTS =>
                {
                    let why = format!("{reason}, before init began");
                    progress::say(&format!("{}: BOOTED AGAIN: {why}", guest.name));
                    booted_again.push(why);
                }
                _ => break (ended, verdict),
            }
        };
        let word = if verdict.is_red() { "RED" } else { "green" };
        progress::say(&format!("{}: {word} after {:.1} s", guest.name, ended.seconds));
        if verdict.is_red() || self.keep_logs {
            progress::say(&format!("{}: its words are in {}", guest.name, folder.display()));
        }
        fs::remove_file(&initramfs)?;
        if !self.keep_logs && !verdict.is_red() {
            fs::remove_dir_all(&folder)?;
        }
        Ok(verdict)
    }

    /// The initramfs of a VM whose tests are called so.
    fn complete(&self, fetched: &Fetched, arguments: &[String]) -> Result<Vec<u8>> {
        let rounds = self.rounds.map(|rounds| (soak::ROUNDS, rounds.to_string()));
        initramfs::complete(&self.base, &fetched.modules, arguments, rounds)
    }

    /// What the tests of a VM are called with.
    fn arguments(&self, guest: &Guest, filter: Option<&str>) -> Vec<String> {
        let mut arguments: Vec<_> = PATIENCE.map(str::to_owned).into();
        if !self.self_check {
            // A broken loader must not turn tests into skips.
            arguments.extend(["--require".to_owned(), guest.require.to_owned()]);
            if !self.without.is_empty() {
                arguments.extend(["--without".to_owned(), self.without.join(",")]);
            }
        }
        arguments.extend(filter.map(str::to_owned));
        arguments
    }
}

fn host_column(programs: &Programs, filter: Option<&str>) -> Column {
    progress::say("host: running the tests on the running kernel");
    let started = Instant::now();
    let mut arguments: Vec<String> = filter.map(str::to_owned).into_iter().collect();
    if privilege::bpf_is_due() {
        arguments.extend(["--require", "iter/task_file"].map(str::to_owned));
    }
    let verdict = host::run(programs, &arguments).unwrap_or_else(|error| Verdict::Broken {
        reason: format!("{error:#}"),
        console_tail: String::new(),
    });
    Column {
        kernel: "host".to_owned(),
        origin: "the running kernel".to_owned(),
        seconds: started.elapsed().as_secs_f64(),
        booted_again: Vec::new(),
        verdict,
    }
}

/// `15m`, `900s` or `900`.
fn time(text: &str) -> std::result::Result<Duration, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let number = number.parse::<u64>().map_err(|_| "neither minutes (15m) nor seconds (900s)")?;
    Ok(Duration::from_secs(number.saturating_mul(unit)))
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
        Column {
            kernel: "6.1".into(),
            origin: String::new(),
            seconds: 0.0,
            booted_again: Vec::new(),
            verdict,
        }
    }

    fn ran() -> Verdict {
        let release = String::new();
        let (tests, lacks) = (Vec::new(), Vec::new());
        Verdict::Ran { release, boot_seconds: 0.0, test_seconds: 0.0, tests, lacks }
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
    #[test]
    fn times_are_minutes_or_seconds() {
        assert_eq!(time("15m").unwrap().as_secs(), 900);
        assert_eq!(time("90s").unwrap().as_secs(), 90);
        assert_eq!(time("90").unwrap().as_secs(), 90);
        assert!(time("soon").is_err() && time("-1m").is_err());
    }
}
