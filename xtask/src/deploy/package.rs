//! The Debian package: what lintian says, and its life in a throw-away root: installed, upgraded,
//! removed, purged.
//!
//! The root is this machine's own below an overlay in mounts of its own: what the package does to it
//! is gone with the process.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::dist::{self, Stage, deb};
use crate::{command, workspace};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "package::lintian_finds_no_error",
        needs: &["lintian"],
        root: false,
        body: lintian,
    },
    Test {
        name: "package::the_tarball_has_what_the_package_has",
        needs: &["tar", "dpkg-deb"],
        root: false,
        body: same_files,
    },
    Test {
        name: "package::the_same_sources_give_the_same_bytes",
        needs: &["dpkg-deb"],
        root: false,
        body: reproducible,
    },
    Test {
        name: "package::its_documents_lead_to_each_other",
        needs: &["strip", "gzip"],
        root: false,
        body: links,
    },
    Test {
        name: "package::it_installs_runs_upgrades_without_a_gap_and_purges_in_a_throw_away_root",
        needs: &["dpkg", "unshare", "chroot"],
        root: true,
        body: life,
    },
];

fn lintian(made: &dist::Made) -> Result<()> {
    let mut lintian = Command::new("lintian");
    // Another distribution's packages are judged by its own profile; ours is Debian's.
    lintian.args(["--profile", "debian", "--fail-on", "error", "--allow-root"]).arg(&made.deb);
    command::capture(&mut lintian, "").map(drop)
}

fn same_files(made: &dist::Made) -> Result<()> {
    let listed = |mut list: Command| -> Result<Vec<String>> {
        let text = command::capture(&mut list, "")?;
        let mut names: Vec<String> = text
            .lines()
            .filter(|line| !line.ends_with('/') && !line.contains("changelog"))
            .map(str::to_owned)
            .collect();
        names.sort();
        Ok(names)
    };
    let mut tar = Command::new("tar");
    tar.arg("--list").arg("--file").arg(&made.tarball);
    let prefix = format!("lockwatch-{}/", dist::VERSION);
    let in_tarball: Vec<String> =
        listed(tar)?.iter().map(|name| name.replacen(&prefix, "./", 1)).collect();
    let mut deb = Command::new("sh");
    deb.args(["-c", "dpkg-deb --fsys-tarfile \"$1\" | tar --list", "sh"]).arg(&made.deb);
    let in_deb = listed(deb)?;
    ensure!(in_tarball == in_deb, "{in_tarball:?} and {in_deb:?}");
    ensure!(in_deb.len() > 15, "only {in_deb:?}");
    Ok(())
}

fn reproducible(made: &dist::Made) -> Result<()> {
    let folder = tempfile::tempdir().context("a folder")?;
    let stage = Stage::fill(&folder.path().join("stage"), &workspace::binary())?;
    let again = deb::build(&stage, &deb::Release::from_changelog()?, folder.path())?;
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    ensure!(read(&again)? == read(&made.deb)?, "the second is another");
    Ok(())
}

fn links(_made: &dist::Made) -> Result<()> {
    let folder = tempfile::tempdir().context("a folder")?;
    let stage = Stage::fill(&folder.path().join("stage"), &workspace::binary())?;
    let documents = stage.folder().join(Stage::DOCS);
    let mut found = 0;
    for folder in [documents.clone(), documents.join("runbooks")] {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry.context("an entry")?.path();
            if path.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let file = link.split('#').next().unwrap_or_default();
                if file.is_empty() || file.contains("://") {
                    continue;
                }
                ensure!(folder.join(file).exists(), "{} leads to {link}", path.display());
                found += 1;
            }
        }
    }
    ensure!(found > 15, "only {found} links");
    Ok(())
}

/// What is done in the throw-away root, as root of it. `$1` is the old package, `$2` the new one.
const LIFE: &str = r#"
set -eu
must() { "$@" || { echo "not so: $*" >&2; exit 1; }; }
must_not() { if "$@" 2>/dev/null; then echo "should not be so: $*" >&2; exit 1; fi; }
export DEBIAN_FRONTEND=noninteractive

