//! An end whose messages another thread asks for and takes: what every way costs at least whose endpoint belongs to somebody other than
//! the application, who shares its processor.
//!
//! As little as can be stands between the two: in each direction room for one message, a count of those that were put there, and a yield
//! while there is none.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use fabric::endpoint::Down;
use measure::clock::{Meter, wait_for_start};
use measure::job::{Figures, Job};

use crate::talk::{End, Outcome};

/// Room for one message: the next one is put there when the last was taken.
struct Slot {
    put: AtomicU64,
    bytes: Mutex<Vec<u8>>,
}

impl Slot {
    fn new(bytes: usize) -> Slot {
        Slot { put: AtomicU64::new(0), bytes: Mutex::new(vec![0; bytes]) }
    }

    fn put(&self, message: &[u8]) {
        let mut room = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        room.iter_mut().zip(message).for_each(|(to, from)| *to = *from);
        drop(room);
        // Release: pairs with `take`'s Acquire; the bytes are in place.
        self.put.fetch_add(1, Ordering::Release);
    }

    /// If there is one behind the `taken` first ones. False: there is none.
    fn take(&self, taken: &mut u64, each: impl FnOnce(&[u8])) -> bool {
        let is_new = self.put.load(Ordering::Acquire) != *taken;
        if is_new {
            *taken += 1;
            each(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner));
        }
        is_new
    }
}

/// What the two threads share.
struct Desk {
    asked: Slot,
    came: Slot,
    over: AtomicBool,
}

impl Desk {
    fn new(bytes: usize) -> Desk {
        Desk { asked: Slot::new(bytes), came: Slot::new(bytes), over: AtomicBool::new(false) }
    }

    /// The application's side. False: it is over.
    fn receive(&self, taken: &mut u64, buffer: &mut [u8]) -> bool {
        loop {
            let copy = |from: &[u8]| buffer.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            if self.came.take(taken, copy) {
                return true;
            }
            // Acquire: pairs with `end`'s Release.
            if self.over.load(Ordering::Acquire) {
                return false;
            }
            thread::yield_now();
        }
    }

    fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// The endpoint's side, until either end is over.
    fn relay(&self, end: &mut End) -> Outcome<()> {
        let mut taken = 0;
        while !self.over.load(Ordering::Acquire) {
            let mut sent = Ok(());
            let asked = self.asked.take(&mut taken, |message| sent = end.send(message, message.len()));
            sent?;
            match end.take(|message| self.came.put(message)) {
                Ok(0) if !asked => thread::yield_now(),
                Ok(_) => {}
                Err(Down::Ended) => self.end(),
                Err(other) => return Err(other.into()),
            }
        }
        Ok(())
    }
}

/// The answering side, until the other one ends.
pub fn answer(end: &mut End, bytes: usize) -> Outcome<()> {
    let desk = Desk::new(bytes);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut taken, mut buffer) = (0, vec![0; bytes]);
            while desk.receive(&mut taken, &mut buffer) {
                desk.asked.put(&buffer);
            }
        });
        let relayed = desk.relay(end);
        desk.end();
        relayed
    })
}

/// The asking side, which measures.
pub fn ask(end: &mut End, bytes: usize, job: &Job) -> Outcome<Figures> {
    let desk = Desk::new(bytes);
    thread::scope(|scope| {
        let application = scope.spawn(|| {
            let (mut taken, mut buffer) = (0, vec![0; bytes]);
            wait_for_start(job);
            let mut meter = Meter::new(job.seconds);
            loop {
                desk.asked.put(&buffer);
                let came = desk.receive(&mut taken, &mut buffer);
                if !came || !meter.done(1) {
                    desk.end();
                    return came.then(|| meter.figures());
                }
            }
        });
        let relayed = desk.relay(end);
        desk.end();
        let figures = application.join().map_err(|_| "the application's thread has panicked")?;
        relayed?;
        Ok(figures.ok_or("the other end is gone")?)
    })
}
