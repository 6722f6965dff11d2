//! The target `blob` of tests/fuzz/targets.rs under libFuzzer.
//!
//! Most mutations of compressed bytes only break the checksum of a member. So three of four change
//! the content of one gzip member, which is stored again, and move the footer.
#![no_main]

mod limit;
#[path = "../../tests/fuzz/targets.rs"]
#[expect(dead_code, reason = "each program runs one target")]
mod targets;

use std::io::Read;

use estargz::footer;
use flate2::bufread::GzDecoder;

/// Most bytes that a member is inflated to.
const MAX_CONTENT: u64 = 1 << 16;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::blob(data));

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mutated = (!seed.is_multiple_of(4))
        .then(|| with_mutated_member(&data[..size], seed as usize / 4))
        .flatten();
    match mutated {
        Some(blob) if blob.len() <= max_size => {
            data[..blob.len()].copy_from_slice(&blob);
            blob.len()
        }
        _ => libfuzzer_sys::fuzzer_mutate(data, size, max_size),
    }
});

/// Changes the content of one of the members before the footer. `None` if there are none.
fn with_mutated_member(blob: &[u8], choice: usize) -> Option<Vec<u8>> {
    let (mut members, footer) = members(blob);
    let index = choice.checked_rem(members.len())?;
    let content = inflated(members[index])?.0;
    let size = content.len();
    let mut room = content;
    room.resize(size + size / 8 + 64, 0);
    let max_size = room.len();
    let size = libfuzzer_sys::fuzzer_mutate(&mut room, size, max_size);
    let stored = targets::stored_gzip(&room[..size]);
    members[index] = &stored;
    let toc = members.split_last().map_or(&[][..], |(_, payload)| payload);
    let start: usize = toc.iter().map(|member| member.len()).sum();
    let mut blob = members.concat();
    if footer.len() == footer::gzip(0).len() {
        blob.extend_from_slice(&footer::gzip(start as u64));
    } else {
        blob.extend_from_slice(footer);
    }
    Some(blob)
}

/// Splits a blob into its members and the footer, or the part that is no member.
fn members(blob: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let (mut members, mut rest) = (Vec::new(), blob);
    while let Some((content, length)) = inflated(rest)
        && !content.is_empty()
    {
        let (member, behind) = rest.split_at(length);
        members.push(member);
        rest = behind;
    }
    (members, rest)
}

/// Inflates the first member. Returns its content and its length.
fn inflated(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut decoder = GzDecoder::new(bytes);
    let mut content = Vec::new();
    decoder
        .by_ref()
        .take(MAX_CONTENT)
        .read_to_end(&mut content)
        .ok()?;
    // The checksum is read with the end of the content.
    (decoder.read(&mut [0]).ok()? == 0).then(|| (content, bytes.len() - decoder.get_ref().len()))
}
