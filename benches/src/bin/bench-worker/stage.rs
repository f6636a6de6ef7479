//! One process of a pipeline: records of 64 bytes from standard input to standard output, a read and a write each.

use std::io;
use std::time::Instant;

use measure::clock::Meter;
use measure::job::Figures;

use crate::link::{Channel as _, Fds};

/// Bytes of a record.
const RECORD: usize = 64;
/// Records between two looks at the clock.
const BATCH: u64 = 64;

/// Where in the pipeline.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Place {
    /// Writes for its time.
    Source,
    /// Passes on.
    Filter,
    /// Counts, and says how many there were.
    Sink,
}

/// Does one process's part.
pub fn run(place: Place, seconds: f64) -> io::Result<()> {
    let mut pipes = Fds::standard();
    let mut record = [b'r'; RECORD];
    match place {
        Place::Source => {
            let mut meter = Meter::new(seconds);
            while meter.done(BATCH) {
                for _ in 0..BATCH {
                    pipes.send(&record)?;
                }
            }
        }
        Place::Filter => {
            while pipes.receive_all(&mut record)? {
                // What filters do: look at the record, change a bit of it.
                record[0] ^= record[RECORD - 1];
                pipes.send(&record)?;
            }
        }
        Place::Sink => {
            let mut count = 0;
            let mut start = None;
            while pipes.receive_all(&mut record)? {
                start.get_or_insert_with(Instant::now);
                count += 1;
            }
            let seconds = start.map_or(0.0, |start| start.elapsed().as_secs_f64());
            crate::say(&Figures { count, seconds, ..Figures::default() })?;
        }
    }
    Ok(())
}
