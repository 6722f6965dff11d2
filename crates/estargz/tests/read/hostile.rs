//! Hostile input is a typed error, or harmless.

use estargz::digest::Digest;
use estargz::footer::{self, Footer};
use estargz::toc::{Kind, Limits, Toc, TocError, UnverifiedToc};

use crate::support::{PAYLOAD, entries, file, footer_for, gzip, parse, section_of, tar_of};

const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

#[test]
fn a_null_entry_is_an_error() {
    assert!(matches!(entries(&["null"]), Err(TocError::Json(_))));
}

#[test]
fn hard_links_in_a_circle_dangle() {
    let toc = entries(&[
        r#"{"name":"a","type":"hardlink","linkName":"b"}"#,
        r#"{"name":"b","type":"hardlink","linkName":"c"}"#,
        r#"{"name":"c","type":"hardlink","linkName":"a"}"#,
        r#"{"name":"self","type":"hardlink","linkName":"self"}"#,
        r#"{"name":"tail","type":"hardlink","linkName":"a"}"#,
    ])
    .unwrap();
    for name in ["a", "b", "c", "self", "tail"] {
        assert_eq!(
            toc.lookup(name).unwrap().kind(),
            Kind::DanglingLink,
            "{name}"
        );
    }
}

#[test]
fn a_huge_size_with_chunks_of_one_byte_is_an_error() {
    let object = format!(
        r#"{{"name":"a","type":"reg","size":9223372036854775807,"chunkSize":1,"offset":5,"chunkDigest":"{DIGEST}"}}"#
    );
    assert!(matches!(
        entries(&[&object]),
        Err(TocError::Incomplete { .. })
    ));
}

#[test]
fn a_huge_chunk_is_over_the_limit() {
    let object = format!(
        r#"{{"name":"a","type":"reg","size":9223372036854775807,"offset":5,"chunkDigest":"{DIGEST}"}}"#
    );
    assert!(matches!(
        entries(&[&object]),
        Err(TocError::Limit {
            what: "bytes in a chunk",
            ..
        })
    ));
}

/// The TOC of `objects` in a blob with 2^40 bytes of payload.
fn in_a_long_blob(objects: &[&str]) -> Result<Toc, TocError> {
    let payload = 1_u64 << 40;
    let section = section_of(&format!(
        r#"{{"version":1,"entries":[{}]}}"#,
        objects.join(",")
    ));
    let tail = [vec![0; 21].as_slice(), &footer::gzip(payload)].concat();
    let footer = Footer::parse(&tail, payload + section.len() as u64 + 51).unwrap();
    let unverified = UnverifiedToc::parse(&section, &footer, &Limits::default())?;
    let digest = unverified.digest();
    unverified.verify(&digest)
}

