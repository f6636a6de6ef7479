//! One end of a connection, and what both ends do with it.

use std::error::Error;
use std::sync::Arc;

use fabric::endpoint::{Completion, Down, Endpoint, Event, PostError};
use fabric::memory::{Access, Region, Remote};
use fabric::provider::Fabric;
use measure::clock::{Meter, wait_for_start};
use measure::job::{Figures, Job, Shape};

use crate::memory::Mapped;

/// Memory that a stream goes around in, as a connection's ring has it.
const RING_BYTES: usize = 256 * 1024;
/// As in `bench-worker`: messages between two looks at the clock, while they are small.
const BATCH: u64 = 64;
/// Below this many bytes a message is small.
const SMALL: usize = 4096;
/// A set-up's message, and what the last connection says instead.
const WORD: &[u8] = b"8 bytes!";
const LAST: &[u8] = b"0";

/// What most here come to.
pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// A connection that is there.
pub struct End {
    endpoint: Endpoint,
    /// A message that has come and nobody has asked for yet: of the longest that we look into, a memory's description.
    came: Option<(usize, [u8; 24])>,
}

impl End {
    /// Waits until it is there.
    pub fn connected(mut endpoint: Endpoint) -> Outcome<End> {
        loop {
            match endpoint.event()? {
                Some(Event::Connected(_)) => return Ok(End { endpoint, came: None }),
                Some(other) => return Err(format!("no connection: {other:?}").into()),
                None => std::thread::yield_now(),
            }
        }
    }

    /// Looks once for messages; how much has happened.
    pub fn take(&mut self, mut each: impl FnMut(&[u8])) -> Result<usize, Down> {
        self.endpoint.poll(|completion| {
            if let Completion::Received(bytes) = completion {
                each(bytes);
            }
        })
    }

    fn poll(&mut self) -> Result<(), Down> {
        let mut came = None;
        let count = self.take(|bytes| {
            let mut head = [0; 24];
            head.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            came = Some((bytes.len(), head));
        })?;
        self.came = came.or(self.came);
        if count == 0 {
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// The next message; none at the end.
    fn receive(&mut self) -> Outcome<Option<(usize, [u8; 24])>> {
        loop {
            if let Some(came) = self.came.take() {
                return Ok(Some(came));
            }
            match self.poll() {
                Err(Down::Ended) => return Ok(None),
                other => other?,
            }
        }
    }

    /// Sends `len` bytes, that begin with `head`.
    pub fn send(&mut self, head: &[u8], len: usize) -> Outcome<()> {
        loop {
            if let Some(room) = self.endpoint.outgoing() {
                room.iter_mut().zip(head).for_each(|(to, from)| *to = *from);
                match self.endpoint.send(len) {
                    Ok(()) => return Ok(()),
                    Err(PostError::Full) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            self.poll()?;
        }
    }

    /// The answering side, until the other one ends.
    pub fn answer(&mut self, fabric: &Fabric, shape: &Shape) -> Outcome<()> {
        match *shape {
            Shape::PingPong { bytes, .. } => {
                while let Some((len, _)) = self.receive()? {
                    self.send(&[], len.min(bytes))?;
                }
            }
            Shape::Stream { bytes } => {
                let (_memory, region) = memory(fabric, ring_bytes(bytes), Access::SourceAndTarget)?;
                let Remote { address, key, len } = region.remote();
                let words = [address, key, len].map(u64::to_le_bytes);
                self.send(words.as_flattened(), 24)?;
                // The last message comes behind all writes.
                self.receive()?.ok_or("the writer has ended early")?;
                self.send(WORD, WORD.len())?;
                while self.receive()?.is_some() {}
            }
            _ => return Err("not over libfabric".into()),
        }
        Ok(())
    }

    /// The asking side, which measures.
    pub fn ask(&mut self, fabric: &Fabric, job: &Job) -> Outcome<Figures> {
        match job.shape {
            Shape::PingPong { bytes, .. } => {
                wait_for_start(job);
                let mut meter = Meter::new(job.seconds);
                loop {
                    self.send(&[], bytes)?;
                    let (len, _) = self.receive()?.ok_or("the other end is gone")?;
                    if len != bytes {
                        return Err(format!("{len} bytes came instead of {bytes}").into());
                    }
                    if !meter.done(1) {
                        return Ok(meter.figures());
                    }
                }
            }
            Shape::Stream { bytes } => self.stream(fabric, bytes, job),
            _ => Err("not over libfabric".into()),
        }
    }

    /// The time of the last bytes on their way counts, too: it ends when the other end has all.
    fn stream(&mut self, fabric: &Fabric, bytes: usize, job: &Job) -> Outcome<Figures> {
        let (_memory, source) = memory(fabric, bytes, Access::Source)?;
        let (_, head) = self.receive()?.ok_or("the other end is gone")?;
        let word =
            |at: usize| head.get(at..at + 8).and_then(|w| w.try_into().ok()).map_or(0, u64::from_le_bytes);
        let remote = Remote { address: word(0), key: word(8), len: word(16) };
        let batch = if bytes < SMALL { BATCH } else { 1 };
        let places = ring_bytes(bytes) / bytes;
        wait_for_start(job);
        let mut meter = Meter::new(job.seconds);
        let mut place = 0;
        loop {
            for _ in 0..batch {
                while !self.write(&source, bytes, &remote, place * bytes)? {
                    self.poll()?;
                }
                place = (place + 1) % places;
            }
            if !meter.done(batch) {
                break;
            }
        }
        self.send(LAST, LAST.len())?;
        self.receive()?.ok_or("the other end has not got all")?;
        meter.done(0);
        Ok(meter.figures())
    }

    fn write(&mut self, source: &Arc<Region>, bytes: usize, to: &Remote, at: usize) -> Outcome<bool> {
        match self.endpoint.write(source, 0, bytes, to, at as u64, 0) {
            Ok(()) => Ok(true),
            Err(PostError::Full) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// The answering side of a connection with one exchange. False: it is the last one.
    pub fn answer_one(mut self) -> Outcome<bool> {
        let more = self.receive()?.is_some_and(|(len, _)| len == WORD.len());
        if more {
            self.send(WORD, WORD.len())?;
            // The other end closes when it has the answer.
            while self.receive()?.is_some() {}
        }
        Ok(more)
    }
}

/// Connects, exchanges 8 bytes, closes.
pub fn connect_all(mut connect: impl FnMut() -> Outcome<End>, job: &Job) -> Outcome<Figures> {
    let mut meter = Meter::new(job.seconds);
    loop {
        let mut end = connect()?;
        end.send(WORD, WORD.len())?;
        end.receive()?.ok_or("a connection has ended early")?;
        drop(end);
        if !meter.done(1) {
            break;
        }
    }
    let mut last = connect()?;
    last.send(LAST, LAST.len())?;
    // Until the server has read it, and closed.
    last.receive()?;
    Ok(meter.figures())
}

/// Room for a message at least.
fn ring_bytes(bytes: usize) -> usize {
    RING_BYTES.max(bytes)
}

fn memory(fabric: &Fabric, bytes: usize, access: Access) -> Outcome<(Arc<Mapped>, Arc<Region>)> {
    let memory = Mapped::new(bytes);
    let region = Arc::new(fabric.register(memory.clone(), 0..bytes, access)?);
    Ok((memory, region))
}