dpkg --install "$1" >/dev/null
must lockwatch --version >/dev/null
must test -f /usr/lib/systemd/system/lockwatch.service
must test -L /etc/systemd/system/multi-user.target.wants/lockwatch.service
must test "$(dpkg-query --show --showformat '${Version} ${Status}' lockwatch)" = "0.0.1-1 install ok installed"
must man --path 5 lockwatch.toml >/dev/null 2>&1 || must test -f /usr/share/man/man5/lockwatch.toml.5.gz

# What the administrator changed outlives an upgrade, and so does the unit's being disabled.
printf 'long_wait = "45s"\nmetrics_listen = "unix:/run/metrics.sock"\n' >> /etc/lockwatch/lockwatch.toml
begin() {
    lockwatch daemon --log /packages/events & daemon=$!
    tries=0
    until test "$(grep --count '"kind":"started"' /packages/events 2>/dev/null)" = "$1"; do
        tries=$((tries + 1))
        must test "$tries" -lt 300
        sleep 0.1
    done
}
end() { kill "$daemon"; wait "$daemon"; }
begin 1
must grep --quiet '"continued":false' /packages/events
end
DPKG_MAINTSCRIPT_PACKAGE=lockwatch deb-systemd-helper disable lockwatch.service >/dev/null
dpkg --force-confold --install "$2" >/dev/null
must grep --quiet 'long_wait = "45s"' /etc/lockwatch/lockwatch.toml
must_not test -L /etc/systemd/system/multi-user.target.wants/lockwatch.service
must_not test "$(dpkg-query --show --showformat '${Version}' lockwatch)" = "0.0.1-1"
# The kernel side went on recording meanwhile.
begin 2
must grep --quiet '"continued":true' /packages/events
end
must test -e /sys/fs/bpf/lockwatch

dpkg --remove lockwatch >/dev/null 2>&1
must_not test -e /usr/bin/lockwatch
must_not test -e /sys/fs/bpf/lockwatch
must test -f /etc/lockwatch/lockwatch.toml
dpkg --purge lockwatch >/dev/null 2>&1
must_not test -e /etc/lockwatch
must_not test -e /usr/lib/systemd/system/lockwatch.service
left=$(find / -xdev -path /tmp -prune -o -path /work -prune -o -name '*lockwatch*' -newer /stamp -print)
must test -z "$left"
echo lived
"#;

/// Makes the root and goes into it. `$1` is a folder of its own, the rest are files that it needs: the
/// script of the life, the old package, the new one.
const ROOT: &str = r#"
set -eu
mount -t tmpfs -o mode=0755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount -t sysfs sysfs "$1/root/sys"
mount -t bpf bpf "$1/root/sys/fs/bpf"
mount -t tmpfs tmpfs "$1/root/run"
mkdir "$1/root/packages"
cp "$3" "$1/root/packages/old.deb"
cp "$4" "$1/root/packages/new.deb"
cp "$2" "$1/root/packages/life"
touch "$1/root/stamp"
exec chroot "$1/root" sh /packages/life /packages/old.deb /packages/new.deb
"#;

fn life(made: &dist::Made) -> Result<()> {
    let folder = tempfile::tempdir().context("a folder for the root")?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).context("the folder")?;
    let stage = Stage::fill(&folder.path().join("stage"), &workspace::binary())?;
    let older = deb::Release::from_changelog()?.as_version("0.0.1-1");
    let old = deb::build(&stage, &older, folder.path())?;
    let root = folder.path().join("root");
    fs::create_dir(&root).context("a folder for the root")?;
    let mut unshare = Command::new("unshare");
    let script = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).with_context(|| path.display().to_string()).map(|()| path)
    };
    let (enter, life) = (script("enter", ROOT)?, script("life", LIFE)?);
    unshare.args(["--mount", "--pid", "--fork", "--kill-child", "sh"]).arg(enter);
    let text = command::capture(unshare.arg(&root).arg(life).arg(&old).arg(&made.deb), "")?;
    ensure!(text.trim_end().ends_with("lived"), "it ended early: {text}");
    Ok(())
}
