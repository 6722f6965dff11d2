//! Images made to exhaust the predictor. Their predictions end, are the same each time and cost
//! little.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::fuel::Fuel;
use super::tests::{Layer, Node, image, layer, programs, reader, text};
use super::{Prediction, predict_with};

/// A bound on the bytes created: a normal script stays far below it, a doubled variable would
/// exceed it by far.
const LITTLE: u64 = 32 << 20;

/// An executable that consists of its header only: enough to be recognised.
fn executable() -> Node {
    Node::File(Elf::default().bytes())
}

/// A made-up 64-bit ELF file.
#[derive(Default)]
struct Elf {
    needed: usize,
    rpath: String,
    /// The count in the header, instead of the real one.
    claimed_headers: Option<u16>,
    claimed_strings: Option<u64>,
}

impl Elf {
    fn bytes(&self) -> Vec<u8> {
        const HEADER: u64 = 64;
        const SEGMENTS: u64 = 3;
        let strings_at = HEADER + SEGMENTS * 56;
        let mut strings = b"\0/lib/ld.so\0".to_vec();
        let rpath = strings.len() as u64;
        strings.extend(self.rpath.as_bytes());
        strings.push(0);
        let mut dynamic: Vec<(u64, u64)> = Vec::new();
        for number in 0..self.needed {
            dynamic.push((1, strings.len() as u64));
            strings.extend(format!("lib{number}.so\0").as_bytes());
        }
        dynamic.push((15, rpath));
        dynamic.push((5, strings_at));
        dynamic.push((10, self.claimed_strings.unwrap_or(strings.len() as u64)));
        dynamic.push((0, 0));
        let dynamic_at = strings_at + strings.len() as u64;
        let dynamic: Vec<u8> = dynamic
            .iter()
            .flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()])
            .flatten()
            .collect();
        let end = dynamic_at + dynamic.len() as u64;
        let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        bytes.extend([2_u16, 62].map(u16::to_le_bytes).concat());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend([0, HEADER, 0].map(u64::to_le_bytes).concat());
        bytes.extend(0_u32.to_le_bytes());
        let headers = self.claimed_headers.unwrap_or(3);
        bytes.extend([64, 56, headers, 64, 0, 0].map(u16::to_le_bytes).concat());
        for (kind, offset, size) in [
            (1_u32, 0, end),
            (3, strings_at + 1, 11),
            (2, dynamic_at, dynamic.len() as u64),
        ] {
            bytes.extend([kind, 4].map(u32::to_le_bytes).concat());
            bytes.extend(
                [offset, offset, offset, size, size, 8]
                    .map(u64::to_le_bytes)
                    .concat(),
            );
        }
        bytes.extend(strings);
        bytes.extend(dynamic);
        bytes
    }
}

/// Predicts an image with this fuel, twice, and asserts that both runs are equal. Returns the
/// prediction, the steps and the bytes that it took.
fn predict_twice(
    new: fn() -> Fuel,
    layer: &Layer,
    configuration: &Value,
) -> (Prediction, u64, u64) {
    let (task, blobs) = image(&[Some(layer.clone())], configuration);
    let run = || {
        let fuel = new();
        let before = fuel.left();
        let prediction = predict_with(&task, reader(&blobs), &fuel).unwrap();
        let after = fuel.left();
        (prediction, before.0 - after.0, before.1 - after.1)
    };
    let first = run();
    assert_eq!(
        first,
        run(),
        "the same image, the same answer at the same cost"
    );
    assert!(
        first.0.ended.is_none_or(|end| end.is_the_same_everywhere()),
        "{:?}",
        first.0.ended
    );
    first
}

/// Predicts with little fuel, so that a hostile image ends sooner.
fn predict_with_little(layer: &Layer, configuration: &Value) -> (Prediction, u64, u64) {
    predict_twice(Fuel::small, layer, configuration)
}

fn run(command: &str) -> Value {
    json!({"config": {"Entrypoint": command.split(' ').collect::<Vec<_>>()}})
}

fn with_shell(files: &[(&str, String)]) -> Layer {
    let mut all = layer(&[("bin/sh", executable()), ("bin/app", executable())]);
    all.extend(
        files
            .iter()
            .map(|(path, content)| ((*path).to_owned(), text(content))),
    );
    all
}

fn paths(prediction: &Prediction) -> Vec<&str> {
    prediction
        .files
        .iter()
        .map(|file| file.path.as_str())
        .collect()
}

