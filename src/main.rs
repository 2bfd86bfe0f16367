//! The program: see the library for its parts.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    nri_unpack::cli::main().await.into()
}
