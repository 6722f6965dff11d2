//! The tree that entries describe.

use estargz::toc::{Kind, Time};

use crate::support::{PAYLOAD, entries, file};

#[test]
fn directories_without_an_entry_are_implied() {
    let toc = entries(&[&file("./usr/lib/libc.so", 10)]).unwrap();
    let usr = toc.lookup("/usr").unwrap();
    assert_eq!(
        (usr.kind(), usr.mode(), usr.uid(), usr.links()),
        (Kind::Directory, 0o755, 0, 3)
    );
    let paths: Vec<String> = toc
        .entries()
        .map(|entry| String::from_utf8(entry.path).unwrap())
        .collect();
    assert_eq!(paths, ["usr", "usr/lib", "usr/lib/libc.so"]);
}

#[test]
fn the_entry_of_an_implied_directory_keeps_its_children() {
    let toc = entries(&[
        &file("a/b", 10),
        r#"{"name":"a/","type":"dir","mode":448,"uid":7}"#,
    ])
    .unwrap();
    let directory = toc.lookup("a").unwrap();
    assert_eq!((directory.mode(), directory.uid()), (0o700, 7));
    assert!(directory.child(b"b").is_some());
}

#[test]
fn the_root_has_an_entry_too() {
    let toc =
        entries(&[r#"{"name":"./","type":"dir","mode":448,"modtime":"2020-09-13T12:26:40Z"}"#])
            .unwrap();
    assert_eq!(toc.root().mode(), 0o700);
    assert_eq!(
        toc.root().modified(),
        Time {
            seconds: 1_600_000_000,
            nanoseconds: 0
        }
    );
    assert!(toc.is_empty());
}

#[test]
fn a_later_entry_wins_and_a_file_removes_the_entries_of_a_directory() {
    let toc = entries(&[
        &file("a/b", 10),
        r#"{"name":"a","type":"symlink","linkName":"x"}"#,
        r#"{"name":"a","type":"dir"}"#,
        &file("a/c", 20),
    ])
    .unwrap();
    assert!(toc.lookup("a/b").is_none());
    assert_eq!(
        toc.lookup("a/c").unwrap().chunks().next().unwrap().range,
        20..PAYLOAD
    );
}

#[test]
fn a_hard_link_shares_the_file_that_had_the_name_before_it() {
    let toc = entries(&[
        &file("old", 10),
        r#"{"name":"link","type":"hardlink","linkName":"./old"}"#,
        &file("old", 20),
        r#"{"name":"early","type":"hardlink","linkName":"late"}"#,
        &file("late", 30),
        r#"{"name":"lost","type":"hardlink","linkName":"nowhere"}"#,
    ])
    .unwrap();
    assert_eq!(
        toc.lookup("link")
            .unwrap()
            .chunks()
            .next()
            .unwrap()
            .range
            .start,
        10
    );
    assert_eq!(toc.lookup("old").unwrap().links(), 1);
    assert_eq!(
        toc.lookup("early").unwrap().id(),
        toc.lookup("late").unwrap().id()
    );
    let lost = toc.lookup("lost").unwrap();
    assert_eq!(
        (lost.kind(), lost.target()),
        (Kind::DanglingLink, &b"nowhere"[..])
    );
}

#[test]
fn a_hard_link_to_a_directory_dangles() {
    let toc = entries(&[
        r#"{"name":"d","type":"dir"}"#,
        r#"{"name":"l","type":"hardlink","linkName":"d"}"#,
    ])
    .unwrap();
    assert_eq!(toc.lookup("l").unwrap().kind(), Kind::DanglingLink);
}

#[test]
fn owners_carry_their_names_forward() {
    let toc = entries(&[
        r#"{"name":"a","type":"fifo","uid":5,"gid":6,"userName":"games","groupName":"man"}"#,
        r#"{"name":"b","type":"fifo","uid":5,"gid":6}"#,
        r#"{"name":"c","type":"fifo","uid":6,"gid":5}"#,
    ])
    .unwrap();
    let owner = |name: &str| toc.lookup(name).map(|node| (node.user(), node.group()));
    assert_eq!(owner("b"), Some(("games", "man")));
    assert_eq!(owner("c"), Some(("", "")));
}

#[test]
fn names_that_are_not_utf8_are_exact() {
    let toc = entries(&[
        r#"{"name":"\ufffd","type":"symlink","linkName":"\ufffd","rawName":"/w==","rawLinkName":"/g=="}"#,
    ]);
    let toc = toc.unwrap();
    assert_eq!(toc.lookup(b"\xff").unwrap().target(), b"\xfe");
    assert!(entries(&[r#"{"name":"a","type":"fifo","rawName":"!"}"#]).is_err());
}

#[test]
fn a_chunk_ends_where_the_next_content_begins() {
    let toc = entries(&[
        &file("b", 500),
        &file("a", 100),
        r#"{"name":"empty","type":"reg","offset":300}"#,
    ])
    .unwrap();
    let range = |name: &str| {
        toc.lookup(name)
            .unwrap()
            .chunk_at(0)
            .map(|chunk| chunk.range)
    };
    assert_eq!(range("a"), Some(100..500));
    assert_eq!(range("b"), Some(500..PAYLOAD));
    assert_eq!(range("empty"), None);
    assert!(toc.lookup("a").unwrap().chunk_at(5).is_none());
}

#[test]
fn holes_of_containers_storage_are_read() {
    let digest = format!("sha256:{}", "1".repeat(64));
    let toc = entries(&[
        r#"{"name":"s","type":"reg","size":10,"chunkSize":6,"chunkType":"zeros"}"#,
        &format!(r#"{{"name":"s","type":"chunk","chunkOffset":6,"chunkSize":4,"offset":70,"endOffset":90,"chunkDigest":"{digest}"}}"#),
    ])
    .unwrap();
    let chunks: Vec<_> = toc.lookup("s").unwrap().chunks().collect();
    assert_eq!(chunks[0].decode(b"").unwrap(), [0; 6]);
    assert_eq!(chunks[1].range, 70..90);
}

#[test]
fn attributes_that_few_nodes_have_stay_with_their_node() {
    let label = r#""xattrs":{"security.label":"bGFiZWw="}"#;
    let toc = entries(&[
        r#"{"name":"past","type":"fifo","modtime":"1960-01-01T00:00:00Z"}"#,
        &format!(r#"{{"name":"exact","type":"dir","modtime":"2020-09-13T12:26:40.25Z",{label}}}"#),
        r#"{"name":"plain","type":"fifo","modtime":"2020-09-13T12:26:40Z","uid":7,"userName":"seven"}"#,
        &format!(r#"{{"name":"far","type":"symlink","modtime":"2200-01-01T00:00:00Z","linkName":"x/y",{label}}}"#),
        r#"{"name":"disk","type":"block","devMajor":8,"devMinor":70000,"xattrs":{"user.a":"","user.b":"Yg=="}}"#,
        r#"{"name":"file","type":"fifo","devMajor":8,"devMinor":1}"#,
    ])
    .unwrap();
    let node = |name: &str| toc.lookup(name).unwrap();
    let time = |name| {
        (
            node(name).modified().seconds,
            node(name).modified().nanoseconds,
        )
    };
    assert_eq!(
        ["past", "exact", "plain", "far", "disk"].map(time),
        [
            (-315_619_200, 0),
            (1_600_000_000, 250_000_000),
            (1_600_000_000, 0),
            (7_258_118_400, 0),
            (0, 0)
        ]
    );
    let xattrs = |name| node(name).xattrs().collect::<Vec<_>>();
    let labels: [(&[u8], &[u8]); 1] = [(b"security.label", b"label")];
    assert_eq!(
        (xattrs("exact"), xattrs("far")),
        (labels.into(), labels.into())
    );
    let two: [(&[u8], &[u8]); 2] = [(b"user.a", b""), (b"user.b", b"b")];
    assert_eq!(xattrs("disk"), two);
    assert!(xattrs("plain").is_empty() && xattrs("past").is_empty());
    assert_eq!((node("plain").uid(), node("plain").user()), (7, "seven"));
    assert_eq!((node("far").uid(), node("far").user()), (0, ""));
    assert_eq!(
        (node("far").target(), node("disk").target()),
        (&b"x/y"[..], &b""[..])
    );
    assert_eq!(
        (node("disk").device(), node("file").device()),
        ((8, 70_000), (0, 0))
    );
    assert_eq!(toc.root().links(), 3);
}
