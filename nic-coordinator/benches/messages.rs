//! Messages of the bridge, and of raw libfabric, by turns of one thread, for counting instructions: no wait is in them.
//!
//! ```text
//! cargo bench -p nic-coordinator --bench messages --no-run
//! valgrind --tool=callgrind target/release/deps/messages-... bridge 8 1000     or raw, bridge-idle, raw-idle; bytes; how many
//! ```
//! The difference between two runs with different numbers is what messages take, the process's ends included; it prints how many turns that were.

#[path = "../tests/bridged/mod.rs"]
mod bridged;

use bridged::{Rig, endpoints, open_fabric};
use fabric::endpoint::{Completion, Endpoint, Settings};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, what, size, count] = args.as_slice() else {
        // As `cargo bench` runs it.
        return;
    };
    let (size, count) = (size.parse().expect("bytes"), count.parse().expect("a number"));
    let turns = match what.as_str() {
        "bridge" => bridge(size, count),
        "bridge-idle" => bridge(0, count),
        "raw" => raw(size, count),
        "raw-idle" => raw(0, count),
        other => panic!("there is no {other}"),
    };
    println!("turns {turns}");
}

/// Turns of both bridges until all messages are there, back and forth; of messages without bytes, one of each.
fn bridge(size: usize, count: usize) -> usize {
    let mut rig = Rig::new();
    let [(_, mut here), (_, mut there)] = rig.connect(0);
    let (data, mut room) = (vec![1; size], vec![0; size]);
    let mut turns = 0;
    for number in 0..count {
        let (from, to) = if number % 2 == 0 { (&mut here, &mut there) } else { (&mut there, &mut here) };
        let (mut sent, mut got) = (0, 0);
        loop {
            if sent < size {
                sent += from.write(&data[sent..]);
            }
            rig.turn();
            turns += 2;
            if size > 0 {
                got += to.read_into(&mut room[got..]);
            }
            if got == size {
                break;
            }
        }
    }
    turns
}

/// The same over endpoints alone.
fn raw(size: usize, count: usize) -> usize {
    let settings = Settings { message_bytes: size, receives: 8, sends: 8, writes: 1 };
    let (mut here, mut there) = endpoints(&open_fabric(), &open_fabric(), &settings);
    let mut turns = 0;
    for number in 0..count {
        let (from, to) = if number % 2 == 0 { (&mut here, &mut there) } else { (&mut there, &mut here) };
        while size > 0 && (from.outgoing().is_none() || from.send(size).is_err()) {
            take(from);
            turns += 1;
        }
        loop {
            take(from);
            turns += 2;
            if take(to) || size == 0 {
                break;
            }
        }
    }
    turns
}

/// Whether a message has come.
fn take(endpoint: &mut Endpoint) -> bool {
    let mut came = false;
    let polled = endpoint.poll(|completion| came |= matches!(completion, Completion::Received(_)));
    polled.expect("a connection");
    came
}
