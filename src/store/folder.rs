//! The additions that a local folder needs to `object_store`: streams in large pieces, and the
//! deletion of staging files of killed uploads.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};

/// The size of one piece of a file: so large that the hop to a blocking thread is cheap compared
/// with the read.
const PIECE: u64 = 256 << 10;

/// Streams the bytes of `range`. A file that ends earlier is an error.
pub(super) fn stream(
    file: File,
    path: &Path,
    range: Range<u64>,
) -> BoxStream<'static, Result<Bytes, object_store::Error>> {
    let reading = Reading {
        file,
        path: path.to_owned(),
        range,
        positioned: false,
    };
    stream::try_unfold(reading, |reading| async move {
        if reading.range.is_empty() {
            return Ok(None);
        }
        tokio::task::spawn_blocking(move || reading.piece())
            .await?
            .map(Some)
    })
    .boxed()
}

struct Reading {
    file: File,
    path: PathBuf,
    range: Range<u64>,
    positioned: bool,
}

impl Reading {
    fn piece(mut self) -> Result<(Bytes, Self), object_store::Error> {
        let failed = |source: std::io::Error, path: &Path| object_store::Error::Generic {
            store: "folder",
            source: format!("{}: {source}", path.display()).into(),
        };
        if !self.positioned {
            self.file
                .seek(SeekFrom::Start(self.range.start))
                .map_err(|source| failed(source, &self.path))?;
            self.positioned = true;
        }
        let length = PIECE.min(self.range.end - self.range.start);
        let mut piece = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
        (&self.file)
            .take(length)
            .read_to_end(&mut piece)
            .map_err(|source| failed(source, &self.path))?;
        if piece.len() as u64 != length {
            return Err(failed(ErrorKind::UnexpectedEof.into(), &self.path));
        }
        self.range.start += length;
        Ok((piece.into(), self))
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
        let pieces: Vec<Bytes> = stream(File::open(&path).unwrap(), &path, 3..2_700_001)
            .try_collect()
            .await
            .unwrap();
        assert!(pieces.len() > 1);
        assert_eq!(pieces.concat(), &content[3..2_700_001]);
    }

    #[tokio::test]
    async fn a_file_that_ends_too_early_is_an_error() {
        let (_dir, path) = file_of(b"short");
        let bytes: Result<Vec<Bytes>, _> = stream(File::open(&path).unwrap(), &path, 0..6)
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
