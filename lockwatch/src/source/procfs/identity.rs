//! The kernel's identity of a file that is open here, from `/proc/self` alone.
//!
//! Refuses to take stat(2)'s word: on btrfs and overlayfs it tells another device than the inode's,
//! and `/proc/locks` has the inode's.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};

use crate::engine::identity::Dev;

/// Device and inode of the file behind `file`; `None` where `/proc/self` does not tell.
pub fn kernel_identity(file: &OwnedFd) -> Option<(Dev, u64)> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let mount: u64 = field(&info, "mnt_id:")?;
    // Kernels before 5.14 do not show it.
    let inode = match field(&info, "ino:") {
        Some(inode) => inode,
        None => rustix::fs::fstat(file).ok()?.st_ino,
    };
    Some((device(&fs::read_to_string("/proc/self/mountinfo").ok()?, mount)?, inode))
}

fn field(info: &str, name: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

/// `MOUNT PARENT MAJOR:MINOR …`, decimal.
fn device(mountinfo: &str, mount: u64) -> Option<Dev> {
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let id: u64 = fields.next()?.parse().ok()?;
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        let dev = Dev::exact(major.parse().ok()?, minor.parse().ok()?)?;
        (id == mount).then_some(dev)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_that_of_the_mount() {
        let mountinfo = "22 1 254:0 / / rw - ext4 /dev/vda rw\n30 22 0:43 / /b rw - btrfs x rw\n";
        assert_eq!(device(mountinfo, 30), Some(Dev::new(0, 43)));
        assert_eq!(device(mountinfo, 31), None);
        assert_eq!(device("nonsense\n1 2\n", 1), None);
    }

    #[test]
    fn an_open_file_is_identified() {
        let file = tempfile::tempfile().unwrap();
        let inode = rustix::fs::fstat(&file).unwrap().st_ino;
        assert_eq!(kernel_identity(&file.into()).map(|(_, inode)| inode), Some(inode));
    }
}
