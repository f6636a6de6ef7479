//! One end of a conversation that checks itself: each end writes a block into the other's memory, sends a message behind it, and
//! the other finds the block complete when the message arrives, and answers.
#![allow(dead_code, reason = "each program uses its part")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::endpoint::{Completion, Down, Endpoint, Event, PostError};
use fabric::memory::{Access, Region, Remote};
use fabric::provider::Fabric;

use super::memory::Mapped;

/// Bytes of the largest block.
pub const BLOCK_MAX: usize = 1024 * 1024;
/// Sizes that are gone through.
const SIZES: [usize; 8] = [8, 1, 4096, 64 * 1024, 65_537, 100, 256 * 1024, BLOCK_MAX];
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Down(#[from] Down),
    #[error("{0}")]
    Wrong(String),
}

pub struct Peer {
    endpoint: Endpoint,
    /// Where the other end writes; where our blocks are made.
    target: (Arc<Mapped>, Arc<Region>),
    source: (Arc<Mapped>, Arc<Region>),
    remote: Option<Remote>,
    /// Blocks that we have sent and the other end has answered.
    pub rounds: u64,
    /// Their bytes, and those of the other end's.
    pub bytes: u64,
    inbox: Vec<[u64; 4]>,
}

// What a message says: the first of its four words.
const HERE_IS_MEMORY: u64 = 1;
const BLOCK: u64 = 2;
const ANSWER: u64 = 3;

impl Peer {
    pub fn new(fabric: &Fabric, endpoint: Endpoint) -> Result<Peer, Box<dyn std::error::Error>> {
        let make = |access| -> Result<_, Box<dyn std::error::Error>> {
            let memory = Mapped::new(BLOCK_MAX);
            let region = fabric.register(memory.clone(), 0..BLOCK_MAX, access)?;
            Ok((memory, Arc::new(region)))
        };
        let (target, source) = (make(Access::SourceAndTarget)?, make(Access::Source)?);
        Ok(Peer { endpoint, target, source, remote: None, rounds: 0, bytes: 0, inbox: Vec::new() })
    }

    /// So many rounds; the other end's are answered meanwhile.
    pub fn run(&mut self, rounds: u64) -> Result<(), Failure> {
        let mine = self.target.1.remote();
        self.say([HERE_IS_MEMORY, mine.address, mine.key, mine.len])?;
        while self.remote.is_none() {
            self.turn()?;
        }
        while self.rounds < rounds {
            let len = SIZES[usize::try_from(self.rounds).unwrap_or(0) % SIZES.len()];
            self.block(len)?;
            let (before, start) = (self.rounds, Instant::now());
            while self.rounds == before {
                self.turn()?;
                if start.elapsed() > WAIT_MAX {
                    return Err(Failure::Wrong(format!("no answer to {len} bytes")));
                }
            }
        }
        Ok(())
    }

    fn block(&mut self, len: usize) -> Result<(), Failure> {
        let Some(remote) = self.remote else { return Ok(()) };
        self.source.0.fill(len, self.rounds);
        loop {
            match self.endpoint.write(&self.source.1, 0, len, &remote, 0, self.rounds) {
                Ok(()) => break,
                Err(PostError::Full) => self.turn()?,
                Err(PostError::Down(down)) => return Err(down.into()),
                Err(PostError::Outside) => return Err(Failure::Wrong("outside".into())),
            }
        }
        self.say([BLOCK, self.rounds, len as u64, 0])
    }

    fn say(&mut self, words: [u64; 4]) -> Result<(), Failure> {
        loop {
            if let Some(room) = self.endpoint.outgoing() {
                room.chunks_exact_mut(8)
                    .zip(words)
                    .for_each(|(room, word)| room.copy_from_slice(&word.to_le_bytes()));
                match self.endpoint.send(32) {
                    Ok(()) => return Ok(()),
                    Err(PostError::Full) => {}
                    Err(PostError::Down(down)) => return Err(down.into()),
                    Err(PostError::Outside) => return Err(Failure::Wrong("outside".into())),
                }
            }
            self.turn()?;
        }
    }

    /// Takes what has come, and answers.
    fn turn(&mut self) -> Result<(), Failure> {
        let inbox = &mut self.inbox;
        let count = self.endpoint.poll(|completion| {
            if let Completion::Received(bytes) = completion {
                let mut words = [0; 4];
                for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
                    *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
                }
                inbox.push(words);
            }
        })?;
        if count == 0 {
            // With verbs, what is under way waits for a dead peer's acknowledgements, and only the event says that it is dead.
            if matches!(self.endpoint.event()?, Some(Event::Ended)) {
                return Err(Down::Ended.into());
            }
            // A machine with fewer cores than ends: the other one may need this one.
            std::thread::yield_now();
        }
        for words in std::mem::take(&mut self.inbox) {
            match words {
                [HERE_IS_MEMORY, address, key, len] => self.remote = Some(Remote { address, key, len }),
                [BLOCK, round, len, _] => {
                    let len = usize::try_from(len).unwrap_or(usize::MAX);
                    self.target.0.check(len, round).map_err(Failure::Wrong)?;
                    self.bytes += len as u64;
                    self.say([ANSWER, round, 0, 0])?;
                }
                [ANSWER, round, ..] if round == self.rounds => self.rounds += 1,
                other => return Err(Failure::Wrong(format!("nobody says {other:?}"))),
            }
        }
        Ok(())
    }
}
