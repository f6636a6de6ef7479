//! Opening a provider: libfabric's fabric and domain, for one address of this machine.
#![allow(unsafe_code)] // Fills in fi_info, and opens and closes.

use std::ffi::CString;
use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fabric_sys as sys;
use thiserror::Error;

use crate::errno::FiError;
use crate::graves::Graves;

/// Why a provider could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The name is none.
    #[error("\"{0}\" is no name of a libfabric provider: use for example \"tcp\" or \"verbs\"")]
    Name(String),
    /// libfabric has no such provider, or it can't do what we need.
    #[error(
        "libfabric has no provider \"{provider}\" with connected endpoints and RMA on this machine: {known}"
    )]
    Unknown {
        /// What was asked for.
        provider: String,
        /// What there is instead.
        known: String,
    },
    /// The provider is there, and reaches nothing from that address.
    #[error(
        "the libfabric provider \"{provider}\" has no network at {address} ({error}): give an address of this machine on one"
    )]
    NoNetwork {
        /// Which provider.
        provider: String,
        /// The address of this machine.
        address: IpAddr,
        /// libfabric's reason.
        error: FiError,
    },
    /// libfabric's refusal.
    #[error("cannot open the {what} of the libfabric provider \"{provider}\": {error}")]
    Refused {
        /// Which object.
        what: &'static str,
        /// Which provider.
        provider: String,
        /// libfabric's reason.
        error: FiError,
    },
}

/// A description of what a provider offers, or of what we want; owned.
pub(crate) struct Info(NonNull<sys::fi_info>);

// SAFETY: memory of ours alone, freed by whatever thread drops it.
unsafe impl Send for Info {}
// SAFETY: `&Info` reads only.
unsafe impl Sync for Info {}

impl Info {
    /// Takes over what libfabric has handed out.
    ///
    /// # Safety
    /// `raw` is null or a description that nobody else frees, whose attributes are all there.
    pub(crate) unsafe fn from_raw(raw: *mut sys::fi_info) -> Option<Self> {
        NonNull::new(raw).map(Info)
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::fi_info {
        self.0.as_ptr()
    }

    fn raw(&self) -> &sys::fi_info {
        // SAFETY: ours as long as `self` is (contract of `from_raw`).
        unsafe { self.0.as_ref() }
    }

    pub(crate) fn handle(&self) -> *mut sys::fid {
        self.raw().handle
    }

    pub(crate) fn destination(&self) -> *const std::ffi::c_void {
        self.raw().dest_addr
    }

    /// What the provider can do on an endpoint.
    pub(crate) fn limits(&self) -> Limits {
        let raw = self.raw();
        // SAFETY: libfabric fills in all attributes of what it hands out (contract of `from_raw`).
        let (tx, rx, ep) = unsafe { (&*raw.tx_attr, &*raw.rx_attr, &*raw.ep_attr) };
        Limits { inject: tx.inject_size, tx: tx.size, rx: rx.size, message: ep.max_msg_size }
    }
}

impl Drop for Info {
    fn drop(&mut self) {
        // SAFETY: ours, freed once.
        unsafe { sys::fi_freeinfo(self.0.as_ptr()) };
    }
}

/// What a provider can do on an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a message that need no buffer of ours.
    pub inject: usize,
    /// Sends and writes under way.
    pub tx: usize,
    /// Receives posted.
    pub rx: usize,
    /// Bytes of one operation.
    pub message: usize,
}

/// An open provider. Cheap to clone; it is closed when everything that was made from it is gone.
#[derive(Clone)]
pub struct Fabric(pub(crate) Arc<Domain>);

pub(crate) struct Domain {
    pub(crate) fabric: NonNull<sys::fid_fabric>,
    pub(crate) domain: NonNull<sys::fid_domain>,
    pub(crate) graves: Graves,
    info: Info,
    provider: String,
    local: IpAddr,
    next_key: AtomicU64,
}

