//! SPEC 11: while the ring is in use, nothing is in the kernel's object and nobody is in a call on it; and no reader sleeps behind a
//! closed gate.

use crate::model::explore;
use loom::sync::{Arc, Mutex};
use loom::thread;
use ring::atomic::{AtomicU32, Ordering};
use ring::gate::{self, DRAIN, Gate, KERNEL, RING};

/// A pipe: its gate, both locks in one, and how many bytes the kernel has.
struct Pipe {
    mode: AtomicU32,
    readers: AtomicU32,
    writers: AtomicU32,
    locks: Mutex<()>,
    object: AtomicU32,
}

impl Pipe {
    fn new() -> Arc<Self> {
        Arc::new(Pipe {
            mode: AtomicU32::new(KERNEL),
            readers: AtomicU32::new(0),
            writers: AtomicU32::new(0),
            locks: Mutex::new(()),
            object: AtomicU32::new(0),
        })
    }

    fn gate(&self) -> Gate<'_> {
        Gate { mode: &self.mode, readers: &self.readers, writers: &self.writers }
    }

    fn is_empty(&self) -> bool {
        self.object.fetch_add(0, Ordering::Relaxed) == 0
    }

    /// A write of one byte, if the gate lets it in.
    fn write(&self) {
        if self.gate().enter(&self.writers) {
            self.object.fetch_add(1, Ordering::Relaxed);
            gate::leave(&self.writers);
        }
    }

    fn close(&self) -> bool {
        let _locks = self.locks.lock().unwrap();
        self.gate().close()
    }

    fn check(&self) {
        if self.mode.load(Ordering::Relaxed) == RING {
            assert!(self.is_empty(), "bytes in both");
        }
    }
}

/// A writer that comes, one that gives the gate up and comes, a reader that closes and opens the ring, one that closes only.
fn bytes_are_in_one_place(open: fn(&Pipe) -> bool, close_again: fn(&Pipe) -> bool) {
    explore(3, move || {
        let pipe = Pipe::new();
        let threads = [
            {
                let pipe = pipe.clone();
                thread::spawn(move || {
                    pipe.write();
                    pipe.gate().reopen();
                    pipe.write();
                })
            },
            {
                let pipe = pipe.clone();
                thread::spawn(move || {
                    close_again(&pipe);
                })
            },
        ];
        pipe.close();
        open(&pipe);
        pipe.check();
        for t in threads {
            t.join().unwrap();
        }
        pipe.check();
    });
}

fn open_as_shipped(pipe: &Pipe) -> bool {
    let _locks = pipe.locks.lock().unwrap();
    pipe.gate().open_ring(|| pipe.is_empty())
}

#[test]
fn s11_2_bytes_are_never_in_both() {
    bytes_are_in_one_place(open_as_shipped, Pipe::close);
}

/// The object is looked at before the counts: a writer adds its byte in between.
#[test]
#[should_panic(expected = "bytes in both")]
fn s11_2_broken_looks_at_the_object_first() {
    bytes_are_in_one_place(
        |pipe| {
            let _locks = pipe.locks.lock().unwrap();
            let empty = pipe.is_empty();
            pipe.gate().open_ring(|| empty)
        },
        Pipe::close,
    );
}

/// The gate is closed again without the lock, while another reader opens the ring.
#[test]
#[should_panic(expected = "bytes in both")]
fn s11_2_broken_closes_without_the_lock() {
    bytes_are_in_one_place(open_as_shipped, |pipe| pipe.gate().close());
}

/// The ring is opened without a closed gate before it.
#[test]
#[should_panic(expected = "bytes in both")]
fn s11_2_broken_opens_what_was_not_closed() {
    bytes_are_in_one_place(
        |pipe| {
            let _locks = pipe.locks.lock().unwrap();
            let idle = pipe.writers.load(Ordering::Acquire) == 0 && pipe.is_empty();
            let from_kernel =
                || pipe.mode.compare_exchange(KERNEL, RING, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            idle && (pipe.gate().open_ring(|| true) || from_kernel())
        },
        Pipe::close,
    );
}

/// A reader that goes to sleep in the kernel, and one that closes the gate.
fn a_sleeper_and_a_closer(close: fn(&Pipe) -> bool) {
    explore(3, move || {
        let pipe = Pipe::new();
        let closer = {
            let pipe = pipe.clone();
            thread::spawn(move || close(&pipe))
        };
        let asleep = pipe.gate().enter(&pipe.readers);
        closer.join().unwrap();
        assert!(!asleep || pipe.mode.load(Ordering::Relaxed) != DRAIN, "asleep behind a closed gate");
    });
}

#[test]
fn s11_3_no_reader_sleeps_behind_a_closed_gate() {
    a_sleeper_and_a_closer(Pipe::close);
}

/// The closer does not look again after it has closed.
#[test]
#[should_panic(expected = "asleep behind a closed gate")]
fn s11_3_broken_does_not_look_again() {
    a_sleeper_and_a_closer(|pipe| {
        pipe.readers.load(Ordering::Acquire) == 0
            && pipe.mode.compare_exchange(KERNEL, DRAIN, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    });
}
