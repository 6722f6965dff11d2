//! When a workload does what it is for, seen from outside: it said so, a page is served, a query is answered.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::harness::Running;

/// What a workload says, or serves, once it is there (`make-image`).
const WORD: &str = "ready";
/// How often it is looked for.
const POLL: Duration = Duration::from_millis(5);
/// How long a start may take, on a machine that does other things too.
const LIMIT: Duration = Duration::from_secs(180);
/// Version 3.0 of PostgreSQL's protocol (its manual, "Message Formats", StartupMessage).
const PROTOCOL: i32 = 196_608;

/// How a workload is seen to be ready; the ports are those of `make-image`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ready {
    /// It said the word.
    Says,
    /// It answers a GET with 200 and the word.
    Serves(u16),
    /// A first query is answered.
    Answers(u16),
}

impl Ready {
    /// When `process`'s workload was ready. An error if that ends before.
    pub(crate) fn wait(self, process: &mut Running) -> anyhow::Result<Instant> {
        let begun = Instant::now();
        loop {
            let has_ended = process.has_ended()?;
            let is_ready = match self {
                Self::Says => process.said()?.lines().any(|line| line.starts_with(WORD)),
                Self::Serves(port) => is_served(port).unwrap_or(false),
                Self::Answers(port) => is_answered(port).unwrap_or(false),
            };
            if is_ready {
                return Ok(Instant::now());
            }
            ensure!(
                !has_ended && begun.elapsed() < LIMIT,
                "the workload is not ready: {}",
                process.said()?
            );
            std::thread::sleep(POLL);
        }
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

/// Asks `select 1`. What the server says is a letter, a length that counts itself, and as many bytes.
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
            // ErrorResponse: it is starting up.
            b'E' => return Ok(false),
            _ => {}
        }
    }
}

fn send(stream: &mut TcpStream, letter: &[u8], body: &[u8]) -> io::Result<()> {
    let length = i32::try_from(body.len() + 4).map_err(io::Error::other)?;
    stream.write_all(&[letter, &length.to_be_bytes(), body].concat())
}

/// The letter of the next message.
fn receive(stream: &mut TcpStream) -> io::Result<u8> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let [letter, length @ ..] = head;
    let body = u64::from(u32::from_be_bytes(length)).saturating_sub(4);
    io::copy(&mut stream.take(body), &mut io::sink())?;
    Ok(letter)
}