// SAFETY: opened with FI_THREAD_SAFE: libfabric locks where it has to.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Fabric {
    /// Opens provider `name` at `local`, an address of this machine.
    ///
    /// # Errors
    /// [`OpenError`]; nothing stays open.
    pub fn open(name: &str, local: IpAddr) -> Result<Fabric, OpenError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || !name.chars().all(plain) {
            return Err(OpenError::Name(name.to_owned()));
        }
        let hints = hints(Some(name), None);
        let no_network = |error| OpenError::NoNetwork { provider: name.to_owned(), address: local, error };
        let info = query(Some((local, 0)), sys_source(), &hints).map_err(|error| {
            if query(None, 0, &hints).is_ok() {
                no_network(error)
            } else {
                OpenError::Unknown { provider: name.to_owned(), known: known() }
            }
        })?;
        // Some providers find out about an address when they first use it.
        UdpSocket::bind((local, 0))
            .map_err(|error| no_network(FiError::of_entry(error.raw_os_error().unwrap_or(0))))?;
        let refused = |what, error| OpenError::Refused { what, provider: name.to_owned(), error };
        let mut fabric = ptr::null_mut();
        // SAFETY: the description's fabric is filled in; libfabric makes the object or says why not.
        check(unsafe { sys::fi_fabric(info.raw().fabric_attr, &raw mut fabric, ptr::null_mut()) })
            .map_err(|error| refused("fabric", error))?;
        let fabric = Opened::new(fabric).ok_or_else(|| refused("fabric", FiError::of_entry(0)))?;
        let mut domain = ptr::null_mut();
        // SAFETY: an open fabric and a description of it.
        check(unsafe { sys::shim_domain(fabric.0.as_ptr(), info.as_ptr(), &raw mut domain) })
            .map_err(|error| refused("domain", error))?;
        let domain = Opened::new(domain).ok_or_else(|| refused("domain", FiError::of_entry(0)))?;
        Ok(Fabric(Arc::new(Domain {
            fabric: fabric.keep(),
            domain: domain.keep(),
            graves: Graves::default(),
            info,
            provider: name.to_owned(),
            local,
            next_key: AtomicU64::new(1),
        })))
    }

    /// Its name.
    #[must_use]
    pub fn provider(&self) -> &str {
        &self.0.provider
    }

    /// The address of this machine that it was opened at.
    #[must_use]
    pub fn local(&self) -> IpAddr {
        self.0.local
    }

    /// What it can do on an endpoint.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.0.info.limits()
    }
}

impl Domain {
    /// Describes an endpoint that listens at `port` of this machine.
    pub(crate) fn source(&self, port: u16) -> Result<Info, FiError> {
        query(Some((self.local, port)), sys_source(), &hints(Some(&self.provider), Some(&self.info)))
    }

    /// Describes an endpoint that connects to `peer`.
    pub(crate) fn target(&self, peer: SocketAddr) -> Result<Info, FiError> {
        query(Some((peer.ip(), peer.port())), 0, &hints(Some(&self.provider), Some(&self.info)))
    }

    fn mr_mode(&self) -> i32 {
        // SAFETY: as in `Info::limits`.
        unsafe { (*self.info.raw().domain_attr).mr_mode }
    }

    /// Peers name registered memory by its address here, instead of counting from its start.
    pub(crate) fn has_virtual_addresses(&self) -> bool {
        // SAFETY: reads a constant of the library.
        self.mr_mode() & unsafe { sys::shim_mr_virt_addr } != 0
    }

    /// A key for a registration, for providers that choose none themselves.
    pub(crate) fn next_key(&self) -> u64 {
        // Relaxed: only the numbers' being different matters.
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        close(self.domain.cast());
        close(self.fabric.cast());
    }
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fabric").field("provider", &self.0.provider).field("local", &self.0.local).finish()
    }
}

/// An object that was opened, and is closed unless it is kept. All of libfabric's begin with their `fid`.
pub(crate) struct Opened<T>(pub(crate) NonNull<T>);

impl<T> Opened<T> {
    pub(crate) fn new(raw: *mut T) -> Option<Self> {
        NonNull::new(raw).map(Opened)
    }

    pub(crate) fn keep(self) -> NonNull<T> {
        let raw = self.0;
        std::mem::forget(self);
        raw
    }
}

