//! The mounts of a snapshot, in the form of containerd's overlay snapshotter.

use std::path::{Path, PathBuf};

use super::record::Kind;
use crate::agent::user_namespace;

/// A mount for containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// `overlay` or `bind`.
    pub kind: &'static str,
    pub source: String,
    pub options: Vec<String>,
}

/// The options that this kernel accepts (docs/KERNEL.md gives the reason for each).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Overlay {
    /// For every overlay.
    options: Vec<&'static str>,
    /// Whether an overlay over several file systems can show one device and stable inode numbers
    /// for all files.
    has_xino: bool,
}

/// The paths of a mount.
#[derive(Debug)]
pub(super) struct Paths {
    pub(super) upper: PathBuf,
    pub(super) work: PathBuf,
    /// Top first.
    pub(super) lowers: Vec<PathBuf>,
    /// How many of `lowers` are lazily mounted layers of the FUSE driver, which are on a separate
    /// file system.
    pub(super) lazy: usize,
    /// How many are layers of the EROFS driver. Each is a file system.
    pub(super) erofs: usize,
    /// The options that make containerd map owners.
    pub(super) maps: Vec<String>,
}

impl Overlay {
    /// Detects the kernel's features. `root` is the directory of the upper directories.
    pub(super) fn detect(root: &Path) -> Self {
        let mut options = Vec::new();
        let has = |parameter: &str| {
            Path::new("/sys/module/overlay/parameters")
                .join(parameter)
                .exists()
        };
        if has("index") {
            options.push("index=off");
        }
        if needs_user_attributes(root) {
            options.push("userxattr");
        }
        Self {
            options,
            has_xino: has("xino_auto"),
        }
    }

    pub(super) fn mount(&self, kind: Kind, paths: &Paths) -> Mount {
        match (kind, paths.lowers.as_slice()) {
            (Kind::View, []) => bind(&paths.upper, &paths.maps, "ro"),
            (_, []) => bind(&paths.upper, &paths.maps, "rw"),
            (Kind::View, [lower]) => bind(lower, &paths.maps, "ro"),
            (_, lowers) => self.overlay(kind, paths, lowers),
        }
    }

    fn overlay(&self, kind: Kind, paths: &Paths, lowers: &[PathBuf]) -> Mount {
        let mut options = paths.maps.clone();
        options.extend(self.options.iter().map(|&option| option.to_owned()));
        // On one file system the numbers are the files' own, and the kernel logs a line if `xino`
        // is requested.
        if self.has_xino && paths.file_systems(kind) > 1 {
            options.push("xino=on".to_owned());
        }
        if kind == Kind::Active {
            options.push(format!("workdir={}", paths.work.display()));
            options.push(format!("upperdir={}", paths.upper.display()));
        }
        let lowers: Vec<String> = lowers
            .iter()
            .map(|lower| lower.display().to_string())
            .collect();
        options.push(format!("lowerdir={}", lowers.join(":")));
        Mount {
            kind: "overlay",
            source: "overlay".to_owned(),
            options,
        }
    }
}

impl Paths {
    fn file_systems(&self, kind: Kind) -> usize {
        let is_on_disk = kind == Kind::Active || self.lazy + self.erofs < self.lowers.len();
        self.erofs + usize::from(self.lazy > 0) + usize::from(is_on_disk)
    }
}

fn bind(path: &Path, maps: &[String], access: &str) -> Mount {
    let options = [maps, &[access.to_owned(), "rbind".to_owned()]].concat();
    Mount {
        kind: "bind",
        source: path.display().to_string(),
        options,
    }
}

/// Whether an overlay with its upper directory below `root` needs the option `userxattr`: inside a
/// user namespace, overlayfs stores its marks in `user.` attributes.
pub(crate) fn needs_user_attributes(root: &Path) -> bool {
    user_namespace::is_inside() && !on_tmpfs(root)
}

/// tmpfs has no `user.` attributes for overlayfs to use.
fn on_tmpfs(path: &Path) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    rustix::fs::statfs(path).is_ok_and(|statfs| statfs.f_type == TMPFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: Kind, lowers: &[&str]) -> Mount {
        let overlay = Overlay {
            options: vec!["index=off"],
            has_xino: true,
        };
        let lazy = lowers
            .iter()
            .filter(|path| path.starts_with("/r/lazy/"))
            .count();
        let erofs = lowers
            .iter()
            .filter(|path| path.starts_with("/r/erofs/"))
            .count();
        let lowers = lowers.iter().map(PathBuf::from).collect();
        let (upper, work) = ("/r/snapshots/9/fs".into(), "/r/snapshots/9/work".into());
        overlay.mount(
            kind,
            &Paths {
                upper,
                work,
                lowers,
                lazy,
                erofs,
                maps: Vec::new(),
            },
        )
    }

    fn shown(mount: &Mount) -> String {
        format!(
            "{} {} {}",
            mount.kind,
            mount.source,
            mount.options.join(",")
        )
    }

    #[test]
    fn without_parents_the_directory_itself_is_bound() {
        assert_eq!(
            shown(&mount(Kind::Active, &[])),
            "bind /r/snapshots/9/fs rw,rbind"
        );
        assert_eq!(
            shown(&mount(Kind::View, &[])),
            "bind /r/snapshots/9/fs ro,rbind"
        );
    }

    #[test]
    fn a_view_of_one_parent_is_the_parent_bound_read_only() {
        assert_eq!(
            shown(&mount(Kind::View, &["/r/lazy/3"])),
            "bind /r/lazy/3 ro,rbind"
        );
    }

    #[test]
    fn an_overlay_has_the_options_in_containerds_order() {
        assert_eq!(
            shown(&mount(Kind::Active, &["/r/snapshots/2/fs", "/r/lazy/1"])),
            "overlay overlay index=off,xino=on,workdir=/r/snapshots/9/work,upperdir=/r/snapshots/9/fs,\
             lowerdir=/r/snapshots/2/fs:/r/lazy/1"
        );
        assert_eq!(
            shown(&mount(Kind::View, &["/r/snapshots/2/fs", "/r/lazy/1"])),
            "overlay overlay index=off,xino=on,lowerdir=/r/snapshots/2/fs:/r/lazy/1"
        );
    }

    #[test]
    fn xino_is_requested_only_over_several_file_systems() {
        for (kind, lowers) in [
            (
                Kind::Active,
                &["/r/snapshots/2/fs", "/r/snapshots/1/fs"][..],
            ),
            (Kind::View, &["/r/snapshots/2/fs", "/r/snapshots/1/fs"]),
            (Kind::View, &["/r/lazy/2", "/r/lazy/1"]),
        ] {
            assert!(
                !shown(&mount(kind, lowers)).contains("xino"),
                "{kind:?} {lowers:?}"
            );
        }
        for (kind, lowers) in [
            (Kind::Active, &["/r/lazy/2"][..]),
            (Kind::Active, &["/r/erofs/2"]),
            (Kind::View, &["/r/erofs/2", "/r/erofs/1"]),
            (Kind::View, &["/r/erofs/2", "/r/lazy/1"]),
        ] {
            let options = shown(&mount(kind, lowers));
            assert!(options.contains("xino=on"), "{kind:?} {lowers:?}");
        }
    }
}
