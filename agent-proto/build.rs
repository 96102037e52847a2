//! Generates the wire types from `proto/` without protoc.
use std::error::Error;

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> Result<(), Box<dyn Error>> {
    let protos = ["agent", "health", "microvm", "oci", "types"].map(|name| format!("proto/{name}.proto"));
    println!("cargo:rerun-if-changed=proto");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    Codegen::new()
        .out_dir(&out)
        .inputs(&protos)
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(true))
        .customize(Customize { async_all: true, gen_mod: true, ..Default::default() })
        .run()?;
    // `include!` takes no inner attributes, and the generated index starts with one.
    let index = out.join("mod.rs");
    let modules = std::fs::read_to_string(&index)?;
    let modules: Vec<&str> = modules.lines().filter(|line| !line.starts_with("#!")).collect();
    std::fs::write(&index, modules.join("\n"))?;
    Ok(())
}
