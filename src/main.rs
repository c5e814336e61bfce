//! The `factsync` binary; everything is in the library.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | a run-time failure |
//! | 2 | usage or configuration |
//! | 3 | drift found and `--exit-code` was given |
//! | 4 | refused by a guard |

use std::process::ExitCode;

/// Rows are many small pieces of memory that one thread makes and another lets go.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    factsync::cli::main()
}
