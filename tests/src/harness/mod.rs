//! The harness of the black-box tests: starts rigs, runs `lockwatch` on what they did, and runs
//! the tests themselves.
//!
//! The same compiled test program runs under cargo and as a child of init in a virtual machine
//! that has no cargo. So nothing here knows a path of the machine that compiled it, and every
//! file that a test needs is made when it runs.
//!
//! Refuses to leave anything behind: each test is a process of its own that adopts and ends
//! whatever its rigs left, its mounts are in a mount namespace that ends with it, and the runner
//! looks again when all is done.

pub mod capability;
mod cast;
pub mod control_group;
pub mod daemon;
pub mod descent;
pub mod invocation;
pub mod memory;
mod options;
pub mod patience;
pub mod place;
mod play;
pub mod prometheus;
pub mod report;
pub mod runner;
pub mod scene;
pub mod scrape;
mod stage;
pub mod story;
mod table;

pub use control_group::ControlGroup;
pub use invocation::Run;
pub use report::{Lock, Report};
pub use scene::{FileId, Scene, Skip, note};
pub use story::tell;
pub use table::{Source, Test};

/// A test that runs once for each source of `lockwatch`: `each_source!(function)`.
#[macro_export]
macro_rules! each_source {
    ($body:ident) => {
        $crate::harness::Test::new(stringify!($body), $body).on_each_source()
    };
}

/// A test that runs once: `once!(function)`.
#[macro_export]
macro_rules! once {
    ($body:ident) => {
        $crate::harness::Test::new(stringify!($body), $body)
    };
}

/// Fails the test unless the two are the same, and says what they are: `same!("what", got,
/// expected)`.
#[macro_export]
macro_rules! same {
    ($what:expr, $got:expr, $expected:expr $(,)?) => {{
        let (got, expected) = (&$got, &$expected);
        anyhow::ensure!(*got == *expected, "{}: {got:?} instead of {expected:?}", $what);
    }};
}
