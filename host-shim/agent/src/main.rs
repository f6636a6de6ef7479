//! The `ipc-direct` command.

fn main() -> std::process::ExitCode {
    ipc_direct_agent::cli::main()
}
