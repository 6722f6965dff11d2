//! The layers of docs/ARCHITECTURE.md, as a test: who may import whom, that no files go in circles,
//! and how imports are written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::sources::{rust_files, top};

/// The rooms of `src/` and those that each may name beside those that all may.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    (
        "serve",
        &[
            "catalog",
            "learn",
            "convert",
            "store",
            "transport",
            "registry",
            "profile",
            "oci",
        ],
    ),
    ("catalog", &["learn", "tocs", "store", "profile", "oci"]),
    (
        "learn",
        &["predict", "tocs", "layers", "store", "profile", "oci"],
    ),
    ("predict", &["tocs", "layers", "store", "profile", "oci"]),
    (
        "convert",
        &[
            "rewrite",
            "provenance",
            "layers",
            "store",
            "transport",
            "registry",
            "profile",
            "oci",
        ],
    ),
    ("rewrite", &["store", "oci"]),
    (
        "agent",
        &[
            "allocator",
            "containerd",
            "provenance",
            "layers",
            "transport",
            "registry",
            "profile",
            "oci",
        ],
    ),
    (
        "recording",
        &[
            "agent",
            "conversion",
            "convert",
            "inspect",
            "transport",
            "registry",
            "oci",
        ],
    ),
    (
        "conversion",
        &[
            "convert",
            "inspect",
            "provenance",
            "layers",
            "store",
            "transport",
            "profile",
            "oci",
        ],
    ),
    ("api_client", &[]),
    ("pods", &["oci"]),
    (
        "server_doctor",
        &[
            "convert",
            "doctor",
            "provenance",
            "registry",
            "serve",
            "store",
            "transport",
        ],
    ),
    ("doctor", &["agent", "containerd", "registry"]),
    ("install", &["agent", "containerd", "doctor"]),
    (
        "inspect",
        &["provenance", "layers", "transport", "profile", "oci"],
    ),
    ("tocs", &["layers", "store", "oci"]),
    ("containerd", &["transport", "oci"]),
    // The blobs for a destination come from a source or from a store.
    ("transport", &["provenance", "registry", "store", "oci"]),
    ("store", &["profile", "oci"]),
    ("registry", &["oci"]),
    ("profile", &["oci"]),
    ("provenance", &["oci"]),
    ("layers", &["oci"]),
    ("oci", &[]),
    ("allocator", &[]),
    ("aside", &[]),
    ("backoff", &[]),
    ("budget", &[]),
    ("clock", &[]),
    ("failure", &[]),
    ("flight", &[]),
    ("negative_cache", &[]),
    ("shares", &["budget"]),
    ("signals", &["failure"]),
    ("telemetry", &["tls_provider"]),
    ("tempfiles", &[]),
    ("tls_provider", &[]),
];
const FOR_ALL: &[&str] = &[
    "aside",
    "backoff",
    "budget",
    "clock",
    "failure",
    "flight",
    "negative_cache",
    "shares",
    "signals",
    "telemetry",
    "tempfiles",
    "tls_provider",
];
/// These may name the crate `estargz`.
const FORMAT: &[&str] = &[
    "agent",
    "catalog",
    "conversion",
    "convert",
    "inspect",
    "layers",
    "learn",
    "predict",
    "rewrite",
    "tocs",
];
/// These may import everything.
const ROOTS: &[&str] = &["cli", "config", "main", "lib", "fuzzing"];

/// Files and folders of one folder that may name each other in a circle, and why.
const CIRCLES: &[(&str, &[&str], &str)] = &[(
    "src/predict",
    &[
        "java", "launch", "node", "python", "servers", "shell", "system",
    ],
    "interpreters start interpreters",
)];

/// The modules of the node are private to the crate. These names are for programs and tests outside.
const PUBLIC: &[&str] = &[
    "Background",
    "Config",
    "CriCredentials",
    "DriverKind",
    "ImageRule",
    "ImageService",
    "KeeperKind",
];

