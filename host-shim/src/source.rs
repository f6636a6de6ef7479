//! From which address the kernel would connect to another: it is asked by a socket that sends nothing, and remembered for a while.
//!
//! `unsafe` is allowed here: libc's originals.
#![allow(unsafe_code)]

use ring::msg::Addr;

use crate::lock::{Guarded, Lock};
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
/// address counts until the next second. Signals are blocked: it takes a lock.
pub fn towards(dst: Addr) -> Option<Addr> {
    let ip = match (dst.is_loopback(), dst.is_v4()) {
        (true, true) => Addr::v4([127, 0, 0, 1], 0).ip,
        (true, false) => LOOPBACK_V6,
        (false, _) => {
            let now = sys::now().as_secs();
            remembered(dst.ip, now).or_else(|| {
                let ip = if is_local(dst) { Some(dst.ip) } else { routed_source(dst) }?;
                remember(dst.ip, ip, now);
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
    dst: [u8; 16],
    src: [u8; 16],
    /// The second in which it was given.
    when: u64,
}

static LAST: Guarded<Option<Answer>> = Guarded::new(None);

/// For the fork handlers.
pub fn lock() -> &'static Lock {
    LAST.lock()
}

fn remembered(dst: [u8; 16], now: u64) -> Option<[u8; 16]> {
    let last = LAST.take()?;
    last.as_ref().filter(|a| (a.dst, a.when) == (dst, now)).map(|a| a.src)
}

fn remember(dst: [u8; 16], src: [u8; 16], now: u64) {
    if let Some(mut last) = LAST.take() {
        *last = Some(Answer { dst, src, when: now });
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
        assert_eq!(remembered(there, 5), None);
        remember(there, here, 5);
        let known = [(there, 5), (there, 6), (elsewhere, 5)].map(|(dst, now)| remembered(dst, now));
        assert_eq!(known, [Some(here), None, None]);
        // In the middle of it, as far as this thread can be.
        let held = LAST.take();
        remember(elsewhere, here, 5);
        assert_eq!((remembered(there, 5), remembered(elsewhere, 5)), (None, None));
        drop(held);
        assert_eq!((remembered(there, 5), remembered(elsewhere, 5)), (Some(here), None));
    }
}
