//! Runs one experiment over one path, once.

use std::fs;
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use harness::child::run_ok;
use harness::counters::Totals;
use harness::instance::Instance;
use harness::redis::Server as Redis;
use harness::{Failure, Outcome, fail};
use measure::job::{Figures, Job, Over, Shape};
use measure::pairs::{self, Both, Pair};
use measure::path::Path;
use measure::redis::{self, Load};
use measure::row::Experiment;
use measure::services::{self, Server as Service};
use measure::turns::Turns;

use crate::rows::What;

/// Time between the start of many pairs and the moment when they all begin.
const TOGETHER: Duration = Duration::from_millis(1500);
/// Requests of a first redis-benchmark, from which the others' number is taken.
const TRIAL_REQUESTS: u64 = 5_000;

/// What all measurements share.
#[derive(Debug)]
pub struct Machine<'a> {
    pub instance: &'a Instance,
    program: PathBuf,
    /// Two processors that we may run on; none on a machine with one.
    cpus: Option<[usize; 2]>,
    /// Length of one measurement.
    pub seconds: f64,
}

/// Servers that live for all rounds of an experiment.
#[derive(Debug)]
pub enum Fixture<'a> {
    None,
    Redis(Redis, Option<u64>),
    Service(Service<'a>, &'static services::Row),
}

