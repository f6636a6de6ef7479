//! TCP with sockmap: what is sent on one socket of a pair goes straight to the other one's receive queue.
//!
//! Two maps with a socket each, and two programs of five instructions: what a message of the one map's socket goes to is the
//! other map's socket. Needs CAP_BPF and CAP_NET_ADMIN.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use crate::link::check;

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const MAP_TYPE_SOCKMAP: u32 = 15;
const PROG_TYPE_SK_MSG: u32 = 16;
const SK_MSG_VERDICT: u32 = 7;
const MSG_REDIRECT_MAP: i32 = 60;
const INGRESS: i32 = 1;

/// The first part of the kernel's `union bpf_attr`, in 32-bit words; what is not used is zero.
#[repr(C, align(8))]
struct Attributes([u32; 32]);

/// One instruction: operation, destination and source register, immediate value.
fn instruction(operation: u8, to: u8, from: u8, value: i32) -> u64 {
    u64::from(operation) | u64::from(to | from << 4) << 8 | u64::from(value.cast_unsigned()) << 32
}

fn bpf(command: libc::c_long, attributes: &Attributes) -> io::Result<usize> {
    let size = size_of_val(attributes);
    // SAFETY: the attributes are readable for their size, and what they point to lives across the call.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size) };
    check(isize::try_from(ret).unwrap_or(-1))
}

fn descriptor(ret: usize) -> io::Result<OwnedFd> {
    let fd = i32::try_from(ret).map_err(io::Error::other)?;
    // SAFETY: just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Low and high half of an address.
fn address<T>(of: *const T) -> [u32; 2] {
    let at = of as u64;
    [u32::try_from(at & 0xffff_ffff).unwrap_or(0), u32::try_from(at >> 32).unwrap_or(0)]
}

fn word(fd: RawFd) -> u32 {
    fd.cast_unsigned()
}

fn map() -> io::Result<OwnedFd> {
    let mut attributes = Attributes([0; 32]);
    // Type, key size, value size, entries.
    attributes.0[..4].copy_from_slice(&[MAP_TYPE_SOCKMAP, 4, 4, 1]);
    descriptor(bpf(MAP_CREATE, &attributes)?)
}

/// Messages of the sockets in `from` go to the socket in `to`.
fn redirect(from: &OwnedFd, to: &OwnedFd) -> io::Result<OwnedFd> {
    const LOAD_64: u8 = 0x18;
    const MOVE: u8 = 0xb7;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    /// The value is a map's descriptor.
    const OF_MAP: u8 = 1;
    let program = [
        instruction(LOAD_64, 2, OF_MAP, to.as_raw_fd()),
        0,
        instruction(MOVE, 3, 0, 0),
        instruction(MOVE, 4, 0, INGRESS),
        instruction(CALL, 0, 0, MSG_REDIRECT_MAP),
        instruction(EXIT, 0, 0, 0),
    ];
    let licence = c"GPL";
    let mut attributes = Attributes([0; 32]);
    let ([code, code_high], [text, text_high]) = (address(program.as_ptr()), address(licence.as_ptr()));
    attributes.0[..6].copy_from_slice(&[
        PROG_TYPE_SK_MSG,
        u32::try_from(program.len()).unwrap_or(0),
        code,
        code_high,
        text,
        text_high,
    ]);
    let loaded = descriptor(bpf(PROG_LOAD, &attributes)?)?;
    let mut attributes = Attributes([0; 32]);
    // Where, what, how.
    attributes.0[..3].copy_from_slice(&[word(from.as_raw_fd()), word(loaded.as_raw_fd()), SK_MSG_VERDICT]);
    bpf(PROG_ATTACH, &attributes)?;
    Ok(loaded)
}

fn insert(map: &OwnedFd, socket: &OwnedFd) -> io::Result<()> {
    let (key, value) = (0_u32, word(socket.as_raw_fd()));
    let mut attributes = Attributes([0; 32]);
    attributes.0[0] = word(map.as_raw_fd());
    attributes.0[2..4].copy_from_slice(&address(&raw const key));
    attributes.0[4..6].copy_from_slice(&address(&raw const value));
    bpf(MAP_UPDATE_ELEM, &attributes).map(drop)
}

/// Joins the two ends of a connection for as long as the result is held.
pub fn join(a: &OwnedFd, b: &OwnedFd) -> io::Result<[OwnedFd; 4]> {
    let joined = || {
        let (of_a, of_b) = (map()?, map()?);
        let programs = [redirect(&of_a, &of_b)?, redirect(&of_b, &of_a)?];
        insert(&of_a, a)?;
        insert(&of_b, b)?;
        let [first, second] = programs;
        Ok([of_a, of_b, first, second])
    };
    joined().map_err(|e: io::Error| io::Error::other(format!("this machine has no sockmap for us: {e}")))
}
