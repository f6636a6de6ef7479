//! What a command line would execute, and whether the preload library can get into it: found in PATH, scripts
//! followed to their interpreters, the ELF file looked at. Nothing is run.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use object::elf;
use object::read::elf::{ElfFile32, ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, FileKind, Object, ObjectSection, ObjectSymbol, ReadCache, ReadRef};

/// Interpreters of interpreters that Linux follows (execve(2): BINPRM_MAX_RECURSION is 4), and as much again for env(1).
const DEPTH_MAX: usize = 8;
/// Bytes of a `#!` line that Linux looks at (execve(2)).
const SCRIPT_LINE_BYTES: usize = 255;
/// Where execvp(3) looks without `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Why there is nothing to look at.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// Neither a path nor in `PATH`.
    #[error("{0}: no such program")]
    NotFound(PathBuf),
    /// Found, but not for us.
    #[error("{0} can't be executed: it is no regular file with permission to execute")]
    NotExecutable(PathBuf),
    /// Found, but unreadable or gone.
    #[error("{0} can't be read: {1}")]
    Unreadable(PathBuf, #[source] io::Error),
    /// Damaged, or another system's.
    #[error("{0} is no program for Linux: {1}")]
    Malformed(PathBuf, object::Error),
    /// Interpreters without end.
    #[error("{0}: too many interpreters of interpreters")]
    TooDeep(PathBuf),
}

/// What `argv[0]` leads to.
#[derive(Debug)]
pub struct Program {
    /// Files on the way, the one that was named first; the last is the ELF file that runs.
    pub chain: Vec<PathBuf>,
    /// What keeps the library out, most fundamental first.
    pub obstacles: Vec<Obstacle>,
    /// What the library does not see although it gets in.
    pub gaps: Vec<Gap>,
}

/// Why the preload library does not get into a program, or sees none of its sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Another machine type or word size than the library's.
    Architecture,
    /// No `PT_INTERP`: nobody loads a preload library.
    Static,
    /// The dynamic loader of another C library.
    OtherLibc(String),
    /// setuid(2): the loader ignores `LD_PRELOAD` (`AT_SECURE`, ld.so(8)).
    Setuid,
    /// The same for the group.
    Setgid,
    /// The same for file capabilities (capabilities(7)).
    Capabilities,
    /// The Go runtime makes its system calls itself.
    Go,
}

/// What an accelerated program may do past the library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gap {
    /// It links a library for io_uring(7).
    IoUring,
}

impl Obstacle {
    /// For scripts.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Obstacle::Architecture => "architecture",
            Obstacle::Static => "static",
            Obstacle::OtherLibc(_) => "libc",
            Obstacle::Setuid => "setuid",
            Obstacle::Setgid => "setgid",
            Obstacle::Capabilities => "capabilities",
            Obstacle::Go => "go",
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Obstacle::Architecture => {
                format!("it is not a 64-bit {} program, and the library is", std::env::consts::ARCH)
            }
            Obstacle::Static => "it is statically linked, so no library can be preloaded into it".into(),
            Obstacle::OtherLibc(loader) => {
                format!("its dynamic loader is {loader}, and the library is made for glibc's")
            }
            Obstacle::Setuid => "it is setuid to another user, so the loader ignores LD_PRELOAD".into(),
            Obstacle::Setgid => "it is setgid to another group, so the loader ignores LD_PRELOAD".into(),
            Obstacle::Capabilities => "it has file capabilities, so the loader ignores LD_PRELOAD".into(),
            Obstacle::Go => {
                "it is a Go program: Go makes its socket calls without libc, where the library can't see them"
                    .into()
            }
        }
    }
}

impl Gap {
    /// For scripts.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Gap::IoUring => "io-uring",
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> &'static str {
        match self {
            Gap::IoUring => "it links liburing: what it does through io_uring goes through the kernel",
        }
    }
}

impl Program {
    /// Follows `arguments` (program and its arguments, as for execvp(3)).
    ///
    /// # Errors
    /// [`ProgramError`].
    pub fn find(arguments: &[OsString]) -> Result<Program, ProgramError> {
        let mut chain = Vec::new();
        let mut arguments = arguments.to_vec();
        loop {
            let name = arguments.first().cloned().unwrap_or_default();
            let path = search(&name)?;
            chain.push(path.clone());
            if chain.len() > DEPTH_MAX {
                return Err(ProgramError::TooDeep(path));
            }
            let start = first_bytes(&path).map_err(|e| ProgramError::Unreadable(path.clone(), e))?;
            if let Some(next) = past_env(&path, &arguments) {
                arguments = next;
            } else if let Some(mut next) = interpreter(&start) {
                next.push(path.into());
                next.extend(arguments.into_iter().skip(1));
                arguments = next;
            } else if start.starts_with(&elf::ELFMAG) {
                let (obstacles, gaps) = look(&path)?;
                return Ok(Program { chain, obstacles, gaps });
            } else {
                // execvp(3) gives what the kernel doesn't know to the shell.
                arguments = vec!["/bin/sh".into(), path.into()];
            }
        }
    }
}

