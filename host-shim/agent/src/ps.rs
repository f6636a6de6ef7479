//! `ipc-direct ps`: asks the agent for its report and prints it, for people or as JSON.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use ring::attach::{Call, Reply};
use ring::stats::Reason;

use crate::address::Address;
use crate::cli::fail;
use crate::dial::Agent;
use crate::inspect::DirectionReport;
use crate::report::{PathTotals, ProcessReport, Report, SCHEMA_VERSION, SocketReport};

/// `ipc-direct ps [--json] [--all]`
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Print JSON (docs/ps-json.md)
    #[arg(long)]
    json: bool,
    /// Also show the state of all rings and who sleeps on what
    #[arg(long)]
    verbose: bool,
    /// Also list sockets that are neither connected nor listening
    #[arg(long)]
    all: bool,
    /// Socket of the agent: @NAME (abstract) or a path; default $IPC_DIRECT_SOCKET or @ipc-direct/UID
    #[arg(long, value_name = "S")]
    socket: Option<String>,
}

/// A descriptor that is no socket any more was closed or replaced behind the library's back: nobody in that process can
/// know before it uses the number again, but whoever looks at /proc can.
fn find_escapes(report: &mut Report) {
    for process in &mut report.processes {
        let held = PathBuf::from(format!("/proc/{}/fd", process.pid));
        // Of another user, or just ended: not known.
        if std::fs::read_dir(&held).is_err() {
            continue;
        }
        for socket in process.sockets.iter_mut().filter(|s| s.fd >= 0) {
            let escaped = match std::fs::read_link(held.join(socket.fd.to_string())) {
                Ok(target) => !target.as_os_str().as_encoded_bytes().starts_with(b"socket:"),
                Err(e) => e.kind() == io::ErrorKind::NotFound,
            };
            if escaped {
                socket.reason = Reason::Escaped.code().into();
                socket.reason_text = Reason::Escaped.text().into();
            }
        }
    }
}

