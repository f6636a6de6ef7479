//! For build scripts: generates the bindings to an installed C library and compiles `csrc/shim.c`, which has what bindgen can't
//! bind (inline functions and macros).
//!
//! Everything is asked of `pkg-config` and done for `$TARGET`, so that a cross build needs only what every cross
//! build needs: `PKG_CONFIG` / `PKG_CONFIG_LIBDIR` / `PKG_CONFIG_SYSROOT_DIR`, `CC_<target>` / `CFLAGS_<target>`
//! and `BINDGEN_EXTRA_CLANG_ARGS_<target>`.
//! The flags are used raw: the `pkg-config` crate drops `-include rte_config.h` and `-march`, without which DPDK's
//! headers do not compile or describe another ABI than the library's.

use std::path::PathBuf;
use std::process::{Command, exit};

/// A library and what is made of it.
#[derive(Clone, Copy, Debug)]
pub struct Library<'a> {
    /// Its name for pkg-config.
    pub name: &'a str,
    /// The oldest version that will do.
    pub version: &'a str,
    /// How Debian installs it, and what else is needed here.
    pub install: &'a str,
    /// What the compiled `csrc/shim.c` is called.
    pub shim: &'a str,
    /// Warnings about its headers are not shown.
    pub is_loud: bool,
    /// What is linked, of all that pkg-config names.
    pub links: &'a [&'a str],
}

impl Library<'_> {
    /// Does all of it; `choose` says what is bound. Ends the build script with one sentence if it can't.
    pub fn bind(&self, choose: impl FnOnce(bindgen::Builder) -> bindgen::Builder) {
        for file in ["csrc/shim.h", "csrc/shim.c", "build.rs"] {
            println!("cargo:rerun-if-changed={file}");
        }
        for variable in ["PKG_CONFIG", "PKG_CONFIG_PATH", "PKG_CONFIG_LIBDIR", "PKG_CONFIG_SYSROOT_DIR"] {
            println!("cargo:rerun-if-env-changed={variable}");
        }
        let cflags = self.pkg_config("--cflags");
        self.compile_shim(&cflags);
        self.generate_bindings(&cflags, choose);
        for flag in self.pkg_config("--libs-only-L") {
            if let Some(dir) = flag.strip_prefix("-L") {
                println!("cargo:rustc-link-search=native={dir}");
            }
        }
        for library in self.links {
            println!("cargo:rustc-link-lib=dylib={library}");
        }
    }

    /// The flags that `pkg-config QUERY LIBRARY` prints, in their order.
    fn pkg_config(&self, query: &str) -> Vec<String> {
        let Library { name, version, install, .. } = self;
        let program = std::env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".into());
        let mut command = Command::new(&program);
        // Without this, -L is left out when it seems to be the linker's own place, which depends on whose linker it is.
        command.env("PKG_CONFIG_ALLOW_SYSTEM_LIBS", "1");
        match command.args(["--print-errors", query, &format!("{name} >= {version}")]).output() {
            Err(error) => fail(&format!("cannot run {program} ({error}); on Debian: {install}")),
            Ok(output) if !output.status.success() => {
                eprintln!("{}", String::from_utf8_lossy(&output.stderr));
                fail(&format!(
                    "{program} finds no {name} of version {version} or newer; on Debian: {install}"
                ))
            }
            Ok(output) => {
                String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect()
            }
        }
    }

    fn compile_shim(&self, cflags: &[String]) {
        let mut build = cc::Build::new();
        build.file("csrc/shim.c").warnings(!self.is_loud).opt_level(2);
        for flag in cflags {
            build.flag(flag);
        }
        if let Err(error) = build.try_compile(self.shim) {
            eprintln!("{error}");
            fail(&format!(
                "the C compiler cannot compile csrc/shim.c (its messages are above); on Debian: {}",
                self.install
            ));
        }
    }

    fn generate_bindings(
        &self,
        cflags: &[String],
        choose: impl FnOnce(bindgen::Builder) -> bindgen::Builder,
    ) {
        let Library { name, install, .. } = self;
        if let Err(error) = clang_sys::load() {
            eprintln!("{error}");
            fail(&format!("libclang cannot be loaded; on Debian: {install}"));
        }
        let builder = bindgen::builder()
            .header("csrc/shim.h")
            .clang_args(cflags)
            .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
            .use_core()
            .merge_extern_blocks(true)
            .wrap_unsafe_ops(true)
            .generate_comments(false)
            .formatter(bindgen::Formatter::None)
            .allowlist_function("shim_.*")
            .allowlist_var("shim_.*");
        let bindings = choose(builder).generate().unwrap_or_else(|error| {
            eprintln!("{error}");
            fail(&format!(
                "libclang cannot read {name}'s headers (its messages are above); on Debian: {install}"
            ))
        });
        let Some(out) = std::env::var_os("OUT_DIR") else { fail("cargo has set no OUT_DIR") };
        let out = PathBuf::from(out).join("bindings.rs");
        if let Err(error) = bindings.write_to_file(&out) {
            fail(&format!("cannot write {}: {error}", out.display()));
        }
    }
}

/// Ends the build with one sentence instead of a backtrace.
fn fail(sentence: &str) -> ! {
    let package = std::env::var("CARGO_PKG_NAME").unwrap_or_default();
    println!("cargo:warning={package}: {sentence}");
    eprintln!("{package}: {sentence}");
    exit(1)
}
