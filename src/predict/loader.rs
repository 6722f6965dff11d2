//! The dynamic loader: an executable's interpreter, and all its libraries in the order of loading.
//!
//! Directories are searched like ld.so(8) and musl's ldso do. The loader's cache is not parsed: it
//! was made from the directories of `ld.so.conf`. Variants for processors (`glibc-hwcaps`) depend
//! on the node and are left out.

use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use super::elf::Elf;
use super::fuel::Fuel;
use super::view::{PathTarget, join, parent};
use super::walk::Walk;
use estargz::toc::NodeId;

/// Most libraries of one process.
const MAX_LIBRARIES: usize = 1024;
/// Most directories that a configuration may add.
const MAX_DIRECTORIES: usize = 128;
/// The longest path (Linux, `PATH_MAX`).
const MAX_PATH: usize = 4096;
/// How deep `ld.so.conf` includes itself.
const MAX_INCLUDES: usize = 4;
/// Directories searched after those of the configuration and of the triplet, in Debian's order.
const DEFAULT_DIRECTORIES: &[&str] = &["/lib64", "/usr/lib64", "/lib", "/usr/lib"];
const MUSL_DIRECTORIES: &[&str] = &["/lib", "/usr/local/lib", "/usr/lib"];
/// Debian's names of architectures, by `e_machine` and class (Multiarch/Tuples).
const TRIPLETS: &[(u16, bool, &str)] = &[
    (3, false, "i386-linux-gnu"),
    (21, true, "powerpc64le-linux-gnu"),
    (22, true, "s390x-linux-gnu"),
    (40, false, "arm-linux-gnueabihf"),
    (62, true, "x86_64-linux-gnu"),
    (183, true, "aarch64-linux-gnu"),
    (243, true, "riscv64-linux-gnu"),
];

/// The libraries of a process.
#[derive(Debug)]
pub(super) struct Loader {
    main: Arc<Elf>,
    /// From the process's environment.
    ld_library_path: Vec<String>,
    /// The directories searched for every library.
    directories: Vec<String>,
    /// Names that are loaded or were not found: they are not searched again.
    names: HashSet<String>,
}

/// A library or executable whose own libraries are to be found.
struct Object {
    elf: Arc<Elf>,
    /// Its own directory, for `$ORIGIN`.
    origin: String,
    /// `DT_RPATH` of the objects that loaded it.
    inherited: Rc<[String]>,
}

impl Loader {
    /// Loads an executable: names its interpreter, the loader's own files and all libraries.
    pub(super) fn load(
        walk: &mut Walk<'_>,
        program: &PathTarget,
        main: Arc<Elf>,
        ld_library_path: Vec<String>,
    ) -> Self {
        let mut loader = Self {
            main: Arc::clone(&main),
            ld_library_path,
            directories: Vec::new(),
            names: HashSet::new(),
        };
        // A static executable loads nothing.
        if let Some(interpreter) = &main.interpreter {
            walk.name_path(interpreter);
            loader.names.insert(interpreter.clone());
            loader.directories = directories(walk, &main, interpreter);
            loader.add(walk, program, main);
        }
        loader
    }

    /// Loads a library into the process, as `dlopen` does, and its dependencies.
    pub(super) fn open(&mut self, walk: &mut Walk<'_>, library: &PathTarget) {
        walk.name(library);
        match walk.elf(library) {
            Some(elf) if elf.fits(&self.main) => self.add(walk, library, elf),
            _ => {}
        }
    }

    /// Whether the process has a library whose name begins with `prefix`.
    pub(super) fn has(&self, prefix: &str) -> bool {
        self.names.iter().any(|name| name.starts_with(prefix))
    }

    /// Whether the executable itself calls a function.
    pub(super) fn calls(&self, function: &str) -> bool {
        self.main.calls(function)
    }

    /// Names the dependencies of `file`, breadth first like the loader.
    fn add(&mut self, walk: &mut Walk<'_>, file: &PathTarget, elf: Arc<Elf>) {
        let mut queue = VecDeque::from([Object {
            elf,
            origin: origin(file),
            inherited: Rc::default(),
        }]);
        let fuel = walk.fuel.clone();
        while let Some(object) = queue.pop_front().filter(|_| fuel.lasts()) {
            let elf = Arc::clone(&object.elf);
            let rpath = rpath(&object, &fuel);
            for name in fuel.each(&elf.needed) {
                if self.names.len() >= MAX_LIBRARIES || !self.names.insert(fuel.copy(name)) {
                    continue;
                }
                if let Some((library, elf)) = self.find(walk, &object, &rpath, name) {
                    walk.name(&library);
                    queue.push_back(Object {
                        elf,
                        origin: origin(&library),
                        inherited: Rc::clone(&rpath),
                    });
                }
            }
        }
    }

    fn find(
        &self,
        walk: &mut Walk<'_>,
        object: &Object,
        rpath: &[String],
        name: &str,
    ) -> Option<(PathTarget, Arc<Elf>)> {
        let fuel = walk.fuel.clone();
        if name.contains('/') {
            let path = expand(name, &object.origin, &self.main, &fuel);
            return self.fitting(walk, &path);
        }
        // A library's DT_RUNPATH replaces all DT_RPATHs.
        let rpath = if object.elf.runpath.is_empty() {
            rpath
        } else {
            &[]
        };
        let runpath = object.elf.runpath.iter();
        let runpath =
            runpath.map(|path| Cow::Owned(expand(path, &object.origin, &self.main, &fuel)));
        let own = rpath
            .iter()
            .chain(&self.ld_library_path)
            .map(Cow::Borrowed)
            .chain(runpath);
        let mut all = fuel.each(own.chain(self.directories.iter().map(Cow::Borrowed)));
        all.find_map(|directory| self.fitting(walk, &join(&directory, name)))
    }

