//! What can be known of the other side of a lock that another machine or a file system server
//! holds: the file system, and the clients of this machine's NFS server.
//!
//! Refuses to change anything there: what an administrator could do is only told.

use std::fs;
use std::io;
use std::path::Path;

use super::octal::unescape;
use crate::engine::identity::Dev;

/// A file system that is mounted here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its type: `nfs4`.
    pub kind: Vec<u8>,
    /// What is mounted: `server:/export`.
    pub source: Vec<u8>,
}

/// A client of this machine's NFS server that has something open or locked on a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The folder below `/proc/fs/nfsd/clients`.
    pub number: u64,
    /// Its address, as the kernel shows it.
    pub address: Option<String>,
    /// The name that it gave itself.
    pub name: Option<String>,
    /// What it has there: `lock`, `open`, `deleg`, `layout`.
    pub states: Vec<String>,
}

const CLIENTS: &str = "/proc/fs/nfsd/clients";

/// The file system with the device, where it is mounted in this mount namespace.
///
/// # Errors
/// Where the list of mounts cannot be read.
pub fn mount(dev: Dev) -> io::Result<Option<Mount>> {
    Ok(mount_in(&fs::read("/proc/self/mountinfo")?, dev))
}

fn mount_in(mountinfo: &[u8], dev: Dev) -> Option<Mount> {
    let wanted = format!("{}:{}", dev.major(), dev.minor());
    mountinfo.split(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        if fields.nth(2)? != wanted.as_bytes() {
            return None;
        }
        // Optional fields end with a dash.
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        Some(Mount { kind: unescape(rest.next()?), source: unescape(rest.next()?) })
    })
}

/// The clients that have something on a file; empty where no NFS server runs.
///
/// # Errors
/// Where the server's clients are there and cannot be read.
pub fn clients(dev: Dev, ino: u64) -> io::Result<Vec<Client>> {
    clients_below(Path::new(CLIENTS), dev, ino)
}

fn clients_below(folder: &Path, dev: Dev, ino: u64) -> io::Result<Vec<Client>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let folder = entry?.path();
        let number = folder.file_name().and_then(|name| name.to_str()?.parse().ok());
        let Some(number) = number else { continue };
        let states = match fs::read_to_string(folder.join("states")) {
            Ok(text) => states_on(&text, dev, ino),
            // A client that left meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if !states.is_empty() {
            let info = fs::read_to_string(folder.join("info")).unwrap_or_default();
            let (address, name) = (field(&info, "address: "), field(&info, "name: "));
            found.push(Client { number, address, name, states });
        }
    }
    found.sort_by_key(|client| client.number);
    Ok(found)
}

/// The types of the states on a file: a line each, `- 0x…: { type: lock, …, superblock:
/// "00:2d:1234", … }`.
fn states_on(text: &str, dev: Dev, ino: u64) -> Vec<String> {
    let file = format!("superblock: \"{dev}:{ino}\"");
    let on_file = text.lines().filter(|line| line.contains(&file));
    let kind = |line: &str| {
        let (_, rest) = line.split_once("type: ")?;
        Some(rest.split([',', ' ', '}']).next()?.to_owned())
    };
    let mut kinds: Vec<String> = on_file.filter_map(kind).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

/// The value of a line of `info`, without its quotes.
fn field(info: &str, name: &str) -> Option<String> {
    let value = info.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: Dev = Dev::new(0, 0x2d);

    #[test]
    fn the_mount_of_a_device_tells_type_and_source() {
        let text = b"22 1 254:0 / / rw - ext4 /dev/root rw\n\
                     40 22 0:45 / /home\\040x rw shared:3 - nfs4 srv:/a\\040b rw,vers=4.2\n";
        let mount = mount_in(text, DEV).expect("it is there");
        assert_eq!((&mount.kind[..], &mount.source[..]), (&b"nfs4"[..], &b"srv:/a b"[..]));
        assert_eq!(mount_in(text, Dev::new(9, 9)), None);
        assert_eq!(mount_in(b"1 2 0:45", DEV), None);
    }

    #[test]
    fn clients_that_have_something_on_the_file_are_named() {
        let folder = std::env::temp_dir().join(format!("lockwatch-nfsd-{}", std::process::id()));
        for (number, states) in [
            (
                3,
                "- 0x1: { type: open, access: rw, superblock: \"00:2d:77\", filename: \"x\" }\n- 0x2: { type: lock, superblock: \"00:2d:77\", filename: \"x\" }\n",
            ),
            (4, "- 0x3: { type: lock, superblock: \"00:2d:777\", filename: \"y\" }\n"),
        ] {
            let client = folder.join(number.to_string());
            fs::create_dir_all(&client).expect("a folder");
            fs::write(client.join("states"), states).expect("states");
            let info = "clientid: 0x1\naddress: \"10.0.0.7:861\"\nstatus: confirmed\nname: \"Linux NFSv4.2 box\"\n";
            fs::write(client.join("info"), info).expect("info");
        }
        let found = clients_below(&folder, DEV, 77);
        fs::remove_dir_all(&folder).expect("the folder goes");
        let expected = Client {
            number: 3,
            address: Some("10.0.0.7:861".to_owned()),
            name: Some("Linux NFSv4.2 box".to_owned()),
            states: vec!["lock".to_owned(), "open".to_owned()],
        };
        assert_eq!(found.expect("it can be read"), [expected]);
    }

    #[test]
    fn a_machine_that_serves_nothing_has_no_clients() {
        let none = clients_below(Path::new("/nowhere/clients"), DEV, 77);
        assert_eq!(none.expect("absent is no error"), []);
    }
}
