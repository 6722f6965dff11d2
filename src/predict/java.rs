//! The files that a Java process reads before its first class: the libraries of the virtual
//! machine, its modules and archives, its settings, and the archives of the program (HotSpot; the
//! layout of the JDK since 9, JEP 220).

use super::launch::{Process, Program};
use super::system;
use super::view::{join, parent};
use super::walk::Walk;

/// Most archives of a class path.
const MAX_ARCHIVES: usize = 512;
/// Files that are read before the virtual machine. `libjvm.so` itself is loaded by its path.
const BEFORE: &[&str] = &["lib/jvm.cfg"];
const MACHINE: &str = "lib/server/libjvm.so";
/// Libraries and files that the virtual machine loads by itself, in its order.
const LIBRARIES: &[&str] = &["lib/libjimage.so", "lib/libjava.so"];
const FILES: &[&str] = &["lib/modules", "lib/server/classes.jsa", "lib/libjsvml.so"];
/// Libraries that programs in archives load: for archives, files and the network.
const SECOND: &[&str] = &["lib/libzip.so", "lib/libnio.so", "lib/libnet.so"];
const SETTINGS: &[&str] = &[
    "conf/security/java.security",
    "conf/logging.properties",
    "lib/tzdb.dat",
];
/// Options with a value in the next word.
const VALUED: &[&str] = &[
    "--add-exports",
    "--add-modules",
    "--add-opens",
    "--add-reads",
    "--limit-modules",
    "--module",
    "-m",
    "--source",
];
const PATHS: &[&str] = &["-cp", "-classpath", "--class-path", "-p", "--module-path"];

/// Runs Java.
pub(super) fn run(walk: &mut Walk<'_>, process: &Process, mut program: Program) {
    let bin = format!("/{}", parent(&program.file.path));
    let home = parent(&bin).to_owned();
    for path in BEFORE {
        walk.name_path(&join(&home, path));
    }
    for path in std::iter::once(&MACHINE).chain(LIBRARIES) {
        open(walk, &mut program, &join(&home, path));
    }
    for path in FILES {
        walk.name_path(&join(&home, path));
    }
    let archives = archives(walk, process);
    system::name_users(walk);
    system::name_locale(walk, process);
    system::name_time_zone(walk, process);
    let has_archives = archives.iter().any(|path| path.ends_with(".jar"));
    for path in SECOND.iter().filter(|_| has_archives) {
        open(walk, &mut program, &join(&home, path));
    }
    for path in &archives {
        walk.name_path(path);
    }
    for path in SETTINGS.iter().filter(|_| has_archives) {
        walk.name_path(&join(&home, path));
    }
}

fn open(walk: &mut Walk<'_>, program: &mut Program, path: &str) {
    if let Some(library) = walk.view.file(path) {
        program.loader.open(walk, &library);
    }
}

/// Returns the archives and classes that the arguments name.
fn archives(walk: &Walk<'_>, process: &Process) -> Vec<String> {
    let (mut paths, mut agents) = (Vec::new(), Vec::new());
    let mut class = None;
    let fuel = &walk.fuel;
    let mut words = fuel.each(process.argv.iter().skip(1)).map(String::as_str);
    while let Some(word) = words.next() {
        if PATHS.contains(&word) {
            paths.extend(words.next());
        } else if VALUED.contains(&word) {
            words.next();
        } else if word == "-jar" {
            paths = words.next().into_iter().collect();
            break;
        } else if let Some(agent) = word.strip_prefix("-javaagent:") {
            agents.extend(agent.split('=').next());
        } else if !word.starts_with('-') {
            class = Some(word);
            break;
        }
    }
    if paths.is_empty() {
        paths.extend(process.variable("CLASSPATH").or_else(|| class.map(|_| ".")));
    }
    let mut all: Vec<String> = fuel
        .each(agents)
        .map(|agent| process.absolute(agent))
        .take(MAX_ARCHIVES)
        .collect();
    for path in fuel.each(paths.iter().flat_map(|paths| paths.split(':'))) {
        if all.len() >= MAX_ARCHIVES {
            break;
        }
        let path = process.absolute(path);
        match path.strip_suffix("/*") {
            Some(directory) => {
                let names = fuel
                    .each(walk.view.names(directory))
                    .filter(|name| name.ends_with(".jar"));
                all.extend(names.map(|name| join(directory, &name)).take(MAX_ARCHIVES));
            }
            None if walk.view.is_directory(&path) => {
                all.extend(
                    class.map(|class| join(&path, &format!("{}.class", class.replace('.', "/")))),
                );
            }
            None => all.push(path),
        }
    }
    all.truncate(MAX_ARCHIVES);
    all
}