#[test]
fn a_script_that_doubles_anything_costs_little_and_its_programs_are_still_named() {
    for line in [
        "A=$A$A",
        "export A=$A$A",
        "A=\"$A $A\" B=$A$A",
        "A=${A:-$A$A}$A$A",
        "A=${A//x/$A}$A$A",
        "A=$A$A /bin/none $A $A",
        "set -- -x \"$@\" \"$@\"",
        "set -- -x $A $A; A=\"$2$3\"",
        "f() { A=$A$A; f; f; }; f",
        "for i in $A $A; do A=$A$A$i; done",
        "eval A=$A$A; eval $A $A",
        "cat <<E\n$A$A\nE\nA=$A$A",
        "A=`echo $A$A`; A=$(echo $A$A); B=$B$B",
    ] {
        let script = format!(
            "#!/bin/sh\nA=xxxxxxxx\nB=y\n{}",
            format!("{line}\n").repeat(60)
        );
        let files = with_shell(&[("entry", format!("{script}exec app \"$@\"\n"))]);
        let (prediction, _, made) = predict_with_little(&files, &run("/entry -x"));
        assert!(made < LITTLE, "{line}: {made} bytes");
        assert_eq!(
            (paths(&prediction), prediction.ended),
            (vec!["entry", "bin/sh", "bin/app"], None),
            "{line}"
        );
    }
}

#[test]
fn scripts_that_start_each_other_with_ever_more_words_end() {
    let grow = "exec /b \"$@\" \"$@\"\n. /b\n/b $0 $@\n".to_owned();
    let all: Vec<(String, String)> = (0..60)
        .map(|number| {
            (
                format!("s{number}"),
                (0..60)
                    .map(|other| format!("/s{other} {number} $@\n"))
                    .collect(),
            )
        })
        .collect();
    let mut files = with_shell(&[("a", grow.replace("/b", "/a")), ("b", grow.clone())]);
    files.extend(
        all.iter()
            .map(|(path, content)| (path.clone(), text(content))),
    );
    for command in ["/a x", "/b x", "/s0 x"] {
        let (prediction, _, made) = predict_with_little(&files, &run(command));
        assert!(made <= 2 * LITTLE, "{command}: {made}");
        assert!(paths(&prediction).contains(&"bin/sh"), "{command}");
    }
}

#[test]
fn configurations_that_include_each_other_are_read_once() {
    let mut files = layer(&[(
        "bin/app",
        Node::File(
            Elf {
                needed: 1,
                ..Elf::default()
            }
            .bytes(),
        ),
    )]);
    files.insert(
        "etc/ld.so.conf".to_owned(),
        text(&"include /etc/d/*.conf\n".repeat(60)),
    );
    files.insert("usr/sbin/nginx".to_owned(), executable());
    files.insert(
        "etc/nginx/nginx.conf".to_owned(),
        text(&"include d/*.conf;\n".repeat(60)),
    );
    for number in 0..50 {
        files.insert(
            format!("etc/d/{number}.conf"),
            text(&"include /etc/d/*.conf\n".repeat(60)),
        );
        files.insert(
            format!("etc/nginx/d/{number}.conf"),
            text(&"include d/*.conf;\n".repeat(60)),
        );
    }
    let (libraries, _, _) = predict_twice(Fuel::unhurried, &files, &run("/bin/app"));
    assert_eq!(
        (paths(&libraries), libraries.ended),
        (vec!["bin/app"], None)
    );
    let (server, _, _) = predict_twice(Fuel::unhurried, &files, &run("nginx"));
    assert_eq!(paths(&server).len(), 2 + 50);
}

#[test]
fn thousands_of_links_and_directories_are_charged() {
    let mut files = with_shell(&[]);
    for number in 0..5000 {
        files.insert(
            format!("l/{number}"),
            Node::Symlink(format!("/l/{}", number + 1)),
        );
    }
    files.insert("l/5000".to_owned(), Node::Symlink("/bin".to_owned()));
    assert_eq!(
        paths(&predict_with_little(&files, &run("/l/4990/app")).0),
        ["bin/app"]
    );
    assert_eq!(
        paths(&predict_with_little(&files, &run("/l/0/app")).0),
        [""; 0]
    );
    let many = (0..100_000)
        .map(|number| format!("/l/{}", number % 5000))
        .collect::<Vec<_>>()
        .join(":");
    for variable in ["PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "CLASSPATH"] {
        let environment = [format!("{variable}={many}")];
        let configuration = json!({"config": {"Entrypoint": ["nothing"], "Env": environment}});
        let (prediction, _, _) = predict_with_little(&files, &configuration);
        assert_eq!(paths(&prediction), [""; 0], "{variable}");
    }
    let elf = Elf {
        needed: 4000,
        ..Elf::default()
    };
    files.insert("bin/app".to_owned(), Node::File(elf.bytes()));
    let configuration =
        json!({"config": {"Entrypoint": ["app"], "Env": [format!("LD_LIBRARY_PATH={many}")]}});
    let (prediction, _, _) = predict_with_little(&files, &configuration);
    assert_eq!(prediction.ended, Some(super::End::Steps));
    assert_eq!(
        paths(&prediction),
        ["bin/app"],
        "the files named before the end"
    );
}

