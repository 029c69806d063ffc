//! The files of a package, where they will be: a folder that stands for `/`.
//!
//! Refuses to write a page twice: manual pages and completions are those that the binary makes of
//! its own definitions.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{command, workspace};

/// Files of the repository, and where they go.
const COPIED: [(&str, &str); 7] = [
    ("deploy/lockwatch.toml", "etc/lockwatch/lockwatch.toml"),
    ("deploy/systemd/lockwatch.service", "usr/lib/systemd/system/lockwatch.service"),
    ("deploy/prometheus/lockwatch.rules.yml", "usr/share/lockwatch/prometheus/lockwatch.rules.yml"),
    ("deploy/prometheus/fleet.yml", "usr/share/doc/lockwatch/examples/prometheus-fleet.yml"),
    ("deploy/grafana/lockwatch.json", "usr/share/lockwatch/grafana/lockwatch.json"),
    ("deploy/kubernetes/daemonset.yaml", "usr/share/doc/lockwatch/examples/daemonset.yaml"),
    ("deploy/debian/copyright", "usr/share/doc/lockwatch/copyright"),
];
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/lockwatch"),
    ("zsh", "usr/share/zsh/vendor-completions/_lockwatch"),
    ("fish", "usr/share/fish/vendor_completions.d/lockwatch.fish"),
];

/// A folder that stands for `/`.
#[derive(Debug)]
pub(crate) struct Stage(PathBuf);

impl Stage {
    /// The folder of what there is to read.
    pub(crate) const DOCS: &str = "usr/share/doc/lockwatch";

    /// Empties the folder and fills it.
    pub(crate) fn fill(folder: &Path, binary: &Path) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let stage = Self(folder.to_owned());
        let program = stage.place("usr/bin/lockwatch")?;
        let mut strip = Command::new("strip");
        strip.arg("--strip-unneeded").arg("-o").arg(&program).arg(binary);
        command::run(&mut strip, "install binutils")?;
        mode(&program, 0o755)?;

        let root = workspace::root();
        for (from, to) in COPIED {
            stage.copy(&root.join(from), to)?;
        }
        stage.documents(&root)?;
        stage.manual(&program)?;
        for (shell, to) in COMPLETIONS {
            let text = command::capture(Command::new(&program).args(["completions", shell]), "")?;
            stage.write(to, text.as_bytes())?;
        }
        Ok(stage)
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    /// Writes a file, world-readable.
    pub(super) fn write(&self, to: &str, bytes: &[u8]) -> Result<()> {
        let path = self.place(to)?;
        fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        mode(&path, 0o644)
    }

    fn copy(&self, from: &Path, to: &str) -> Result<()> {
        let bytes = fs::read(from).with_context(|| from.display().to_string())?;
        self.write(to, &bytes)
    }

    /// Where a file goes; its folders are made.
    fn place(&self, to: &str) -> Result<PathBuf> {
        let path = self.0.join(to);
        let mut folder = self.0.clone();
        for part in Path::new(to).parent().into_iter().flatten() {
            folder.push(part);
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            mode(&folder, 0o755)?;
        }
        Ok(path)
    }

    /// Everything in `docs`, and the README beside it, whose links lead there.
    fn documents(&self, root: &Path) -> Result<()> {
        for folder in ["", "/runbooks"] {
            let from = root.join(format!("docs{folder}"));
            for name in names(&from)? {
                if from.join(&name).is_file() {
                    self.copy(&from.join(&name), &format!("{}{folder}/{name}", Self::DOCS))?;
                }
            }
        }
        let readme = fs::read_to_string(root.join("README.md")).context("README.md")?;
        self.write(&format!("{}/README.md", Self::DOCS), readme.replace("](docs/", "](").as_bytes())
    }

    fn manual(&self, program: &Path) -> Result<()> {
        let pages = tempfile::tempdir().context("a folder for manual pages")?;
        command::capture(Command::new(program).args(["man", "--folder"]).arg(pages.path()), "")?;
        for name in names(pages.path())? {
            let section = name.rsplit('.').next().unwrap_or("1").to_owned();
            let page = pages.path().join(&name);
            let mut gzip = Command::new("gzip");
            command::run(gzip.args(["--no-name", "--best"]).arg(&page), "")?;
            let name = format!("{name}.gz");
            let to = format!("usr/share/man/man{section}/{name}");
            self.copy(&pages.path().join(&name), &to)?;
        }
        Ok(())
    }
}

/// When the sources were committed, in seconds since 1970: the time of every file of a package.
pub(super) fn moment() -> Result<String> {
    if let Ok(moment) = std::env::var("SOURCE_DATE_EPOCH") {
        return Ok(moment);
    }
    let mut log = Command::new("git");
    log.current_dir(workspace::root()).args(["log", "-1", "--format=%ct"]);
    let moment = command::capture(&mut log, "set SOURCE_DATE_EPOCH where there is no git")?;
    Ok(moment.trim().to_owned())
}

fn mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| path.display().to_string())
}

/// The names of a folder's files, in order.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry.with_context(|| folder.display().to_string())?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