/// Prints the report. Status 1 and one sentence if no agent answers.
#[must_use]
pub fn ps(arguments: &PsArgs) -> ExitCode {
    let mut report = match fetch(&Address::choose(arguments.socket.as_deref()), arguments.verbose) {
        Ok(report) => report,
        Err(sentence) => return fail(&sentence),
    };
    if !arguments.all {
        for process in &mut report.processes {
            process.sockets.retain(|s| s.state != "idle");
        }
    }
    let text = if arguments.json {
        match serde_json::to_string_pretty(&report) {
            Ok(json) => json + "\n",
            Err(e) => return fail(&format!("the report can't be printed: {e}")),
        }
    } else {
        render(&report)
    };
    // A reader that has seen enough (`ps | head`) is no error.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// The report of the agent at `address`, or a sentence why there is none.
///
/// # Errors
/// A sentence for the user.
pub fn fetch(address: &Address, verbose: bool) -> Result<Report, String> {
    let agent = Agent::connect(address).map_err(|e| e.to_string())?;
    let (reply, fds) = agent.call(&Call::Report { verbose }).map_err(|e| e.to_string())?;
    let (Reply::Report, Some(memfd)) = (reply, fds.into_iter().next()) else {
        return Err("the agent sent no report".into());
    };
    let mut json = Vec::new();
    File::from(memfd).read_to_end(&mut json).map_err(|e| format!("the report can't be read: {e}"))?;
    let mut report: Report =
        serde_json::from_slice(&json).map_err(|e| format!("the report makes no sense: {e}"))?;
    match report.version {
        SCHEMA_VERSION => {
            // Its process ids mean the same to us if its own does.
            if agent.pid().is_some_and(|pid| pid == report.agent.pid) {
                find_escapes(&mut report);
            }
            Ok(report)
        }
        other => Err(format!("the agent's report has version {other}: use files of one release")),
    }
}

fn render(report: &Report) -> String {
    let agent = &report.agent;
    let mut text = format!(
        "agent {} up {}, coordinator {} alive (epoch {:08x}), {} request queue{}, {} processes, {} segments, {} leases\n",
        agent.pid,
        duration(agent.uptime_s),
        if agent.coordinator_pid == 0 { "on the card".to_owned() } else { agent.coordinator_pid.to_string() },
        agent.epoch,
        agent.request_queue,
        if agent.pcie_profile == "none" {
            String::new()
        } else {
            format!(", as slow as {}", agent.pcie_profile)
        },
        report.processes.len(),
        agent.segments,
        agent.leases
    );
    text += &format!("{}\n\n", totals_table(report));
    if report.processes.is_empty() {
        return text + "no process is attached\n";
    }
    text += &format!("{}\n", sockets_table(&report.processes));
    for p in &report.processes {
        if p.escapes > 0 {
            text += &format!(
                "pid {} has closed {} of its sockets' descriptors past libc: their connections have ended\n",
                p.pid, p.escapes
            );
        }
        if p.io_urings_refused > 0 {
            text +=
                &format!("pid {} asked for io_uring {} times and was refused\n", p.pid, p.io_urings_refused);
        }
    }
    if report.sockets_omitted > 0 {
        text += &format!("{} more sockets are not listed\n", report.sockets_omitted);
    }
    text + &rings(report)
}

/// What `--verbose` adds: one line a process, a sleeping thread, a segment and a direction.
fn rings(report: &Report) -> String {
    let mut text = String::new();
    for process in &report.processes {
        let Some(r) = &process.rings else { continue };
        text += &format!(
            "\nprocess {} {} (function {}, group {}): requests {} posted, {} taken; completions {} sent, {} taken; \
             interrupt {}; {} notices{}\n",
            process.pid,
            printable(&process.command),
            process.function,
            process.group,
            r.requests_posted,
            r.requests_taken,
            r.completions_sent,
            r.completions_taken,
            r.armed_at.map_or("never asked".into(), |at| format!("asked after {at}")),
            r.notices,
            if r.doorbell_wanted { "; the coordinator sleeps" } else { "" },
        );
        for s in &r.sleepers {
            let fd = if s.fd < 0 { String::new() } else { format!(" (fd {})", s.fd) };
            text += &format!("  thread {} sleeps on {}{fd} for {} ms\n", s.tid, s.sleeps_on, s.since_ms);
        }
    }
    for s in report.segments.iter().flatten() {
        text += &format!(
            "\nsegment {} of groups {:?}, wires {:?}: lanes asleep {:?}, news {:?}\n",
            s.segment, s.groups, s.wires, s.lanes_asleep, s.news
        );
        for c in &s.connections {
            for (name, d) in ["client to server", "server to client"].into_iter().zip(&c.directions) {
                text += &format!("  {}.{}#{} {name}: {}\n", s.segment, c.slot, c.generation, direction(d));
            }
        }
    }
    text
}

fn direction(d: &DirectionReport) -> String {
    let number = |n: Option<u64>| n.map_or("?".to_owned(), |n| n.to_string());
    format!(
        "{}{}, opened for #{}, head {} tail {} fill {}; reader sleeps {} lane {}; writer sleeps {} lane {} until {}",
        d.state,
        if d.reader_closed { ", reader closed" } else { "" },
        d.generation,
        d.head,
        number(d.tail),
        number(d.fill),
        d.reader_sleeps,
        d.reader_lane,
        d.writer_sleeps,
        d.writer_lane,
        d.writer_wakes_at,
    )
}

/// No borders, and every row on one line, however wide: for grep.
fn plain_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header.to_vec());
    table
}