#[test]
fn modules_import_only_what_lies_below_them() {
    let mut broken = Vec::new();
    each_line("src", |file, number, code| {
        let module = module_of(file);
        if ROOTS.contains(&module.as_str()) {
            return;
        }
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == module) else {
            broken.push(format!(
                "{}: the module {module} has no rule",
                file.display()
            ));
            return;
        };
        for named in code.split("crate::").skip(1).map(first_word) {
            let known = MAY_IMPORT.iter().any(|(name, _)| *name == named) || ROOTS.contains(&named);
            let fine =
                named == module || FOR_ALL.contains(&named) && !FOR_ALL.contains(&module.as_str());
            if known && !fine && !allowed.contains(&named) {
                broken.push(format!(
                    "{}:{number}: {module} may not name {named}",
                    file.display()
                ));
            }
        }
        if code.contains("estargz::") && !FORMAT.contains(&module.as_str()) {
            broken.push(format!(
                "{}:{number}: {module} may not name estargz",
                file.display()
            ));
        }
    });
    broken.dedup();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn files_of_a_room_name_each_other_in_no_circle() {
    let modules = modules();
    let mut broken = Vec::new();
    let mut unused: Vec<_> = CIRCLES.iter().collect();
    let folders: BTreeSet<_> = modules
        .keys()
        .filter_map(|path| path.split_last().map(|(_, folder)| folder.to_vec()))
        .filter(|folder| !folder.is_empty() && !ROOTS.contains(&folder[0].as_str()))
        .collect();
    for folder in folders {
        for circle in circles(&children(&modules, &folder)) {
            let place = format!("src/{}", folder.join("/"));
            let is_allowed = |(at, members, _): &&(&str, &[&str], &str)| {
                *at == place && circle.iter().all(|name| members.contains(&name.as_str()))
            };
            if CIRCLES.iter().any(|allowed| is_allowed(&allowed)) {
                unused.retain(|allowed| !is_allowed(allowed));
            } else {
                broken.push(format!("{place}: {}", circle.join(", ")));
            }
        }
    }
    broken.extend(unused.iter().map(|(at, members, reason)| {
        format!(
            "{at}: {} is no circle any more ({reason})",
            members.join(", ")
        )
    }));
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn the_node_shows_only_its_configuration_and_its_proxy() {
    let text = fs::read_to_string(top().join("src/agent/mod.rs")).unwrap();
    let public = text.lines().filter_map(|line| line.strip_prefix("pub "));
    let mut names = Vec::new();
    for item in public {
        let item = item.strip_prefix("use ");
        let item = item.expect("src/agent/mod.rs: only re-exports are public");
        let members = item.trim_end_matches(';').rsplit("::").next();
        let members = members.unwrap_or_default().trim_matches(['{', '}']);
        names.extend(members.split(", ").map(str::to_owned));
    }
    names.sort();
    assert_eq!(names, PUBLIC);
}

#[test]
fn the_library_crates_name_nothing_of_ours() {
    let mut broken = Vec::new();
    for library in ["crates/estargz/src", "crates/erofs-metadata/src"] {
        each_line(library, |file, number, code| {
            if code.contains("starlift::") || code.contains("tokio::") {
                broken.push(format!("{}:{number}: {code}", file.display()));
            }
        });
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn imports_are_greppable_and_promises_have_an_issue() {
    let mut broken = Vec::new();
    for root in ["src", "crates", "tests", "loadtests"] {
        each_line(root, |file, number, code| {
            let group = concat!("use crate", "::{");
            let grandparent = concat!("super::", "super");
            if code.contains(group) || code.contains(grandparent) {
                broken.push(format!("{}:{number}: {}", file.display(), code.trim()));
            }
        });
    }
    for root in ["src", "crates", "tests", "loadtests"] {
        for file in rust_files(top().join(root)) {
            let text = fs::read_to_string(&file).unwrap();
            for (number, line) in text.lines().enumerate() {
                let promise = [concat!("TO", "DO"), concat!("FIX", "ME")]
                    .iter()
                    .any(|word| line.contains(word));
                if promise && !line.contains('#') {
                    broken.push(format!(
                        "{}:{}: {}",
                        file.display(),
                        number + 1,
                        line.trim()
                    ));
                }
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// A module by its path below the crate.
type ModulePath = Vec<String>;

/// The modules of `src/` without their tests, each with the modules it names.
fn modules() -> BTreeMap<ModulePath, BTreeSet<ModulePath>> {
    let top = top().join("src");
    let mut texts = BTreeMap::new();
    for file in rust_files(top.clone()) {
        let relative = file.strip_prefix(&top).unwrap().with_extension("");
        let mut path: ModulePath = relative
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        path.pop_if(|last| last == "mod");
        let text = fs::read_to_string(&file).unwrap();
        let text = text
            .split("\n#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        texts.insert(path, code.collect::<Vec<_>>().join("\n"));
    }
    let known: BTreeSet<_> = texts.keys().cloned().collect();
    let named = |(path, text): (&ModulePath, &String)| {
        let named = names(path, text)
            .into_iter()
            .filter_map(|name| target(&known, &texts, &name));
        (path.clone(), named.collect())
    };
    texts.iter().map(named).collect()
}

/// The paths that begin with `crate`, `super` or `self` in the code of a module.
fn names(module: &[String], code: &str) -> Vec<ModulePath> {
    let parent = &module[..module.len().saturating_sub(1)];
    let heads = [
        ("crate", &[] as &[String]),
        ("super", parent),
        ("self", module),
    ];
    let mut names = Vec::new();
    for (head, base) in heads {
        let start = format!("{head}::");
        for (at, _) in code.match_indices(&start) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|letter| letter.is_alphanumeric() || "_:".contains(letter)) {
                continue;
            }
            let rest = &code[at + start.len()..];
            let (path, group) = match rest
                .find(|letter: char| !letter.is_alphanumeric() && !"_:".contains(letter))
            {
                Some(end) if rest[end..].starts_with('{') => {
                    let inside = rest[end + 1..].split(['{', '}']).next().unwrap_or_default();
                    (&rest[..end], inside)
                }
                Some(end) => (&rest[..end], ""),
                None => (rest, ""),
            };
            let parts = |text: &str| -> ModulePath {
                let parts = text
                    .split("::")
                    .map(str::trim)
                    .filter(|part| !part.is_empty());
                parts.map(str::to_owned).collect()
            };
            let common = [base.to_vec(), parts(path)].concat();
            let members: Vec<_> = group
                .split(',')
                .map(first_path)
                .filter(|name| !name.is_empty())
                .collect();
            if members.is_empty() {
                names.push(common);
                continue;
            }
            let member = |name: &str| match name {
                "self" => common.clone(),
                name => [common.clone(), parts(name)].concat(),
            };
            names.extend(members.into_iter().map(member));
        }
    }
    names
}

fn first_path(member: &str) -> &str {
    member.trim().split(" as ").next().unwrap_or_default()
}

/// The module that has the item `name`: an item that a folder's face only re-exports is looked up
/// where it comes from.
fn target(
    known: &BTreeSet<ModulePath>,
    texts: &BTreeMap<ModulePath, String>,
    name: &[String],
) -> Option<ModulePath> {
    let length = (1..=name.len())
        .rev()
        .find(|length| known.contains(&name[..*length]))?;
    let (module, rest) = (name[..length].to_vec(), &name[length..]);
    let Some(item) = rest.first() else {
        return Some(module);
    };
    let re_exported = texts[&module].split("use ").skip(1).find_map(|import| {
        let import = import.split(';').next()?.trim_start_matches("self::");
        let (path, members) = import.rsplit_once("::")?;
        let members = members.trim_matches(['{', '}', '\n', ' ']);
        let is_it = members.split(',').any(|member| first_path(member) == item);
        let from = [
            module.clone(),
            path.split("::").map(str::to_owned).collect(),
        ]
        .concat();
        (is_it && known.contains(&from[..module.len() + 1])).then_some(from)
    });
    match re_exported {
        Some(from) => target(known, texts, &[from, vec![item.clone()]].concat()),
        None => Some(module),
    }
}

/// The files and folders of a folder that each of them names; a folder's face is the folder.
fn children(
    modules: &BTreeMap<ModulePath, BTreeSet<ModulePath>>,
    folder: &[String],
) -> BTreeMap<String, BTreeSet<String>> {
    let child = |path: &ModulePath| path.strip_prefix(folder)?.first().cloned();
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, named) in modules {
        let Some(from) = child(path) else { continue };
        let others = named.iter().filter_map(child).filter(|to| *to != from);
        edges.entry(from.clone()).or_default().extend(others);
    }
    edges
}

/// The largest sets of which each names each other, over others if need be.
fn circles(edges: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let reached = |from: &String| {
        let mut seen = BTreeSet::new();
        let mut next: Vec<_> = edges.get(from).into_iter().flatten().collect();
        while let Some(name) = next.pop() {
            if seen.insert(name.clone()) {
                next.extend(edges.get(name).into_iter().flatten());
            }
        }
        seen
    };
    let reach: BTreeMap<_, _> = edges.keys().map(|name| (name, reached(name))).collect();
    let mut found = BTreeSet::new();
    for (name, there) in &reach {
        let back = there.iter().filter(|other| reach[other].contains(*name));
        let circle: Vec<String> = back.cloned().collect();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

/// Calls `see` with each line of code beneath `root`, comments left out.
fn each_line(root: &str, mut see: impl FnMut(&Path, usize, &str)) {
    let top = top();
    let files = rust_files(top.join(root));
    assert!(!files.is_empty(), "no Rust files in {root}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let relative = file.strip_prefix(top).unwrap();
        for (number, line) in text.lines().enumerate() {
            if !line.trim_start().starts_with("//") {
                see(relative, number + 1, line);
            }
        }
    }
}

/// `src/store/key.rs` and `src/store.rs` belong to `store`.
fn module_of(file: &Path) -> String {
    let second = file
        .components()
        .nth(1)
        .unwrap()
        .as_os_str()
        .to_string_lossy();
    second.trim_end_matches(".rs").to_owned()
}

fn first_word(text: &str) -> &str {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .next()
        .unwrap_or_default()
}
