//! Python modules: found on the path like `importlib` does, scanned level by level, named in the
//! order of their imports.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::scan::{Import, MAX_NAME, imports};
use crate::predict::fuel::Fuel;
use crate::predict::loader::Loader;
use crate::predict::view::{PathTarget, join, parent as directory};
use crate::predict::walk::Walk;

/// Most modules of one process. The largest known programs import about two thousand.
const MAX_MODULES: usize = 4000;
/// The length of a compiled file's header (PEP 552), and the flags in it that require a check of
/// the source.
const HEADER: u64 = 16;
const CHECKED: [u8; 4] = [3, 0, 0, 0];
/// Most names that are looked up. Most of them are not modules.
const MAX_LOOKED_FOR: usize = 32_000;
/// Most directories that are searched.
const MAX_SEARCHED: usize = 32;

/// The modules of a process.
#[derive(Debug)]
pub(super) struct Modules {
    pub(super) loader: Loader,
    search: Vec<String>,
    /// Suffixes of the files of extension modules.
    extensions: Vec<String>,
    /// The suffix of the files of compiled modules.
    compiled: String,
    /// By name. `None` for names without a file.
    known: HashMap<String, Option<Module>>,
    imported: HashSet<String>,
    frozen: HashSet<String>,
    /// Directories of compiled files, and whether Python compares their files with the sources.
    checked: HashMap<String, bool>,
}

#[derive(Debug, Clone)]
struct Module {
    /// The file that is read. A package without a file is only a directory.
    file: Option<PathTarget>,
    /// The source, which can be scanned.
    source: Option<PathTarget>,
    is_extension: bool,
    /// The directory of its submodules. `None` if it is not a package.
    directory: Option<String>,
    /// Its imports, in order, once it was scanned.
    imports: Option<Rc<[String]>>,
}

impl Modules {
    pub(super) fn new(
        walk: &Walk<'_>,
        search: Vec<String>,
        (major, minor): (u32, u32),
        loader: Loader,
    ) -> Self {
        // The library's own extensions have the name of the platform in their names.
        let tag = format!("cpython-{major}{minor}");
        let dynload = search
            .iter()
            .flat_map(|directory| walk.view.names(directory));
        let platform = walk.fuel.each(dynload).find_map(|name| {
            let (_, suffix) = name
                .split_once('.')
                .filter(|(_, suffix)| suffix.starts_with(&tag))?;
            suffix.ends_with(".so").then(|| format!(".{suffix}"))
        });
        let extensions = platform
            .into_iter()
            .chain([".abi3.so".to_owned(), ".so".to_owned()])
            .collect();
        Self {
            loader,
            search,
            extensions,
            compiled: format!(".{tag}.pyc"),
            known: HashMap::new(),
            imported: HashSet::new(),
            frozen: HashSet::new(),
            checked: HashMap::new(),
        }
    }

    /// Searches these directories before all others.
    pub(super) fn search_first(&mut self, directories: Vec<String>) {
        self.search.splice(0..0, directories);
        self.search.truncate(MAX_SEARCHED);
        // A name that was not found may be found now.
        self.known.retain(|_, module| module.is_some());
    }

    pub(super) fn search_last(&mut self, directory: String) {
        if self.search.len() >= MAX_SEARCHED {
            return;
        }
        self.search.push(directory);
        self.known.retain(|_, module| module.is_some());
    }

    /// Marks modules that are also inside the interpreter, which uses those.
    pub(super) fn freeze(&mut self, names: &[&str]) {
        self.frozen
            .extend(names.iter().map(|name| (*name).to_owned()));
    }

    /// Imports modules by their absolute names.
    pub(super) fn import(&mut self, walk: &mut Walk<'_>, names: &[&str]) {
        let names: Vec<String> = names
            .iter()
            .flat_map(|name| with_parents(name, &walk.fuel))
            .collect();
        self.scan(walk, &names);
        self.name(walk, &names);
    }

    /// Runs code that is not in a module. With `all`, its functions too.
    pub(super) fn run(&mut self, walk: &mut Walk<'_>, code: &str, all: bool) {
        let names = self.resolved(walk, &imports(code, all, &walk.fuel), "");
        self.scan(walk, &names);
        self.name(walk, &names);
    }

    /// Runs a module as the program.
    pub(super) fn run_module(&mut self, walk: &mut Walk<'_>, name: &str) {
        if name.len() > MAX_NAME {
            return;
        }
        let main = format!("{name}.__main__");
        self.import(walk, &[name]);
        let is_package = self
            .locate(walk, name)
            .is_some_and(|module| module.directory.is_some());
        let (main, package) = if is_package {
            (main.as_str(), name)
        } else {
            (name, parent(name))
        };
        self.import(walk, &[main]);
        let Some(source) = self.locate(walk, main).and_then(|module| module.source) else {
            return;
        };
        let code = walk.text(&source);
        let names = self.resolved(walk, &imports(&code, true, &walk.fuel), package);
        self.scan(walk, &names);
        self.name(walk, &names);
    }

