//! Cuts a tar as eStargz does: each chunk of a file is a member, and so is each gap between files.

use estargz::EntryKind;
use estargz::tar::Walker;

/// The writer's default chunk size.
const CHUNK: usize = 4 << 20;

/// Returns the members of `tar`, which together are the complete tar.
pub(crate) fn cut(tar: &[u8]) -> anyhow::Result<Vec<&[u8]>> {
    let mut walker = Walker::new(tar);
    let mut members = Vec::new();
    let (mut gap_start, mut raw) = (0, Vec::new());
    while let Some(header) = walker.next_header(&mut raw)? {
        raw.clear();
        let start = usize::try_from(walker.position())?;
        let size = usize::try_from(header.stored)?;
        let Some(content) = tar.get(start..start + size) else {
            anyhow::bail!("tar ends within a file")
        };
        if header.kind == EntryKind::Reg && size > 0 {
            members.push(&tar[gap_start..start]);
            members.extend(content.chunks(CHUNK));
            gap_start = start + size;
        }
    }
    members.push(&tar[gap_start..]);
    members.retain(|member| !member.is_empty());
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_members_are_the_tar() {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, size) in [("empty", 0), ("small", 10), ("large", CHUNK + 1)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(size as u64);
            archive
                .append_data(&mut header, name, &vec![7; size][..])
                .unwrap();
        }
        let tar = archive.into_inner().unwrap();
        let members = cut(&tar).unwrap();
        assert_eq!(members.concat(), tar);
        let sizes: Vec<usize> = members.iter().map(|member| member.len()).collect();
        assert_eq!(sizes, [1024, 10, 502 + 512, CHUNK, 1, 511 + 1024]);
    }
}
