//! `ipc-direct check`: its verdict is its status, its findings have codes.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::instance::Instance;
use harness::scratch::Scratch;
use harness::{Failure, Outcome, bins, child, ensure};
use rustix::process::getuid;
use serde::Deserialize;

const BOUND: Duration = Duration::from_secs(60);
/// `nobody` and `nogroup` of Debian.
const NOBODY: u32 = 65_534;

#[derive(Debug, Deserialize)]
struct Answer {
    verdict: String,
    files: Vec<PathBuf>,
    findings: Vec<Finding>,
}

#[derive(Debug, Deserialize)]
struct Finding {
    effect: String,
    code: String,
}

/// `ipc-direct check --json`, started by `command`.
fn ask(mut command: Command, status: i32) -> Outcome<Answer> {
    let output = child::run(&mut command, BOUND)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure(output.status.code() == Some(status), || {
        format!("{command:?} ended with {}, not {status}\n{text}", output.status)
    })?;
    serde_json::from_str(&text).map_err(|e| Failure(format!("{command:?}: {e}\n{text}")))
}

fn check(program: &Path, status: i32) -> Outcome<Answer> {
    let mut command = Instance::absent()?.command();
    command.args(["check", "--json"]).arg(program);
    ask(command, status)
}

/// Makes a program from C with these flags.
pub fn compile(dir: &Path, name: &str, source: &str, flags: &[&str]) -> Outcome<PathBuf> {
    let (from, to) = (dir.join(format!("{name}.c")), dir.join(name));
    fs::write(&from, source)?;
    let mut gcc = Command::new(bins::program("gcc")?);
    child::run_ok(gcc.arg(&from).arg("-o").arg(&to).args(flags), BOUND)?;
    Ok(to)
}

pub const NOTHING: &str = "int main(void) { return 0; }";

/// The codes of all findings that make it worse.
fn codes(answer: &Answer) -> Vec<&str> {
    answer.findings.iter().filter(|f| f.effect != "accelerated").map(|f| f.code.as_str()).collect()
}

pub fn accelerated() -> Outcome {
    for name in ["redis-server", "curl", "python3"] {
        let answer = check(Path::new(name), 0)?;
        ensure(answer.verdict == "accelerated" && !answer.files.is_empty(), || {
            format!("{name}: {answer:?}")
        })?;
    }
    Ok(())
}

pub fn not_accelerated() -> Outcome {
    let scratch = Scratch::new()?;
    let dir = scratch.path();
    let go = "__attribute__((section(\".go.buildinfo\"))) char info[32] = \"x\"; int main(void) { return info[1]; }";
    let programs = [
        ("static", NOTHING, &["-static"][..], &["static"][..]),
        ("static-pie", NOTHING, &["-static-pie"], &["static"]),
        ("musl", NOTHING, &["-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1"], &["libc"]),
        ("go", go, &[], &["go"]),
        ("static-go", go, &["-static"], &["static", "go"]),
    ];
    for (name, source, flags, expected) in programs {
        let answer = check(&compile(dir, name, source, flags)?, 2)?;
        ensure(answer.verdict == "not" && codes(&answer) == expected, || format!("{name}: {answer:?}"))?;
    }
    // The machine in the ELF header (e_machine, elf(5)) at byte 18: SPARC.
    let mut foreign = fs::read(dir.join("static"))?;
    foreign.splice(18..20, [2, 0]);
    fs::write(dir.join("foreign"), foreign)?;
    fs::set_permissions(dir.join("foreign"), fs::Permissions::from_mode(0o755))?;
    fs::write(dir.join("damaged"), b"\x7fELF and then nothing")?;
    fs::set_permissions(dir.join("damaged"), fs::Permissions::from_mode(0o755))?;
    let others =
        [("foreign", "architecture"), ("damaged", "program"), ("absent", "program"), ("go.c", "program")];
    for (name, code) in others {
        let answer = check(&dir.join(name), 2)?;
        ensure(codes(&answer) == [code], || format!("{name}: {answer:?}"))?;
    }
    Ok(())
}

pub fn partly() -> Outcome {
    let scratch = Scratch::new()?;
    let dir = scratch.path();
    let library =
        compile(dir, "liburing.so", "int io_uring_submit(void) { return 0; }", &["-shared", "-fPIC"])?;
    let source = "int io_uring_submit(void); int main(void) { return io_uring_submit(); }";
    let program = compile(dir, "user", source, &[&library.display().to_string()])?;
    let answer = check(&program, 1)?;
    ensure(answer.verdict == "partly" && codes(&answer) == ["io-uring"], || format!("{answer:?}"))
}

