//! `ipc-direct fault`: makes an emulated card fail, to see what programs do then.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use ring::attach::{Call, Fault, Reply, STUCK_MAX_MS};

use crate::address::Address;
use crate::cli::fail;
use crate::dial::Agent;

/// `ipc-direct fault [--socket S] KIND`
#[derive(Debug, Args)]
pub struct FaultArgs {
    /// Socket of the agent: @NAME (abstract) or a path; default $IPC_DIRECT_SOCKET or @ipc-direct/UID
    #[arg(long, value_name = "S")]
    socket: Option<String>,
    #[command(subcommand)]
    kind: FaultKind,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum FaultKind {
    /// The card does nothing for a while, then goes on
    Stuck {
        /// How long, in milliseconds
        #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(..=i64::from(STUCK_MAX_MS)))]
        ms: u32,
    },
    /// The card is gone from the bus; the agent ends
    LinkLoss,
    /// The card starts anew and has forgotten everything
    Reset,
}

/// Asks the agent for it. Status 1 and one sentence if it does not answer or refuses.
#[must_use]
pub fn fault(arguments: &FaultArgs) -> ExitCode {
    let fault = match arguments.kind {
        FaultKind::Stuck { ms } => Fault::Stuck { ms },
        FaultKind::LinkLoss => Fault::LinkLoss,
        FaultKind::Reset => Fault::Reset,
    };
    let agent = Agent::connect(&Address::choose(arguments.socket.as_deref()));
    match agent.and_then(|agent| agent.call(&Call::Fault(fault))) {
        Ok((Reply::Failing, _)) => ExitCode::SUCCESS,
        Ok(_) => fail("the agent's answer makes no sense: use files of one release"),
        Err(e) => fail(&e.to_string()),
    }
}
