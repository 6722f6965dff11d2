//! The one executable: parse, dispatch, exit code.

use std::process::ExitCode;

/// glibc's allocator is three times slower if buffers of megabytes come and go.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    starlift::cli::main()
}
