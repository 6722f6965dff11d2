//! The imports of a Python source, line by line. There is no grammar, but strings, brackets and
//! blocks are recognised.
//!
//! Code that runs when a module is imported counts. Functions are left out, and so are branches for
//! other systems, for type checkers and for older interpreters.

use super::lines::{Line, lines};
use crate::predict::fuel::Fuel;

/// Most imports of one source.
const MAX_IMPORTS: usize = 2048;
/// The longest name of a module, including dots.
pub(super) const MAX_NAME: usize = 256;
/// Most names that one import takes from its module.
const MAX_NAMES: usize = 256;
/// Parts of conditions that are false in a container.
const NEVER: &[&str] = &[
    "\"nt\"",
    "\"win\")",
    "\"win32\"",
    "'nt'",
    "'win')",
    "'win32'",
    "TYPE_CHECKING",
    "_mswindows",
    "cygwin",
    "darwin",
    "if WIN:",
    "sys.version_info <",
];
/// Parts of conditions that are true in every container.
const ALWAYS: &[&str] = &["\"posix\"", "'posix'", "sys.version_info >"];
/// Calls that import the module named by a string.
const CALLS: &[&str] = &["__import__(", "import_module("];

/// One import.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Import {
    /// Leading dots: one for the package of the importing module, and one for each package above
    /// it.
    pub(super) level: usize,
    pub(super) module: String,
    /// Names taken from the module. They may be modules too.
    pub(super) names: Vec<String>,
    /// The number of the `try` that contains it. If it succeeds, the imports in `except
    /// ImportError` are left out.
    pub(super) tried: Option<usize>,
    /// The number of the `try` that must fail for this import to run.
    pub(super) instead_of: Option<usize>,
}

/// A block of lines, with the indentation of the line that opened it.
struct Block {
    indent: usize,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Runs,
    Skipped,
    Try(usize),
    Instead(usize),
}

/// Whether the branches of an `if` so far are taken, for its `elif` and `else`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Branch {
    Maybe,
    Taken,
    NotTaken,
}

/// Returns the imports of a source in their order. With `all`, those in functions and after
/// `__name__ == "__main__"` too.
pub(super) fn imports(source: &str, all: bool, fuel: &Fuel) -> Vec<Import> {
    let fuel = fuel.clone();
    let mut scan = Scan {
        all,
        blocks: Vec::new(),
        tries: 0,
        last_try: None,
        last_if: None,
        found: Vec::new(),
        fuel,
    };
    let source = lines(source, &scan.fuel);
    for line in scan.fuel.clone().each(source) {
        if scan.found.len() >= MAX_IMPORTS {
            break;
        }
        scan.line(&line);
    }
    scan.found
}

struct Scan {
    all: bool,
    blocks: Vec<Block>,
    tries: usize,
    /// With their indentations.
    last_try: Option<(usize, usize)>,
    last_if: Option<(usize, Branch)>,
    found: Vec<Import>,
    fuel: Fuel,
}

impl Scan {
    fn line(&mut self, line: &Line) {
        // A line is scanned for every word of both lists, and all open blocks are visited.
        if !self
            .fuel
            .look_through(line.text.len() * (NEVER.len() + ALWAYS.len()) + self.blocks.len())
        {
            return;
        }
        self.blocks.retain(|block| block.indent < line.indent);
        if self.blocks.iter().any(|block| block.kind == Kind::Skipped) {
            return;
        }
        let Some((kind, rest)) = self.opens(line) else {
            self.statements(&line.text);
            return;
        };
        self.blocks.push(Block {
            indent: line.indent,
            kind,
        });
        // `try: import x` in one line.
        if kind != Kind::Skipped && !rest.trim().is_empty() {
            self.statements(rest);
        }
    }

