//! The rig as a program; see `lockwatch_tests::rig`.

use std::process::ExitCode;

fn main() -> ExitCode {
    match lockwatch_tests::rig::run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rig: {error:#}");
            ExitCode::FAILURE
        }
    }
}
