//! Ends the program when a part stands still: a measurement that waits for what never comes is to say so, not
//! to hang.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// What is being done, and since when.
#[derive(Clone, Debug)]
pub struct Watchdog(Arc<Mutex<(String, Instant)>>);

impl Watchdog {
    /// Calls `bark` once with a sentence when nothing was begun for `limit`.
    pub fn start(limit: Duration, bark: impl FnOnce(String) + Send + 'static) -> Watchdog {
        let watchdog = Watchdog(Arc::new(Mutex::new(("the start".to_owned(), Instant::now()))));
        let watched = Arc::downgrade(&watchdog.0);
        thread::spawn(move || {
            // Ends with the last owner.
            while let Some(state) = watched.upgrade() {
                let (what, since) = state.lock().unwrap_or_else(PoisonError::into_inner).clone();
                drop(state);
                let Some(left) = limit.checked_sub(since.elapsed()) else {
                    let seconds = limit.as_secs_f64();
                    return bark(format!(
                        "\"{what}\" stood still for {seconds} s, which is a fault: please report it"
                    ));
                };
                thread::sleep(left.min(Duration::from_secs(1)));
            }
        });
        watchdog
    }

    /// Something new begins.
    pub fn begin(&self, what: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (what.to_owned(), Instant::now());
    }
}

/// Asks the processes that we started to end: nobody else will, once we have ended without them.
pub fn end_children() {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    for list in tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok()) {
        for pid in list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            // One that has ended meanwhile is still ours: nobody has waited for it.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::Watchdog;

    #[test]
    fn what_stands_still_is_named() {
        let (tell, told) = mpsc::channel();
        let watchdog = Watchdog::start(Duration::from_millis(20), move |why| drop(tell.send(why)));
        watchdog.begin("latency: 8 processes");
        let why = told.recv().unwrap();
        assert!(why.starts_with("\"latency: 8 processes\" stood still for 0.02 s"), "{why}");
    }
}
