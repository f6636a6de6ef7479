//! One connection to a peer: events, messages, writes, completions.
#![allow(unsafe_code)] // Calls libfabric with buffers and registered memory.

use std::ffi::c_void;
use std::fmt;
use std::io;
use std::mem::zeroed;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use fabric_sys as sys;
use thiserror::Error;

use crate::buffers::Buffers;
use crate::errno::FiError;
use crate::event::{self, Entry};
use crate::graves::Progress;
use crate::memory::{Region, RegisterError, Remote};
use crate::provider::{Domain, Fabric, Info, Limits, Opened, check, close};

/// Completions taken out of a queue at once.
const BATCH: usize = 16;
/// Completions that one [`Endpoint::poll`] hands out at most.
const POLL_MAX: usize = 64;

/// How much of everything an endpoint has. What the provider can't do is cut.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes of the longest message, in either direction.
    pub message_bytes: usize,
    /// Receives posted.
    pub receives: usize,
    /// Messages of ours under way.
    pub sends: usize,
    /// Writes of ours under way.
    pub writes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { message_bytes: 8192, receives: 64, sends: 32, writes: 128 }
    }
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The provider has no way to the peer.
    #[error("the libfabric provider \"{provider}\" has no way to {peer}: {error}")]
    NoWay {
        /// Which provider.
        provider: String,
        /// The peer's address.
        peer: SocketAddr,
        /// libfabric's reason.
        error: FiError,
    },
    /// The endpoint could not be made.
    #[error("cannot make a libfabric endpoint: {0}")]
    Endpoint(FiError),
    /// Its buffers could not be registered.
    #[error(transparent)]
    Buffers(#[from] RegisterError),
    /// Nobody could wait for it.
    #[error("cannot ask for a libfabric connection: {0}")]
    Thread(io::Error),
    /// The peer's request could not be answered.
    #[error("cannot accept a libfabric connection: {0}")]
    Accept(FiError),
}

/// Something has happened to the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is there. Private data of the peer's answer, which some providers pad with zeros.
    Connected(Vec<u8>),
    /// The peer refused, with private data, or nobody listens there.
    Refused(Vec<u8>),
    /// It is over: the peer has ended it, or died.
    Ended,
}

/// The connection is over, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Down {
    /// The peer has ended it, or died, or never was there.
    #[error("the peer has ended the link, or died")]
    Ended,
    /// Something that we did failed, which ends the connection, too.
    #[error("the link failed: {0}")]
    Failed(FiError),
}

/// Why nothing was sent or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PostError {
    /// As much as possible is under way: again after some completions.
    #[error("as much as possible is under way")]
    Full,
    /// Not a part of the registered memory, of the peer's, or of a message; or of another provider.
    #[error("outside of the registered memory")]
    Outside,
    /// The connection is over.
    #[error(transparent)]
    Down(#[from] Down),
}

/// What is complete.
#[derive(Debug)]
pub enum Completion<'a> {
    /// A message has come. All that its peer wrote before it sent it is in place.
    Received(&'a [u8]),
    /// The bytes of the write with this token are not needed here any more.
    Written(u64),
}

/// What an operation was, as its context says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Receive(usize),
    Send(usize),
    Write(usize),
}

impl Operation {
    /// Never null: some providers take that for nothing.
    fn context(self) -> *mut c_void {
        let (index, kind) = match self {
            Operation::Receive(index) => (index, 1),
            Operation::Send(index) => (index, 2),
            Operation::Write(index) => (index, 3),
        };
        ptr::without_provenance_mut(index << 2 | kind)
    }

    fn of(context: *mut c_void) -> Option<Operation> {
        let (index, kind) = (context.addr() >> 2, context.addr() & 3);
        match kind {
            1 => Some(Operation::Receive(index)),
            2 => Some(Operation::Send(index)),
            3 => Some(Operation::Write(index)),
            _ => None,
        }
    }
}

/// The libfabric objects, closed in the right order.
struct Raw {
    ep: NonNull<sys::fid_ep>,
    cq: NonNull<sys::fid_cq>,
    eq: NonNull<sys::fid_eq>,
    progress: Arc<Progress>,
    domain: Arc<Domain>,
}

impl Drop for Raw {
    fn drop(&mut self) {
        // After this the provider touches none of the endpoint's memory, nor what peers could write through it.
        close(self.ep.cast());
        close(self.cq.cast());
        close(self.eq.cast());
        self.progress.close();
        self.domain.graves.sweep();
    }
}

