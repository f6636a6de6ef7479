//! Connections between programs of both hosts, under the shim, carried by verbs: bytes, and what is left when somebody is killed.

use harness::child::wait_for;
use harness::counters::Totals;
use harness::guest::Guest;
use harness::{Failure, Outcome, ensure};

use crate::card::{self, SHIMMED};
use crate::pair::{self, BOUND, Pair, on_pair};

/// Where the server of the first host listens.
const SERVER: &str = "10.7.0.1:7001";
/// Each way.
const BYTES: u64 = 40_000_000;
/// What one connection carries to show that it works.
const FEW: u64 = 300_000;
/// The most in one of soft-RoCE's packets.
const PACKET_BYTES: u64 = 4096;

/// Large writes, both ways at the same time, up to the end of either stream.
pub fn bytes() -> Outcome {
    with_cards(|pair| {
        let before = packets(&mut pair.first)?;
        serve(&mut pair.first)?;
        stream(&mut pair.second, BYTES)?;
        let packets = packets(&mut pair.first)? - before;
        ensure(packets >= 2 * BYTES / PACKET_BYTES, || format!("soft-RoCE had {packets} packets only"))?;
        all_in_user_space(pair, BYTES)?;
        end(&mut pair.first, "server", "")
    })
}

/// Small messages of many connections: a program that knows nothing of all this.
pub fn redis() -> Outcome {
    with_cards(|pair| {
        let server = "redis-server --bind 0.0.0.0 --protected-mode no --port 7000 --save '' --dir /tmp";
        pair.first.start("redis", &format!("{SHIMMED} {server}"))?;
        pair.first.until("grep -q 'Ready to accept' /tmp/redis", BOUND)?;
        let client = "redis-benchmark -h 10.7.0.1 -p 7000 -c 20 -n 1000 -d 1000 -t set,get -q";
        pair.second.run(&format!("{SHIMMED} {client}"), BOUND)?;
        all_in_user_space(pair, 1000 * 1000)?;
        end(&mut pair.first, "redis", "")
    })
}

/// SIGKILL for the server, then for a client, in the middle of a transfer: the other one hears of it, and the link carries what
/// comes next.
pub fn process_killed() -> Outcome {
    with_cards(|pair| {
        serve(&mut pair.first)?;
        transfer(&mut pair.second)?;
        end(&mut pair.first, "server", "-9")?;
        ended(&mut pair.second, "client")?;
        pair.second.finish("client", BOUND)?;
        serve(&mut pair.first)?;
        transfer(&mut pair.second)?;
        end(&mut pair.second, "client", "-9")?;
        ended(&mut pair.first, "server")?;
        stream(&mut pair.second, FEW)?;
        all_in_user_space(pair, FEW)?;
        end(&mut pair.first, "server", "")
    })
}

/// SIGKILL for the coordinator of the server's host, in the middle of a transfer: both programs hear of it, and go on over the
/// kernel; after another start, over a new link.
pub fn coordinator_killed() -> Outcome {
    with_cards(|pair| {
        serve(&mut pair.first)?;
        transfer(&mut pair.second)?;
        // Its agent ends with it.
        pair.first.run("kill -9 $(busybox pidof nic-coordinator); wait $agent; true", BOUND)?;
        ended(&mut pair.second, "client")?;
        ended(&mut pair.first, "server")?;
        card::wait_peer(&mut pair.second, 1, "lost")?;
        nothing_left(&mut pair.second)?;
        let by = |pair: &mut Pair| {
            let before = card::report(&mut pair.second)?.totals;
            stream(&mut pair.second, FEW)?;
            let now = card::report(&mut pair.second)?.totals - before;
            Ok::<_, Failure>([now.user.rx_bytes, now.kernel.rx_bytes])
        };
        let kernel = by(pair)?;
        ensure(kernel == [0, FEW], || format!("user space and kernel carry {kernel:?} without a card"))?;
        card::up(&mut pair.first, 1, "verbs")?;
        met(pair)?;
        let user = by(pair)?;
        ensure(user == [FEW, 0], || format!("user space and kernel carry {user:?} with another card"))?;
        end(&mut pair.first, "server", "")
    })
}

/// The server's host is gone without a word: the client hears of it when its card does.
pub fn host_killed() -> Outcome {
    let mut pair = pair::running()?;
    let before = resources(&mut pair.second)?;
    up(&mut pair)?;
    serve(&mut pair.first)?;
    transfer(&mut pair.second)?;
    drop(pair.first);
    let heard = ended(&mut pair.second, "client").and_then(|()| {
        card::wait_peer(&mut pair.second, 1, "lost")?;
        nothing_left(&mut pair.second)
    });
    explained(heard, [&mut pair.second])?;
    card::down(&mut pair.second)?;
    all_given_back(&mut pair.second, &before)
}

