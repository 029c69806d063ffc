//! The systemd unit: sound, and as exposed as the documentation says.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::{command, dist, workspace};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "unit::systemd_finds_the_unit_sound",
        needs: &["systemd-analyze"],
        root: true,
        body: sound,
    },
    Test {
        name: "unit::its_exposure_is_the_one_that_the_documentation_states",
        needs: &["systemd-analyze"],
        root: false,
        body: exposure,
    },
    Test {
        name: "unit::every_system_call_of_the_daemon_is_one_that_the_unit_allows",
        needs: &["systemd-analyze", "strace", "unshare", "curl"],
        root: true,
        body: system_calls,
    },
];

/// Lets a daemon watch an orphan come and go, answer a scrape and end, and leaves what it called in
/// `$1/trace`. `$2` is the binary.
const WATCHED: &str = r#"
set -eu
mount -t tmpfs -o mode=0755 tmpfs /srv
mkdir /srv/bpf
mount -t bpf bpf /srv/bpf
cat > /srv/l.toml <<END
mount = "/srv/tree"
state_dir = "/srv/bpf/lockwatch"
metrics_listen = "unix:/srv/metrics.sock"
gc_interval = "500ms"
END
strace -f -qq -o "$1/trace" "$2" daemon --config /srv/l.toml --log /srv/log &
tries=0
until grep --quiet started /srv/log 2>/dev/null && [ -S /srv/metrics.sock ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 300 ]
    sleep 0.1
done
curl --silent --fail --unix-socket /srv/metrics.sock http://localhost/metrics > /srv/scraped
# flock(1) is gone at once, and sleep(1), born later, has its descriptor.
sh -c 'exec 9>/srv/file; flock 9; (sleep 1; exec sleep 4) &' &
sleep 6
kill "$(sed -n 's/^\([0-9]*\) .*/\1/p;q' "$1/trace")"
wait %1
"#;

/// In the documentation, before the score.
const STATED: &str = "Overall exposure level: ";

/// The unit in a folder of its own, its program being one that is here.
fn with_program(program: &str) -> Result<(tempfile::TempDir, std::path::PathBuf)> {
    let path = workspace::root().join("deploy/systemd/lockwatch.service");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let folder = tempfile::tempdir().context("a folder for the unit")?;
    let unit = folder.path().join("lockwatch.service");
    fs::write(&unit, text.replace("/usr/bin/lockwatch", program)).context("the unit")?;
    Ok((folder, unit))
}

fn sound(_: &dist::Made) -> Result<()> {
    let binary = workspace::binary();
    let (_folder, unit) = with_program(&binary.display().to_string())?;
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(&unit);
    // It says of settings that it does not know that it ignores them, and succeeds.
    let output = verify.output().context("systemd-analyze verify")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.trim().is_empty(), "{}: {said}", output.status);
    Ok(())
}

fn exposure(_: &dist::Made) -> Result<()> {
    let (_folder, unit) = with_program("/usr/bin/lockwatch")?;
    let mut security = Command::new("systemd-analyze");
    security.args(["security", "--offline=yes", "--no-pager"]).arg(&unit);
    let text = command::capture(&mut security, "")?;
    let score = text
        .split("Overall exposure level for lockwatch.service: ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .with_context(|| format!("no score in {text}"))?;
    let docs =
        fs::read_to_string(workspace::root().join("docs/service.md")).context("docs/service.md")?;
    let stated = docs.split(STATED).nth(1).and_then(|rest| rest.split_whitespace().next());
    let stated = stated.map(|stated| stated.trim_end_matches(['.', ',']));
    ensure!(stated == Some(score), "it is {score}, docs/service.md states {stated:?}");
    Ok(())
}

fn system_calls(_: &dist::Made) -> Result<()> {
    let folder = tempfile::tempdir().context("a folder for the trace")?;
    let script = folder.path().join("watched");
    fs::write(&script, WATCHED).context("the script")?;
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "bash"]).arg(&script).arg(folder.path()).arg(workspace::binary());
    command::capture(&mut unshare, "")?;
    let trace = fs::read_to_string(folder.path().join("trace")).context("the trace")?;
    let made: BTreeSet<&str> = trace.lines().filter_map(call).collect();
    ensure!(made.contains("bpf") && made.contains("accept4"), "it did not do its work: {made:?}");
    let path = workspace::root().join("deploy/systemd/lockwatch.service");
    let unit = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let filter = unit.lines().find_map(|line| line.strip_prefix("SystemCallFilter="));
    let mut allowed = BTreeSet::new();
    for word in filter.context("the unit has no filter")?.split(' ') {
        allow(word, &mut allowed)?;
    }
    let refused: Vec<_> = made.iter().filter(|call| !allowed.contains(**call)).collect();
    ensure!(refused.is_empty(), "the unit's filter would refuse {refused:?}");
    Ok(())
}

/// The system call of a line of strace(1).
fn call(line: &str) -> Option<&str> {
    let name = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
    let name = name.split_once('(')?.0;
    let is_name =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_name.then_some(name)
}

/// Adds a system call, or those of a set as systemd has it.
fn allow(word: &str, allowed: &mut BTreeSet<String>) -> Result<()> {
    if !word.starts_with('@') {
        allowed.insert(word.to_owned());
        return Ok(());
    }
    let mut list = Command::new("systemd-analyze");
    let text = command::capture(list.args(["--no-pager", "syscall-filter", word]), "")?;
    for member in text.lines().skip(1).map(str::trim) {
        if !member.is_empty() && !member.starts_with('#') {
            allow(member, allowed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_from_a_trace_and_signals_are_not() {
        assert_eq!(call("123   bpf(BPF_MAP_CREATE, ...) = 3"), Some("bpf"));
        assert_eq!(call("77 accept4(9, NULL, NULL, SOCK_CLOEXEC) = 4"), Some("accept4"));
        assert_eq!(call("77 +++ exited with 0 +++"), None);
        assert_eq!(call("77 --- SIGTERM {si_signo=SIGTERM} ---"), None);
        assert_eq!(call("77 <... read resumed>\"\", 1) = 0"), None);
    }
}
