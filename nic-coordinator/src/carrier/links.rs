//! Links to other hosts' bridges: asked for, granted, given up (SPEC 14.6).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;

use fabric::endpoint::{Asking, Endpoint, Event, Settings};
use fabric::listener::Listener;
use fabric::provider::Fabric;
use ring::link::{Contact, Knock, Token, Welcome};

use super::CarrierError;
use crate::bridge::{Bridge, GATHERED_BYTES, LinkId};
use crate::exchange::Reach;

/// How long a link may take to be set up: a call waits for it, and has time left then.
const OPEN_US_MAX: u64 = 1_000_000;
/// How long a host counts as out of reach after that.
const UNREACHABLE_US: u64 = 10_000_000;
/// How often links that are being set up are looked at.
const LOOK_EVERY_US: u64 = 1000;
/// How often it is looked who asks for a link: each look is a system call.
const LISTEN_EVERY_US: u64 = 100;
/// Requests that are being granted at one time.
const GRANTING_MAX: usize = 256;

/// Who asked for a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asker {
    /// We did, for its calls.
    Us,
    /// It did, for ours.
    Them,
}

/// With whom a link is.
#[derive(Clone, Copy)]
pub(super) struct Party {
    pub(super) asker: Asker,
    /// The other run.
    pub(super) token: Token,
    card: Ipv4Addr,
}

/// What has become of a link.
pub(super) enum News {
    /// It is there.
    Up(Party, LinkId),
    /// It will not be.
    Failed(Party),
}

/// Where a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Up(LinkId),
    Opening,
    None,
}

/// A link that is being set up.
struct Opening {
    party: Party,
    stage: Stage,
    /// Of the other bridge, once it has said so.
    receives: Option<u32>,
    until_us: u64,
}

/// How far it is.
enum Stage {
    Asking(Asking),
    There(Box<Endpoint>),
}

impl Stage {
    /// What has happened to it.
    fn event(&mut self) -> Result<Option<Event>, String> {
        if let Stage::Asking(asking) = self {
            let Some(endpoint) = asking.poll().map_err(|error| error.to_string())? else { return Ok(None) };
            *self = Stage::There(Box::new(endpoint));
        }
        match self {
            Stage::Asking(_) => Ok(None),
            Stage::There(endpoint) => endpoint.event().map_err(|down| down.to_string()),
        }
    }
}

struct Up {
    link: LinkId,
    card: Ipv4Addr,
}

/// All of them.
pub(super) struct Links {
    pub(super) fabric: Fabric,
    settings: Settings,
    listener: Listener,
    at: SocketAddr,
    own: Token,
    card: Ipv4Addr,
    up: BTreeMap<(Asker, Token), Up>,
    opening: Vec<Opening>,
    unreachable: BTreeMap<Token, u64>,
    listened_us: u64,
}

impl Links {
    pub(super) fn new(fabric: Fabric, card: Ipv4Addr, own: Token) -> Result<Links, CarrierError> {
        let listener = fabric.listen(0)?;
        let at = listener.address().map_err(CarrierError::Fabric)?;
        let (up, opening, unreachable, listened_us) = Default::default();
        let settings = settings(&fabric);
        Ok(Links { fabric, settings, listener, at, own, card, up, opening, unreachable, listened_us })
    }

    /// Receives that each of our endpoints posts, for the other bridge.
    fn receives(&self) -> u32 {
        u32::try_from(self.settings.receives).unwrap_or(u32::MAX)
    }

    /// How we can be reached; the rest of a path is the connection's.
    pub(super) fn contact(&self, connection: u32, rings: (u64, u64)) -> Contact {
        let ip = match self.at.ip() {
            IpAddr::V4(four) => four.to_ipv6_mapped(),
            IpAddr::V6(six) => six,
        };
        let (token, ip, port) = (self.own, ip.octets(), self.at.port());
        Contact { token, ip, port, card: self.card.octets(), connection, rings }
    }

    pub(super) fn len(&self) -> usize {
        self.up.len()
    }

    pub(super) fn state(&self, asker: Asker, token: Token) -> State {
        match self.up.get(&(asker, token)) {
            Some(up) => State::Up(up.link),
            None if self.opening.iter().any(|o| (o.party.asker, o.party.token) == (asker, token)) => {
                State::Opening
            }
            None => State::None,
        }
    }

    /// Whether calls of that host can be granted.
    pub(super) fn reach(&mut self, now_us: u64, caller: &Contact) -> Reach {
        match self.state(Asker::Us, caller.token) {
            State::Up(_) => return Reach::Ready,
            State::Opening => return Reach::Pending,
            State::None => {}
        }
        if self.unreachable.get(&caller.token).is_some_and(|until| *until > now_us) {
            return Reach::Never;
        }
        let peer = SocketAddr::new(Ipv6Addr::from(caller.ip).to_canonical(), caller.port);
        let receives = self.receives();
        let knock = Knock { to: caller.token, from: self.own, card: self.card.octets(), receives };
        match self.fabric.ask(peer, self.settings, knock.to_bytes().to_vec()) {
            Ok(asking) => {
                let party = Party { asker: Asker::Us, token: caller.token, card: caller.card.into() };
                self.begin(now_us, party, Stage::Asking(asking), None);
                Reach::Pending
            }
            Err(error) => {
                tracing::warn!("no link to the bridge of card {}: {error}", Ipv4Addr::from(caller.card));
                self.unreachable.insert(caller.token, now_us + UNREACHABLE_US);
                Reach::Never
            }
        }
    }

