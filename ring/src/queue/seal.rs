//! Whose an entry of the shared ring is (SPEC 2.8.6): a keyed checksum, since every process can write anything there.

use core::hash::Hasher;

use siphasher::sip::SipHasher24;

/// A function's secret. The agent draws it; the function and the card know it, other processes don't.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Key(pub [u64; 2]);

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// The seal of the entry with these first seven words, for this ticket: SipHash-2-4. The ticket is what keeps a copied entry
    /// from being taken a second time.
    #[must_use]
    pub fn seal(&self, ticket: u64, words: &[u64; 7]) -> u64 {
        let [a, b] = self.0;
        let mut hasher = SipHasher24::new_with_keys(a, b);
        hasher.write_u64(ticket);
        for word in words {
            hasher.write_u64(*word);
        }
        hasher.finish()
    }
}
