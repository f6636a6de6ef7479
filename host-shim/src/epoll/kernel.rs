//! What the kernel says of its own epoll sets (`/proc/PID/fdinfo`, proc_pid_fdinfo(5)).

use rustix::fs::{Mode, OFlags};

use crate::fds;

/// Longest line that is looked at; those that matter are shorter.
const LINE_BYTES: usize = 128;
/// Bits of a registration that are not events.
const OPTIONS: u32 = libc::EPOLLET.cast_unsigned()
    | libc::EPOLLONESHOT.cast_unsigned()
    | libc::EPOLLWAKEUP.cast_unsigned()
    | libc::EPOLLEXCLUSIVE.cast_unsigned();

/// The one-shot registration of `fd` in `ep` has been reported, so that no event is left in it.
pub fn has_shot(ep: i32, fd: i32) -> bool {
    events(ep, fd).is_some_and(|events| events & !OPTIONS == 0)
}

/// Events that `fd` is registered for in `ep`.
fn events(ep: i32, fd: i32) -> Option<u32> {
    let mut name = [0; 40];
    let file =
        rustix::fs::open(fds::info_path(ep, &mut name)?, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .ok()?;
    let (mut line, mut length) = ([0u8; LINE_BYTES], 0);
    let mut chunk = [0u8; 512];
    loop {
        let n = rustix::io::read(&file, &mut chunk[..]).ok().filter(|n| *n > 0)?;
        for byte in chunk.iter().take(n) {
            if *byte != b'\n' {
                if let Some(place) = line.get_mut(length) {
                    *place = *byte;
                    length += 1;
                }
                continue;
            }
            let text = line.get(..length).and_then(|l| core::str::from_utf8(l).ok());
            if let Some(events) = text.and_then(|text| events_in(text, fd)) {
                return Some(events);
            }
            length = 0;
        }
    }
}

/// The events in a line `tfd: <number> events: <hexadecimal> ...` about `fd`.
fn events_in(line: &str, fd: i32) -> Option<u32> {
    let mut words = line.split_ascii_whitespace();
    if words.next() != Some("tfd:") || words.next()?.parse() != Ok(fd) || words.next() != Some("events:") {
        return None;
    }
    u32::from_str_radix(words.next()?, 16).ok()
}
