//! Words that tie the repository to one machine or to how it came to be.
//!
//! A short list of strings, matched without regard to case; no judgement of prose.

use super::Breach;
use super::tree::Source;

/// Each in two halves, or this file would breach its own rule.
const DENIED: [(&str, &str, &str); 11] = [
    ("crates", ".io", REGISTRY),
    ("static.rust-", "lang.org", REGISTRY),
    ("deb.debian", ".org", REGISTRY),
    ("security.debian", ".org", REGISTRY),
    ("archive.ubuntu", ".com", REGISTRY),
    ("/root/", ".cargo", MACHINE),
    ("/tmp/", "wt/", MACHINE),
    ("/work/", "main", MACHINE),
    ("/work/", "shared", MACHINE),
    ("cla", "ude", AUTHORS),
    ("anthro", "pic", AUTHORS),
];

const REGISTRY: &str = "let the package manager's own configuration say where packages are";
const MACHINE: &str = "a path of one machine: derive it, or take it from the environment";
const AUTHORS: &str = "say what the code does, not who or what wrote it";

/// Every breach in one file.
pub(super) fn check(source: &Source) -> Vec<Breach> {
    let mut found = Vec::new();
    for (line, text) in source.text.lines().enumerate() {
        let text = text.to_lowercase();
        for (first, second, remedy) in DENIED {
            let word = format!("{first}{second}");
            if text.contains(&word) {
                found.push(Breach {
                    path: source.path.clone(),
                    line: line + 1,
                    what: format!("`{word}` does not belong into the repository: {remedy}"),
                });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_denied_word_is_found_with_its_line() {
        for (first, second, remedy) in DENIED {
            let text = format!("fine\nsee {}{second} there", first.to_uppercase());
            let found = check(&Source::new("docs/a.md", &text));
            assert_eq!(found[0].line, 2);
            assert!(found[0].what.contains(remedy));
        }
    }

    #[test]
    fn ordinary_text_passes() {
        assert_eq!(check(&Source::new("README.md", "cargo install, apt-get, setsid sessions")), []);
    }

    #[test]
    fn this_file_keeps_its_own_rule() {
        assert_eq!(check(&Source::new("words.rs", include_str!("words.rs"))), []);
    }
}
