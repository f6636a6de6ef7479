//! Messages to the agent that are not what they should be.

use std::os::fd::OwnedFd;
use std::time::Duration;

use harness::instance::Instance;
use harness::redis::Server;
use harness::{Failure, Outcome, ensure};
use ring::attach::{BYTES, Call, MAGIC, Reply};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType, connect, recv, send, socket,
};

use crate::with_instance;

fn dial(instance: &Instance) -> Outcome<OwnedFd> {
    let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
    connect(
        &socket,
        &SocketAddrUnix::new_abstract_name(instance.socket().trim_start_matches('@').as_bytes())?,
    )?;
    Ok(socket)
}

/// What the agent answers to `message`; `None` when it hangs up without a word.
fn answer(instance: &Instance, message: &[u8]) -> Outcome<Option<Reply>> {
    let agent = dial(instance)?;
    send(&agent, message, SendFlags::NOSIGNAL)?;
    let mut ready = [PollFd::new(&agent, PollFlags::IN)];
    let bound = Timespec { tv_sec: 10, tv_nsec: 0 };
    ensure(poll(&mut ready, Some(&bound))? == 1, || "the agent does not answer a bad message".to_owned())?;
    let mut room = [0; BYTES];
    let (_, n) = recv(&agent, &mut room, RecvFlags::empty())?;
    if n == 0 {
        return Ok(None);
    }
    let reply = Reply::from_wire(room.get(..n).unwrap_or(&[])).map_err(|e| Failure(e.to_string()))?;
    Ok(Some(reply))
}

/// xorshift64 with a fixed seed: the same bytes in each run.
fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x.to_le_bytes()[3]
        })
        .collect()
}

pub fn attach_messages() -> Outcome {
    with_instance(|instance| {
        let server = Server::start(Some(instance))?;
        let good = Call::Hello { parent: 0, nonce: 0 }.to_wire();
        let mut wrong_magic = good;
        wrong_magic[0] ^= 0xff;
        let mut old_version = good;
        old_version[4..8].copy_from_slice(&0_u32.to_le_bytes());
        let mut newer_version = good;
        newer_version[4..8].copy_from_slice(&999_u32.to_le_bytes());
        let mut unknown_kind = good;
        unknown_kind[8..12].copy_from_slice(&77_u32.to_le_bytes());
        let cases: [(&str, &[u8], &str); 6] = [
            ("wrong magic", &wrong_magic, "not an IPC-Direct message"),
            ("old version", &old_version, "version 0"),
            ("newer version", &newer_version, "version 999"),
            ("unknown kind", &unknown_kind, ""),
            ("truncated", &good[..40], ""),
            ("one byte", &good[..1], ""),
        ];
        for (what, message, part) in cases {
            match answer(instance, message)? {
                Some(Reply::Refused(text)) => {
                    ensure(!text.as_str().is_empty() && text.as_str().contains(part), || {
                        format!("{what}: the refusal says {text:?}")
                    })?
                }
                other => return harness::fail(format!("{what}: expected a refusal, got {other:?}")),
            }
        }
        for seed in 1..200 {
            let mut message = random_bytes(seed, usize::try_from(1 + seed % 200)?);
            if seed % 2 == 0 {
                // Half of them get past the first check.
                message.resize(BYTES, 0);
                message[..4].copy_from_slice(&MAGIC);
            }
            let reply = answer(instance, &message)?;
            ensure(matches!(reply, Some(Reply::Refused(_)) | None), || {
                format!("random bytes got {reply:?}")
            })?;
        }
        // A request for a segment before attaching, and for one that is somebody else's.
        let reply = answer(instance, &Call::Segment { segment: 0, side: 0 }.to_wire())?;
        ensure(matches!(reply, Some(Reply::Refused(_)) | None), || {
            format!("a stranger's segment: {reply:?}")
        })?;
        let pong = server.cli(Some(instance), &["ping"])?;
        ensure(pong == "PONG", || format!("after all that, PING said {pong}"))?;
        server.stop()
    })
}

/// Clients that connect and say nothing do not keep the others waiting.
pub fn silent_clients() -> Outcome {
    with_instance(|instance| {
        let silent = (0..50).map(|_| dial(instance)).collect::<Outcome<Vec<OwnedFd>>>()?;
        let server = Server::start(Some(instance))?;
        let pong = server.cli(Some(instance), &["ping"])?;
        ensure(pong == "PONG", || format!("beside silent clients, PING said {pong}"))?;
        drop(silent);
        std::thread::sleep(Duration::from_millis(20));
        let pong = server.cli(Some(instance), &["ping"])?;
        ensure(pong == "PONG", || format!("after silent clients, PING said {pong}"))?;
        server.stop()
    })
}
