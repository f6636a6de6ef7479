//! A process that attaches as it should, and then lies.
//!
//! `hostile requests SOCKET SECONDS SEED` fills its request ring with random entries;
//! `hostile client SOCKET SECONDS SEED PORT` connects to the server on 127.0.0.1:PORT and scribbles over everything
//! that it shares with it: control lines, lanes, news, rings;
//! `hostile server SOCKET SECONDS SEED PORT` listens there in user space only, prints a line when it does, takes one
//! client and does the same to it;
//! `hostile unix SOCKET SECONDS SEED LIE PATH` tells one of the lies of `unix.rs` about a connection of `AF_UNIX`. All end with
//! status 0 when their time is over, whatever was done to them.

#![allow(unsafe_code)] // mappings are made into `Region`s; see the SAFETY lines

mod attached;
mod unix;

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ring::msg::{ACCEPT_WAIT, Addr, Completion, Request, Status};

use attached::{Attached, Random};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["requests", socket, seconds, seed] => lie(&Lie::Requests, socket, seconds, seed),
        ["client", socket, seconds, seed, port] => {
            port.parse().map_err(Into::into).and_then(|port| lie(&Lie::Client(port), socket, seconds, seed))
        }
        ["server", socket, seconds, seed, port] => {
            port.parse().map_err(Into::into).and_then(|port| lie(&Lie::Server(port), socket, seconds, seed))
        }
        ["unix", socket, seconds, seed, kind, path] => lie(&Lie::Unix(kind, path), socket, seconds, seed),
        _ => Err("usage: hostile requests|client|server|unix SOCKET SECONDS SEED [PORT|LIE PATH]".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("hostile: {e}");
            ExitCode::FAILURE
        }
    }
}

/// What to lie about; with the port to connect to or to listen on.
enum Lie<'a> {
    Requests,
    Client(u16),
    Server(u16),
    Unix(&'a str, &'a str),
}

fn lie(lie: &Lie<'_>, socket: &str, seconds: &str, seed: &str) -> Outcome {
    let mut random = Random(seed.parse::<u64>()? | 1);
    let time = Duration::from_secs_f64(seconds.parse()?);
    let mut attached = Attached::new(socket)?;
    match lie {
        Lie::Unix(kind, path) => unix::tell(kind, path, &mut attached, &mut random, Instant::now() + time),
        Lie::Requests => attached.random_requests(&mut random, Instant::now() + time),
        Lie::Client(port) => {
            let request = Request::Connect { dst: localhost(*port), src: localhost(40_000) };
            let Completion::Connected { status: Status::Ok, conn, .. } = attached.ask(request)? else {
                return Err("not connected".into());
            };
            attached.scribble(conn, 0, &mut random, Instant::now() + time)
        }
        Lie::Server(port) => {
            let request = Request::Listen { addr: localhost(*port), backlog: 16, flags: 0 };
            let Completion::Done { status: Status::Ok, value: listener } = attached.ask(request)? else {
                return Err("not listening".into());
            };
            println!("listening");
            let request = Request::Accept { listener, flags: ACCEPT_WAIT };
            let Completion::Accepted { status: Status::Ok, conn, .. } = attached.ask(request)? else {
                return Err("not accepted".into());
            };
            attached.scribble(conn, 1, &mut random, Instant::now() + time)
        }
    }
}

fn localhost(port: u16) -> Addr {
    Addr::v4([127, 0, 0, 1], port)
}