#[test]
fn a_chunk_takes_no_more_of_the_blob_than_its_size_can_need() {
    let reaching =
        format!(r#"{{"name":"a","type":"reg","size":4096,"offset":0,"chunkDigest":"{DIGEST}"}}"#);
    let with_end = format!(
        r#"{{"name":"b","type":"reg","size":1,"offset":5,"endOffset":1000000000,"innerOffset":800,"chunkDigest":"{DIGEST}"}}"#
    );
    let toc = in_a_long_blob(&[&with_end]).unwrap();
    assert_eq!(toc.chunk(0).unwrap().range, 5..5 + 801 + 100 + (64 << 10));
    let toc = in_a_long_blob(&[&reaching]).unwrap();
    assert_eq!(toc.chunk(0).unwrap().range, 0..4096 + 512 + (64 << 10));
    assert_eq!(
        toc.chunk(0).unwrap().decoding_bytes(),
        2 * 4096 + 512 + (64 << 10)
    );
}

#[test]
fn chunks_of_more_than_32_mib_are_over_the_limit() {
    let chunk = |size: u64, inner: u64| {
        format!(
            r#"{{"name":"a","type":"reg","size":{size},"offset":5,"innerOffset":{inner},"chunkDigest":"{DIGEST}"}}"#
        )
    };
    assert!(in_a_long_blob(&[&chunk(32 << 20, 32 << 20)]).is_ok());
    for (size, inner) in [
        ((32 << 20) + 1, 0),
        (1, (32 << 20) + 1),
        (1 << 30, 0),
        (u64::MAX, u64::MAX),
    ] {
        let outcome = in_a_long_blob(&[&chunk(size, inner)]);
        assert!(
            matches!(
                outcome,
                Err(TocError::Limit {
                    what: "bytes in a chunk",
                    ..
                })
            ),
            "{size} {inner}"
        );
    }
}

#[test]
fn attributes_and_owners_without_number_are_over_the_limit() {
    let many: Vec<String> = (0..9000)
        .map(|number| format!(r#""user.{number}":null"#))
        .collect();
    let object = format!(
        r#"{{"name":"a","type":"dir","xattrs":{{{}}}}}"#,
        many.join(",")
    );
    assert!(matches!(entries(&[&object]), Err(TocError::Json(_))));
    let limits = Limits::default().with_max_xattrs(1).with_max_owners(2);
    let json =
        r#"{"version":1,"entries":[{"name":"a","type":"dir","xattrs":{"user.a":"","user.b":""}}]}"#;
    assert!(matches!(
        parse(json, &limits),
        Err(TocError::Limit {
            what: "extended attributes",
            limit: 1
        })
    ));
    let json = r#"{"version":1,"entries":[{"name":"a","type":"dir","userName":"x"},{"name":"b","type":"dir","groupName":"y"}]}"#;
    assert!(matches!(
        parse(json, &limits),
        Err(TocError::Limit {
            what: "names of owners",
            limit: 2
        })
    ));
}

#[test]
fn the_json_size_of_a_section_is_known_before_it_is_inflated() {
    let json = r#"{"version":1,"entries":[]}"#;
    let section = section_of(json);
    let bytes =
        UnverifiedToc::json_bytes(&section, &footer_for(&section), &Limits::default()).unwrap();
    assert_eq!(bytes, json.len() as u64);
    let limits = Limits::default().with_max_json_bytes(bytes - 1);
    let error = UnverifiedToc::json_bytes(&section, &footer_for(&section), &limits).unwrap_err();
    assert!(matches!(
        error,
        TocError::Limit {
            what: "bytes of JSON",
            ..
        }
    ));
}

#[test]
fn a_zstd_section_larger_than_in_its_footer_is_an_error() {
    let json = br#"{"version":1,"entries":[]}"#;
    let section = zstd::encode_all(&json[..], 3).unwrap();
    let footer = |raw: u64| {
        let payload = footer::zstd_chunked(PAYLOAD + 8, section.len() as u64, raw);
        let frame = [&[0x50, 0x2a, 0x4d, 0x18, 40, 0, 0, 0][..], &payload].concat();
        let tail = [&[0; 24], &frame[..]].concat();
        Footer::parse(&tail, PAYLOAD + 8 + section.len() as u64 + 48).unwrap()
    };
    let size = json.len() as u64;
    assert!(UnverifiedToc::parse(&section, &footer(size), &Limits::default()).is_ok());
    let outcome = UnverifiedToc::parse(&section, &footer(size - 1), &Limits::default());
    assert!(matches!(outcome, Err(TocError::WrongRange { .. })));
    let outcome = UnverifiedToc::parse(&section, &footer(u64::MAX), &Limits::default());
    assert!(matches!(
        outcome,
        Err(TocError::Limit {
            what: "bytes of JSON",
            ..
        })
    ));
}

#[test]
fn numbers_that_are_negative_or_too_large_are_errors() {
    for size in ["-1", "18446744073709551616", "1.5", "\"5\""] {
        let object = format!(r#"{{"name":"a","type":"reg","size":{size}}}"#);
        assert!(
            matches!(entries(&[&object]), Err(TocError::Json(_))),
            "{size}"
        );
    }
}

#[test]
fn chunks_that_do_not_follow_each_other_are_errors() {
    let first = format!(
        r#"{{"name":"a","type":"reg","size":9,"chunkSize":4,"offset":5,"chunkDigest":"{DIGEST}"}}"#
    );
    let chunk = |offset: u64, size: u64| {
        format!(
            r#"{{"name":"a","type":"chunk","chunkOffset":{offset},"chunkSize":{size},"offset":50,"chunkDigest":"{DIGEST}"}}"#
        )
    };
    assert!(entries(&[&first, &chunk(4, 5)]).is_ok());
    assert!(entries(&[&first, &chunk(4, 0)]).is_ok());
    assert!(matches!(
        entries(&[&first, &chunk(3, 5)]),
        Err(TocError::NotContiguous {
            got: 3,
            expected: 4,
            ..
        })
    ));
    assert!(matches!(
        entries(&[&first, &chunk(4, 6)]),
        Err(TocError::BeyondFile { .. })
    ));
    assert!(matches!(
        entries(&[&first, &chunk(4, 4)]),
        Err(TocError::Incomplete { .. })
    ));
    assert!(matches!(
        entries(&[&first, &chunk(4, 0), &chunk(9, 0)]),
        Err(TocError::StrayChunk { .. })
    ));
    assert!(matches!(
        entries(&[&chunk(0, 1)]),
        Err(TocError::StrayChunk { .. })
    ));
    let directory = r#"{"name":"d","type":"dir"}"#;
    assert!(matches!(
        entries(&[&first, directory, &chunk(4, 0)]),
        Err(TocError::Incomplete { .. })
    ));
}

#[test]
fn an_offset_outside_the_payload_is_an_error() {
    assert!(entries(&[&file("a", PAYLOAD - 1)]).is_ok());
    assert!(matches!(
        entries(&[&file("a", PAYLOAD)]),
        Err(TocError::OutsideBlob { .. })
    ));
    assert!(matches!(
        entries(&[&file("a", u64::MAX)]),
        Err(TocError::OutsideBlob { .. })
    ));
}

#[test]
fn content_without_a_digest_is_an_error() {
    let object = r#"{"name":"a","type":"reg","size":5,"offset":5}"#;
    assert!(matches!(entries(&[object]), Err(TocError::NoDigest { .. })));
    let object = r#"{"name":"a","type":"reg","size":5,"offset":5,"chunkDigest":"md5:00"}"#;
    assert!(matches!(entries(&[object]), Err(TocError::NoDigest { .. })));
}

#[test]
fn names_below_a_file_are_an_error() {
    let error = entries(&[
        r#"{"name":"a","type":"symlink","linkName":"/etc"}"#,
        r#"{"name":"a/passwd","type":"reg"}"#,
    ]);
    assert!(matches!(error, Err(TocError::NotADirectory { path }) if path == "a"));
}

#[test]
fn names_cannot_leave_the_root() {
    let toc = entries(&[r#"{"name":"../../etc/passwd","type":"reg"}"#]).unwrap();
    assert!(toc.lookup("etc/passwd").is_some());
    assert!(matches!(
        entries(&[r#"{"name":"/","type":"reg"}"#]),
        Err(TocError::Name { .. })
    ));
    assert!(matches!(
        entries(&[r#"{"name":"a\u0000b","type":"reg"}"#]),
        Err(TocError::Name { .. })
    ));
}

#[test]
fn deep_paths_cannot_multiply_into_endless_directories() {
    let limits = Limits::default().with_max_names(100);
    let path = "d/".repeat(101);
    let json = format!(r#"{{"version":1,"entries":[{{"name":"{path}","type":"dir"}}]}}"#);
    assert!(matches!(
        parse(&json, &limits),
        Err(TocError::Limit {
            what: "names",
            limit: 100
        })
    ));
}

#[test]
fn too_many_chunks_are_over_the_limit() {
    let limits = Limits::default().with_max_chunks(1);
    let json = format!(
        r#"{{"version":1,"entries":[{},{}]}}"#,
        file("a", 1),
        file("b", 2)
    );
    assert!(matches!(
        parse(&json, &limits),
        Err(TocError::Limit {
            what: "chunks",
            limit: 1
        })
    ));
}

#[test]
fn a_toc_bomb_stops_at_the_limit() {
    let section = section_of(&" ".repeat(8 << 20));
    let limits = Limits::default().with_max_json_bytes(1 << 20);
    let error = UnverifiedToc::parse(&section, &footer_for(&section), &limits).unwrap_err();
    assert!(matches!(
        error,
        TocError::Limit {
            what: "bytes of JSON",
            ..
        }
    ));
    let limits = Limits::default().with_max_compressed_bytes(10);
    let error = UnverifiedToc::parse(&section, &footer_for(&section), &limits).unwrap_err();
    assert!(matches!(
        error,
        TocError::Limit {
            what: "compressed bytes",
            ..
        }
    ));
}

#[test]
fn a_section_without_a_toc_is_an_error() {
    let limits = Limits::default();
    let parse =
        |section: &[u8]| UnverifiedToc::parse(section, &footer_for(section), &limits).unwrap_err();
    assert!(matches!(parse(b"not gzip"), TocError::Inflate(_)));
    assert!(matches!(parse(&gzip(b"short")), TocError::Inflate(_)));
    assert!(matches!(
        parse(&gzip(&tar_of("other", b"{}"))),
        TocError::NotATocEntry
    ));
    let mut cut = tar_of("stargz.index.json", &[b' '; 3000]);
    cut.truncate(1000);
    assert!(matches!(parse(&gzip(&cut)), TocError::WrongRange { .. }));
    let section = section_of("{}");
    let error = UnverifiedToc::parse(&section[1..], &footer_for(&section), &limits).unwrap_err();
    assert!(matches!(error, TocError::WrongRange { .. }));
}

#[test]
fn a_toc_with_another_digest_is_refused() {
    let section = section_of(r#"{"version":1,"entries":[]}"#);
    let unverified =
        UnverifiedToc::parse(&section, &footer_for(&section), &Limits::default()).unwrap();
    assert!(matches!(
        unverified.verify(&Digest::of(b"other")),
        Err(TocError::Digest { .. })
    ));
}

#[test]
fn json_that_is_not_a_toc_is_an_error() {
    let limits = Limits::default();
    for json in [
        "",
        "[]",
        "null",
        "{\"version\":1,\"entries\":[]} x",
        "{\"version\":1,\"entries\":{}}",
        "{\"version\":1,\"entries\":[],\"entries\":[]}",
    ] {
        assert!(
            matches!(parse(json, &limits), Err(TocError::Json(_))),
            "{json}"
        );
    }
    let nested = format!(r#"{{"version":1,"x":{}"#, "[".repeat(100_000));
    assert!(matches!(parse(&nested, &limits), Err(TocError::Json(_))));
    assert!(matches!(
        parse(r#"{"version":2,"entries":[]}"#, &limits),
        Err(TocError::Version(2))
    ));
    assert!(matches!(parse("{}", &limits), Err(TocError::Version(0))));
    assert!(
        parse(r#"{"version":1,"entries":null}"#, &limits)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn twenty_thousand_duplicates_take_linear_time() {
    let objects: Vec<String> = (0..20_000).map(|_| file("same", 7)).collect();
    let toc = entries(&objects.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    assert_eq!(toc.entries().count(), 1);
}

#[test]
fn a_chain_of_forward_hard_links_takes_linear_time() {
    let mut objects: Vec<String> = (0..20_000)
        .map(|index| {
            format!(
                r#"{{"name":"l{index}","type":"hardlink","linkName":"l{}"}}"#,
                index + 1
            )
        })
        .collect();
    objects.push(file("l20000", 7));
    let toc = entries(&objects.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let node = toc.lookup("l0").unwrap();
    assert_eq!((node.kind(), node.links()), (Kind::File, 20_001));
}
