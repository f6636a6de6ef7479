//! A panic of ours stays on our side of DPDK. Runs the EAL in the test's own process, which unlike the programs is
//! built to unwind; so this file has one test.

mod common;

use common::{PLAIN, Telemetry};
use dpdk::eal::Eal;
use dpdk::lcore::LaunchError;
use dpdk::telemetry;

#[test]
fn panics_end_at_the_wrapper() {
    let prefix = format!("ipcd-dpdk-panics-{}", std::process::id());
    let options = [&["panics", "--lcores=0@0,1@0"], PLAIN].concat();
    let options = options.into_iter().map(str::to_owned).chain([format!("--file-prefix={prefix}")]);
    let (eal, _) = Eal::init(options).unwrap();
    let dir = eal.runtime_dir();

    a_worker_panics(&eal);
    a_scope_waits_for_its_jobs(&eal);

    telemetry::register("/panics/now", "", |_| panic!("meant to happen: in a telemetry handler")).unwrap();
    let client = Telemetry::connect(&dir.join("dpdk_telemetry.v2"));
    assert_eq!(client.ask("/panics/now"), r#"{"/panics/now":{"error":"the command's handler panicked"}}"#);

    drop(eal);
    // DPDK would remove its socket at the end of the process, but never the directory.
    std::fs::remove_dir_all(dir).unwrap();
}

fn a_worker_panics(eal: &Eal) {
    let worker = &eal.workers()[0];
    eal.lcore_scope(|scope| {
        let job = scope.launch(worker, || panic!("meant to happen: on a worker")).unwrap();
        let payload = job.wait().map(|()| "no panic").unwrap_err();
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"meant to happen: on a worker"));
        // The lcore is as good as new.
        assert_eq!(scope.launch(worker, || 5).unwrap().wait().unwrap(), 5);
    });
}

/// Leaving a scope, even by a panic, waits for what was launched: it borrows from outside.
fn a_scope_waits_for_its_jobs(eal: &Eal) {
    let worker = &eal.workers()[0];
    let (start, started) = std::sync::mpsc::channel::<()>();
    let mut written = 0;
    let left = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eal.lcore_scope(|scope| {
            let written = &mut written;
            scope
                .launch(worker, move || {
                    started.recv().unwrap();
                    *written = 7;
                })
                .unwrap();
            let busy = scope.launch(worker, || ()).map(|_| ()).unwrap_err();
            assert!(matches!(busy, LaunchError::Refused { .. }), "{busy}");
            start.send(()).unwrap();
            panic!("meant to happen: in a scope");
        })
    }));
    assert!(left.map(|()| "no panic").is_err());
    assert_eq!(written, 7);
}
