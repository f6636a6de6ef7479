//! `libipc_direct.so`: the shim that an application preloads.
//!
//! POSIX calls in, ring operations out; whatever is not ours goes to the kernel unchanged. The shim is a guest in
//! somebody else's process: it does not panic, print or start threads, signals reach the program's handlers as without it, and it
//! allocates nothing: all tables are static and sparse, or mapped once.
//!
//! From the top down:
//!
//! | layer | modules | what it does |
//! |---|---|---|
//! | symbols | [`exports`] | the C functions that we define in libc's place |
//! | sockets | [`socket`], [`stream`], [`quick`], [`buffers`], [`io`], [`splice`], [`urgent`], [`pending`], [`zerocopy`], [`stamps`], [`listener`], [`ahead`], [`reserved`], [`faces`], [`fresh`], [`ports`], [`connect`], [`source`], [`options`], [`file`] | what a descriptor of ours does |
//! | readiness | [`epoll`], [`epoll_wait`], [`poll`], [`wait`], [`bells`], [`arrivals`] | waiting: spin, yield, sleep |
//! | pipes | [`overlay`] | pipes between relatives: a ring over the kernel's object |
//! | leaving | [`cancel`], [`holds`] | calls that never return: cancelled, or left by a jump |
//! | descriptors | [`table`], [`handle`], [`fds`], [`places`] | which descriptor is what; our own descriptors |
//! | shared state | [`sock`], [`arenas`], [`lock`], [`biased`], [`segments`] | what forked processes share; mapped segments |
//! | process | [`process`], [`agent`], [`coordinator`], [`early`], [`fork`], [`stats`] | attach, requests and completions, fork |
//! | programs | [`leave`], [`adopt`], [`relay`], [`rights`], [`target`] | what another program inherits or is sent, and how it gets it |
//! | ground | [`real`], [`sys`], [`me`], [`handlers`], [`config`], [`scratch`], [`imports`] | libc's originals, system calls, settings |

#![deny(unsafe_code)]

mod adopt;
mod agent;
mod ahead;
mod ancillary;
mod arenas;
mod arrivals;
mod bells;
mod biased;
mod buffers;
mod cancel;
mod config;
mod connect;
mod coordinator;
mod dual;
mod early;
mod epoll;
mod epoll_wait;
mod exports;
mod faces;
mod fds;
mod file;
mod fork;
mod fresh;
mod granted;
mod handle;
mod handlers;
mod holds;
mod imports;
mod io;
mod lazy;
mod leave;
mod listener;
mod lock;
mod me;
mod options;
mod overlay;
mod pending;
mod places;
mod poll;
mod ports;
mod process;
mod quick;
mod real;
mod relay;
mod reserved;
mod rights;
mod scratch;
mod segments;
mod sock;
mod socket;
mod source;
mod splice;
mod stamps;
mod stats;
mod stream;
mod sys;
mod table;
mod target;
mod unaccepted;
mod unix;
mod urgent;
mod wait;
mod zerocopy;
