//! Mutations: from a good input to many that are slightly wrong.

use super::random::Random;

/// Longest input that mutation makes.
const MAX_BYTES: usize = 1 << 18;

/// Numbers and words that matter in JSON.
const JSON_WORDS: [&str; 24] = [
    "0",
    "-1",
    "1",
    "18446744073709551615",
    "9223372036854775807",
    "1e400",
    "null",
    "[]",
    "{}",
    "\"\"",
    "\"..\"",
    "\"/\"",
    "\"reg\"",
    "\"chunk\"",
    "\"hardlink\"",
    "\"dir\"",
    "\"symlink\"",
    "\"a\"",
    "\"a/b\"",
    "\"\\u0000\"",
    "\"zeros\"",
    "\"\\ud800\"",
    "\"sha256:\"",
    "[[[[[[[[",
];
/// Fields of a tar header as offset and length.
const TAR_FIELDS: [(usize, usize); 11] = [
    (0, 100),
    (100, 8),
    (108, 8),
    (116, 8),
    (124, 12),
    (136, 12),
    (156, 1),
    (157, 100),
    (257, 8),
    (345, 155),
    (329, 16),
];
const TAR_TYPES: &[u8] = b"\x000123456789gxLKSDAV";
const TAR_VALUES: [&[u8]; 10] = [
    b"",
    b"/",
    b"..",
    b"a",
    b"./a/",
    b"stargz.index.json",
    b"77777777777\0",
    b"\x80\0\0\0\0\0\0\x7f\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"00000000001\0",
];

/// Any bytes.
pub(crate) fn bytes(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let length = input.len().max(1);
    let at = random.below(length).min(input.len());
    let end = (at + 1 + random.below(64)).min(input.len());
    match random.below(8) {
        0 | 1 if at < input.len() => input[at] ^= 1 << random.below(8),
        2 if at < input.len() => {
            input[at] = [0, 1, 0x7f, 0x80, 0xff, random.byte()][random.below(6)]
        }
        3 => drop(input.drain(at..end)),
        4 => {
            let copy = input[at..end].to_vec();
            let to = random.below(input.len() + 1);
            drop(input.splice(to..to, copy));
        }
        5 => drop(input.splice(at..end, (0..random.below(16)).map(|_| random.byte()))),
        6 => input.truncate(at),
        _ if !other.is_empty() => {
            let from = random.below(other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => input.push(random.byte()),
    }
    input.truncate(MAX_BYTES);
}

/// JSON: values are exchanged, objects repeated; now and then any bytes.
pub(crate) fn json(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let starts: Vec<usize> = (0..input.len()).filter(|at| input[*at] == b':').collect();
    let objects: Vec<usize> = (0..input.len()).filter(|at| input[*at] == b'{').collect();
    match random.below(4) {
        0 | 1 if !starts.is_empty() => {
            let from = starts[random.below(starts.len())] + 1;
            let length = input[from..]
                .iter()
                .position(|byte| b",}".contains(byte))
                .unwrap_or(0);
            let word = random.pick(&JSON_WORDS).bytes();
            drop(input.splice(from..from + length, word));
        }
        2 if objects.len() > 2 => {
            let from = objects[1 + random.below(objects.len() - 1)];
            let length = input[from..]
                .iter()
                .position(|byte| *byte == b'}')
                .map_or(0, |end| end + 1);
            let copy = [&input[from..from + length], b","].concat();
            let to = objects[1 + random.below(objects.len() - 1)];
            drop(input.splice(to..to, copy));
        }
        _ => bytes(input, other, random),
    }
    input.truncate(MAX_BYTES);
}

/// A tar after one byte: header fields are exchanged and checksums repaired; blocks are repeated,
/// moved and dropped.
pub(crate) fn tar(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let blocks = input.len().saturating_sub(1) / 512;
    let headers: Vec<usize> = (0..blocks)
        .map(|index| 1 + index * 512)
        .filter(|at| input[at + 257..].starts_with(b"ustar"))
        .collect();
    match random.below(6) {
        0 if !input.is_empty() => input[0] = random.byte(),
        1 | 2 if !headers.is_empty() => {
            let at = headers[random.below(headers.len())];
            let (field, length) = TAR_FIELDS[random.below(TAR_FIELDS.len())];
            let value = random.pick(&TAR_VALUES);
            let value = if field == 156 {
                &TAR_TYPES[random.below(TAR_TYPES.len())..][..1]
            } else {
                value
            };
            let place = &mut input[at + field..at + field + length];
            place.fill(0);
            let length = value.len().min(length);
            place[..length].copy_from_slice(&value[..length]);
        }
        3 if blocks > 0 => {
            let from = 1 + random.below(blocks) * 512;
            let end = (from + (1 + random.below(4)) * 512).min(input.len());
            let copy = input[from..end].to_vec();
            let to = 1 + random.below(blocks) * 512;
            drop(input.splice(to..to, copy));
        }
        4 if blocks > 0 => {
            let from = 1 + random.below(blocks) * 512;
            drop(input.drain(from..(from + 512).min(input.len())));
        }
        _ => bytes(input, other, random),
    }
    input.truncate(MAX_BYTES);
    if random.below(20) > 0 {
        mend_checksums(input);
    }
}

/// Gives each header after the first byte its checksum.
pub(crate) fn mend_checksums(input: &mut [u8]) {
    let tar = input.get_mut(1..).unwrap_or_default();
    for block in tar.chunks_exact_mut(512) {
        if block.get(257..262) == Some(b"ustar") {
            let sum: u32 = block
                .iter()
                .enumerate()
                .map(|(at, byte)| value(at, *byte))
                .sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

fn value(at: usize, byte: u8) -> u32 {
    if (148..156).contains(&at) {
        u32::from(b' ')
    } else {
        u32::from(byte)
    }
}
