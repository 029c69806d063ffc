//! Why the kernel refused BPF, in one line: the error with its causes, and what it means here.
//!
//! Refuses to guess: a meaning is given only where this machine or this process shows it.

use std::error::Error;
use std::fs;

/// Capabilities without which the programs do not load, by their bits in
/// `include/uapi/linux/capability.h`.
const NEEDED: [(u32, &str); 2] = [(39, "CAP_BPF"), (38, "CAP_PERFMON")];
/// Stands for both.
const CAP_SYS_ADMIN: u32 = 21;

/// What the machine and this process show of what they allow; `None` where it cannot be told.
#[derive(Debug, Default)]
struct Facts {
    /// The effective capabilities.
    capabilities: Option<u64>,
    /// Whether the process is in the user namespace that capabilities are asked for in.
    initial_user_namespace: Option<bool>,
    /// `integrity` or `confidentiality`, where the kernel is locked down.
    lockdown: Option<String>,
    /// `kernel.unprivileged_bpf_disabled`, where it is not 0.
    unprivileged_bpf_disabled: Option<String>,
}

impl Facts {
    fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).ok();
        let disabled = text("/proc/sys/kernel/unprivileged_bpf_disabled");
        Self {
            capabilities: text("/proc/self/status").as_deref().and_then(effective_capabilities),
            initial_user_namespace: text("/proc/self/uid_map").as_deref().map(maps_every_user),
            lockdown: text("/sys/kernel/security/lockdown").as_deref().and_then(lockdown),
            unprivileged_bpf_disabled: disabled
                .map(|value| value.trim().to_owned())
                .filter(|value| value != "0"),
        }
    }

    fn missing_capabilities(&self) -> Vec<&'static str> {
        let Some(held) = self.capabilities else { return Vec::new() };
        let has = |bit: u32| held & (1 << bit) != 0;
        if has(CAP_SYS_ADMIN) {
            return Vec::new();
        }
        NEEDED.into_iter().filter(|(bit, _)| !has(*bit)).map(|(_, name)| name).collect()
    }
}

/// The error with its causes and what it means, as one line.
pub(crate) fn in_one_line(error: &(dyn Error + 'static)) -> String {
    log::debug!("{error}");
    let (text, number) = told(error);
    let facts = Facts::read();
    match meaning(number, error_is_the_verifiers(error), &facts) {
        Some(meaning) => format!("{text}: {meaning}"),
        None => text,
    }
}

/// What it means that the kernel's types cannot be read.
pub(super) fn no_types(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            ": this kernel does not show its types (CONFIG_DEBUG_INFO_BTF), or hides them here"
        }
        _ => "",
    }
}

/// The error and its causes without repetition, and the first error number among them.
fn told(error: &(dyn Error + 'static)) -> (String, Option<i32>) {
    let mut text = shorten(&error.to_string());
    let mut number = None;
    let mut next = error.source();
    while let Some(cause) = next {
        let message = shorten(&cause.to_string());
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        number = number
            .or(cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error));
        next = cause.source();
    }
    (text, number)
}

/// The verifier's log is pages long, and ends with what it did not like.
fn shorten(message: &str) -> String {
    let mut lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    let statistics = ["processed ", "verification time ", "stack depth "];
    let last = lines.rfind(|line| !statistics.iter().any(|start| line.starts_with(start)));
    match last {
        Some(last) => format!("{first} {last}"),
        // A verifier that was not asked has nothing to say.
        None => first.trim_end_matches("Verifier output:").trim_end_matches(['.', ' ']).to_owned(),
    }
}

