//! Names in a layer with a meaning for the program that stacks layers (OCI image-spec, layer.md,
//! "Whiteouts"), and the entries that eStargz adds.

/// The prefix of a whiteout's name.
pub(crate) const WHITEOUT: &[u8] = b".wh.";
/// The prefix of AUFS metadata, the opaque marker included. None of these entries is a whiteout of
/// a name.
const AUFS: &[u8] = b".wh..wh.";
/// The marker in a directory that hides the directory's content in the layers below.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";

/// The marker entry behind the last file that is to be prefetched at once, by the choice of the
/// layer's author.
pub(crate) const PREFETCH_LANDMARK: &[u8] = b".prefetch.landmark";
/// The entries that eStargz adds to the root directory. They are not visible in a mounted layer.
const FORMAT_ENTRIES: [&[u8]; 3] = [
    PREFETCH_LANDMARK,
    b".no.prefetch.landmark",
    b"stargz.index.json",
];

/// Whether an entry hides something and is not visible itself.
pub(crate) fn is_marker(name: &[u8]) -> bool {
    name.starts_with(WHITEOUT)
}

/// Whether an entry hides the one name that follows `WHITEOUT` in its own name.
pub(crate) fn is_whiteout(name: &[u8]) -> bool {
    name.len() > WHITEOUT.len() && name.starts_with(WHITEOUT) && !name.starts_with(AUFS)
}

/// Returns the name of the entry that hides `name`.
pub(crate) fn whiteout_of(name: &[u8]) -> Vec<u8> {
    [WHITEOUT, name].concat()
}

/// Whether an entry of the root directory was added by eStargz.
pub(crate) fn is_format_entry(name: &[u8]) -> bool {
    FORMAT_ENTRIES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whiteouts_of_names_are_whiteouts() {
        assert!(is_whiteout(b".wh.a") && is_whiteout(&whiteout_of(b"b")));
        for name in [&b"a"[..], b".wh.", OPAQUE, b".wh..wh.aufs"] {
            assert!(!is_whiteout(name), "{name:?}");
        }
    }
}
