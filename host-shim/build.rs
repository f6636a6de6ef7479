//! Compiles what only C can say: functions with variable arguments (see `c/variadic.c`).

fn main() {
    println!("cargo:rerun-if-changed=c/variadic.c");
    cc::Build::new().file("c/variadic.c").warnings_into_errors(true).compile("ipc_direct_variadic");
}
