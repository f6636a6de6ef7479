//! The file with the key that hosts share: 64 hexadecimal digits that only its owner may read.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use ring::hosts::KEY_BYTES;

/// Hexadecimal digits of a key.
const DIGITS: usize = 2 * KEY_BYTES;
/// More of a file is not looked at.
const FILE_BYTES_MAX: u64 = 4096;
/// Permission bits of group and others.
const OTHERS: u32 = 0o077;

/// Reads it.
///
/// # Errors
/// A sentence that says what is wrong and what to do.
pub fn read(path: &Path) -> Result<[u8; KEY_BYTES], String> {
    let wrong = |why: String| format!("--hosts-key {}: {why}", path.display());
    let make = "make one with: (umask 077; openssl rand -hex 32 > FILE), and copy it to all hosts";
    let file = File::open(path).map_err(|e| wrong(format!("{e}; {make}")))?;
    let mode = file.metadata().map_err(|e| wrong(e.to_string()))?.permissions().mode();
    if mode & OTHERS != 0 {
        return Err(wrong(format!(
            "others than its owner may use it (mode {:03o}): chmod 600",
            mode & 0o777
        )));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|e| wrong(e.to_string()))?;
    parse(text.trim()).map_err(|why| wrong(format!("{why}; {make}")))
}

fn parse(text: &str) -> Result<[u8; KEY_BYTES], String> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    let digits = digits.ok_or_else(|| format!("a key is {DIGITS} hexadecimal digits, and nothing else"))?;
    if digits.len() != DIGITS {
        return Err(format!("a key is {DIGITS} hexadecimal digits, not {}", digits.len()));
    }
    let mut key = [0; KEY_BYTES];
    for (byte, pair) in key.iter_mut().zip(digits.chunks(2)) {
        *byte = pair.iter().fold(0, |sum, digit| sum << 4 | u8::try_from(*digit).unwrap_or(0));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_64_digits() {
        assert_eq!(parse(&"0f".repeat(32)), Ok([15; KEY_BYTES]));
        assert_eq!(parse(&"A0".repeat(32)), Ok([160; KEY_BYTES]));
        for (text, part) in [
            ("0f".repeat(31), "not 62"),
            (String::new(), "not 0"),
            ("+f".repeat(32), "nothing else"),
            ("é".repeat(32), "nothing else"),
        ] {
            let said = parse(&text).unwrap_err();
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    #[test]
    fn what_is_wrong_with_the_file_is_said() {
        let path = std::env::temp_dir().join(format!("ipc-direct-key-{}", std::process::id()));
        assert!(read(&path).unwrap_err().contains("No such file"));
        std::fs::write(&path, "0f".repeat(32) + "\n").unwrap();
        let allow = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        allow(0o640);
        assert!(read(&path).unwrap_err().contains("chmod 600"));
        allow(0o600);
        assert_eq!(read(&path), Ok([15; KEY_BYTES]));
        std::fs::write(&path, "short").unwrap();
        assert!(read(&path).unwrap_err().contains("hexadecimal"));
        std::fs::remove_file(&path).unwrap();
    }
}
