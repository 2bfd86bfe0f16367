//! The executable. The library has all its parts.

use std::process::ExitCode;

use tokio::runtime::Builder;

// The work is calls that wait for containerd. On a node with many cores, a worker for each would only take memory. With
// two, a long computation does not hold up a hook.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let runtime = Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("nri-unpack: threads cannot be started: {e}");
            return ExitCode::FAILURE;
        }
    };
    let exit = runtime.block_on(nri_unpack::cli::main());
    // Otherwise the end waits for calls that block a thread: a look-up of a name that no server answers, a disk that hangs.
    runtime.shutdown_background();
    exit.into()
}
