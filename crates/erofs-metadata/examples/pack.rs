//! Packs a directory: its metadata into an EROFS image, its files' content into another file.
//!
//! ```text
//! cargo run --example pack -- DIRECTORY METADATA DATA
//! ```
//!
//! Linux 6.12 and newer mounts the two with mount(2): type `erofs`, source `METADATA`, data
//! `device=DATA`. `mount(8)` sets up loop devices: `mount -t erofs -o loop,device=/dev/loopN …`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::ExitCode;

use erofs_metadata::{Attributes, Data, Image, Kind, NodeId, Time};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const BLOCK: u64 = 4096;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let result = match &arguments[..] {
        [directory, metadata, data] => pack(directory.as_ref(), metadata.as_ref(), data.as_ref()),
        _ => Err("usage: pack DIRECTORY METADATA DATA".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _unprintable = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn pack(directory: &Path, metadata: &Path, data: &Path) -> Result<()> {
    let image = Image::builder()
        .root(attributes(&fs::metadata(directory)?))
        .build()?;
    let mut packer = Packer {
        image,
        data: File::create(data)?,
        inodes: HashMap::new(),
    };
    let root = packer.image.root();
    packer.add_xattrs(directory, root)?;
    packer.add_children(directory, root)?;
    // Linux reads whole blocks and reports an error where the file ends inside one.
    let end = packer.data.stream_position()?;
    packer.data.set_len(end)?;
    let layout = packer.image.layout()?;
    layout.write_to(File::create(metadata)?)?;
    writeln!(
        io::stdout(),
        "{} inodes, {} bytes of metadata",
        layout.inodes(),
        layout.size()
    )?;
    Ok(())
}

struct Packer {
    image: Image,
    data: File,
    /// Files with several names, by device and inode number.
    inodes: HashMap<(u64, u64), NodeId>,
}

impl Packer {
    fn add_children(&mut self, directory: &Path, parent: NodeId) -> Result<()> {
        let mut entries: Vec<_> = fs::read_dir(directory)?.collect::<io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, metadata) = (entry.path(), entry.metadata()?);
            let node = self.add(&path, &metadata)?;
            self.image
                .link(parent, entry.file_name().as_bytes(), node)?;
            if metadata.is_dir() {
                self.add_children(&path, node)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, metadata: &fs::Metadata) -> Result<NodeId> {
        let identity = (metadata.dev(), metadata.ino());
        if let Some(node) = self.inodes.get(&identity) {
            return Ok(*node);
        }
        let node = self.add_inode(path, metadata)?;
        self.add_xattrs(path, node)?;
        if metadata.nlink() > 1 && !metadata.is_dir() {
            self.inodes.insert(identity, node);
        }
        Ok(node)
    }

    fn add_inode(&mut self, path: &Path, metadata: &fs::Metadata) -> Result<NodeId> {
        let device = (
            rustix::fs::major(metadata.rdev()),
            rustix::fs::minor(metadata.rdev()),
        );
        let (kind, target) = (
            metadata.file_type(),
            fs::read_link(path).unwrap_or_default(),
        );
        let kind = match device {
            _ if kind.is_dir() => Kind::Directory,
            _ if kind.is_symlink() => Kind::Symlink(target.as_os_str().as_bytes()),
            _ if kind.is_fifo() => Kind::Fifo,
            _ if kind.is_socket() => Kind::Socket,
            (major, minor) if kind.is_char_device() => Kind::CharDevice { major, minor },
            (major, minor) if kind.is_block_device() => Kind::BlockDevice { major, minor },
            _ => {
                let place = self.data.stream_position()?;
                let size = io::copy(&mut File::open(path)?, &mut self.data)?;
                self.data
                    .seek(SeekFrom::Start((place + size).next_multiple_of(BLOCK)))?;
                Kind::File {
                    size,
                    data: Data::At(place),
                }
            }
        };
        Ok(self.image.add(kind, &attributes(metadata))?)
    }

    fn add_xattrs(&mut self, path: &Path, node: NodeId) -> Result<()> {
        let mut names = vec![0; 65536];
        let length = rustix::fs::llistxattr(path, names.as_mut_slice())?;
        for name in names[..length]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice())?;
            self.image.add_xattr(node, name, &value[..length])?;
        }
        Ok(())
    }
}

fn attributes(metadata: &fs::Metadata) -> Attributes {
    Attributes::default()
        .with_permissions(u16::try_from(metadata.mode() & 0o7777).unwrap_or_default())
        .with_owner(metadata.uid(), metadata.gid())
        .with_modified(Time {
            seconds: metadata.mtime(),
            nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap_or_default(),
        })
}
