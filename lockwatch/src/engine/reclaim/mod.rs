//! Giving a lock back: the plan, whether it still holds, and what came of it.
//!
//! Refuses to act. A plan names process, description and generation; the actuator proves that each
//! is still what was planned, and says afterwards what the kernel's tables show.

pub mod outcome;
pub mod plan;
pub mod progress;
pub mod recheck;
pub mod refusal;
mod words;

pub use outcome::{End, HookRun, HookStatus, Outcome, Step};
pub use plan::{Holder, Method, Plan, Terms, Wanted, Writer, plan};
pub use recheck::{Race, recheck, verify};
pub use refusal::Refusal;

#[cfg(test)]
mod tests;