/// Runs a test with cards on both hosts that have met; afterwards nothing may be left of it.
fn with_cards(test: impl FnOnce(&mut Pair) -> Outcome) -> Outcome {
    on_pair(|pair| {
        let before = [resources(&mut pair.first)?, resources(&mut pair.second)?];
        up(pair)?;
        let outcome = test(pair).and_then(|()| {
            nothing_left(&mut pair.first)?;
            nothing_left(&mut pair.second)
        });
        explained(outcome, [&mut pair.first, &mut pair.second])?;
        for (host, before) in [&mut pair.first, &mut pair.second].into_iter().zip(before) {
            card::down(host)?;
            all_given_back(host, &before)?;
        }
        Ok(())
    })
}

fn up(pair: &mut Pair) -> Outcome {
    card::up(&mut pair.first, 1, "verbs")?;
    card::up(&mut pair.second, 2, "verbs")?;
    met(pair)
}

fn met(pair: &mut Pair) -> Outcome {
    card::wait_peer(&mut pair.first, 2, "up")?;
    card::wait_peer(&mut pair.second, 1, "up").map(drop)
}

/// A failure comes with what the agents of these hosts have logged.
fn explained<const N: usize>(outcome: Outcome, hosts: [&mut Guest; N]) -> Outcome {
    outcome.map_err(|Failure(mut text)| {
        for host in hosts {
            text += &host.run("echo; cat /tmp/agent", BOUND).unwrap_or_else(|e| e.0);
        }
        Failure(text)
    })
}

/// Starts a server, and waits until it listens.
fn serve(host: &mut Guest) -> Outcome {
    host.start("server", &format!("{SHIMMED} /opt/transfer server {SERVER}"))?;
    host.until("grep -q port /tmp/server", BOUND)
}

/// Sends bytes to the server, and checks that all come back.
fn stream(host: &mut Guest, bytes: u64) -> Outcome {
    let said = host.run(&format!("{SHIMMED} /opt/transfer client {SERVER} stream {bytes}"), BOUND)?;
    ensure(said.contains(&format!("done {bytes}")), || said)
}

/// Starts a client that talks with the server until one of them is gone, and waits until it does, by the cards.
fn transfer(host: &mut Guest) -> Outcome {
    host.start("client", &format!("{SHIMMED} /opt/transfer client {SERVER} busy {}", BOUND.as_secs()))?;
    host.until("grep -q progress /tmp/client", BOUND)?;
    let carried = card::status(host)?.carried;
    ensure(carried.get("connections") == Some(&1), || format!("the cards carry {carried:?}"))
}

/// Ends a program with a signal.
fn end(host: &mut Guest, name: &str, signal: &str) -> Outcome {
    host.run(&format!("kill {signal} ${name}; wait ${name}; true"), BOUND).map(drop)
}

/// Waits until a program has heard of its connection's end, as TCP would tell it.
fn ended(host: &mut Guest, name: &str) -> Outcome {
    host.until(&format!("grep -q ended /tmp/{name}"), BOUND)?;
    host.run(&format!("grep -Eq 'ended (reset|eof|pipe) ' /tmp/{name} || ! cat /tmp/{name}"), BOUND).map(drop)
}

/// Each host had so many bytes at least, in each direction.
fn all_in_user_space(pair: &mut Pair, bytes: u64) -> Outcome {
    for host in [&mut pair.first, &mut pair.second] {
        let Totals { user, kernel } = card::report(host)?.totals;
        let right = kernel.connections == 0 && user.tx_bytes.min(user.rx_bytes) >= bytes;
        ensure(right, || format!("user space had {user:?}, the kernel {kernel:?}"))?;
    }
    Ok(())
}

/// Waits until a card carries nothing, and no memory of this host is open to the other one.
fn nothing_left(host: &mut Guest) -> Outcome {
    let mut last = None;
    let gone = wait_for(BOUND, || {
        let open = host.run("rdma resource show mr | grep -v ' rkey 0x0 ' || true", BOUND)?;
        let (carried, open) = last.insert((card::status(host)?.carried, open));
        let none = |name| carried.get(name) == Some(&0);
        let all = none("connections") && none("segments") && none("violations") && open.is_empty();
        Ok(all.then_some(()))
    })?;
    gone.ok_or_else(|| Failure(format!("a card keeps something: {last:?}")))
}

/// How much soft-RoCE has of queues, registered memory, ...
fn resources(host: &mut Guest) -> Outcome<String> {
    host.run("rdma resource show", BOUND)
}

/// Once its card is gone, a host has as much as before.
fn all_given_back(host: &mut Guest, before: &str) -> Outcome {
    let now = resources(host)?;
    ensure(now == before, || format!("soft-RoCE had {before}, and has {now}"))
}

/// Packets that soft-RoCE has sent and received.
fn packets(host: &mut Guest) -> Outcome<u64> {
    let counters = host.run("cat /sys/class/infiniband/rxe0/ports/1/hw_counters/*_pkts", BOUND)?;
    counters.lines().map(|line| Ok(line.trim().parse::<u64>()?)).sum()
}
