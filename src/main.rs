//! The executable. The library has all its parts.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    nri_unpack::cli::main().await.into()
}