    /// Returns the kind of block that a line opens, and the text after its colon.
    fn opens<'l>(&mut self, line: &'l Line) -> Option<(Kind, &'l str)> {
        let text = line.text.as_str();
        let word = text
            .split(|letter: char| !letter.is_ascii_alphanumeric())
            .next()
            .unwrap_or_default();
        let kind = match word {
            "def" | "async" if self.all => Kind::Runs,
            "def" | "async" | "lambda" => Kind::Skipped,
            "try" => {
                self.tries += 1;
                self.last_try = Some((line.indent, self.tries));
                Kind::Try(self.tries)
            }
            "except" => self.excepts(line),
            "if" => self.condition(line, Branch::Maybe),
            "elif" | "else" => {
                let before = self
                    .last_if
                    .filter(|(indent, _)| *indent == line.indent)
                    .map(|(_, branch)| branch);
                match before {
                    Some(Branch::Taken) => Kind::Skipped,
                    Some(Branch::NotTaken) if word == "else" => Kind::Runs,
                    Some(branch) if word == "elif" => self.condition(line, branch),
                    _ => Kind::Runs,
                }
            }
            "class" | "finally" | "for" | "while" | "with" => Kind::Runs,
            _ => return None,
        };
        // A colon within brackets or a string opens nothing. The last one does, or the one before a
        // short suite.
        let colon = text
            .find(": ")
            .or_else(|| text.ends_with(':').then(|| text.len() - 1))?;
        Some((kind, text.get(colon + 1..).unwrap_or_default()))
    }

    fn excepts(&self, line: &Line) -> Kind {
        let about_imports = ["ImportError", "ModuleNotFoundError", "Exception", "except:"];
        match self.last_try {
            Some((indent, number))
                if indent == line.indent
                    && about_imports.iter().any(|name| line.text.contains(name)) =>
            {
                Kind::Instead(number)
            }
            _ => Kind::Skipped,
        }
    }

    fn condition(&mut self, line: &Line, before: Branch) -> Kind {
        let mentions = |words: &[&str]| words.iter().any(|word| line.text.contains(word));
        let is_main = line.text.contains("__name__") && line.text.contains("__main__");
        let negated = line.text.contains(" not ") || line.text.contains("!=");
        let branch = if mentions(NEVER) && !negated || is_main && !self.all {
            Branch::NotTaken
        } else if mentions(ALWAYS) && !negated || mentions(NEVER) {
            Branch::Taken
        } else {
            Branch::Maybe
        };
        // After an `if` that may have been taken, no later branch is certain.
        let left = if before == Branch::Maybe
            && line.text.starts_with("elif")
            && branch == Branch::NotTaken
        {
            Branch::Maybe
        } else {
            branch
        };
        self.last_if = Some((line.indent, left));
        if branch == Branch::NotTaken {
            Kind::Skipped
        } else {
            Kind::Runs
        }
    }

    fn statements(&mut self, text: &str) {
        for statement in self.fuel.clone().each(text.split(';')) {
            self.statement(statement.trim());
        }
    }

    fn statement(&mut self, text: &str) {
        if let Some(modules) = text.strip_prefix("import ") {
            for module in self.fuel.clone().each(modules.split(',')) {
                self.add(0, module, Vec::new());
            }
        } else if let Some((module, names)) = text
            .strip_prefix("from ")
            .and_then(|rest| rest.split_once(" import"))
        {
            let module = module.trim();
            let level = module.len() - module.trim_start_matches('.').len();
            let names =
                names.trim_matches(|letter: char| letter.is_whitespace() || "()".contains(letter));
            let names = names
                .split(',')
                .filter_map(|name| name.split_whitespace().next());
            let names = self
                .fuel
                .copies(names.filter(|name| name.len() <= MAX_NAME).take(MAX_NAMES));
            self.add(level, module.get(level..).unwrap_or_default(), names);
        }
        for call in CALLS {
            for behind in self.fuel.clone().each(text.split(call).skip(1)) {
                let Some(quote) = behind
                    .chars()
                    .next()
                    .filter(|letter| "'\"".contains(*letter))
                else {
                    continue;
                };
                let name = behind
                    .get(1..)
                    .and_then(|behind| behind.split(quote).next());
                self.add(0, name.unwrap_or_default(), Vec::new());
            }
        }
    }

    fn add(&mut self, level: usize, module: &str, names: Vec<String>) {
        let module = module.split_whitespace().next().unwrap_or_default();
        if !self
            .fuel
            .make(size_of::<Import>() + module.len().min(MAX_NAME))
        {
            return;
        }
        let is_name = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == '.';
        if module.is_empty() && level == 0
            || module.len() > MAX_NAME
            || !module.chars().all(is_name)
            || self.found.len() >= MAX_IMPORTS
        {
            return;
        }
        let tried = self.blocks.iter().rev().find_map(|block| match block.kind {
            Kind::Try(number) => Some(number),
            Kind::Runs | Kind::Skipped | Kind::Instead(_) => None,
        });
        let instead_of = self.blocks.iter().rev().find_map(|block| match block.kind {
            Kind::Instead(number) => Some(number),
            Kind::Runs | Kind::Skipped | Kind::Try(_) => None,
        });
        self.found.push(Import {
            level,
            module: module.to_owned(),
            names,
            tried,
            instead_of,
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn modules(source: &str, all: bool) -> Vec<String> {
        let name = |import: Import| {
            let names = if import.names.is_empty() {
                String::new()
            } else {
                format!(":{}", import.names.join(","))
            };
            format!("{}{}{names}", ".".repeat(import.level), import.module)
        };
        imports(source, all, &Fuel::new())
            .into_iter()
            .map(name)
            .collect()
    }

    #[test]
    fn every_form_of_import_is_found() {
        let source = "import a, b.c as d; import e\nfrom f.g import h as i, j\nfrom . import k\nfrom ..l import (m,\n  n, # o\n)\n\
                      x = __import__('p')\nimportlib.import_module(\"q.r\")\nfrom s import *\n";
        assert_eq!(
            modules(source, false),
            [
                "a", "b.c", "e", "f.g:h,j", ".:k", "..l:m,n", "p", "q.r", "s:*"
            ]
        );
    }

    #[test]
    fn imports_that_do_not_run_are_left_out() {
        let source = "\"\"\"import no1\n  import no2\n\"\"\"\ndef f():\n    import no3\n\n    import no4\nimport a\n\
                      class C:\n    import b\n    def g(self): import no5\n    import c\n\
                      if sys.platform == 'win32':\n    import no6\nelse:\n    import d\n\
                      if TYPE_CHECKING:\n    import no7\n\
                      if sys.version_info >= (3, 8):\n    import e\nelse:\n    import no8\n\
                      if 'posix' in names:\n    import f\nelif 'nt' in names:\n    import no9\n\
                      if __name__ == '__main__':\n    import main\n# import no10\ns = 'import no11'\n";
        assert_eq!(modules(source, false), ["a", "b", "c", "d", "e", "f"]);
        let all = modules(source, true);
        assert!(
            all.contains(&"no3".to_owned()) && all.contains(&"main".to_owned()),
            "{all:?}"
        );
    }

    #[test]
    fn imports_of_a_try_and_of_its_except_are_distinguished() {
        let source = "try:\n    import a\n    import b\nexcept ImportError:\n    import c\nexcept ValueError:\n    import no\nimport d\n";
        let found: Vec<_> = imports(source, false, &Fuel::new())
            .into_iter()
            .map(|i| (i.module, i.tried, i.instead_of))
            .collect();
        let expected = [
            ("a", Some(1), None),
            ("b", Some(1), None),
            ("c", None, Some(1)),
            ("d", None, None),
        ];
        assert_eq!(
            found,
            expected.map(|(name, tried, instead)| (name.to_owned(), tried, instead))
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_to_its_end(text in "([a-z.,:;#()'\"\\\\ \n]|import |from |try:|\"\"\"){0,200}") {
            prop_assert!(imports(&text, true, &Fuel::new()).len() <= MAX_IMPORTS);
        }
    }
}
