//! The names of this machine and its kernel, for reports.

/// Host name and kernel release, as uname(2) gives them.
pub fn names() -> (String, String) {
    let uname = rustix::system::uname();
    let text = |name: &std::ffi::CStr| name.to_string_lossy().into_owned();
    (text(uname.nodename()), text(uname.release()))
}
