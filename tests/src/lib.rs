//! The rig and the harness of the black-box tests.
//!
//! The [`rig`] is the program that takes real locks; the [`harness`] starts it, runs `lockwatch`
//! on what it did, and runs the tests themselves, on a machine that has no cargo if need be.

pub mod harness;
pub mod rig;
