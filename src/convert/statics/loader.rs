//! The dynamic loader: an executable's interpreter, and the closure of its libraries in the order of loading.
//!
//! Directories are searched as ld.so(8) and musl's ldso search them. The loader's cache is not read: it was made from
//! the directories of `ld.so.conf`. Variants for processors (`glibc-hwcaps`) depend on the node and are left out.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::elf::Elf;
use super::view::{Found, join, parent};
use super::walk::Walk;
use crate::convert::error::Error;

/// Most libraries of one process.
const MAX_LIBRARIES: usize = 1024;
/// Most directories that a configuration may add.
const MAX_DIRECTORIES: usize = 128;
/// How deep `ld.so.conf` includes itself.
const MAX_INCLUDES: usize = 4;
/// What is behind the directories of the configuration, in Debian's order for a triplet and without.
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
    /// Of the process's environment.
    ld_library_path: Vec<String>,
    /// The directories that hold for every library.
    directories: Vec<String>,
    /// Names that need no more looking for.
    names: HashSet<String>,
}

/// A library or executable, and where those that it needs may be.
struct Object {
    elf: Arc<Elf>,
    /// Its own directory, for `$ORIGIN`.
    origin: String,
    /// `DT_RPATH` of what it was loaded by.
    inherited: Vec<String>,
}

impl Loader {
    /// Loads an executable: names its interpreter, the loader's own files and all libraries.
    pub(super) async fn load(
        walk: &mut Walk<'_>,
        program: &Found,
        main: Arc<Elf>,
        ld_library_path: &[String],
    ) -> Result<Self, Error> {
        let mut loader = Self {
            main: Arc::clone(&main),
            ld_library_path: ld_library_path.to_vec(),
            directories: Vec::new(),
            names: HashSet::new(),
        };
        // A static executable loads nothing.
        if let Some(interpreter) = &main.interpreter {
            walk.name_path(interpreter);
            loader.names.insert(interpreter.clone());
            loader.directories = directories(walk, &main, interpreter).await?;
            loader.add(walk, program, main).await?;
        }
        Ok(loader)
    }

    /// Loads a library into the process, as `dlopen` does, and what it needs.
    pub(super) async fn open(&mut self, walk: &mut Walk<'_>, library: &Found) -> Result<(), Error> {
        walk.name(library);
        match walk.elf(library).await? {
            Some(elf) if elf.fits(&self.main) => self.add(walk, library, elf).await,
            _ => Ok(()),
        }
    }

    /// Whether the process has a library whose name begins so.
    pub(super) fn has(&self, prefix: &str) -> bool {
        self.names.iter().any(|name| name.starts_with(prefix))
    }

    /// Whether the executable itself calls a function.
    pub(super) fn calls(&self, function: &str) -> bool {
        self.main.calls(function)
    }

    /// Names what `file` needs, breadth first as the loader does.
    async fn add(&mut self, walk: &mut Walk<'_>, file: &Found, elf: Arc<Elf>) -> Result<(), Error> {
        let mut queue = VecDeque::from([Object { elf, origin: origin(file), inherited: Vec::new() }]);
        while let Some(object) = queue.pop_front() {
            let elf = Arc::clone(&object.elf);
            let rpath = rpath(&object);
            for name in &elf.needed {
                if self.names.len() >= MAX_LIBRARIES || !self.names.insert(name.clone()) {
                    continue;
                }
                if let Some((library, elf)) = self.find(walk, &object, &rpath, name).await? {
                    walk.name(&library);
                    queue.push_back(Object { elf, origin: origin(&library), inherited: rpath.clone() });
                }
            }
        }
        Ok(())
    }

    async fn find(
        &self,
        walk: &mut Walk<'_>,
        object: &Object,
        rpath: &[String],
        name: &str,
    ) -> Result<Option<(Found, Arc<Elf>)>, Error> {
        let candidates: Vec<String> = if name.contains('/') {
            vec![self.expanded(name, &object.origin)]
        } else {
            // A library's DT_RUNPATH takes the place of all DT_RPATHs.
            let rpath = if object.elf.runpath.is_empty() { rpath } else { &[] };
            let runpath = object.elf.runpath.iter().map(|path| self.expanded(path, &object.origin));
            let own = rpath.iter().cloned().chain(self.ld_library_path.iter().cloned()).chain(runpath);
            own.chain(self.directories.iter().cloned()).map(|directory| join(&directory, name)).collect()
        };
        for path in candidates {
            let Some(found) = walk.view.file(&path) else { continue };
            match walk.elf(&found).await? {
                Some(elf) if elf.fits(&self.main) => return Ok(Some((found, elf))),
                _ => {}
            }
        }
        Ok(None)
    }

