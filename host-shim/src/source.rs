//! From which address the kernel would connect to another: it is asked by a socket that sends nothing, and remembered for a while.
//!
//! `unsafe` is allowed here: libc's originals.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use ring::msg::Addr;

use crate::{fds, options, process, real, sys};

/// The wildcard addresses mean this host.
pub fn real_destination(dst: Addr) -> Addr {
    let ip = match dst.ip {
        Addr::V4_ANY => Addr::v4([127, 0, 0, 1], 0).ip,
        Addr::V6_ANY => LOOPBACK_V6,
        ip => ip,
    };
    Addr { ip, ..dst }
}

const LOOPBACK_V6: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// The address that the kernel would connect from, if the coordinator may know somebody at `dst`. What the kernel said of the last
/// address counts until the next second.
pub fn towards(dst: Addr) -> Option<Addr> {
    let ip = match (dst.is_loopback(), dst.is_v4()) {
        (true, true) => Addr::v4([127, 0, 0, 1], 0).ip,
        (true, false) => LOOPBACK_V6,
        (false, _) => {
            let now = sys::now().as_secs();
            LAST_SOURCE.get(dst.ip, now).or_else(|| {
                let ip = if is_local(dst) { Some(dst.ip) } else { routed_source(dst) }?;
                LAST_SOURCE.set(dst.ip, ip, now);
                Some(ip)
            })?
        }
    };
    Some(Addr { ip, port: 0 })
}

/// Is `dst` an address of this host? The kernel answers by letting a socket bind to it.
fn is_local(dst: Addr) -> bool {
    with_probe(dst, |probe, domain| {
        // Only what this thread would find where the coordinator looks.
        let bound =
            process::is_home(probe) && options::kernel_bind(probe, domain, Addr { port: 0, ..dst }).is_ok();
        bound.then_some(())
    })
    .is_some()
}

/// The address from which this thread's network reaches `dst` on another host: the kernel answers by connecting a socket that sends nothing.
fn routed_source(dst: Addr) -> Option<[u8; 16]> {
    if !process::meets_hosts() {
        return None;
    }
    with_probe(dst, |probe, domain| {
        let connected = process::is_home(probe) && options::kernel_connect(probe, domain, dst).is_ok();
        connected.then(|| options::kernel_name(probe, true).ip)
    })
}

/// An answer of the kernel's.
struct Answer {
    /// Odd while somebody writes, another one after that.
    version: AtomicU32,
    dst: [AtomicU64; 2],
    src: [AtomicU64; 2],
    /// The second in which it was given.
    when: AtomicU64,
}

static LAST_SOURCE: Answer = Answer {
    version: AtomicU32::new(0),
    dst: [const { AtomicU64::new(0) }; 2],
    src: [const { AtomicU64::new(0) }; 2],
    when: AtomicU64::new(u64::MAX),
};

impl Answer {
    fn get(&self, dst: [u8; 16], now: u64) -> Option<[u8; 16]> {
        // Acquire: pairs with the Release at the end of `set`: the words are of that version, or a later one.
        let version = self.version.load(Ordering::Acquire);
        let [[d0, d1], [s0, s1]] =
            [&self.dst, &self.src].map(|w| w.each_ref().map(|w| w.load(Ordering::Relaxed)));
        let known = (Addr::from_words(d0, d1, 0).ip, self.when.load(Ordering::Relaxed)) == (dst, now);
        // Acquire: the loads above come before the one below, which pairs with the fence in `set`.
        fence(Ordering::Acquire);
        let whole = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        (known && whole).then(|| Addr::from_words(s0, s1, 0).ip)
    }

    fn set(&self, dst: [u8; 16], src: [u8; 16], now: u64) {
        let version = self.version.load(Ordering::Relaxed);
        // Another thread's answer is as good, or the one that a handler of a signal interrupts.
        if !version.is_multiple_of(2)
            || self
                .version
                .compare_exchange(version, version.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_err()
        {
            return;
        }
        // Release: who sees one of the words below sees the odd version, too.
        fence(Ordering::Release);
        for (words, ip) in [(&self.dst, dst), (&self.src, src)] {
            for (word, value) in words.iter().zip((Addr { ip, port: 0 }).words()) {
                word.store(value, Ordering::Relaxed);
            }
        }
        self.when.store(now, Ordering::Relaxed);
        // Release: pairs with the Acquire in `get`.
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }
}

/// Asks the kernel by a datagram socket of `dst`'s family.
fn with_probe<T>(dst: Addr, ask: impl FnOnce(i32, i32) -> Option<T>) -> Option<T> {
    let domain = if dst.is_v4() { libc::AF_INET } else { libc::AF_INET6 };
    let numbering = fds::numbering().take();
    // SAFETY: no pointers.
    let probe = unsafe { real::socket(domain, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if probe < 0 {
        return None;
    }
    let answer = ask(probe, domain);
    sys::close(probe);
    drop(numbering);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_for_its_address_and_its_second() {
        let [here, there, elsewhere] = [1, 2, 3].map(|n| Addr::v4([10, 0, 0, n], 0).ip);
        assert_eq!(LAST_SOURCE.get(there, 5), None);
        LAST_SOURCE.set(there, here, 5);
        let known = [(there, 5), (there, 6), (elsewhere, 5)].map(|(dst, now)| LAST_SOURCE.get(dst, now));
        assert_eq!(known, [Some(here), None, None]);
        // A thread that writes meanwhile, or was killed while it did.
        LAST_SOURCE.version.fetch_add(1, Ordering::Relaxed);
        LAST_SOURCE.set(elsewhere, here, 5);
        assert_eq!((LAST_SOURCE.get(there, 5), LAST_SOURCE.get(elsewhere, 5)), (None, None));
    }
}
