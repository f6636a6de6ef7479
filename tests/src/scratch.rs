//! A directory of one's own, removed with everything in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Outcome;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The directory.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes it under the system's directory for temporary files.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Outcome<Scratch> {
        // Relaxed: only uniqueness matters.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ipc-direct-scratch-{}-{number}", std::process::id());
        // Names are of one length, since the length of a socket's name shows in what calls answer.
        let dir = std::env::temp_dir().join(format!("{name:_<40}"));
        fs::create_dir(&dir)?;
        Ok(Scratch(dir))
    }

    /// Where.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
