//! Generates the bindings from the installed libdpdk and compiles `csrc/shim.c`.
//!
//! Everything is asked of `pkg-config` and done for `$TARGET`, so that a cross build needs only what every cross
//! build needs: `PKG_CONFIG` / `PKG_CONFIG_LIBDIR` / `PKG_CONFIG_SYSROOT_DIR`, `CC_<target>` / `CFLAGS_<target>`
//! and `BINDGEN_EXTRA_CLANG_ARGS_<target>`.
//! The flags are used raw: the `pkg-config` crate drops `-include rte_config.h` and `-march`, without which DPDK's
//! headers do not compile or describe another ABI than the library's.

use std::path::PathBuf;
use std::process::{Command, exit};

const INSTALL: &str = "apt-get install libdpdk-dev libclang-dev pkg-config gcc libc6-dev";

/// The functions and constants that `ipc-direct-dpdk` uses, by module.
const ALLOWED_FUNCTIONS: &[&str] = &[
    // everything of csrc/shim.h
    "shim_.*",
    // eal, lcores, errno
    "rte_eal_(init|cleanup|has_hugepages|get_runtime_dir|remote_launch|wait_lcore)",
    "rte_get_(main_lcore|next_lcore)",
    "rte_lcore_to_socket_id",
    "rte_strerror",
    "rte_version",
    // mempool, mbuf
    "rte_pktmbuf_pool_create",
    "rte_mempool_(avail_count|in_use_count)",
    // ethdev
    "rte_eth_dev_(get_port_by_name|info_get|socket_id|configure|adjust_nb_rx_tx_desc|start|stop|close)",
    "rte_eth_(rx|tx)_queue_setup",
    "rte_eth_(macaddr_get|promiscuous_enable|stats_get|find_next)",
    // ring
    "rte_ring_(create_elem|free)",
    // telemetry
    "rte_telemetry_register_cmd",
    "rte_tel_data_(start_array|start_dict|string|alloc|free)",
    "rte_tel_data_add_(array|dict)_(string|u64|container)",
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
    // The drivers are loaded at run time from DPDK's own directory: only what is called from here is linked.
    for library in ["rte_ethdev", "rte_mbuf", "rte_mempool", "rte_ring", "rte_eal", "rte_telemetry"] {
        println!("cargo:rustc-link-lib=dylib={library}");
    }
}

/// Ends the build with one sentence instead of a backtrace.
fn fail(sentence: &str) -> ! {
    println!("cargo:warning=dpdk-sys: {sentence}");
    eprintln!("dpdk-sys: {sentence}");
    exit(1)
}

/// The flags that `pkg-config QUERY libdpdk` prints, in their order.
fn pkg_config(query: &str) -> Vec<String> {
    let program = std::env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".into());
    let mut command = Command::new(&program);
    // Without this, -L is left out when it seems to be the linker's own place, which depends on whose linker it is.
    command.env("PKG_CONFIG_ALLOW_SYSTEM_LIBS", "1");
    match command.args(["--print-errors", query, "libdpdk >= 22.11"]).output() {
        Err(error) => fail(&format!("cannot run {program} ({error}); on Debian: {INSTALL}")),
        Ok(output) if !output.status.success() => {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            fail(&format!("{program} finds no libdpdk of version 22.11 or newer; on Debian: {INSTALL}"))
        }
        Ok(output) => String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect(),
    }
}

fn compile_shim(cflags: &[String]) {
    let mut build = cc::Build::new();
    build.file("csrc/shim.c").warnings(false).opt_level(2);
    for flag in cflags {
        build.flag(flag);
    }
    if let Err(error) = build.try_compile("ipc_direct_dpdk_shim") {
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
        // Only ever handled by pointer. With their fields they are packed-and-aligned mixtures (E0588).
        .opaque_type("rte_mbuf")
        .opaque_type("rte_mempool")
        .opaque_type("rte_ring")
        .allowlist_var("shim_.*")
        .allowlist_var("RTE_MAX_LCORE")
        .allowlist_var("RING_F_(SP_ENQ|SC_DEQ|EXACT_SZ)")
        .allowlist_type("rte_tel_value_type");
    for function in ALLOWED_FUNCTIONS {
        builder = builder.allowlist_function(function);
    }
    let bindings = builder.generate().unwrap_or_else(|error| {
        eprintln!("{error}");
        fail(&format!("libclang cannot read DPDK's headers (its messages are above); on Debian: {INSTALL}"))
    });
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
    if let Err(error) = bindings.write_to_file(&out) {
        fail(&format!("cannot write {}: {error}", out.display()));
    }
}
