//! What the figures of a run say, in sentences made of their numbers, and no others.

use ring::queue::Kind;

use crate::figure::{Better, Figure, Verdict};
use crate::plot::short;
use crate::rates::names;

/// The queues that keep processes apart: one of them is the default.
const ISOLATING: [Kind; 2] = [Kind::PerProcess, Kind::Hybrid];
/// Figures of which each point speaks for one of the two as the default.
const DECIDING: [&str; 8] =
    ["rate", "p50", "idle-rate", "idle-p50", "clients-rate", "clients-p50", "setup", "setup-whole"];

/// What speaks against a queue: where it is behind the other one the most, in 80% of the rounds.
#[derive(Clone, Debug)]
struct Regret {
    times: f64,
    place: String,
}

/// Which queue the default should be.
#[derive(Clone, Debug)]
pub struct Advice {
    /// `None`: these figures don't tell.
    pub kind: Option<Kind>,
    pub sentence: String,
}

/// The figures of a run, by name.
#[derive(Clone, Copy, Debug)]
pub struct Figures<'a>(pub &'a [Figure]);

impl<'a> Figures<'a> {
    fn get(self, id: &str) -> Option<&'a Figure> {
        self.0.iter().find(|figure| figure.id == id)
    }

    /// The queues from best to worst at `x`, and how sure that is.
    fn ranking(self, id: &str, x: f64) -> Option<String> {
        let figure = self.get(id)?;
        let mut all = Vec::new();
        for name in names() {
            all.push((figure.at(name, x)?.median, name));
        }
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        if figure.better == Better::More {
            all.reverse();
        }
        let [(value, best), (_, next), (_, last)] = all.as_slice() else { return None };
        let to_next = match figure.versus(best, next, x)? {
            Verdict::Ahead(times) => {
                format!(
                    "{best} is best ({} {}), {} times better than {next}",
                    short(*value),
                    figure.y,
                    two(times)
                )
            }
            Verdict::Same => format!("{best} ({} {}) and {next} are within 5%", short(*value), figure.y),
            Verdict::Unclear | Verdict::Behind(_) => {
                format!(
                    "whether {best} ({} {}) or {next} is best, this run is too noisy to tell",
                    short(*value),
                    figure.y
                )
            }
        };
        let to_last = match figure.versus(best, last, x)? {
            Verdict::Ahead(times) => format!(", {} times better than {last}", two(times)),
            Verdict::Same => format!(", {last} within 5% of it, too"),
            Verdict::Unclear | Verdict::Behind(_) => format!(", for {last} the rounds disagree"),
        };
        Some(to_next + &to_last)
    }

    /// "From N processes on": where one isolating queue overtakes the other for good.
    fn crossing(self, id: &str) -> Option<String> {
        let figure = self.get(id)?;
        let [private, hybrid] = ISOLATING.map(Kind::name);
        let xs = figure.xs();
        let verdicts: Vec<(f64, Verdict)> =
            xs.iter().filter_map(|x| Some((*x, figure.versus(hybrid, private, *x)?))).collect();
        let ahead = |v: &Verdict| matches!(v, Verdict::Ahead(_));
        let from = verdicts.iter().rev().take_while(|(_, v)| ahead(v)).last();
        let most = verdicts
            .iter()
            .filter_map(|(x, v)| if let Verdict::Behind(n) = v { Some((*x, *n)) } else { None });
        let most = most.max_by(|a, b| a.1.total_cmp(&b.1));
        let worst = match most {
            Some((x, times)) => format!("per-process is ahead by {} times at most (at {x})", two(times)),
            None => "per-process is nowhere clearly ahead".to_owned(),
        };
        Some(match from {
            Some((x, Verdict::Ahead(times))) => {
                format!(
                    "hybrid beats per-process from {x} {} on (there {} times); {worst}",
                    figure.x,
                    two(*times)
                )
            }
            _ => format!("hybrid does not beat per-process for good at any number of {}; {worst}", figure.x),
        })
    }

    /// The best queue beside the kernel.
    fn beside_kernel(self, id: &str, kernel: &str, what: &str) -> Option<String> {
        let figure = self.get(id)?;
        let x = *figure.xs().last()?;
        let mut all: Vec<(f64, &str)> =
            names().iter().filter_map(|n| Some((figure.at(n, x)?.median, *n))).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (rate, best) = all.first().copied()?;
        let theirs = figure.at(kernel, x)?.median;
        let verdict = match figure.versus(best, kernel, x)? {
            Verdict::Ahead(times) => format!("{} times as often as", two(times)),
            Verdict::Behind(times) => format!("{} times less often than", two(times)),
            Verdict::Same => "as often, within 5%, as".to_owned(),
            Verdict::Unclear => "too noisily to compare with".to_owned(),
        };
        Some(format!(
            "{x} that {what} get it {} times a second through the coordinator ({best}), {verdict} through \
            the kernel ({kernel}: {})",
            short(rate),
            short(theirs)
        ))
    }

    fn three(self, id: &str, x: f64) -> Option<String> {
        let figure = self.get(id)?;
        let all: Option<Vec<String>> =
            names().iter().map(|n| Some(format!("{} {n}", short(figure.at(n, x)?.median)))).collect();
        Some(format!("{} {}", all?.join(", "), figure.y))
    }

    /// Everything measured, in one paragraph.
    pub fn measured(self) -> String {
        let last = |id: &str| self.get(id).and_then(|f| f.xs().last().copied()).unwrap_or(0.0);
        let mut all = Vec::new();
        let mut say = |sentence: Option<String>| all.extend(sentence);
        say(self.ranking("p50", 1.0).map(|s| format!("Round trip of one process that is alone: {s}.")));
        let x = last("p50");
        say(self.ranking("p50", x).map(|s| format!("Of one busy process among {x}: {s}.")));
        say(self.crossing("p50").map(|s| format!("In that latency {s}.")));
        let x = last("rate");
        say(self.ranking("rate", x).map(|s| format!("With {x} processes, all busy: {s}.")));
        let x = last("idle-rate");
        say(self.ranking("idle-rate", x).map(|s| format!("With {x}% of 512 idle: {s}.")));
        let x = last("clients-rate");
        say(self.ranking("clients-rate", x).map(|s| format!("With {x} contending client threads: {s}.")));
        let x = last("polling");
        say(self.three("polling", x).map(|s| format!("A turn over {x} idle processes takes: {s}.")));
        say(self.three("push", 1.0).map(|s| format!("A push alone takes: {s};")));
        say(self.three("push", 2.0).map(|s| format!("while another processor pushes: {s}.")));
        say(self
            .three("bus-reads", 1.0)
            .map(|s| format!("Reads across the bus with one busy process: {s};")));
        let x = last("bus-reads");
        say(self.three("bus-reads", x).map(|s| format!("with {x}: {s}.")));
        let x = last("setup");
        say(self
            .ranking("setup", x)
            .map(|s| format!("Connection set-ups by the coordinator alone, {x} attached: {s}.")));
        let x = last("setup-whole");
        say(self.ranking("setup-whole", x).map(|s| format!("Whole set-ups beside {x} idle processes: {s}.")));
        say(self.beside_kernel("port", "kernel: bind", "want one port").map(|s| s + "."));
        say(self.beside_kernel("lock", "kernel: futex", "want one lock").map(|s| s + "."));
        say(self.beside_kernel("accept", "kernel: accept", "wait at one accept queue").map(|s| s + "."));
        all.join(" ")
    }

    /// What the simulation adds.
    pub fn simulated(self, error: f64) -> Option<String> {
        let mut all = vec![format!(
            "Simulated, not measured (the model misses the round trips that were measured here by a factor \
            of {} at worst):",
            two(error)
        )];
        let mut say = |sentence: Option<String>| all.extend(sentence);
        say(self
            .ranking("sim-memory-1", 10_000.0)
            .map(|s| format!("10,000 processes on an emulated card, light load: {s};")));
        say(self.ranking("sim-pcie-16", 16.0).map(|s| format!("16 processes on a card with 16 cores: {s};")));
        say(self.ranking("sim-pcie-16", 10_000.0).map(|s| format!("10,000 there: {s};")));
        say(self.ranking("sim-busy", 16.0).map(|s| format!("all of 10,000 busy, 16 cores: {s};")));
        say(self.ranking("sim-quiet", 16.0).map(|s| format!("1% of 10,000 busy, 16 cores: {s}.")));
        (all.len() > 1).then(|| all.join(" "))
    }

    /// Where `name` is furthest behind `other`, where that is clear.
    fn regret(self, name: &str, other: &str) -> Option<Regret> {
        let mut worst: Option<Regret> = None;
        for figure in DECIDING.iter().filter_map(|id| self.get(id)) {
            for x in figure.xs() {
                let Some(times) = figure.surely_behind(name, other, x) else { continue };
                if worst.as_ref().is_none_or(|worst| worst.times < times) {
                    worst = Some(Regret { times, place: format!("\"{}\", {}: {x}", figure.title, figure.x) });
                }
            }
        }
        worst
    }

    /// The default by one rule: the isolating queue that is behind the other by less where it is behind the most.
    pub fn advice(self) -> Advice {
        let [private, hybrid] = ISOLATING.map(Kind::name);
        let text = |name: &str, regret: &Option<Regret>| match regret {
            Some(Regret { times, place }) => {
                format!("{name} is at worst {} times behind the other ({place})", two(*times))
            }
            None => format!("{name} is nowhere clearly behind"),
        };
        let regrets = [self.regret(private, hybrid), self.regret(hybrid, private)];
        let [of_private, of_hybrid] = &regrets;
        let found = format!("{}, {}", text(private, of_private), text(hybrid, of_hybrid));
        let times = |regret: &Option<Regret>| regret.as_ref().map_or(1.0, |regret| regret.times);
        let kind = match (times(of_private), times(of_hybrid)) {
            (a, b) if a > b => Some(Kind::Hybrid),
            (a, b) if b > a => Some(Kind::PerProcess),
            _ => None,
        };
        let end = kind.map_or_else(
            || "so these figures don't tell which should be the default".to_owned(),
            |kind| {
                format!(
                    "so {kind} can lose less, and should be the default where both are available (an \
            emulated card; one behind PCI has per-process only)"
                )
            },
        );
        Advice {
            kind,
            sentence: format!("Of the two queues that isolate processes, measured: {found}; {end}."),
        }
    }
}

