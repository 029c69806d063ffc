//! The shape of files: how long they are, and what they are called.
//!
//! Looks at no meaning.

use super::Breach;
use super::paths;
use super::tree::Source;

/// What a file should stay below, and what ends the check.
const LINES_WANTED: usize = 600;
const LINES_ALLOWED: usize = 700;

/// Names that say nothing of a file's duty, and so attract everything.
const DRAWERS: [&str; 6] = ["util", "utils", "misc", "helper", "helpers", "common"];

/// Every breach of these rules in one file.
pub(super) fn check(source: &Source) -> Vec<Breach> {
    if !source.is_rust() {
        return Vec::new();
    }
    let mut found = Vec::new();
    let lines = source.text.lines().count();
    if lines > LINES_ALLOWED {
        found.push(Breach {
            path: source.path.clone(),
            line: LINES_ALLOWED + 1,
            what: format!(
                "{lines} lines: split the file by duty, so that each part has at most \
                 {LINES_WANTED}"
            ),
        });
    }
    let drawer = |name: &str| {
        format!("the name `{name}` states no duty: name it after what it does, or split it")
    };
    for name in source.path.with_extension("").iter().skip_while(|part| *part != "src").skip(1) {
        let name = name.to_string_lossy();
        if DRAWERS.contains(&name.as_ref()) {
            found.push(Breach { path: source.path.clone(), line: 1, what: drawer(&name) });
        }
    }
    let named = paths::named(&source.text);
    for pair in named.windows(2) {
        let [keyword, name] = pair else { continue };
        let name_text = name.segments.join("::");
        if keyword.segments == ["mod"] && DRAWERS.contains(&name_text.as_str()) {
            found.push(Breach {
                path: source.path.clone(),
                line: name.line,
                what: drawer(&name_text),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaches(path: &str, text: &str) -> Vec<(usize, String)> {
        check(&Source::new(path, text)).into_iter().map(|b| (b.line, b.what)).collect()
    }

    #[test]
    fn a_file_of_more_than_700_lines_fails() {
        assert!(breaches("a/src/lib.rs", &"x\n".repeat(700)).is_empty());
        let found = breaches("a/src/lib.rs", &"x\n".repeat(701));
        assert!(found[0].1.contains("701 lines"), "{found:?}");
        assert!(breaches("README.md", &"x\n".repeat(701)).is_empty());
    }

    #[test]
    fn a_file_or_folder_named_after_no_duty_fails() {
        assert_eq!(breaches("a/src/utils.rs", "").len(), 1);
        assert_eq!(breaches("a/src/misc/mod.rs", "").len(), 1);
        assert!(breaches("lockwatch-common/src/lib.rs", "").is_empty());
        assert!(breaches("a/src/common_lock.rs", "").is_empty());
    }

    #[test]
    fn a_module_named_after_no_duty_fails() {
        assert_eq!(breaches("a/src/lib.rs", "x\npub(crate) mod helpers {\n")[0].0, 2);
        assert_eq!(breaches("a/src/lib.rs", "mod common;\n").len(), 1);
        assert!(breaches("a/src/lib.rs", "// a mod utils would be wrong\n").is_empty());
    }
}