/// As execvp(3) does.
fn search(name: &OsStr) -> Result<PathBuf, ProgramError> {
    let not_found = || ProgramError::NotFound(name.into());
    if name.is_empty() {
        return Err(not_found());
    }
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return match fs::metadata(&path) {
            Ok(_) if is_executable(&path) => Ok(path),
            Ok(_) => Err(ProgramError::NotExecutable(path)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(not_found()),
            Err(e) => Err(ProgramError::Unreadable(path, e)),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|p| is_executable(p)).ok_or_else(not_found)
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file())
        && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

fn first_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    File::open(path)?.take(SCRIPT_LINE_BYTES as u64).read_to_end(&mut start)?;
    Ok(start)
}

/// Interpreter and its one argument, if `start` begins a script.
fn interpreter(start: &[u8]) -> Option<Vec<OsString>> {
    let line = start.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?.trim_ascii();
    let (program, argument) = match line.iter().position(|b| b" \t".contains(b)) {
        Some(at) => line.split_at(at),
        None => (line, &b""[..]),
    };
    let words = [program, argument.trim_ascii()].into_iter().filter(|w| !w.is_empty());
    Some(words.map(|w| OsStr::from_bytes(w).to_owned()).collect())
}

/// The command that env(1) would execute.
fn past_env(path: &Path, arguments: &[OsString]) -> Option<Vec<OsString>> {
    if path.file_name() != Some(OsStr::new("env")) {
        return None;
    }
    let mut words =
        arguments.iter().skip(1).flat_map(|argument| match argument.as_bytes().strip_prefix(b"-S") {
            // `#!/usr/bin/env -S program argument` arrives as one word.
            Some(rest) => {
                rest.split(|b| b" \t".contains(b)).map(|w| OsStr::from_bytes(w).to_owned()).collect()
            }
            None => vec![argument.clone()],
        });
    let mut command = Vec::new();
    while let Some(word) = words.next() {
        match word.as_bytes() {
            b"-u" | b"--unset" | b"-C" | b"--chdir" => drop(words.next()),
            [] | [b'-', ..] => {}
            other if other.contains(&b'=') => {}
            _ => {
                command.push(word);
                break;
            }
        }
    }
    command.extend(words);
    (!command.is_empty()).then_some(command)
}

fn look(path: &Path) -> Result<(Vec<Obstacle>, Vec<Gap>), ProgramError> {
    let unreadable = |e| ProgramError::Unreadable(path.into(), e);
    let malformed = |e| ProgramError::Malformed(path.into(), e);
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    // Reads what it needs: programs are large.
    let data = ReadCache::new(file);
    let facts = match FileKind::parse(&data).map_err(malformed)? {
        FileKind::Elf64 => Facts::of_64(&data).map_err(malformed)?,
        FileKind::Elf32 => Facts::of_32(&data).map_err(malformed)?,
        _ => Facts::default(),
    };
    let mut obstacles = facts.obstacles();
    obstacles.extend(privileges(path, &metadata));
    let gaps = if facts.io_uring { vec![Gap::IoUring] } else { Vec::new() };
    Ok((obstacles, gaps))
}

/// What an ELF file says of itself.
#[derive(Debug, Default)]
struct Facts {
    ours: bool,
    loader: Option<String>,
    go: bool,
    io_uring: bool,
}

impl Facts {
    fn of_64<'a, R: ReadRef<'a>>(data: R) -> object::Result<Facts> {
        let file = ElfFile64::<Endianness, R>::parse(data)?;
        let machine = match std::env::consts::ARCH {
            "x86_64" => elf::EM_X86_64,
            "aarch64" => elf::EM_AARCH64,
            _ => elf::EM_NONE,
        };
        let ours = file.elf_header().e_machine(file.endian()) == machine;
        let mut loader = None;
        for header in file.elf_program_headers() {
            if let Ok(Some(name)) = header.interpreter(file.endian(), data) {
                loader = Some(String::from_utf8_lossy(name).into_owned());
            }
        }
        let go = |s: object::Result<&str>| s.is_ok_and(|n| n == ".go.buildinfo" || n == ".note.go.buildid");
        Ok(Facts {
            ours,
            loader,
            go: file.sections().any(|s| go(s.name())),
            io_uring: file
                .dynamic_symbols()
                .any(|s| s.is_undefined() && s.name().is_ok_and(|n| n.starts_with("io_uring_"))),
        })
    }

