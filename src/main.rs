//! The executable. The library has all its parts.

use std::process::ExitCode;

// The work is calls that wait for containerd. On a node with many cores, a worker for each would only take memory. With
// two, a long computation does not hold up a hook.
#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    nri_unpack::cli::main().await.into()
}
