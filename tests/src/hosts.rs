//! What `ipc-direct status --json` says of other hosts' cards.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Who is known, and what came.
#[derive(Debug, Deserialize)]
pub struct Status {
    /// By their numbers in the list.
    pub peers: BTreeMap<u32, Peer>,
    /// How many datagrams became what.
    pub datagrams: BTreeMap<String, u64>,
    /// What is carried of connections with other hosts.
    pub carried: BTreeMap<String, u64>,
}

/// One other card.
#[derive(Clone, Debug, Deserialize)]
pub struct Peer {
    /// Its address.
    pub card: String,
    /// `sought`, `up` or `lost`.
    pub state: String,
    /// Incarnation of its coordinator.
    pub epoch: Option<u32>,
    /// Addresses that reach its host.
    pub addresses: Vec<String>,
}

impl Status {
    /// The card at that address.
    #[must_use]
    pub fn peer(&self, card: &str) -> Option<&Peer> {
        self.peers.values().find(|peer| peer.card == card)
    }
}
