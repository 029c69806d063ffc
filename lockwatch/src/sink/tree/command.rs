//! What a write to a file of the tree asks for, and what may be done about it.
//!
//! Refuses to do it: a command goes to whoever has the engine.

use super::folder::{Hold, Target};
use super::{File, Value};
use crate::engine::id::LockId;

/// The shortest and the longest `gc_interval_ms`; the same as for the configuration's
/// `gc_interval`.
pub const INTERVAL_MS: std::ops::RangeInclusive<u64> = 100..=3_600_000;
/// No value that is known is longer, bytes.
const LONGEST: usize = 32;

/// What a write asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Reconcile with the kernel now.
    Gc,
    /// Reconcile every so many milliseconds.
    GcInterval(u64),
    /// Allow or forbid every reclaim.
    ReclaimEnabled(bool),
    /// Release what is orphaned.
    Release(Aim),
    /// Release even what a living process holds.
    ForceUnlock(Aim),
}

/// What a release is aimed at, as the tree had it when it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aim {
    /// The folder's name.
    pub name: String,
    /// The watch or the orphan that the folder is of.
    pub target: Target,
    /// The locks to release, as they were seen.
    pub locks: Vec<LockId>,
}

/// Why a command is not done, with the errno that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `EINVAL`
    #[error("not one of the documented values")]
    Invalid,
    /// `EBUSY`
    #[error("held by right")]
    Busy,
    /// `EPERM`
    #[error("reclaim is switched off")]
    NotPermitted,
    /// `ECANCELED`
    #[error("the drain hook failed")]
    Cancelled,
    /// `EIO`
    #[error("could not be verified")]
    Unverified,
}

/// Understands a write: the whole value in one call, with or without a newline.
///
/// # Errors
/// [`Refusal::Invalid`] for anything but the documented values.
pub fn parse(file: File, bytes: &[u8]) -> Result<Asked, Refusal> {
    if bytes.len() > LONGEST {
        return Err(Refusal::Invalid);
    }
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    Ok(match (file, text) {
        (File::Gc, b"1") => Asked::Whole(Command::Gc),
        (File::ReclaimEnabled, b"0") => Asked::Whole(Command::ReclaimEnabled(false)),
        (File::ReclaimEnabled, b"1") => Asked::Whole(Command::ReclaimEnabled(true)),
        (File::GcInterval, digits) => {
            Asked::Whole(Command::GcInterval(number(digits).ok_or(Refusal::Invalid)?))
        }
        (File::Value(Value::Locked | Value::Alias), b"0") => Asked::Release,
        (File::Value(Value::ForceUnlock), b"1") => Asked::ForceUnlock,
        _ => return Err(Refusal::Invalid),
    })
}

/// What a write to a file asks for, before it is known what the folder is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Something about lockwatch itself.
    Whole(Command),
    /// `0` to `locked`.
    Release,
    /// `1` to `force_unlock`.
    ForceUnlock,
}

/// What to do about a release: `None` where there is nothing to do.
///
/// # Errors
/// Where it must not be done.
pub fn decide(
    asked: &Asked,
    hold: &Hold,
    reclaim_enabled: bool,
    aim: impl FnOnce(Vec<LockId>) -> Aim,
) -> Result<Option<Command>, Refusal> {
    let force = *asked == Asked::ForceUnlock;
    let locks = match (asked, hold) {
        (Asked::Whole(command), _) => return Ok(Some(command.clone())),
        (_, Hold::Free) => return Ok(None),
        (_, Hold::Unseen) => return Err(Refusal::Unverified),
        (_, Hold::Orphaned { orphans, rightful }) if force => {
            orphans.iter().chain(rightful).copied().collect()
        }
        (_, Hold::Orphaned { orphans, .. }) => orphans.clone(),
        (_, Hold::Rightful(locks)) if force => locks.clone(),
        (_, Hold::Rightful(_)) => return Err(Refusal::Busy),
    };
    if !reclaim_enabled {
        return Err(Refusal::NotPermitted);
    }
    Ok(Some(if force { Command::ForceUnlock(aim(locks)) } else { Command::Release(aim(locks)) }))
}