    /// Returns the library at a path, if it fits this process.
    fn fitting(&self, walk: &mut Walk<'_>, path: &str) -> Option<(PathTarget, Arc<Elf>)> {
        let found = walk.view.file(path)?;
        let elf = walk.elf(&found).filter(|elf| elf.fits(&self.main))?;
        Some((found, elf))
    }
}

/// Returns the object's `DT_RPATH`, then that of the objects that loaded it.
fn rpath(object: &Object, fuel: &Fuel) -> Rc<[String]> {
    if object.elf.rpath.is_empty() {
        return Rc::clone(&object.inherited);
    }
    let own = fuel
        .each(&object.elf.rpath)
        .map(|path| expand(path, &object.origin, &object.elf, fuel));
    own.chain(fuel.copies(object.inherited.iter().map(String::as_str)))
        .collect()
}

/// Replaces the loader's tokens in a path, unless the path could become too long: each token may
/// become thousands of characters.
fn expand(path: &str, origin: &str, elf: &Elf, fuel: &Fuel) -> String {
    let longest = path
        .len()
        .max(path.matches('$').count() * origin.len() + path.len());
    if longest > MAX_PATH || !fuel.make(longest) {
        return path.to_owned();
    }
    let lib = if elf.is_64 { "lib64" } else { "lib" };
    let path = path.replace("${ORIGIN}", origin).replace("$ORIGIN", origin);
    path.replace("${LIB}", lib).replace("$LIB", lib)
}

fn origin(file: &PathTarget) -> String {
    parent(&format!("/{}", file.path)).to_owned()
}

/// Names the loader's own files and returns the directories that they list.
fn directories(walk: &mut Walk<'_>, main: &Elf, interpreter: &str) -> Vec<String> {
    let fuel = walk.fuel.clone();
    if let Some(musl) = interpreter
        .rsplit('/')
        .next()
        .and_then(|name| name.strip_prefix("ld-musl-"))
    {
        let architecture = musl.trim_end_matches(".so.1");
        let Some(path) = walk.name_path(&format!("/etc/ld-musl-{architecture}.path")) else {
            return MUSL_DIRECTORIES
                .iter()
                .map(|path| (*path).to_owned())
                .collect();
        };
        let text = walk.text(&path);
        return fuel.copies(
            text.split([':', '\n'])
                .filter(|path| !path.is_empty())
                .take(MAX_DIRECTORIES),
        );
    }
    walk.name_path("/etc/ld.so.preload");
    walk.name_path("/etc/ld.so.cache");
    let mut conf = LdSoConf {
        directories: Vec::new(),
        read: HashSet::new(),
    };
    conf.read(walk, "/etc/ld.so.conf", MAX_INCLUDES);
    let mut all = conf.directories;
    let triplet = TRIPLETS
        .iter()
        .find(|(machine, is_64, _)| (*machine, *is_64) == (main.machine, main.is_64));
    if let Some((_, _, triplet)) = triplet {
        all.extend([format!("/lib/{triplet}"), format!("/usr/lib/{triplet}")]);
    }
    all.truncate(MAX_DIRECTORIES);
    all.extend(DEFAULT_DIRECTORIES.iter().map(|path| (*path).to_owned()));
    all
}

/// The directories of an `ld.so.conf` and of the files that it includes (ldconfig(8)).
struct LdSoConf {
    directories: Vec<String>,
    /// Files that were read: reading one again adds nothing.
    read: HashSet<(usize, NodeId)>,
}

impl LdSoConf {
    fn read(&mut self, walk: &mut Walk<'_>, path: &str, depth: usize) {
        let Some(file) = walk
            .view
            .file(path)
            .filter(|file| self.read.insert((file.layer, file.node)))
        else {
            return;
        };
        let (text, fuel) = (walk.text(&file), walk.fuel.clone());
        for line in fuel.each(text.lines()) {
            if self.directories.len() >= MAX_DIRECTORIES {
                return;
            }
            let line = line.split('#').next().unwrap_or_default().trim();
            match line.strip_prefix("include") {
                Some(pattern) if depth > 0 => {
                    for path in fuel.each(globbed(walk, &join(parent(path), pattern.trim()))) {
                        self.read(walk, &path, depth - 1);
                    }
                }
                Some(_) => {}
                None if line.starts_with('/') => self.directories.push(fuel.copy(line)),
                None => {}
            }
        }
    }
}

/// Returns the files that match a pattern with at most one `*`, in its last name.
pub(super) fn globbed(walk: &Walk<'_>, pattern: &str) -> Vec<String> {
    let fuel = &walk.fuel;
    let Some((directory, name)) = pattern.rsplit_once('/') else {
        return Vec::new();
    };
    let Some((prefix, suffix)) = name.split_once('*') else {
        return vec![fuel.copy(pattern)];
    };
    let fits = |name: &String| {
        name.len() >= prefix.len() + suffix.len()
            && name.starts_with(prefix)
            && name.ends_with(suffix)
    };
    let is_hidden = |name: &String| name.starts_with('.') && !prefix.starts_with('.');
    let names = fuel
        .each(walk.view.names(directory))
        .filter(fits)
        .filter(|name| !is_hidden(name));
    names
        .take_while(|name| fuel.make(directory.len() + name.len()))
        .map(|name| join(directory, &name))
        .collect()
}
