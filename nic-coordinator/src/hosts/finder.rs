//! Which coordinator's host an address reaches, and which addresses have none (SPEC 13.8, 13.13).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use ring::hosts::Addresses;

use super::calls::Wanted;

/// How long somebody is looked for who was not heard of: what a datagram there and one back may take.
pub const SEEK_US: u64 = 100_000;
/// Addresses that are remembered to have no coordinator. More push out the oldest.
pub const NOBODY_MAX: usize = 4096;
/// Connections that wait while an address is looked for.
const WAITING_MAX: usize = 4096;

type Address = [u8; 16];

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It reaches the host of this card.
    Peer(Ipv4Addr),
    /// Nobody has answered for it.
    Nobody,
    /// It is being looked for.
    Sought,
    /// It was never looked for.
    Unknown,
}

/// A connection that waits for what is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its name here.
    pub id: u64,
    /// What is asked for.
    pub wanted: Wanted,
}

/// One address that is being looked for.
#[derive(Debug)]
struct Search {
    until_us: u64,
    waiting: Vec<Waiting>,
}

/// All addresses.
#[derive(Debug, Default)]
pub struct Finder {
    owners: BTreeMap<Address, BTreeSet<Ipv4Addr>>,
    searches: BTreeMap<Address, Search>,
    waiting: usize,
    nobody: BTreeSet<Address>,
    /// In the order of their coming.
    oldest: VecDeque<Address>,
}

impl Finder {
    /// Whose an address is. Of two, the lower card's.
    #[must_use]
    pub fn owner(&self, address: Address) -> Option<Ipv4Addr> {
        self.owners.get(&address)?.first().copied()
    }

    /// What is known.
    #[must_use]
    pub fn look(&self, address: Address) -> Found {
        if let Some(card) = self.owner(address) {
            Found::Peer(card)
        } else if self.searches.contains_key(&address) {
            Found::Sought
        } else if self.nobody.contains(&address) {
            Found::Nobody
        } else {
            Found::Unknown
        }
    }

    /// Addresses that are known to have no coordinator.
    #[must_use]
    pub fn nobodies(&self) -> usize {
        self.nobody.len()
    }

    /// `card` is up with these addresses instead of those; none, when it is not up. Returns what waited for them.
    pub fn set(&mut self, card: Ipv4Addr, before: &Addresses, now: &Addresses) -> Vec<(Ipv4Addr, Waiting)> {
        for address in before.as_slice() {
            if let Some(cards) = self.owners.get_mut(address) {
                cards.remove(&card);
                if cards.is_empty() {
                    self.owners.remove(address);
                }
            }
        }
        let mut found = Vec::new();
        for address in now.as_slice() {
            self.owners.entry(*address).or_default().insert(card);
            self.nobody.remove(address);
            let search = self.searches.remove(address);
            found.extend(search.into_iter().flat_map(|search| search.waiting).map(|w| (card, w)));
        }
        self.waiting -= found.len();
        found
    }

    /// Lets a connection wait for an address that is not known. False: too many do.
    pub fn wait(&mut self, now_us: u64, address: Address, waiting: Waiting) -> bool {
        if self.waiting >= WAITING_MAX {
            return false;
        }
        let fresh = || Search { until_us: now_us + SEEK_US, waiting: Vec::new() };
        self.searches.entry(address).or_insert_with(fresh).waiting.push(waiting);
        self.waiting += 1;
        true
    }

    /// Takes out a connection that waits. False: it does not.
    pub fn forget(&mut self, id: u64) -> bool {
        for search in self.searches.values_mut() {
            if let Some(at) = search.waiting.iter().position(|w| w.id == id) {
                search.waiting.remove(at);
                self.waiting -= 1;
                return true;
            }
        }
        false
    }