/// Whether the verifier gave its reasons: then its error number says no more.
fn error_is_the_verifiers(error: &(dyn Error + 'static)) -> bool {
    let text = error.to_string();
    text.split_once("Verifier output:").is_some_and(|(_, log)| !log.trim().is_empty())
}

fn meaning(number: Option<i32>, verifier: bool, facts: &Facts) -> Option<String> {
    let confidential = facts.lockdown.as_deref() == Some("confidentiality");
    Some(match number? {
        libc::EPERM | libc::EACCES if !verifier => not_allowed(facts),
        // The verifier then does not know the helpers that read the kernel's memory.
        libc::EPERM | libc::EACCES | libc::EINVAL if confidential => {
            "lockdown=confidentiality keeps BPF from reading the kernel's memory".into()
        }
        _ if verifier => return None,
        libc::EINVAL => "this kernel does not know it".into(),
        libc::ENOENT | libc::ESRCH => "not in this kernel".into(),
        libc::EOPNOTSUPP => "not built into this kernel".into(),
        libc::ENOSYS => "this kernel has no BPF, or a filter of system calls hides it".into(),
        _ => return None,
    })
}

fn not_allowed(facts: &Facts) -> String {
    let missing = facts.missing_capabilities();
    if !missing.is_empty() {
        let more = match &facts.unprivileged_bpf_disabled {
            Some(value) => format!(", and kernel.unprivileged_bpf_disabled is {value}"),
            None => String::new(),
        };
        return format!("this process lacks {}{more}", missing.join(" and "));
    }
    if facts.initial_user_namespace == Some(false) {
        return "root of a user namespace is not root of the kernel".into();
    }
    if let Some(mode) = &facts.lockdown {
        return format!("the kernel is locked down (lockdown={mode})");
    }
    "privileges suffice, so a security module, a filter of system calls or the kernel's build \
     forbids it"
        .into()
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Only the initial user namespace maps all 2³² - 1 users to themselves.
fn maps_every_user(uid_map: &str) -> bool {
    uid_map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// The mode in brackets of `none [integrity] confidentiality`.
fn lockdown(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    let (mode, _) = rest.split_once(']')?;
    (mode != "none").then(|| mode.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    const EVERYTHING: u64 = (1 << 41) - 1;

    fn facts(capabilities: u64) -> Facts {
        Facts {
            capabilities: Some(capabilities),
            initial_user_namespace: Some(true),
            ..Facts::default()
        }
    }

    fn refused(facts: &Facts) -> String {
        meaning(Some(libc::EPERM), false, facts).unwrap()
    }

    #[test]
    fn missing_capabilities_are_named_and_no_others() {
        assert_eq!(refused(&facts(0)), "this process lacks CAP_BPF and CAP_PERFMON");
        assert_eq!(refused(&facts(1 << 39)), "this process lacks CAP_PERFMON");
        for enough in [1 << CAP_SYS_ADMIN, 1 << 39 | 1 << 38, EVERYTHING] {
            assert!(refused(&facts(enough)).starts_with("privileges suffice"));
        }
        let disabled = Facts { unprivileged_bpf_disabled: Some("2".into()), ..facts(0) };
        assert!(refused(&disabled).ends_with(", and kernel.unprivileged_bpf_disabled is 2"));
    }

    #[test]
    fn a_namespace_and_lockdown_explain_what_capabilities_do_not() {
        let inside = Facts { initial_user_namespace: Some(false), ..facts(EVERYTHING) };
        assert!(refused(&inside).contains("user namespace"));
        let locked = Facts { lockdown: Some("integrity".into()), ..facts(EVERYTHING) };
        assert_eq!(refused(&locked), "the kernel is locked down (lockdown=integrity)");
    }

    #[test]
    fn the_verifiers_words_need_no_meaning_unless_lockdown_is_behind_them() {
        assert_eq!(meaning(Some(libc::EACCES), true, &facts(EVERYTHING)), None);
        assert_eq!(meaning(Some(libc::EINVAL), true, &facts(EVERYTHING)), None);
        let locked = Facts { lockdown: Some("confidentiality".into()), ..facts(EVERYTHING) };
        let told = meaning(Some(libc::EINVAL), true, &locked).unwrap();
        assert!(told.contains("lockdown=confidentiality"), "{told}");
    }

    #[test]
    fn what_the_kernel_shows_is_read() {
        let status = "Name:\tx\nCapPrm:\t0000000000000001\nCapEff:\t000001ffffffffff\n";
        assert_eq!(effective_capabilities(status), Some(EVERYTHING));
        assert_eq!(effective_capabilities(""), None);
        assert!(maps_every_user("         0          0 4294967295\n"));
        assert!(!maps_every_user("         0       1000          1\n"));
        assert!(!maps_every_user(""));
        assert_eq!(lockdown("[none] integrity confidentiality\n"), None);
        let mode = lockdown("none integrity [confidentiality]\n");
        assert_eq!(mode.as_deref(), Some("confidentiality"));
    }

    #[derive(Debug, thiserror::Error)]
    #[error("map error")]
    struct Outer(#[source] io::Error);

    #[test]
    fn causes_follow_once_and_the_verifier_is_cut_to_its_last_word() {
        let error = Outer(io::Error::from_raw_os_error(libc::ESRCH));
        let (text, number) = told(&error);
        assert_eq!((text.matches("os error 3").count(), number), (1, Some(libc::ESRCH)));
        assert!(!text.contains('\n') && text.starts_with("map error: "), "{text}");
        let log = "it failed. Verifier output: 0: r1\n1: r2\nR1 is bad\nprocessed 2 insns\n";
        assert_eq!(shorten(log), "it failed. Verifier output: 0: r1 R1 is bad");
        assert_eq!(shorten("it failed. Verifier output:"), "it failed");
    }
}
