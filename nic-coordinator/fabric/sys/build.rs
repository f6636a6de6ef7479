//! Generates the bindings from the installed libfabric and compiles `csrc/shim.c`.

use bind::Library;

/// The functions, types and constants that the crate `fabric` uses, beside those of csrc/shim.h.
const ALLOWED_FUNCTIONS: &str = "fi_(getinfo|freeinfo|dupinfo|fabric|strerror|version)";
const ALLOWED_TYPES: [&str; 2] =
    ["fi_(info|eq_attr|cq_attr)", "fi_(eq_cm_entry|eq_err_entry|cq_msg_entry|cq_err_entry)"];
const ALLOWED_VARS: [&str; 2] = [
    "FI_(CONNREQ|CONNECTED|SHUTDOWN|EAGAIN|EAVAIL|ENODATA|EP_MSG|THREAD_SAFE|PROGRESS_MANUAL)",
    "FI_(WAIT_FD|CQ_FORMAT_MSG)",
];

fn main() {
    let libfabric = Library {
        name: "libfabric",
        version: "1.11",
        install: "apt-get install libfabric-dev libclang-dev pkg-config gcc libc6-dev",
        shim: "ipc_direct_fabric_shim",
        is_loud: false,
        links: &["fabric"],
    };
    libfabric.bind(|builder| {
        let builder = builder
            .prepend_enum_name(false)
            // Handled by pointer, and by their first field, which is a `fid`.
            .opaque_type("fi_ops.*")
            .allowlist_function(ALLOWED_FUNCTIONS);
        let builder = ALLOWED_TYPES.iter().fold(builder, |builder, name| builder.allowlist_type(name));
        ALLOWED_VARS.iter().fold(builder, |builder, name| builder.allowlist_var(name))
    });
}