impl<'a> Machine<'a> {
    pub fn new(instance: &'a Instance, seconds: f64) -> Outcome<Machine<'a>> {
        Ok(Machine { instance, program: pairs::program()?, cpus: pairs::two_cpus()?, seconds })
    }

    fn job(&self, shape: Shape) -> Job {
        Job { shape, seconds: self.seconds, cpus: self.cpus, start_ns: None }
    }

    fn two(&self, shape: Shape, path: Path, cpus: Option<[usize; 2]>) -> Outcome<Both> {
        let job = Job { cpus, ..self.job(shape) };
        let program = &self.program;
        match path {
            Path::Ring => pairs::family(program, None, Over::Ring, &job),
            Path::Sockmap => pairs::family(program, None, Over::Sockmap, &job),
            Path::Direct => {
                let before = self.helpers_cpu_s();
                let mut both = pairs::two(program, Some(self.instance), false, &job)?;
                // What agent and coordinator used is a part of the price. The warm-up is in it, too: a little too much.
                both.server.cpu_s += self.helpers_cpu_s() - before;
                Ok(both)
            }
            path => pairs::two(program, None, path == Path::Unix, &job),
        }
    }

    /// Processor time of agent and coordinator so far.
    fn helpers_cpu_s(&self) -> f64 {
        let helpers = [Some(self.instance.agent_pid()), self.instance.coordinator_pid().ok()];
        helpers.into_iter().flatten().map(cpu_s).sum()
    }

    /// All pairs begin at the same time; the sum of their rates.
    fn many(&self, count: usize, shape: Shape, path: Path) -> Outcome<f64> {
        let start = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let start = Duration::try_from(start).unwrap_or_default() + TOGETHER;
        let start_ns = u64::try_from(start.as_nanos()).ok();
        let job = Job { cpus: None, start_ns, ..self.job(shape) };
        let shim = (path == Path::Direct).then_some(self.instance);
        let start = || Pair::start(&self.program, shim, path == Path::Unix, &job);
        let all: Vec<Pair> = (0..count).map(|_| start()).collect::<Outcome<_>>()?;
        all.into_iter().map(|pair| Ok(pair.finish()?.client.per_s())).sum()
    }

    /// Memory for each connection, in KiB: of both processes and of the kernel, as the machine's memory tells.
    fn memory(&self, shape: Shape, path: Path) -> Outcome<f64> {
        let shim = (path == Path::Direct).then_some(self.instance);
        let mut pair = Pair::start(&self.program, shim, path == Path::Unix, &self.job(shape))?;
        pair.client_is("open")?;
        let before = used_kib()?;
        pair.go_on()?;
        pair.client_is("open")?;
        let after = used_kib()?;
        pair.go_on()?;
        let both = pair.finish()?;
        #[allow(clippy::cast_precision_loss)] // some thousand connections
        Ok((after - before) / both.client.count as f64)
    }

    /// Source, two filters and a sink, as a shell starts them.
    fn pipeline(&self, shim: Option<&Instance>) -> Outcome<Both> {
        let program = self.program.display();
        let line = format!(
            "'{program}' stage source --seconds {} | '{program}' stage filter | '{program}' stage filter | '{program}' stage sink",
            self.seconds
        );
        let mut command = harness::redis::command(shim, "/bin/sh");
        let said = run_ok(command.args(["-c", &line]), Duration::from_secs(60))?;
        let client: Figures = serde_json::from_str(&said)?;
        Ok(Both { client, server: Figures::default() })
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a positive number far below the limits
    fn redis(&self, server: &Redis, path: Path, load: Load, requests: &mut Option<u64>) -> Outcome<Vec<f64>> {
        let requests = match *requests {
            Some(requests) => requests,
            None => {
                let trial = redis::benchmark(self.instance, server, path, load, TRIAL_REQUESTS)?;
                let slower = trial.iter().map(|f| f.ops_per_s).fold(f64::INFINITY, f64::min);
                *requests.insert((slower * self.seconds) as u64 + TRIAL_REQUESTS)
            }
        };
        let found = redis::benchmark(self.instance, server, path, load, requests)?;
        let mut values: Vec<f64> = found.iter().map(|f| f.ops_per_s).collect();
        values.extend(found.last().filter(|_| load.clients == 1).map(|get| get.p50_us));
        Ok(values)
    }
}

impl<'a> Turns for Machine<'a> {
    type What = What;
    type Fixture = Fixture<'a>;

    fn fixture(&self, experiment: &Experiment<What>, path: Path) -> Outcome<Fixture<'a>> {
        let shim = (path == Path::Direct).then_some(self.instance);
        Ok(match experiment.what {
            What::Redis(_) => Fixture::Redis(Redis::start(shim)?, None),
            What::Service(name) => {
                let row = services::ROWS.iter().find(|row| row.name == name);
                let row = row.ok_or_else(|| Failure(format!("no service is called {name:?}")))?;
                Fixture::Service(Service::start(row.server, shim)?, row)
            }
            _ => Fixture::None,
        })
    }

    fn measure(
        &self,
        experiment: &Experiment<What>,
        path: Path,
        fixture: &mut Fixture<'a>,
    ) -> Outcome<Vec<f64>> {
        let shim = (path == Path::Direct).then_some(self.instance);
        let both = match (experiment.what, fixture) {
            (What::Redis(load), Fixture::Redis(server, requests)) => {
                return self.redis(server, path, load, requests);
            }
            (What::Service(_), Fixture::Service(server, row)) => {
                return Ok(vec![server.measure(row, 1)?]);
            }
            (What::Two(shape), _) => self.two(shape, path, self.cpus)?,
            (What::OneCore(shape), _) => self.two(shape, path, self.cpus.map(|[cpu, _]| [cpu, cpu]))?,
            (What::TwoUnix(shape), _) => pairs::two(&self.program, shim, true, &self.job(shape))?,
            (What::Family(over, shape), _) => pairs::family(&self.program, shim, over, &self.job(shape))?,
            (What::Many(pairs, shape), _) => return self.many(pairs, shape, path).map(|rate| vec![rate]),
            (What::Memory(shape), _) => return self.memory(shape, path).map(|kib| vec![kib]),
            (What::Pipeline, _) => self.pipeline(shim)?,
            (What::Redis(_) | What::Service(_), _) => return fail("the server was not started"),
        };
        Ok(experiment.rows.iter().map(|row| row.value.of(&both)).collect())
    }

    fn stop(&self, fixture: Fixture<'a>) -> Outcome {
        match fixture {
            Fixture::None => Ok(()),
            Fixture::Redis(server, _) => server.stop(),
            Fixture::Service(server, _) => server.stop(),
        }
    }

    fn calibrate(&self) -> Outcome<f64> {
        pairs::calibrate(&self.program, self.cpus)
    }

    fn totals(&self) -> Outcome<Totals> {
        self.instance.totals()
    }
}

/// Processor time of a process so far.
fn cpu_s(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let ns = |path: &FilePath| -> Option<f64> {
        fs::read_to_string(path.join("schedstat")).ok()?.split_whitespace().next()?.parse().ok()
    };
    tasks.filter_map(|task| ns(&task.path())).sum::<f64>() / 1e9
}

/// Memory that the kernel and all processes use for themselves, in KiB.
fn used_kib() -> Outcome<f64> {
    const PARTS: [&str; 6] = ["Slab", "Shmem", "AnonPages", "PageTables", "KernelStack", "Percpu"];
    let text = fs::read_to_string("/proc/meminfo")?;
    let part = |line: &str| -> Option<f64> {
        let (name, rest) = line.split_once(':')?;
        PARTS.contains(&name).then(|| rest.split_whitespace().next()?.parse().ok())?
    };
    Ok(text.lines().filter_map(part).sum())
}