    /// Never ours; read to tell a program from a damaged file.
    fn of_32<'a, R: ReadRef<'a>>(data: R) -> object::Result<Facts> {
        ElfFile32::<Endianness, R>::parse(data).map(|_| Facts::default())
    }

    fn obstacles(&self) -> Vec<Obstacle> {
        let mut found = Vec::new();
        if !self.ours {
            return vec![Obstacle::Architecture];
        }
        match &self.loader {
            None => found.push(Obstacle::Static),
            Some(loader) => {
                let name = Path::new(loader).file_name().unwrap_or_default().as_bytes();
                if !name.starts_with(b"ld-linux") {
                    found.push(Obstacle::OtherLibc(loader.clone()));
                }
            }
        }
        if self.go {
            found.push(Obstacle::Go);
        }
        found
    }
}

/// What makes the kernel set `AT_SECURE` for us: an identity that changes (credentials(7)), or capabilities for one
/// who is not root.
fn privileges(path: &Path, metadata: &fs::Metadata) -> Vec<Obstacle> {
    let mode = metadata.permissions().mode();
    let mut found = Vec::new();
    if mode & 0o4000 != 0 && metadata.uid() != rustix::process::getuid().as_raw() {
        found.push(Obstacle::Setuid);
    }
    if mode & 0o2010 == 0o2010 && metadata.gid() != rustix::process::getgid().as_raw() {
        found.push(Obstacle::Setgid);
    }
    let mut value = [0u8; 64];
    let has_capabilities = rustix::fs::getxattr(path, "security.capability", &mut value[..]).is_ok();
    if has_capabilities && !rustix::process::getuid().is_root() {
        found.push(Obstacle::Capabilities);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[&str]) -> Vec<OsString> {
        line.iter().map(OsString::from).collect()
    }

    #[test]
    fn scripts_name_their_interpreters() {
        assert_eq!(interpreter(b"#! /bin/sh -e x \nrest"), Some(words(&["/bin/sh", "-e x"])));
        assert_eq!(interpreter(b"#!/bin/sh"), Some(words(&["/bin/sh"])));
        assert_eq!(interpreter(b"echo"), None);
    }

    #[test]
    fn env_is_seen_through() {
        let env = Path::new("/usr/bin/env");
        let see = |line: &[&str]| past_env(env, &words(line));
        assert_eq!(see(&["env", "A=1", "-i", "python3", "-c"]), Some(words(&["python3", "-c"])));
        assert_eq!(see(&["env", "-S python3 -u", "x"]), Some(words(&["python3", "-u", "x"])));
        assert_eq!(see(&["env", "-u", "HOME", "sh"]), Some(words(&["sh"])));
        assert_eq!(see(&["env"]), None);
        assert_eq!(past_env(Path::new("/bin/sh"), &words(&["sh", "x"])), None);
    }

    #[test]
    fn a_dynamic_program_has_no_obstacle() {
        let me = std::env::current_exe().unwrap();
        let program = Program::find(&[me.clone().into()]).unwrap();
        assert_eq!((program.obstacles, program.gaps), (vec![], vec![]));
        assert_eq!(program.chain, [me]);
        assert!(matches!(Program::find(&words(&["no-such-program"])), Err(ProgramError::NotFound(_))));
        assert!(matches!(Program::find(&words(&["/etc/passwd"])), Err(ProgramError::NotExecutable(_))));
    }

    #[test]
    fn facts_become_obstacles() {
        let loader = |l: &str| Facts { ours: true, loader: Some(l.into()), ..Facts::default() };
        assert_eq!(loader("/lib64/ld-linux-x86-64.so.2").obstacles(), []);
        let musl = "/lib/ld-musl-x86_64.so.1";
        assert_eq!(loader(musl).obstacles(), [Obstacle::OtherLibc(musl.into())]);
        let go = Facts { ours: true, go: true, ..Facts::default() };
        assert_eq!(go.obstacles(), [Obstacle::Static, Obstacle::Go]);
        assert_eq!(Facts::default().obstacles(), [Obstacle::Architecture]);
    }
}
