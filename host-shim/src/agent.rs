//! Talking to the host agent: one socket a process, one call at a time.

use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicI32, Ordering};
use core::time::Duration;

use ring::attach::{self, Call, Reply};
use rustix::fd::{BorrowedFd, IntoRawFd, OwnedFd};
use rustix::io::{IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use rustix::pipe::PipeFlags;

use crate::lock::Guarded;
use crate::sys::NoSignals;
use crate::{config, fds, options, sys};

/// Descriptors that a reply may carry.
pub const FDS_MAX: usize = attach::WELCOME_FDS;
/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);

static SOCKET: AtomicI32 = AtomicI32::new(-1);
/// Of a child that has not attached: nobody else has this end of the pipe that the agent watches it by.
static LIFELINE: AtomicI32 = AtomicI32::new(-1);
static CALL: Guarded<()> = Guarded::new(());

/// Why there was no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentError {
    /// Nobody listens, or the socket broke.
    Absent,
    /// It is not ours or root's.
    Untrusted,
    /// It said no, and why.
    Refused(attach::Text),
}

/// A reply with its descriptors, which the caller owns from now on; missing ones are -1.
pub struct Answer {
    /// What it says.
    pub reply: Reply,
    /// In the order of [`attach`].
    pub fds: [i32; FDS_MAX],
}

/// `@name` is an abstract name, anything else a path; without a setting, the user's own abstract name.
fn address() -> Option<SocketAddrUnix> {
    match config::variable(c"IPC_DIRECT_SOCKET") {
        Some([b'@', name @ ..]) => SocketAddrUnix::new_abstract_name(name).ok(),
        Some(path) if !path.is_empty() => SocketAddrUnix::new(path).ok(),
        _ => {
            let mut name = [0u8; 32];
            let n = default_name(&mut name, rustix::process::geteuid().as_raw());
            SocketAddrUnix::new_abstract_name(name.get(..n)?).ok()
        }
    }
}

/// `ipc-direct/<uid>`, without an allocation.
fn default_name(out: &mut [u8; 32], uid: u32) -> usize {
    let mut digits = [0u8; 10];
    let mut n = 0;
    for b in b"ipc-direct/".iter().chain(sys::decimal(uid, &mut digits)) {
        if let Some(o) = out.get_mut(n) {
            *o = *b;
            n += 1;
        }
    }
    n
}

/// Opens the socket, if an agent that we may trust is there: by its address, or else by the lease that
/// `ipc-direct run` left to us, which leads to it from other namespaces, too.
///
/// # Errors
/// [`AgentError`]; nothing is left open then.
pub fn open() -> Result<(), AgentError> {
    let fd = match connect() {
        Err(AgentError::Absent) => admitted(config::lease())?,
        other => other?,
    };
    let sock = sys::borrow(fd);
    let bounded = sockopt::set_socket_timeout(sock, sockopt::Timeout::Recv, Some(ANSWER_MAX)).is_ok()
        && sockopt::set_socket_timeout(sock, sockopt::Timeout::Send, Some(ANSWER_MAX)).is_ok();
    if !bounded {
        fds::discard(fd);
        return Err(AgentError::Absent);
    }
    SOCKET.store(fd, Ordering::Release);
    Ok(())
}

fn connect() -> Result<i32, AgentError> {
    let addr = address().ok_or(AgentError::Absent)?;
    let flags = SocketFlags::CLOEXEC;
    let socket = || rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let fd = fds::made(socket).map_err(|_| AgentError::Absent)?;
    let checked = match rustix::net::connect(sys::borrow(fd), &addr) {
        Ok(()) => check_trust(fd),
        Err(_) => Err(AgentError::Absent),
    };
    checked.map(|()| fd).inspect_err(|_| fds::discard(fd))
}

/// Root or ourselves.
fn check_trust(fd: i32) -> Result<(), AgentError> {
    let [_pid, owner, _gid] = options::kernel_peer_credentials(fd).ok_or(AgentError::Absent)?;
    let trusted = owner == 0 || owner == rustix::process::geteuid().as_raw();
    if trusted { Ok(()) } else { Err(AgentError::Untrusted) }
}

/// Hands one end of a pair to the agent at the other end of the lease; the other end, ours.
fn admitted(lease: i32) -> Result<i32, AgentError> {
    if lease < 0 {
        return Err(AgentError::Absent);
    }
    check_trust(lease)?;
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|_| AgentError::Absent)?;
    let fd = fds::adopt(ours.into_raw_fd());
    if !give(lease, Call::Admit, theirs.into_raw_fd()) {
        fds::discard(fd);
        return Err(AgentError::Absent);
    }
    Ok(fd)
}

