//! The matrix: which kernels lockwatch is tested on and which Debian suite carries each.
//!
//! Names no version beyond the base one: what is newest is asked of apt at run time.

use anyhow::{Result, bail};

/// One kernel of the matrix.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// The base version, by which the table and the command line name it.
    pub(crate) base: &'static str,
    /// The Debian suite whose `cloud` kernel it is.
    pub(crate) suite: &'static str,
    /// Whether the suite has a `-security` companion, which may carry a newer build.
    pub(crate) security: bool,
}

/// Oldest first: an older suite that verified can hand over the keyring for a newer one.
pub(crate) const MATRIX: [Kernel; 4] = [
    Kernel { base: "5.10", suite: "bullseye", security: true },
    Kernel { base: "6.1", suite: "bookworm", security: true },
    Kernel { base: "6.12", suite: "trixie", security: true },
    Kernel { base: "7.2", suite: "sid", security: false },
];

/// The kernels that `names` (base versions or suites) choose, in the matrix's order; all of
/// them for no name.
pub(crate) fn select(names: &[String]) -> Result<Vec<&'static Kernel>> {
    for name in names {
        if !MATRIX.iter().any(|kernel| name == kernel.base || name == kernel.suite) {
            let known: Vec<_> =
                MATRIX.iter().map(|k| format!("{} ({})", k.base, k.suite)).collect();
            bail!("no kernel {name:?} in the matrix; it has {}", known.join(", "));
        }
    }
    Ok(MATRIX
        .iter()
        .filter(|k| names.is_empty() || names.iter().any(|n| n == k.base || n == k.suite))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(names: &[&str]) -> Vec<&'static str> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        select(&names).unwrap().iter().map(|kernel| kernel.base).collect()
    }

    #[test]
    fn selects_by_version_and_suite_in_matrix_order() {
        assert_eq!(bases(&[]), ["5.10", "6.1", "6.12", "7.2"]);
        assert_eq!(bases(&["sid", "5.10"]), ["5.10", "7.2"]);
        assert_eq!(bases(&["7.2", "sid"]), ["7.2"]);
    }

    #[test]
    fn an_unknown_kernel_is_refused() {
        let error = select(&["6.13".into()]).unwrap_err().to_string();
        assert!(error.contains("6.13") && error.contains("6.12 (trixie)"), "{error}");
    }
}
