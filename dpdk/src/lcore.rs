//! Logical cores: the threads that the EAL has started, each pinned to its CPU.
//!
//! Which there are is said by the EAL's options (`-l 0-3`, `--lcores=0@0,(1-3)@1`). The one that started the EAL is
//! the main lcore; the others, the workers, sleep until they are given a closure:
//!
//! ```no_run
//! # let (eal, _) = dpdk::eal::Eal::init(["prog", "-l", "0-1", "--no-pci"]).unwrap();
//! let greeting = String::from("hello");
//! let lengths: Vec<usize> = eal.lcore_scope(|scope| {
//!     let jobs: Vec<_> =
//!         eal.workers().iter().map(|lcore| scope.launch(lcore, || greeting.len()).unwrap()).collect();
//!     jobs.into_iter().map(|job| job.wait().unwrap()).collect()
//! });
//! ```
#![allow(unsafe_code)] // Hands closures to DPDK's threads, and asks DPDK about lcores.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use dpdk_sys as sys;
use thiserror::Error;

use crate::eal::Eal;
use crate::errno::RteError;

/// One enabled lcore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lcore {
    /// DPDK's number for it, which is not the CPU's.
    pub id: u32,
    /// The CPUs its thread may run on, ascending: usually one, and several lcores may share one.
    pub cpus: Vec<u32>,
    /// The NUMA node ("socket") it belongs to.
    pub numa_node: u32,
    /// Whether this is the main lcore, which cannot be given closures.
    pub is_main: bool,
}

/// Why a closure could not be given to an lcore.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LaunchError {
    /// The main lcore is the caller itself.
    #[error("lcore {0} is the main lcore: call the closure directly, or pick one of the workers")]
    MainLcore(u32),
    /// The lcore still runs another closure.
    #[error("lcore {id} did not take the closure: {error}; wait for its previous job first")]
    Refused {
        /// The lcore.
        id: u32,
        /// DPDK's reason.
        error: RteError,
    },
}

impl Eal {
    /// All enabled lcores in the order of their numbers.
    pub fn lcores(&self) -> Vec<Lcore> {
        // SAFETY: reads the EAL's table; -1 (all ones) asks for the first, and the answer is RTE_MAX_LCORE, for which
        // `describe` is not called, after the last.
        let next = |id: u32| unsafe { sys::rte_get_next_lcore(id, 0, 0) };
        let mut lcores = Vec::new();
        let mut id = next(u32::MAX);
        while id < RTE_MAX_LCORE {
            lcores.push(self.describe(id));
            id = next(id);
        }
        lcores
    }

    /// All lcores but the main one.
    pub fn workers(&self) -> Vec<Lcore> {
        self.lcores().into_iter().filter(|lcore| !lcore.is_main).collect()
    }

    /// The lcore whose thread started the EAL.
    pub fn main_lcore(&self) -> Lcore {
        // SAFETY: reads a setting of the running EAL.
        self.describe(unsafe { sys::rte_get_main_lcore() })
    }

    fn describe(&self, id: u32) -> Lcore {
        // SAFETY: reads the EAL's table of lcores; both calls check the number.
        unsafe {
            Lcore {
                id,
                cpus: (0..CPUS_MAX).filter(|&cpu| sys::shim_lcore_has_cpu(id, cpu) == 1).collect(),
                numa_node: sys::rte_lcore_to_socket_id(id),
                is_main: id == sys::rte_get_main_lcore(),
            }
        }
    }

    /// Runs `body`, in which closures that borrow from outside can be launched on workers, and returns when `body`
    /// and all of those have ended. As `std::thread::scope`, except that a panic in a closure whose [`Job`] nobody
    /// waits for ends there, after the panic message.
    pub fn lcore_scope<'env, T>(
        &'env self,
        body: impl for<'scope> FnOnce(&'scope LcoreScope<'scope, 'env>) -> T,
    ) -> T {
        let scope = LcoreScope { launched: RefCell::default(), _scope: PhantomData, _env: PhantomData };
        let result = catch_unwind(AssertUnwindSafe(|| body(&scope)));
        // Whatever happened in `body`: the closures borrow from its surroundings, so nobody leaves before they end.
        let launched = scope.launched.take();
        launched.iter().for_each(|(_, done)| done.sleep_until_set());
        launched.iter().for_each(|(id, _)| wait_until_idle(*id));
        result.unwrap_or_else(|payload| resume_unwind(payload))
    }
}

/// As compiled into libdpdk; an upper bound is enough, DPDK's own answers are below it.
const RTE_MAX_LCORE: u32 = sys::RTE_MAX_LCORE;
/// The CPUs in a `cpu_set_t`.
const CPUS_MAX: u32 = 1024;

