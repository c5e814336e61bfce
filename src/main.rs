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

/// Rows are many small pieces of memory that one thread makes and another lets go. Its settings are in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    factsync::cli::main()
}
