//! SPEC 3.10.5, 3.10.6: one direction of a connection leaves the kernel for the ring, while two threads write and one reads.
//!
//! The writers' side is `ring::switch` and `ring::stream` themselves. What the shim does around them (`host-shim/src/dual.rs`,
//! `ancillary.rs`) are system calls and its locks: here the kernel's queue is a mutex around a queue, whose calls are one step
//! each as recvmsg(2) and sendmsg(2) are, and the writers' lock is a mutex around their position.

use std::collections::VecDeque;

use crate::model::{ModelRing, explore};
use loom::sync::{Arc, Mutex};
use loom::thread;
use ring::atomic::{AtomicU32, Ordering};
use ring::segment::Direction;
use ring::stream::{self, Reader, Writer};
use ring::switch;

const TO_KERNEL: u32 = 1;

/// What an implementation does; each twin does one thing otherwise.
#[derive(Clone, Copy)]
struct Rules {
    /// The reader asks whether the ring has begun before it looks at the kernel's queue.
    asks_first: bool,
    /// A writer begins only when nobody is on the way to the kernel.
    waits_for_writers: bool,
    /// A writer counts itself before it gives the lock back.
    counts_under_lock: bool,
    /// Ancillary data before the first record goes to the kernel under the lock; else by going back to it.
    stays_with_ring: bool,
    /// The other side joins.
    joins: bool,
}

const RIGHT: Rules = Rules {
    asks_first: true,
    waits_for_writers: true,
    counts_under_lock: true,
    stays_with_ring: true,
    joins: true,
};

struct Connection {
    rules: Rules,
    kernel: Mutex<VecDeque<u64>>,
    ring: ModelRing,
    dir: Direction,
    /// The reader's own direction: opened when it joins.
    back: (ModelRing, Direction),
    tx: Mutex<Writer>,
    bits: AtomicU32,
    writers: AtomicU32,
}

/// The reader's own state.
struct Reading {
    from_kernel: bool,
    at: Reader,
    got: Vec<u64>,
}

impl Connection {
    fn new(rules: Rules) -> Arc<Self> {
        let c = Connection {
            rules,
            kernel: Mutex::new(VecDeque::new()),
            ring: ModelRing::new(),
            dir: Direction::new(),
            back: (ModelRing::new(), Direction::new()),
            tx: Mutex::new(Writer::default()),
            bits: AtomicU32::new(TO_KERNEL),
            writers: AtomicU32::new(0),
        };
        stream::open(&c.ring, &c.dir, 1);
        Arc::new(c)
    }

    fn is_to_kernel(&self) -> bool {
        self.bits.load(Ordering::Relaxed) & TO_KERNEL != 0
    }

    /// `dual::before_write`. True: the ring's. False: the kernel's, and the writer is counted.
    fn before_write(&self, ancillary: bool) -> bool {
        let tx = self.tx.lock().unwrap();
        if !self.is_to_kernel() {
            return true;
        }
        let none = AtomicU32::new(0);
        let writers = if self.rules.waits_for_writers { &self.writers } else { &none };
        if !ancillary && stream::is_open(&self.back.1, 1) && switch::begin(&self.bits, TO_KERNEL, writers) {
            return true;
        }
        if !self.rules.counts_under_lock {
            drop(tx);
        }
        switch::enter(&self.writers);
        false
    }

    /// A call of a writer that is counted.
    fn write_to_kernel(&self, value: u64) {
        self.kernel.lock().unwrap().push_back(value);
        switch::leave(&self.writers);
    }

    fn write_to_ring(&self, w: &mut Writer, value: u64) {
        let span = stream::reserve(&self.ring, &self.dir, w, 8).unwrap().expect("room for three records");
        self.ring.write(span, value);
        stream::commit(&self.ring, w, 8).unwrap();
    }

    /// write(2).
    fn write(&self, value: u64) {
        if self.is_to_kernel() && !self.before_write(false) {
            return self.write_to_kernel(value);
        }
        self.write_to_ring(&mut self.tx.lock().unwrap(), value);
    }