#[test]
fn executables_with_huge_tables_are_rejected_or_charged() {
    let long = "$ORIGIN:".repeat(500);
    for elf in [
        Elf {
            needed: 4000,
            rpath: long.clone(),
            ..Elf::default()
        },
        Elf {
            claimed_headers: Some(u16::MAX),
            ..Elf::default()
        },
        Elf {
            needed: 10,
            claimed_strings: Some(u64::MAX),
            ..Elf::default()
        },
        Elf {
            needed: 10,
            claimed_strings: Some(16 << 20),
            ..Elf::default()
        },
        Elf {
            rpath: "$ORIGIN".repeat(100_000),
            needed: 4000,
            ..Elf::default()
        },
    ] {
        let mut files = layer(&[("bin/app", Node::File(elf.bytes()))]);
        for number in 0..200 {
            let library = Elf {
                needed: 400,
                rpath: long.clone(),
                ..Elf::default()
            };
            files.insert(format!("bin/lib{number}.so"), Node::File(library.bytes()));
        }
        assert!(paths(&predict_with_little(&files, &run("/bin/app")).0).contains(&"bin/app"));
    }
}

#[test]
fn giant_lines_do_not_stop_a_prediction() {
    for piece in [
        "a", "a ", "$a", "\"", "'", "(", "`", "$(", "${", "<<a ", "if ", "A=1 ", "\\", "#", ";a",
        "a|",
    ] {
        let giant = piece.repeat((1 << 20) / piece.len() - 8);
        let files = with_shell(&[("entry", giant)]);
        let (prediction, _, _) = predict_with_little(&files, &run("/entry"));
        assert!(paths(&prediction).starts_with(&["entry"]), "{piece}");
    }
}

/// Debian's layout of Python, with these modules.
fn with_python(modules: &[(&str, Node)]) -> Layer {
    let mut files = layer(&[
        ("usr/bin/python3.11", executable()),
        ("usr/lib/python3.11/os.py", text("")),
    ]);
    files.extend(
        modules
            .iter()
            .map(|(path, node)| (format!("usr/lib/python3.11/{path}"), node.clone())),
    );
    files
}

#[test]
fn endless_python_packages_end() {
    let forever = with_python(&[
        (
            "a/__init__.py",
            text("from . import a\nfrom .a import a\nfrom .a.a import a\n"),
        ),
        ("a/a", Node::Symlink(".".to_owned())),
    ]);
    let many = format!("from a import {}\n", vec!["b"; 250].join(",")).repeat(2000);
    let wide = with_python(&[("a/__init__.py", text(&many)), ("a/b.py", text(&many))]);
    let deep = vec!["a"; 40_000].join(".");
    for files in [&forever, &wide] {
        for command in [
            "import a".to_owned(),
            format!("import {deep}"),
            "import a; ".repeat(50_000),
        ] {
            let configuration = json!({"config": {"Entrypoint": ["python3.11", "-c", command]}});
            let (prediction, _, _) = predict_with_little(files, &configuration);
            assert!(
                paths(&prediction).contains(&"usr/bin/python3.11"),
                "{prediction:?}"
            );
        }
        for arguments in [
            vec!["-m".to_owned(), deep.clone()],
            vec!["x.py".to_owned(), format!("{deep}:app")],
        ] {
            let argv: Vec<_> = std::iter::once("python3.11".to_owned())
                .chain(arguments)
                .collect();
            predict_with_little(files, &json!({"config": {"Entrypoint": argv}}));
        }
    }
}

#[test]
fn node_packages_that_multiply_names_end() {
    let stars = "*".repeat(500_000);
    let name = "x".repeat(250);
    let wide: BTreeMap<String, String> = (0..20_000)
        .map(|number| (format!("./{number}*"), "./x".to_owned()))
        .collect();
    let requires: String = (0..1000)
        .map(|number| format!("require('m/{number}{name}')\nrequire('w/{number}')\n"))
        .collect();
    let files = layer(&[
        ("bin/node", executable()),
        ("app.js", text(&requires)),
        (
            "node_modules/m/package.json",
            text(&json!({"exports": {"./*": format!("./{stars}")}}).to_string()),
        ),
        (
            "node_modules/w/package.json",
            text(&json!({"exports": wide}).to_string()),
        ),
    ]);
    let (prediction, _, _) = predict_with_little(&files, &run("node /app.js"));
    assert!(
        paths(&prediction).starts_with(&["bin/node", "app.js"]),
        "{prediction:?}"
    );
}

