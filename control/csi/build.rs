//! Compiles `proto/csi.proto` in Rust: no compiler of protocol buffers has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/csi.proto");
    let files = protox::compile(["csi.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
        // What the services do not have yet answers UNIMPLEMENTED.
        .generate_default_stubs(true)
        .build_transport(false)
        .compile_fds(files)?;
    Ok(())
}
