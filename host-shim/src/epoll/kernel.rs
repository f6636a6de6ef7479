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

/// One line of it: a registration.
struct Registration {
    fd: i32,
    events: u32,
    data: u64,
}

/// The one-shot registration of `fd` in `ep` has been reported, so that no event is left in it.
pub fn has_shot(ep: i32, fd: i32) -> bool {
    first(ep, |r| (r.fd == fd).then_some(r.events & !OPTIONS == 0)) == Some(true)
}

/// The number `n` below `end` for which `fd` is registered in `ep` with `data_of(n)`.
pub fn find_mark(ep: i32, fd: i32, end: u32, data_of: impl Fn(u32) -> u64) -> Option<u32> {
    first(ep, |r| if r.fd == fd { (0..end).find(|n| r.data == data_of(*n)) } else { None })
}

/// The first registration in `ep` of which `pick` makes something. `None`, too, if it is no epoll descriptor.
fn first<T>(ep: i32, pick: impl Fn(&Registration) -> Option<T>) -> Option<T> {
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
            if let Some(picked) = text.and_then(parse).and_then(|r| pick(&r)) {
                return Some(picked);
            }
            length = 0;
        }
    }
}

/// A line `tfd: <number> events: <hexadecimal> data: <hexadecimal> ...`.
fn parse(line: &str) -> Option<Registration> {
    let mut words = line.split_ascii_whitespace();
    let mut after = |name| words.next().filter(|word| *word == name).and_then(|_| words.next());
    Some(Registration {
        fd: after("tfd:")?.parse().ok()?,
        events: u32::from_str_radix(after("events:")?, 16).ok()?,
        data: u64::from_str_radix(after("data:")?, 16).ok()?,
    })
}
