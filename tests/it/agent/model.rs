//! Random trees: the mount and the files that `tar` unpacks must be identical.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use crate::support::image::Random;
use crate::support::lazy::{CHUNK, Layer, Node, ON_DEMAND};
use crate::support::place::Place;
use crate::support::random_tar::RandomTar;
use crate::support::tree::Tree;

/// Number of trees that are compared. Each has some sixty files.
const TREES: u64 = 4;
const READS: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn random_trees_are_the_same_mounted_and_unpacked() {
    let node = Node::start(&[ON_DEMAND]).await;
    for seed in 0..TREES {
        let (tar, files) = RandomTar::new(seed).build();
        let layer = Layer::of_tar(&tar);
        let mounted = node.mount(&format!("tree{seed}"), &layer).await;
        let place = Place::with(&[]).unwrap();
        let unpacked = place.dir("unpacked");
        let archive = place.write("layer.tar", &tar);
        place.run(&format!(
            "tar --delay-directory-restore --xattrs --xattrs-include=* --same-owner --numeric-owner -xpf {} -C {}",
            archive.display(),
            unpacked.display()
        ));
        let (unpacked, lazy) = (
            Tree::read(&unpacked, i64::MAX),
            Tree::read(&mounted, i64::MAX),
        );
        unpacked.assert_same(&lazy, &format!("seed {seed}: tar, then the mount"));

        let mut random = Random::new(seed);
        for _ in 0..READS {
            let below = |random: &mut Random, end: usize| {
                usize::try_from(random.below(end as u64)).unwrap()
            };
            let (name, content) = files.iter().nth(below(&mut random, files.len())).unwrap();
            let offset = below(&mut random, content.len() + 10);
            let length = below(&mut random, 2 * CHUNK);
            let expected =
                &content[offset.min(content.len())..(offset + length).min(content.len())];
            let mut read = vec![0; length];
            let file = File::open(mounted.join(name)).unwrap();
            let got = read_fully(&file, &mut read, offset as u64);
            assert!(read[..got] == *expected, "{name} at {offset}");
        }
    }
}

fn read_fully(file: &File, buffer: &mut [u8], offset: u64) -> usize {
    let mut got = 0;
    while got < buffer.len() {
        match file
            .read_at(&mut buffer[got..], offset + got as u64)
            .unwrap()
        {
            0 => break,
            more => got += more,
        }
    }
    got
}
