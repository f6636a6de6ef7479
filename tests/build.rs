//! Compiles what the tests need in C: a function around `vfork`, a library with a constructor, a static program.

use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=native");
    cc::Build::new().file("native/vfork.c").warnings_into_errors(true).compile("case_vfork");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    link("native/constructor.c", &out.join("libconstructor.so"), &["-shared", "-fPIC"])?;
    link("native/static_echo.c", &out.join("static-echo"), &["-static"])?;
    link("native/answer.c", &out.join("static-answer"), &["-static"])?;
    println!("cargo::rustc-env=CONSTRUCTOR_LIBRARY={}", out.join("libconstructor.so").display());
    println!("cargo::rustc-env=STATIC_ECHO={}", out.join("static-echo").display());
    println!("cargo::rustc-env=STATIC_ANSWER={}", out.join("static-answer").display());
    Ok(())
}

/// Compiles and links one source with the C compiler that `cc` finds.
fn link(source: &str, to: &Path, flags: &[&str]) -> Result<(), Box<dyn Error>> {
    let mut command = cc::Build::new().warnings_into_errors(true).get_compiler().to_command();
    let status = command.args(flags).arg("-o").arg(to).arg(source).status()?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{source} does not compile: run `make setup` (build-essential, which has libc.a)").into())
}
