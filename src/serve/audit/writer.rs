//! Writes the lines of the audit log on a thread of its own. A disk that is full or broken loses
//! lines, which are counted, and delays nobody.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;

use tokio::sync::oneshot;

use super::count;

/// The path that means standard output.
const STDOUT: &str = "-";
/// Lines that are written together have this many bytes at most, and one line more.
const TOGETHER: usize = 64 << 10;

/// An order to the thread.
#[derive(Debug)]
pub(super) enum Message {
    Line(Vec<u8>),
    Reopen,
    Flush(oneshot::Sender<()>),
}

/// The place of the lines.
#[derive(Debug)]
pub(super) enum Target {
    Stdout,
    File { path: PathBuf, file: File },
}

impl Target {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new(STDOUT) {
            return Ok(Self::Stdout);
        }
        Ok(Self::File {
            path: path.to_owned(),
            file: open(path)?,
        })
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Self::File { path, file } = self {
            *file = open(path)?;
        }
        Ok(())
    }

    /// Writes whole lines, or nothing to a file.
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(lines)?;
                stdout.flush()
            }
            Self::File { file, .. } => {
                let end = file.metadata()?.len();
                file.write_all(lines).inspect_err(|_failed| {
                    // A part of a line would spoil the next one.
                    let _kept = file.set_len(end);
                })
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640).open(path)
}

/// Writes until the last handle of the log is gone.
pub(super) fn run(mut target: Target, waiting: &Receiver<Message>) {
    let mut lost = 0;
    while let Ok(first) = waiting.recv() {
        let (mut lines, mut number) = (Vec::new(), 0);
        let mut order = Some(first);
        while let Some(Message::Line(line)) = order {
            lines.extend(line);
            number += 1;
            order = (lines.len() < TOGETHER)
                .then(|| waiting.try_recv().ok())
                .flatten();
        }
        if number > 0 {
            lost = written(target.write(&lines), number, lost);
        }
        match order {
            Some(Message::Reopen) => match target.reopen() {
                Ok(()) => tracing::info!("audit log opened again"),
                Err(error) => tracing::warn!(%error, "audit log stays as it was"),
            },
            Some(Message::Flush(done)) => {
                let _nobody_waits = done.send(());
            }
            Some(Message::Line(_)) | None => {}
        }
    }
}

/// Counts lines, and logs the beginning and the end of a loss. Returns the lines lost so far.
fn written(outcome: io::Result<()>, number: u64, lost: u64) -> u64 {
    match outcome {
        Ok(()) => {
            count("written", number);
            if lost > 0 {
                tracing::warn!(lost, "audit log written again");
            }
            0
        }
        Err(error) => {
            count("dropped", number);
            if lost == 0 {
                tracing::error!(%error, "audit log not written; its lines are lost until it is");
            }
            lost + number
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn lines_follow_the_name_of_the_file_after_it_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("audit"), dir.path().join("audit.1"));
        let target = Target::open(&path).unwrap();
        std::fs::rename(&path, &old).unwrap();
        let (send, waiting) = sync_channel(8);
        send.send(Message::Line(b"1\n".to_vec())).unwrap();
        send.send(Message::Reopen).unwrap();
        send.send(Message::Line(b"2\n".to_vec())).unwrap();
        send.send(Message::Line(b"3\n".to_vec())).unwrap();
        drop(send);
        run(target, &waiting);
        assert_eq!(std::fs::read(&old).unwrap(), b"1\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"2\n3\n");
    }

    #[test]
    fn a_full_disk_loses_lines_and_the_thread_goes_on() {
        let target = Target::open(Path::new("/dev/full")).unwrap();
        let (send, waiting) = sync_channel(8);
        let (done, mut flushed) = oneshot::channel();
        send.send(Message::Line(b"1\n".to_vec())).unwrap();
        send.send(Message::Flush(done)).unwrap();
        drop(send);
        run(target, &waiting);
        assert_eq!(flushed.try_recv(), Ok(()));
        assert_eq!(written(Err(io::ErrorKind::StorageFull.into()), 2, 3), 5);
        assert_eq!(written(Ok(()), 1, 5), 0);
    }
}
