//! Waiting for connections.
#![allow(unsafe_code)] // Opens and uses passive endpoints.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use fabric_sys as sys;
use thiserror::Error;

use crate::endpoint::{ConnectError, Endpoint, Settings};
use crate::errno::FiError;
use crate::event::{self, Entry};
use crate::provider::{Domain, Fabric, Info, Opened, check, close};

/// Why nobody can connect here.
#[derive(Debug, Error)]
#[error("cannot listen at port {port} of {local} with the libfabric provider \"{provider}\": {error}")]
pub struct ListenError {
    provider: String,
    local: IpAddr,
    port: u16,
    error: FiError,
}

/// The queue of who asks for a connection is broken: listen anew.
#[derive(Debug, Error)]
#[error("the libfabric listener failed: {0}")]
pub struct ListenerFailed(pub FiError);

struct Passive {
    pep: NonNull<sys::fid_pep>,
    eq: NonNull<sys::fid_eq>,
    domain: Arc<Domain>,
}

// SAFETY: objects of a FI_THREAD_SAFE provider.
unsafe impl Send for Passive {}
// SAFETY: as above.
unsafe impl Sync for Passive {}

impl Drop for Passive {
    fn drop(&mut self) {
        close(self.pep.cast());
        close(self.eq.cast());
    }
}

/// A port that peers connect to.
pub struct Listener(Arc<Passive>);

/// A peer that asks for a connection. Dropped, it is refused.
pub struct Incoming {
    passive: Arc<Passive>,
    info: Option<Info>,
    /// What the peer has sent with it. Some providers pad it with zeros.
    pub data: Vec<u8>,
}

impl Fabric {
    /// Listens at `port` of this machine's address; 0: one that is free.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen(&self, port: u16) -> Result<Listener, ListenError> {
        let open = || {
            let info = self.0.source(port)?;
            let mut pep = ptr::null_mut();
            // SAFETY: an open fabric, and a description of it.
            check(unsafe { sys::shim_passive_ep(self.0.fabric.as_ptr(), info.as_ptr(), &raw mut pep) })?;
            let pep = Opened::new(pep).ok_or(FiError::of_entry(0))?;
            let eq = event::open(&self.0)?;
            // SAFETY: both are open.
            check(unsafe { sys::shim_pep_bind(pep.0.as_ptr(), eq.0.as_ptr().cast()) })?;
            // SAFETY: open, and bound.
            check(unsafe { sys::shim_listen(pep.0.as_ptr()) })?;
            Ok(Passive { pep: pep.keep(), eq: eq.keep(), domain: Arc::clone(&self.0) })
        };
        let passive = open().map_err(|error| ListenError {
            provider: self.provider().to_owned(),
            local: self.local(),
            port,
            error,
        })?;
        Ok(Listener(Arc::new(passive)))
    }
}

impl Listener {
    /// Where peers connect to.
    ///
    /// # Errors
    /// libfabric's.
    pub fn address(&self) -> Result<SocketAddr, FiError> {
        // SAFETY: all zero is a valid address.
        let mut name: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let mut len = size_of_val(&name);
        // SAFETY: an open endpoint, and room of that size.
        check(unsafe {
            sys::shim_getname(self.0.pep.as_ptr().cast(), (&raw mut name).cast(), &raw mut len)
        })?;
        match i32::from(name.ss_family) {
            libc::AF_INET => {
                // SAFETY: an IPv4 address, by its family; the storage is larger, and aligned.
                let v4 = unsafe { &*(&raw const name).cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                Ok(SocketAddr::new(ip.into(), u16::from_be(v4.sin_port)))
            }
            libc::AF_INET6 => {
                // SAFETY: as above, for IPv6.
                let v6 = unsafe { &*(&raw const name).cast::<libc::sockaddr_in6>() };
                Ok(SocketAddr::new(Ipv6Addr::from(v6.sin6_addr.s6_addr).into(), u16::from_be(v6.sin6_port)))
            }
            _ => Err(FiError::of_entry(libc::EAFNOSUPPORT)),
        }
    }

    /// The next peer that asks, without waiting.
    ///
    /// # Errors
    /// [`ListenerFailed`].
    pub fn poll(&mut self) -> Result<Option<Incoming>, ListenerFailed> {
        match event::read(self.0.eq).map_err(ListenerFailed)? {
            Some(Entry::Event { event: sys::FI_CONNREQ, info, data }) => {
                Ok(Some(Incoming { passive: Arc::clone(&self.0), info, data }))
            }
            // A peer that gave up, for example: nothing to do with those who ask next.
            _ => Ok(None),
        }
    }

    /// See [`Endpoint::may_sleep`].
    ///
    /// # Errors
    /// libfabric's.
    pub fn may_sleep(&mut self) -> Result<bool, FiError> {
        self.0.domain.may_sleep(&mut [self.0.eq.as_ptr().cast()])
    }

    /// See [`Endpoint::wait_fds`].
    ///
    /// # Errors
    /// libfabric's.
    pub fn wait_fd(&self) -> Result<std::os::fd::BorrowedFd<'_>, FiError> {
        // SAFETY: the queue, and its descriptor with it, is open as long as `self`.
        unsafe { crate::endpoint::wait_fd(self.0.eq.cast()) }
    }
}

impl Incoming {
    /// Accepts it, with private data for the peer. The connection is there at [`crate::endpoint::Event::Connected`].
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn accept(mut self, settings: &Settings, data: &[u8]) -> Result<Endpoint, ConnectError> {
        let info = self.info.take().ok_or(ConnectError::Accept(FiError::of_entry(libc::EINVAL)))?;
        let endpoint = Endpoint::new(&Fabric(Arc::clone(&self.passive.domain)), &info, settings);
        let endpoint = endpoint.inspect_err(|_| self.info = Some(info))?;
        endpoint.accept(data).map_err(ConnectError::Accept)?;
        Ok(endpoint)
    }

    /// Refuses it, with private data for the peer.
    pub fn refuse(mut self, data: &[u8]) {
        self.reject(data);
    }

    fn reject(&mut self, data: &[u8]) {
        let Some(info) = self.info.take() else { return };
        // SAFETY: an open passive endpoint, and the handle of a request to it that nobody has accepted. A failure means that
        // the peer is gone already.
        unsafe {
            sys::shim_reject(self.passive.pep.as_ptr(), info.handle(), data.as_ptr().cast(), data.len());
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.reject(&[]);
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listener").field(&self.address()).finish()
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("data", &self.data).finish_non_exhaustive()
    }
}
