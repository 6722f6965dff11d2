//! The user of a workload: `user[:group]` looked up in the image's own `/etc/passwd` and
//! `/etc/group`.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

use crate::failure::Failure;

/// Most bytes that are read of each file.
const MAX_BYTES: u64 = 4 << 20;

/// Numbers for the runtime (OCI runtime-spec, config.md, "User").
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct User {
    uid: u32,
    gid: u32,
    additional_gids: Vec<u32>,
}

impl User {
    /// Looks up `user[:group]` in the files of a root file system. As in containerd, the additional
    /// groups are those of `/etc/group` that list the user.
    pub(crate) fn find(user: &str, rootfs: &Path) -> Result<Self, Failure> {
        Self::of(
            user,
            &file(rootfs, "etc/passwd")?,
            &file(rootfs, "etc/group")?,
        )
    }

    fn of(text: &str, passwd: &str, group: &str) -> Result<Self, Failure> {
        let (user, named_group) = text
            .split_once(':')
            .map_or((text, None), |(user, group)| (user, Some(group)));
        let user = if user.is_empty() { "0" } else { user };
        let line =
            lines(passwd).find(|line| line.first() == Some(&user) || line.get(2) == Some(&user));
        let number =
            |line: &[&str], at: usize| line.get(at).and_then(|text| text.parse::<u32>().ok());
        let uid = line
            .as_ref()
            .and_then(|line| number(line, 2))
            .or(user.parse().ok());
        let uid = uid.ok_or_else(|| Failure::new(format!("no user {user:?} in the image")))?;
        let name = line.as_ref().and_then(|line| line.first().copied());
        let gid = match named_group.filter(|group| !group.is_empty()) {
            None => line
                .as_ref()
                .and_then(|line| number(line, 3))
                .unwrap_or_default(),
            Some(wanted) => lines(group)
                .find(|line| line.first() == Some(&wanted))
                .and_then(|line| number(&line, 2))
                .or(wanted.parse().ok())
                .ok_or_else(|| Failure::new(format!("no group {wanted:?} in the image")))?,
        };
        let is_member = |line: &Vec<&str>| {
            name.is_some_and(|name| {
                line.get(3)
                    .is_some_and(|all| all.split(',').any(|one| one == name))
            })
        };
        let further = lines(group)
            .filter(is_member)
            .filter_map(|line| number(&line, 2));
        Ok(Self {
            uid,
            gid,
            additional_gids: std::iter::once(gid)
                .chain(further.filter(|further| *further != gid))
                .collect(),
        })
    }
}

/// Splits passwd(5) or group(5) into lines of fields.
fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

/// Returns the text of a file, resolved as if `rootfs` were the root, so that links cannot lead
/// outside. Empty if the file does not exist.
fn file(rootfs: &Path, path: &str) -> Result<String, Failure> {
    let cannot = |error: rustix::io::Errno| {
        Failure::when(format!("/{path} of the image cannot be read"))(error)
    };
    let root = open(
        rootfs,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(cannot)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = match openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(opened) => File::from(opened),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(cannot(error)),
    };
    let mut text = Vec::new();
    opened
        .take(MAX_BYTES)
        .read_to_end(&mut text)
        .map_err(Failure::when(format!(
            "/{path} of the image cannot be read"
        )))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\nbroken\n7:x:8:9::/:\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:other,app\nadm:x:4:app\napp:x:1001:app\n";

    fn found(text: &str) -> Option<(u32, u32, Vec<u32>)> {
        let user = User::of(text, PASSWD, GROUP).ok()?;
        Some((user.uid, user.gid, user.additional_gids))
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(found(""), Some((0, 0, vec![0])));
        assert_eq!(found("app"), Some((1000, 1001, vec![1001, 50, 4])));
        assert_eq!(found("1000"), found("app"));
        assert_eq!(found("app:staff"), Some((1000, 50, vec![50, 4, 1001])));
        assert_eq!(found("4242"), Some((4242, 0, vec![0])));
        assert_eq!(found("4242:17"), Some((4242, 17, vec![17])));
        assert_eq!(found("nobody"), None);
        assert_eq!(found("app:nobody"), None);
    }

    #[test]
    fn links_do_not_lead_out_of_the_image() {
        let rootfs = tempfile::tempdir().unwrap();
        assert_eq!(
            User::find("", rootfs.path()).unwrap().uid,
            0,
            "an image may lack these files"
        );
        let etc = rootfs.path().join("etc");
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(rootfs.path().join("real"), "inside:x:5:6::/:\n").unwrap();
        std::os::unix::fs::symlink("/real", etc.join("passwd")).unwrap();
        assert_eq!(User::find("inside", rootfs.path()).unwrap().uid, 5);
        std::os::unix::fs::symlink("/etc/hostname", etc.join("group")).unwrap();
        assert!(User::find("inside:root", rootfs.path()).is_err());
    }
}
