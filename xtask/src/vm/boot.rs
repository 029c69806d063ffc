//! Boots one kernel in qemu's software emulation and waits for its end.
//!
//! Judges nothing: it hands over what the two serial ports said and how qemu ended. A qemu that
//! it started does not outlive it.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::tools;
use crate::interrupt;

/// What is left of a VM.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) nonce: String,
    /// The first serial port: the kernel's and the tests' words.
    pub(crate) console: String,
    /// The second serial port: the report of init.
    pub(crate) report: String,
    pub(crate) how: How,
    pub(crate) seconds: f64,
}

/// How qemu came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Exited,
    /// qemu itself failed, in its own words.
    Failed(String),
    /// The kernel did not come as far as init, and was ended.
    NeverBegan,
    /// It had its own time, and was ended.
    TimedOut,
    /// The time of all was over, and it was ended.
    NotInTime,
}

impl Ended {
    /// Whether the kernel ended, or hung, before anything of ours ran: what emulation does to it
    /// now and then.
    pub(crate) fn before_init(&self) -> bool {
        matches!(self.how, How::Exited | How::NeverBegan) && !has_begun(&self.console)
    }
}

/// How long a VM may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// From its start to its end.
    pub(crate) whole: Duration,
    /// When everything must be over.
    pub(crate) deadline: Option<Instant>,
}

impl Limits {
    pub(crate) fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

/// The first words of `tests/src/bin/vm-init.rs`.
const BEGIN_MARK: &str = "vm-init: begins";
/// How long a kernel may take to init: it takes 3 s on two idle cores.
const START_LIMIT: Duration = Duration::from_secs(90);

fn has_begun(console: &str) -> bool {
    console.lines().any(|line| line.trim_end() == BEGIN_MARK)
}

/// Kills qemu if the run is left early.
struct Vm(Child);

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is booted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Booted<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    /// What its command line has besides.
    pub(crate) append: &'a str,
}

/// Boots a kernel; `folder` takes the logs.
pub(crate) fn boot(booted: Booted<'_>, folder: &Path, limits: Limits) -> Result<Ended> {
    let nonce = nonce()?;
    let (console, report) = (folder.join("console.log"), folder.join("report.json"));
    let said = folder.join("qemu.log");
    // An earlier run's words would be taken for this one's.
    for log in [&console, &report] {
        fs::write(log, "").with_context(|| format!("cannot write {}", log.display()))?;
    }
    let mut qemu = qemu(booted, &nonce, &console, &report)?;
    let line = tools::line(&qemu);
    qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&said)?);
    let started = Instant::now();
    let mut vm = Vm(qemu.spawn().with_context(|| format!("cannot run `{line}`"))?);
    let mut begun = false;
    let how = loop {
        if let Some(status) =
            vm.0.try_wait().with_context(|| format!("cannot wait for `{line}`"))?
        {
            break if status.success() {
                How::Exited
            } else {
                let said = fs::read_to_string(&said).unwrap_or_default();
                How::Failed(format!("qemu ended with {status}: {}", said.trim()))
            };
        }
        if interrupt::happened() {
            bail!("interrupted");
        }
        if limits.is_over() {
            break How::NotInTime;
        }
        if started.elapsed() > limits.whole {
            break How::TimedOut;
        }
        if !begun && started.elapsed() > START_LIMIT {
            begun = has_begun(&read(&console)?);
            if !begun {
                break How::NeverBegan;
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    drop(vm);
    Ok(Ended {
        nonce,
        console: read(&console)?,
        report: read(&report)?,
        how,
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn read(log: &Path) -> Result<String> {
    let bytes = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
    Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
}

/// Finds qemu, or installs it where that is allowed.
pub(crate) fn emulator() -> Result<PathBuf> {
    tools::require("qemu-system-x86_64", "qemu-system-x86")
}

fn qemu(booted: Booted<'_>, nonce: &str, console: &Path, report: &Path) -> Result<Command> {
    let program = emulator()?;
    // With setpriv a VM ends even if this program is killed.
    let mut qemu = match tools::find("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    };
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    // KVM is not to be had on the machines that build this, and one way for all is one less
    // difference to explain. One thread a VM: as many run at once as there are cores, and a kernel
    // that patches its own text while another CPU runs it crashes now and then under several.
    qemu.args(["-accel", "tcg,thread=single,tb-size=512", "-m", "1024", "-smp", "2"]);
    // A CPU with fast string instructions makes the kernel copy bytewise, which is slow here.
    qemu.args(["-cpu", "max,-erms,-fsrm"]);
    qemu.arg("-kernel").arg(booted.kernel).arg("-initrd").arg(booted.initramfs);
    qemu.arg("-serial").arg(file_backend(console)).arg("-serial").arg(file_backend(report));
    qemu.arg("-append").arg(format!(
        // panic=-1: a panic restarts at once, and -no-reboot makes that an end. norandmaps: code
        // at the same address in every process is translated once, which halves the time.
        "console=ttyS0 panic=-1 oops=panic quiet loglevel=5 mitigations=off norandmaps \
         lockwatch.nonce={nonce} {}",
        booted.append
    ));
    Ok(qemu)
}

/// qemu takes a comma for the end of a value unless it is doubled.
fn file_backend(path: &Path) -> String {
    format!("file:{}", PathBuf::from(path).display().to_string().replace(',', ",,"))
}

fn nonce() -> Result<String> {
    let mut bytes = [0; 16];
    let mut source = fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    source.read_exact(&mut bytes).context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonces_differ() {
        let (a, b) = (nonce().unwrap(), nonce().unwrap());
        assert_eq!(a.len(), 32);
        assert_ne!(a, b);
    }

    #[test]
    fn only_an_end_before_init_is_no_word_about_the_tests() {
        let ended = |console: &str, how| Ended {
            nonce: String::new(),
            console: console.to_owned(),
            report: String::new(),
            how,
            seconds: 1.0,
        };
        let panic = "[ 2.8] Kernel panic - not syncing: Fatal exception in interrupt\n";
        let begun = format!("[ 2.8] x\n{BEGIN_MARK}\n{panic}");
        assert!(ended(panic, How::Exited).before_init());
        assert!(ended("", How::NeverBegan).before_init());
        assert!(!ended(&begun, How::Exited).before_init());
        assert!(!ended(panic, How::Failed("no such machine".into())).before_init());
        assert!(!ended("", How::NotInTime).before_init());
    }

    #[test]
    fn a_comma_in_a_path_is_doubled() {
        assert_eq!(file_backend(Path::new("/a,b")), "file:/a,,b");
    }
}
