//! The additions that a local folder needs to `object_store`: streams in large pieces, and the
//! deletion of staging files of killed uploads.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};

use super::buffers::{Buffer, Buffers};
use super::open_files::OpenFile;

/// The size of one piece of a file: so large that the hop to a blocking thread is cheap compared
/// with the read.
const PIECE: u64 = 256 << 10;

/// Streams the bytes of `range`. A file that ends earlier is an error.
///
/// A piece that is in the page cache is copied by the thread that polls for it, any other is read
/// by a thread that may block.
pub(super) fn stream(
    file: File,
    path: &Path,
    range: Range<u64>,
    buffers: &Buffers,
) -> BoxStream<'static, Result<Bytes, object_store::Error>> {
    let reading = Reading {
        file: OpenFile::from(file),
        path: path.to_owned(),
        range,
        buffers: buffers.clone(),
    };
    stream::try_unfold(reading, |reading| async move {
        if reading.range.is_empty() {
            return Ok(None);
        }
        match reading.cached() {
            Ok(piece) => Ok(Some(piece)),
            Err(reading) => tokio::task::spawn_blocking(move || reading.piece())
                .await?
                .map(Some),
        }
    })
    .boxed()
}

/// A file that is streamed, and the range that is left.
struct Reading {
    file: OpenFile,
    path: PathBuf,
    range: Range<u64>,
    buffers: Buffers,
}

impl Reading {
    /// Returns a buffer for the next piece.
    fn buffer(&self) -> Buffer {
        let length = PIECE.min(self.range.end - self.range.start);
        self.buffers
            .take(usize::try_from(length).unwrap_or_default())
    }

    fn after(mut self, buffer: Buffer) -> (Bytes, Self) {
        let piece = buffer.freeze();
        self.range.start += piece.len() as u64;
        (piece, self)
    }

    /// Returns the next piece if it is in the page cache.
    fn cached(self) -> Result<(Bytes, Self), Self> {
        let mut buffer = self.buffer();
        let is_read = self
            .file
            .read_cached(buffer.as_mut_slice(), self.range.start);
        if is_read {
            Ok(self.after(buffer))
        } else {
            Err(self)
        }
    }

    /// Returns the next piece. Blocking.
    fn piece(self) -> Result<(Bytes, Self), object_store::Error> {
        let mut buffer = self.buffer();
        let read = self
            .file
            .read_exact(buffer.as_mut_slice(), self.range.start);
        read.map_err(|source| object_store::Error::Generic {
            store: "folder",
            source: format!("{}: {source}", self.path.display()).into(),
        })?;
        Ok(self.after(buffer))
    }
}

/// Deletes staging files that were not written to since `before`. Returns their number and their
/// bytes.
///
/// `object_store` names them `<object>#<number>` and removes them itself unless its process is
/// killed.
pub(super) fn delete_stale_staging_files(
    root: &Path,
    before: SystemTime,
) -> std::io::Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            // An entry may disappear at this moment, because its upload ends.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                folders.push(entry.path());
            } else if is_staging(&entry.path()) && meta.modified()? < before {
                std::fs::remove_file(entry.path())?;
                files += 1;
                bytes += meta.len();
            }
        }
    }
    Ok((files, bytes))
}

fn is_staging(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    name.rsplit_once('#').is_some_and(|(_, number)| {
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;

    fn file_of(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("object");
        std::fs::write(&path, content).unwrap();
        (dir, path)
    }

    #[tokio::test]
    async fn a_range_is_streamed_in_pieces() {
        let content: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
        let (_dir, path) = file_of(&content);
        let pieces: Vec<Bytes> = stream(
            File::open(&path).unwrap(),
            &path,
            3..2_700_001,
            &Buffers::default(),
        )
        .try_collect()
        .await
        .unwrap();
        assert!(pieces.len() > 1);
        assert_eq!(pieces.concat(), &content[3..2_700_001]);
    }

    #[tokio::test]
    async fn a_file_that_ends_too_early_is_an_error() {
        let (_dir, path) = file_of(b"short");
        let bytes: Result<Vec<Bytes>, _> =
            stream(File::open(&path).unwrap(), &path, 0..6, &Buffers::default())
                .try_collect()
                .await;
        assert!(bytes.is_err());
    }

    #[test]
    fn staging_files_are_recognised_by_their_names_and_age() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("deep")).unwrap();
        for name in ["object", "object#1", "deep/other#22", "a#b"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        assert_eq!(
            delete_stale_staging_files(dir.path(), SystemTime::UNIX_EPOCH).unwrap(),
            (0, 0)
        );
        let soon = SystemTime::now() + std::time::Duration::from_secs(60);
        assert_eq!(
            delete_stale_staging_files(dir.path(), soon).unwrap(),
            (2, 2)
        );
        for (name, stays) in [
            ("object", true),
            ("object#1", false),
            ("deep/other#22", false),
            ("a#b", true),
        ] {
            assert_eq!(dir.path().join(name).exists(), stays, "{name}");
        }
    }
}