/// A write under way.
struct Write {
    token: u64,
    /// Keeps the source. `None`: this place is free.
    source: Option<Arc<Region>>,
}

/// A connection to a peer.
pub struct Endpoint {
    // In this order: the endpoint is closed before its memory goes.
    raw: Raw,
    received: Buffers,
    sent: Buffers,
    writes: Vec<Write>,
    /// Places of `writes`, of `sent`, and of `received` that nothing is under way in.
    free_writes: Vec<usize>,
    free_sends: Vec<usize>,
    unposted: Vec<usize>,
    /// The send buffer that is being filled.
    filling: Option<usize>,
    limits: Limits,
    down: Option<Down>,
}

// SAFETY: objects of a FI_THREAD_SAFE provider, and memory of ours.
unsafe impl Send for Endpoint {}

impl Fabric {
    /// Asks `peer` for a connection, with private data. It is there at [`Event::Connected`]. With verbs this waits until the
    /// network knows the peer's address, up to some seconds.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn connect(
        &self,
        peer: SocketAddr,
        settings: &Settings,
        data: &[u8],
    ) -> Result<Endpoint, ConnectError> {
        let no_way = |error| ConnectError::NoWay { provider: self.provider().to_owned(), peer, error };
        let info = self.0.target(peer).map_err(no_way)?;
        let endpoint = Endpoint::new(self, &info, settings)?;
        let (ep, data) = (endpoint.raw.ep.as_ptr(), (data.as_ptr().cast(), data.len()));
        // SAFETY: an open endpoint, an address of its format, and private data.
        check(unsafe { sys::shim_connect(ep, info.destination(), data.0, data.1) }).map_err(no_way)?;
        Ok(endpoint)
    }

    /// As [`Fabric::connect`], without waiting: a thread does that.
    ///
    /// # Errors
    /// There is no thread.
    pub fn ask(&self, peer: SocketAddr, settings: Settings, data: Vec<u8>) -> Result<Asking, ConnectError> {
        let fabric = self.clone();
        let thread = thread::Builder::new().spawn(move || fabric.connect(peer, &settings, &data));
        thread.map(|thread| Asking(Some(thread))).map_err(ConnectError::Thread)
    }
}

/// A connection that is being asked for. Dropped, nothing comes of it.
#[derive(Debug)]
pub struct Asking(Option<JoinHandle<Result<Endpoint, ConnectError>>>);

impl Asking {
    /// What has come of it, without waiting, and once.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn poll(&mut self) -> Result<Option<Endpoint>, ConnectError> {
        let Some(thread) = self.0.take_if(|thread| thread.is_finished()) else { return Ok(None) };
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map(Some)
    }
}

