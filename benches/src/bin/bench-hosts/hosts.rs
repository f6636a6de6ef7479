//! Two hosts of a lab, and one measurement between them.

use std::path::PathBuf;
use std::process::Command;

use harness::counters::Totals;
use harness::lab::Lab;
use harness::{Outcome, fail};
use measure::job::{Job, Shape};
use measure::pairs::{self, Pair};
use measure::path::Path;
use measure::row::Experiment;
use measure::turns::Turns;

/// Where the server runs, and where the client does.
const HOSTS: [&str; 2] = ["h1", "h2"];
/// Their numbers.
const NUMBERS: [u32; 2] = [1, 2];

/// A lab with two hosts. Dropped, or however this process ends, it goes.
#[derive(Debug)]
pub struct Hosts {
    lab: Lab,
    /// Addresses of the two on the link that is measured.
    addresses: [String; 2],
    provider: String,
    /// The load programs: over sockets, and over libfabric.
    worker: PathBuf,
    fabric_worker: PathBuf,
    cpus: Option<[usize; 2]>,
    seconds: f64,
}

impl Hosts {
    /// Makes them.
    pub fn up(provider: &str, seconds: f64) -> Outcome<Hosts> {
        let (worker, fabric_worker) = (pairs::program()?, pairs::beside("fabric-worker")?);
        let lab = Lab::start(2)?;
        lab.wait_met()?;
        let [first, second] = HOSTS.map(|name| lab.host(name).map(|host| host.address));
        let (addresses, provider) = ([first?, second?], provider.to_owned());
        let cpus = pairs::two_cpus()?;
        Ok(Hosts { lab, addresses, provider, worker, fabric_worker, cpus, seconds })
    }

    /// Ends them.
    pub fn down(self) -> Outcome {
        self.lab.down()
    }

    /// The load program at host number `at`, to be completed.
    fn program(&self, path: Path, at: usize) -> Outcome<Command> {
        let (number, address, role) = match at {
            0 => (NUMBERS[0], &self.addresses[0], "serve"),
            _ => (NUMBERS[1], &self.addresses[1], "load"),
        };
        let host = format!("h{number}");
        let mut command = match path {
            Path::Fabric | Path::FabricBehind => self.lab.in_host(&host, false, &self.fabric_worker)?,
            Path::Tcp | Path::Direct => self.lab.in_host(&host, path == Path::Direct, &self.worker)?,
            other => return fail(format!("there is no {other} between hosts")),
        };
        match (path, role) {
            (Path::Fabric, role) => command.args([self.provider.as_str(), address, role]),
            (Path::FabricBehind, role) => {
                command.args([self.provider.as_str(), address, "--behind-a-thread", role])
            }
            (_, "serve") => command.args([role, address]),
            (_, role) => command.arg(role),
        };
        Ok(command)
    }
}

impl Turns for Hosts {
    type What = Shape;
    type Fixture = ();

    fn fixture(&self, _: &Experiment<Shape>, _: Path) -> Outcome {
        Ok(())
    }

    fn measure(&self, experiment: &Experiment<Shape>, path: Path, (): &mut ()) -> Outcome<Vec<f64>> {
        let job = Job { shape: experiment.what, seconds: self.seconds, cpus: self.cpus, start_ns: None };
        let both = Pair::of(&mut self.program(path, 0)?, &mut self.program(path, 1)?, &job)?.finish()?;
        Ok(experiment.rows.iter().map(|row| row.value.of(&both)).collect())
    }

    fn stop(&self, (): ()) -> Outcome {
        Ok(())
    }

    fn calibrate(&self) -> Outcome<f64> {
        pairs::calibrate(&self.worker, self.cpus)
    }

    fn totals(&self) -> Outcome<Totals> {
        let [first, second] = HOSTS.map(|name| self.lab.report(name).map(|report| report.totals));
        Ok(first? + second?)
    }
}
