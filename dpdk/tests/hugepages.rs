//! DPDK with its memory on huge pages, of which the test borrows a few from the machine.

mod common;

use std::fs;

use common::{Place, is_root, succeed, value};

const SETTING: &str = "/proc/sys/vm/nr_hugepages";
const MEMORY_MIB: u64 = 32;

/// Huge pages that were added to the machine's, taken away again on drop.
struct Borrowed(u64);

impl Borrowed {
    /// Adds enough for [`MEMORY_MIB`], or says why it cannot.
    fn new() -> Result<Self, String> {
        let meminfo = fs::read_to_string("/proc/meminfo").map_err(|error| error.to_string())?;
        let size =
            meminfo.lines().find_map(|line| line.strip_prefix("Hugepagesize:")?.trim().strip_suffix(" kB"));
        let size_kib: u64 = size.and_then(|size| size.parse().ok()).ok_or("the kernel has no huge pages")?;
        // One more than the memory's size: EAL rounds up.
        let wanted = (MEMORY_MIB * 1024).div_ceil(size_kib) + 1;
        if !is_root() {
            return Err(format!("only root can write {SETTING}"));
        }
        let before = count()?;
        set(before + wanted)?;
        let borrowed = Self(count()?.saturating_sub(before));
        match borrowed.0 >= wanted {
            true => Ok(borrowed),
            false => Err(format!("the kernel gave {} of {wanted} huge pages", borrowed.0)),
        }
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        // Relative, as others may have changed the number meanwhile.
        let _ = count().and_then(|now| set(now.saturating_sub(self.0)));
    }
}

fn count() -> Result<u64, String> {
    let text = fs::read_to_string(SETTING).map_err(|error| format!("cannot read {SETTING}: {error}"))?;
    text.trim().parse().map_err(|_| format!("{SETTING} holds no number: {text:?}"))
}

fn set(pages: u64) -> Result<(), String> {
    fs::write(SETTING, pages.to_string()).map_err(|error| format!("cannot write {SETTING}: {error}"))
}

#[test]
fn ports_and_pools_work_on_huge_pages() {
    let borrowed = match Borrowed::new() {
        Ok(borrowed) => borrowed,
        Err(reason) if std::env::var("IPC_DIRECT_TEST_NO_HUGEPAGES").as_deref() == Ok("1") => {
            eprintln!("NOT TESTED: DPDK on huge pages: {reason} (IPC_DIRECT_TEST_NO_HUGEPAGES=1)");
            return;
        }
        Err(reason) => panic!(
            "cannot test DPDK on huge pages: {reason}; set IPC_DIRECT_TEST_NO_HUGEPAGES=1 to go without on this machine"
        ),
    };
    let eal =
        ["--no-pci", "--in-memory", "-m", "32", "--lcores=0@0,1@0", "--vdev=net_ring0", "--vdev=net_null0"];
    let place = Place::new();
    assert_eq!(value(&succeed(place.check(&eal, &["info"])), "hugepages"), "true");
    let out = succeed(place.check(&eal, &["loop", "net_ring0"]));
    assert_eq!((value(&out, "looped"), value(&out, "looped_on_worker 1")), ("1023", "1023"));
    // The kernel lets everybody use huge pages by memfd.
    let out = succeed(place.check_as_user(&eal, &["burst", "net_null0"]));
    assert_eq!((value(&out, "received"), value(&out, "in_use")), ("6400", "0"));
    drop(borrowed);
}