/// Where closures are launched; see [`Eal::lcore_scope`].
pub struct LcoreScope<'scope, 'env: 'scope> {
    launched: RefCell<Vec<(u32, Arc<Done>)>>,
    /// Invariant, as in `std::thread::Scope`: the closures must not be given a shorter life than the scope's.
    _scope: PhantomData<&'scope mut &'scope ()>,
    _env: PhantomData<&'env mut &'env Eal>,
}

impl<'scope> LcoreScope<'scope, '_> {
    /// Starts `work` on a worker lcore that is free.
    ///
    /// # Errors
    /// [`LaunchError`]: the main lcore, or one that is still busy.
    pub fn launch<T, F>(&'scope self, lcore: &Lcore, work: F) -> Result<Job<'scope, T>, LaunchError>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        if lcore.is_main {
            return Err(LaunchError::MainLcore(lcore.id));
        }
        let done = Arc::new(Done::default());
        let result = Arc::new(Mutex::new(None));
        let task: Task<'scope> = {
            let (done, result) = (Arc::clone(&done), Arc::clone(&result));
            Box::new(move || {
                let outcome = catch_unwind(AssertUnwindSafe(work));
                *lock(&result) = Some(outcome);
                drop(result);
                done.set();
            })
        };
        let argument = Box::into_raw(Box::new(task)).cast::<c_void>();
        // SAFETY: `run_task` takes ownership of `argument`, which is a boxed Task, once. The task may borrow for
        // 'scope: `lcore_scope` does not return before the lcore is idle again. The caller is on the main lcore, as
        // neither Eal nor LcoreScope can leave its thread.
        let ret = unsafe { sys::rte_eal_remote_launch(Some(run_task), argument, lcore.id) };
        if let Err(error) = RteError::check(ret) {
            // SAFETY: a refused launch has not touched `argument`: it is ours again.
            drop(unsafe { Box::from_raw(argument.cast::<Task<'scope>>()) });
            return Err(LaunchError::Refused { id: lcore.id, error });
        }
        self.launched.borrow_mut().push((lcore.id, Arc::clone(&done)));
        Ok(Job { lcore: lcore.id, done, result, _scope: PhantomData })
    }
}

type Task<'scope> = Box<dyn FnOnce() + Send + 'scope>;

/// Runs on the worker. The task catches its closure's panic, so nothing unwinds into DPDK.
unsafe extern "C" fn run_task(argument: *mut c_void) -> c_int {
    // SAFETY: `launch` passes a boxed Task and gives it up.
    let task = unsafe { Box::from_raw(argument.cast::<Task<'_>>()) };
    task();
    0
}

type Outcome<T> = Result<T, Box<dyn Any + Send>>;

/// A closure launched on an lcore.
#[derive(Debug)]
pub struct Job<'scope, T> {
    lcore: u32,
    done: Arc<Done>,
    result: Arc<Mutex<Option<Outcome<T>>>>,
    /// Belongs to the main lcore's thread.
    _scope: PhantomData<(&'scope (), *mut ())>,
}

impl<T> Job<'_, T> {
    /// Sleeps until the closure has ended and returns what it returned, or the payload of its panic. Afterwards the
    /// lcore is free for the next closure.
    pub fn wait(self) -> Outcome<T> {
        self.done.sleep_until_set();
        wait_until_idle(self.lcore);
        lock(&self.result).take().unwrap_or_else(|| Err(Box::new("the job ended without a result")))
    }

    /// Whether the closure has ended, so that [`Job::wait`] returns at once.
    pub fn is_finished(&self) -> bool {
        *lock(&self.done.flag)
    }
}

/// Set when a closure has ended.
#[derive(Debug, Default)]
struct Done {
    flag: Mutex<bool>,
    changed: Condvar,
}

impl Done {
    fn set(&self) {
        *lock(&self.flag) = true;
        self.changed.notify_all();
    }

    fn sleep_until_set(&self) {
        let mut ended = lock(&self.flag);
        while !*ended {
            ended = self.changed.wait(ended).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

/// Waits until DPDK has marked the lcore as free. Spins, so it is called only after the closure's end was slept for:
/// the spinning may happen on the very CPU that the worker needs.
fn wait_until_idle(lcore: u32) {
    // SAFETY: called on the main lcore, for a worker that `launch` has used. DPDK stores the idle state with release
    // order after `run_task` has returned and loads it here with acquire order: the task's captures are dropped.
    unsafe { sys::rte_eal_wait_lcore(lcore) };
}

/// What these locks guard is valid after any panic: a flag and an optional result.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
