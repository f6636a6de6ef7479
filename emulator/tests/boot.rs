//! A card that does not come up says why in one sentence, and leaves no process behind. The real
//! coordinator is booted by the agent's tests; here are programs that only pretend.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use emulator::{BootError, BootOptions, Card};

/// A coordinator that is a shell script; the file goes away with it.
struct Fake {
    path: PathBuf,
}

impl Fake {
    fn new(name: &str, script: &str) -> Fake {
        let path = std::env::temp_dir().join(format!("ipc-direct-fake-{name}-{}", std::process::id()));
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Fake { path }
    }

    fn boot(&self) -> BootError {
        let options = BootOptions {
            coordinator: Some(self.path.clone()),
            up_timeout: Duration::from_millis(500),
            ..BootOptions::default()
        };
        let Err(error) = Card::boot(&options) else { panic!("a script is no card") };
        let marker = self.path.to_str().unwrap();
        let running = fs::read_dir("/proc").unwrap().flatten().any(|e| {
            fs::read(e.path().join("cmdline")).is_ok_and(|c| String::from_utf8_lossy(&c).contains(marker))
        });
        assert!(!running, "the pretender still runs");
        error
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[test]
fn a_missing_program_is_named() {
    let options = BootOptions { coordinator: Some("/nonexistent/nic".into()), ..BootOptions::default() };
    let Err(error) = Card::boot(&options) else { panic!("booted from nothing") };
    assert!(matches!(error, BootError::Missing(_)) && error.to_string().contains("/nonexistent/nic"));
}

#[test]
fn last_words_are_quoted() {
    let fake = Fake::new("words", "echo first >&2; echo EAL: no luck today >&2; exit 3");
    let error = fake.boot();
    assert!(matches!(error, BootError::Ended(..)), "{error}");
    assert!(error.to_string().contains("first | EAL: no luck today"), "{error}");
}

#[test]
fn missing_libraries_and_hugepages_are_recognised() {
    let fake =
        Fake::new("lib", "echo 'x: error while loading shared libraries: librte_eal.so.23' >&2; exit 127");
    let error = fake.boot();
    assert!(matches!(error, BootError::NoDpdk(_)) && error.to_string().contains("libdpdk-dev"), "{error}");
    let fake = Fake::new("huge", "echo 'EAL: Cannot get hugepage information.' >&2; exit 1");
    let error = fake.boot();
    assert!(matches!(error, BootError::NoHugepages(_)), "{error}");
}

#[test]
fn a_silent_one_is_given_up() {
    let fake = Fake::new("silent", "echo waiting for nothing >&2; exec sleep 600");
    let error = fake.boot();
    assert!(matches!(error, BootError::Late(..)), "{error}");
    assert!(error.to_string().contains("waiting for nothing"), "{error}");
}