/// Has the agent watch this child, which has just been forked, on the socket that it has inherited, before it forgets that ([`close`]). False:
/// it can't.
pub fn born(parent: u32, nonce: u64) -> bool {
    let mut other = -1;
    let pipe = || {
        let (theirs, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        other = theirs.into_raw_fd();
        Ok::<_, rustix::io::Errno>(ours)
    };
    let Ok(ours) = fds::made(pipe) else { return false };
    let told = give(fd(), Call::Born { parent, nonce }, other);
    if told {
        LIFELINE.store(ours, Ordering::Relaxed);
    } else {
        fds::discard(ours);
    }
    told
}

/// The agent watches this process as such; or, after fork, in the child: it is the parent's who is watched.
pub fn end_lifeline() {
    fds::discard(LIFELINE.swap(-1, Ordering::Relaxed));
}

/// Sends a descriptor, which is closed here in any case, with a call that is not answered. False: it could not be sent.
fn give(socket: i32, call: Call, theirs: i32) -> bool {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let given = [sys::borrow(theirs)];
    let wire = call.to_wire();
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let sent = control.push(SendAncillaryMessage::ScmRights(&given))
        && rustix::net::sendmsg(sys::borrow(socket), &[IoSlice::new(&wire)], &mut control, flags).is_ok();
    // Not dropped as an OwnedFd: that would be libc's close, which is ours.
    sys::close(theirs);
    sent
}

/// The socket, for watching it: -1 without an agent.
pub fn fd() -> i32 {
    SOCKET.load(Ordering::Acquire)
}

/// Closes the socket: in a forked child it is the parent's, and after a refusal it is of no use.
pub fn close() {
    fds::discard(SOCKET.swap(-1, Ordering::AcqRel));
}

/// True if `fd` was the socket; it is not any more.
pub fn lost(fd: i32) -> bool {
    let _ = LIFELINE.compare_exchange(fd, -1, Ordering::AcqRel, Ordering::Relaxed);
    SOCKET.compare_exchange(fd, -1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// For the fork handlers.
pub fn lock() -> &'static crate::lock::Lock {
    CALL.lock()
}

/// Asks, and waits for the answer.
///
/// # Errors
/// [`AgentError`]; descriptors of an unexpected answer are closed.
pub fn call(call: Call) -> Result<Answer, AgentError> {
    call_with(call, &[])
}

/// As [`call`], with descriptors.
///
/// # Errors
/// As [`call`].
pub fn call_with(call: Call, with: &[BorrowedFd<'_>]) -> Result<Answer, AgentError> {
    let _no_signals = NoSignals::new();
    let _one_at_a_time = CALL.take().ok_or(AgentError::Absent)?;
    let fd = fd();
    if fd < 0 {
        return Err(AgentError::Absent);
    }
    let sock = sys::borrow(fd);
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(attach::RELAY_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !with.is_empty() && !control.push(SendAncillaryMessage::ScmRights(with)) {
        return Err(AgentError::Absent);
    }
    let wire = call.to_wire();
    rustix::net::sendmsg(sock, &[IoSlice::new(&wire)], &mut control, SendFlags::NOSIGNAL)
        .map_err(|_| AgentError::Absent)?;
    let answer = receive(sock)?;
    match answer.reply {
        Reply::Refused(why) => {
            config::log(config::Log::Error, &[why.as_str()]);
            answer.fds.iter().for_each(|fd| sys::close(*fd));
            Err(AgentError::Refused(why))
        }
        _ => Ok(answer),
    }
}

fn receive(sock: rustix::fd::BorrowedFd<'_>) -> Result<Answer, AgentError> {
    let mut bytes = [0u8; attach::BYTES];
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        match rustix::net::recvmsg(
            sock,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(m) => break m.bytes,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Err(AgentError::Absent),
        }
    };
    let mut fds = [-1; FDS_MAX];
    let mut places = fds.iter_mut();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            for fd in received {
                keep(fd, places.next());
            }
        }
    }
    match bytes.get(..got).map(Reply::from_wire) {
        Some(Ok(reply)) => Ok(Answer { reply, fds }),
        _ => {
            fds.iter().for_each(|fd| sys::close(*fd));
            Err(AgentError::Absent)
        }
    }
}

fn keep(fd: OwnedFd, place: Option<&mut i32>) {
    let fd = fd.into_raw_fd();
    match place {
        Some(p) => *p = fd,
        None => sys::close(fd),
    }
}
