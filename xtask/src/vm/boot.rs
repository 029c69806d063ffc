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
    TimedOut,
}

/// Kills qemu if the run is left early.
struct Vm(Child);

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots `kernel` with `initramfs`; `folder` takes the logs.
pub(crate) fn boot(
    kernel: &Path,
    initramfs: &Path,
    folder: &Path,
    timeout: Duration,
) -> Result<Ended> {
    let nonce = nonce()?;
    let (console, report) = (folder.join("console.log"), folder.join("report.json"));
    let said = folder.join("qemu.log");
    // An earlier run's words would be taken for this one's.
    for log in [&console, &report] {
        fs::write(log, "").with_context(|| format!("cannot write {}", log.display()))?;
    }
    let mut qemu = qemu(kernel, initramfs, &nonce, &console, &report)?;
    let line = tools::line(&qemu);
    qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&said)?);
    let started = Instant::now();
    let mut vm = Vm(qemu.spawn().with_context(|| format!("cannot run `{line}`"))?);
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
        if started.elapsed() > timeout {
            break How::TimedOut;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    drop(vm);
    let read = |log: &Path| -> Result<String> {
        let bytes = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
    };
    Ok(Ended {
        nonce,
        console: read(&console)?,
        report: read(&report)?,
        how,
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn qemu(
    kernel: &Path,
    initramfs: &Path,
    nonce: &str,
    console: &Path,
    report: &Path,
) -> Result<Command> {
    let program = tools::require("qemu-system-x86_64", "qemu-system-x86")?;
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
    qemu.args(["-accel", "tcg,thread=single", "-cpu", "max", "-m", "1024", "-smp", "2"]);
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
    qemu.arg("-serial").arg(file_backend(console)).arg("-serial").arg(file_backend(report));
    qemu.arg("-append").arg(format!(
        // panic=-1: a panic restarts at once, and -no-reboot makes that an end.
        "console=ttyS0 panic=-1 oops=panic quiet loglevel=5 lockwatch.nonce={nonce}"
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
    fn a_comma_in_a_path_is_doubled() {
        assert_eq!(file_backend(Path::new("/a,b")), "file:/a,,b");
    }
}
