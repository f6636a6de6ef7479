//! The fuzz targets of `ring/fuzz` on random input with a fixed seed: no nightly compiler, no libFuzzer, no luck involved.
#![cfg(not(loom))]

#[path = "../fuzz/src/lib.rs"]
mod targets;

const INPUTS: u32 = 200_000;

/// Random inputs, half of them as long as what the target expects.
fn feed(target: fn(&[u8]), length: usize) {
    let mut state = 0x1234_5678_9abc_def0_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut input = Vec::new();
    for i in 0..INPUTS {
        input.clear();
        let end = if i % 2 == 0 { length } else { usize::try_from(random()).unwrap() % (2 * length) };
        // What many formats begin with: a kind.
        input.push(u8::try_from(random() % 100).unwrap());
        // Small numbers and zeroes more often than chance has them.
        let sparse = random() % 3 == 0;
        while input.len() < end {
            let r = random();
            input.push(if sparse && r & 0x300 != 0 { 0 } else { r.to_le_bytes()[0] });
        }
        target(&input);
    }
}

#[test]
fn s2_3_window() {
    feed(targets::window, 160);
}

#[test]
fn s2_8_queue() {
    feed(targets::queue, 160);
}

#[test]
fn s3_3_msg() {
    feed(targets::msg, 58);
}

#[test]
fn s4_6_stream() {
    feed(targets::stream, 120);
}

#[test]
fn s7_2_attach() {
    feed(targets::attach, 128);
}

#[test]
fn s8_2_bus() {
    feed(targets::bus, 16);
}

#[test]
fn s13_3_hosts() {
    feed(targets::hosts, 56);
}

#[test]
fn s14_2_link() {
    feed(targets::link, 96);
}