    fn expanded(&self, path: &str, origin: &str) -> String {
        expanded(path, origin, &self.main)
    }
}

/// The object's `DT_RPATH` and that of those which loaded it, in the order of the search.
fn rpath(object: &Object) -> Vec<String> {
    let own = object.elf.rpath.iter().map(|path| expanded(path, &object.origin, &object.elf));
    own.chain(object.inherited.iter().cloned()).collect()
}

fn expanded(path: &str, origin: &str, elf: &Elf) -> String {
    let lib = if elf.is_64 { "lib64" } else { "lib" };
    let path = path.replace("${ORIGIN}", origin).replace("$ORIGIN", origin);
    path.replace("${LIB}", lib).replace("$LIB", lib)
}

fn origin(file: &Found) -> String {
    parent(&format!("/{}", file.path)).to_owned()
}

/// Names the loader's own files and gives the directories they speak of.
async fn directories(walk: &mut Walk<'_>, main: &Elf, interpreter: &str) -> Result<Vec<String>, Error> {
    if let Some(musl) = interpreter.rsplit('/').next().and_then(|name| name.strip_prefix("ld-musl-")) {
        let architecture = musl.trim_end_matches(".so.1");
        let Some(path) = walk.name_path(&format!("/etc/ld-musl-{architecture}.path")) else {
            return Ok(MUSL_DIRECTORIES.iter().map(|path| (*path).to_owned()).collect());
        };
        let text = walk.text(&path).await?;
        return Ok(text.split([':', '\n']).filter(|path| !path.is_empty()).map(str::to_owned).collect());
    }
    walk.name_path("/etc/ld.so.preload");
    walk.name_path("/etc/ld.so.cache");
    let mut all = configured(walk, "/etc/ld.so.conf", MAX_INCLUDES).await?;
    let triplet = TRIPLETS.iter().find(|(machine, is_64, _)| (*machine, *is_64) == (main.machine, main.is_64));
    if let Some((_, _, triplet)) = triplet {
        all.extend([format!("/lib/{triplet}"), format!("/usr/lib/{triplet}")]);
    }
    all.truncate(MAX_DIRECTORIES);
    all.extend(DEFAULT_DIRECTORIES.iter().map(|path| (*path).to_owned()));
    Ok(all)
}

/// The directories of an `ld.so.conf` and of what it includes (ldconfig(8)).
async fn configured(walk: &mut Walk<'_>, path: &str, depth: usize) -> Result<Vec<String>, Error> {
    let Some(file) = walk.view.file(path) else { return Ok(Vec::new()) };
    let text = walk.text(&file).await?;
    let mut all = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        match line.strip_prefix("include") {
            Some(pattern) if depth > 0 => {
                for path in globbed(walk, &join(parent(path), pattern.trim())) {
                    all.extend(Box::pin(configured(walk, &path, depth - 1)).await?);
                }
            }
            Some(_) => {}
            None if line.starts_with('/') => all.push(line.to_owned()),
            None => {}
        }
    }
    Ok(all)
}

/// The files of a pattern with at most one `*`, in its last name.
pub(super) fn globbed(walk: &Walk<'_>, pattern: &str) -> Vec<String> {
    let Some((directory, name)) = pattern.rsplit_once('/') else { return Vec::new() };
    let Some((prefix, suffix)) = name.split_once('*') else { return vec![pattern.to_owned()] };
    let fits =
        |name: &String| name.len() >= prefix.len() + suffix.len() && name.starts_with(prefix) && name.ends_with(suffix);
    let is_hidden = |name: &String| name.starts_with('.') && !prefix.starts_with('.');
    let names = walk.view.names(directory).into_iter().filter(fits).filter(|name| !is_hidden(name));
    names.map(|name| join(directory, &name)).collect()
}
