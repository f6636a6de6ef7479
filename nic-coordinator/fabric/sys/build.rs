//! Generates the bindings from the installed libfabric and compiles `csrc/shim.c`, for `$TARGET`, as `dpdk-sys` does for
//! libdpdk: everything is asked of `pkg-config`.

use std::path::PathBuf;
use std::process::{Command, exit};

const INSTALL: &str = "apt-get install libfabric-dev libclang-dev pkg-config gcc libc6-dev";

/// The functions, types and constants that the crate `fabric` uses.
const ALLOWED_FUNCTIONS: &[&str] = &["shim_.*", "fi_(getinfo|freeinfo|dupinfo|fabric|strerror|version)"];
const ALLOWED_TYPES: &[&str] =
    &["fi_(info|eq_attr|cq_attr)", "fi_(eq_cm_entry|eq_err_entry|cq_msg_entry|cq_err_entry)"];
const ALLOWED_VARS: &[&str] = &[
    "shim_.*",
    "FI_(CONNREQ|CONNECTED|SHUTDOWN|EAGAIN|EAVAIL|ENODATA|EP_MSG|THREAD_SAFE|PROGRESS_MANUAL)",
    "FI_(WAIT_FD|CQ_FORMAT_MSG)",
];

fn main() {
    println!("cargo:rerun-if-changed=csrc/shim.h");
    println!("cargo:rerun-if-changed=csrc/shim.c");
    println!("cargo:rerun-if-changed=build.rs");
    for variable in ["PKG_CONFIG", "PKG_CONFIG_PATH", "PKG_CONFIG_LIBDIR", "PKG_CONFIG_SYSROOT_DIR"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }

    let cflags = pkg_config("--cflags");
    compile_shim(&cflags);
    generate_bindings(&cflags);

    for flag in pkg_config("--libs-only-L") {
        if let Some(dir) = flag.strip_prefix("-L") {
            println!("cargo:rustc-link-search=native={dir}");
        }
    }
    println!("cargo:rustc-link-lib=dylib=fabric");
}

/// Ends the build with one sentence instead of a backtrace.
fn fail(sentence: &str) -> ! {
    println!("cargo:warning=fabric-sys: {sentence}");
    eprintln!("fabric-sys: {sentence}");
    exit(1)
}

/// The flags that `pkg-config QUERY libfabric` prints, in their order.
fn pkg_config(query: &str) -> Vec<String> {
    let program = std::env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".into());
    let mut command = Command::new(&program);
    // Without this, -L is left out when it seems to be the linker's own place, which depends on whose linker it is.
    command.env("PKG_CONFIG_ALLOW_SYSTEM_LIBS", "1");
    match command.args(["--print-errors", query, "libfabric >= 1.11"]).output() {
        Err(error) => fail(&format!("cannot run {program} ({error}); on Debian: {INSTALL}")),
        Ok(output) if !output.status.success() => {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            fail(&format!("{program} finds no libfabric of version 1.11 or newer; on Debian: {INSTALL}"))
        }
        Ok(output) => String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect(),
    }
}

fn compile_shim(cflags: &[String]) {
    let mut build = cc::Build::new();
    build.file("csrc/shim.c").opt_level(2);
    for flag in cflags {
        build.flag(flag);
    }
    if let Err(error) = build.try_compile("ipc_direct_fabric_shim") {
        eprintln!("{error}");
        fail(&format!(
            "the C compiler cannot compile csrc/shim.c (its messages are above); on Debian: {INSTALL}"
        ));
    }
}

fn generate_bindings(cflags: &[String]) {
    if let Err(error) = clang_sys::load() {
        eprintln!("{error}");
        fail(&format!("libclang cannot be loaded; on Debian: {INSTALL}"));
    }
    let mut builder = bindgen::builder()
        .header("csrc/shim.h")
        .clang_args(cflags)
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
        .use_core()
        .merge_extern_blocks(true)
        .wrap_unsafe_ops(true)
        .generate_comments(false)
        .formatter(bindgen::Formatter::None)
        .prepend_enum_name(false)
        // Handled by pointer, and by their first field, which is a `fid`.
        .opaque_type("fi_ops.*");
    for function in ALLOWED_FUNCTIONS {
        builder = builder.allowlist_function(function);
    }
    for name in ALLOWED_TYPES {
        builder = builder.allowlist_type(name);
    }
    for name in ALLOWED_VARS {
        builder = builder.allowlist_var(name);
    }
    let bindings = builder.generate().unwrap_or_else(|error| {
        eprintln!("{error}");
        fail(&format!(
            "libclang cannot read libfabric's headers (its messages are above); on Debian: {INSTALL}"
        ))
    });
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
    if let Err(error) = bindings.write_to_file(&out) {
        fail(&format!("cannot write {}: {error}", out.display()));
    }
}
