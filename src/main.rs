//! The one executable: parse, dispatch, exit code.

use std::process::ExitCode;

use starlift::allocator::Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    starlift::cli::main()
}
