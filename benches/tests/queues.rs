//! `bench-queues` ends with a report of the right shape, and refuses wrong arguments at once. No figure is judged.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// All that run in one process; `setup-whole` needs the product, and is run by CI.
const PARTS: [&str; 11] = [
    "processes",
    "latency",
    "idle",
    "clients",
    "polling",
    "operations",
    "bus",
    "port",
    "lock",
    "accept",
    "setup",
];

fn bench(out: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench-queues"));
    command.arg("--out").arg(out).args(arguments).output().unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a Vec<Value> {
    value[key].as_array().unwrap_or_else(|| panic!("{key} is no list"))
}

/// Each figure has points with rounds, a picture, and a place on the page.
fn check(figures: &[Value], rounds: usize, dir: &Path, page: &str) {
    for figure in figures {
        let id = figure["id"].as_str().unwrap();
        assert!(list(figure, "series").len() >= 3, "{id}");
        for series in list(figure, "series") {
            let name = series["name"].as_str().unwrap();
            assert!(!list(series, "points").is_empty(), "{id}, {name}");
            for point in list(series, "points") {
                assert_eq!(list(point, "rounds").len(), rounds, "{id}, {name}");
                let [min, median, max] = ["min", "median", "max"].map(|key| point[key].as_f64().unwrap());
                assert!(min <= median && median <= max, "{id}, {name}");
            }
        }
        let picture = fs::read(dir.join(format!("{id}.png"))).unwrap();
        assert!(picture.starts_with(b"\x89PNG") && picture.len() > 5000, "{id}");
        assert!(page.contains(&format!("<h3 id={id}>")), "{id}");
    }
}

#[test]
fn a_run_leaves_a_report() {
    let dir = std::env::temp_dir().join(format!("bench-queues-{}", std::process::id()));
    let ran = bench(&dir, &[["--quick", "--rounds", "1"].as_slice(), &PARTS].concat());
    let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&fs::read(dir.join("report.json")).unwrap()).unwrap();
    let page = fs::read_to_string(dir.join("report.html")).unwrap();
    assert_eq!(list(&report, "parts").len(), PARTS.len());
    let (measured, simulated) = (list(&report, "figures"), list(&report, "simulated"));
    assert!(measured.iter().all(|figure| figure["simulated"] == false));
    assert!(!simulated.is_empty() && simulated.iter().all(|figure| figure["simulated"] == true));
    check(measured, 1, &dir, &page);
    check(simulated, 1, &dir, &page);
    assert!(report["costs"].is_object() && list(&report, "assumptions").len() > 3);
    let findings = list(&report, "findings");
    assert_eq!(findings.len(), 2);
    for paragraph in findings {
        let paragraph = paragraph.as_str().unwrap();
        assert!(said.contains(paragraph) && page.contains(paragraph), "{paragraph}");
    }
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn one_part_by_name_needs_no_other() {
    let dir = std::env::temp_dir().join(format!("bench-queues-part-{}", std::process::id()));
    let ran = bench(&dir, &["--quick", "--rounds", "1", "operations"]);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let report: Value = serde_json::from_slice(&fs::read(dir.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["parts"], serde_json::json!(["operations"]));
    assert!(report["costs"].is_null() && list(&report, "simulated").is_empty());
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn wrong_arguments_are_refused_at_once() {
    let nowhere = Path::new("/proc/no-such-place");
    let refused = [
        (bench(nowhere, &["latencies"]), "no part is called \"latencies\""),
        (bench(nowhere, &["latency"]), "the report can't be written to /proc/no-such-place"),
    ];
    for (ran, why) in refused {
        assert!(!ran.status.success());
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(said.contains(why) && said.trim().lines().count() == 1, "{said}");
    }
}
