//! Sealing datagrams (XChaCha20-Poly1305), and telling a datagram that was there already.

use std::net::Ipv4Addr;

use chacha20poly1305::{AeadInOut, Key, KeyInit, Tag, XChaCha20Poly1305, XNonce};
use ring::hosts::{
    BODY_BYTES_MAX, Envelope, HEAD_BYTES, HostMsg, Incarnation, KEY_BYTES, TAG_BYTES, associated_data,
};

/// Why a datagram is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unbelieved {
    /// Not a datagram or message of this version.
    Malformed,
    /// Not sealed with our key, or changed on its way.
    Forged,
}

/// The key that hosts share.
pub struct Seal(XChaCha20Poly1305);

impl Seal {
    /// From the key's bytes.
    #[must_use]
    pub fn new(key: &[u8; KEY_BYTES]) -> Seal {
        Seal(XChaCha20Poly1305::new(&Key::from(*key)))
    }

    /// A datagram from `address`. No two of one `sender` may have the same `counter`.
    #[must_use]
    pub fn seal(&self, address: Ipv4Addr, sender: Incarnation, counter: u64, message: &HostMsg) -> Vec<u8> {
        let head = Envelope::head(sender, counter);
        let (mut body, length) = message.to_wire();
        let body = body.get_mut(..length).unwrap_or_default();
        let nonce = Envelope::nonce(&head);
        let data = associated_data(&head, address.octets());
        let mut datagram = head.to_vec();
        // Fails for bodies of gigabytes only.
        if let Ok(tag) = self.0.encrypt_inout_detached(&XNonce::from(nonce), &data, body.into()) {
            datagram.extend_from_slice(body);
            datagram.extend_from_slice(&tag);
        }
        datagram
    }

    /// What a datagram from `address` says, and who sent it as which of its datagrams.
    ///
    /// # Errors
    /// [`Unbelieved`].
    pub fn open(
        &self,
        address: Ipv4Addr,
        datagram: &[u8],
    ) -> Result<(Incarnation, u64, HostMsg), Unbelieved> {
        let envelope = Envelope::from_wire(datagram).map_err(|_| Unbelieved::Malformed)?;
        let (Some(head), Some((sealed, tag))) = (
            datagram.first_chunk::<HEAD_BYTES>(),
            envelope.sealed.len().checked_sub(TAG_BYTES).and_then(|at| envelope.sealed.split_at_checked(at)),
        ) else {
            return Err(Unbelieved::Malformed);
        };
        let mut body = [0; BODY_BYTES_MAX];
        let body: &mut [u8] = body.get_mut(..sealed.len()).ok_or(Unbelieved::Malformed)?;
        body.copy_from_slice(sealed);
        let (nonce, data) = (Envelope::nonce(head), associated_data(head, address.octets()));
        let tag = Tag::try_from(tag).map_err(|_| Unbelieved::Malformed)?;
        let opened = self.0.decrypt_inout_detached(&XNonce::from(nonce), &data, body.as_mut().into(), &tag);
        opened.map_err(|_| Unbelieved::Forged)?;
        let message = HostMsg::from_wire(body).map_err(|_| Unbelieved::Malformed)?;
        Ok((envelope.sender, envelope.counter, message))
    }
}

/// Which of a sender's datagrams have been there: the last [`ReplayWindow::WIDTH`], anything older counts as seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayWindow {
    newest: u64,
    /// Bit n: `newest - n` was there.
    seen: u64,
}

impl ReplayWindow {
    /// How far datagrams may overtake each other.
    pub const WIDTH: u64 = 64;

    /// The highest that was there.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// True the first time that it is asked about `counter` (from 1).
    pub fn is_new(&mut self, counter: u64) -> bool {
        if counter > self.newest {
            let ahead = counter - self.newest;
            self.seen = if ahead < Self::WIDTH { self.seen << ahead } else { 0 } | 1;
            self.newest = counter;
            return true;
        }
        let bit = self.newest - counter;
        if bit >= Self::WIDTH || self.seen & 1 << bit != 0 {
            return false;
        }
        self.seen |= 1 << bit;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use ring::hosts::Label;

    use super::*;

    const ME: Incarnation = Incarnation([1; 16]);
    const LABEL: Label = Label { to: Incarnation([2; 16]), quote: 1, ticket: 2 };
    const BYE: HostMsg = HostMsg::Bye { label: LABEL, epoch: 3 };
    const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    #[test]
    fn what_is_sealed_opens_with_the_same_key_only() {
        let (seal, other) = (Seal::new(&[7; KEY_BYTES]), Seal::new(&[8; KEY_BYTES]));
        let datagram = seal.seal(HERE, ME, 5, &BYE);
        assert_eq!(seal.open(HERE, &datagram), Ok((ME, 5, BYE)));
        assert_eq!(other.open(HERE, &datagram), Err(Unbelieved::Forged));
        assert_eq!(seal.open(Ipv4Addr::new(10, 0, 0, 2), &datagram), Err(Unbelieved::Forged));
        assert_eq!(seal.open(HERE, &datagram[..40]), Err(Unbelieved::Malformed));
    }

    /// No bit of it can be changed: not of the head either, which is not secret.
    #[test]
    fn no_bit_can_be_changed() {
        let seal = Seal::new(&[7; KEY_BYTES]);
        let datagram = seal.seal(HERE, ME, 5, &BYE);
        for bit in 0..datagram.len() * 8 {
            let mut changed = datagram.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(seal.open(HERE, &changed).is_err(), "bit {bit}");
        }
    }

    proptest! {
        /// Against the set of all that was seen.
        #[test]
        fn a_counter_is_new_once(counters in prop::collection::vec(1u64..200, 0..400)) {
            let (mut window, mut seen) = (ReplayWindow::default(), BTreeSet::new());
            for counter in counters {
                let old = seen.last().is_some_and(|newest| newest - counter.min(*newest) >= ReplayWindow::WIDTH);
                let new = window.is_new(counter);
                prop_assert_eq!(new, !old && !seen.contains(&counter));
                if new { seen.insert(counter); }
            }
        }
    }
}
