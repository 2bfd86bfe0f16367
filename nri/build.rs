//! Generates the ttrpc bindings from `proto/nri.proto`, without `protoc`.

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
        // Without descriptors and reflection, which this crate does not use, the bindings are half as large.
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

/// Removes inner attributes and inner documentation, which `include!` does not accept. One of the generated
/// attributes would also lower a lint that this crate forbids. `src/api.rs` sets the needed attributes.
fn strip_inner_attributes(path: &Path) -> io::Result<()> {
    let kept: String = fs::read_to_string(path)?
        .split_inclusive('\n')
        .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
        .collect();
    fs::write(path, kept)
}