/// Two digits after the point.
fn two(times: f64) -> String {
    if times >= 10.0 { format!("{times:.0}") } else { format!("{times:.2}") }
}

#[cfg(test)]
mod tests {
    use ring::queue::Kind;

    use super::{Better, Figure, Figures};

    /// Round trips: per-process, shared, hybrid.
    fn figure(points: &[(f64, [f64; 3])]) -> Figure {
        let mut figure = Figure::new("p50", "Round trip", ["processes", "ns"], Better::Less);
        for (x, values) in points {
            for (name, value) in crate::rates::names().into_iter().zip(values) {
                figure.add(name, *x, vec![*value; 3]);
            }
        }
        figure
    }

    #[test]
    fn sentences_follow_from_the_figures() {
        let figures = [figure(&[(1.0, [100.0, 300.0, 120.0]), (64.0, [400.0, 300.0, 130.0])])];
        let text = Figures(&figures).measured();
        let alone = "alone: per-process is best (100 ns), 1.20 times better than hybrid, 3.00 times better \
        than shared.";
        assert!(text.contains(alone), "{text}");
        assert!(text.contains("hybrid beats per-process from 64 processes on (there 3.08 times)"), "{text}");
        assert!(text.contains("per-process is ahead by 1.20 times at most (at 1)"), "{text}");
        assert_eq!(Figures(&figures).advice().kind, Some(Kind::Hybrid));
    }

    #[test]
    fn the_other_way_round_too() {
        let figures = [figure(&[(1.0, [100.0, 300.0, 200.0]), (64.0, [150.0, 300.0, 130.0])])];
        assert_eq!(Figures(&figures).advice().kind, Some(Kind::PerProcess));
    }

    #[test]
    fn noise_is_said_to_be_noise() {
        let mut figure = Figure::new("p50", "Round trip", ["processes", "ns"], Better::Less);
        figure.add("per-process", 1.0, vec![100.0, 200.0, 300.0]);
        figure.add("shared", 1.0, vec![300.0, 100.0, 200.0]);
        figure.add("hybrid", 1.0, vec![230.0, 330.0, 120.0]);
        let figures = [figure];
        assert!(
            Figures(&figures).measured().contains("too noisy to tell"),
            "{}",
            Figures(&figures).measured()
        );
        assert_eq!(Figures(&figures).advice().kind, None);
    }
}
