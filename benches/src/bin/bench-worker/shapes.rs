//! What the asking and the answering side do, over any channel; and connections that are made and closed.

use std::io;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use measure::clock::{Meter, wait_for_start};
use measure::job::{Figures, Job, Shape};

use crate::link::{Channel, Fds};
use crate::{Address, Listener};

/// Messages between two looks at the clock while a stream of small ones runs.
const BATCH: u64 = 64;
/// Below this many bytes a message is small.
const SMALL: usize = 4096;
/// What a client sends where the size is no matter.
const WORD: [u8; 8] = *b"8 bytes!";

/// The answering side, until the other one ends.
pub fn answer(channel: &mut impl Channel, shape: &Shape) -> io::Result<()> {
    match *shape {
        Shape::PingPong { bytes, .. } => {
            let mut room = vec![0; bytes];
            while channel.receive_all(&mut room)? {
                channel.send(&room)?;
            }
        }
        Shape::Stream { bytes } => {
            let mut room = vec![0; bytes];
            let mut total = 0_u64;
            loop {
                match channel.receive(&mut room)? {
                    0 => break,
                    n => total += n as u64,
                }
            }
            channel.send(&total.to_le_bytes())?;
        }
        _ => return Err(io::ErrorKind::Unsupported.into()),
    }
    channel.end();
    Ok(())
}

/// The asking side, which measures.
pub fn ask(channel: &mut impl Channel, job: &Job) -> io::Result<Figures> {
    match job.shape {
        Shape::PingPong { bytes, pause_us, .. } => {
            let mut room = vec![b'p'; bytes];
            wait_for_start(job);
            let mut meter = Meter::new(job.seconds);
            loop {
                channel.send(&room)?;
                if !channel.receive_all(&mut room)? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if !meter.done(1) {
                    return Ok(meter.figures());
                }
                if pause_us != 0 {
                    std::thread::sleep(Duration::from_micros(pause_us));
                    meter.skip();
                }
            }
        }
        Shape::Stream { bytes } => stream(channel, bytes, job),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// The time of the last bytes on their way counts, too: it ends when the receiver says that it has all.
fn stream(channel: &mut impl Channel, bytes: usize, job: &Job) -> io::Result<Figures> {
    let data = vec![b's'; bytes];
    let batch = if bytes < SMALL { BATCH } else { 1 };
    wait_for_start(job);
    let mut meter = Meter::new(job.seconds);
    let mut sent = 0;
    loop {
        for _ in 0..batch {
            channel.send(&data)?;
        }
        sent += batch * bytes as u64;
        if !meter.done(batch) {
            break;
        }
    }
    channel.end();
    let mut total = [0; 8];
    if !channel.receive_all(&mut total)? || u64::from_le_bytes(total) != sent {
        return Err(io::Error::other("the receiver has not got all that was sent"));
    }
    meter.done(0);
    Ok(meter.figures())
}

/// Accepts, answers if the client speaks, closes; until a connection that begins with an end.
pub fn accept_all(listener: &Listener, exchange: bool) -> io::Result<()> {
    let mut room = WORD;
    loop {
        let client = listener.accept()?;
        let mut channel = Fds::socket(&client, &Shape::Connect { exchange }, &[])?;
        // The last client says one byte.
        match channel.receive(&mut room)? {
            1 => return Ok(()),
            n if n == room.len() => channel.send(&room)?,
            _ => {}
        }
    }
}

/// Connects, exchanges 8 bytes if asked to, closes.
pub fn connect_all(address: &Address, exchange: bool, job: &Job) -> io::Result<Figures> {
    let mut room = WORD;
    let mut meter = Meter::new(job.seconds);
    loop {
        let server = address.connect()?;
        if exchange {
            let mut channel = Fds::socket(&server, &job.shape, &[])?;
            channel.send(&room)?;
            channel.receive_all(&mut room)?;
        }
        drop(server);
        if !meter.done(1) {
            break;
        }
    }
    let last = address.connect()?;
    Fds::socket(&last, &job.shape, &[])?.send(&[0])?;
    // Open until the server has read it.
    // SAFETY: room for one byte, of which none comes.
    unsafe { libc::recv(last.as_raw_fd(), room.as_mut_ptr().cast(), 1, 0) };
    Ok(meter.figures())
}