#[test]
fn an_innocent_image_takes_a_small_part_of_the_fuel() {
    let files = programs(&["/bin/sh", "/usr/bin/env"]);
    let (prediction, steps, made) = predict_twice(Fuel::unhurried, &files, &run("/bin/sh -c env"));
    assert_eq!(prediction.ended, None);
    assert!(steps < 500_000 && made < 4 << 20, "{steps} {made}");
}

/// Adds the Python sources and libraries below a directory of this machine.
fn add_sources(files: &mut Layer, directory: &std::path::Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            add_sources(files, &path);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "py" || extension == "so")
        {
            let Ok(content) = std::fs::read(&path) else {
                continue;
            };
            files.insert(
                path.to_str().unwrap().trim_start_matches('/').to_owned(),
                Node::File(content),
            );
        }
    }
}

#[test]
fn a_large_python_program_takes_less_than_half_of_the_fuel() {
    let Ok(python) = std::fs::canonicalize("/usr/bin/python3") else {
        return;
    };
    let mut files = programs(&[python.to_str().unwrap()]);
    add_sources(
        &mut files,
        &std::path::Path::new("/usr/lib").join(python.file_name().unwrap()),
    );
    let modules = "asyncio, concurrent.futures, ctypes, curses, dbm, email.mime.text, encodings, http.server, json, \
                   logging.handlers, multiprocessing, sqlite3, ssl, tkinter, unittest, urllib.request, xmlrpc.server";
    let argv = [python.to_str().unwrap(), "-c", &format!("import {modules}")];
    let (prediction, steps, made) = predict_twice(
        Fuel::unhurried,
        &files,
        &json!({"config": {"Entrypoint": argv}}),
    );
    assert_eq!(prediction.ended, None);
    assert!(
        prediction.files.len() > 150,
        "{} files",
        prediction.files.len()
    );
    assert!(
        steps < 12_000_000 && made < 64 << 20,
        "{} files, {steps} steps, {made} bytes",
        prediction.files.len()
    );
}

/// Random scripts, sources and configurations, made of typical pieces.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-c$(){}`'\"\\\\<>|;& \n#=@*:./-]{1,20}",
        Just("A=$A$A\n".to_owned()),
        Just("set -- -x \"$@\" \"$@\"\n".to_owned()),
        Just(". /t0\n/t1 $A \"$@\"\nexec /t2 $@\n".to_owned()),
        Just("include /t*\n/lib\n/\n".to_owned()),
        Just(
            "import t0, t1\nfrom . import *\ntry:\n  import t2\nexcept ImportError:\n  import t3\n"
                .to_owned()
        ),
        Just("#!/t1\n".to_owned()),
        Just("include t*; load_module t1; root /;\n".to_owned()),
        Just("require('./t1'); import '/t2'\n".to_owned()),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn any_image_ends_the_same_way_twice(
        texts in proptest::collection::vec(any_text(), 4),
        changes in proptest::collection::vec((0usize..400, any::<u8>()), 0..12),
        needed in 0usize..300,
        start in 0usize..6,
    ) {
        let mut elf = Elf { needed, rpath: "$ORIGIN/..:/t:".repeat(8), ..Elf::default() }.bytes();
        for (at, byte) in changes {
            if let Some(place) = elf.get_mut(at) {
                *place = byte;
            }
        }
        let mut files = layer(&[("bin/sh", executable()), ("lib0.so", Node::File(elf.clone())), ("usr/bin/python3.11", executable())]);
        for (path, number) in [("t0", 0), ("t1", 1), ("t2", 2), ("t3", 3), ("etc/ld.so.conf", 0), ("etc/nginx/nginx.conf", 1)] {
            files.insert(path.to_owned(), text(&texts[number]));
        }
        for (path, number) in [("os.py", 3), ("t0.py", 0), ("t1/__init__.py", 1), ("t2.py", 2)] {
            files.insert(format!("usr/lib/python3.11/{path}"), text(&texts[number]));
        }
        for path in ["usr/sbin/nginx", "bin/node", "bin/app"] {
            files.insert(path.to_owned(), Node::File(elf.clone()));
        }
        let command = ["/t0 x", "/bin/app", "nginx", "node /t1", "python3.11 /t2", "env A=b sh /t3 x"][start];
        let (task, blobs) = image(&[Some(files)], &run(command));
        let run = || {
            let fuel = Fuel::small();
            let prediction = predict_with(&task, reader(&blobs), &fuel).unwrap();
            (prediction, fuel.left())
        };
        let first = run();
        prop_assert!(first.0.ended.is_none_or(|end| end.is_the_same_everywhere()), "{:?}", first.0.ended);
        prop_assert_eq!(first, run());
    }
}