impl Domain {
    pub(crate) fn may_sleep(&self, queues: &mut [*mut sys::fid]) -> Result<bool, FiError> {
        let count = i32::try_from(queues.len()).unwrap_or(0);
        // SAFETY: an open fabric, and open queues of it.
        match check(unsafe { sys::shim_trywait(self.fabric.as_ptr(), queues.as_mut_ptr(), count) }) {
            Ok(()) => Ok(true),
            Err(FiError::AGAIN) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The descriptor of a queue.
///
/// # Safety
/// The queue stays open as long as the result is used.
pub(crate) unsafe fn wait_fd<'a>(queue: NonNull<sys::fid>) -> Result<BorrowedFd<'a>, FiError> {
    let mut fd = -1;
    // SAFETY: an open queue with a descriptor.
    check(unsafe { sys::shim_wait_fd(queue.as_ptr(), &raw mut fd) })?;
    // SAFETY: the queue's, open as long as it is (contract).
    if fd >= 0 { Ok(unsafe { BorrowedFd::borrow_raw(fd) }) } else { Err(FiError::of_entry(libc::EBADF)) }
}

impl Endpoint {
    pub(crate) fn new(fabric: &Fabric, info: &Info, settings: &Settings) -> Result<Endpoint, ConnectError> {
        let domain = &fabric.0;
        let limits = info.limits();
        let receives = settings.receives.clamp(1, limits.rx.max(1));
        // Of what may be under way at once, a third at least for either.
        let sends = settings.sends.clamp(1, (limits.tx / 3).max(1));
        let writes = settings.writes.clamp(1, limits.tx.saturating_sub(sends).max(1));
        let bytes = settings.message_bytes.clamp(64, limits.message.max(64));
        let received = Buffers::new(fabric, receives, bytes)?;
        let sent = Buffers::new(fabric, sends, bytes)?;
        let raw = open(domain, info, [receives, sends + writes]).map_err(ConnectError::Endpoint)?;
        let mut endpoint = Endpoint {
            raw,
            received,
            sent,
            writes: (0..writes).map(|_| Write { token: 0, source: None }).collect(),
            free_writes: (0..writes).collect(),
            free_sends: (0..sends).collect(),
            unposted: (0..receives).collect(),
            filling: None,
            limits,
            down: None,
        };
        // Before the peer can send anything.
        endpoint.post_receives().map_err(ConnectError::Endpoint)?;
        Ok(endpoint)
    }

    pub(crate) fn accept(&self, data: &[u8]) -> Result<(), FiError> {
        // SAFETY: an open endpoint, made for a request, and private data.
        check(unsafe { sys::shim_accept(self.raw.ep.as_ptr(), data.as_ptr().cast(), data.len()) })
    }

    /// Receives that are posted: how many messages the peer may send before any is taken.
    #[must_use]
    pub fn receives(&self) -> usize {
        self.received.count()
    }

    /// Bytes of the longest message.
    #[must_use]
    pub fn message_bytes(&self) -> usize {
        self.sent.bytes()
    }

    /// Messages of ours that are under way, as far as the provider tells: of short ones it doesn't.
    #[must_use]
    pub fn sending(&self) -> usize {
        self.sent.count() - self.free_sends.len() - usize::from(self.filling.is_some())
    }

    /// Writes of ours that are under way.
    #[must_use]
    pub fn writing(&self) -> usize {
        self.writes.len() - self.free_writes.len()
    }

    /// What has happened to the connection, without waiting. To be asked until [`Event::Connected`], when [`Endpoint::poll`] or
    /// [`Endpoint::wait_fds`] say that something happened, and now and then.
    ///
    /// # Errors
    /// The queue is broken, and so is the connection.
    pub fn event(&mut self) -> Result<Option<Event>, Down> {
        let event = match event::read(self.raw.eq) {
            Ok(Some(Entry::Event { event: sys::FI_CONNECTED, data, .. })) => Event::Connected(data),
            Ok(Some(Entry::Event { event: sys::FI_SHUTDOWN, .. })) => Event::Ended,
            Ok(Some(Entry::Error { error: FiError::REFUSED, data })) => Event::Refused(data),
            Ok(Some(Entry::Error { error, .. })) | Err(error) => {
                return Err(*self.down.get_or_insert(Down::Failed(error)));
            }
            Ok(Some(Entry::Event { .. }) | None) => return Ok(None),
        };
        if !matches!(event, Event::Connected(_)) {
            self.down.get_or_insert(Down::Ended);
        }
        Ok(Some(event))
    }

    /// The next message of ours, to be filled in. `None`: too many are under way.
    pub fn outgoing(&mut self) -> Option<&mut [u8]> {
        if self.filling.is_none() {
            self.filling = self.free_sends.pop();
        }
        let (index, bytes) = (self.filling?, self.sent.bytes());
        // SAFETY: nothing is under way in a free buffer, and it is given to the provider by `send` only.
        Some(unsafe { self.sent.slice(index, bytes) })
    }

    /// Sends the first `len` bytes of [`Endpoint::outgoing`], behind all writes that were made before.
    ///
    /// # Errors
    /// [`PostError`]; after `Full` the same message may be sent later.
    pub fn send(&mut self, len: usize) -> Result<(), PostError> {
        let index = self.filling.filter(|_| len <= self.sent.bytes()).ok_or(PostError::Outside)?;
        if let Some(down) = self.down {
            return Err(down.into());
        }
        let base = self.sent.at(index).ok_or(PostError::Outside)?.as_ptr();
        let (ep, context) = (self.raw.ep.as_ptr(), Operation::Send(index).context());
        if len <= self.limits.inject {
            // SAFETY: an open endpoint, and initialised bytes, which the provider has copied when it returns.
            self.posted(unsafe { sys::shim_ep_inject(ep, base.cast(), len) })
        } else {
            // SAFETY: the same; nobody touches the buffer before its completion, which makes it free.
            self.posted(unsafe { sys::shim_ep_send(ep, base.cast(), len, self.sent.desc(), context) })?;
            self.filling = None;
            Ok(())
        }
    }

    /// Sends a few bytes, which are copied at once, at most as many as any provider takes so; [`Endpoint::outgoing`] stays as it is.
    ///
    /// # Errors
    /// [`PostError`]; nothing was sent then.
    pub fn send_short(&mut self, bytes: [u8; 8]) -> Result<(), PostError> {
        if let Some(down) = self.down {
            return Err(down.into());
        }
        // SAFETY: an open endpoint, and initialised bytes, which the provider has copied when it returns.
        self.posted(unsafe { sys::shim_ep_inject(self.raw.ep.as_ptr(), bytes.as_ptr().cast(), bytes.len()) })
    }

    /// Writes `len` bytes at `at` of `source` to `target_at` of the peer's memory. [`Completion::Written`] has the token.
    ///
    /// # Errors
    /// [`PostError`]; nothing is under way then.
    pub fn write(
        &mut self,
        source: &Arc<Region>,
        at: usize,
        len: usize,
        target: &Remote,
        target_at: u64,
        token: u64,
    ) -> Result<(), PostError> {
        if let Some(down) = self.down {
            return Err(down.into());
        }
        let inside = target_at.checked_add(len as u64).is_some_and(|end| end <= target.len);
        let base = source.part(&self.raw.domain, at, len).filter(|_| inside && source.can_be_source());
        let base = base.filter(|_| len <= self.limits.message).ok_or(PostError::Outside)?;
        let index = *self.free_writes.last().ok_or(PostError::Full)?;
        let (ep, context) = (self.raw.ep.as_ptr(), Operation::Write(index).context());
        // SAFETY: an open endpoint; registered memory, which `writes` keeps until the completion, or the endpoint is closed.
        self.posted(unsafe {
            let address = target.address.wrapping_add(target_at);
            sys::shim_ep_write(ep, base.as_ptr().cast(), len, source.desc(), address, target.key, context)
        })?;
        self.free_writes.pop();
        if let Some(write) = self.writes.get_mut(index) {
            *write = Write { token, source: Some(Arc::clone(source)) };
        }
        Ok(())
    }

    /// Hands out what is complete, without waiting, and a bounded number. Returns how many completions there were.
    ///
    /// # Errors
    /// [`Down`], once everything that came before has been handed out.
    pub fn poll(&mut self, mut each: impl FnMut(Completion<'_>)) -> Result<usize, Down> {
        let mut total = 0;
        while total < POLL_MAX {
            // SAFETY: all zero is a valid entry.
            let mut entries: [sys::fi_cq_msg_entry; BATCH] = unsafe { zeroed() };
            // SAFETY: an open queue of this format, and room for that many entries.
            let got = unsafe { sys::shim_cq_read(self.raw.cq.as_ptr(), entries.as_mut_ptr(), BATCH) };
            match FiError::check(got as i64) {
                Ok(count) => {
                    for entry in entries.iter().take(count) {
                        self.complete(entry, &mut each);
                    }
                    total += count;
                    if count < BATCH {
                        break;
                    }
                }
                Err(FiError::AGAIN) => break,
                Err(FiError::AVAILABLE) => {
                    self.fail();
                    total += 1;
                }
                Err(error) => {
                    self.down.get_or_insert(Down::Failed(error));
                    break;
                }
            }
        }
        if !self.unposted.is_empty() && self.down.is_none() {
            self.post_receives().map_err(|error| *self.down.get_or_insert(Down::Failed(error)))?;
        }
        match self.down {
            Some(down) if total == 0 => Err(down),
            _ => Ok(total),
        }
    }

    fn complete(&mut self, entry: &sys::fi_cq_msg_entry, each: &mut impl FnMut(Completion<'_>)) {
        match Operation::of(entry.op_context) {
            Some(Operation::Receive(index)) => {
                // SAFETY: the provider has given the buffer back, and gets it again by `post_receives` only.
                each(Completion::Received(unsafe { self.received.slice(index, entry.len) }));
                self.raw.progress.count();
                self.unposted.push(index);
            }
            Some(Operation::Send(index)) => self.free_sends.push(index),
            Some(Operation::Write(index)) => {
                let Some(write) = self.writes.get_mut(index) else { return };
                if write.source.take().is_some() {
                    self.free_writes.push(index);
                    each(Completion::Written(write.token));
                }
            }
            None => {}
        }
    }

    /// Takes an error out of the queue. The first that is not a consequence says why the connection is over.
    fn fail(&mut self) {
        // SAFETY: all zero is a valid entry.
        let mut entry: sys::fi_cq_err_entry = unsafe { zeroed() };
        // SAFETY: an open queue; no room for provider's data is given.
        if FiError::check(unsafe { sys::shim_cq_readerr(self.raw.cq.as_ptr(), &raw mut entry) } as i64)
            .is_err()
        {
            return;
        }
        // The operation's memory stays as it is: the endpoint is of no use any more, and is closed before that goes.
        let error = FiError::of_entry(entry.err);
        let down = if ends_link(error) { Down::Ended } else { Down::Failed(error) };
        self.down.get_or_insert(down);
    }

    fn post_receives(&mut self) -> Result<(), FiError> {
        while let Some(index) = self.unposted.last().copied() {
            let Some(base) = self.received.at(index) else { break };
            let (bytes, context) = (self.received.bytes(), Operation::Receive(index).context());
            // SAFETY: an open endpoint, and a buffer that nobody touches before its completion.
            let ret = unsafe {
                let (ep, desc) = (self.raw.ep.as_ptr(), self.received.desc());
                sys::shim_ep_recv(ep, base.as_ptr().cast(), bytes, desc, context)
            };
            match FiError::check(ret as i64) {
                Ok(_) => drop(self.unposted.pop()),
                Err(FiError::AGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn posted(&mut self, ret: isize) -> Result<(), PostError> {
        match FiError::check(ret as i64) {
            Ok(_) => Ok(()),
            Err(FiError::AGAIN) => Err(PostError::Full),
            Err(error) => Err(PostError::Down(*self.down.get_or_insert(Down::Failed(error)))),
        }
    }

    /// True: nothing is there, and what comes from now on makes one of [`Endpoint::wait_fds`] readable. False: poll first.
    ///
    /// # Errors
    /// libfabric's.
    pub fn may_sleep(&mut self) -> Result<bool, FiError> {
        let mut queues = [self.raw.cq.as_ptr().cast(), self.raw.eq.as_ptr().cast()];
        self.raw.domain.may_sleep(&mut queues)
    }

    /// What becomes readable for completions, and for events.
    ///
    /// # Errors
    /// libfabric's.
    pub fn wait_fds(&self) -> Result<[BorrowedFd<'_>; 2], FiError> {
        // SAFETY: the queues, and their descriptors with them, are open as long as `self`.
        unsafe { Ok([wait_fd(self.raw.cq.cast())?, wait_fd(self.raw.eq.cast())?]) }
    }

    /// Ends the connection, which the peer learns. What was sent before may be lost.
    pub fn shut_down(&mut self) {
        self.down.get_or_insert(Down::Ended);
        // SAFETY: an open endpoint. A failure means that there is no connection.
        unsafe { sys::shim_shutdown(self.raw.ep.as_ptr()) };
    }
}

/// Errors that say no more than that the peer is not there any more.
fn ends_link(error: FiError) -> bool {
    matches!(
        error.code(),
        libc::ECANCELED | libc::ECONNRESET | libc::ENOTCONN | libc::EPIPE | libc::ECONNABORTED
    )
}

/// Opens an endpoint with its queues; `[receives, rest]`: completions that may be there at once.
fn open(domain: &Arc<Domain>, info: &Info, [receives, rest]: [usize; 2]) -> Result<Raw, FiError> {
    let mut ep = ptr::null_mut();
    // SAFETY: an open domain, and a description of an endpoint in it.
    check(unsafe { sys::shim_endpoint(domain.domain.as_ptr(), info.as_ptr(), &raw mut ep) })?;
    let ep = Opened::new(ep).ok_or(FiError::of_entry(0))?;
    // SAFETY: all zero is a valid description; it is completed below.
    let mut attr: sys::fi_cq_attr = unsafe { zeroed() };
    attr.size = receives + rest;
    attr.format = sys::FI_CQ_FORMAT_MSG;
    attr.wait_obj = sys::FI_WAIT_FD;
    let mut cq = ptr::null_mut();
    // SAFETY: an open domain.
    check(unsafe { sys::shim_cq_open(domain.domain.as_ptr(), &raw mut attr, &raw mut cq) })?;
    let cq = Opened::new(cq).ok_or(FiError::of_entry(0))?;
    let eq = event::open(domain)?;
    // SAFETY: all are open.
    unsafe {
        check(sys::shim_ep_bind(ep.0.as_ptr(), eq.0.as_ptr().cast(), 0))?;
        check(sys::shim_ep_bind(ep.0.as_ptr(), cq.0.as_ptr().cast(), sys::shim_transmit | sys::shim_recv))?;
        check(sys::shim_enable(ep.0.as_ptr()))?;
    }
    let progress = domain.graves.endpoint(receives);
    Ok(Raw { ep: ep.keep(), cq: cq.keep(), eq: eq.keep(), progress, domain: Arc::clone(domain) })
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("down", &self.down).finish_non_exhaustive()
    }
}
