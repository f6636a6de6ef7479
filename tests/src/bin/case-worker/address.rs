//! Socket addresses between text and C.
//!
//! `unsafe` is allowed here to view `sockaddr_storage` as the family's own structure.
#![allow(unsafe_code)]

use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::slice;

use harness::wire::Addr;

/// Where the name begins in a `sockaddr_un`.
const NAME_AT: usize = size_of::<libc::sa_family_t>();

/// A C address with its length.
pub struct Sockaddr {
    pub storage: libc::sockaddr_storage,
    pub len: libc::socklen_t,
}

impl Sockaddr {
    /// Room for any address.
    pub fn room() -> Sockaddr {
        // SAFETY: all-zero is a valid sockaddr_storage.
        Sockaddr { storage: unsafe { zeroed() }, len: length_of::<libc::sockaddr_storage>() }
    }

    pub fn from_text(addr: &Addr) -> Sockaddr {
        let mut c = Sockaddr::room();
        if let Some(name) = addr.ip.strip_prefix("unix:") {
            c.set_name(name);
            return c;
        }
        match addr.ip.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => {
                let v4: *mut libc::sockaddr_in = (&raw mut c.storage).cast();
                // SAFETY: sockaddr_storage is large and aligned enough for sockaddr_in.
                let v4 = unsafe { &mut *v4 };
                v4.sin_family = libc::AF_INET as libc::sa_family_t;
                v4.sin_port = addr.port.to_be();
                v4.sin_addr.s_addr = u32::from_ne_bytes(ip.octets());
                c.len = length_of::<libc::sockaddr_in>();
            }
            Ok(IpAddr::V6(ip)) => {
                let v6: *mut libc::sockaddr_in6 = (&raw mut c.storage).cast();
                // SAFETY: as above, for sockaddr_in6.
                let v6 = unsafe { &mut *v6 };
                v6.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                v6.sin6_port = addr.port.to_be();
                v6.sin6_addr.s6_addr = ip.octets();
                c.len = length_of::<libc::sockaddr_in6>();
            }
            // A family that TCP refuses: for the cases about wrong addresses.
            Err(_) => c.len = 2,
        }
        c
    }

    /// An `AF_UNIX` name: nothing, a path, or `@` and an abstract name. Longer ones than the kernel takes are cut
    /// where this structure ends, which is still too long.
    fn set_name(&mut self, name: &str) {
        self.storage.ss_family = libc::AF_UNIX as libc::sa_family_t;
        let mut bytes = name.as_bytes().to_vec();
        match bytes.first_mut() {
            Some(first) if *first == b'@' => *first = 0,
            Some(_) => bytes.push(0),
            None => {}
        }
        bytes.truncate(size_of::<libc::sockaddr_storage>() - NAME_AT);
        // SAFETY: the bytes fit behind the family, as they were just cut to.
        unsafe {
            let place: *mut u8 = (&raw mut self.storage).cast();
            place.add(NAME_AT).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        self.len = (NAME_AT + bytes.len()) as libc::socklen_t;
    }

    fn name(&self) -> String {
        let len = (self.len as usize).clamp(NAME_AT, size_of::<libc::sockaddr_storage>()) - NAME_AT;
        // SAFETY: `len` bytes from there are inside the structure, which was zeroed before anybody wrote to it.
        let bytes =
            unsafe { slice::from_raw_parts((&raw const self.storage).cast::<u8>().add(NAME_AT), len) };
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        match bytes.split_first() {
            None => "unix:".to_owned(),
            Some((0, rest)) => format!("unix:@{}", text(rest)),
            Some(_) => format!("unix:{}", text(bytes.split(|b| *b == 0).next().unwrap_or(bytes))),
        }
    }

    /// What a call left here; nothing if it gave no address.
    pub fn to_text(&self) -> Option<Addr> {
        if self.len == 0 {
            return None;
        }
        match i32::from(self.storage.ss_family) {
            libc::AF_INET => {
                let v4: *const libc::sockaddr_in = (&raw const self.storage).cast();
                // SAFETY: the family says that this is a sockaddr_in.
                let v4 = unsafe { &*v4 };
                let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(Addr { ip: ip.to_string(), port: u16::from_be(v4.sin_port) })
            }
            libc::AF_INET6 => {
                let v6: *const libc::sockaddr_in6 = (&raw const self.storage).cast();
                // SAFETY: the family says that this is a sockaddr_in6.
                let v6 = unsafe { &*v6 };
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                Some(Addr { ip: ip.to_string(), port: u16::from_be(v6.sin6_port) })
            }
            libc::AF_UNIX => Some(Addr { ip: self.name(), port: 0 }),
            _ => None,
        }
    }

    pub fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.storage).cast()
    }
}

fn length_of<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}
