//! The provider and address that the tests use, and pairs of endpoints.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use fabric::endpoint::{Completion, Down, Endpoint, Event, Settings};
use fabric::listener::Listener;
use fabric::provider::Fabric;

/// No wait here needs a second; a machine under load may make it many.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// `FABRIC_PROVIDER`, or `tcp`.
pub fn provider() -> String {
    std::env::var("FABRIC_PROVIDER").unwrap_or_else(|_| "tcp".into())
}

/// `FABRIC_ADDRESS`, an address of this machine that the provider reaches, or the loopback's.
pub fn address() -> IpAddr {
    std::env::var("FABRIC_ADDRESS").map_or([127, 0, 0, 1].into(), |text| text.parse().unwrap())
}

pub fn open() -> Fabric {
    Fabric::open(&provider(), address()).unwrap()
}

/// Does `step` until it says something.
pub fn until<T>(what: &str, mut step: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(result) = step() {
            return result;
        }
        assert!(start.elapsed() < WAIT_MAX, "{what} takes too long");
        std::thread::yield_now();
    }
}

/// Two connected endpoints of one fabric: who has connected, and who has accepted.
pub fn pair(fabric: &Fabric, settings: &Settings) -> (Endpoint, Endpoint) {
    let mut listener = fabric.listen(0).unwrap();
    let mut client = fabric.connect(listener.address().unwrap(), settings, b"hello").unwrap();
    let incoming = accept_one(&mut listener, &mut client);
    assert!(incoming.data.starts_with(b"hello"), "{:?}", incoming.data);
    let mut server = incoming.accept(settings, b"welcome").unwrap();
    let (mut there, mut here) = (None, None);
    until("the connection", || {
        there = there.take().or_else(|| client.event().unwrap());
        here = here.take().or_else(|| server.event().unwrap());
        (there.is_some() && here.is_some()).then_some(())
    });
    assert!(matches!(there, Some(Event::Connected(data)) if data.starts_with(b"welcome")));
    assert!(matches!(here, Some(Event::Connected(_))));
    (client, server)
}

/// Waits for a request; the client is polled, too, since nobody else does its work.
pub fn accept_one(listener: &mut Listener, client: &mut Endpoint) -> fabric::listener::Incoming {
    until("the request", || {
        let early = client.event().unwrap();
        assert_eq!(early, None);
        listener.poll().unwrap()
    })
}

/// Messages that `endpoint` has now.
pub fn messages(endpoint: &mut Endpoint) -> Result<Vec<Vec<u8>>, Down> {
    let mut all = Vec::new();
    endpoint.poll(|completion| {
        if let Completion::Received(bytes) = completion {
            all.push(bytes.to_vec());
        }
    })?;
    Ok(all)
}

/// Sends `bytes`, once there is room.
pub fn say(endpoint: &mut Endpoint, bytes: &[u8]) {
    until("room for a message", || {
        endpoint.outgoing()?[..bytes.len()].copy_from_slice(bytes);
        match endpoint.send(bytes.len()) {
            Ok(()) => Some(()),
            Err(fabric::endpoint::PostError::Full) => {
                endpoint.poll(|_| {}).unwrap();
                None
            }
            Err(error) => panic!("{error}"),
        }
    });
}
