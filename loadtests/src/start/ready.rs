//! Detects from outside that a workload is ready: it printed a word, serves a page, or answers a
//! query.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use crate::harness::Running;
use crate::support::eventually::within;

/// The word that a ready workload prints or serves (`make-image`).
const WORD: &str = "ready";
/// The interval at which readiness is polled.
const POLL: Duration = Duration::from_millis(5);
/// The limit for a start, enough on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);
/// Version 3.0 of PostgreSQL's protocol (its manual, "Message Formats", StartupMessage).
const PROTOCOL: i32 = 196_608;

/// The way to see that a workload is ready. The ports are those of `make-image`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ready {
    /// It printed the word.
    Says,
    /// It answers a GET with 200 and the word.
    Serves(u16),
    /// A first query is answered.
    Answers(u16),
}

impl Ready {
    /// Waits until the workload of `process` is ready and returns the time. Fails if the process
    /// ends before.
    pub(crate) fn wait(self, process: &mut Running) -> anyhow::Result<Instant> {
        match within(LIMIT, POLL, || self.look(process).transpose()) {
            Some(outcome) => outcome,
            None => bail!("workload not ready: {}", process.said()?),
        }
    }

    /// Returns the time if the workload is ready now. Fails if the process has ended before.
    fn look(self, process: &mut Running) -> anyhow::Result<Option<Instant>> {
        let has_ended = process.has_ended()?;
        let is_ready = match self {
            Self::Says => process.said()?.lines().any(|line| line.starts_with(WORD)),
            Self::Serves(port) => is_served(port).unwrap_or(false),
            Self::Answers(port) => is_answered(port).unwrap_or(false),
        };
        if is_ready {
            return Ok(Some(Instant::now()));
        }
        ensure!(!has_ended, "workload ended: {}", process.said()?);
        Ok(None)
    }
}

fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

fn is_served(port: u16) -> io::Result<bool> {
    let mut stream = connect(port)?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split_whitespace().nth(1);
    Ok(status == Some("200") && answer.contains(WORD))
}

/// Sends `select 1`. Each message of the server is a letter, a length that includes itself, and the
/// content.
fn is_answered(port: u16) -> io::Result<bool> {
    let mut stream = connect(port)?;
    let parameters = b"user\0postgres\0database\0postgres\0\0";
    send(
        &mut stream,
        b"",
        &[&PROTOCOL.to_be_bytes()[..], parameters].concat(),
    )?;
    loop {
        match receive(&mut stream)? {
            // ReadyForQuery.
            b'Z' => send(&mut stream, b"Q", b"select 1\0")?,
            // DataRow.
            b'D' => return Ok(true),
            // ErrorResponse: the server is starting up.
            b'E' => return Ok(false),
            _ => {}
        }
    }
}

fn send(stream: &mut TcpStream, letter: &[u8], body: &[u8]) -> io::Result<()> {
    let length = i32::try_from(body.len() + 4).map_err(io::Error::other)?;
    stream.write_all(&[letter, &length.to_be_bytes(), body].concat())
}

/// Reads the next message and returns its letter.
fn receive(stream: &mut TcpStream) -> io::Result<u8> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let [letter, length @ ..] = head;
    let body = u64::from(u32::from_be_bytes(length)).saturating_sub(4);
    io::copy(&mut stream.take(body), &mut io::sink())?;
    Ok(letter)
}