    fn begin(&mut self, now_us: u64, party: Party, stage: Stage, receives: Option<u32>) {
        let until_us = now_us + OPEN_US_MAX;
        self.opening.push(Opening { party, stage, receives, until_us });
    }

    /// Grants what is asked for, and gives what is there to the bridge.
    pub(super) fn turn(&mut self, now_us: u64, bridge: &mut Bridge, mut each: impl FnMut(News)) {
        if now_us >= self.listened_us + LISTEN_EVERY_US {
            self.listened_us = now_us;
            self.grant(now_us);
        }
        for mut opening in std::mem::take(&mut self.opening) {
            let party = opening.party;
            match opening.stage.event() {
                Ok(None) if opening.until_us > now_us => self.opening.push(opening),
                Ok(Some(Event::Connected(data))) => {
                    let welcome = Welcome::from_bytes(&data).ok().map(|welcome| welcome.receives);
                    let (Stage::There(endpoint), Some(receives)) =
                        (opening.stage, opening.receives.or(welcome))
                    else {
                        self.failed(now_us, party, "it answers nonsense", &mut each);
                        continue;
                    };
                    let link = bridge.add_link(*endpoint, receives);
                    self.up.insert((party.asker, party.token), Up { link, card: party.card });
                    tracing::info!("a link to the bridge of card {}", party.card);
                    each(News::Up(party, link));
                }
                Ok(None) => self.failed(now_us, party, "it takes too long", &mut each),
                Ok(Some(event)) => self.failed(now_us, party, &format!("{event:?}"), &mut each),
                Err(why) => self.failed(now_us, party, &why, &mut each),
            }
        }
        self.unreachable.retain(|_, until| *until > now_us);
    }

    fn failed(&mut self, now_us: u64, party: Party, why: &str, each: &mut impl FnMut(News)) {
        tracing::warn!("no link to the bridge of card {}: {why}", party.card);
        if party.asker == Asker::Us {
            self.unreachable.insert(party.token, now_us + UNREACHABLE_US);
        }
        each(News::Failed(party));
    }

    fn grant(&mut self, now_us: u64) {
        loop {
            let incoming = match self.listener.poll() {
                Ok(Some(incoming)) => incoming,
                Ok(None) => return,
                Err(error) => {
                    tracing::error!("{error}: listening anew");
                    if let Ok(listener) = self.fabric.listen(0)
                        && let Ok(at) = listener.address()
                    {
                        (self.listener, self.at) = (listener, at);
                    }
                    return;
                }
            };
            // Who does not know the token is refused, by being dropped.
            let knock = Knock::from_bytes(&incoming.data).ok().filter(|knock| knock.to == self.own);
            let Some(knock) = knock.filter(|_| self.opening.len() < GRANTING_MAX) else { continue };
            let receives = self.receives();
            match incoming.accept(&self.settings, &Welcome { receives }.to_bytes()) {
                Ok(endpoint) => {
                    let party = Party { asker: Asker::Them, token: knock.from, card: knock.card.into() };
                    self.begin(now_us, party, Stage::There(Box::new(endpoint)), Some(knock.receives));
                }
                Err(error) => tracing::warn!("a link is not granted: {error}"),
            }
        }
    }

    /// The bridge has lost a link.
    pub(super) fn lost(&mut self, link: LinkId) {
        self.up.retain(|_, up| up.link != link);
    }

    /// The links of a card's host that is lost. Those that are being set up are given up.
    pub(super) fn of_card(&mut self, card: Ipv4Addr, mut each: impl FnMut(News)) -> Vec<LinkId> {
        let of_it = |opening: &mut Opening| opening.party.card == card;
        self.opening.extract_if(.., of_it).for_each(|gone| each(News::Failed(gone.party)));
        self.up.values().filter(|up| up.card == card).map(|up| up.link).collect()
    }

    pub(super) fn due_us(&self, now_us: u64) -> Option<u64> {
        (!self.opening.is_empty()).then_some(now_us + LOOK_EVERY_US)
    }

    /// True: somebody who asks makes [`Links::wait_fd`] readable.
    pub(super) fn may_sleep(&mut self) -> bool {
        self.listener.may_sleep().unwrap_or(false)
    }

    pub(super) fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.listener.wait_fd().ok()
    }
}

/// Room for a gathered message with the longest inline run. Over `tcp` a write is a message of the kernel's that wakes the other
/// coordinator once more, which costs as much as two copies of 64 KiB; a card writes by itself, and its buffers stay in memory.
fn settings(fabric: &Fabric) -> Settings {
    let (inline_bytes, receives, sends) =
        if fabric.provider() == "tcp" { (68 * 1024, 32, 16) } else { (6 * 1024, 64, 32) };
    Settings { message_bytes: inline_bytes + GATHERED_BYTES, receives, sends, ..Settings::default() }
}
