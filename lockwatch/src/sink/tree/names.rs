//! The names of folders below `locks/`: what a path becomes, and who has which name.
//!
//! Refuses to let a name from outside be anything but one plain component: no byte of it has a
//! meaning to a shell, a terminal or a path.

use std::collections::{BTreeMap, BTreeSet};

/// The longest stem, bytes. With a number behind it a name still fits any file system.
const LONGEST: usize = 100;

/// The name without its last extension, made of letters, digits, `-`, `_` and `.` alone.
///
/// `~` is not among them: a name that has one was told apart by a number.
pub fn stem(path: &[u8]) -> String {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let end = match name.iter().rposition(|&byte| byte == b'.') {
        None | Some(0) => name.len(),
        Some(dot) => dot,
    };
    let mut stem = plain(&name[..end]);
    // Nothing hidden, and neither `.` nor `..`.
    if stem.starts_with('.') {
        stem.replace_range(..1, "_");
    }
    stem.truncate(LONGEST);
    if stem.is_empty() { "unnamed".into() } else { stem }
}

/// The last extension of a path's name, made plain; `None` where it has none.
pub fn extension(path: &[u8]) -> Option<String> {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let dot = name.iter().rposition(|&byte| byte == b'.').filter(|&dot| dot > 0)?;
    let mut extension = plain(&name[dot + 1..]);
    extension.truncate(LONGEST);
    (!extension.is_empty()).then_some(extension)
}

fn plain(bytes: &[u8]) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    bytes.iter().map(|&byte| if is_plain(byte) { char::from(byte) } else { '_' }).collect()
}

/// Gives names out. Whoever had one keeps it.
#[derive(Debug, Default)]
pub struct Naming {
    taken: BTreeSet<String>,
    /// For each stem the first number that may be free.
    next: BTreeMap<String, u64>,
}

impl Naming {
    /// Reserves a name. False where somebody has it.
    pub fn reserve(&mut self, name: &str) -> bool {
        self.taken.insert(name.to_owned())
    }

    /// The stem, or the stem with the first number that nobody has: `~2`, `~3`, …
    pub fn give(&mut self, stem: String) -> String {
        if self.taken.insert(stem.clone()) {
            return stem;
        }
        let next = self.next.entry(stem.clone()).or_insert(2);
        loop {
            let name = format!("{stem}~{next}");
            *next += 1;
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stem_is_the_name_without_its_last_extension() {
        assert_eq!(stem(b"/srv/aim/aim_lock_config.conf"), "aim_lock_config");
        assert_eq!(stem(b"/a/archive.tar.gz"), "archive.tar");
        assert_eq!(stem(b"/a/.hidden"), "_hidden");
        assert_eq!(stem(b"/a/noext"), "noext");
        assert_eq!(extension(b"/srv/aim/aim_lock_config.conf").as_deref(), Some("conf"));
        assert_eq!(extension(b"/a/.hidden"), None);
        assert_eq!(extension(b"/a.d/noext"), None);
        assert_eq!(extension(b"/a/dot."), None);
    }

    #[test]
    fn names_that_mean_something_to_a_path_a_shell_or_a_terminal_lose_it() {
        assert_eq!(stem(b"/a/.."), "_");
        assert_eq!(stem(b"/a/."), "_");
        assert_eq!(stem(b"/"), "unnamed");
        assert_eq!(stem(b""), "unnamed");
        assert_eq!(stem(b"/a/$(reboot) \n\x1b[2J~2.conf"), "__reboot_____2J_2");
        assert_eq!(stem(b"/a/\xff\xfe.x"), "__");
        assert_eq!(extension(b"/a/b.co/../../x.c\nd").as_deref(), Some("c_d"));
    }

    #[test]
    fn who_comes_later_gets_a_number() {
        let mut naming = Naming::default();
        assert!(naming.reserve("a~3"));
        assert!(!naming.reserve("a~3"));
        let given: Vec<_> = (0..4).map(|_| naming.give("a".into())).collect();
        assert_eq!(given, ["a", "a~2", "a~4", "a~5"]);
    }

    proptest! {
        #[test]
        fn any_path_gives_one_plain_component(path in prop::collection::vec(any::<u8>(), 0..300)) {
            let stem = stem(&path);
            prop_assert!(!stem.is_empty() && stem.len() <= LONGEST && !stem.starts_with('.'));
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            prop_assert!(stem.bytes().all(plain));
            prop_assert!(extension(&path).is_none_or(|extension| extension.bytes().all(plain)));
        }
    }
}