    /// sendmsg(2) with ancillary data. (Behind the first record it is a record like any other, and a message beside it.)
    fn write_ancillary(&self, value: u64) {
        let stays = self.rules.stays_with_ring;
        if self.is_to_kernel() && !self.before_write(stays) {
            return self.write_to_kernel(value);
        }
        let mut w = self.tx.lock().unwrap();
        if w.tail != 0 {
            return self.write_to_ring(&mut w, value);
        }
        if stays {
            return self.kernel.lock().unwrap().push_back(value);
        }
        self.bits.fetch_or(TO_KERNEL, Ordering::AcqRel);
        switch::enter(&self.writers);
        drop(w);
        self.write_to_kernel(value);
    }

    fn has_switched(&self, r: &Reading) -> bool {
        stream::next(&self.ring, &mut r.at.clone()).unwrap().is_some()
    }

    /// One look of the reader's, as `dual::read`. False: nothing was there.
    fn look(&self, r: &mut Reading) -> bool {
        if !r.from_kernel {
            let Some(span) = stream::next(&self.ring, &mut r.at).unwrap() else { return false };
            r.got.push(self.ring.read(span));
            stream::take(&mut r.at, 8);
            stream::release(&self.dir, &r.at);
            return true;
        }
        let before = self.rules.joins && self.rules.asks_first && self.has_switched(r);
        let (value, left) = {
            let mut kernel = self.kernel.lock().unwrap();
            (kernel.pop_front(), kernel.len())
        };
        let switched = if self.rules.asks_first { before } else { self.rules.joins && self.has_switched(r) };
        r.from_kernel = !(switched && left == 0);
        r.got.extend(value);
        value.is_some() || switched
    }
}

/// One thread writes 1 and 2, the other one 11, by a call of another kind if `ancillary`; a third one joins and reads.
fn two_writers(rules: Rules, ancillary: bool) {
    explore(3, move || {
        let c = Connection::new(rules);
        let plain = thread::spawn({
            let c = c.clone();
            move || {
                c.write(1);
                c.write(2);
            }
        });
        let other = thread::spawn({
            let c = c.clone();
            move || if ancillary { c.write_ancillary(11) } else { c.write(11) }
        });
        if rules.joins {
            stream::open(&c.back.0, &c.back.1, 1);
        }
        let mut r = Reading { from_kernel: true, at: Reader::default(), got: Vec::new() };
        // Some looks meanwhile; the rest when all has been written.
        for _ in 0..2 {
            c.look(&mut r);
        }
        plain.join().unwrap();
        other.join().unwrap();
        while c.look(&mut r) {}
        let mut sorted = r.got.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [1, 2, 11], "lost or doubled");
        let place = |value| r.got.iter().position(|got| *got == value);
        assert!(place(1) < place(2), "out of order");
    });
}

#[test]
fn s3_10_two_writers_leave_the_kernel() {
    two_writers(RIGHT, false);
}

#[test]
fn s3_10_a_writer_with_ancillary_data_and_one_that_leaves() {
    two_writers(RIGHT, true);
}

#[test]
fn s3_10_who_never_joins_gets_all_from_the_kernel() {
    two_writers(Rules { joins: false, ..RIGHT }, true);
}

#[test]
#[should_panic(expected = "lost or doubled")]
fn s3_10_twin_whose_reader_looks_at_the_kernel_first() {
    two_writers(Rules { asks_first: false, ..RIGHT }, false);
}

#[test]
#[should_panic(expected = "lost or doubled")]
fn s3_10_twin_that_begins_while_another_is_with_the_kernel() {
    two_writers(Rules { waits_for_writers: false, ..RIGHT }, false);
}

#[test]
#[should_panic(expected = "lost or doubled")]
fn s3_10_twin_that_counts_itself_too_late() {
    two_writers(Rules { counts_under_lock: false, ..RIGHT }, false);
}

#[test]
#[should_panic(expected = "out of order")]
fn s3_10_twin_that_goes_back_to_the_kernel() {
    two_writers(Rules { stays_with_ring: false, ..RIGHT }, true);
}