/// setuid, setgid and file capabilities matter to those whom they change.
pub fn privileged() -> Outcome {
    let scratch = Scratch::new()?;
    let dir = scratch.path();
    if !getuid().is_root() {
        // An ordinary user can't make such programs, but every system has one.
        let answer = check(Path::new("/bin/su"), 2)?;
        return ensure(codes(&answer).contains(&"setuid"), || format!("/bin/su: {answer:?}"));
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    let tool = dir.join("ipc-direct");
    fs::copy(bins::product_dir()?.join("ipc-direct"), &tool)?;
    fs::copy(bins::product_dir()?.join("libipc_direct.so"), dir.join("libipc_direct.so"))?;
    let program = compile(dir, "program", NOTHING, &[])?;
    let by_nobody = |status| {
        let mut command = Command::new(bins::program("setpriv")?);
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
        command.arg(&tool).args(["check", "--json", "--socket", "@ipc-direct-no-agent"]).arg(&program);
        ask(command, status)
    };
    by_nobody(0)?;
    for (mode, code) in [(0o4755, "setuid"), (0o2755, "setgid")] {
        fs::set_permissions(&program, fs::Permissions::from_mode(mode))?;
        let answer = by_nobody(2)?;
        ensure(codes(&answer) == [code], || format!("{mode:o} by nobody: {answer:?}"))?;
        check(&program, 0)?;
    }
    chown(&program, Some(NOBODY), Some(NOBODY))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755))?;
    let answer = check(&program, 2)?;
    ensure(codes(&answer) == ["setuid"], || format!("root, setuid nobody: {answer:?}"))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    // cap_net_bind_service=ep, as setcap(8) writes it (struct vfs_cap_data, linux/capability.h).
    let mut capabilities = [0u8; 20];
    capabilities[..8].copy_from_slice(&[1, 0, 0, 2, 0, 4, 0, 0]);
    rustix::fs::setxattr(&program, "security.capability", &capabilities, rustix::fs::XattrFlags::empty())?;
    let answer = by_nobody(2)?;
    ensure(codes(&answer) == ["capabilities"], || format!("capabilities: {answer:?}"))?;
    check(&program, 0).map(drop)
}

/// What runs is the interpreter.
pub fn scripts() -> Outcome {
    let scratch = Scratch::new()?;
    let dir = scratch.path();
    let fixed = compile(dir, "fixed", NOTHING, &["-static"])?;
    let script = |name: &str, text: String| -> Outcome<PathBuf> {
        let path = dir.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    };
    let of_shell = check(&script("shell", "#!/bin/sh -e\ntrue\n".into())?, 0)?;
    ensure(of_shell.files.len() == 2, || format!("{of_shell:?}"))?;
    check(&script("plain", "true\n".into())?, 0)?;
    let by_env = script("env", "#!/usr/bin/env redis-server\n".into())?;
    let of_env = check(&by_env, 0)?;
    let last = of_env.files.last().and_then(|f| f.file_name());
    ensure(last == Some("redis-server".as_ref()), || format!("{of_env:?}"))?;
    let of_static = check(&script("interpreted", format!("#!{}\n", fixed.display()))?, 2)?;
    ensure(codes(&of_static) == ["static"], || format!("{of_static:?}"))?;
    let itself = dir.join("itself");
    let endless = check(&script("itself", format!("#!{}\n", itself.display()))?, 2)?;
    ensure(codes(&endless) == ["program"], || format!("{endless:?}"))
}

/// Whether an agent answers is said, and is no obstacle: `run` starts one.
pub fn agent() -> Outcome {
    let code = |instance: &Instance| -> Outcome<String> {
        let mut command = instance.command();
        command.args(["check", "--json", "redis-server"]);
        let answer = ask(command, 0)?;
        Ok(answer.findings.first().map_or_else(String::new, |f| f.code.clone()))
    };
    let said = code(&Instance::absent()?)?;
    ensure(said == "no-agent", || format!("without an agent: {said}"))?;
    crate::with_instance(|instance| {
        let said = code(instance)?;
        ensure(said == "agent", || format!("with an agent: {said}"))
    })
}
