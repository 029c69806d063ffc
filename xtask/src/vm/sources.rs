//! Reads apt's own source lists, to learn which mirror this machine already uses.
//!
//! Takes over addresses and keyrings only: never `trusted=yes`, nor a disabled source.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// One enabled source of binary packages.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suite: String,
    signed_by: Option<PathBuf>,
}

/// Where the archive and its security companion are, and the keyring that vouches for them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    pub(crate) archive: String,
    pub(crate) security: Option<String>,
    pub(crate) keyring: Option<PathBuf>,
}

/// The keyring of Debian's package `debian-archive-keyring`.
const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The Debian mirror that apt is configured with below `etc` (`/etc/apt` for real).
pub(crate) fn mirror(etc: &Path) -> Result<Mirror> {
    let mut sources = Vec::new();
    for file in source_files(etc)? {
        let text = fs::read_to_string(&file)
            .with_context(|| format!("cannot read apt's sources in {}", file.display()))?;
        if file.extension().is_some_and(|e| e == "sources") {
            sources.extend(deb822(&text));
        } else {
            sources.extend(text.lines().filter_map(one_line));
        }
    }
    let mut mirror = choose(&sources)?;
    if mirror.keyring.is_none() && Path::new(DEBIAN_KEYRING).exists() {
        mirror.keyring = Some(DEBIAN_KEYRING.into());
    }
    Ok(mirror)
}

fn source_files(etc: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = vec![etc.join("sources.list")];
    if let Ok(entries) = fs::read_dir(etc.join("sources.list.d")) {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.retain(|f| f.is_file() && f.extension().is_some_and(|e| e == "list" || e == "sources"));
    files.sort();
    if files.is_empty() {
        bail!("apt has no sources under {}: is this a Debian machine?", etc.display());
    }
    Ok(files)
}

fn choose(sources: &[Source]) -> Result<Mirror> {
    let is_security = |s: &&Source| s.suite.contains("-security") || s.suite.ends_with("/updates");
    let last = |s: &&Source| s.uri.rsplit('/').next() == Some("debian");
    let archive = sources.iter().find(|s| last(s) && !is_security(s)).context(
        "apt is configured with no Debian archive (an address that ends in /debian), \
         so there is no mirror to take kernels from",
    )?;
    Ok(Mirror {
        archive: archive.uri.clone(),
        security: sources.iter().find(is_security).map(|s| s.uri.clone()),
        keyring: archive.signed_by.clone(),
    })
}

/// `deb [signed-by=KEYRING …] URI SUITE COMPONENT…`
fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    Some(Source {
        uri: words.next()?.trim_end_matches('/').to_owned(),
        suite: words.next()?.to_owned(),
        signed_by: options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .and_then(keyring_path),
    })
}

/// Stanzas of `Field: value`, as in `*.sources`.
fn deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for stanza in stanzas(text) {
        let field = |name: &str| {
            stanza.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
        };
        let enabled = !field("Enabled").is_some_and(|v| v.eq_ignore_ascii_case("no"));
        if !enabled || !field("Types").unwrap_or_default().split_whitespace().any(|t| t == "deb") {
            continue;
        }
        for uri in field("URIs").unwrap_or_default().split_whitespace() {
            for suite in field("Suites").unwrap_or_default().split_whitespace() {
                sources.push(Source {
                    uri: uri.trim_end_matches('/').to_owned(),
                    suite: suite.to_owned(),
                    signed_by: field("Signed-By").and_then(keyring_path),
                });
            }
        }
    }
    sources
}

/// A key may stand in the file itself or be a fingerprint: only a path can be handed on.
fn keyring_path(value: &str) -> Option<PathBuf> {
    let first = value.split([',', ' ']).next()?.trim();
    first.starts_with('/').then(|| first.into())
}

/// The stanzas of a text in Debian's control format, each as its fields in order. A line that
/// is continued is joined by spaces.
pub(crate) fn stanzas(text: &str) -> Vec<Vec<(String, String)>> {
    let mut all = Vec::new();
    let mut current: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if line.trim().is_empty() {
            if !current.is_empty() {
                all.push(std::mem::take(&mut current));
            }
        } else if line.starts_with('#') {
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = current.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            current.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    if !current.is_empty() {
        all.push(current);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb deb-src
# an older address
URIs: http://mirror.example.org/debian/
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example.org/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://other.example.org/debian
Suites: stable
Enabled: no
";

    #[test]
    fn deb822_sources_give_the_mirror() {
        assert_eq!(
            choose(&deb822(DEB822)).unwrap(),
            Mirror {
                archive: "http://mirror.example.org/debian".into(),
                security: Some("http://mirror.example.org/debian-security".into()),
                keyring: Some(DEBIAN_KEYRING.into()),
            }
        );
    }

    #[test]
    fn one_line_sources_give_the_mirror() {
        let text = "\
# deb http://old.example.org/debian trixie main
deb-src http://mirror.example.org/debian trixie main
deb [arch=amd64 signed-by=/k.gpg trusted=yes] http://mirror.example.org/debian trixie main # x
deb http://apps.example.org/apt stable main
deb http://mirror.example.org/debian-security/ trixie-security main";
        let sources: Vec<_> = text.lines().filter_map(one_line).collect();
        assert_eq!(
            choose(&sources).unwrap(),
            Mirror {
                archive: "http://mirror.example.org/debian".into(),
                security: Some("http://mirror.example.org/debian-security".into()),
                keyring: Some("/k.gpg".into()),
            }
        );
    }

    #[test]
    fn a_machine_without_a_debian_mirror_is_told_so() {
        let sources: Vec<_> =
            one_line("deb http://example.org/ubuntu noble main").into_iter().collect();
        assert!(choose(&sources).unwrap_err().to_string().contains("no Debian archive"));
    }

    #[test]
    fn a_key_inside_the_file_is_no_path() {
        let source = deb822(
            "Types: deb\nURIs: http://example.org/debian\nSuites: sid\nSigned-By:\n -----BEGIN PGP\n .\n",
        );
        assert_eq!(source[0].signed_by, None);
    }
}
