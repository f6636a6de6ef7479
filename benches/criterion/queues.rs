//! One request on each queue, by one thread: pushed; taken, decided and answered by the coordinator's turns;
//! and its answer taken.

#![allow(missing_docs)] // of what criterion_group! makes

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use harness::Outcome;
use measure::rig::{Client, Rig, allow_descriptors, no_op};
use ring::queue::Kind;

/// Attached processes, of which one asks.
const PROCESSES: [u32; 3] = [1, 64, 512];

fn request(rig: &mut Rig, client: &mut Client) -> Outcome {
    client.ask(no_op())?;
    rig.work()?;
    client.wait(false).map(drop)
}

fn queues(criterion: &mut Criterion) {
    allow_descriptors();
    let mut group = criterion.benchmark_group("request");
    group.throughput(Throughput::Elements(1));
    for processes in PROCESSES {
        for kind in Kind::ALL {
            group.bench_with_input(
                BenchmarkId::new(kind.name(), processes),
                &processes,
                |bencher, processes| {
                    let (mut rig, mut clients) =
                        Rig::new(kind, *processes).unwrap_or_else(|e| panic!("{}", e.0));
                    let client = clients.first_mut().unwrap_or_else(|| panic!("no client"));
                    bencher.iter(|| request(&mut rig, client).unwrap_or_else(|e| panic!("{}", e.0)));
                },
            );
        }
    }
    group.finish();
}

criterion_group!(benches, queues);
criterion_main!(benches);