impl<T> Drop for Opened<T> {
    fn drop(&mut self) {
        close(self.0.cast());
    }
}

/// Closes an object. False: libfabric could not, and still uses it.
pub(crate) fn close(fid: NonNull<sys::fid>) -> bool {
    // SAFETY: only objects that are open are given here, once.
    unsafe { sys::shim_close(fid.as_ptr()) == 0 }
}

pub(crate) fn check(ret: i32) -> Result<(), FiError> {
    FiError::check(ret).map(drop)
}

fn sys_source() -> u64 {
    // SAFETY: reads a constant of the library.
    unsafe { sys::shim_source }
}

/// What we want of `provider`, or of all; in the fabric and domain of `like`, if given.
fn hints(provider: Option<&str>, like: Option<&Info>) -> Info {
    // SAFETY: a description with all attributes, zeroed; strings in it are malloc'ed, as fi_freeinfo wants.
    unsafe {
        let raw = sys::shim_allocinfo();
        let info = Info::from_raw(raw).expect("memory for a description");
        let (tx, rx, ep) = (&mut *(*raw).tx_attr, &mut *(*raw).rx_attr, &mut *(*raw).ep_attr);
        let (domain, fabric) = (&mut *(*raw).domain_attr, &mut *(*raw).fabric_attr);
        (*raw).caps = sys::shim_msg
            | sys::shim_rma
            | sys::shim_send
            | sys::shim_recv
            | sys::shim_write
            | sys::shim_remote_write;
        ep.type_ = sys::FI_EP_MSG;
        (tx.msg_order, rx.msg_order) = (sys::shim_order_saw, sys::shim_order_saw);
        domain.mr_mode =
            sys::shim_mr_local | sys::shim_mr_virt_addr | sys::shim_mr_allocated | sys::shim_mr_prov_key;
        domain.threading = sys::FI_THREAD_SAFE;
        // No thread of the provider's: it works when it is polled.
        domain.data_progress = sys::FI_PROGRESS_MANUAL;
        domain.control_progress = sys::FI_PROGRESS_MANUAL;
        if let Some(provider) = provider.and_then(|name| CString::new(name).ok()) {
            fabric.prov_name = libc::strdup(provider.as_ptr());
        }
        if let Some(like) = like.map(Info::raw) {
            fabric.name = libc::strdup((*like.fabric_attr).name);
            domain.name = libc::strdup((*like.domain_attr).name);
        }
        info
    }
}

/// Asks libfabric for the first offer that fits `hints`, at an address.
fn query(at: Option<(IpAddr, u16)>, flags: u64, hints: &Info) -> Result<Info, FiError> {
    let text = |text: String| CString::new(text).expect("digits");
    let at = at.map(|(ip, port)| (text(ip.to_string()), text(port.to_string())));
    let (node, service) = at.as_ref().map_or((ptr::null(), ptr::null()), |(n, s)| (n.as_ptr(), s.as_ptr()));
    let mut found = ptr::null_mut();
    // SAFETY: terminated strings or null, and a description; libfabric makes a new one or says why not.
    let info = unsafe {
        let flags = if at.is_some() { flags | sys::shim_numerichost } else { 0 };
        check(sys::fi_getinfo(sys::shim_api_version, node, service, flags, hints.as_ptr(), &raw mut found))?;
        Info::from_raw(found)
    };
    info.ok_or(FiError::of_entry(sys::FI_ENODATA.cast_signed()))
}

/// The providers that could be used, for people.
fn known() -> String {
    let Ok(all) = query(None, 0, &hints(None, None)) else { return "there is none at all".to_owned() };
    let mut names = Vec::new();
    let mut at = all.as_ptr().cast_const();
    // SAFETY: a list of descriptions with names, which `all` owns.
    while let Some(info) = unsafe { at.as_ref() } {
        // SAFETY: as above.
        let name = unsafe { std::ffi::CStr::from_ptr((*info.fabric_attr).prov_name) };
        names.push(name.to_string_lossy().into_owned());
        at = info.next;
    }
    names.sort();
    names.dedup();
    format!("choose one of {}", names.join(", "))
}
