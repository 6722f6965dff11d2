//! The bundle of a container (OCI runtime-spec, config.md). It is like an ordinary container of
//! containerd, but has no network by default.

use std::path::Path;

use serde_json::{Value, json};

use super::user::User;
use super::workload::{Mount, Workload};
use crate::failure::Failure;

/// The capabilities that containerd gives containers (`oci.defaultUnixCaps`).
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
const NAMESPACES: [&str; 5] = ["pid", "ipc", "uts", "mount", "network"];
const MASKED: [&str; 8] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];
const READ_ONLY: [&str; 6] = [
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];
const HOSTNAME: &str = "starlift";
const HOSTS: &str =
    "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tstarlift\n";

/// Writes the bundle's files into `folder`, which is created.
pub(crate) fn write(
    folder: &Path,
    rootfs: &Path,
    workload: &Workload,
    user: &User,
    network: Network,
    mounts: &[Mount],
) -> Result<(), Failure> {
    let cannot = || Failure::when(format!("{} cannot be written", folder.display()));
    std::fs::create_dir(folder).map_err(cannot())?;
    let mut own = Vec::new();
    // In any container, the runtime provides these files, not the image.
    for (name, text) in [
        ("hosts", HOSTS),
        ("hostname", "starlift\n"),
        ("resolv.conf", ""),
    ] {
        let host = Path::new("/etc").join(name);
        let file = if network == Network::Host && host.exists() {
            host
        } else {
            let file = folder.join(name);
            std::fs::write(&file, text).map_err(cannot())?;
            file
        };
        own.push(Mount::of_file(
            file.display().to_string(),
            &format!("/etc/{name}"),
        ));
    }
    own.extend(mounts.iter().cloned());
    let spec = spec(rootfs, workload, user, network, &own);
    std::fs::write(folder.join("config.json"), spec.to_string()).map_err(cannot())
}

/// The networks that the container can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// Only its own loopback device.
    Loopback,
    /// All networks of this machine.
    Host,
}

fn spec(
    rootfs: &Path,
    workload: &Workload,
    user: &User,
    network: Network,
    more: &[Mount],
) -> Value {
    let namespaces = NAMESPACES
        .iter()
        .filter(|kind| network == Network::Loopback || **kind != "network");
    let namespaces: Vec<Value> = namespaces.map(|kind| json!({"type": kind})).collect();
    let mut mounts = system_mounts();
    mounts.extend(more.iter().map(|mount| json!(mount)));
    json!({
        "ociVersion": "1.0.2",
        "hostname": HOSTNAME,
        "root": {"path": rootfs},
        "process": {
            "args": workload.args,
            "env": workload.env,
            "cwd": workload.cwd,
            "user": user,
            "noNewPrivileges": true,
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
        },
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    })
}

fn system_mounts() -> Vec<Value> {
    let mount = |destination: &str, kind: &str, source: &str, options: &str| {
        let options: Vec<&str> = options.split(',').collect();
        json!({"destination": destination, "type": kind, "source": source, "options": options})
    };
    vec![
        mount("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            "nosuid,strictatime,mode=755,size=65536k",
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            "nosuid,noexec,nodev,mode=1777,size=65536k",
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_is_isolated_unless_the_host_is_chosen() {
        let folder = tempfile::tempdir().unwrap();
        let text = |words: &[&str]| {
            words
                .iter()
                .map(|&word| word.to_owned())
                .collect::<Vec<_>>()
        };
        let workload = Workload {
            args: text(&["a"]),
            env: text(&["B=1"]),
            user: "7:8".to_owned(),
            cwd: "/".to_owned(),
        };
        let user = User::find(&workload.user, folder.path()).unwrap();
        for (name, network, is_own) in [
            ("own", Network::Loopback, true),
            ("host", Network::Host, false),
        ] {
            let bundle = folder.path().join(name);
            let further: Mount = "type=bind,src=/a,dst=/b".parse().unwrap();
            write(
                &bundle,
                Path::new("/rootfs"),
                &workload,
                &user,
                network,
                &[further],
            )
            .unwrap();
            let spec: Value =
                serde_json::from_slice(&std::fs::read(bundle.join("config.json")).unwrap())
                    .unwrap();
            let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
            assert_eq!(namespaces.contains(&json!({"type": "network"})), is_own);
            assert_eq!(
                spec["process"]["user"],
                json!({"uid": 7, "gid": 8, "additionalGids": [8]})
            );
            assert_eq!(
                spec["mounts"].as_array().unwrap().last().unwrap()["destination"],
                "/b"
            );
            assert_eq!(
                bundle.join("hosts").exists(),
                is_own || !Path::new("/etc/hosts").exists()
            );
        }
    }
}
