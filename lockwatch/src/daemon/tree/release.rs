//! What a release that was written into the tree asks for, and what its writer is told.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use crate::daemon::reclaims::Job;
use crate::engine::classify::Confidence;
use crate::engine::input::{FileId, Watched};
use crate::engine::reclaim::progress::{Asker, Ending, Reclaimed};
use crate::sink::tree::command::{Aim, Refusal};
use crate::sink::tree::folder::Target;

/// The job of a release. All orphans of a watched file at once, with its hooks around them; what is
/// forced, and what is on other files, each lock by its id.
pub(super) fn job<T>(aim: &Aim, force: bool, watched: &[Watched], ticket: T) -> Job<T> {
    let path = |name: &str| watched.iter().find(|watch| watch.name == name).map(|w| &w.path);
    let subjects: Vec<OsString> = match &aim.target {
        Target::Watch(name) if !force => {
            path(name).map(|path| OsString::from_vec(path.to_vec())).into_iter().collect()
        }
        _ => aim.locks.iter().map(|lock| lock.to_string().into()).collect(),
    };
    let file = aim.locks.first().map(|lock| FileId { dev: lock.dev, ino: lock.ino });
    // Who writes there has looked at it.
    let at_least = Confidence::Likely;
    Job { by: Asker::Tree, file, locks: aim.locks.clone(), subjects, force, at_least, ticket }
}

/// What the writer is told.
pub(super) fn answer(reclaimed: &Reclaimed, is_allowed: bool) -> Result<(), Refusal> {
    let done = &reclaimed.done;
    let is_refused =
        |ending: &Ending| matches!(ending, Ending::Failed { result, .. } if result == "refused");
    if done.hooks.iter().any(|hook| hook.hook == "drain" && !hook.ok) {
        Err(Refusal::Cancelled)
    } else if done.outcomes.iter().any(|ended| is_refused(&ended.ending)) {
        // What was planned for is not so any more: somebody holds it by right.
        Err(Refusal::Busy)
    } else if reclaimed.error.is_none() && done.is_success() {
        Ok(())
    } else if !is_allowed {
        Err(Refusal::NotPermitted)
    } else {
        Err(Refusal::Unverified)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::id::LockId;
    use crate::engine::identity::{Access, Dev, LockKind, Range};
    use crate::engine::input::LockName;
    use crate::engine::reclaim::progress::{Done, Ended, HookEnd};

    fn reclaimed(ending: Ending, hook: Option<(&str, bool)>) -> Reclaimed {
        let dev = Dev::new(1, 2);
        let lock = LockName {
            id: LockId { dev, ino: 5, hash: 7, long: false },
            file: FileId { dev, ino: 5 },
            kind: LockKind::Flock,
            access: Access::Write,
            range: Range::WHOLE,
        };
        let hook = hook.map(|(name, ok)| HookEnd {
            hook: name.into(),
            ok,
            status: "exited with 1".into(),
            said: String::new(),
            took: 1,
        });
        let ended = Ended { lock, path: None, method: None, ending, took: None };
        let done = Done { outcomes: vec![ended], hooks: hook.into_iter().collect() };
        Reclaimed { by: Asker::Tree, file: None, locks: Vec::new(), done, error: None }
    }

    #[test]
    fn why_it_was_not_done_is_told_by_what_came_of_it() {
        let released = || Ending::Released { taken_by: Vec::new() };
        let failed = |result: &str| Ending::Failed { result: result.into(), why: "x".into() };
        let race = || Ending::Race { race: "gone".into(), why: "x".into() };
        for (ending, hook, expected) in [
            (released(), None, Ok(())),
            (released(), Some(("resume", true)), Ok(())),
            (released(), Some(("canary", false)), Err(Refusal::Unverified)),
            (failed("not_tried"), Some(("drain", false)), Err(Refusal::Cancelled)),
            (failed("refused"), None, Err(Refusal::Busy)),
            (failed("still_held"), None, Err(Refusal::Unverified)),
            (race(), None, Err(Refusal::Unverified)),
        ] {
            assert_eq!(answer(&reclaimed(ending.clone(), hook), true), expected, "{ending:?}");
        }
        assert_eq!(
            answer(&reclaimed(failed("not_tried"), None), false),
            Err(Refusal::NotPermitted)
        );
        let nothing = Reclaimed { done: Done::default(), ..reclaimed(released(), None) };
        assert_eq!(answer(&nothing, true), Ok(()), "it was free by then");
        let broken = Reclaimed { error: Some("x".into()), ..nothing };
        assert_eq!(answer(&broken, true), Err(Refusal::Unverified));
    }
}
