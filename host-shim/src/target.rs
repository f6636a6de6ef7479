//! What kind of program is about to be executed: will the shim be there, or is it foreign to us?
//!
//! Where this cannot tell, it says foreign: what a foreign program inherits goes through the kernel, which is
//! always right.

use core::ffi::CStr;

use rustix::fs::{Mode, OFlags, Stat};

use crate::sys;

/// Interpreters of interpreters: the kernel allows about as many.
const SCRIPTS_MAX: usize = 5;
/// As much of a file as the kernel looks at for `#!`.
const HEAD_BYTES: usize = 256;
/// Program headers that are looked at.
const HEADERS_MAX: usize = 32;

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;

/// What a file is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A dynamic program that will load the shim.
    Ours,
    /// Something that runs without it: static, another libc or architecture, set-user-id, or made by Go, whose
    /// programs make their system calls themselves.
    Foreign,
    /// Not there, or not executable: execve(2) will say so.
    Missing,
}

/// Looks at the file. `shimmed`: the environment for it loads the shim.
pub fn look(path: &CStr, shimmed: bool) -> Target {
    let mut name = [0u8; HEAD_BYTES];
    let mut path = path;
    for _ in 0..SCRIPTS_MAX {
        let executable = rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
        if !executable {
            return Target::Missing;
        }
        let Ok(file) = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
            return Target::Foreign;
        };
        let fd = rustix::fd::IntoRawFd::into_raw_fd(file);
        let mode = rustix::fs::fstat(sys::borrow(fd)).map_or(0, |s| s.st_mode);
        if !rustix::fs::FileType::from_raw_mode(mode).is_file() {
            sys::close(fd);
            return Target::Missing;
        }
        let mut head = [0u8; HEAD_BYTES];
        let n = rustix::io::pread(sys::borrow(fd), &mut head, 0).unwrap_or(0);
        let head = head.get(..n).unwrap_or(&[]);
        if let Some(rest) = head.strip_prefix(b"#!") {
            sys::close(fd);
            match interpreter(rest, &mut name) {
                Some(next) => path = next,
                None => return Target::Foreign,
            }
            continue;
        }
        let ours = shimmed && !changes_identity(fd) && is_dynamic_glibc(fd, head);
        sys::close(fd);
        return if ours { Target::Ours } else { Target::Foreign };
    }
    Target::Foreign
}

/// The first word after `#!`, as a C string in `name`.
fn interpreter<'a>(line: &[u8], name: &'a mut [u8; HEAD_BYTES]) -> Option<&'a CStr> {
    let line = line.split(|b| *b == b'\n').next()?;
    let word = line.split(|b| *b == b' ' || *b == b'\t').find(|w| !w.is_empty())?;
    let place = name.get_mut(..=word.len())?;
    let (last, text) = place.split_last_mut()?;
    text.copy_from_slice(word);
    *last = 0;
    CStr::from_bytes_with_nul(place).ok()
}

/// The kernel makes such a program "secure": its loader ignores `LD_PRELOAD`.
fn changes_identity(fd: i32) -> bool {
    let Ok(stat) = rustix::fs::fstat(sys::borrow(fd)) else { return true };
    let Stat { st_mode: mode, st_uid: uid, st_gid: gid, .. } = stat;
    let uid_changes = mode & libc::S_ISUID != 0 && uid != rustix::process::geteuid().as_raw();
    let gid_changes = mode & libc::S_ISGID != 0 && gid != rustix::process::getegid().as_raw();
    let mut none = [0u8; 0];
    let mut capabilities =
        || rustix::fs::fgetxattr(sys::borrow(fd), c"security.capability", &mut none).is_ok();
    uid_changes || gid_changes || (!rustix::process::geteuid().is_root() && capabilities())
}

fn word<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}
fn half(bytes: &[u8], at: usize) -> Option<u16> {
    word(bytes, at).map(u16::from_le_bytes)
}
fn long(bytes: &[u8], at: usize) -> Option<u64> {
    word(bytes, at).map(u64::from_le_bytes)
}

/// ELF-64 of this machine, with glibc's loader, and not made by Go (elf(5)).
fn is_dynamic_glibc(fd: i32, head: &[u8]) -> bool {
    let elf64 = head.starts_with(b"\x7fELF\x02\x01") && half(head, 18) == Some(MACHINE);
    let (Some(offset), Some(56), Some(count)) = (long(head, 32), half(head, 54), half(head, 56)) else {
        return false;
    };
    let mut loader = false;
    for i in 0..usize::from(count).min(HEADERS_MAX) {
        let mut header = [0u8; 56];
        let at = offset.saturating_add(56 * i as u64);
        if rustix::io::pread(sys::borrow(fd), &mut header, at).ok() != Some(header.len()) {
            return false;
        }
        let mut content = [0u8; 128];
        match word(&header, 0).map(u32::from_le_bytes) {
            Some(PT_INTERP) => {
                let text = content_of(fd, &header, &mut content);
                loader = text.windows(9).any(|w| w == b"/ld-linux");
            }
            // A note's owner stands after its three lengths.
            Some(PT_NOTE) if content_of(fd, &header, &mut content).get(12..15) == Some(b"Go\0") => {
                return false;
            }
            _ => {}
        }
    }
    elf64 && loader
}

/// What a program header points to, as far as it fits.
fn content_of<'a>(fd: i32, header: &[u8; 56], content: &'a mut [u8; 128]) -> &'a [u8] {
    let start = long(header, 8).unwrap_or(0);
    let size = usize::try_from(long(header, 32).unwrap_or(0)).unwrap_or(0).min(content.len());
    let place = content.get_mut(..size).unwrap_or(&mut []);
    let n = rustix::io::pread(sys::borrow(fd), &mut *place, start).unwrap_or(0);
    place.get(..n).unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_apart() {
        assert_eq!(look(c"/bin/ls", true), Target::Ours);
        assert_eq!(look(c"/bin/ls", false), Target::Foreign);
        assert_eq!(look(c"/sbin/ldconfig", true), Target::Foreign, "static");
        assert_eq!(look(c"/usr/bin/ldd", true), Target::Ours, "a script of a dynamic shell");
        assert_eq!(look(c"/nonexistent", true), Target::Missing);
        assert_eq!(look(c"/etc/passwd", true), Target::Missing);
        assert_eq!(look(c"/bin", true), Target::Missing);
    }
}
