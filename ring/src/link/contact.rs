//! How bridges find each other (SPEC 14.6): what a path says, and the private data of a connection request and its answer.

use crate::VERSION;
use crate::hosts::Path;

use super::Malformed;

/// "DI" and the version, as in messages.
const MAGIC: [u8; 4] = {
    let [a, b, ..] = VERSION.to_le_bytes();
    [b'D', b'I', a, b]
};
const _: () = assert!(VERSION < 1 << 16);

/// Random for each run of a coordinator: who knows it was told of it by that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub [u8; 16]);

/// What the path of a connection says to the other host's bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contact {
    /// The run of the sender.
    pub token: Token,
    /// Where its bridge listens: an IPv6 address, IPv4 ones as `::ffff:a.b.c.d`.
    pub ip: [u8; 16],
    /// Port there.
    pub port: u16,
    /// Address of its card.
    pub card: [u8; 4],
    /// Its number of the connection.
    pub connection: u32,
    /// Its two rings as the provider calls them: address and key.
    pub rings: (u64, u64),
}

/// Private data of a connection request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knock {
    /// The run that is asked.
    pub to: Token,
    /// The run that asks.
    pub from: Token,
    /// Address of its card.
    pub card: [u8; 4],
    /// Messages that it may be sent before it takes any.
    pub receives: u32,
}

/// Private data of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Messages that it may be sent before it takes any.
    pub receives: u32,
}

/// Bytes of a [`Knock`]; some providers pad it.
pub const KNOCK_BYTES: usize = 44;
/// Bytes of a [`Welcome`].
pub const WELCOME_BYTES: usize = 8;

impl Contact {
    /// Encodes.
    #[must_use]
    pub fn to_path(self) -> Path {
        let mut path = Path::default();
        let (address, key) = self.rings;
        let parts: [&[u8]; 9] = [
            &MAGIC,
            &self.token.0,
            &self.ip,
            &self.port.to_le_bytes(),
            &[0; 2],
            &self.card,
            &self.connection.to_le_bytes(),
            &address.to_le_bytes(),
            &key.to_le_bytes(),
        ];
        put(&mut path.0, &parts);
        path
    }

    /// Validates.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn from_path(path: &Path) -> Result<Contact, Malformed> {
        let mut rest = path.0.as_slice();
        magic(&mut rest)?;
        let contact = Contact {
            token: Token(take(&mut rest)?),
            ip: take(&mut rest)?,
            port: {
                let port = u16::from_le_bytes(take(&mut rest)?);
                zeros(take::<2>(&mut rest)?)?;
                port
            },
            card: take(&mut rest)?,
            connection: u32::from_le_bytes(take(&mut rest)?),
            rings: (u64::from_le_bytes(take(&mut rest)?), u64::from_le_bytes(take(&mut rest)?)),
        };
        if contact.port == 0 || rest.iter().any(|byte| *byte != 0) { Err(Malformed) } else { Ok(contact) }
    }
}

impl Knock {
    /// Encodes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; KNOCK_BYTES] {
        let mut bytes = [0; KNOCK_BYTES];
        put(&mut bytes, &[&MAGIC, &self.to.0, &self.from.0, &self.card, &self.receives.to_le_bytes()]);
        bytes
    }

    /// Validates the beginning of `bytes`.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Knock, Malformed> {
        let mut rest = bytes;
        magic(&mut rest)?;
        Ok(Knock {
            to: Token(take(&mut rest)?),
            from: Token(take(&mut rest)?),
            card: take(&mut rest)?,
            receives: u32::from_le_bytes(take(&mut rest)?),
        })
    }
}

impl Welcome {
    /// Encodes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; WELCOME_BYTES] {
        let mut bytes = [0; WELCOME_BYTES];
        put(&mut bytes, &[&MAGIC, &self.receives.to_le_bytes()]);
        bytes
    }

    /// Validates the beginning of `bytes`.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Welcome, Malformed> {
        let mut rest = bytes;
        magic(&mut rest)?;
        Ok(Welcome { receives: u32::from_le_bytes(take(&mut rest)?) })
    }
}

fn put(into: &mut [u8], parts: &[&[u8]]) {
    for (to, from) in into.iter_mut().zip(parts.iter().copied().flatten()) {
        *to = *from;
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (first, rest) = bytes.split_first_chunk().ok_or(Malformed)?;
    *bytes = rest;
    Ok(*first)
}

fn magic(bytes: &mut &[u8]) -> Result<(), Malformed> {
    if take(bytes)? == MAGIC { Ok(()) } else { Err(Malformed) }
}

fn zeros<const N: usize>(bytes: [u8; N]) -> Result<(), Malformed> {
    if bytes == [0; N] { Ok(()) } else { Err(Malformed) }
}
