//! How a verb ends: its exit code, and the one line that says why it could not be done.

use std::io;
use std::process::ExitCode;

/// Nothing found, free, released.
pub const EXIT_CLEAR: u8 = 0;
/// Findings, HOT, refused.
pub const EXIT_FINDINGS: u8 = 1;
/// Could not be done.
pub const EXIT_ERROR: u8 = 2;
/// `check`: held by right.
pub const EXIT_HELD: u8 = 3;
/// Ended by SIGINT.
pub const EXIT_INTERRUPTED: u8 = 130;

/// The exit code of what a verb returned, after its error was told on stderr.
///
/// A reader that has gone away (a broken pipe) is success: it has all that it wanted.
pub fn exit(result: anyhow::Result<u8>) -> ExitCode {
    match result {
        Ok(code) => code.into(),
        Err(error) if is_broken_pipe(&error) => EXIT_CLEAR.into(),
        Err(error) => {
            tell(format_args!("{error:#}"));
            EXIT_ERROR.into()
        }
    }
}

/// Writes one line to stderr. There is nobody to tell where that fails.
pub fn tell(message: impl std::fmt::Display) {
    use std::io::Write as _;
    let _ = writeln!(io::stderr(), "lockwatch: {message}");
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        let json = cause.downcast_ref::<serde_json::Error>();
        io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
            || json.and_then(serde_json::Error::io_error_kind) == Some(io::ErrorKind::BrokenPipe)
    })
}