fn number(digits: &[u8]) -> Option<u64> {
    // `parse` would also take a sign.
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
    INTERVAL_MS.contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::identity::Dev;

    const LOCKED: File = File::Value(Value::Locked);
    const FORCE: File = File::Value(Value::ForceUnlock);

    #[test]
    fn the_documented_values_are_understood_with_or_without_a_newline() {
        for end in ["", "\n"] {
            let parse = |file, text: &str| parse(file, format!("{text}{end}").as_bytes());
            assert_eq!(parse(File::Gc, "1"), Ok(Asked::Whole(Command::Gc)));
            let interval = |ms| Ok(Asked::Whole(Command::GcInterval(ms)));
            assert_eq!(parse(File::GcInterval, "100"), interval(100));
            assert_eq!(parse(File::GcInterval, "3600000"), interval(3_600_000));
            let enabled = |on| Ok(Asked::Whole(Command::ReclaimEnabled(on)));
            assert_eq!(parse(File::ReclaimEnabled, "0"), enabled(false));
            assert_eq!(parse(File::ReclaimEnabled, "1"), enabled(true));
            assert_eq!(parse(LOCKED, "0"), Ok(Asked::Release));
            assert_eq!(parse(File::Value(Value::Alias), "0"), Ok(Asked::Release));
            assert_eq!(parse(FORCE, "1"), Ok(Asked::ForceUnlock));
        }
    }

    #[test]
    fn anything_else_is_invalid() {
        for (file, text) in [
            (LOCKED, "1"),
            (LOCKED, ""),
            (LOCKED, "\n"),
            (LOCKED, "0\n\n"),
            (LOCKED, " 0"),
            (LOCKED, "00"),
            (LOCKED, "no"),
            (FORCE, "0"),
            (File::Gc, "0"),
            (File::GcInterval, "99"),
            (File::GcInterval, "3600001"),
            (File::GcInterval, "+500"),
            (File::GcInterval, "1e3"),
            (File::GcInterval, "99999999999999999999999"),
            (File::ReclaimEnabled, "2"),
            (File::Status, "0"),
            (File::Events, "1"),
            (File::Value(Value::State), "0"),
        ] {
            assert_eq!(parse(file, text.as_bytes()), Err(Refusal::Invalid), "{file:?} {text:?}");
        }
        let huge = [b"0\n".as_slice(), &[b' '; 100_000]].concat();
        assert_eq!(parse(LOCKED, &huge), Err(Refusal::Invalid));
    }

    proptest! {
        #[test]
        fn only_a_lone_zero_ever_releases(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let released = parse(LOCKED, &bytes).is_ok();
            prop_assert_eq!(released, bytes == b"0" || bytes == b"0\n");
        }
    }

    fn id(hash: u64) -> LockId {
        LockId { dev: Dev::new(0, 1), ino: 5, hash, long: false }
    }

    fn decided(asked: &Asked, hold: &Hold, enabled: bool) -> Result<Option<Vec<u64>>, Refusal> {
        let aim = |locks| Aim { name: "a".into(), target: Target::Orphan(id(1)), locks };
        decide(asked, hold, enabled, aim).map(|command| {
            command.map(|command| match command {
                Command::Release(aim) | Command::ForceUnlock(aim) => {
                    aim.locks.iter().map(|id| id.hash).collect()
                }
                other => panic!("{other:?}"),
            })
        })
    }

    #[test]
    fn what_is_free_needs_no_release_and_no_permission() {
        for asked in [Asked::Release, Asked::ForceUnlock] {
            assert_eq!(decided(&asked, &Hold::Free, false), Ok(None));
            assert_eq!(decided(&asked, &Hold::Unseen, true), Err(Refusal::Unverified));
        }
    }

    #[test]
    fn a_living_holder_is_only_overruled_by_force() {
        let hold = Hold::Rightful(vec![id(1), id(2)]);
        assert_eq!(decided(&Asked::Release, &hold, true), Err(Refusal::Busy));
        assert_eq!(decided(&Asked::Release, &hold, false), Err(Refusal::Busy));
        assert_eq!(decided(&Asked::ForceUnlock, &hold, true), Ok(Some(vec![1, 2])));
        assert_eq!(decided(&Asked::ForceUnlock, &hold, false), Err(Refusal::NotPermitted));
    }

    #[test]
    fn a_release_is_aimed_at_the_orphans_alone() {
        let hold = Hold::Orphaned { orphans: vec![id(1)], rightful: vec![id(2)] };
        assert_eq!(decided(&Asked::Release, &hold, true), Ok(Some(vec![1])));
        assert_eq!(decided(&Asked::Release, &hold, false), Err(Refusal::NotPermitted));
        assert_eq!(decided(&Asked::ForceUnlock, &hold, true), Ok(Some(vec![1, 2])));
    }
}
