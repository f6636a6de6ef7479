//! The library defines exactly the symbols that it says it intercepts: the list in `host-shim/src/real.rs`, and the other names
//! that its documentation gives. A symbol that is hidden by accident would silently disable acceleration.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use harness::bins;

/// Other names of functions in the list, and what no Rust function can call.
const ALIASES: [&str; 19] = [
    "accept",
    "closefrom",
    "fcntl64",
    "pipe",
    "sendfile64",
    "freopen64",
    "dprintf",
    "__dprintf_chk",
    "execv",
    "execvp",
    "execl",
    "execlp",
    "execle",
    "__sigaction",
    "signal",
    "bsd_signal",
    "ssignal",
    "vfork",
    "clone",
];

/// Names in the `originals!` list: one a line, `name(arguments) -> type;`.
fn intercepted() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host-shim/src/real.rs");
    let source = std::fs::read_to_string(path).expect("host-shim/src/real.rs is readable");
    let (_, list) = source.split_once("\noriginals! {\n").expect("real.rs has its list");
    let names =
        list.lines().filter_map(|line| line.strip_prefix("    ")?.split_once('(')).map(|(name, _)| name);
    let plain =
        |name: &&str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    names.filter(plain).chain(ALIASES).map(str::to_owned).collect()
}

/// Defined dynamic symbols of the library, as nm(1) lists them.
fn exported() -> BTreeSet<String> {
    let library = bins::product_dir().expect("the product is built").join("libipc_direct.so");
    let nm = bins::program("nm").expect("binutils are installed");
    let out = Command::new(nm).args(["-D", "--defined-only"]).arg(library).output().expect("nm runs");
    assert!(out.status.success(), "nm failed: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).expect("symbol names are text");
    text.lines().filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect()
}

#[test]
fn the_library_exports_what_it_intercepts_and_nothing_else() {
    let (intercepted, exported) = (intercepted(), exported());
    assert!(intercepted.len() > 40, "the list was not understood: {intercepted:?}");
    assert_eq!(intercepted, exported);
}
