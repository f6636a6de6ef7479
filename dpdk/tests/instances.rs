//! DPDK as it runs on any machine: no card, no huge pages, with and without root, several at once.

mod common;

use common::{PLAIN, Place, Running, Telemetry, run, succeed, value};

fn plain_with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [PLAIN, more].concat()
}

#[test]
fn eal_tells_version_memory_and_lcores() {
    let place = Place::new();
    let out = succeed(place.check(&plain_with(&["--lcores=0@0,(1-3)@0"]), &["info"]));
    assert!(value(&out, "version").starts_with("DPDK "), "{out}");
    assert_eq!(value(&out, "hugepages"), "false");
    assert_eq!(value(&out, "main_lcore"), "0");
    let lcores: Vec<&str> = out.lines().filter(|line| line.starts_with("lcore ")).collect();
    assert_eq!(lcores.len(), 4, "{out}");
    assert!(lcores.iter().all(|line| line.contains(" cpus [0] ")), "{out}");
    assert_eq!(lcores.iter().filter(|line| line.ends_with("main true")).count(), 1, "{out}");
    assert!(value(&out, "pinned").starts_with("[0] restored"), "{out}");
}

#[test]
fn bursts_on_a_null_port_leak_nothing() {
    let place = Place::new();
    let out = succeed(place.check(&plain_with(&["--vdev=net_null0"]), &["burst", "net_null0"]));
    assert_eq!((value(&out, "received"), value(&out, "sent")), ("6400", "6400"));
    assert_eq!(value(&out, "in_use"), "0");
    assert_eq!(value(&out, "mac").len(), "00:00:00:00:00:00".len());
    assert!(value(&out, "stats").contains("rx_packets: 6400, tx_packets: 6400"), "{out}");
}

#[test]
fn rings_between_lcores_lose_nothing() {
    let place = Place::new();
    let out = succeed(place.check(&plain_with(&["--lcores=0@0,(1-2)@0"]), &["rings"]));
    assert_eq!(value(&out, "passed"), "40000");
}

#[test]
fn a_null_port_can_receive_nothing() {
    let place = Place::new();
    let out = succeed(place.check(&plain_with(&["--vdev=net_null0,no-rx=1"]), &["burst", "net_null0"]));
    assert_eq!((value(&out, "received"), value(&out, "sent")), ("0", "6400"));
}

#[test]
fn packets_come_back_from_a_ring_port_whole_and_in_order() {
    let place = Place::new();
    let eal = plain_with(&["--vdev=net_ring0", "--lcores=0@0,(1-2)@0"]);
    let out = succeed(place.check(&eal, &["loop", "net_ring0"]));
    // The ring has 1024 entries, of which it keeps one free.
    assert_eq!(value(&out, "looped"), "1023");
    assert_eq!(value(&out, "looped_on_worker 1"), "1023");
    assert_eq!(value(&out, "looped_on_worker 2"), "1023");
    assert_eq!(value(&out, "in_use"), "0");
}