fn totals_table(report: &Report) -> Table {
    let mut table = plain_table(&["path", "connections", "bytes in", "bytes out", "calls in", "calls out"]);
    for (name, path) in [("user-space", &report.totals.user), ("kernel", &report.totals.kernel)] {
        let PathTotals { tx_bytes, rx_bytes, tx_ops, rx_ops, connections } = path;
        let numbers = [connections, rx_bytes, tx_bytes, rx_ops, tx_ops].map(u64::to_string);
        table.add_row([name.to_owned()].into_iter().chain(numbers));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn sockets_table(processes: &[ProcessReport]) -> Table {
    let header =
        ["pid", "command", "fn", "uid", "fd", "state", "path", "local", "peer", "in", "out", "why not"];
    let mut table = plain_table(&header);
    for process in processes {
        let who = [
            process.pid.to_string(),
            printable(&process.command),
            process.function.to_string(),
            process.uid.to_string(),
        ];
        if process.sockets.is_empty() {
            table.add_row(who.iter().map(String::as_str).chain(["-"; 8]));
        }
        for socket in &process.sockets {
            table.add_row(who.iter().cloned().chain(socket_cells(socket)));
        }
    }
    table
}

fn socket_cells(socket: &SocketReport) -> [String; 8] {
    let count = |bytes: u64, ops: u64| format!("{bytes} B/{ops}");
    let why = match socket.reason.as_str() {
        "-" => "-".to_owned(),
        code => format!("{code}: {}", socket.reason_text),
    };
    [
        socket.fd.to_string(),
        socket.state.clone(),
        socket.path.clone(),
        socket.local.clone(),
        socket.peer.clone(),
        count(socket.rx_bytes, socket.rx_ops),
        count(socket.tx_bytes, socket.tx_ops),
        why,
    ]
}

/// A process chooses its own name: control characters are not for the user's terminal.
fn printable(command: &str) -> String {
    command.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn duration(seconds: u64) -> String {
    match seconds {
        s if s < 60 => format!("{s} s"),
        s if s < 3600 => format!("{} min {} s", s / 60, s % 60),
        s => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{AgentReport, Totals};

    fn sample() -> Report {
        let socket = SocketReport {
            fd: 7,
            state: "connected".into(),
            path: "kernel".into(),
            reason: "peer-unshimmed".into(),
            reason_text: "the server is not running under ipc-direct".into(),
            local: "127.0.0.1:40000".into(),
            peer: "127.0.0.1:6379".into(),
            conn: "-".into(),
            tx_bytes: 10,
            rx_bytes: 20,
            tx_ops: 1,
            rx_ops: 2,
        };
        let process = ProcessReport {
            pid: 42,
            command: "evil\x1b[2J".into(),
            function: 3,
            group: 9,
            uid: 1000,
            totals: Totals::default(),
            escapes: 0,
            io_urings_refused: 0,
            sockets: vec![socket],
            rings: None,
        };
        let agent = AgentReport {
            pid: 1,
            coordinator_pid: 2,
            epoch: 0xabcd,
            uptime_s: 3725,
            telemetry_prefix: "ipc-direct-1".into(),
            request_queue: "hybrid".into(),
            pcie_profile: "bluefield2".into(),
            segments: 0,
            leases: 1,
        };
        Report {
            version: 1,
            agent,
            totals: Totals::default(),
            processes: vec![process],
            sockets_omitted: 0,
            segments: None,
        }
    }

    #[test]
    fn people_see_the_reason_and_no_escape_sequences() {
        let text = render(&sample());
        assert!(text.contains("peer-unshimmed: the server is not running under ipc-direct"), "{text}");
        assert!(text.contains("up 1 h 2 min") && text.contains("epoch 0000abcd"));
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn the_schema_is_as_documented() {
        let json = serde_json::to_value(sample()).unwrap();
        assert_eq!(json["version"], 1);
        assert_eq!(json["processes"][0]["sockets"][0]["reason"], "peer-unshimmed");
        assert_eq!(json["totals"]["user"]["connections"], 0);
        let document = include_str!("../../../docs/ps-json.md");
        let mut fields = Vec::new();
        collect_keys(&json, &mut fields);
        for field in fields {
            assert!(document.contains(&format!("`{field}`")), "docs/ps-json.md does not explain {field}");
        }
    }

    fn collect_keys(value: &serde_json::Value, into: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                for (key, inner) in map {
                    into.push(key.clone());
                    collect_keys(inner, into);
                }
            }
            serde_json::Value::Array(items) => items.iter().for_each(|v| collect_keys(v, into)),
            _ => {}
        }
    }
}