    /// Scans these modules and, level by level, all modules that they import.
    fn scan(&mut self, walk: &mut Walk<'_>, names: &[String]) {
        let fuel = walk.fuel.clone();
        let mut level = fuel.copies(names.iter().map(String::as_str));
        while !level.is_empty() && fuel.lasts() {
            let mut sources = Vec::new();
            for name in fuel.each(std::mem::take(&mut level)) {
                let Some(module) = self
                    .locate(walk, &name)
                    .filter(|module| module.imports.is_none())
                else {
                    continue;
                };
                self.remember(&name, Vec::new());
                let package = if module.directory.is_some() {
                    name.clone()
                } else {
                    parent(&name).to_owned()
                };
                if let Some(source) = module.source {
                    sources.push((name, package, source));
                }
            }
            let files: Vec<PathTarget> = sources
                .iter()
                .map(|(_, _, source)| source.clone())
                .collect();
            walk.prepare(&files);
            for (name, package, source) in fuel.each(sources) {
                let code = walk.text(&source);
                let imported = self.resolved(walk, &imports(&code, false, &fuel), &package);
                level.extend(fuel.copies(imported.iter().map(String::as_str)));
                self.remember(&name, imported);
            }
        }
    }

    fn remember(&mut self, name: &str, imported: Vec<String>) {
        if let Some(Some(module)) = self.known.get_mut(name) {
            module.imports = Some(imported.into());
        }
    }

    /// Names the files of modules, each before those of its imports.
    fn name(&mut self, walk: &mut Walk<'_>, names: &[String]) {
        let fuel = walk.fuel.clone();
        let mut left = fuel.copies(names.iter().rev().map(String::as_str));
        while let Some(name) = left.pop().filter(|_| fuel.burn(1)) {
            if self.imported.len() >= MAX_MODULES || !self.imported.insert(fuel.copy(&name)) {
                continue;
            }
            let Some(Some(module)) = self.known.get(&name) else {
                continue;
            };
            let imports = module
                .imports
                .iter()
                .flat_map(|imports| imports.iter().rev());
            left.extend(fuel.copies(imports.map(String::as_str)));
            match module.file.clone().filter(|_| !self.frozen.contains(&name)) {
                Some(file) if module.is_extension => self.loader.open(walk, &file),
                Some(file) => {
                    let source = module.source.clone().filter(|source| *source != file);
                    walk.name(&file);
                    if let Some(source) = source
                        && self.is_checked(walk, &file)
                    {
                        walk.name(&source);
                    }
                }
                None => {}
            }
        }
    }

    /// Whether a compiled file holds its source's digest and requires a comparison with the source
    /// (PEP 552). That is so for files made with `SOURCE_DATE_EPOCH` set. One file is read for all
    /// of its directory.
    fn is_checked(&mut self, walk: &mut Walk<'_>, compiled: &PathTarget) -> bool {
        let directory = directory(&compiled.path);
        if let Some(known) = self.checked.get(directory) {
            return *known;
        }
        let head = walk.head(compiled, HEADER);
        let is_checked = head.get(4..8) == Some(&CHECKED);
        self.checked.insert(directory.to_owned(), is_checked);
        is_checked
    }

    /// Returns the absolute names of the imports that have files. Relative names start at
    /// `package`.
    fn resolved(&mut self, walk: &Walk<'_>, imports: &[Import], package: &str) -> Vec<String> {
        let mut names = Vec::new();
        let mut failed = HashSet::new();
        let fuel = &walk.fuel;
        for import in fuel.each(imports) {
            if import
                .instead_of
                .is_some_and(|number| !failed.contains(&number))
            {
                continue;
            }
            let Some(module) = absolute(import, package) else {
                continue;
            };
            let is_there = module.is_empty() || self.locate(walk, &module).is_some();
            if let (false, Some(number)) = (is_there || is_builtin(&module), import.tried) {
                failed.insert(number);
            }
            names.extend(with_parents(&module, fuel));
            for name in fuel.each(&import.names) {
                let inner = if module.is_empty() {
                    name.clone()
                } else {
                    format!("{module}.{name}")
                };
                if is_there && self.locate(walk, &inner).is_some() {
                    names.push(inner);
                }
            }
        }
        names.retain(|name| matches!(self.known.get(name), Some(Some(_))));
        names
    }

