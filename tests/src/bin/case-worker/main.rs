#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_lossless)] // values of C types
//! A conformance worker: makes the socket calls that the driver asks for, natively or under the shim.
//!
//! `case-worker NAME` connects to the unix socket NAME, sends its pid, then answers
//! [`harness::wire::Op`]s until the driver hangs up. Its own descriptor lives at a high number, so that the
//! numbers in a transcript are those of a plain program.

mod address;
mod calls;
mod control;
mod data;
mod fortified;
mod messages;
mod objects;
mod programs;
mod ready;

use std::io;
use std::process::ExitCode;

use harness::wire::{Op, get, put};

fn main() -> ExitCode {
    let Some(name) = std::env::args().nth(1) else {
        eprintln!("usage: case-worker SOCKET");
        return ExitCode::from(2);
    };
    match serve(&name) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("case-worker: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Connects to the driver and tells it who we are.
fn report_for_duty(name: &str) -> io::Result<control::Driver> {
    let mut driver = control::Driver::connect(name)?;
    put(&mut driver, &std::process::id())?;
    Ok(driver)
}

fn serve(name: &str) -> io::Result<()> {
    let mut driver = report_for_duty(name)?;
    let mut threads = control::Threads::default();
    loop {
        let op: Op = match get(&mut driver) {
            Ok(op) => op,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e),
        };
        let out = match op {
            Op::Start { op } => threads.start(*op),
            Op::Join { ticket } => threads.join(ticket),
            Op::JoinWithin { ticket, ms } => threads.join_within(ticket, ms),
            Op::Interrupt { ticket, signal } => threads.interrupt(ticket, signal),
            Op::Fork { control } => {
                let (out, child) = control::fork();
                if child {
                    driver = report_for_duty(&control)?;
                    // Forgotten, not dropped: the parent's threads are not in this process, so there is nothing to detach.
                    std::mem::forget(std::mem::take(&mut threads));
                    continue;
                }
                out
            }
            Op::Closefrom { first, control } => {
                driver.leave();
                let out = control::closefrom(first);
                driver = report_for_duty(&control)?;
                out
            }
            Op::Daemon { control } => {
                let out = control::daemon();
                driver = report_for_duty(&control)?;
                out
            }
            Op::Exit => control::exit_now(),
            op => calls::make(&op),
        };
        put(&mut driver, &out)?;
    }
}
