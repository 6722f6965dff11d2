//! Names in a layer that mean something to whoever stacks layers (OCI image-spec, layer.md,
//! "Whiteouts"), and the format's own entries.

/// How the name of a whiteout begins.
pub(crate) const WHITEOUT: &[u8] = b".wh.";
/// Entries of AUFS's own, the opaque marker among them; none is a whiteout of a name.
const AUFS: &[u8] = b".wh..wh.";
/// In a directory that hides what the layers below have in it.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";

/// The file behind the last one that the layer's maker wants fetched at once.
pub(crate) const PREFETCH_LANDMARK: &[u8] = b".prefetch.landmark";
/// The format's own entries, in the root; nobody sees them.
const FORMAT_ENTRIES: [&[u8]; 3] = [
    PREFETCH_LANDMARK,
    b".no.prefetch.landmark",
    b"stargz.index.json",
];

/// Whether an entry hides something, and is itself not seen under its name.
pub(crate) fn is_marker(name: &[u8]) -> bool {
    name.starts_with(WHITEOUT)
}

/// Whether an entry hides the one name that follows `WHITEOUT` in its own.
pub(crate) fn is_whiteout(name: &[u8]) -> bool {
    name.len() > WHITEOUT.len() && name.starts_with(WHITEOUT) && !name.starts_with(AUFS)
}

/// The name of the entry that hides `name`.
pub(crate) fn whiteout_of(name: &[u8]) -> Vec<u8> {
    [WHITEOUT, name].concat()
}

/// Whether an entry of the root is the format's own.
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