    /// Ends searches whose time is over: returns what waited in vain.
    pub fn pass(&mut self, now_us: u64) -> Vec<Waiting> {
        let over = |(address, search): (&Address, &Search)| (search.until_us <= now_us).then_some(*address);
        let over: Vec<Address> = self.searches.iter().filter_map(over).collect();
        let mut vain = Vec::new();
        for address in over {
            vain.extend(self.searches.remove(&address).into_iter().flat_map(|search| search.waiting));
            self.remember(address);
        }
        self.waiting -= vain.len();
        vain
    }

    /// When [`Finder::pass`] has something to do.
    #[must_use]
    pub fn next_us(&self) -> Option<u64> {
        self.searches.values().map(|search| search.until_us).min()
    }

    fn remember(&mut self, address: Address) {
        if self.nobody.insert(address) {
            self.oldest.push_back(address);
        }
        // Some may have got a coordinator since they came here.
        while self.oldest.len() > NOBODY_MAX {
            if let Some(oldest) = self.oldest.pop_front() {
                self.nobody.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::hosts::Path;
    use ring::msg::Addr;

    const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    fn address(n: u32) -> Address {
        u128::from(n).to_be_bytes()
    }

    fn addresses(list: &[u32]) -> Addresses {
        let mut all = Addresses::NONE;
        assert!(list.iter().all(|n| all.push(address(*n))));
        all
    }

    fn waiting(id: u64) -> Waiting {
        let wanted = Wanted { dst: Addr::default(), src: Addr::default(), path: Path::default() };
        Waiting { id, wanted }
    }

    #[test]
    fn an_address_is_the_lower_cards() {
        let mut finder = Finder::default();
        assert!(finder.set(B, &Addresses::NONE, &addresses(&[1, 2])).is_empty());
        assert!(finder.set(A, &Addresses::NONE, &addresses(&[2])).is_empty());
        assert_eq!([1, 2, 3].map(|n| finder.owner(address(n))), [Some(B), Some(A), None]);
        finder.set(A, &addresses(&[2]), &Addresses::NONE);
        assert_eq!(finder.owner(address(2)), Some(B));
        finder.set(B, &addresses(&[1, 2]), &addresses(&[3]));
        assert_eq!([1, 2, 3].map(|n| finder.owner(address(n))), [None, None, Some(B)]);
    }

    #[test]
    fn who_is_not_found_is_looked_for_once() {
        let mut finder = Finder::default();
        assert_eq!(finder.look(address(7)), Found::Unknown);
        assert!(finder.wait(0, address(7), waiting(1)) && finder.wait(50_000, address(7), waiting(2)));
        assert_eq!((finder.look(address(7)), finder.next_us()), (Found::Sought, Some(SEEK_US)));
        assert!(finder.pass(SEEK_US - 1).is_empty());
        assert_eq!(finder.pass(SEEK_US), [waiting(1), waiting(2)]);
        assert_eq!((finder.look(address(7)), finder.next_us()), (Found::Nobody, None));
        // Until it has a coordinator.
        finder.set(A, &Addresses::NONE, &addresses(&[7]));
        assert_eq!((finder.look(address(7)), finder.nobodies()), (Found::Peer(A), 0));
        finder.set(A, &addresses(&[7]), &Addresses::NONE);
        assert_eq!(finder.look(address(7)), Found::Unknown);
    }

    #[test]
    fn who_comes_up_gets_what_waited_for_it() {
        let mut finder = Finder::default();
        assert!(finder.wait(0, address(7), waiting(1)) && finder.wait(0, address(7), waiting(2)));
        assert!(finder.forget(1) && !finder.forget(1));
        assert_eq!(finder.set(A, &Addresses::NONE, &addresses(&[7])), [(A, waiting(2))]);
        assert_eq!(finder.waiting, 0);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut finder = Finder::default();
        for n in 0..u32::try_from(NOBODY_MAX).unwrap() + 10 {
            assert!(finder.wait(u64::from(n), address(n), waiting(1)));
            finder.pass(u64::MAX);
        }
        assert_eq!(finder.nobodies(), NOBODY_MAX);
        assert_eq!([9, 10].map(|n| finder.look(address(n))), [Found::Unknown, Found::Nobody]);
    }
}
