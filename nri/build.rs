//! Makes the ttrpc bindings out of `proto/nri.proto`, without `protoc`.

use std::path::Path;
use std::{env, fs, io};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

const PROTO: &str = "proto/nri.proto";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed={PROTO}");
    Codegen::new()
        .include("proto")
        .input(PROTO)
        .rust_protobuf()
        // Descriptors and reflection would double the bindings, and nothing here reflects.
        .rust_protobuf_customize(ProtobufCustomize::default().lite_runtime(true))
        .customize(Customize {
            async_all: true,
            ..Customize::default()
        })
        .run()?;

    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    for file in ["nri.rs", "nri_ttrpc.rs"] {
        strip_inner_attributes(&Path::new(&out).join(file))?;
    }
    Ok(())
}

/// `include!` takes no inner attributes and no inner documentation, and one of the generators'
/// attributes would lower a lint that this crate forbids. `src/api.rs` sets what is needed.
fn strip_inner_attributes(path: &Path) -> io::Result<()> {
    let kept: String = fs::read_to_string(path)?
        .split_inclusive('\n')
        .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
        .collect();
    fs::write(path, kept)
}
