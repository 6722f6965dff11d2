//! Fuzz targets: the parsers that need no image.

use std::collections::BTreeMap;

use super::fuel::Fuel;
use super::sparse::Sparse;
use super::{elf, shell_lexer};

/// Most commands that are read.
const MOST: usize = 1000;

/// Parses a shell script.
pub fn scripts(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let fuel = Fuel::new();
    let variables = BTreeMap::from([("A".to_owned(), text.chars().take(100).collect())]);
    let commands = shell_lexer::commands(&text, MOST, &fuel);
    assert!(commands.len() <= MOST);
    for command in commands {
        let _words = command.expanded(&variables, &["argument".to_owned()], &fuel);
    }
}

/// Parses an ELF file.
pub fn executables(bytes: &[u8]) {
    let _read = elf::read(&Sparse::whole(bytes), &Fuel::new());
}
