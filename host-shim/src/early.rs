//! Announcements about connections and listeners that came before the thread that makes them had put them in their place: they may come right
//! behind the answer, and before a connection that was asked for ahead is accepted.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use ring::msg::ConnId;

/// What each is about (0: nothing), and what it says. Stored by one thread at a time: who acts on completions.
static NOTES: [(AtomicU64, AtomicU32); 256] = [const { (AtomicU64::new(0), AtomicU32::new(0)) }; 256];
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A listener, in place of a connection. Those have a generation in the low bits, never 0.
pub fn listener_key(number: u32) -> u64 {
    (u64::from(number) + 1) << 24
}

/// Notes it: the last word on each counts.
pub fn note(key: u64, what: u32) {
    let again = NOTES.iter().find(|(k, _)| k.load(Ordering::Relaxed) == key);
    let next = || NOTES.get(NEXT.fetch_add(1, Ordering::Relaxed) as usize % NOTES.len());
    if let Some((k, says)) = again.or_else(next) {
        says.store(what, Ordering::Relaxed);
        k.store(key, Ordering::Release);
    }
    // Pairs with the fence in `take`: we find the thing in its place afterwards, or its thread finds the note.
    fence(Ordering::SeqCst);
}

/// For a thread that has just put something in its place.
fn take(key: u64) -> Option<u32> {
    fence(Ordering::SeqCst);
    let (k, says) = NOTES.iter().find(|(k, _)| k.load(Ordering::Acquire) == key)?;
    let what = says.load(Ordering::Relaxed);
    k.compare_exchange(key, 0, Ordering::AcqRel, Ordering::Relaxed).ok().map(|_| what)
}

/// For a new connection of ours: [`crate::sock::DEAD`] or [`crate::sock::DEAD_RESET`] if its other side is gone already.
pub fn gone(conn: ConnId) -> Option<u32> {
    take(conn.0)
}

/// For a new listener of ours: connections wait already.
pub fn ready(listener: u32) -> bool {
    take(listener_key(listener)).is_some_and(|waiting| waiting != 0)
}

/// What another coordinator has said does not count.
pub fn forget_all() {
    for (about, _) in &NOTES {
        about.store(0, Ordering::Relaxed);
    }
}