#[test]
fn telemetry_answers_while_running() {
    let place = Place::new();
    let mut running = Running::start(place.check(PLAIN, &["serve"]));
    let socket = running.serving().join("dpdk_telemetry.v2");
    let client = Telemetry::connect(&socket);
    let early = |count: u32, parameters: &str| {
        format!(
            "{{\"/dpdk_check/early\":{{\"asked\":{count},\"parameters\":\"{parameters}\",\
             \"largest\":18446744073709551615,\"numbers\":[1,2,3],\"texts\":[\"a\",\"b\"],\"inner\":{{\"x\":7}}}}}}"
        )
    };
    assert_eq!(client.ask("/dpdk_check/early"), early(1, ""));
    assert_eq!(client.ask("/dpdk_check/early,some words"), early(2, "some words"));
    // A second client at the same time.
    assert_eq!(Telemetry::connect(&socket).ask("/dpdk_check/early"), early(3, ""));
    assert_eq!(client.ask("/dpdk_check/text"), r#"{"/dpdk_check/text":"a \"quoted\" text"}"#);
    assert_eq!(client.ask("/dpdk_check/numbers"), r#"{"/dpdk_check/numbers":[4,5]}"#);
    assert_eq!(client.ask("/dpdk_check/texts"), r#"{"/dpdk_check/texts":["late"]}"#);
    let cut = format!("{{\"/dpdk_check/long\":[\"{}\"]}}", "x".repeat(127));
    assert_eq!(client.ask("/dpdk_check/long"), cut);
    let too_many = client.ask("/dpdk_check/too_many");
    assert!(too_many.starts_with(r#"{"/dpdk_check/too_many":{"error":"cannot answer"#), "{too_many}");
    let help = client.ask("/help,/dpdk_check/early");
    assert!(help.contains("Every kind of value. Registered before the EAL."), "{help}");

    let ended = running.wait();
    assert!(ended.status.success(), "{ended:?}");
    assert!(!socket.exists(), "the telemetry socket is left behind");
}

#[test]
fn an_ordinary_user_needs_nothing_else() {
    let place = Place::new();
    let out = succeed(place.check_as_user(&plain_with(&["--vdev=net_null0"]), &["burst", "net_null0"]));
    assert_eq!((value(&out, "received"), value(&out, "in_use")), ("6400", "0"));

    let mut running = Running::start(place.check_as_user(PLAIN, &["serve"]));
    let dir = running.serving();
    assert!(dir.ends_with(format!("runtime/dpdk/{}", place.prefix)), "{dir:?}");
    let client = Telemetry::connect(&dir.join("dpdk_telemetry.v2"));
    assert_eq!(client.ask("/dpdk_check/numbers"), r#"{"/dpdk_check/numbers":[4,5]}"#);
    assert!(running.wait().status.success());
}

#[test]
fn two_instances_with_shared_configuration_run_side_by_side() {
    // Without --no-shconf: what would clash has the prefix in its name.
    let eal = ["--no-pci", "--no-huge", "-m", "64"];
    let places = [Place::new(), Place::new()];
    let mut both = places.each_ref().map(|place| Running::start(place.check(&eal, &["serve"])));
    for running in &mut both {
        let client = Telemetry::connect(&running.serving().join("dpdk_telemetry.v2"));
        assert!(client.ask("/dpdk_check/early").contains("\"asked\":1,"));
    }
    assert!(both.each_mut().map(Running::wait).iter().all(|ended| ended.status.success()));
}

#[test]
fn two_instances_of_one_name_run_side_by_side_without_shared_configuration() {
    let place = Place::new();
    let mut first = Running::start(place.check(PLAIN, &["serve"]));
    let dir = first.serving();
    let mut second = Running::start(place.check(PLAIN, &["serve"]));
    assert_eq!(second.serving(), dir);
    for name in ["dpdk_telemetry.v2", "dpdk_telemetry.v2:1"] {
        let client = Telemetry::connect(&dir.join(name));
        assert!(client.ask("/dpdk_check/early").contains("\"asked\":1,"));
    }
    assert!(first.wait().status.success() && second.wait().status.success());
}

#[test]
fn refused_eal_options_are_one_clear_error() {
    for bad in [&["--no-such-option"][..], &["-l", "1000"], &["--vdev=net_no_such_driver0"]] {
        let place = Place::new();
        let ended = run(place.check(&plain_with(bad), &["info"]));
        assert_eq!(ended.status.code(), Some(1), "{bad:?}: {ended:?}");
        let ours: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("dpdk-check: ")).collect();
        assert_eq!(ours.len(), 1, "{bad:?}: {ended:?}");
        assert!(ours[0].contains("DPDK's EAL did not start: "), "{bad:?}: {ours:?}");
    }
}

#[test]
fn a_port_whose_probe_failed_is_not_found() {
    let place = Place::new();
    let eal = plain_with(&["--vdev=net_af_packet0,iface=missing"]);
    let ended = run(place.check(&eal, &["burst", "net_af_packet0"]));
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("there is no Ethernet port \"net_af_packet0\""), "{ended:?}");
}
