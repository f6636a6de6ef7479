//! PCI functions in sysfs (Linux, Documentation/PCI/sysfs-pci.rst).
//!
//! `unsafe` is allowed here for calls of fcntl(2).
#![allow(unsafe_code)]

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ring::window::WINDOW_BYTES;

use super::PciError;

const DEVICES: &str = "/sys/bus/pci/devices";
/// fcntl(2), which libc's crate has for some targets only; the same number on x86 and Arm.
const F_SETSIG: i32 = 10;

/// Which functions are the card's, and which of their BARs is the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciId {
    vendor: u16,
    device: u16,
    bar: u8,
}

impl FromStr for PciId {
    type Err = &'static str;

    /// `VENDOR:DEVICE` in hexadecimal, as lspci(8) shows it, and `/BAR` if it is not 0.
    fn from_str(text: &str) -> Result<PciId, Self::Err> {
        let wrong =
            "say VENDOR:DEVICE, as `lspci -nn` shows it, and /BAR if it is not BAR 0, as in 1af4:1110/2";
        let (id, bar) = text.split_once('/').unwrap_or((text, "0"));
        let (vendor, device) = id.split_once(':').ok_or(wrong)?;
        let number = |digits| u16::from_str_radix(digits, 16).map_err(|_| wrong);
        let bar = bar.parse().ok().filter(|bar| *bar < 6).ok_or(wrong)?;
        Ok(PciId { vendor: number(vendor)?, device: number(device)?, bar })
    }
}

impl fmt::Display for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}/{}", self.vendor, self.device, self.bar)
    }
}

/// The BAR of one function.
#[derive(Debug)]
pub(super) struct Bar {
    device: PathBuf,
    resource: PathBuf,
}

/// Why a BAR is not to be had.
#[derive(Debug)]
pub(super) enum Taken {
    /// Somebody has it open or mapped, or the kernel can't say.
    InUse,
    /// It can't be opened.
    Io(io::Error),
}

/// The card's functions, by address.
pub(super) fn functions(id: PciId) -> Result<Vec<Bar>, PciError> {
    let bad = |path: &Path| {
        let name = path.display().to_string();
        move |e| PciError::Io(name, e)
    };
    let mut devices: Vec<PathBuf> = fs::read_dir(DEVICES)
        .map_err(bad(Path::new(DEVICES)))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is(path, id))
        .collect();
    devices.sort();
    if devices.is_empty() {
        return Err(PciError::NoCard(id));
    }
    for device in &devices {
        let kind = fs::read_to_string(device.join("iommu_group/type")).unwrap_or_default();
        if !matches!(kind.trim(), "" | "identity") {
            return Err(PciError::Translated(device.display().to_string()));
        }
        // Decoding of memory, and stores of the device's own (bus mastering comes with a driver, or by setpci).
        let enable = device.join("enable");
        fs::write(&enable, "1").map_err(bad(&enable))?;
    }
    let bar = |device: PathBuf| Bar { resource: device.join(format!("resource{}", id.bar)), device };
    Ok(devices.into_iter().map(bar).collect())
}

fn is(path: &Path, id: PciId) -> bool {
    let number = |file: &str| {
        let text = fs::read_to_string(path.join(file)).ok()?;
        u16::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
    };
    let size = || fs::metadata(path.join(format!("resource{}", id.bar))).map_or(0, |m| m.len());
    number("vendor") == Some(id.vendor)
        && number("device") == Some(id.device)
        && size() >= WINDOW_BYTES as u64
}

impl Bar {
    /// The function's address on the bus.
    pub fn name(&self) -> String {
        self.device.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Opens the BAR, uncached (SPEC 12.8), if no other process has it open or mapped (SPEC 12.6).
    ///
    /// The kernel grants a write lease (fcntl(2), `F_SETLEASE`) on a file that nobody else has open; a mapping holds its
    /// file open, and so does a descriptor in a socket's queue. A kernel that knows no leases here makes us refuse.
    pub fn open_alone(&self) -> Result<OwnedFd, Taken> {
        let file = OpenOptions::new().read(true).write(true).open(&self.resource).map_err(Taken::Io)?;
        let set = |what: i32, value: i32| {
            // SAFETY: both commands take an open descriptor and an int.
            unsafe { libc::fcntl(file.as_raw_fd(), what, value) }
        };
        // Who opens the file just then would have SIGIO sent to us, which ends us. SIGURG does nothing.
        if set(F_SETSIG, libc::SIGURG) != 0 || set(libc::F_SETLEASE, libc::F_WRLCK) != 0 {
            return Err(Taken::InUse);
        }
        set(libc::F_SETLEASE, libc::F_UNLCK);
        Ok(file.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_named_as_lspci_does() {
        let id = PciId { vendor: 0x1af4, device: 0x1110, bar: 2 };
        assert_eq!("1af4:1110/2".parse(), Ok(id));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("15b3:a2d6".parse(), Ok(PciId { vendor: 0x15b3, device: 0xa2d6, bar: 0 }));
        for wrong in ["", "1af4", "1af4:x", "1af4:1110/6", "1af4:1110/", "1:2:3"] {
            assert!(wrong.parse::<PciId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_that_is_mapped_elsewhere_is_not_given_out() {
        let path = std::env::temp_dir().join(format!("ipc-direct-bar-{}", std::process::id()));
        fs::write(&path, [0; 4096]).unwrap();
        let bar = Bar { device: path.clone(), resource: path.clone() };
        let first = bar.open_alone().unwrap();
        assert!(matches!(bar.open_alone(), Err(Taken::InUse)), "a descriptor");
        let mapping = crate::memory::Mapping::new(&first, 4096).unwrap();
        drop(first);
        assert!(matches!(bar.open_alone(), Err(Taken::InUse)), "a mapping");
        drop(mapping);
        assert!(bar.open_alone().is_ok());
        fs::remove_file(&path).unwrap();
    }
}
