//! Which container a control group is, where the common runtimes say so in its path.
//!
//! Refuses to guess: a path that no runtime's scheme fits is no container, and the processes that
//! watch over a container (`conmon`, `lxc.monitor`) are not in it.

/// A container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Container<'a> {
    /// Who made it: `docker`, `containerd`, `crio`, `podman`, `kubernetes`, `nspawn` or `lxc`.
    pub runtime: &'static str,
    /// Its id or name, as the runtime knows it: any bytes but `/`.
    pub id: &'a [u8],
}

/// Runtimes that name a scope `PREFIX` ID `.scope`.
const SCOPES: [(&[u8], &str); 5] = [
    (b"docker-", "docker"),
    (b"cri-containerd-", "containerd"),
    (b"nerdctl-", "containerd"),
    (b"crio-", "crio"),
    (b"libpod-", "podman"),
];

/// Digits of the ids that these runtimes give.
const ID_DIGITS: usize = 64;

/// The innermost container that the path of a control group names.
pub fn of_control_group(path: &[u8]) -> Option<Container<'_>> {
    let parts: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
    (0..parts.len()).rev().find_map(|at| part(&parts[..at], parts[at]))
}

/// What one component names, after those before it.
fn part<'a>(before: &[&[u8]], part: &'a [u8]) -> Option<Container<'a>> {
    let container = |runtime, id| Some(Container { runtime, id });
    let scope = part.strip_suffix(b".scope");
    // The cgroupfs driver of podman leaves the ending out.
    for (prefix, runtime) in SCOPES {
        if let Some(id) = scope.unwrap_or(part).strip_prefix(prefix)
            && is_id(id)
        {
            return container(runtime, id);
        }
    }
    if let Some(name) = scope.and_then(|scope| scope.strip_prefix(b"machine-")) {
        return container("nspawn", name);
    }
    if let Some(unit) = part.strip_prefix(b"systemd-nspawn@")
        && let Some(name) = unit.strip_suffix(b".service")
    {
        return container("nspawn", name);
    }
    if let Some(name) = part.strip_prefix(b"lxc.payload.") {
        return container("lxc", name);
    }
    let parent = *before.last()?;
    match parent {
        b"lxc" | b"lxc.payload" if !part.is_empty() => container("lxc", part),
        b"docker" if is_id(part) => container("docker", part),
        // The cgroupfs driver: /kubepods/burstable/podUID/ID.
        _ if is_id(part)
            && parent.starts_with(b"pod")
            && before.iter().any(|part| part.starts_with(b"kubepods")) =>
        {
            container("kubernetes", part)
        }
        _ => None,
    }
}

fn is_id(text: &[u8]) -> bool {
    text.len() == ID_DIGITS && text.iter().all(u8::is_ascii_hexdigit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn told(path: &str) -> Option<(&'static str, String)> {
        let path = path.replace("ID", ID);
        let Container { runtime, id } = of_control_group(path.as_bytes())?;
        Some((runtime, String::from_utf8_lossy(id).replace(ID, "ID")))
    }

    #[test]
    fn the_paths_of_the_common_runtimes_name_their_containers() {
        let id = "ID".to_owned();
        for (path, runtime, id) in [
            ("/system.slice/docker-ID.scope", "docker", &id),
            ("/docker/ID", "docker", &id),
            ("/docker/ID/init.scope", "docker", &id),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-ID.scope",
                "containerd",
                &id,
            ),
            ("/kubepods.slice/kubepods-pod7.slice/crio-ID.scope", "crio", &id),
            ("/kubepods/burstable/pod1-2-3/ID", "kubernetes", &id),
            ("/machine.slice/libpod-ID.scope/container", "podman", &id),
            ("/libpod_parent/libpod-ID", "podman", &id),
            ("/machine.slice/systemd-nspawn@deb.service/payload", "nspawn", &"deb".to_owned()),
            ("/machine.slice/machine-deb.scope", "nspawn", &"deb".to_owned()),
            ("/lxc.payload.web/system.slice", "lxc", &"web".to_owned()),
            ("/lxc/web", "lxc", &"web".to_owned()),
        ] {
            assert_eq!(told(path), Some((runtime, id.clone())), "{path}");
        }
    }

    #[test]
    fn of_nested_containers_the_innermost_counts() {
        let nested = told("/lxc.payload.web/system.slice/docker-ID.scope");
        assert_eq!(nested, Some(("docker", "ID".to_owned())));
    }

    #[test]
    fn what_only_looks_like_a_container_is_none() {
        for path in [
            "/",
            "",
            "/system.slice/docker.service",
            "/system.slice/docker-abc.scope",
            "/machine.slice/libpod-conmon-ID.scope",
            "/kubepods.slice/crio-conmon-ID.scope",
            "/lxc.monitor.web",
            "/user.slice/ID",
            "/lxc/",
            "/lxc",
        ] {
            assert_eq!(told(path), None, "{path}");
        }
    }
}
