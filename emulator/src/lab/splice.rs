//! The process that is a bad wire: it takes frames from one link, and lets them out at another, both ways.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::packet_socket::{FRAME_BYTES_MAX, PacketSocket};
use super::wire::{Badness, Wire};

/// Frames that are taken from one link before the other gets its turn.
const BURST: usize = 64;
/// What it says on standard output when frames pass.
pub(crate) const READY: &str = "wired";

struct Side {
    from: PacketSocket,
    wire: Wire<Vec<u8>>,
}

/// Joins `links` until standard input ends or one of them is gone.
///
/// # Errors
/// A sentence: why it could not begin.
pub fn splice(links: [&str; 2], badness: Badness) -> Result<(), String> {
    let open = |link: &str| PacketSocket::open(link).map_err(|e| format!("cannot open the link {link}: {e}"));
    let [a, b] = links;
    // The two directions must not lose the same frames.
    let back = Badness { seed: badness.seed.wrapping_add(1), ..badness };
    let sides = [(open(a)?, badness), (open(b)?, back)];
    let mut sides = sides.map(|(from, badness)| Side { from, wire: Wire::new(badness) });
    let mut out = io::stdout();
    // Who does not listen does not mind.
    let _ = writeln!(out, "{READY}").and_then(|()| out.flush());
    let started = Instant::now();
    let now_us = || u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    loop {
        let next_us = sides.iter().filter_map(|side| side.wire.next_us()).min();
        if wait(&sides, next_us.map(|at| at.saturating_sub(now_us()))) {
            return Ok(());
        }
        for at in 0..sides.len() {
            let [one, other] = &mut sides;
            let (side, to) = if at == 0 { (one, &other.from) } else { (other, &one.from) };
            for _ in 0..BURST {
                match side.from.receive(&mut buffer) {
                    Ok(Some(n)) => side.wire.put(now_us(), buffer.get(..n).unwrap_or_default().to_vec()),
                    Ok(None) => break,
                    // The link is gone: nothing will come any more.
                    Err(_) => return Ok(()),
                }
            }
            while let Some(frame) = side.wire.take(now_us()) {
                to.send(&frame);
            }
        }
    }
}

/// Sleeps until a frame comes or is due. True: the one who started us has ended.
fn wait(sides: &[Side; 2], timeout_us: Option<u64>) -> bool {
    let stdin = io::stdin();
    let [a, b] = sides;
    let timeout = timeout_us.map(|us| Timespec {
        tv_sec: i64::try_from(us / 1_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(us % 1_000_000).unwrap_or(0) * 1000,
    });
    let mut fds =
        [stdin.as_fd(), a.from.as_fd(), b.from.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    if poll(&mut fds, timeout.as_ref()).is_err() {
        return false;
    }
    let [ended, _, _] = fds.map(|fd| !fd.revents().is_empty());
    ended && matches!(stdin.lock().read(&mut [0; 64]), Ok(0) | Err(_))
}
