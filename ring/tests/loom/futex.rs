//! futex(2) and the wire, as far as the models need them: nobody blocks. Who goes to sleep is counted and its thread ends; a
//! wake-up empties the queue. Somebody still counted when all threads are done has slept through the news.

use loom::sync::Mutex;
use ring::atomic::Ordering;
use ring::wake::{Announced, SleepWord};

/// The kernel's queue for one word: comparing and enqueuing are one step.
pub struct Futex {
    asleep: Mutex<u32>,
}

impl Futex {
    pub fn new() -> Self {
        Futex { asleep: Mutex::new(0) }
    }

    /// `FUTEX_WAIT`: false, if the word is not as it was announced.
    pub fn wait(&self, word: &SleepWord, announced: Announced) -> bool {
        let mut asleep = self.asleep.lock().unwrap();
        // The kernel's own full barrier.
        ring::atomic::fence(Ordering::SeqCst);
        let same = word.bits() == announced.futex_value();
        *asleep += u32::from(same);
        same
    }

    /// `FUTEX_WAKE` of everybody.
    pub fn wake(&self) {
        *self.asleep.lock().unwrap() = 0;
    }

    /// Threads that nobody woke.
    pub fn asleep(&self) -> u32 {
        *self.asleep.lock().unwrap()
    }
}

/// The wire of a segment for one sleeper in poll(2): bytes written and not read, level-triggered.
pub struct Wire {
    bytes: Mutex<u32>,
}

impl Wire {
    pub fn new() -> Self {
        Wire { bytes: Mutex::new(0) }
    }

    /// Writes one byte.
    pub fn ring(&self) {
        *self.bytes.lock().unwrap() += 1;
    }

    /// True if a poll for input returns.
    pub fn readable(&self) -> bool {
        *self.bytes.lock().unwrap() != 0
    }
}