    /// Finds a module, after its packages.
    fn locate(&mut self, walk: &Walk<'_>, name: &str) -> Option<Module> {
        if let Some(known) = self.known.get(name) {
            // Its paths are copied with it.
            return known.clone().filter(|_| walk.fuel.make(name.len()));
        }
        if self.known.len() >= MAX_LOOKED_FOR
            || name.len() > MAX_NAME
            || !walk.fuel.make(name.len())
        {
            return None;
        }
        let mut directories: Vec<String> = walk
            .fuel
            .copies(self.search.iter().take(MAX_SEARCHED).map(String::as_str));
        if let Some((package, _)) = name.rsplit_once('.') {
            directories = self.locate(walk, package)?.directory.into_iter().collect();
        }
        let last = name.rsplit('.').next().unwrap_or_default();
        let found = directories
            .iter()
            .find_map(|directory| self.module_in(walk, directory, last));
        let package = || {
            let directory = directories.iter().map(|directory| join(directory, last));
            directory
                .into_iter()
                .find(|directory| walk.view.is_directory(directory))
                .map(Module::namespace)
        };
        let found = found.or_else(package);
        self.known.insert(name.to_owned(), found.clone());
        found
    }

    /// Finds a module in one directory: a package, else an extension, else a file.
    fn module_in(&self, walk: &Walk<'_>, directory: &str, name: &str) -> Option<Module> {
        let package = join(directory, name);
        if let Some(module) = self.code(walk, &package, "__init__") {
            return Some(Module {
                directory: Some(package),
                ..module
            });
        }
        let extension = self
            .extensions
            .iter()
            .find_map(|suffix| walk.view.file(&format!("{package}{suffix}")));
        if let Some(file) = extension {
            return Some(Module {
                is_extension: true,
                ..Module::of(file, None)
            });
        }
        self.code(walk, directory, name)
    }

    /// Finds the source of a module, or its compiled file. If both exist, the source is not read.
    fn code(&self, walk: &Walk<'_>, directory: &str, name: &str) -> Option<Module> {
        let Some(source) = walk.view.file(&format!("{directory}/{name}.py")) else {
            return Some(Module::of(
                walk.view.file(&format!("{directory}/{name}.pyc"))?,
                None,
            ));
        };
        let compiled = walk
            .view
            .file(&format!("{directory}/__pycache__/{name}{}", self.compiled));
        Some(Module::of(
            compiled.unwrap_or_else(|| source.clone()),
            Some(source),
        ))
    }
}

impl Module {
    fn of(file: PathTarget, source: Option<PathTarget>) -> Self {
        Self {
            file: Some(file),
            source,
            is_extension: false,
            directory: None,
            imports: None,
        }
    }

    fn namespace(directory: String) -> Self {
        Self {
            file: None,
            source: None,
            is_extension: false,
            directory: Some(directory),
            imports: None,
        }
    }
}

/// Whether a module is usually inside the interpreter. Importing one of these does not fail, even
/// without a file.
fn is_builtin(module: &str) -> bool {
    let first = module.split('.').next().unwrap_or_default();
    first.starts_with('_')
        || matches!(
            first,
            "array"
                | "atexit"
                | "binascii"
                | "builtins"
                | "cmath"
                | "errno"
                | "faulthandler"
                | "fcntl"
        )
        || matches!(
            first,
            "gc" | "grp" | "itertools" | "marshal" | "math" | "posix" | "pwd" | "select" | "spwd"
        )
        || matches!(
            first,
            "sys" | "syslog" | "time" | "unicodedata" | "xxsubtype" | "zlib"
        )
}

/// Returns the package of a module, or an empty name for a top-level module.
fn parent(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(package, _)| package)
}

/// Returns a module and the packages that are imported before it.
fn with_parents(name: &str, fuel: &Fuel) -> Vec<String> {
    let ends = name
        .match_indices('.')
        .map(|(at, _)| at)
        .chain([name.len()]);
    fuel.copies(
        ends.filter_map(|end| name.get(..end))
            .filter(|name| !name.is_empty()),
    )
}

/// Returns the absolute name of an import in `package`.
fn absolute(import: &Import, package: &str) -> Option<String> {
    if import.level == 0 {
        return Some(import.module.clone());
    }
    let mut base = package;
    for _ in 1..import.level {
        base = base.rsplit_once('.')?.0;
    }
    Some(match (base, import.module.as_str()) {
        ("", _) => return None,
        (base, "") => base.to_owned(),
        (base, module) => format!("{base}.{module}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_names_become_absolute() {
        let import = |level, module: &str| Import {
            level,
            module: module.to_owned(),
            ..Import::default()
        };
        assert_eq!(absolute(&import(0, "a.b"), "p.q").as_deref(), Some("a.b"));
        assert_eq!(absolute(&import(1, "a"), "p.q").as_deref(), Some("p.q.a"));
        assert_eq!(absolute(&import(2, ""), "p.q").as_deref(), Some("p"));
        assert_eq!(absolute(&import(3, "a"), "p.q"), None);
        assert_eq!(with_parents("a.b.c", &Fuel::new()), ["a", "a.b", "a.b.c"]);
    }
}
