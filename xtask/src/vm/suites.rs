//! The matrix: which kernels lockwatch is tested on, which Debian suite carries each, and how each
//! is booted.
//!
//! Names no version beyond the base one: what is newest is asked of apt at run time.

use anyhow::{Context as _, Result, bail};

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

/// One VM: a kernel and how it is booted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Guest {
    /// What the table, the command line and its folder call it.
    pub(crate) name: &'static str,
    /// The base version of its kernel.
    pub(crate) base: &'static str,
    /// What its kernel's command line has besides.
    pub(crate) append: &'static str,
    /// The theme of the live tests that alone makes sense here; all if there is none.
    pub(crate) theme: Option<&'static str>,
    /// The capability without which the run means nothing.
    pub(crate) require: &'static str,
}

const WITH_BPF: &str = "iter/task_file";

/// Together they have every value of `kernel.unprivileged_bpf_disabled`; Debian's own is 2.
pub(crate) const GUESTS: [Guest; 5] = [
    Guest {
        name: "5.10",
        base: "5.10",
        append: "sysctl.kernel.unprivileged_bpf_disabled=0",
        theme: None,
        require: WITH_BPF,
    },
    Guest {
        name: "6.1",
        base: "6.1",
        append: "sysctl.kernel.unprivileged_bpf_disabled=1",
        theme: None,
        require: WITH_BPF,
    },
    Guest { name: "6.12", base: "6.12", append: "", theme: None, require: WITH_BPF },
    Guest { name: "7.2", base: "7.2", append: "", theme: None, require: WITH_BPF },
    Guest {
        name: "6.12-lockdown",
        base: "6.12",
        append: "lockdown=confidentiality",
        theme: Some("refused::"),
        require: "lockdown",
    },
];

impl Guest {
    pub(crate) fn kernel(&self) -> Result<&'static Kernel> {
        let kernel = MATRIX.iter().find(|kernel| kernel.base == self.base);
        kernel.with_context(|| format!("no kernel {} in the matrix", self.base))
    }

    /// The tests that are run here of those whose name contains `filter`; `None` for no test.
    fn filter(&self, filter: Option<&str>) -> Option<Option<String>> {
        match (self.theme, filter) {
            (None, filter) => Some(filter.map(str::to_owned)),
            (Some(theme), None) => Some(Some(theme.to_owned())),
            (Some(theme), Some(filter)) => {
                filter.starts_with(theme).then(|| Some(filter.to_owned()))
            }
        }
    }
}

/// The VMs of `kernels`, or those called so, in which there is something to do, each with its
/// filter.
pub(crate) fn guests(
    names: &[String],
    filter: Option<&str>,
) -> Result<Vec<(&'static Guest, Option<String>)>> {
    let by_guest = |name: &String| GUESTS.iter().any(|guest| guest.name == name);
    let (_, kernels): (Vec<_>, Vec<_>) = names.iter().cloned().partition(by_guest);
    let kernels = if kernels.is_empty() { Vec::new() } else { select(&kernels)? };
    let chosen = |guest: &Guest| {
        names.is_empty()
            || names.iter().any(|name| name == guest.name || name == guest.base)
            || kernels.iter().any(|kernel| kernel.base == guest.base)
    };
    Ok(GUESTS
        .iter()
        .filter(|guest| chosen(guest))
        .filter_map(|guest| Some((guest, guest.filter(filter)?)))
        .collect())
}

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

    fn chosen(names: &[&str], filter: Option<&str>) -> Vec<(&'static str, Option<String>)> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let guests = guests(&names, filter).unwrap();
        guests.into_iter().map(|(guest, filter)| (guest.name, filter)).collect()
    }

    #[test]
    fn a_guest_is_chosen_by_its_kernel_or_its_own_name() {
        let theme = Some("refused::".to_owned());
        assert_eq!(chosen(&[], None).len(), GUESTS.len());
        assert_eq!(chosen(&["trixie"], None), [("6.12", None), ("6.12-lockdown", theme.clone())]);
        assert_eq!(chosen(&["6.12-lockdown"], None), [("6.12-lockdown", theme)]);
        assert!(guests(&["6.13".into()], None).is_err());
    }

    #[test]
    fn a_guest_of_one_theme_is_left_out_where_another_is_asked_for() {
        let filter = |text: &str| Some(text.to_owned());
        assert_eq!(chosen(&["6.12"], Some("waits::")), [("6.12", filter("waits::"))]);
        assert_eq!(chosen(&["6.12"], Some("refused::no")).len(), 2);
    }

    #[test]
    fn every_guest_has_a_kernel() {
        assert!(GUESTS.iter().all(|guest| guest.kernel().is_ok()));
    }

    #[test]
    fn an_unknown_kernel_is_refused() {
        let error = select(&["6.13".into()]).unwrap_err().to_string();
        assert!(error.contains("6.13") && error.contains("6.12 (trixie)"), "{error}");
    }
}
