//! `lockwatch explain FILE`: who holds it, how it came to that, what would release it.

use std::ffi::OsString;
use std::io::{self, BufWriter, Write as _};

use crate::engine::classify::State;
use crate::engine::snapshot::File;
use crate::failure::{EXIT_CLEAR, EXIT_FINDINGS};
use crate::look::{Choice, look};
use crate::machine;
use crate::sink::escape::Escaped;
use crate::sink::{Report, explain, json};
use crate::source::remote;
use crate::target::Targets;

/// Runs the verb.
///
/// # Errors
/// Where the file is not there, or the source cannot be read.
pub fn run(file: &OsString, source: Choice, as_json: bool) -> anyhow::Result<u8> {
    use std::os::unix::ffi::OsStrExt as _;
    let targets = Targets::file(file)?;
    let seen = look(source, &targets.handles)?;
    let asked = targets.select(&seen.view, &seen.files)?;
    let (host, kernel) = machine::names();
    let report = Report {
        view: &seen.view,
        asked: &asked,
        listed: &asked,
        host: &host,
        kernel: &kernel,
        source: seen.source,
        clock: seen.clock,
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if as_json {
        json::write(&mut out, &report)?;
    } else {
        if asked.is_empty() {
            let sight = if seen.view.has_every_lock() { "" } else { ", as far as could be seen" };
            writeln!(out, "{}: no lock{sight}", Escaped(file.as_bytes()))?;
        }
        for (index, &place) in asked.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            let lock = &seen.view.locks[place as usize];
            explain::write(&mut out, &report, lock)?;
            if lock.verdict.state == State::Remote {
                let file = seen.view.file(lock);
                for sentence in other_side(file) {
                    writeln!(out, "  {sentence}")?;
                }
            }
        }
        for limit in &seen.view.snapshot.limits {
            writeln!(out, "Limit: {limit}.")?;
        }
    }
    out.flush()?;
    Ok(if report.orphaned() > 0 { EXIT_FINDINGS } else { EXIT_CLEAR })
}

/// What can be known of whoever is behind a remote lock, and what an administrator could do.
fn other_side(file: &File) -> Vec<String> {
    let mut told = Vec::new();
    match remote::mount(file.dev) {
        Ok(Some(mount)) => told.push(format!(
            "Its file system is {}, mounted from {}.",
            Escaped(&mount.kind),
            Escaped(&mount.source)
        )),
        Ok(None) => told.push("Its file system is not mounted in this mount namespace.".into()),
        Err(error) => told.push(format!("Its file system could not be asked for: {error}.")),
    }
    match remote::clients(file.dev, file.ino) {
        Ok(clients) => told.extend(clients.iter().map(|client| {
            let text = |text: &Option<String>| match text {
                Some(text) => Escaped(text.as_bytes()).to_string(),
                None => "unknown".into(),
            };
            let number = client.number;
            format!(
                "Client {number} of this machine's NFS server ({}, {}) has on it: {}. To take \
                 everything from that client: `echo expire > /proc/fs/nfsd/clients/{number}/ctl`.",
                text(&client.name),
                text(&client.address),
                client.states.join(", ")
            )
        })),
        Err(error) => {
            told.push(format!("The NFS server's clients could not be read: {error}."));
        }
    }
    told
}
