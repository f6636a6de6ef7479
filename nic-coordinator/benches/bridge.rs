//! The bridge against raw libfabric, over the same provider between two threads: `cargo bench -p nic-coordinator --bench bridge`.
//!
//! *raw* sends messages of that size and receives them into posted buffers, which is what libfabric's own `fi_pingpong` does. *bridge* has a
//! process's end beside each bridge, in its thread: that writes into its ring, and reads from it, as `send` and `recv` do.
//! `FABRIC_PROVIDER` and `FABRIC_ADDRESS` say over what. Rounds are interleaved; only the ratios of one run count.

#[path = "../tests/bridged/mod.rs"]
mod bridged;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bridged::{Host, Process, Rig, endpoints, open_fabric};
use fabric::endpoint::{Completion, Endpoint, PostError, Settings};

const SIZES: [usize; 4] = [8, 4096, 64 * 1024, 1024 * 1024];
const ROUNDS: usize = 7;
const ROUND_TIME: Duration = Duration::from_millis(250);

fn main() {
    println!("{:>9} {:>30} {:>36}", "bytes", "round trip, µs", "stream, MB/s");
    println!(
        "{:>9} {:>10} {:>9} {:>9} {:>15} {:>10} {:>9}",
        "", "raw", "bridge", "ratio", "raw", "bridge", "ratio"
    );
    for size in SIZES {
        let mut all: [Vec<f64>; 4] = Default::default();
        for _ in 0..ROUNDS {
            for (kind, into) in all.iter_mut().enumerate() {
                into.push(if kind % 2 == 0 { raw(size, kind < 2) } else { bridge(size, kind < 2) });
            }
        }
        let [raw_trip, trip, raw_rate, rate] = all.map(median);
        println!(
            "{size:>9} {raw_trip:>10.1} {trip:>9.1} {:>9.2} {raw_rate:>15.0} {rate:>10.0} {:>9.2}",
            trip / raw_trip,
            rate / raw_rate
        );
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// µs a round trip, or MB/s.
fn figure(trips: bool, count: u64, size: usize, time: Duration) -> f64 {
    let count = u32::try_from(count).map_or(f64::NAN, f64::from);
    let bytes = u32::try_from(size).map_or(f64::NAN, f64::from);
    if trips { time.as_secs_f64() * 1e6 / count } else { count * bytes / time.as_secs_f64() / 1e6 }
}

fn send(endpoint: &mut Endpoint, size: usize, mut received: impl FnMut()) {
    loop {
        if endpoint.outgoing().is_some() {
            match endpoint.send(size) {
                Ok(()) => return,
                Err(PostError::Full) => {}
                Err(error) => panic!("{error}"),
            }
        }
        take(endpoint, &mut received);
    }
}

fn take(endpoint: &mut Endpoint, mut received: impl FnMut()) {
    let _ = endpoint.poll(|completion| {
        if let Completion::Received(_) = completion {
            received();
        }
    });
}

fn raw(size: usize, trips: bool) -> f64 {
    let fabric = open_fabric();
    let settings = Settings { message_bytes: size, receives: 8, sends: 8, writes: 1 };
    let (mut here, mut there) = endpoints(&fabric, &open_fabric(), &settings);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut count = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let before = count;
                take(&mut there, || count += 1);
                for _ in before..count {
                    if trips {
                        send(&mut there, size, || panic!("one at a time"));
                    }
                }
            }
            count
        });
        let start = Instant::now();
        let mut count = 0;
        while start.elapsed() < ROUND_TIME {
            let mut answered = false;
            send(&mut here, size, || answered = true);
            while trips && !answered {
                take(&mut here, || answered = true);
            }
            take(&mut here, || {});
            count += 1;
        }
        let time = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        let received = other.join().unwrap();
        figure(trips, if trips { count } else { received }, size, time)
    })
}

/// A host, its process, and a clock.
struct Side<'a> {
    host: &'a mut Host,
    process: Process,
    start: Instant,
    buffer: Vec<u8>,
}

impl Side<'_> {
    fn turn(&mut self) {
        let now = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(0);
        self.host.poll(now);
    }

    /// Writes what is left of a message. How much fitted.
    fn write(&mut self, done: usize) -> usize {
        self.process.write(&self.buffer[done..])
    }

    fn read(&mut self, done: usize) -> usize {
        self.process.read_into(&mut self.buffer[done..])
    }

    fn write_all(&mut self) {
        let mut done = 0;
        while done < self.buffer.len() {
            done += self.write(done);
            self.turn();
        }
    }

    fn read_all(&mut self, stop: &AtomicBool) -> bool {
        let mut done = 0;
        while done < self.buffer.len() {
            let got = self.read(done);
            done += got;
            if got == 0 && stop.load(Ordering::Relaxed) {
                return false;
            }
            self.turn();
        }
        true
    }
}

fn bridge(size: usize, trips: bool) -> f64 {
    let mut rig = Rig::new();
    let [(_, client), (_, server)] = rig.connect(0);
    let [here, there] = &mut rig.hosts;
    let stop = AtomicBool::new(false);
    let side = |host, process| Side { host, process, start: Instant::now(), buffer: vec![1; size] };
    let (mut here, mut there) = (side(here, client), side(there, server));
    thread::scope(|scope| {
        let (stop, there) = (&stop, &mut there);
        let other = scope.spawn(move || {
            let mut count = 0_u64;
            while there.read_all(stop) {
                count += 1;
                if trips {
                    there.write_all();
                }
            }
            count
        });
        let start = Instant::now();
        let mut count = 0;
        while start.elapsed() < ROUND_TIME {
            here.write_all();
            if trips {
                here.read_all(&AtomicBool::new(false));
            }
            count += 1;
        }
        let time = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        let received = other.join().unwrap();
        figure(trips, if trips { count } else { received }, size, time)
    })
}
